// mapped sends memory over TLS that is not there: parts of a file that is
// mapped and was never touched, and whose pages the kernel was told to drop.
// The first to need a payload is thus a probe on crypto/tls, not the program.
//
// Output is as that of the program exchange: "ready", "stream" and "done"
// lines on standard output. "done" also tells how many pages of the payloads
// were resident when they were handed to crypto/tls.
package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"
)

const (
	pageSize = 4096
	// Between payloads, so that readahead for one does not bring the next.
	gap = 8 << 20
	// Linux: include/uapi/linux/fadvise.h, include/uapi/asm-generic/mman-common.h
	fadviseDontNeed = 4
	madviseRandom   = 1
)

// sizes of the payloads: within a page, across pages, a full record, many.
var sizes = []int{100, 5000, 16384, 100000, 1 << 20}

var path = flag.String("file", "mapped.data", "file to make, on a disk rather than in memory")

// stream is what one end wrote or read.
type stream struct {
	calls []int
	sum   []byte
}

func main() {
	flag.Parse()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	event(map[string]interface{}{"event": "ready", "pid": os.Getpid(), "addr": listener.Addr().String()})
	bufio.NewReader(os.Stdin).ReadString('\n')

	payloads := makeFile()
	received := make(chan stream)
	go serve(listener, received)
	sent, resident := send(listener.Addr().String(), payloads)
	got := <-received

	log("client", "write", sent)
	log("server", "read", got)
	ok := hex.EncodeToString(sent.sum) == hex.EncodeToString(got.sum)
	event(map[string]interface{}{"event": "done", "pid": os.Getpid(), "ok": ok, "resident": resident})
}

// makeFile writes the payloads and returns them mapped, with none of their
// pages in memory if the file system can do without.
func makeFile() [][]byte {
	file, err := os.OpenFile(*path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0600)
	check(err)
	defer file.Close()
	offset := int64(0)
	var offsets []int64
	for _, size := range sizes {
		data := make([]byte, size)
		_, err = rand.Read(data)
		check(err)
		_, err = file.WriteAt(data, offset)
		check(err)
		offsets = append(offsets, offset)
		offset += gap
	}
	check(file.Truncate(offset))
	check(file.Sync())
	_, _, errno := syscall.Syscall6(syscall.SYS_FADVISE64, file.Fd(), 0, 0, fadviseDontNeed, 0, 0)
	if errno != 0 {
		check(errno)
	}
	mapping, err := syscall.Mmap(int(file.Fd()), 0, int(offset), syscall.PROT_READ, syscall.MAP_SHARED)
	check(err)
	check(syscall.Madvise(mapping, madviseRandom))
	var payloads [][]byte
	for i, size := range sizes {
		payloads = append(payloads, mapping[offsets[i]:][:size])
	}
	return payloads
}

// residentPages counts a payload's pages that are in memory: mincore(2).
func residentPages(data []byte) int {
	vector := make([]byte, (len(data)+pageSize-1)/pageSize)
	_, _, errno := syscall.Syscall(syscall.SYS_MINCORE, uintptr(unsafe.Pointer(&data[0])),
		uintptr(len(data)), uintptr(unsafe.Pointer(&vector[0])))
	if errno != 0 {
		check(errno)
	}
	count := 0
	for _, page := range vector {
		count += int(page & 1)
	}
	return count
}

func send(addr string, payloads [][]byte) (stream, int) {
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	check(err)
	sum := sha256.New()
	sent := stream{}
	resident := 0
	for _, data := range payloads {
		resident += residentPages(data)
		_, err = conn.Write(data)
		check(err)
		sent.calls = append(sent.calls, len(data))
		sum.Write(data)
	}
	check(conn.Close())
	sent.sum = sum.Sum(nil)
	return sent, resident
}

func serve(listener net.Listener, received chan<- stream) {
	raw, err := listener.Accept()
	check(err)
	conn := tls.Server(raw, serverConfig())
	sum := sha256.New()
	got := stream{}
	buffer := make([]byte, 4096)
	for {
		n, err := conn.Read(buffer)
		if n > 0 {
			got.calls = append(got.calls, n)
			sum.Write(buffer[:n])
		}
		if err == io.EOF {
			break
		}
		check(err)
	}
	check(conn.Close())
	got.sum = sum.Sum(nil)
	received <- got
}

func serverConfig() *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "mapped.test"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	check(err)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

func log(role, direction string, s stream) {
	event(map[string]interface{}{
		"event": "stream", "pid": os.Getpid(), "role": role, "conn": "", "id": 0,
		"direction": direction, "calls": s.calls, "sha256": hex.EncodeToString(s.sum),
		"empty_calls": 0, "data_with_error": 0,
	})
}

func event(fields map[string]interface{}) {
	line, err := json.Marshal(fields)
	check(err)
	fmt.Println(string(line))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "mapped:", err)
		os.Exit(1)
	}
}
