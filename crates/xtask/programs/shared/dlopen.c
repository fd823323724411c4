/*
 * Runs the Go program exchange, which is in a shared library: the file that EXCHANGE_LIBRARY names.
 * If EXCHANGE_WAIT is set, it waits for a line on standard input before it loads it.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(void)
{
	void (*exchange)(void);
	void *library;
	char byte;

	if (getenv("EXCHANGE_WAIT")) {
		puts("{\"event\":\"waiting\"}");
		fflush(stdout);
		/* Byte by byte: what follows is for the library. */
		do {
			if (read(STDIN_FILENO, &byte, 1) != 1)
				return 1;
		} while (byte != '\n');
	}
	library = dlopen(getenv("EXCHANGE_LIBRARY"), RTLD_NOW);
	if (!library) {
		fprintf(stderr, "%s\n", dlerror());
		return 1;
	}
	*(void **)&exchange = dlsym(library, "Exchange");
	if (!exchange) {
		fprintf(stderr, "%s\n", dlerror());
		return 1;
	}
	exchange();
	return 0;
}
