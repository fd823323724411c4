// host runs the program exchange, which is in a plugin: the file that
// EXCHANGE_LIBRARY names. If EXCHANGE_WAIT is set, it waits for a line on
// standard input before it loads it.
package main

import (
	"fmt"
	"os"
	"plugin"
)

func main() {
	if os.Getenv("EXCHANGE_WAIT") != "" {
		fmt.Println(`{"event":"waiting"}`)
		// Byte by byte: what follows is for the plugin.
		for b := []byte{0}; b[0] != '\n'; {
			if _, err := os.Stdin.Read(b); err != nil {
				check(err)
			}
		}
	}
	library, err := plugin.Open(os.Getenv("EXCHANGE_LIBRARY"))
	check(err)
	exchange, err := library.Lookup("Exchange")
	check(err)
	exchange.(func())()
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "host:", err)
		os.Exit(1)
	}
}
