/* SPDX-License-Identifier: MIT */
/* The guest of `callgate bench --on qemu`, in Linux' user space. Prints a line for each measurement:
 *
 *	NAME MEDIAN P99 COUNT      nanoseconds each takes, without the clock's own time: the median of
 *	                           batches of 16, the 99th percentile of single ones
 *	NAME BYTES/S 0 COUNT       for disks
 *
 *	bench calls N              register reads of QEMU's own edu and of ours, and calls
 *	bench disk NAME DEVICE N   N random reads of 4 KiB at depth 32, N / 8 sequential ones of 1 MiB
 */
#define _GNU_SOURCE
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define EDU_VENDOR 0x1234
#define EDU_DEVICE 0x11e8
#define BATCH      16
#define DEPTH      32
#define SMALL      4096u
#define LARGE      (1u << 20)

static uint64_t now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return (uint64_t)at.tv_sec * 1000000000 + (uint64_t)at.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static uint64_t clock_cost;

static void check(const char *name, int status)
{
	if (status) {
		fprintf(stderr, "bench: %s answered %d\n", name, status);
		exit(3);
	}
}

/* Run `step`, which is given its number, `count` times in batches and `count` times alone, and print
 * the median of the batches and the 99th percentile of the single ones.
 */
static uint64_t measure(const char *name, unsigned int count, int (*step)(void *, unsigned int),
			void *with)
{
	const unsigned int batches = count / BATCH;
	uint64_t *times = malloc(count * sizeof(*times));
	uint64_t middle, tail;
	unsigned int i, j;

	if (!times) {
		fprintf(stderr, "bench: no memory\n");
		exit(2);
	}
	for (i = 0; i < batches; i++) {
		const uint64_t before = now();

		for (j = 0; j < BATCH; j++)
			check(name, step(with, i * BATCH + j));
		times[i] = now() - before;
	}
	qsort(times, batches, sizeof(*times), ascending);
	middle = times[batches / 2];
	middle -= middle < clock_cost ? middle : clock_cost;
	for (i = 0; i < count; i++) {
		const uint64_t before = now();

		check(name, step(with, i));
		times[i] = now() - before;
	}
	qsort(times, count, sizeof(*times), ascending);
	tail = times[count - count / 100 - 1];
	tail -= tail < clock_cost ? tail : clock_cost;
	if (clock_cost)
		printf("%s %llu %llu %u\n", name, (unsigned long long)middle / BATCH,
		       (unsigned long long)tail, count);
	middle = times[count / 2];
	free(times);
	return middle;
}

static int nothing(void *with, unsigned int i)
{
	(void)with;
	(void)i;
	return 0;
}

static int read_edu(void *with, unsigned int i)
{
	(void)i;
	return (callgate_read32(with, 0, 0) & 0xff) != 0xed;
}

static int read_ours(void *with, unsigned int i)
{
	const struct bench *bench = with;

	(void)i;
	return bench_read_constant(bench) != 0x600dcafe;
}

static int write_ours(void *with, unsigned int i)
{
	bench_write_scratch(with, i);
	return 0;
}

static int call_add(void *with, unsigned int i)
{
	uint64_t sum;
	const int status = bench_add(with, i, 40, &sum);

	return status == CALLGATE_OK && sum != (uint64_t)i + 40 ? 255 : status;
}

static int calls(unsigned int count)
{
	struct callgate_device edu;
	struct bench bench;
	int status;

	clock_cost = measure("nothing", count, nothing, NULL);
	measure("nothing", count, nothing, NULL);
	if (callgate_find(&edu, EDU_VENDOR, EDU_DEVICE, 0) != CALLGATE_OK) {
		fprintf(stderr, "bench: QEMU must have a device edu\n");
		return 2;
	}
	status = bench_open(&bench);
	if (status != CALLGATE_OK) {
		fprintf(stderr, "bench: the device was not opened: %s\n", callgate_word(status));
		return 2;
	}
	measure("edu-read", count, read_edu, &edu);
	measure("register-read", count, read_ours, &bench);
	measure("register-write", count, write_ours, &bench);
	measure("register-read-again", count, read_ours, &bench); /* past what was posted */
	bench.device.path = CALLGATE_PATH_POLLED;
	measure("call-watched", count, call_add, &bench);
	measure("edu-read-again", count, read_edu, &edu);
	/* Without the feature the host has no reason to watch. */
	if (callgate_negotiate(&bench.device, 0) != CALLGATE_OK)
		return 2;
	usleep(50000);
	bench.device.path = CALLGATE_PATH_MMIO;
	measure("call-doorbell-mmio", count, call_add, &bench);
	if (bench.device.offers >> CALLGATE_PATH_PIO & 1) {
		bench.device.path = CALLGATE_PATH_PIO;
		measure("call-doorbell-pio", count, call_add, &bench);
	}
	measure("register-read-last", count, read_ours, &bench);
	return 0;
}

static int failed(const char *what)
{
	fprintf(stderr, "bench: %s: %s\n", what, strerror(errno));
	return 2;
}

/* `count` reads of 4 KiB at random places, 32 of them in flight at any time. */
static int random_reads(const char *name, int file, uint64_t size, unsigned int count)
{
	static struct iocb blocks[DEPTH];
	struct io_event events[DEPTH];
	struct iocb *order[DEPTH];
	aio_context_t aio = 0;
	unsigned int sent = 0, done = 0;
	uint64_t seed = 0x9e3779b97f4a7c15, began;
	uint8_t *memory;

	if (posix_memalign((void **)&memory, SMALL, DEPTH * SMALL) ||
	    syscall(SYS_io_setup, DEPTH, &aio))
		return failed("io_setup");
	began = now();
	while (done < count) {
		long free_blocks = 0, got, i;

		for (i = 0; i < DEPTH && sent < count; i++) {
			if (blocks[i].aio_buf)
				continue;
			seed = seed * 6364136223846793005u + 1442695040888963407u;
			blocks[i] = (struct iocb){
				.aio_data = (uint64_t)i,
				.aio_lio_opcode = IOCB_CMD_PREAD,
				.aio_fildes = (uint32_t)file,
				.aio_buf = (uintptr_t)(memory + (size_t)i * SMALL),
				.aio_nbytes = SMALL,
				.aio_offset = (int64_t)((seed >> 20) % (size / SMALL) * SMALL),
			};
			order[free_blocks++] = &blocks[i];
			sent++;
		}
		if (free_blocks && syscall(SYS_io_submit, aio, free_blocks, order) != free_blocks)
			return failed("io_submit");
		got = syscall(SYS_io_getevents, aio, 1L, (long)DEPTH, events, NULL);
		if (got < 1)
			return failed("io_getevents");
		for (i = 0; i < got; i++) {
			if ((int64_t)events[i].res != SMALL)
				return failed("read");
			blocks[events[i].data].aio_buf = 0;
		}
		done += (unsigned int)got;
	}
	printf("%s-random-read %llu 0 %u\n", name,
	       (unsigned long long)((double)count * SMALL * 1e9 / (double)(now() - began)), count);
	free(memory);
	syscall(SYS_io_destroy, aio);
	return 0;
}

static int sequential_reads(const char *name, int file, uint64_t size, unsigned int count)
{
	uint64_t at = 0, began;
	unsigned int i;
	void *memory;

	if (posix_memalign(&memory, SMALL, LARGE))
		return failed("memory");
	began = now();
	for (i = 0; i < count; i++, at += LARGE) {
		if (at + LARGE > size)
			at = 0;
		if (pread(file, memory, LARGE, (off_t)at) != (ssize_t)LARGE)
			return failed("read");
	}
	printf("%s-sequential-read %llu 0 %u\n", name,
	       (unsigned long long)((double)count * LARGE * 1e9 / (double)(now() - began)), count);
	free(memory);
	return 0;
}

static int disk(const char *name, const char *path, unsigned int count)
{
	const int file = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	uint64_t size;
	int status;

	if (file < 0 || ioctl(file, BLKGETSIZE64, &size))
		return failed(path);
	if (size < LARGE) {
		fprintf(stderr, "bench: %s must hold 1 MiB at least\n", path);
		return 2;
	}
	status = random_reads(name, file, size, count);
	if (status == 0)
		status = sequential_reads(name, file, size, count / 8);
	close(file);
	return status;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "calls"))
		return calls((unsigned int)strtoul(argv[2], NULL, 10));
	if (argc == 5 && !strcmp(argv[1], "disk"))
		return disk(argv[2], argv[3], (unsigned int)strtoul(argv[4], NULL, 10));
	fprintf(stderr, "usage: bench calls N | bench disk NAME DEVICE N\n");
	return 2;
}
