module exchange

go 1.15
