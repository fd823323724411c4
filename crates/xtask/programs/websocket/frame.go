package main

import (
	"bufio"
	"bytes"
	"compress/flate"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"io/ioutil"
)

// Opcodes of RFC 6455 section 11.8.
const (
	continuation = 0
	text         = 1
	binaryData   = 2
	closing      = 8
	ping         = 9
	pong         = 10
)

// frame is what RFC 6455 section 5.2 calls one.
type frame struct {
	fin        bool
	compressed bool // RSV1, see RFC 7692 section 6.
	opcode     byte
	payload    []byte
}

// write sends a frame, masked as clients have to.
func (f frame) write(w io.Writer, masked bool) error {
	first := f.opcode
	if f.fin {
		first |= 0x80
	}
	if f.compressed {
		first |= 0x40
	}
	head := []byte{first, 0}
	switch length := len(f.payload); {
	case length < 126:
		head[1] = byte(length)
	case length < 1<<16:
		head[1] = 126
		head = append(head, byte(length>>8), byte(length))
	default:
		head[1] = 127
		head = append(head, make([]byte, 8)...)
		binary.BigEndian.PutUint64(head[2:], uint64(length))
	}
	payload := f.payload
	if masked {
		head[1] |= 0x80
		key := make([]byte, 4)
		rand.Read(key)
		head = append(head, key...)
		payload = mask(payload, key)
	}
	_, err := w.Write(append(head, payload...))
	return err
}

// read takes a frame that has to be masked, or must not be.
func read(r *bufio.Reader, masked bool) (frame, error) {
	head := make([]byte, 2)
	if _, err := io.ReadFull(r, head); err != nil {
		return frame{}, err
	}
	if masked != (head[1]&0x80 != 0) {
		return frame{}, errors.New("a frame is masked that must not be, or not masked")
	}
	length := uint64(head[1] & 0x7f)
	if more := map[uint64]int{126: 2, 127: 8}[length]; more > 0 {
		extended := make([]byte, 8)
		if _, err := io.ReadFull(r, extended[8-more:]); err != nil {
			return frame{}, err
		}
		length = binary.BigEndian.Uint64(extended)
	}
	key := make([]byte, 4)
	if masked {
		if _, err := io.ReadFull(r, key); err != nil {
			return frame{}, err
		}
	}
	payload := make([]byte, length)
	_, err := io.ReadFull(r, payload)
	return frame{
		fin:        head[0]&0x80 != 0,
		compressed: head[0]&0x40 != 0,
		opcode:     head[0] & 0x0f,
		payload:    mask(payload, key),
	}, err
}

func mask(payload, key []byte) []byte {
	masked := make([]byte, len(payload))
	for i := range payload {
		masked[i] = payload[i] ^ key[i%4]
	}
	return masked
}

// deflated compresses a message as RFC 7692 section 7.2.1 says.
func deflated(content []byte) []byte {
	var compressed bytes.Buffer
	writer, err := flate.NewWriter(&compressed, flate.BestCompression)
	check(err)
	writer.Write(content)
	writer.Flush()
	return bytes.TrimSuffix(compressed.Bytes(), []byte{0, 0, 0xff, 0xff})
}

// inflated undoes that (section 7.2.2).
func inflated(content []byte) ([]byte, error) {
	tail := []byte{0, 0, 0xff, 0xff, 1, 0, 0, 0xff, 0xff}
	return ioutil.ReadAll(flate.NewReader(io.MultiReader(bytes.NewReader(content), bytes.NewReader(tail))))
}
