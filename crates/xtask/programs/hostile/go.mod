module hostile

go 1.15
