package main

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sort"
	"sync"
	"time"
)

// serveHTTP answers every request with the same body, over HTTP/1.1.
func serveHTTP(listener net.Listener) {
	body := message(*size)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		w.Write(body)
	})
	server := &http.Server{
		Handler:      handler,
		TLSConfig:    serverConfig(),
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	fatal(server.ServeTLS(listener, "", ""))
}

// askHTTP asks on each connection as soon as it has its answer, and tells how
// many answers there were in the given time, and how long they took.
func askHTTP(target string) map[string]any {
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig:     clientConfig(),
		TLSNextProto:        map[string]func(string, *tls.Conn) http.RoundTripper{},
		MaxIdleConnsPerHost: *conns,
	}}
	askAll(client, target, time.Duration(*seconds*float64(time.Second)/5)) // connects, and warms up
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
	response, err := client.Get("https://" + target + "/orders")
	if err != nil {
		fatal(err)
	}
	n, err := io.Copy(io.Discard, response.Body)
	if err != nil {
		fatal(err)
	}
	response.Body.Close()
	if n != int64(*size) {
		fatal(io.ErrUnexpectedEOF)
	}
}
