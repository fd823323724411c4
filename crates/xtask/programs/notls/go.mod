module notls

go 1.15
