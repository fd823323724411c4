module connections

go 1.15
