module http

go 1.15
