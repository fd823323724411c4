// load is what the benchmarks measure: TLS between both ends of a connection
// in one process (pingpong, stream), from one process to another, which it
// starts (upload, sink), and an HTTPS service with a client of its own (server,
// client).
//
// It prints one JSON object a line: "ready"; then, once a line has come on
// standard input, the result. It ends when standard input does. Standard
// library only.
package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

var (
	role    = flag.String("role", "pingpong", "pingpong, stream, upload, sink, server or client")
	addr    = flag.String("addr", "127.0.0.1:0", "address to connect to, for the client")
	conns   = flag.Int("conns", 1, "concurrent connections")
	size    = flag.Int("size", 100, "bytes of a message, or of the body of an answer")
	count   = flag.Int("count", 10000, "round trips or messages of each connection")
	seconds = flag.Float64("seconds", 2, "how long the client asks")
	payload = flag.String("payload", "text", "text or binary")
	proto   = flag.String("proto", "h1", "what server and client speak: h1, h2 or grpc")
)

func main() {
	flag.Parse()
	if *conns < 1 || *size < 1 || *count < 1 {
		usage("-conns, -size and -count must be at least 1")
	}
	if *payload != "text" && *payload != "binary" {
		usage("unknown -payload " + *payload)
	}
	if *proto != "h1" && *proto != "h2" && *proto != "grpc" {
		usage("unknown -proto " + *proto)
	}
	switch *role {
	case "pingpong":
		drive(listen(), pingpong)
	case "stream":
		drive(listen(), stream)
	case "upload":
		sink, addr := startSink()
		defer sink.Close()
		driveTo(addr, func() map[string]any { return upload(addr) })
	case "sink":
		listener := listen()
		go receive(listener)
		ready(listener.Addr().String())
		io.Copy(io.Discard, os.Stdin)
	case "server":
		listener := listen()
		go serveHTTP(listener)
		ready(listener.Addr().String())
		io.Copy(io.Discard, os.Stdin)
	case "client":
		ready(*addr)
		stdin := waitForLine()
		print(askHTTP(*addr))
		io.Copy(io.Discard, stdin)
	default:
		usage("unknown -role " + *role)
	}
}

// drive runs one measurement between the lines of its standard input.
func drive(listener net.Listener, measure func(net.Listener) map[string]any) {
	driveTo(listener.Addr().String(), func() map[string]any { return measure(listener) })
}

func driveTo(addr string, measure func() map[string]any) {
	ready(addr)
	stdin := waitForLine()
	print(measure())
	io.Copy(io.Discard, stdin)
}

func ready(addr string) {
	print(map[string]any{"event": "ready", "pid": os.Getpid(), "addr": addr})
}

func waitForLine() io.Reader {
	stdin := bufio.NewReader(os.Stdin)
	if _, err := stdin.ReadString('\n'); err != nil {
		os.Exit(1) // whoever started us is gone
	}
	return stdin
}

func listen() net.Listener {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fatal(err)
	}
	return listener
}

// message is what a service might say, or bytes without any meaning.
func message(size int) []byte {
	bytes := make([]byte, size)
	if *payload == "binary" {
		rand.Read(bytes)
		return bytes
	}
	var text strings.Builder
	for n := 0; text.Len() < size; n++ {
		fmt.Fprintf(&text, "{\"order\":%d,\"customer\":\"Ada Lovelace\",\"paid\":true}\n", n)
	}
	copy(bytes, text.String())
	return bytes
}

func serverConfig() *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "load.test"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		DNSNames:     []string{"load.test"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

func clientConfig() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, ServerName: "load.test"}
}

// cpuTime is the process's user and system time.
func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func print(fields map[string]any) {
	line, err := json.Marshal(fields)
	if err != nil {
		fatal(err)
	}
	os.Stdout.Write(append(line, '\n'))
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "load:", err)
	os.Exit(1)
}

func usage(message string) {
	fmt.Fprintln(os.Stderr, "load:", message)
	os.Exit(2)
}
