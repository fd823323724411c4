// http is an HTTPS server and its client in one process, over HTTP/1.1 or
// HTTP/2, with many kinds of requests: all methods, bodies with and without a
// length, compressed answers, trailers, several at a time.
//
// It logs each exchange as a JSON line once both ends are done: the request as
// the server got it, the response as the client got it. Standard library only,
// Go 1.15 and later.
package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/ioutil"
	"math/big"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

var (
	proto      = flag.String("proto", "h1", "h1 or h2")
	requests   = flag.Int("requests", 30, "how many")
	concurrent = flag.Int("concurrent", 1, "how many at a time; the server answers the first so many together")
	upload     = flag.Int("upload", 0, "bytes of every body that is sent to the server; 0: a few, each time others")
	hold       = flag.Bool("hold", false, "make some requests, then wait for a line on standard input, then make the others")
)

// exchange is a request as the server got it and a response as the client got it.
type exchange struct {
	Event           string      `json:"event"`
	Number          int         `json:"number"`
	Method          string      `json:"method"`
	Path            string      `json:"path"`
	Status          int         `json:"status"`
	RequestHeaders  http.Header `json:"request_headers"`
	ResponseHeaders http.Header `json:"response_headers"`
	Trailers        http.Header `json:"trailers"`
	RequestSHA256   string      `json:"request_sha256"`
	ResponseSHA256  string      `json:"response_sha256"`
}

var (
	mutex     sync.Mutex
	exchanges = map[int]*exchange{}
	together  sync.WaitGroup
)

func main() {
	flag.Parse()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	server := &http.Server{
		Handler:   http.HandlerFunc(serve),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate()}},
	}
	if *proto == "h1" {
		server.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
	}
	go func() { check(server.ServeTLS(listener, "", "")) }()

	transport := &http.Transport{
		TLSClientConfig:     &tls.Config{InsecureSkipVerify: true},
		ForceAttemptHTTP2:   *proto == "h2",
		DisableCompression:  true,
		MaxIdleConnsPerHost: *concurrent,
	}
	client := &http.Client{Transport: transport}
	url := "https://" + listener.Addr().String()

	// From here on there is a connection, whose ends have compressed headers.
	first := 0
	if *hold {
		for ; first < 5; first++ {
			ask(client, url, first)
		}
		fmt.Println(`{"event":"ready"}`)
		_, err := bufio.NewReader(os.Stdin).ReadString('\n')
		check(err) // Whoever started us is gone.
	} else {
		ask(client, url, first)
		first++
	}
	together.Add(*concurrent)
	numbers := make(chan int)
	var workers sync.WaitGroup
	for worker := 0; worker < *concurrent; worker++ {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for number := range numbers {
				ask(client, url, number)
			}
		}()
	}
	for number := first; number < first+*requests; number++ {
		numbers <- number
	}
	close(numbers)
	workers.Wait()
	transport.CloseIdleConnections()

	for number := 0; number < first+*requests; number++ {
		line, err := json.Marshal(exchanges[number])
		check(err)
		fmt.Println(string(line))
	}
}

func of(number int) *exchange {
	if exchanges[number] == nil {
		exchanges[number] = &exchange{Event: "exchange", Number: number}
	}
	return exchanges[number]
}

// ask makes a request that its number describes.
func ask(client *http.Client, url string, number int) {
	method := []string{"GET", "POST", "PUT", "HEAD", "DELETE", "PATCH", "OPTIONS"}[number%7]
	var body io.Reader
	if method[0] == 'P' {
		content := strings.Repeat(fmt.Sprintf("question %d ", number), number*37%2000)
		if *upload > 0 {
			content = strings.Repeat(fmt.Sprintf("upload %08d\n", number), *upload/16)
		}
		body = strings.NewReader(content)
		if number%2 == 0 {
			body = &pieces{reader: body} // Of unknown length.
		}
	}
	request, err := http.NewRequest(method, fmt.Sprintf("%s/number/%d?half=%d", url, number, number/2), body)
	check(err)
	request.Header.Set("X-Number", strconv.Itoa(number))
	request.Header.Set("X-Same", "always the same")
	request.Header.Add("X-Twice", "one")
	request.Header.Add("X-Twice", fmt.Sprint("two ", number%3))
	request.Header.Set("Accept-Encoding", "gzip")
	request.Header.Set("Authorization", fmt.Sprint("Bearer secret-", number%4))
	response, err := client.Do(request)
	check(err)
	content, err := ioutil.ReadAll(response.Body)
	check(err)
	check(response.Body.Close())
	if response.Header.Get("Content-Encoding") == "gzip" && len(content) > 0 {
		reader, err := gzip.NewReader(bytes.NewReader(content))
		check(err)
		content, err = ioutil.ReadAll(reader)
		check(err)
	}
	mutex.Lock()
	defer mutex.Unlock()
	logged := of(number)
	logged.Status = response.StatusCode
	logged.ResponseHeaders = response.Header
	logged.Trailers = response.Trailer
	logged.ResponseSHA256 = checksum(content)
}

// pieces hands out a few bytes at a time, then more, then a few again: so long
// are the chunks.
type pieces struct {
	reader io.Reader
	length int
}

func (p *pieces) Read(buffer []byte) (int, error) {
	p.length = p.length*7%100003 + 1
	if p.length < len(buffer) {
		buffer = buffer[:p.length]
	}
	return p.reader.Read(buffer)
}

func serve(writer http.ResponseWriter, request *http.Request) {
	content, err := ioutil.ReadAll(request.Body)
	check(err)
	number, err := strconv.Atoi(request.Header.Get("X-Number"))
	check(err)
	if *concurrent > 1 && number > 0 && number <= *concurrent {
		together.Done()
		together.Wait()
	}
	mutex.Lock()
	logged := of(number)
	logged.Method = request.Method
	logged.Path = request.URL.RequestURI()
	logged.RequestHeaders = request.Header.Clone()
	logged.RequestSHA256 = checksum(content)
	mutex.Unlock()

	header := writer.Header()
	header.Set("X-Answer", strconv.Itoa(number))
	header.Set("Content-Type", "text/plain; charset=utf-8")
	header.Add("Set-Cookie", "a=1")
	header.Add("Set-Cookie", fmt.Sprint("session=secret-", number))
	if number%5 == 0 {
		header.Set("Trailer", "X-Trailer")
	}
	answer := []byte(strings.Repeat(fmt.Sprintf("answer %d\n", number), number*53%3000))
	if number%3 == 0 {
		header.Set("Content-Encoding", "gzip")
		var zipped bytes.Buffer
		zipper := gzip.NewWriter(&zipped)
		zipper.Write(answer)
		zipper.Close()
		answer = zipped.Bytes()
	}
	writer.WriteHeader([]int{200, 201, 404, 500}[number%4])
	if number%2 == 0 {
		writer.(http.Flusher).Flush()
	}
	writer.Write(answer)
	if number%5 == 0 {
		header.Set("X-Trailer", "the end")
	}
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

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "http:", err)
		os.Exit(1)
	}
}
