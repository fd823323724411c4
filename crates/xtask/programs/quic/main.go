// quic performs TLS handshakes through crypto/tls's interface for QUIC. The
// client and the server hand each other their messages in memory, for there
// is no implementation of QUIC itself in the standard library.
//
// Output is one JSON object a line: "handshake" with the client random of each
// handshake, as it is in the ClientHello, and "done". With -keylog, crypto/tls
// logs its keys too. Standard library only, Go 1.21 and later.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"os"
	"time"
)

var (
	handshakes = flag.Int("handshakes", 1, "number of handshakes, one after the other")
	keyLog     = flag.String("keylog", "", "file to which crypto/tls's own key log is appended")
)

func main() {
	flag.Parse()
	server := commonConfig()
	server.Certificates = []tls.Certificate{certificate()}
	client := commonConfig()
	client.InsecureSkipVerify = true
	client.ServerName = "quic.test"

	for i := 0; i < *handshakes; i++ {
		random, err := handshake(client, server)
		if err != nil {
			fatal(err)
		}
		log(map[string]any{"event": "handshake", "pid": os.Getpid(), "client_random": hex.EncodeToString(random)})
	}
	log(map[string]any{"event": "done", "pid": os.Getpid()})
}

// handshake brings a client and a server together and returns the client
// random.
func handshake(clientConfig, serverConfig *tls.Config) ([]byte, error) {
	client := newSide(tls.QUICClient(&tls.QUICConfig{TLSConfig: clientConfig}))
	server := newSide(tls.QUICServer(&tls.QUICConfig{TLSConfig: serverConfig}))
	defer client.conn.Close()
	defer server.conn.Close()
	for _, s := range []*side{client, server} {
		s.conn.SetTransportParameters([]byte("parameters"))
		if err := s.conn.Start(context.Background()); err != nil {
			return nil, err
		}
	}
	for !client.done || !server.done {
		moved, err := client.passOn(server)
		if err != nil {
			return nil, fmt.Errorf("client to server: %w", err)
		}
		back, err := server.passOn(client)
		if err != nil {
			return nil, fmt.Errorf("server to client: %w", err)
		}
		if !moved && !back {
			return nil, errors.New("neither side has anything left to say, and the handshake is not done")
		}
	}
	return clientRandom(client.hello)
}

// side is one end of a handshake.
type side struct {
	conn  *tls.QUICConn
	hello []byte // what it said before it had keys
	done  bool
}

func newSide(conn *tls.QUICConn) *side {
	return &side{conn: conn}
}

// passOn works off what has happened on this side; the other gets its
// messages. It tells whether there was anything.
func (s *side) passOn(other *side) (moved bool, err error) {
	for {
		event := s.conn.NextEvent()
		switch event.Kind {
		case tls.QUICNoEvent:
			return moved, nil
		case tls.QUICWriteData:
			if event.Level == tls.QUICEncryptionLevelInitial {
				s.hello = append(s.hello, event.Data...)
			}
			if err := other.conn.HandleData(event.Level, event.Data); err != nil {
				return moved, err
			}
		case tls.QUICHandshakeDone:
			s.done = true
		}
		moved = true
	}
}

// clientRandom takes it from a ClientHello: behind the message's type (1 byte),
// its length (3) and the protocol version (2).
func clientRandom(hello []byte) ([]byte, error) {
	const offset, length = 6, 32
	if len(hello) < offset+length || hello[0] != 1 {
		return nil, errors.New("the client's first message is no ClientHello")
	}
	return hello[offset : offset+length], nil
}

// commonConfig is what both sides have in common.
func commonConfig() *tls.Config {
	config := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"test"}}
	if *keyLog != "" {
		file, err := os.OpenFile(*keyLog, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
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
		Subject:      pkix.Name{CommonName: "quic.test"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		DNSNames:     []string{"quic.test"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func log(fields map[string]any) {
	line, err := json.Marshal(fields)
	if err != nil {
		fatal(err)
	}
	os.Stdout.Write(append(line, '\n'))
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "quic:", err)
	os.Exit(1)
}
