/* SPDX-License-Identifier: MIT */
/* Measures the calls that callgate.ko makes for a program, and prints as bench.c does:
 *
 *	chardev /dev/callgate0 N	chardev-call	a call, by one ioctl
 *					chardev-none	an ioctl that the file refuses
 */
#define _GNU_SOURCE
#include "measure.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/callgate.h>
#include <sys/ioctl.h>

/* The hash of "add(u64,u64)->u64". */
#define ADD_SIGNATURE 0xb68bd69f011c6117

struct chardev {
	int file;
	uint32_t add;
};

static int call_add(void *with, unsigned int i)
{
	const struct chardev *chardev = with;
	struct callgate_transfer call = {
		.handle = chardev->add, .arguments = 2, .results = 1, .values = { i, 40 },
	};

	if (ioctl(chardev->file, CALLGATE_IOC_CALL, &call))
		return errno;
	return call.status ?: call.values[0] == (uint64_t)i + 40 ? 0 : 255;
}

static int call_none(void *with, unsigned int i)
{
	const struct chardev *chardev = with;

	return ioctl(chardev->file, _IO(CALLGATE_IOC_MAGIC, 0xff), i) != -1 || errno != ENOTTY;
}

int main(int argc, char **argv)
{
	const unsigned int count = argc == 3 ? (unsigned int)strtoul(argv[2], NULL, 10) : 0;
	struct callgate_handle handle = { .name = "add", .signature = ADD_SIGNATURE };
	struct chardev chardev;

	if (!count) {
		fprintf(stderr, "usage: chardev FILE N\n");
		return 2;
	}
	chardev.file = open(argv[1], O_RDWR | O_CLOEXEC);
	if (chardev.file < 0 || ioctl(chardev.file, CALLGATE_IOC_OPEN, &handle)) {
		perror(argv[1]);
		return 2;
	}
	chardev.add = handle.handle;
	measure_clock(count);
	measure("chardev-call", count, call_add, &chardev);
	measure("chardev-none", count, call_none, &chardev);
	return 0;
}
