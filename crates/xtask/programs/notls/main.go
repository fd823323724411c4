// notls is a network program into which crypto/tls is not linked: it echoes
// lines over loopback TCP until its standard input ends.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fatal(err)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go echo(conn)
		}
	}()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		fatal(err)
	}
	fmt.Printf("{\"event\":\"ready\",\"pid\":%d,\"addr\":%q}\n", os.Getpid(), listener.Addr().String())

	answers := bufio.NewReader(conn)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Fprintln(conn, lines.Text())
		answer, err := answers.ReadString('\n')
		if err != nil {
			fatal(err)
		}
		fmt.Print(answer)
	}
}

func echo(conn net.Conn) {
	defer conn.Close()
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		fmt.Fprintln(conn, lines.Text())
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "notls:", err)
	os.Exit(1)
}
