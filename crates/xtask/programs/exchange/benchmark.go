package main

import (
	"crypto/tls"
	"io"
	"os"
	"syscall"
	"time"
)

// The benchmarks log nothing and check nothing: only crypto/tls is measured.

func servePingpong(conn *tls.Conn) {
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

func clientPingpong(conn *tls.Conn) {
	warmUp := *pingpong / 10
	if warmUp < 100 {
		warmUp = 100
	}
	buffer := make([]byte, *size)
	turns(conn, buffer, warmUp)
	cpu, start := cpuTime(), time.Now()
	turns(conn, buffer, *pingpong)
	wall := time.Since(start)
	cpu = cpuTime() - cpu
	conn.Close()
	event(map[string]interface{}{
		"event":                 "pingpong",
		"pid":                   os.Getpid(),
		"size":                  *size,
		"round_trips":           *pingpong,
		"warm_up":               warmUp,
		"ns_per_round_trip":     wall.Nanoseconds() / int64(*pingpong),
		"cpu_ns_per_round_trip": cpu.Nanoseconds() / int64(*pingpong),
	})
}

func turns(conn *tls.Conn, buffer []byte, count int) {
	for i := 0; i < count; i++ {
		if _, err := conn.Write(buffer); err != nil {
			fatal(err)
		}
		if _, err := io.ReadFull(conn, buffer); err != nil {
			fatal(err)
		}
	}
}

func serveThroughput(conn *tls.Conn) {
	buffer := make([]byte, *chunk)
	for left := int64(*throughput) * int64(*size); left > 0; {
		n, err := conn.Read(buffer)
		left -= int64(n)
		if err != nil && left > 0 {
			fatal(err)
		}
	}
	if _, err := conn.Write([]byte{1}); err != nil {
		fatal(err)
	}
	conn.Close()
}

func clientThroughput(conn *tls.Conn) {
	data := message("client", 0, 0, *size)
	cpu, start := cpuTime(), time.Now()
	for i := 0; i < *throughput; i++ {
		if _, err := conn.Write(data); err != nil {
			fatal(err)
		}
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		fatal(err)
	}
	wall := time.Since(start)
	cpu = cpuTime() - cpu
	conn.Close()
	event(map[string]interface{}{
		"event":          "throughput",
		"pid":            os.Getpid(),
		"size":           *size,
		"messages":       *throughput,
		"ns_per_message": wall.Nanoseconds() / int64(*throughput),
		"cpu_ns":         cpu.Nanoseconds(),
		"mb_per_s":       float64(*throughput) * float64(*size) / 1e6 / wall.Seconds(),
	})
}

// cpuTime is the process's user and system time.
func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
