/*
 * Runs the Go program exchange, which is in a shared library that this program is linked with.
 */
void Exchange(void);

int main(void)
{
	Exchange();
	return 0;
}
