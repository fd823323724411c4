// connections makes TLS connections of every kind, one after the other, and
// logs of both ends what they connect and what was agreed on: one JSON object a
// line. What passes over each names its scenario.
//
// The connections of the scenario "middle" are made before the ready line. All
// others begin when a line comes on standard input. Standard library only, Go
// 1.15 and later.
package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"io/ioutil"
	"math/big"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A scenario is a connection and how it is made.
type scenario struct {
	name    string
	network string
	listen  string
	// dial is where the client dials; empty: where the server listens.
	dial   string
	wrap   func(net.Conn) net.Conn
	config *tls.Config
	// inner makes a TLS connection inside of the TLS connection.
	inner bool
}

var scenarios = []scenario{
	{name: "tcp4", network: "tcp", listen: "127.0.0.1:0", config: &tls.Config{
		ServerName: "tcp4.test", NextProtos: []string{"echo/2", "echo/1"}}},
	{name: "tcp6", network: "tcp", listen: "[::1]:0", config: &tls.Config{
		ServerName: "tcp6.test", MaxVersion: tls.VersionTLS12,
		CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256}}},
	{name: "mapped", network: "tcp", listen: "[::]:0", dial: "127.0.0.1", config: &tls.Config{
		MaxVersion:   tls.VersionTLS12,
		CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}}},
	{name: "unix", network: "unix", listen: "path"},
	{name: "abstract", network: "unix", listen: "@connections-"},
	{name: "first", network: "tcp", listen: "127.0.0.1:0", config: resumable(tls.VersionTLS12)},
	{name: "resumed", network: "tcp", listen: "127.0.0.1:0", config: resumable(tls.VersionTLS12)},
	{name: "first13", network: "tcp", listen: "127.0.0.1:0", config: resumable(tls.VersionTLS13)},
	{name: "resumed13", network: "tcp", listen: "127.0.0.1:0", config: resumable(tls.VersionTLS13)},
	{name: "inner", network: "tcp", listen: "127.0.0.1:0", inner: true},
	{name: "pointer", network: "tcp", listen: "127.0.0.1:0", wrap: func(c net.Conn) net.Conn {
		return &countingConn{Conn: c}
	}},
	{name: "value", network: "unix", listen: "path", wrap: func(c net.Conn) net.Conn {
		return valueConn{c}
	}},
	{name: "three", network: "tcp", listen: "127.0.0.1:0", wrap: func(c net.Conn) net.Conn {
		return &labelledConn{label: "three", base: base{&countingConn{Conn: valueConn{c}}}}
	}},
	{name: "closure", network: "tcp", listen: "127.0.0.1:0", wrap: func(c net.Conn) net.Conn {
		return &closureConn{func() net.Conn { return c }}
	}},
	{name: "pair", network: "tcp", listen: "127.0.0.1:0", wrap: func(c net.Conn) net.Conn {
		other, _ := net.Pipe()
		return &pairConn{Conn: other, real: c}
	}},
	{name: "pool", network: "tcp", listen: "127.0.0.1:0", wrap: func(c net.Conn) net.Conn {
		other, _ := net.Pipe()
		return &poolConn{Conn: other, pool: map[string]net.Conn{"real": c}}
	}},
	{name: "four", network: "tcp", listen: "127.0.0.1:0", wrap: func(c net.Conn) net.Conn {
		return &countingConn{Conn: &countingConn{Conn: &countingConn{Conn: &countingConn{Conn: c}}}}
	}},
}

// Provable: exactly one net.Conn, embedded, in a struct in the struct, or behind
// a value that is no pointer.

type countingConn struct {
	written int64
	net.Conn
}

func (c *countingConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.written += int64(n)
	return n, err
}

type valueConn struct{ net.Conn }

type base struct{ net.Conn }

type labelledConn struct {
	label string
	base
}

// Not provable: nobody can tell from their types where the bytes go.

type closureConn struct{ get func() net.Conn }

func (c *closureConn) Read(b []byte) (int, error)         { return c.get().Read(b) }
func (c *closureConn) Write(b []byte) (int, error)        { return c.get().Write(b) }
func (c *closureConn) Close() error                       { return c.get().Close() }
func (c *closureConn) LocalAddr() net.Addr                { return c.get().LocalAddr() }
func (c *closureConn) RemoteAddr() net.Addr               { return c.get().RemoteAddr() }
func (c *closureConn) SetDeadline(t time.Time) error      { return c.get().SetDeadline(t) }
func (c *closureConn) SetReadDeadline(t time.Time) error  { return c.get().SetReadDeadline(t) }
func (c *closureConn) SetWriteDeadline(t time.Time) error { return c.get().SetWriteDeadline(t) }

type pairConn struct {
	net.Conn
	real net.Conn
}

func (c *pairConn) Read(b []byte) (int, error)  { return c.real.Read(b) }
func (c *pairConn) Write(b []byte) (int, error) { return c.real.Write(b) }
func (c *pairConn) Close() error                { return c.real.Close() }

type poolConn struct {
	net.Conn
	pool map[string]net.Conn
}

func (c *poolConn) Read(b []byte) (int, error)  { return c.pool["real"].Read(b) }
func (c *poolConn) Write(b []byte) (int, error) { return c.pool["real"].Write(b) }
func (c *poolConn) Close() error                { return c.pool["real"].Close() }

var (
	cert      = certificate()
	directory string
	sessions  = map[uint16]tls.ClientSessionCache{
		tls.VersionTLS12: tls.NewLRUClientSessionCache(0),
		tls.VersionTLS13: tls.NewLRUClientSessionCache(0),
	}
	ticketKey [32]byte
)

// resumable makes the connections of a version continue each other's sessions.
func resumable(version uint16) *tls.Config {
	return &tls.Config{ServerName: "resume.test", MinVersion: version, MaxVersion: version}
}

func main() {
	var err error
	directory, err = ioutil.TempDir("", "connections-")
	check(err)
	defer os.RemoveAll(directory)
	input := bufio.NewReader(os.Stdin)

	middle := open(&scenario{name: "middle", network: "tcp", listen: "127.0.0.1:0"})
	middle.exchange()
	write(map[string]interface{}{"event": "ready", "pid": os.Getpid()})
	if _, err := input.ReadString('\n'); err != nil {
		return // whoever started us has gone
	}
	middle.exchange()
	middle.close()
	for n := range scenarios {
		both := open(&scenarios[n])
		both.exchange()
		both.exchange()
		both.close()
	}
	overHTTP()
	readLate()
	write(map[string]interface{}{"event": "done", "pid": os.Getpid()})
}

// An end is one end of a connection, with what passed and who did it.
type end struct {
	*tls.Conn
	scenario string
	role     string
	socket   net.Conn
	// Bytes, and the goroutine that passed the last ones.
	written, read  int
	writer, reader int
	// Bytes of read that came after the end.
	late int
	fd   int
}

// Ends are both ends of a connection.
type ends struct{ client, server *end }

func open(s *scenario) ends {
	address := s.listen
	if s.network == "unix" {
		address = directory + "/" + s.name + ".sock"
		if s.listen[0] == '@' {
			address = s.listen + strconv.Itoa(os.Getpid())
		}
	}
	listener, err := net.Listen(s.network, address)
	check(err)
	defer listener.Close()
	target := listener.Addr().String()
	if s.dial != "" {
		_, port, _ := net.SplitHostPort(target)
		target = net.JoinHostPort(s.dial, port)
	}
	accepted := make(chan net.Conn)
	go func() {
		conn, err := listener.Accept()
		check(err)
		accepted <- conn
	}()
	dialled, err := net.Dial(s.network, target)
	check(err)
	both := handshake(s, dialled, <-accepted, s.wrap)
	if !s.inner {
		return both
	}
	return handshakeOver(&scenario{name: s.name, config: &tls.Config{ServerName: "inner.test"}}, both)
}

func handshake(s *scenario, client, server net.Conn, wrap func(net.Conn) net.Conn) ends {
	if wrap == nil {
		wrap = func(c net.Conn) net.Conn { return c }
	}
	if s.config == nil {
		s.config = &tls.Config{}
	}
	config := s.config.Clone()
	config.InsecureSkipVerify = true
	if config.MinVersion != 0 {
		config.ClientSessionCache = sessions[config.MaxVersion]
	}
	serverConfig := s.config.Clone()
	serverConfig.Certificates = []tls.Certificate{cert}
	serverConfig.SetSessionTicketKeys([][32]byte{ticketKey})
	both := ends{
		client: &end{Conn: tls.Client(wrap(client), config), scenario: s.name, role: "client", socket: client},
		server: &end{Conn: tls.Server(wrap(server), serverConfig), scenario: s.name, role: "server", socket: server},
	}
	together(func() { check(both.client.Handshake()) }, func() { check(both.server.Handshake()) })
	return both
}

// handshakeOver makes a connection inside of a connection. The outer one's bytes
// are the inner one's records.
func handshakeOver(s *scenario, outer ends) ends {
	inner := handshake(s, outer.client.Conn, outer.server.Conn, nil)
	inner.client.socket, inner.server.socket = outer.client.socket, outer.server.socket
	return inner
}

// exchange sends a line in each direction.
func (both ends) exchange() {
	together(both.client.send, both.server.receive)
	together(both.server.send, both.client.receive)
}

func together(one, other func()) {
	var wait sync.WaitGroup
	wait.Add(2)
	for _, each := range []func(){one, other} {
		each := each
		go func() {
			defer wait.Done()
			each()
		}()
	}
	wait.Wait()
}

func (e *end) send() {
	line := fmt.Sprintf("scenario=%s;from=%s;\n", e.scenario, e.role)
	n, err := io.WriteString(e, line)
	check(err)
	e.written += n
	e.writer = goroutine()
}

func (e *end) receive() {
	buffer := make([]byte, 256)
	n, err := e.Read(buffer)
	check(err)
	e.read += n
	e.reader = goroutine()
}

func (both ends) close() {
	for _, e := range []*end{both.client, both.server} {
		entry := agreed(e.ConnectionState())
		entry["event"], entry["scenario"], entry["role"] = "connection", e.scenario, e.role
		entry["network"] = e.socket.LocalAddr().Network()
		entry["local"] = e.socket.LocalAddr().String()
		entry["remote"] = e.socket.RemoteAddr().String()
		if e.fd == 0 {
			e.fd = descriptor(e.socket)
		}
		entry["fd"] = e.fd
		entry["written"], entry["read"], entry["late"] = e.written, e.read, e.late
		entry["writer"], entry["reader"] = e.writer, e.reader
		write(entry)
	}
	both.client.Close()
	both.server.Close()
}

// readLate closes a connection, then reads the rest of a record of which it read
// the beginning before.
func readLate() {
	both := open(&scenario{name: "late", network: "tcp", listen: "127.0.0.1:0"})
	both.exchange()
	both.server.send()
	client := both.client
	buffer := make([]byte, 256)
	n, err := client.Read(buffer[:8])
	check(err)
	client.fd = descriptor(client.socket)
	check(client.Close())
	client.late, err = client.Read(buffer)
	check(err)
	client.read += n + client.late
	client.reader = goroutine()
	both.close()
}

// overHTTP sends a request through net/http to a server of net/http.
func overHTTP() {
	served := make(chan map[string]interface{}, 1)
	server := &http.Server{
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			entry := agreed(*r.TLS)
			entry["event"], entry["scenario"], entry["role"] = "connection", "http", "server"
			entry["network"] = "tcp"
			entry["local"] = r.Context().Value(http.LocalAddrContextKey).(net.Addr).String()
			entry["remote"] = r.RemoteAddr
			served <- entry
			io.WriteString(w, "scenario=http;from=server;\n")
		}),
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	go server.ServeTLS(listener, "", "")

	var socket net.Conn
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, ServerName: "http.test"},
		ForceAttemptHTTP2: false,
		TLSNextProto:      map[string]func(string, *tls.Conn) http.RoundTripper{},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := net.Dial(network, address)
			socket = conn
			return conn, err
		},
	}
	client := http.Client{Transport: transport}
	response, err := client.Get("https://" + listener.Addr().String() + "/scenario=http;from=client;")
	check(err)
	_, err = io.Copy(ioutil.Discard, response.Body)
	check(err)
	response.Body.Close()
	entry := agreed(*response.TLS)
	entry["event"], entry["scenario"], entry["role"] = "connection", "http", "client"
	entry["network"] = "tcp"
	entry["local"], entry["remote"] = socket.LocalAddr().String(), socket.RemoteAddr().String()
	write(<-served)
	write(entry)
	transport.CloseIdleConnections()
}

func agreed(state tls.ConnectionState) map[string]interface{} {
	versions := map[uint16]string{tls.VersionTLS12: "1.2", tls.VersionTLS13: "1.3"}
	return map[string]interface{}{
		"tls_version": versions[state.Version], "cipher_suite": tls.CipherSuiteName(state.CipherSuite),
		"sni": state.ServerName, "alpn": state.NegotiatedProtocol, "resumed": state.DidResume,
	}
}

// goroutine is the id of the one that asks.
func goroutine() int {
	buffer := make([]byte, 64)
	fields := strings.Fields(string(buffer[:runtime.Stack(buffer, false)]))
	id, err := strconv.Atoi(fields[1])
	check(err)
	return id
}

func descriptor(conn net.Conn) int {
	raw, err := conn.(syscall.Conn).SyscallConn()
	check(err)
	number := -1
	check(raw.Control(func(fd uintptr) { number = int(fd) }))
	return number
}

func certificate() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "connections.test"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	check(err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func write(fields map[string]interface{}) {
	line, err := json.Marshal(fields)
	check(err)
	os.Stdout.Write(append(line, '\n'))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "connections:", err)
		os.Exit(1)
	}
}
