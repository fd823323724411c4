module mapped

go 1.15
