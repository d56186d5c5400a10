/* SPDX-License-Identifier: MIT */
/*
 * Meets the device of liar.py with each of its lies: binds the driver, calls, resets, unbinds. Nothing
 * that the device says may hang or crash the kernel. For each lie it prints what came of it:
 *
 *	lie 7 bind=0 open=0 call=ETIMEDOUT echo=EIO again=ok
 */
#define _GNU_SOURCE
#include <linux/callgate.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define ADDRESS	"0000:00:01.0"
#define PCI	"/sys/bus/pci/devices/" ADDRESS
#define DRIVER	"/sys/bus/pci/drivers/callgate_pci"
#define ADD	0xb68bd69f011c6117

enum { LIE, COUNT, SPRING };

static volatile uint32_t *registers;

/* With a read behind it, since writes are posted. */
static void tell(unsigned int which, uint32_t value)
{
	registers[which] = value;
	(void)registers[which];
}

static int put(const char *path, const char *text)
{
	int file = open(path, O_WRONLY | O_CLOEXEC), error = 0;

	if (file < 0)
		return errno;
	if (write(file, text, strlen(text)) != (ssize_t)strlen(text))
		error = errno;
	close(file);
	return error;
}

static const char *word(int error)
{
	static char number[32];

	switch (error) {
	case 0: return "0";
	case EAGAIN: return "EAGAIN";
	case EBADSLT: return "EBADSLT";
	case EBUSY: return "EBUSY";
	case EDQUOT: return "EDQUOT";
	case EINVAL: return "EINVAL";
	case EIO: return "EIO";
	case ENOBUFS: return "ENOBUFS";
	case ENODEV: return "ENODEV";
	case ENOENT: return "ENOENT";
	case ENOTCONN: return "ENOTCONN";
	case EPROTONOSUPPORT: return "EPROTONOSUPPORT";
	case ESTALE: return "ESTALE";
	case ETIMEDOUT: return "ETIMEDOUT";
	}
	snprintf(number, sizeof(number), "errno%d", error);
	return number;
}

static const char *outcome(int error, const struct callgate_transfer *call)
{
	static char status[32];

	if (error)
		return word(errno);
	if (!call->status)
		return "ok";
	snprintf(status, sizeof(status), "status %u", call->status);
	return status;
}

/* /dev/callgateN of the device; "" while it has none. */
static const char *gate_path(void)
{
	static char path[64];
	struct dirent *entry;
	DIR *folder = opendir(PCI "/callgate");

	path[0] = '\0';
	while (folder && (entry = readdir(folder)))
		if (!strncmp(entry->d_name, "callgate", 8))
			snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
	if (folder)
		closedir(folder);
	return path;
}

static int open_gate(void)
{
	struct timespec pause = { 0, 2000000 };
	int file, tries;

	for (tries = 0; tries < 500; tries++) {
		file = open(gate_path(), O_RDWR | O_CLOEXEC);
		if (file >= 0)
			return file;
		nanosleep(&pause, NULL);
	}
	return -1;
}

/* Read all that can be read. */
static void look_around(int file)
{
	struct callgate_listing listing;
	char path[512], text[4096];
	struct dirent *entry;
	unsigned int i;
	DIR *folder;

	for (i = 0; i < 8; i++) {
		memset(&listing, 0, sizeof(listing));
		listing.index = i;
		listing.text = (uintptr_t)text;
		listing.text_length = sizeof(text);
		ioctl(file, CALLGATE_IOC_LIST, &listing);
	}
	snprintf(path, sizeof(path), PCI "/callgate/%s/calls", gate_path() + strlen("/dev/"));
	folder = opendir(path);
	while (folder && (entry = readdir(folder))) {
		size_t length = strlen(path);
		int attribute;

		snprintf(path + length, sizeof(path) - length, "/%s", entry->d_name);
		attribute = open(path, O_RDONLY | O_CLOEXEC);
		path[length] = '\0';
		if (attribute >= 0) {
			if (read(attribute, text, sizeof(text)) < 0)
				text[0] = '\0';
			close(attribute);
		}
	}
	if (folder)
		closedir(folder);
}

static void add(int file, uint32_t handle, const char *step)
{
	struct callgate_transfer call = {
		.handle = handle, .arguments = 2, .values = { 2, 40 }, .timeout_ms = 30,
	};
	int error = ioctl(file, CALLGATE_IOC_CALL, &call);

	printf(" %s=%s", step, outcome(error, &call));
}

static void meet(int file)
{
	struct callgate_handle handle = { .name = "add", .signature = ADD };
	struct callgate_handle other = { .name = "echo" };
	struct callgate_transfer call;
	unsigned char out[64];
	uint32_t length;
	int error;

	look_around(file);
	error = ioctl(file, CALLGATE_IOC_OPEN, &handle) ? errno : 0;
	printf(" open=%s", word(error));
	if (!error)
		add(file, handle.handle, "call");
	other.signature = strtoull(getenv("ECHO"), NULL, 0);
	if (!ioctl(file, CALLGATE_IOC_OPEN, &other)) {
		call = (struct callgate_transfer){
			.handle = other.handle, .arguments = 1, .values = { 8ull << 32 },
			.timeout_ms = 30, .in = (uintptr_t)"the echo", .in_length = 8,
			.out = (uintptr_t)out, .out_length = sizeof(out),
		};
		error = ioctl(file, CALLGATE_IOC_CALL, &call);
		length = call.values[0] >> 32;
		if (!error && !call.status && (uint32_t)call.values[0] + (uint64_t)length > 64)
			printf(" echo=ENOBUFS");
		else
			printf(" echo=%s", outcome(error, &call));
	}
	put(PCI "/reset", "1");
	if (handle.signature == ADD)
		add(file, handle.handle, "again");
}

int main(void)
{
	int resource, file, error;
	uint32_t count, lie;

	put(DRIVER "/unbind", ADDRESS);
	/* What stays enabled is decoding: to be enabled twice would cost MSI-X (6.1). */
	put(PCI "/enable", "1");
	put(PCI "/enable", "0");
	resource = open(PCI "/resource0", O_RDWR | O_SYNC);
	registers = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, resource, 0);
	if (registers == MAP_FAILED) {
		perror("resource0");
		return 1;
	}
	count = registers[COUNT];
	/* The truth at the end, to see whether anything stayed. */
	for (lie = 0; lie <= count; lie++) {
		tell(LIE, lie % count);
		error = put(DRIVER "/bind", ADDRESS);
		printf("lie %u bind=%s", lie % count, word(error));
		if (!error) {
			tell(SPRING, 1);
			file = open_gate();
			if (file < 0)
				printf(" file=%s", word(errno));
			else
				meet(file);
			put(DRIVER "/unbind", ADDRESS);
			close(file);
		}
		printf("\n");
		fflush(stdout);
	}
	printf("done\n");
	return 0;
}
