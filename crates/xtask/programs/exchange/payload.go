package main

import (
	"encoding/binary"
	"fmt"
)

// message returns the bytes of one message: a pure function of -seed, the
// connection, the sender, and the message's number in its direction.
func message(sender string, id, number, size int) []byte {
	state := *seed
	for _, part := range []uint64{uint64(len(sender)), uint64(sender[0]), uint64(id), uint64(number), uint64(size)} {
		state = mix(state ^ part*0x9e3779b97f4a7c15)
	}
	if *payload == "text" {
		return text(state, sender, id, number, size)
	}
	// Whole words first; the slice's spare capacity takes the last one.
	bytes := make([]byte, (size+7)/8*8)
	for i := 0; i < len(bytes); i += 8 {
		state += 0x9e3779b97f4a7c15
		binary.LittleEndian.PutUint64(bytes[i:], mix(state))
	}
	return bytes[:size]
}

// mix is the output function of splitmix64.
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// text makes readable lines that look like HTTP, ASCII but for one word, so
// that a cut never splits a character: what is left over is filled with dots.
func text(state uint64, sender string, id, number, size int) []byte {
	out := make([]byte, 0, size)
	for line := 0; ; line++ {
		state += 0x9e3779b97f4a7c15
		var next string
		switch {
		case line == 0 && sender == "client":
			next = fmt.Sprintf("POST /connections/%d/messages/%d HTTP/1.1\r\n", id, number)
		case line == 0:
			next = "HTTP/1.1 200 OK\r\n"
		case line == 1:
			next = fmt.Sprintf("Content-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n", size)
		default:
			next = fmt.Sprintf("%s %d/%d line %d: grüße %016x\n", sender, id, number, line, mix(state))
		}
		if len(out)+len(next) > size {
			break
		}
		out = append(out, next...)
	}
	for len(out) < size {
		out = append(out, '.')
	}
	return out
}
