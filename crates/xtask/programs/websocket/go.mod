module websocket

go 1.15
