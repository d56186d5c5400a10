/* SPDX-License-Identifier: MIT */
/* Writes to the console, whose far end is an echo, and reads what comes back: an interrupt tells
 * of it, so that no call waits. The same file for all architectures and platforms.
 */
#include "console.h"

#include <stdio.h>
#include <string.h>

#define LONG  3000 /* more than one call reads */
#define PIECE 700

static unsigned char sent[LONG], received[LONG];
static struct callgate_interrupt typed;

static int send(struct console *console, const unsigned char *data, uint32_t length)
{
	uint32_t at = 0, taken;
	int status = CALLGATE_OK;

	/* An echo takes all; another far end might not. */
	while (at < length && status == CALLGATE_OK) {
		taken = 0;
		status = console_write(console, data + at, length - at, &taken);
		at += taken;
	}
	return status;
}

static int receive(struct console *console, unsigned char *data, uint32_t length)
{
	uint32_t at = 0, got;
	int status = CALLGATE_OK;

	while (at < length && status == CALLGATE_OK) {
		got = length - at;
		status = console_read(console, length - at, data + at, &got);
		if (status == CALLGATE_OK && got == 0)
			status = callgate_interrupt_wait(&console->device, &typed);
		at += got;
	}
	return status;
}

static int echo(struct console *console, uint32_t length)
{
	uint32_t at, more;
	int status = CALLGATE_OK;

	for (at = 0; at < length && status == CALLGATE_OK; at += PIECE) {
		more = length - at < PIECE ? length - at : PIECE;
		status = send(console, sent + at, more);
	}
	if (status == CALLGATE_OK)
		status = receive(console, received, length);
	if (status == CALLGATE_OK && memcmp(sent, received, length) == 0)
		return 0;
	printf("%u bytes: %s\n", length, callgate_word(status));
	return 1;
}

int main(void)
{
	static const char hello[] = "hello, console";
	struct console console;
	uint32_t i, got = LONG;
	int status;

	status = console_open(&console);
	if (status == CALLGATE_OK)
		status = callgate_interrupt_open(&console.device, CONSOLE_INTERRUPT_TYPED, &typed);
	if (status != CALLGATE_OK) {
		printf("console: %s\n", callgate_word(status));
		return 1;
	}
	memcpy(sent, hello, sizeof(hello));
	if (echo(&console, sizeof(hello)))
		return 1;
	printf("%s ok\n", (const char *)received);
	for (i = 0; i < LONG; i++)
		sent[i] = (unsigned char)(i * 31 + i / 256);
	if (echo(&console, LONG))
		return 1;
	printf("%d bytes ok\n", LONG);
	status = console_read(&console, LONG, received, &got);
	if (status != CALLGATE_OK || got != 0) {
		printf("%u bytes more: %s\n", got, callgate_word(status));
		return 1;
	}
	printf("nothing more ok\n");
	callgate_interrupt_close(&console.device, &typed);
	return 0;
}
