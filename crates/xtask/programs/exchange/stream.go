package main

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// peer is one end of one connection; it records what crosses it.
type peer struct {
	role     string
	conn     *tls.Conn
	raw      net.Conn
	id       int       // number of the connection
	first    int       // index in sizes of the connection's first message
	deadline time.Time // client: go on until then
	buffer   []byte    // given to Read
	// The stream may end before any message, not only after the last one.
	openEnded bool

	written, read stream
}

// stream is what one end wrote to or read from a connection.
type stream struct {
	calls     []int // lengths of the calls that moved data
	length    int64
	sum       hash.Hash
	empty     int    // calls that moved nothing and returned no error
	withError int    // reads that returned data together with an error
	err       string // the error that ended the stream, if any
	failed    *failure
}

// failure is a Write that returned an error: some of its bytes may have left.
type failure struct {
	Length  int    `json:"length"`  // what was handed over
	Written int    `json:"written"` // what Write said it had written
	Sum     string `json:"sha256"`  // of the whole stream including this call's bytes
}

func newPeer(role string, conn *tls.Conn, raw net.Conn, id, first int) *peer {
	return &peer{
		role: role, conn: conn, raw: raw, id: id, first: first,
		buffer:    make([]byte, *chunk),
		openEnded: scenarios[*scenario].repeatable,
		written:   stream{sum: sha256.New()},
		read:      stream{sum: sha256.New()},
	}
}

// Write hands data to crypto/tls in one call.
func (p *peer) Write(data []byte) (int, error) {
	n, err := p.conn.Write(data)
	s := &p.written
	switch {
	case err != nil:
		s.err = err.Error()
		s.failed = &failure{Length: len(data), Written: n, Sum: sumWith(s.sum, data)}
	case len(data) == 0:
		s.empty++
	default:
		s.add(data)
	}
	return n, err
}

// Read takes data from crypto/tls in one call.
func (p *peer) Read(buffer []byte) (int, error) {
	var n int
	var err error
	if *stackBuf && len(buffer) > 0 {
		n, err = readOnStack(p.conn, buffer)
	} else {
		n, err = p.conn.Read(buffer)
	}
	s := &p.read
	if n > 0 {
		s.add(buffer[:n])
	}
	if err != nil {
		s.err = err.Error()
		if n > 0 {
			s.withError++
		}
	} else if n == 0 {
		s.empty++
	}
	return n, err
}

// readOnStack reads on a fresh goroutine, whose small stack holds the buffer
// and has to grow, and so to move, inside Read.
func readOnStack(conn *tls.Conn, buffer []byte) (n int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		var onStack [1024]byte
		limit := len(buffer)
		if limit > len(onStack) {
			limit = len(onStack)
		}
		n, err = conn.Read(onStack[:limit])
		copy(buffer, onStack[:n])
	}()
	<-done
	return n, err
}

func (s *stream) add(data []byte) {
	s.calls = append(s.calls, len(data))
	s.length += int64(len(data))
	s.sum.Write(data)
}

// sumWith is the checksum of what the hash has seen and data; it leaves the
// hash alone.
func sumWith(sum hash.Hash, data []byte) string {
	state, err := sum.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		fatal(err)
	}
	longer := sha256.New()
	if err := longer.(encoding.BinaryUnmarshaler).UnmarshalBinary(state); err != nil {
		fatal(err)
	}
	longer.Write(data)
	return hex.EncodeToString(longer.Sum(nil))
}

// log writes the connection's two lines.
func (p *peer) log() {
	p.written.log(p, "write")
	p.read.log(p, "read")
}

func (s *stream) log(p *peer, direction string) {
	calls := s.calls
	if calls == nil {
		calls = []int{}
	}
	line, err := json.Marshal(struct {
		Event     string   `json:"event"`
		Pid       int      `json:"pid"`
		Role      string   `json:"role"`
		Conn      string   `json:"conn"`
		ID        int      `json:"id"`
		Local     string   `json:"local"`
		Remote    string   `json:"remote"`
		TLS       string   `json:"tls"`
		Direction string   `json:"direction"`
		Calls     []int    `json:"calls"`
		Length    int64    `json:"length"`
		Sum       string   `json:"sha256"`
		Empty     int      `json:"empty_calls"`
		WithError int      `json:"data_with_error"`
		Failed    *failure `json:"failed,omitempty"`
		Error     string   `json:"error,omitempty"`
	}{
		"stream", os.Getpid(), p.role, fmt.Sprintf("%p", p.conn), p.id,
		p.raw.LocalAddr().String(), p.raw.RemoteAddr().String(), versionName(p.conn),
		direction, calls, s.length, hex.EncodeToString(s.sum.Sum(nil)),
		s.empty, s.withError, s.failed, s.err,
	})
	if err != nil {
		fatal(err)
	}
	outputLock.Lock()
	defer outputLock.Unlock()
	if _, err := logOutput.Write(append(line, '\n')); err != nil {
		fatal(err)
	}
}

func versionName(conn *tls.Conn) string {
	switch conn.ConnectionState().Version {
	case tls.VersionTLS12:
		return "1.2"
	case tls.VersionTLS13:
		return "1.3"
	}
	return "unknown"
}

var (
	outputLock sync.Mutex
	logOutput  io.Writer = os.Stdout
)

func openLog() {
	if *logPath == "" {
		return
	}
	file, err := os.Create(*logPath)
	if err != nil {
		fatal(err)
	}
	logOutput = file
}
