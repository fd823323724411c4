module quic

go 1.21
