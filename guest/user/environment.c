/* SPDX-License-Identifier: MIT */
/* <callgate/environment.h> for a program in Linux' user space, run by root, without any driver: all
 * that PCI has lies in /sys/bus/pci/devices (Documentation/PCI/sysfs-pci.rst). Only one PCI domain,
 * number 0. No interrupt messages: those take a kernel driver.
 */
#define _GNU_SOURCE
#include <callgate/environment.h>

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__x86_64__) || defined(__i386__)
#include <sys/io.h>

/* I/O BARs are reached by I/O instructions, which root may ask for. */
__attribute__((constructor)) static void allow_ports(void)
{
	if (iopl(3))
		perror("iopl: without CONFIG_X86_IOPL_IOPERM the transport pio does not work");
}
#endif

#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_FRAME   ((1ull << 55) - 1)

static int open_file(uint16_t function, const char *name, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/0000:%02x:%02x.%x/%s", function >> 8,
		 function >> 3 & 31, function & 7, name);
	return open(path, flags | O_CLOEXEC);
}

/* The config file of the function that was used last: a walk asks the same one many times. */
static int config_file(uint16_t function)
{
	static int file = -1;
	static uint32_t of = UINT32_MAX;

	if (of != function) {
		if (file >= 0)
			close(file);
		file = open_file(function, "config", O_RDWR);
		of = function;
	}
	return file;
}

uint32_t callgate_env_config_read(uint16_t function, unsigned int offset, unsigned int size)
{
	const int file = config_file(function);
	uint32_t value = 0;

	if (file < 0 || pread(file, &value, size, offset) != (ssize_t)size)
		return UINT32_MAX;
	return value;
}

void callgate_env_config_write(uint16_t function, unsigned int offset, unsigned int size,
			       uint32_t value)
{
	const int file = config_file(function);

	if (file >= 0 && pwrite(file, &value, size, offset) != (ssize_t)size)
		perror("config");
}

uint64_t callgate_env_place(bool io, uint64_t size)
{
	(void)io;
	(void)size;
	return 0; /* the kernel places BARs */
}

volatile uint8_t *callgate_env_map(uint16_t function, unsigned int index, bool io,
				   uint64_t address, uint64_t size)
{
	char name[16];
	void *at;
	int file;

	(void)address;
	if (io)
		return NULL;
	snprintf(name, sizeof(name), "resource%u", index);
	file = open_file(function, name, O_RDWR | O_SYNC);
	if (file < 0)
		return NULL;
	at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	close(file);
	return at == MAP_FAILED ? NULL : at;
}

/* Right as long as the page stays where it is, and for the rest of that page only. */
uint64_t callgate_env_address(const volatile void *memory)
{
	const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)memory;
	uint64_t entry = 0;
	const int file = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	mlock((const void *)(uintptr_t)(at & ~(page - 1)), page);
	*(const volatile uint8_t *)memory;
	if (file < 0 || pread(file, &entry, sizeof(entry), (off_t)(at / page * sizeof(entry))) !=
				(ssize_t)sizeof(entry))
		entry = 0;
	if (file >= 0)
		close(file);
	return entry & PAGEMAP_PRESENT ? (entry & PAGEMAP_FRAME) * page + at % page : 0;
}

bool callgate_env_privileged(void)
{
	return false;
}

int callgate_env_message_open(uint64_t *address, uint32_t *data)
{
	(void)address;
	(void)data;
	return -1;
}

uint32_t callgate_env_message_take(int message)
{
	(void)message;
	return 0;
}

void callgate_env_message_close(int message)
{
	(void)message;
}
