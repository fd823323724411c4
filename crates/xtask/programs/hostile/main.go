// hostile is an HTTPS server that means harm to whoever looks on, and a client
// that reads what it says without looking: escape sequences, heads and bodies
// without end, bombs that unpack to a gigabyte, and more, each on a connection
// of its own, all at the same time.
//
// It logs a JSON line when a scenario has been sent and read. When all have been,
// it keeps the connections open until its standard input ends. Standard library
// only, Go 1.15 and later.
package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/ioutil"
	"math/big"
	"net/http"
	"os"
	"sort"
	"strings"
	"sync"
	"time"
)

var (
	only   = flag.String("only", "", "one scenario; empty: all")
	copies = flag.Int("copies", 1, "on how many connections each")
)

// scenario is what the server sends in answer to what the client sends.
type scenario struct {
	request  string
	response func(io.Writer)
	// over is what was agreed on: h2, or nothing.
	over string
}

func main() {
	flag.Parse()
	scenarios := http1()
	for name, scenario := range http2() {
		scenario.over = "h2"
		scenarios[name] = scenario
	}
	if *only != "" {
		scenarios = map[string]scenario{*only: scenarios[*only]}
	}
	var names []string
	for name, scenario := range scenarios {
		if scenario.response == nil {
			check(fmt.Errorf("unknown scenario %s", name))
		}
		names = append(names, name)
	}
	sort.Strings(names)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{certificate()}, NextProtos: []string{"h2", "http/1.1"},
	})
	check(err)
	go func() {
		for {
			conn, err := listener.Accept()
			check(err)
			go serve(conn.(*tls.Conn), scenarios)
		}
	}()
	var clients sync.WaitGroup
	for _, name := range names {
		for i := 0; i < *copies; i++ {
			clients.Add(1)
			go func(name string) {
				defer clients.Done()
				bytes := ask(listener.Addr().String(), name, scenarios[name])
				log(map[string]interface{}{"event": "scenario", "name": name, "bytes": bytes})
			}(name)
		}
	}
	clients.Wait()
	log(map[string]interface{}{"event": "done", "scenarios": len(names)})
	io.Copy(ioutil.Discard, os.Stdin)
}

// end is what is sent behind each scenario, to tell the client that it is over.
const end = "\r\nThis is the end.\r\n"

// serve answers with the scenario that the server name tells.
func serve(conn *tls.Conn, scenarios map[string]scenario) {
	check(conn.Handshake())
	name := strings.TrimSuffix(conn.ConnectionState().ServerName, ".test")
	scenario := scenarios[name]
	reader := bufio.NewReader(conn)
	// What the client sends ends like that.
	received := make(chan bool)
	go func() {
		skip(reader, end)
		received <- true
	}()
	if scenario.over == "" {
		<-received
	}
	writer := bufio.NewWriterSize(conn, 64<<10)
	scenario.response(writer)
	io.WriteString(writer, end)
	check(writer.Flush())
	if scenario.over != "" {
		<-received
	}
}

// ask sends what the scenario asks for, and reads to the end: how much that was.
func ask(address, name string, s scenario) int64 {
	config := &tls.Config{InsecureSkipVerify: true, ServerName: name + ".test"}
	if s.over != "" {
		config.NextProtos = []string{s.over}
	}
	conn, err := tls.Dial("tcp", address, config)
	check(err)
	go func() {
		_, err := io.WriteString(conn, s.request+end)
		check(err)
	}()
	return skip(bufio.NewReaderSize(conn, 64<<10), end)
}

// skip reads up to and with the end, and tells how much it was.
func skip(reader *bufio.Reader, end string) int64 {
	var length int64
	for matched := 0; matched < len(end); {
		next, err := reader.ReadByte()
		check(err)
		length++
		switch next {
		case end[matched]:
			matched++
		case end[0]:
			matched = 1
		default:
			matched = 0
		}
	}
	return length
}

func get(name string, fields ...string) string {
	request, err := http.NewRequest("GET", "https://"+name+".test/"+name, nil)
	check(err)
	for i := 0; i < len(fields); i += 2 {
		request.Header.Set(fields[i], fields[i+1])
	}
	var text strings.Builder
	check(request.Write(&text))
	return text.String()
}

func certificate() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	check(err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
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
		fmt.Fprintln(os.Stderr, "hostile:", err)
		os.Exit(1)
	}
}
