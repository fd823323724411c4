package main

// Exchange is the program, for Go programs that load it as a plugin.
func Exchange() { main() }
