module https

go 1.15
