// copies makes TLS connections with crypto/tls and with a copy of it, with one
// at each end and with one inside of the other, and logs of both ends what they
// connect and what was agreed on: one JSON object a line. What passes over each
// names its scenario.
//
// It begins when a line comes on standard input. Go 1.18 and later; the copy is
// made by crates/xtask/src/standalone/copied.rs.
package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	copied "github.com/forked/tls"
)

// A conn is a connection of either package.
type conn interface {
	net.Conn
	Handshake() error
}

// A pack is a package that speaks TLS.
type pack struct {
	client, server func(inner net.Conn, name string) conn
	agreed         func(conn) map[string]any
}

var key, der = certificate()

var original = pack{
	client: func(inner net.Conn, name string) conn {
		return tls.Client(inner, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	},
	server: func(inner net.Conn, _ string) conn {
		return tls.Server(inner, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	},
	agreed: func(c conn) map[string]any {
		state := c.(*tls.Conn).ConnectionState()
		return agreed(state.Version, state.CipherSuite, state.ServerName, state.DidResume)
	},
}

var other = pack{
	client: func(inner net.Conn, name string) conn {
		return copied.Client(inner, &copied.Config{ServerName: name, InsecureSkipVerify: true})
	},
	server: func(inner net.Conn, _ string) conn {
		return copied.Server(inner, &copied.Config{Certificates: []copied.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	},
	agreed: func(c conn) map[string]any {
		state := c.(*copied.Conn).ConnectionState()
		return agreed(state.Version, state.CipherSuite, state.ServerName, state.DidResume)
	},
}

// A scenario is a connection, perhaps inside of another one.
type scenario struct {
	name           string
	outer          *pack
	client, server pack
}

var scenarios = []scenario{
	{name: "original", client: original, server: original},
	{name: "copy", client: other, server: other},
	{name: "client", client: other, server: original},
	{name: "server", client: original, server: other},
	{name: "inside", outer: &original, client: other, server: other},
	{name: "outside", outer: &other, client: original, server: original},
}

func main() {
	write(map[string]any{"event": "ready", "pid": os.Getpid()})
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return // whoever started us has gone
	}
	for _, s := range scenarios {
		s.run()
	}
	write(map[string]any{"event": "done", "pid": os.Getpid()})
}

func (s scenario) run() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	defer listener.Close()
	sockets := [2]net.Conn{}
	together(func() {
		sockets[0], err = net.Dial("tcp", listener.Addr().String())
		check(err)
	}, func() {
		accepted, err := listener.Accept()
		check(err)
		sockets[1] = accepted
	})
	below := sockets
	if s.outer != nil {
		client, server := handshake(*s.outer, *s.outer, sockets, "outer.test")
		below = [2]net.Conn{client, server}
	}
	client, server := handshake(s.client, s.server, below, s.name+".test")
	written := s.exchange(client, server)
	for _, end := range []struct {
		role          string
		conn          conn
		pack          pack
		socket        net.Conn
		written, read int
	}{
		{"client", client, s.client, sockets[0], written[0], written[1]},
		{"server", server, s.server, sockets[1], written[1], written[0]},
	} {
		entry := end.pack.agreed(end.conn)
		entry["event"], entry["scenario"], entry["role"] = "connection", s.name, end.role
		entry["network"] = "tcp"
		entry["local"], entry["remote"] = end.socket.LocalAddr().String(), end.socket.RemoteAddr().String()
		entry["fd"] = descriptor(end.socket)
		entry["written"], entry["read"] = end.written, end.read
		write(entry)
	}
	client.Close()
	server.Close()
}

func handshake(one, two pack, sockets [2]net.Conn, name string) (conn, conn) {
	client, server := one.client(sockets[0], name), two.server(sockets[1], name)
	together(func() { check(client.Handshake()) }, func() { check(server.Handshake()) })
	return client, server
}

// exchange sends a line in each direction: how many bytes the client and the
// server wrote.
func (s scenario) exchange(client, server conn) [2]int {
	lines := [2]string{}
	for i, role := range []string{"client", "server"} {
		lines[i] = fmt.Sprintf("scenario=%s;from=%s;\n", s.name, role)
	}
	pass := func(from, to conn, line string) {
		together(func() {
			_, err := io.WriteString(from, line)
			check(err)
		}, func() {
			buffer := make([]byte, len(line))
			_, err := io.ReadFull(to, buffer)
			check(err)
			if string(buffer) != line {
				check(fmt.Errorf("%q instead of %q", buffer, line))
			}
		})
	}
	pass(client, server, lines[0])
	pass(server, client, lines[1])
	return [2]int{len(lines[0]), len(lines[1])}
}

func together(one, other func()) {
	var wait sync.WaitGroup
	wait.Add(1)
	go func() {
		defer wait.Done()
		one()
	}()
	other()
	wait.Wait()
}

func agreed(version, suite uint16, name string, resumed bool) map[string]any {
	versions := map[uint16]string{tls.VersionTLS12: "1.2", tls.VersionTLS13: "1.3"}
	return map[string]any{
		"tls_version": versions[version], "cipher_suite": tls.CipherSuiteName(suite),
		"sni": name, "alpn": "", "resumed": resumed,
	}
}

func descriptor(conn net.Conn) int {
	raw, err := conn.(syscall.Conn).SyscallConn()
	check(err)
	number := -1
	check(raw.Control(func(fd uintptr) { number = int(fd) }))
	return number
}

func certificate() (*ecdsa.PrivateKey, []byte) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	check(err)
	return key, der
}

func write(fields map[string]any) {
	line, err := json.Marshal(fields)
	check(err)
	os.Stdout.Write(append(line, '\n'))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "copies:", err)
		os.Exit(1)
	}
}
