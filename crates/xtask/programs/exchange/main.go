// exchange sends known bytes over TLS between a server and a client and logs
// what it handed to crypto/tls and got back, so that a capture of it can be
// compared byte for byte. Both sides derive every payload from -seed, and
// check what they receive themselves: the exit code says whether the traffic
// arrived unharmed.
//
// Output is one JSON object a line. "ready" and "done" go to standard output,
// "stream" (one per connection and direction) to -log, the benchmarks' results
// to standard output. Standard library only, Go 1.15 and later.
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
	"math/big"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

var (
	role       = flag.String("role", "both", "both (one process), server or client")
	addr       = flag.String("addr", "127.0.0.1:0", "address to listen on or connect to; the ready line tells the real one")
	tlsVersion = flag.String("tls", "any", "protocol version: 1.2, 1.3 or any")
	sizesFlag  = flag.String("sizes", "1,100,4096,16384,16385,102400,1048576", "message sizes in bytes; one round exchanges one message of each")
	conns      = flag.Int("conns", 1, "concurrent connections")
	rounds     = flag.Int("rounds", 1, "rounds per connection")
	minSeconds = flag.Float64("minseconds", 0, "go on with further rounds until so many seconds have passed")
	seed       = flag.Uint64("seed", 1, "payloads derive from it; the same on both sides")
	scenario   = flag.String("scenario", "echo", "echo, duplex, eof, empty, closewrite, abort or slow")
	payload    = flag.String("payload", "random", "random bytes or text (readable UTF-8 lines)")
	chunk      = flag.Int("chunk", 4096, "size of the buffer given to Read")
	stackBuf   = flag.Bool("stackbuf", false, "read into a buffer on the stack of a fresh goroutine, which Read makes grow and move")
	logPath    = flag.String("log", "", "file for the stream log (default standard output)")
	keyLog     = flag.String("keylog", "", "file to which crypto/tls's own key log is appended")
	hold       = flag.Bool("hold", false, "after the ready line, wait for a line or EOF on stdin")
	linger     = flag.Bool("linger", false, "after the done line, wait for a line or EOF on stdin before exiting")

	pingpong   = flag.Int("pingpong", 0, "benchmark: so many round trips on one connection, nothing logged")
	throughput = flag.Int("throughput", 0, "benchmark: so many messages one way on one connection, nothing logged")
	size       = flag.Int("size", 100, "message size of the benchmarks")
)

// sizes holds the parsed -sizes.
var sizes []int

func main() {
	flag.Parse()
	parseSizes()
	if *conns < 1 || *rounds < 1 || *chunk < 1 || *size < 1 {
		usage("-conns, -rounds, -chunk and -size must be at least 1")
	}
	if scenarios[*scenario] == nil {
		usage("unknown -scenario " + *scenario)
	}
	if *minSeconds > 0 && !scenarios[*scenario].repeatable {
		usage("-minseconds does not go with -scenario " + *scenario)
	}
	if *payload != "random" && *payload != "text" {
		usage("unknown -payload " + *payload)
	}
	openLog()

	isServer := *role == "both" || *role == "server"
	isClient := *role == "both" || *role == "client"
	if !isServer && !isClient {
		usage("unknown -role " + *role)
	}

	var listener net.Listener
	target := *addr
	if isServer {
		var err error
		if listener, err = net.Listen("tcp", *addr); err != nil {
			fatal(err)
		}
		target = listener.Addr().String()
	}

	event(map[string]interface{}{"event": "ready", "pid": os.Getpid(), "addr": target, "role": *role})
	stdin := bufio.NewReader(os.Stdin)
	if *hold {
		stdin.ReadString('\n')
	}

	var sides sync.WaitGroup
	if isServer {
		config := serverConfig()
		sides.Add(1)
		go func() {
			defer sides.Done()
			serve(listener, config)
		}()
	}
	if isClient {
		connect(target, clientConfig())
	}
	sides.Wait()

	ok := atomic.LoadInt32(&failures) == 0
	event(map[string]interface{}{"event": "done", "pid": os.Getpid(), "ok": ok})
	if *linger {
		stdin.ReadString('\n')
	}
	if !ok {
		os.Exit(1)
	}
}

// serve accepts the connections that the flags announce and returns when the
// last of them has ended.
func serve(listener net.Listener, config *tls.Config) {
	expected := scenarios[*scenario].connections()
	if *pingpong > 0 || *throughput > 0 {
		expected = 1
	}
	var served sync.WaitGroup
	for i := 0; i < expected; i++ {
		raw, err := listener.Accept()
		if err != nil {
			fatal(err)
		}
		served.Add(1)
		go func() {
			defer served.Done()
			conn := tls.Server(raw, config)
			if err := conn.Handshake(); err != nil {
				fail("server: handshake: %v", err)
				raw.Close()
				return
			}
			switch {
			case *pingpong > 0:
				servePingpong(conn)
			case *throughput > 0:
				serveThroughput(conn)
			default:
				// The client tells by its server name which connection this is,
				// so that no byte of the traffic is spent on it.
				id, first, err := parseServerName(conn.ConnectionState().ServerName)
				if err != nil {
					fail("server: %v", err)
					raw.Close()
					return
				}
				p := newPeer("server", conn, raw, id, first)
				scenarios[*scenario].server(p)
				p.log()
			}
		}()
	}
	served.Wait()
	listener.Close()
}

// connect runs the client's side of every connection.
func connect(target string, config *tls.Config) {
	switch {
	case *pingpong > 0:
		clientPingpong(dial(target, config, 0, 0).conn)
		return
	case *throughput > 0:
		clientThroughput(dial(target, config, 0, 0).conn)
		return
	}
	kind := scenarios[*scenario]
	deadline := time.Now().Add(time.Duration(*minSeconds * float64(time.Second)))
	var workers sync.WaitGroup
	for worker := 0; worker < *conns; worker++ {
		workers.Add(1)
		go func(worker int) {
			defer workers.Done()
			for i := 0; i < kind.connections() / *conns; i++ {
				p := dial(target, config, i**conns+worker, i%len(sizes))
				if p == nil {
					return
				}
				p.deadline = deadline
				kind.client(p)
				p.log()
			}
		}(worker)
	}
	workers.Wait()
}

func dial(target string, config *tls.Config, id, first int) *peer {
	raw, err := net.Dial("tcp", target)
	if err != nil {
		fatal(err)
	}
	config = config.Clone()
	config.ServerName = fmt.Sprintf("c%d-m%d.exchange.test", id, first)
	conn := tls.Client(raw, config)
	if err := conn.Handshake(); err != nil {
		fatal(fmt.Errorf("client: handshake: %v", err))
	}
	return newPeer("client", conn, raw, id, first)
}

func parseServerName(name string) (id, first int, err error) {
	_, err = fmt.Sscanf(name, "c%d-m%d.exchange.test", &id, &first)
	if err != nil || first < 0 || first >= len(sizes) {
		err = fmt.Errorf("unexpected server name %q: do both sides have the same flags?", name)
	}
	return
}

func serverConfig() *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "exchange.test"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		DNSNames:     []string{"*.exchange.test"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		fatal(err)
	}
	config := commonConfig()
	config.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
	return config
}

func clientConfig() *tls.Config {
	config := commonConfig()
	config.InsecureSkipVerify = true
	return config
}

// commonConfig is what both sides have in common.
func commonConfig() *tls.Config {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	switch *tlsVersion {
	case "1.2":
		config.MaxVersion = tls.VersionTLS12
	case "1.3":
		config.MinVersion = tls.VersionTLS13
	case "any":
	default:
		usage("unknown -tls " + *tlsVersion)
	}
	if *keyLog != "" {
		file, err := os.OpenFile(*keyLog, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0600)
		if err != nil {
			fatal(err)
		}
		config.KeyLogWriter = file
	}
	return config
}

func parseSizes() {
	for _, field := range strings.Split(*sizesFlag, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(field))
		if err != nil || n < 1 {
			usage("-sizes wants positive numbers with commas between, not " + *sizesFlag)
		}
		sizes = append(sizes, n)
	}
}

// event prints one line for whoever drives this program.
func event(fields map[string]interface{}) {
	line, err := json.Marshal(fields)
	if err != nil {
		fatal(err)
	}
	outputLock.Lock()
	defer outputLock.Unlock()
	os.Stdout.Write(append(line, '\n'))
}

// failures counts what went wrong; any makes the exit code 1.
var failures int32

func fail(format string, args ...interface{}) {
	atomic.AddInt32(&failures, 1)
	fmt.Fprintf(os.Stderr, "exchange: "+format+"\n", args...)
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "exchange:", err)
	os.Exit(1)
}

func usage(message string) {
	fmt.Fprintln(os.Stderr, "exchange:", message)
	os.Exit(2)
}
