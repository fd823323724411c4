// https is a small HTTPS server and client with readable bodies, for the demo
// and for tests. The server greets whoever names himself; the client checks
// every answer, and the exit code says whether they were right.
//
// Both log one JSON object a line to standard output: "ready", "request" with
// checksums of the bodies, "done"; with -keylog, crypto/tls logs its keys too.
// Standard library only, Go 1.15 and later.
package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io/ioutil"
	"math/big"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

var (
	role     = flag.String("role", "both", "both (one process), server or client")
	addr     = flag.String("addr", "127.0.0.1:0", "address to listen on or connect to; the ready line tells the real one")
	proto    = flag.String("proto", "h1", "h1 or h2")
	version  = flag.String("tls", "any", "protocol version: 1.2, 1.3 or any")
	requests = flag.Int("requests", 5, "client: number of requests; 0 means until standard input ends")
	interval = flag.Duration("interval", 0, "client: pause between requests, as in 1s")
	resume   = flag.Bool("resume", false, "client: a connection for each request, all but the first resuming the session")
	hold     = flag.Bool("hold", false, "client: after the ready line, wait for a line on stdin")
	keyLog   = flag.String("keylog", "", "file to which crypto/tls's own key log is appended")
)

// stdinLine is sent once for every line of standard input, and closed at its end.
var stdinLine = make(chan struct{})

type question struct {
	Name   string `json:"name"`
	Number int    `json:"number"`
	Secret string `json:"secret"`
}

type answer struct {
	Greeting string `json:"greeting"`
	Number   int    `json:"number"`
	Protocol string `json:"protocol"`
}

func main() {
	flag.Parse()
	if *proto != "h1" && *proto != "h2" {
		usage("unknown -proto " + *proto)
	}
	if *resume && *proto != "h1" {
		usage("-resume goes with -proto h1")
	}
	isServer := *role == "both" || *role == "server"
	isClient := *role == "both" || *role == "client"
	if !isServer && !isClient {
		usage("unknown -role " + *role)
	}
	// Whoever started us may die without a word; the end of its pipe ends us.
	go func() {
		buffer := make([]byte, 1)
		for {
			n, err := os.Stdin.Read(buffer)
			if err != nil {
				close(stdinLine)
				return
			}
			if n == 1 && buffer[0] == '\n' {
				stdinLine <- struct{}{}
			}
		}
	}()

	target := *addr
	if isServer {
		target = serve()
	}
	log(map[string]interface{}{"event": "ready", "pid": os.Getpid(), "role": *role, "addr": target})
	if isClient {
		if *hold {
			<-stdinLine
		}
		ask(target)
		log(map[string]interface{}{"event": "done", "pid": os.Getpid()})
		return
	}
	for range stdinLine {
	}
}

// serve starts the server and returns its address.
func serve() string {
	mux := http.NewServeMux()
	mux.HandleFunc("/greet", func(w http.ResponseWriter, r *http.Request) {
		body, err := ioutil.ReadAll(r.Body)
		if err != nil {
			return // the client went away
		}
		var q question
		if err := json.Unmarshal(body, &q); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		reply := encode(answer{"Hello, " + q.Name + "!", q.Number, r.Proto})
		w.Header().Set("Content-Type", "application/json")
		w.Write(reply)
		logRequest("server", r.Method, r.URL.Path, r.Proto, http.StatusOK, r.TLS, body, reply)
	})
	config := tlsConfig()
	config.Certificates = []tls.Certificate{certificate()}
	server := &http.Server{Handler: mux, TLSConfig: config}
	if *proto == "h1" {
		server.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
	}
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		fatal(err)
	}
	go func() {
		fatal(server.ServeTLS(listener, "", ""))
	}()
	return listener.Addr().String()
}

func ask(target string) {
	config := tlsConfig()
	config.InsecureSkipVerify = true
	config.ServerName = "greeter.test"
	if *resume {
		config.ClientSessionCache = tls.NewLRUClientSessionCache(0)
	}
	transport := &http.Transport{
		TLSClientConfig:   config,
		ForceAttemptHTTP2: *proto == "h2",
		DisableKeepAlives: *resume,
	}
	if *proto == "h1" {
		transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	client := &http.Client{Transport: transport, Timeout: 30 * time.Second}
	for n := 1; *requests == 0 || n <= *requests; n++ {
		if *requests > 0 && n > 1 {
			time.Sleep(*interval)
		} else if *requests == 0 && stdinEnds(*interval) {
			break
		}
		body := encode(question{"gopher", n, fmt.Sprintf("s3cret-%d", n)})
		response, err := client.Post("https://"+target+"/greet", "application/json", bytes.NewReader(body))
		if err != nil {
			fatal(err)
		}
		reply, err := ioutil.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			fatal(err)
		}
		want := encode(answer{"Hello, gopher!", n, response.Proto})
		if response.StatusCode != http.StatusOK || !bytes.Equal(reply, want) {
			fatal(fmt.Errorf("request %d: expected %s, got %s: %s", n, want, response.Status, reply))
		}
		logRequest("client", "POST", "/greet", response.Proto, response.StatusCode, response.TLS, body, reply)
	}
	transport.CloseIdleConnections()
}

// stdinEnds waits so long and tells whether standard input ended meanwhile.
func stdinEnds(wait time.Duration) bool {
	timer := time.After(wait)
	for {
		select {
		case _, open := <-stdinLine:
			if !open {
				return true
			}
		case <-timer:
			return false
		}
	}
}

// tlsConfig is what both sides have in common.
func tlsConfig() *tls.Config {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	switch *version {
	case "1.2":
		config.MaxVersion = tls.VersionTLS12
	case "1.3":
		config.MinVersion = tls.VersionTLS13
	case "any":
	default:
		usage("unknown -tls " + *version)
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

func certificate() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "greeter.test"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		DNSNames:     []string{"greeter.test"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func logRequest(role, method, path, protocol string, status int, state *tls.ConnectionState, request, response []byte) {
	log(map[string]interface{}{
		"event": "request", "pid": os.Getpid(), "role": role, "protocol": protocol,
		"tls": versionName(state), "resumed": state.DidResume,
		"method": method, "path": path, "status": status,
		"request_length": len(request), "request_sha256": checksum(request),
		"response_length": len(response), "response_sha256": checksum(response),
	})
}

func versionName(state *tls.ConnectionState) string {
	switch state.Version {
	case tls.VersionTLS12:
		return "1.2"
	case tls.VersionTLS13:
		return "1.3"
	}
	return "unknown"
}

func checksum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

var outputLock sync.Mutex

func log(fields map[string]interface{}) {
	outputLock.Lock()
	defer outputLock.Unlock()
	os.Stdout.Write(append(encode(fields), '\n'))
}

func encode(value interface{}) []byte {
	line, err := json.Marshal(value)
	if err != nil {
		fatal(err)
	}
	return line
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "https:", err)
	os.Exit(1)
}

func usage(message string) {
	fmt.Fprintln(os.Stderr, "https:", message)
	os.Exit(2)
}
