/* SPDX-License-Identifier: MIT */
/* The guest of `callgate bench --on qemu`, in Linux' user space. Prints a line for each measurement:
 *
 *	NAME MEDIAN P99 COUNT      nanoseconds each takes, without the clock's own time: the median of
 *	                           batches of 16, the 99th percentile of single ones
 *	NAME BYTES/S 0 COUNT       for disks
 *	NAME CALLS/S 0 COUNT       for several processors
 *
 *	bench calls N              register reads of QEMU's own edu and of ours, and calls
 *	bench cpus N               N calls on each processor at once, each with a frame of its own
 *	bench disk NAME DEVICE N   N random reads of 4 KiB at depth 32, N / 8 sequential ones of 1 MiB
 */
#define _GNU_SOURCE
#include "bench.h"
#include "measure.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EDU_VENDOR 0x1234
#define EDU_DEVICE 0x11e8
#define DEPTH      32
#define SMALL      4096u
#define LARGE      (1u << 20)
#define MOST       8
#define ROUNDS     10

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
	unsigned int round;
	int status;

	measure_clock(count);
	if (callgate_find(&edu, EDU_VENDOR, EDU_DEVICE, 0) != CALLGATE_OK) {
		fprintf(stderr, "bench: QEMU must have a device edu\n");
		return 2;
	}
	status = bench_open(&bench);
	if (status != CALLGATE_OK) {
		fprintf(stderr, "bench: the device was not opened: %s\n", callgate_word(status));
		return 2;
	}
	measure("register-read", count, read_ours, &bench);
	measure("register-write", count, write_ours, &bench);
	measure("register-read-again", count, read_ours, &bench); /* past what was posted */
	bench.device.path = CALLGATE_PATH_POLLED;
	for (round = 0; round < ROUNDS; round++) {
		measure("edu-read", count, read_edu, &edu);
		measure("call-watched", count, call_add, &bench);
	}
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

struct caller {
	struct bench bench;
	pthread_barrier_t *begin;
	unsigned int cpu, count;
};

static void *call_on(void *with)
{
	struct caller *caller = with;
	cpu_set_t cpus;
	unsigned int i;

	CPU_ZERO(&cpus);
	CPU_SET(caller->cpu, &cpus);
	sched_setaffinity(0, sizeof(cpus), &cpus);
	pthread_barrier_wait(caller->begin);
	for (i = 0; i < caller->count; i++)
		check("a call", call_add(&caller->bench, i));
	return NULL;
}

static int cpus(unsigned int count)
{
	const unsigned int wanted = (unsigned int)sysconf(_SC_NPROCESSORS_ONLN);
	struct caller callers[MOST];
	pthread_t threads[MOST];
	pthread_barrier_t begin;
	struct bench bench;
	uint64_t began, took;
	unsigned int i;

	if (wanted > MOST || bench_open(&bench) != CALLGATE_OK ||
	    wanted > bench.device.header.frame_count || pthread_barrier_init(&begin, NULL, wanted + 1)) {
		fprintf(stderr, "bench: there must be a frame for each processor\n");
		return 2;
	}
	for (i = 0; i < wanted; i++) {
		callers[i] = (struct caller){ bench, &begin, i, count };
		callers[i].bench.device.frame = i;
		if (pthread_create(&threads[i], NULL, call_on, &callers[i])) {
			fprintf(stderr, "bench: no thread\n");
			return 2;
		}
	}
	pthread_barrier_wait(&begin);
	began = now();
	for (i = 0; i < wanted; i++)
		pthread_join(threads[i], NULL);
	took = now() - began;
	printf("frames-cpus-%u %llu 0 %u\n", wanted,
	       (unsigned long long)((double)wanted * count * 1e9 / (double)took), count);
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
	if (argc == 3 && !strcmp(argv[1], "cpus"))
		return cpus((unsigned int)strtoul(argv[2], NULL, 10));
	if (argc == 5 && !strcmp(argv[1], "disk"))
		return disk(argv[2], argv[3], (unsigned int)strtoul(argv[4], NULL, 10));
	fprintf(stderr, "usage: bench calls N | bench cpus N | bench disk NAME DEVICE N\n");
	return 2;
}
