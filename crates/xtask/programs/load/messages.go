package main

import (
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"
)

// pair is both ends of a connection.
type pair struct {
	client, server *tls.Conn
}

func connect(listener net.Listener, n int) []pair {
	config := serverConfig()
	pairs := make([]pair, n)
	for i := range pairs {
		accepted := make(chan *tls.Conn)
		go func() {
			raw, err := listener.Accept()
			if err != nil {
				fatal(err)
			}
			conn := tls.Server(raw, config)
			if err := conn.Handshake(); err != nil {
				fatal(err)
			}
			accepted <- conn
		}()
		client, err := tls.Dial("tcp", listener.Addr().String(), clientConfig())
		if err != nil {
			fatal(err)
		}
		pairs[i] = pair{client, <-accepted}
	}
	return pairs
}

// pingpong sends a message there and back, so many times on each connection,
// after a warm-up that is part of total_ns only.
func pingpong(listener net.Listener) map[string]any {
	pairs := connect(listener, *conns)
	warmUp := *count/10 + 1
	for _, p := range pairs {
		go echo(p.server)
	}
	begun := time.Now()
	turnAll(pairs, warmUp)
	cpu, start := cpuTime(), time.Now()
	turnAll(pairs, *count)
	wall := time.Since(start)
	cpu = cpuTime() - cpu
	total := time.Since(begun)
	for _, p := range pairs {
		p.client.Close()
	}
	turns := int64(*count) * int64(*conns)
	return map[string]any{
		"event":    "pingpong",
		"ns":       wall.Nanoseconds(),
		"total_ns": total.Nanoseconds(),
		"cpu_ns":   cpu.Nanoseconds(),
		"turns":    turns,
		// Everything is written and read once on its way there, and once on its way back.
		"bytes": 4 * int64(*size) * (turns + int64(warmUp)*int64(*conns)),
	}
}

func echo(conn *tls.Conn) {
	buffer := make([]byte, *size)
	for {
		if _, err := io.ReadFull(conn, buffer); err != nil {
			break // the client is done
		}
		if _, err := conn.Write(buffer); err != nil {
			break
		}
	}
	conn.Close()
}

func turnAll(pairs []pair, turns int) {
	all(pairs, func(p pair) {
		buffer := message(*size)
		for i := 0; i < turns; i++ {
			if _, err := p.client.Write(buffer); err != nil {
				fatal(err)
			}
			if _, err := io.ReadFull(p.client, buffer); err != nil {
				fatal(err)
			}
		}
	})
}

// stream sends messages one way, so many on each connection, read into a
// buffer of 64 KiB.
func stream(listener net.Listener) map[string]any {
	pairs := connect(listener, *conns)
	total := int64(*count) * int64(*size)
	cpu, start := cpuTime(), time.Now()
	all(pairs, func(p pair) {
		go func() {
			data := message(*size)
			for i := 0; i < *count; i++ {
				if _, err := p.client.Write(data); err != nil {
					fatal(err)
				}
			}
		}()
		buffer := make([]byte, 64<<10)
		for left := total; left > 0; {
			n, err := p.server.Read(buffer)
			left -= int64(n)
			if err != nil && left > 0 {
				fatal(err)
			}
		}
	})
	wall := time.Since(start)
	cpu = cpuTime() - cpu
	for _, p := range pairs {
		p.client.Close()
		p.server.Close()
	}
	return map[string]any{
		"event":    "stream",
		"ns":       wall.Nanoseconds(),
		"total_ns": wall.Nanoseconds(),
		"cpu_ns":   cpu.Nanoseconds(),
		"turns":    int64(*count) * int64(*conns),
		"bytes":    2 * total * int64(*conns), // written and read
	}
}

// startSink starts a process of this program that receives, and ends when what
// is returned is closed. It says where it listens.
func startSink() (io.Closer, string) {
	path, err := os.Executable()
	if err != nil {
		fatal(err)
	}
	command := exec.Command(path, "-role", "sink")
	command.Stderr = os.Stderr
	stdin, err := command.StdinPipe()
	if err != nil {
		fatal(err)
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		fatal(err)
	}
	if err := command.Start(); err != nil {
		fatal(err)
	}
	var said struct{ Addr string }
	if err := json.NewDecoder(stdout).Decode(&said); err != nil {
		fatal(err)
	}
	return stdin, said.Addr
}

// receive reads everything from everybody, into buffers of 64 KiB, and closes
// when the other end has closed.
func receive(listener net.Listener) {
	config := serverConfig()
	for {
		raw, err := listener.Accept()
		if err != nil {
			fatal(err)
		}
		go func() {
			conn := tls.Server(raw, config)
			io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{conn}, make([]byte, 64<<10))
			conn.Close()
		}()
	}
}

// upload sends messages to another process, so many on each connection, until
// that has read all of them.
func upload(addr string) map[string]any {
	clients := make([]pair, *conns)
	for i := range clients {
		client, err := tls.Dial("tcp", addr, clientConfig())
		if err != nil {
			fatal(err)
		}
		clients[i] = pair{client: client}
	}
	total := int64(*count) * int64(*size)
	cpu, start := cpuTime(), time.Now()
	all(clients, func(p pair) {
		data := message(*size)
		for i := 0; i < *count; i++ {
			if _, err := p.client.Write(data); err != nil {
				fatal(err)
			}
		}
		if err := p.client.CloseWrite(); err != nil {
			fatal(err)
		}
		if _, err := io.Copy(io.Discard, p.client); err != nil {
			fatal(err)
		}
	})
	wall := time.Since(start)
	cpu = cpuTime() - cpu
	for _, p := range clients {
		p.client.Close()
	}
	return map[string]any{
		"event":    "upload",
		"ns":       wall.Nanoseconds(),
		"total_ns": wall.Nanoseconds(),
		"cpu_ns":   cpu.Nanoseconds(),
		"turns":    int64(*count) * int64(*conns),
		"bytes":    total * int64(*conns), // written
	}
}

func all(pairs []pair, work func(pair)) {
	var workers sync.WaitGroup
	for _, p := range pairs {
		workers.Add(1)
		go func(p pair) {
			defer workers.Done()
			work(p)
		}(p)
	}
	workers.Wait()
}
