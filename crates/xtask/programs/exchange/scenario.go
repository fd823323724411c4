package main

import (
	"bytes"
	"io"
	"net"
	"sync"
	"time"
)

// kind is one way of using a connection.
type kind struct {
	client, server func(*peer)
	repeatable     bool // -minseconds may prolong it
	perMessage     bool // a connection carries one message each way
}

// connections is how many connections both sides expect.
func (k *kind) connections() int {
	if k.perMessage {
		return *conns * *rounds * len(sizes)
	}
	return *conns
}

var scenarios = map[string]*kind{
	"echo":       {client: echoClient, server: echoServer, repeatable: true},
	"empty":      {client: echoClient, server: echoServer, repeatable: true},
	"slow":       {client: echoClient, server: echoServer, repeatable: true},
	"duplex":     {client: duplex, server: duplex},
	"eof":        {client: eofClient, server: eofServer, perMessage: true},
	"closewrite": {client: closeWriteClient, server: closeWriteServer},
	"abort":      {client: abortClient, server: abortServer, perMessage: true},
}

// echo: the client sends a message in one Write, the server reads it whole and
// answers with another of the same size. "empty" puts calls of length zero
// between, "slow" pauses.

func echoClient(p *peer) {
	for n := 0; n < *rounds*len(sizes) || n%len(sizes) != 0 || time.Now().Before(p.deadline); n++ {
		if !p.send(n) || !p.receive(n) {
			break
		}
	}
	p.conn.Close()
}

func echoServer(p *peer) {
	for n := 0; p.receive(n) && p.send(n); n++ {
	}
	p.conn.Close()
}

// duplex: both sides send everything while they receive everything.
func duplex(p *peer) {
	total := *rounds * len(sizes)
	var sender sync.WaitGroup
	sender.Add(1)
	go func() {
		defer sender.Done()
		for n := 0; n < total && p.send(n); n++ {
		}
	}()
	for n := 0; n < total && p.receive(n); n++ {
	}
	sender.Wait()
	p.conn.Close()
}

// eof: a side sends one message and closes at once; the other waits before it
// reads, so that data and close_notify are both there for one Read, which then
// returns the data together with io.EOF.

func eofClient(p *peer) {
	p.send(0)
	if err := p.conn.CloseWrite(); err != nil {
		fail("client %d: CloseWrite: %v", p.id, err)
	}
	p.receiveToEOF(0)
	p.conn.Close()
}

func eofServer(p *peer) {
	p.receiveToEOF(0)
	p.send(0)
	p.conn.Close()
}

func (p *peer) receiveToEOF(n int) {
	time.Sleep(50 * time.Millisecond)
	want := p.incoming(n)
	if len(p.buffer) <= len(want) {
		p.buffer = make([]byte, len(want)+1)
	}
	got := &bytes.Buffer{}
	for {
		n, err := p.Read(p.buffer)
		got.Write(p.buffer[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			fail("%s %d: read: %v", p.role, p.id, err)
			return
		}
	}
	p.check(n, want, got.Bytes())
}

// closewrite: the client sends everything and half-closes; only then the
// server sends everything.

func closeWriteClient(p *peer) {
	total := *rounds * len(sizes)
	for n := 0; n < total && p.send(n); n++ {
	}
	if err := p.conn.CloseWrite(); err != nil {
		fail("client %d: CloseWrite: %v", p.id, err)
	}
	for n := 0; n < total && p.receive(n); n++ {
	}
	p.conn.Close()
}

func closeWriteServer(p *peer) {
	total := *rounds * len(sizes)
	for n := 0; n < total && p.receive(n); n++ {
	}
	if n, err := p.Read(p.buffer); n != 0 || err != io.EOF {
		fail("server %d: expected the end of the stream, got %d bytes, %v", p.id, n, err)
	}
	for n := 0; n < total && p.send(n); n++ {
	}
	p.conn.Close()
}

// abort: the receiver resets the TCP connection after half a message. In even
// connections the server is the receiver, in odd ones the client.

func abortClient(p *peer) {
	if p.id%2 == 0 {
		p.sendUntilReset()
	} else {
		p.resetHalfway()
	}
}

func abortServer(p *peer) {
	if p.id%2 == 0 {
		p.resetHalfway()
	} else {
		p.sendUntilReset()
	}
}

// sendUntilReset sends the message over and over, as the kernel's buffers may
// take the first ones, until the reset arrives.
func (p *peer) sendUntilReset() {
	data := p.outgoing(0)
	for {
		if _, err := p.Write(data); err != nil {
			break
		}
	}
	p.conn.Close()
}

func (p *peer) resetHalfway() {
	want := p.incoming(0)
	got := 0
	for got < (len(want)+1)/2 {
		n, err := p.Read(p.buffer)
		for _, b := range p.buffer[:n] {
			if b != want[got%len(want)] {
				fail("%s %d: wrong byte at offset %d", p.role, p.id, got)
				break
			}
			got++
		}
		if err != nil {
			fail("%s %d: read: %v", p.role, p.id, err)
			break
		}
	}
	if tcp, ok := p.raw.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	p.raw.Close()
}

// outgoing and incoming are the connection's n-th message in each direction.

func (p *peer) outgoing(n int) []byte {
	return message(p.role, p.id, n, p.size(n))
}

func (p *peer) incoming(n int) []byte {
	other := "client"
	if p.role == "client" {
		other = "server"
	}
	return message(other, p.id, n, p.size(n))
}

func (p *peer) size(n int) int {
	return sizes[(p.first+n)%len(sizes)]
}

func (p *peer) send(n int) bool {
	switch *scenario {
	case "empty":
		p.Write(nil)
		p.Write([]byte{})
	case "slow":
		time.Sleep(2 * time.Millisecond)
	}
	if _, err := p.Write(p.outgoing(n)); err != nil {
		fail("%s %d: write: %v", p.role, p.id, err)
		return false
	}
	return true
}

// receive reads the n-th message; false means that there is none.
func (p *peer) receive(n int) bool {
	want := p.incoming(n)
	got := 0
	for got < len(want) {
		switch *scenario {
		case "empty":
			if n, err := p.Read(nil); n != 0 || err != nil {
				fail("%s %d: an empty read returned %d, %v", p.role, p.id, n, err)
			}
		case "slow":
			time.Sleep(time.Millisecond)
		}
		buffer := p.buffer
		if len(buffer) > len(want)-got {
			buffer = buffer[:len(want)-got]
		}
		count, err := p.Read(buffer)
		if !bytes.Equal(buffer[:count], want[got:got+count]) {
			fail("%s %d: message %d differs within %d bytes from offset %d", p.role, p.id, n, count, got)
			return false
		}
		got += count
		if err == io.EOF && got == 0 && p.role == "server" && p.openEnded {
			return false // the client has sent its last message
		}
		if err != nil && got < len(want) {
			fail("%s %d: read: %v at %d of %d bytes", p.role, p.id, err, got, len(want))
			return false
		}
	}
	return true
}

func (p *peer) check(n int, want, got []byte) {
	if !bytes.Equal(want, got) {
		fail("%s %d: message %d differs: %d bytes sent, %d received", p.role, p.id, n, len(want), len(got))
	}
}
