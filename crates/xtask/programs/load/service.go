package main

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"sort"
	"sync"
	"time"
)

// serveHTTP answers every request with the same body.
func serveHTTP(listener net.Listener) {
	body, contentType := answer()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", contentType)
		if *proto == "grpc" {
			w.Header().Set("Trailer", "Grpc-Status")
			defer w.Header().Set("Grpc-Status", "0")
		}
		w.Write(body)
	})
	server := &http.Server{Handler: handler, TLSConfig: serverConfig()}
	if *proto == "h1" {
		server.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
	}
	fatal(server.ServeTLS(listener, "", ""))
}

// answer is a body and its type.
func answer() ([]byte, string) {
	if *proto == "grpc" {
		return grpcMessage(*size), "application/grpc"
	}
	return message(*size), "application/json"
}

// grpcMessage is a message of Protocol Buffers whose field 1 has so many bytes, in
// the framing of gRPC.
func grpcMessage(size int) []byte {
	field := binary.AppendUvarint([]byte{0x0a}, uint64(size))
	field = append(field, message(size)...)
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(field))), field...)
}

// askHTTP asks on each connection as soon as it has its answer, and tells how
// many answers there were in the given time, and how long they took.
func askHTTP(target string) map[string]any {
	transport := &http.Transport{
		TLSClientConfig:     clientConfig(),
		ForceAttemptHTTP2:   *proto != "h1",
		MaxIdleConnsPerHost: *conns,
	}
	if *proto == "h1" {
		transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	client := &http.Client{Transport: transport}
	before := askAll(client, target, time.Duration(*seconds*float64(time.Second)/5)) // connects, and warms up
	start := time.Now()
	latencies := askAll(client, target, time.Duration(*seconds*float64(time.Second)))
	wall := time.Since(start)
	sort.Slice(latencies, func(i, j int) bool { return latencies[i] < latencies[j] })
	percentile := func(percent int) int64 {
		return latencies[(len(latencies)-1)*percent/100].Nanoseconds()
	}
	return map[string]any{
		"event":    "http",
		"ns":       wall.Nanoseconds(),
		"requests": len(latencies),
		"asked":    len(before) + len(latencies),
		"p50_ns":   percentile(50),
		"p99_ns":   percentile(99),
	}
}

func askAll(client *http.Client, target string, wanted time.Duration) []time.Duration {
	var workers sync.WaitGroup
	results := make([][]time.Duration, *conns)
	end := time.Now().Add(wanted)
	for i := range results {
		workers.Add(1)
		go func(result *[]time.Duration) {
			defer workers.Done()
			for {
				start := time.Now()
				ask(client, target)
				now := time.Now()
				*result = append(*result, now.Sub(start))
				if now.After(end) {
					return
				}
			}
		}(&results[i])
	}
	workers.Wait()
	var latencies []time.Duration
	for _, result := range results {
		latencies = append(latencies, result...)
	}
	return latencies
}

func ask(client *http.Client, target string) {
	response, err := client.Do(request(target))
	if err != nil {
		fatal(err)
	}
	n, err := io.Copy(io.Discard, response.Body)
	if err != nil {
		fatal(err)
	}
	response.Body.Close()
	if n < int64(*size) {
		fatal(io.ErrUnexpectedEOF)
	}
}

func request(target string) *http.Request {
	method, path, body := "GET", "/orders", []byte(nil)
	if *proto == "grpc" {
		method, path, body = "POST", "/shop.Orders/List", grpcMessage(100)
	}
	request, err := http.NewRequest(method, "https://"+target+path, bytes.NewReader(body))
	if err != nil {
		fatal(err)
	}
	if *proto == "grpc" {
		request.Header.Set("Content-Type", "application/grpc")
		request.Header.Set("Te", "trailers")
	}
	return request
}
