// websocket is a WebSocket server and its client over TLS, with frames made by
// hand: messages of all kinds and sizes, in one frame and in several, with pings
// in between, compressed if asked for, and closed with a code.
//
// Each end logs each message when it sends it, and each frame. The server sends
// back what it gets; the client checks that. The ends can be two processes, the
// server's without TLS, for a proxy in between. Standard library only, Go 1.15
// and later.
package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

var (
	role    = flag.String("role", "both", "both, server (without TLS) or client")
	address = flag.String("addr", "", "where the client connects to")
	deflate = flag.Bool("deflate", false, "compress messages (permessage-deflate); for both ends")
	hold    = flag.Bool("hold", false, "before the client closes, wait for a line on standard input")
)

func main() {
	flag.Parse()
	switch *role {
	case "both":
		listener := listen(true)
		defer listener.Close()
		connect(listener.Addr().String())
	case "server":
		listener := listen(false)
		log(map[string]interface{}{"event": "ready", "addr": listener.Addr().String()})
		bufio.NewReader(os.Stdin).ReadString('\n')
	case "client":
		connect(*address)
	default:
		check(fmt.Errorf("unknown -role %s", *role))
	}
}

func listen(withTLS bool) net.Listener {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	server := &http.Server{
		Handler:      http.HandlerFunc(serve),
		TLSConfig:    &tls.Config{Certificates: []tls.Certificate{certificate()}},
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	if withTLS {
		go server.ServeTLS(listener, "", "")
	} else {
		go server.Serve(listener)
	}
	return listener
}

var served sync.WaitGroup

// end is one end of a connection that has been upgraded.
type end struct {
	name   string
	conn   net.Conn
	reader *bufio.Reader
}

func (e *end) client() bool { return e.name == "client" }

func serve(w http.ResponseWriter, r *http.Request) {
	digest := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	conn, buffered, err := w.(http.Hijacker).Hijack()
	check(err)
	defer conn.Close()
	answer := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Accept: " + base64.StdEncoding.EncodeToString(digest[:]) + "\r\n"
	if *deflate {
		answer += "Sec-WebSocket-Extensions: " + extension + "\r\n"
	}
	_, err = io.WriteString(conn, answer+"\r\n")
	check(err)
	server := &end{"server", conn, buffered.Reader}
	for {
		opcode, content, err := server.receive()
		check(err)
		if opcode == ping {
			opcode = pong
		}
		server.send(opcode, content, 1)
		if opcode == closing {
			served.Done()
			return
		}
	}
}

// Each message by itself, so that no end needs to remember what it sent.
const extension = "permessage-deflate; client_no_context_takeover; server_no_context_takeover"

func connect(address string) {
	served.Add(1)
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, ServerName: "localhost"})
	check(err)
	request, err := http.NewRequest("GET", "https://"+address+"/chat?room=1", nil)
	check(err)
	request.Header.Set("Upgrade", "websocket")
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
	request.Header.Set("Sec-WebSocket-Version", "13")
	if *deflate {
		request.Header.Set("Sec-WebSocket-Extensions", extension)
	}
	check(request.Write(conn))
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, request)
	check(err)
	if response.StatusCode != 101 || response.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		check(fmt.Errorf("no upgrade: %v", response))
	}

	client := &end{"client", conn, reader}
	for _, message := range []struct {
		opcode  byte
		content string
		frames  int
	}{
		{text, "hello", 1},
		{text, "Grüße 👋", 1},
		{binaryData, "\x00\x01\x02\xfe\xff", 1},
		{text, `{"price":12.5,"of":"tea"}`, 1},
		{text, strings.Repeat("two hundred. ", 16), 1},
		{ping, "are you there?", 1},
		{binaryData, strings.Repeat("\x00seventy thousand bytes\xff", 3000), 1},
		{text, "in three frames, with a ping in between", 3},
		{text, "", 1},
		{ping, "", 1},
	} {
		client.converse(message.opcode, message.content, message.frames)
	}
	if *hold {
		log(map[string]interface{}{"event": "held"})
		bufio.NewReader(os.Stdin).ReadString('\n')
	}
	client.converse(closing, string([]byte{1000 >> 8, 1000 & 0xff})+"that was it", 1)
	if *role == "both" {
		served.Wait()
	}
	conn.Close()
}

// converse sends a message and checks that it comes back.
func (e *end) converse(opcode byte, content string, frames int) {
	e.send(opcode, []byte(content), frames)
	if frames > 1 {
		e.expect(pong, "in between")
	}
	if opcode == ping {
		opcode = pong
	}
	e.expect(opcode, content)
}

func (e *end) expect(opcode byte, content string) {
	found, echo, err := e.receive()
	check(err)
	if found != opcode || string(echo) != content {
		check(fmt.Errorf("instead of %d %q: %d %q", opcode, content, found, echo))
	}
}

// send sends a message in so many frames, with a ping behind the first if there
// are more.
func (e *end) send(opcode byte, content []byte, frames int) {
	compressed := *deflate && opcode < closing
	wire := content
	if compressed {
		wire = deflated(content)
	}
	piece := len(wire)/frames + 1
	for n := 0; n < frames; n++ {
		end := piece * (n + 1)
		if n == frames-1 || end > len(wire) {
			end = len(wire)
		}
		if n == frames-1 {
			e.logMessage(opcode, content, compressed) // A message is where it is complete.
		}
		e.sendFrame(frame{
			fin:        n == frames-1,
			compressed: compressed && n == 0,
			opcode:     map[bool]byte{true: opcode, false: continuation}[n == 0],
			payload:    wire[min(piece*n, len(wire)):end],
		})
		if n == 0 && frames > 1 {
			e.logMessage(ping, []byte("in between"), false)
			e.sendFrame(frame{fin: true, opcode: ping, payload: []byte("in between")})
		}
	}
}

func (e *end) sendFrame(f frame) {
	log(map[string]interface{}{
		"event": "frame", "from": e.name, "fin": f.fin, "opcode": f.opcode, "masked": e.client(),
		"compressed": f.compressed, "payload": hex.EncodeToString(f.payload),
	})
	check(f.write(e.conn, e.client()))
}

// receive takes a message. A ping within one is answered; so is a pong taken note
// of.
func (e *end) receive() (byte, []byte, error) {
	first, err := read(e.reader, !e.client())
	if err != nil || first.opcode >= closing {
		return first.opcode, first.payload, err
	}
	content := bytes.NewBuffer(first.payload)
	for last := first; !last.fin; {
		next, err := read(e.reader, !e.client())
		if err != nil {
			return 0, nil, err
		}
		if next.opcode == ping {
			e.send(pong, next.payload, 1)
			continue
		}
		content.Write(next.payload)
		last = next
	}
	if !first.compressed {
		return first.opcode, content.Bytes(), nil
	}
	inflated, err := inflated(content.Bytes())
	return first.opcode, inflated, err
}

func (e *end) logMessage(opcode byte, content []byte, compressed bool) {
	kinds := map[byte]string{
		text: "text", binaryData: "binary", closing: "close", ping: "ping", pong: "pong",
	}
	entry := map[string]interface{}{
		"event": "message", "from": e.name, "kind": kinds[opcode], "length": len(content),
		"compressed": compressed, "content": hex.EncodeToString(content), "sha256": checksum(content),
	}
	if opcode == closing {
		entry["code"] = binary.BigEndian.Uint16(content)
	}
	log(entry)
}

func checksum(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

func certificate() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		DNSNames:     []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	check(err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func min(a, b int) int {
	if a < b {
		return a
	}
	return b
}

var output sync.Mutex

func log(entry map[string]interface{}) {
	line, err := json.Marshal(entry)
	check(err)
	output.Lock()
	defer output.Unlock()
	os.Stdout.Write(append(line, '\n'))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "websocket:", err)
		os.Exit(1)
	}
}
