package main

import "C"

// Exchange is the program, for C.
//
//export Exchange
func Exchange() { main() }
