package main

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
)

const (
	// gigabyte is what a bomb unpacks to.
	gigabyte = 1 << 30
	// flood is how much is sent where there is no end.
	flood = 16 << 20
)

// evil is what a terminal or a reader must not get: escape sequences (title,
// colours, clearing, reports), C1 controls in both encodings, characters that
// change the direction of writing or are not seen, and bytes that are not UTF-8.
const evil = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\x1b[6n\x1bP$q\x1b\\ \x9b31m\u009b31m\b\b\x7f\x00\x0b\x0c" +
	"\u202eesrever\u2066isolated\u2069\u200f\u061c\u200b\ufeff\U000e0041 \xff\xfe\xc0\x80\xed\xa0\x80\xf4\x90\x80\x80"

func http1() map[string]scenario {
	ok := "HTTP/1.1 200 OK\r\n"
	gzipped := packed(gigabyte)
	nested := gzipBytes(gzipped)
	scenarios := map[string]scenario{
		"escapes": {response: func(w io.Writer) {
			fmt.Fprintf(w, "HTTP/1.1 200 %s\r\nX-Evil: %s\r\nSet-Cookie: %s\r\nContent-Type: text/%s\r\n"+
				"Content-Length: %d\r\n\r\n%s", evil, evil, evil, evil, len(evil), evil)
		}},
		"escapes-json": {response: func(w io.Writer) {
			body := fmt.Sprintf("{\"%s\": [\"%s\"]}", evil, evil)
			fmt.Fprintf(w, "%sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", ok, len(body), body)
		}},
		"not-http": {response: func(w io.Writer) {
			io.WriteString(w, evil)
		}},
		"many-fields": {response: func(w io.Writer) {
			io.WriteString(w, ok)
			for i := 0; i < 100000; i++ {
				fmt.Fprintf(w, "X-%d: %d\r\n", i, i)
			}
			io.WriteString(w, "\r\n")
		}},
		"long-field": {response: func(w io.Writer) {
			io.WriteString(w, ok+"X-Long: ")
			fill(w, "long ", flood)
			io.WriteString(w, "\r\n\r\n")
		}},
		"many-interim": {response: func(w io.Writer) {
			fill(w, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", flood/8)
			io.WriteString(w, ok+"Content-Length: 0\r\n\r\n")
		}},
		"gzip-bomb":    body(ok+"Content-Encoding: gzip\r\n", gzipped),
		"nested-bomb":  body(ok+"Content-Encoding: gzip, gzip\r\n", nested),
		"deflate-bomb": body(ok+"Content-Encoding: deflate\r\n", deflated(gigabyte)),
		"zstd-bomb":    body(ok+"Content-Encoding: zstd\r\n", zstd(gigabyte)),
		"coding-bomb":  body(ok+"Content-Encoding: "+strings.Repeat("gzip, ", 10000)+"gzip\r\n", nested),
		"endless-body": {response: func(w io.Writer) {
			io.WriteString(w, ok+"Content-Type: text/plain\r\n\r\n")
			fill(w, "and so on ", 4*flood)
		}},
		"chunk-extensions": {response: func(w io.Writer) {
			io.WriteString(w, ok+"Transfer-Encoding: chunked\r\n\r\n5;")
			fill(w, "extension=value;", flood)
			io.WriteString(w, "\r\nhello\r\n0\r\n\r\n")
		}},
		"small-chunks": {response: func(w io.Writer) {
			io.WriteString(w, ok+"Transfer-Encoding: chunked\r\n\r\n")
			fill(w, "1\r\nx\r\n", flood/8)
			io.WriteString(w, "0\r\n\r\n")
		}},
		"endless-trailers": {response: func(w io.Writer) {
			io.WriteString(w, ok+"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n")
			fill(w, "X-Trailer: value\r\n", flood)
			io.WriteString(w, "\r\n")
		}},
		"deep-json":      body(ok+"Content-Type: application/json\r\n", bytes.Repeat([]byte("["), 1<<20)),
		"never-answered": {request: strings.Repeat(get("never-answered"), 50000), response: func(io.Writer) {}},
		"websocket-bomb": {request: upgrade("websocket-bomb"), response: func(w io.Writer) {
			io.WriteString(w, switched)
			message := deflated(gigabyte)
			head := []byte{0xc1, 127, 0, 0, 0, 0, 0, 0, 0, 0}
			binary.BigEndian.PutUint64(head[2:], uint64(len(message)))
			w.Write(append(head, message...))
		}},
		"websocket-fragments": {request: upgrade("websocket-fragments"), response: func(w io.Writer) {
			io.WriteString(w, switched)
			io.WriteString(w, "\x01\x04once")
			fill(w, "\x00\x09 and more", flood/4)
		}},
		"endless-events": {response: func(w io.Writer) {
			io.WriteString(w, ok+"Content-Type: text/event-stream\r\n\r\ndata: ")
			fill(w, "on and on ", flood)
		}},
	}
	for name, scenario := range scenarios {
		if scenario.request == "" {
			scenario.request = get(name)
			scenarios[name] = scenario
		}
	}
	return scenarios
}

const switched = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"

func upgrade(name string) string {
	return get(name, "Upgrade", "websocket", "Connection", "Upgrade", "Sec-WebSocket-Version", "13",
		"Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Extensions", "permessage-deflate")
}

func body(head string, content []byte) scenario {
	return scenario{response: func(w io.Writer) {
		fmt.Fprintf(w, "%sContent-Length: %d\r\n\r\n", head, len(content))
		w.Write(content)
	}}
}

// fill sends so many bytes of the same again and again.
func fill(w io.Writer, what string, length int) {
	block := []byte(strings.Repeat(what, 1+(32<<10)/len(what)))
	for sent := 0; sent < length; sent += len(block) {
		w.Write(block)
	}
}

// packed is so many zeros, in the format of gzip.
func packed(zeros int) []byte {
	var out bytes.Buffer
	writer, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	check(err)
	fill(writer, "\x00", zeros)
	check(writer.Close())
	return out.Bytes()
}

func gzipBytes(content []byte) []byte {
	var out bytes.Buffer
	writer := gzip.NewWriter(&out)
	writer.Write(content)
	check(writer.Close())
	return out.Bytes()
}

// deflated is so many zeros, without a header.
func deflated(zeros int) []byte {
	var out bytes.Buffer
	writer, err := flate.NewWriter(&out, flate.BestSpeed)
	check(err)
	fill(writer, "\x00", zeros)
	check(writer.Flush())
	return out.Bytes()
}

// zstd is so many zeros in blocks of one repeated byte (RFC 8878 section
// 3.1.1.2.2).
func zstd(zeros int) []byte {
	const blockMax = 128 << 10
	// A window of 128 KiB, no checksum, no length.
	out := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38}
	for left := zeros; left > 0; left -= blockMax {
		last := 0
		if left <= blockMax {
			last = 1
		}
		head := blockMax<<3 | 1<<1 | last
		out = append(out, byte(head), byte(head>>8), byte(head>>16), 0)
	}
	return out
}
