/* SPDX-License-Identifier: MIT */
/* A driver of the PCI test device 1b36:0005 (QEMU's pci-testdev, or ours) that starts each of its
 * tests, and prints the header and what is counted of writes of each width.
 */
#include "pci_testdev.h"

#include <stdio.h>

/* The header, at the start of each BAR. */
#define TEST   0x00u
#define WIDTH  0x01u
#define OFFSET 0x04u
#define DATA   0x08u
#define COUNT  0x0cu
#define NAME   0x10u

#define NAME_LENGTH 32u
#define NO_TEST     0xffu
#define BARS        2u

#define REVISION     0x08u /* offsets in config space */
#define SUBSYSTEM    0x2cu
#define PIN          0x3du
#define PREFETCHABLE 0x08u /* of a BAR */

static struct pci_testdev testdev;

static uint32_t read(unsigned int bar, uint32_t offset, unsigned int size)
{
	return (uint32_t)callgate_read(&testdev.device, bar, offset, size);
}

static void write(unsigned int bar, uint32_t offset, unsigned int size, uint32_t value)
{
	callgate_write(&testdev.device, bar, offset, size, value);
}

static void identify(void)
{
	const uint16_t function = testdev.device.function;
	unsigned int i;

	printf("class and revision 0x%x, subsystem 0x%x, interrupt pin %u\n",
	       callgate_pci_read(function, REVISION, 4), callgate_pci_read(function, SUBSYSTEM, 4),
	       callgate_pci_read(function, PIN, 1));
	for (i = 0; i < CALLGATE_PCI_BARS; i++) {
		const struct callgate_bar *bar = &testdev.device.bars[i];
		const uint32_t low = callgate_pci_read(function, CALLGATE_PCI_BAR + 4 * i, 4);

		if (!bar->size)
			continue;
		printf("BAR %u: %s, 0x%x bytes%s%s\n", i, bar->io ? "I/O" : "memory",
		       (unsigned int)bar->size, bar->wide ? ", 64 bits" : "",
		       !bar->io && low & PREFETCHABLE ? ", prefetchable" : "");
	}
}

static void print_header(unsigned int bar)
{
	char name[NAME_LENGTH + 1] = { 0 };
	unsigned int i;

	for (i = 0; i < NAME_LENGTH; i++)
		name[i] = (char)read(bar, NAME + i, 1);
	printf("  BAR %u: test %u \"%s\", width %u, offset 0x%x, data 0x%x, count %u\n", bar,
	       read(bar, TEST, 1), name, read(bar, WIDTH, 1), read(bar, OFFSET, 4),
	       read(bar, DATA, 4), read(bar, COUNT, 4));
}

/* Write `data` in `size` bytes, all of them alike, so that they cover `offset`. */
static void try(const char *what, unsigned int bar, uint32_t offset, unsigned int size,
		uint8_t data)
{
	const uint32_t before = read(bar, COUNT, 4);
	const uint32_t value = data * 0x01010101u;
	unsigned int i;

	for (i = 0; i < 3; i++)
		write(bar, offset & ~(size - 1), size, value);
	printf("  3 writes of %u bytes, %s: %u counted\n", size, what,
	       read(bar, COUNT, 4) - before);
}

static void run(unsigned int bar, unsigned int test)
{
	const uint32_t offset = read(bar, OFFSET, 4);
	const uint8_t data = (uint8_t)read(bar, DATA, 4);
	unsigned int size;

	printf("BAR %u, test %u\n", bar, test);
	print_header(0);
	print_header(1);
	for (size = 1; size <= 4; size *= 2) {
		try("as the header says", bar, offset, size, data);
		try("other data", bar, offset, size, data ^ 1);
	}
	try("one further", bar, offset + 1, 1, data);
	try("one before", bar, offset - 1, 1, data);
	if (offset < testdev.device.bars[!bar].size)
		try("in the other BAR", !bar, offset, 1, data);
	try("into the header", bar, NAME, 4, data);
	printf("  read where it writes: 0x%x, behind the name: 0x%x, by halves: 0x%x 0x%x\n",
	       read(bar, offset, 1), read(bar, 0x40, 4), read(bar, 0, 2), read(bar, 2, 2));
	write(bar, TEST, 4, test);
	printf("  started anew: %u counted\n", read(bar, COUNT, 1));
}

int main(void)
{
	const int status = pci_testdev_open(&testdev);
	unsigned int bar, test;

	if (status != CALLGATE_OK) {
		printf("pci_testdev: %s\n", callgate_word(status));
		return 1;
	}
	identify();
	for (bar = 0; bar < BARS; bar++) {
		for (test = 0; write(bar, TEST, 1, test), read(bar, WIDTH, 1); test++)
			run(bar, test);
		printf("BAR %u: %u tests, then\n", bar, test);
		print_header(bar);
		try("no test runs", bar, 0x80, 1, 0xfa);
		write(bar, TEST, 1, 0);
		write(bar, TEST, 1, NO_TEST);
		print_header(bar);
	}
	return 0;
}
