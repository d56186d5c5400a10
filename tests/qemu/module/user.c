/* SPDX-License-Identifier: MIT */
/*
 * What a program can do with /dev/callgateN, right and wrong. Runs as root in a guest with the device
 * `workbench` (device.py beside this file) and the modules callgate and callgate_pci.
 *
 *	user NAME...		the scenarios of these names; all, if none is named
 *
 * Prints a line for each scenario, "ok NAME" or what is wrong, and "done" at the end.
 */
#define _GNU_SOURCE
#include <linux/callgate.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define COUNT(array)	(sizeof(array) / sizeof((array)[0]))
#define PCI		"/sys/bus/pci/devices/0000:00:01.0"
#define DRIVER		"/sys/bus/pci/drivers/callgate_pci"
#define ADDRESS		"0000:00:01.0"

/* Of the call `control`: what the host is to do with the call `add`. */
enum { REBIND = 1, REVOKE, BIND, DENY, ALLOW, LIMIT, UNLIMIT, ESTRANGE, RECONCILE };

static const char *scenario;
static int failures;

__attribute__((format(printf, 3, 4))) static void wrong(int line, const char *what,
							  const char *format, ...)
{
	va_list list;

	failures++;
	printf("wrong %s, line %d: %s: ", scenario, line, what);
	va_start(list, format);
	vprintf(format, list);
	va_end(list);
	printf("\n");
}

#define CHECK(condition, ...) \
	do { \
		if (!(condition)) \
			wrong(__LINE__, #condition, "" __VA_ARGS__); \
	} while (0)

/* A call that must fail with an errno. */
#define FAILS(expected, call) \
	do { \
		int made = (call), error = errno; \
		if (made != -1 || error != (expected)) \
			wrong(__LINE__, #call, "%d, %s, not " #expected, made, \
			      made == -1 ? strerrorname(error) : "no error"); \
	} while (0)

static const char *strerrorname(int error)
{
	static char text[64];

	snprintf(text, sizeof(text), "errno %d (%s)", error, strerror(error));
	return text;
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void nap(unsigned int ms)
{
	struct timespec time = { ms / 1000, ms % 1000 * 1000000 };

	nanosleep(&time, NULL);
}

/* --- files ------------------------------------------------------------------------------------ */

/* 0, or the errno. */
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

static int get(const char *path, char *text, size_t size)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);
	size_t length = 0;
	ssize_t got;

	text[0] = '\0';
	if (file < 0)
		return errno;
	while (length + 1 < size && (got = read(file, text + length, size - 1 - length)) > 0)
		length += got;
	text[length] = '\0';
	close(file);
	return 0;
}

/* The gate of the workbench, "callgateN", which changes when it is bound anew; or NULL. */
static const char *gate_name(void)
{
	static char name[32];
	struct dirent *entry;
	DIR *folder = opendir(PCI "/callgate");

	name[0] = '\0';
	while (folder && (entry = readdir(folder)))
		if (!strncmp(entry->d_name, "callgate", 8))
			snprintf(name, sizeof(name), "%s", entry->d_name);
	if (folder)
		closedir(folder);
	return name[0] ? name : NULL;
}

static const char *attribute_path(const char *attribute)
{
	static char path[128];

	snprintf(path, sizeof(path), PCI "/callgate/%s/%s", gate_name(), attribute);
	return path;
}

static int set_attribute(const char *attribute, const char *text)
{
	return put(attribute_path(attribute), text);
}

static const char *attribute(const char *name)
{
	static char text[4096];

	get(attribute_path(name), text, sizeof(text));
	text[strcspn(text, "\n")] = '\0';
	return text;
}

static unsigned long long counter(const char *name)
{
	char path[128], text[4096], *line;
	size_t length = strlen(name);

	snprintf(path, sizeof(path), "/sys/kernel/debug/callgate/%s/counters", gate_name());
	get(path, text, sizeof(text));
	for (line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
		if (!strncmp(line, name, length) && line[length] == ' ')
			return strtoull(line + length, NULL, 10);
	wrong(__LINE__, name, "there is no such counter");
	return 0;
}

/* --- calls ------------------------------------------------------------------------------------ */

static int open_gate(int flags)
{
	char path[64];
	int file, tries;

	/* devtmpfs makes it in a thread of its own. */
	for (tries = 0; tries < 500; tries++) {
		snprintf(path, sizeof(path), "/dev/%s", gate_name() ?: "none");
		file = open(path, flags | O_CLOEXEC);
		if (file >= 0 || errno != ENOENT)
			return file;
		nap(2);
	}
	return -1;
}

static int list(int file, unsigned int index, struct callgate_listing *listing)
{
	memset(listing, 0, sizeof(*listing));
	listing->index = index;
	return ioctl(file, CALLGATE_IOC_LIST, listing);
}

static uint64_t signature_of(int file, const char *name)
{
	struct callgate_listing listing;
	unsigned int i;

	for (i = 0; !list(file, i, &listing); i++)
		if (!strcmp(listing.name, name))
			return listing.signature;
	return 0;
}

static int open_call(int file, const char *name, uint64_t signature, uint32_t *handle)
{
	struct callgate_handle opened = { .signature = signature };
	int error;

	snprintf(opened.name, sizeof(opened.name), "%s", name);
	error = ioctl(file, CALLGATE_IOC_OPEN, &opened);
	*handle = opened.handle;
	return error;
}

static uint32_t must_open(int file, const char *name)
{
	uint32_t handle = 0;

	CHECK(!open_call(file, name, signature_of(file, name), &handle), "%s: %s", name,
	      strerrorname(errno));
	return handle;
}

static struct callgate_transfer transfer(uint32_t handle, unsigned int arguments, uint64_t a,
					 uint64_t b)
{
	return (struct callgate_transfer){
		.handle = handle,
		.arguments = arguments,
		.values = { a, b },
	};
}

static int add(int file, uint32_t handle, uint64_t a, uint64_t b, uint64_t *sum)
{
	struct callgate_transfer call = transfer(handle, 2, a, b);

	if (ioctl(file, CALLGATE_IOC_CALL, &call))
		return -errno;
	*sum = call.values[0];
	return call.status;
}

static int adds_up(int file, uint32_t handle)
{
	uint64_t sum = 0;

	return !add(file, handle, 0xfedcba9876543210, 0x0123456789abcdef, &sum) &&
	       sum == UINT64_MAX;
}

static void control(unsigned int what)
{
	int file = open_gate(O_RDWR);
	struct callgate_transfer call = transfer(must_open(file, "control"), 1, what, 0);

	CHECK(!ioctl(file, CALLGATE_IOC_CALL, &call) && !call.status, "%s, status %u",
	      strerrorname(errno), call.status);
	close(file);
}

/* --- what is there ---------------------------------------------------------------------------- */

static void test_info(void)
{
	struct callgate_info info;
	int file = open_gate(O_RDWR);

	CHECK(!ioctl(file, CALLGATE_IOC_INFO, &info), "%s", strerrorname(errno));
	CHECK(!strcmp(info.name, "workbench"), "%s", info.name);
	CHECK(info.device_version == 3, "%u", info.device_version);
	CHECK(info.abi_version == CALLGATE_VERSION, "%x", info.abi_version);
	CHECK(info.features == 0xf, "%x", info.features);
	CHECK(info.transports == (CALLGATE_TRANSPORT_PIO | CALLGATE_TRANSPORT_MMIO |
				  CALLGATE_TRANSPORT_POLLED), "%x", info.transports);
	CHECK(info.frames == 8 && info.payload_size == 4096 - 128, "%u, %u", info.frames,
	      info.payload_size);
	CHECK(!(info.generation & 1), "%u", info.generation);
	CHECK(info.timeout_ms && info.max_pending, "%u, %u", info.timeout_ms, info.max_pending);
	close(file);
}

static void test_sysfs(void)
{
	static const char *const numbers[] = { "timeout_ms", "spin_us", "max_pending" };
	char saved[32];
	unsigned int i;

	CHECK(!strcmp(attribute("name"), "workbench"), "%s", attribute("name"));
	CHECK(!strcmp(attribute("uuid"), "5a0b2f0e-6f6e-5c0c-9d0a-ca11ca7e00ff"), "%s",
	      attribute("uuid"));
	CHECK(!strcmp(attribute("version"), "3"), "%s", attribute("version"));
	CHECK(!strcmp(attribute("abi_version"), "1.0"), "%s", attribute("abi_version"));
	CHECK(!strcmp(attribute("features"), "polled notify change_interrupt done_interrupt"), "%s",
	      attribute("features"));
	CHECK(!strcmp(attribute("transports"), "polled pio mmio"), "%s", attribute("transports"));
	CHECK(!strcmp(attribute("transport"), "auto"), "%s", attribute("transport"));
	CHECK(!strcmp(attribute("frames"), "8"), "%s", attribute("frames"));
	CHECK(!strcmp(attribute("payload_size"), "3968"), "%s", attribute("payload_size"));
	CHECK(!strcmp(attribute("calls/add"), "add(u64,u64)->u64"), "%s", attribute("calls/add"));
	CHECK(!strcmp(attribute("calls/flip"), "flip(inout,u8)->()"), "%s",
	      attribute("calls/flip"));
	CHECK(set_attribute("transport", "pigeon") == EINVAL);
	CHECK(set_attribute("transport", "hypercall") == EOPNOTSUPP);
	CHECK(set_attribute("timeout_ms", "0") == EINVAL);
	for (i = 0; i < COUNT(numbers); i++) {
		snprintf(saved, sizeof(saved), "%s", attribute(numbers[i]));
		CHECK(set_attribute(numbers[i], "soon") == EINVAL, "%s", numbers[i]);
		CHECK(!set_attribute(numbers[i], "1234"), "%s", numbers[i]);
		CHECK(!strcmp(attribute(numbers[i]), "1234"), "%s", attribute(numbers[i]));
		CHECK(!set_attribute(numbers[i], saved), "%s", numbers[i]);
	}
}

static void test_debugfs(void)
{
	static const char *const files[] = { "directory", "frames", "counters" };
	char path[128], text[8192];
	unsigned int i;

	for (i = 0; i < COUNT(files); i++) {
		snprintf(path, sizeof(path), "/sys/kernel/debug/callgate/%s/%s", gate_name(),
			 files[i]);
		CHECK(!get(path, text, sizeof(text)) && strchr(text, '\n'), "%s: %s", path, text);
		if (!i)
			CHECK(strstr(text, " b68bd69f011c6117 add\n"), "%s", text);
	}
}

static void test_list(void)
{
	struct callgate_listing listing = { 0 };
	int file = open_gate(O_RDONLY), calls = 0;
	char text[64];
	unsigned int i;

	for (i = 0; !list(file, i, &listing); i++) {
		calls += listing.name[0] != '\0';
		CHECK(listing.bound, "%s", listing.name);
		if (strcmp(listing.name, "add"))
			continue;
		CHECK(listing.signature == 0xb68bd69f011c6117, "%llx",
		      (unsigned long long)listing.signature);
		CHECK(listing.arguments == 2 && listing.results == 1 &&
		      listing.flags == CALLGATE_CALL_FLAG_REGISTERS);
		memset(text, '#', sizeof(text));
		listing.text = (uintptr_t)text;
		listing.text_length = 5;
		CHECK(!ioctl(file, CALLGATE_IOC_LIST, &listing) && listing.text_length == 17);
		CHECK(!memcmp(text, "add(u#", 6), "%.8s", text);
		listing.text_length = sizeof(text);
		CHECK(!ioctl(file, CALLGATE_IOC_LIST, &listing) && listing.text_length == 17);
		CHECK(!memcmp(text, "add(u64,u64)->u64#", 18), "%.20s", text);
		listing.text = 8;
		FAILS(EFAULT, ioctl(file, CALLGATE_IOC_LIST, &listing));
	}
	CHECK(errno == ENOENT && calls == 17, "%s after %d", strerrorname(errno), calls);
	FAILS(ENOENT, list(file, UINT32_MAX, &listing));
	close(file);
}

static void test_open(void)
{
	struct callgate_handle endless = { .signature = 1 };
	int file = open_gate(O_RDWR), opened = 0;
	uint32_t handle, other;
	uint64_t signature = signature_of(file, "add");

	FAILS(ENOENT, open_call(file, "subtract", signature, &handle));
	FAILS(ENOENT, open_call(file, "", signature, &handle));
	FAILS(ENOENT, open_call(file, "ad", signature, &handle));
	FAILS(ESTALE, open_call(file, "add", signature + 1, &handle));
	memset(endless.name, 'a', sizeof(endless.name));
	FAILS(EINVAL, ioctl(file, CALLGATE_IOC_OPEN, &endless));
	handle = must_open(file, "add");
	other = must_open(file, "add");
	CHECK(handle != other);
	CHECK(!ioctl(file, CALLGATE_IOC_CLOSE, handle));
	FAILS(EBADSLT, ioctl(file, CALLGATE_IOC_CLOSE, handle));
	FAILS(EBADSLT, ioctl(file, CALLGATE_IOC_CLOSE, -1ul));
	CHECK(add(file, handle, 1, 2, &signature) == -EBADSLT);
	CHECK(adds_up(file, other));
	while (!open_call(file, "add", 0xb68bd69f011c6117, &handle))
		opened++;
	CHECK(errno == EMFILE && opened == 1023, "%s after %d", strerrorname(errno), opened);
	close(file);
}

/* --- calls ------------------------------------------------------------------------------------ */

static void test_transports(void)
{
	static const struct {
		const char *name, *counter;
	} ways[] = {
		{ "polled", "polled" }, { "pio", "pio" }, { "mmio", "mmio" }, { "auto", NULL },
	};
	int file = open_gate(O_RDWR);
	uint32_t handle = must_open(file, "add");
	unsigned long long before;
	unsigned int i, calls;

	for (i = 0; i < COUNT(ways); i++) {
		CHECK(!set_attribute("transport", ways[i].name), "%s", ways[i].name);
		before = ways[i].counter ? counter(ways[i].counter) : 0;
		for (calls = 0; calls < 30; calls++)
			CHECK(adds_up(file, handle), "%s", ways[i].name);
		/* With polled, the first one rings, and others where nobody watches any more. */
		if (ways[i].counter)
			CHECK(counter(ways[i].counter) >= before + (i ? 30 : 1), "%s", ways[i].name);
	}
	close(file);
}

static void test_statuses(void)
{
	int file = open_gate(O_RDWR);
	uint32_t adder = must_open(file, "add"), narrow = must_open(file, "narrow");
	uint32_t fail = must_open(file, "fail"), crash = must_open(file, "crash");
	uint32_t echo = must_open(file, "echo"), fill = must_open(file, "fill");
	struct callgate_transfer call;
	uint64_t sum;

	call = transfer(narrow, 1, 300, 0);
	CHECK(!ioctl(file, CALLGATE_IOC_CALL, &call) && call.status == CALLGATE_BAD_VALUE);
	call = transfer(narrow, 1, 255, 0);
	CHECK(!ioctl(file, CALLGATE_IOC_CALL, &call) && !call.status && call.values[0] == 255);
	call = transfer(fail, 1, 0x123456789abcdef0, 0);
	CHECK(!ioctl(file, CALLGATE_IOC_CALL, &call) && call.status == CALLGATE_DEVICE_ERROR &&
	      call.code == 0x123456789abcdef0 && !call.results);
	call = transfer(crash, 0, 0, 0);
	CHECK(!ioctl(file, CALLGATE_IOC_CALL, &call) && call.status == CALLGATE_DEVICE_FAULT);
	call = transfer(echo, 1, 1ull << 32 | 3968, 0);
	CHECK(!ioctl(file, CALLGATE_IOC_CALL, &call) && call.status == CALLGATE_BAD_FRAME);
	/* Root may give an address of its own. */
	call = transfer(fill, 3, 1ull << 60, 16);
	CHECK(!ioctl(file, CALLGATE_IOC_CALL, &call) && call.status == CALLGATE_BAD_BUFFER, "%u",
	      call.status);
	call = transfer(adder, 1, 2, 40);
	FAILS(EINVAL, ioctl(file, CALLGATE_IOC_CALL, &call));
	call = transfer(adder, 200, 2, 40);
	FAILS(EINVAL, ioctl(file, CALLGATE_IOC_CALL, &call));

	control(DENY);
	CHECK(add(file, adder, 2, 40, &sum) == CALLGATE_DENIED);
	control(ALLOW);
	control(LIMIT);
	CHECK(adds_up(file, adder));
	CHECK(add(file, adder, 2, 40, &sum) == CALLGATE_BUSY);
	control(UNLIMIT);
	control(REVOKE);
	CHECK(add(file, adder, 2, 40, &sum) == -ENOTCONN);
	control(BIND);
	CHECK(adds_up(file, adder));
	control(REBIND);
	CHECK(adds_up(file, adder));
	control(ESTRANGE);
	CHECK(add(file, adder, 2, 40, &sum) == -ESTALE);
	control(RECONCILE);
	CHECK(adds_up(file, adder));
	close(file);
}

static void test_twelve(void)
{
	int file = open_gate(O_RDWR);
	struct callgate_transfer call = transfer(must_open(file, "turn"), 12, 0, 0);
	unsigned int i;

	for (i = 0; i < 12; i++)
		call.values[i] = 100 + i;
	CHECK(!ioctl(file, CALLGATE_IOC_CALL, &call) && !call.status && call.results == 12);
	for (i = 0; i < 12; i++)
		CHECK(call.values[i] == 100 + (i + 1) % 12, "%u: %llu", i, call.values[i]);
	close(file);
}

static int echo(int file, uint32_t handle, const void *in, uint32_t length, void *out,
		uint32_t room, struct callgate_transfer *call)
{
	*call = transfer(handle, 1, (uint64_t)length << 32, 0);
	call->in = (uintptr_t)in;
	call->in_length = length;
	call->out = (uintptr_t)out;
	call->out_length = room;
	return ioctl(file, CALLGATE_IOC_CALL, call);
}

static void test_payload(void)
{
	static const uint32_t sizes[] = { 0, 1, 7, 8, 9, 100, 3967, 3968 };
	static unsigned char in[4096], out[4096];
	int file = open_gate(O_RDWR);
	uint32_t handle = must_open(file, "echo");
	struct callgate_transfer call;
	unsigned int i, at;

	for (i = 0; i < COUNT(sizes); i++) {
		for (at = 0; at < sizes[i]; at++)
			in[at] = at * 7 + i;
		memset(out, 0xee, sizeof(out));
		CHECK(!echo(file, handle, in, sizes[i], out, sizes[i], &call) && !call.status,
		      "%u: %s", sizes[i], strerrorname(errno));
		CHECK(call.results == 1 && call.values[0] == (uint64_t)sizes[i] << 32, "%llx",
		      call.values[0]);
		CHECK(!memcmp(in, out, sizes[i]) && out[sizes[i]] == 0xee, "%u", sizes[i]);
	}
	/* Too little room: what fits, and the length. */
	memset(out, 0xee, sizeof(out));
	CHECK(!echo(file, handle, in, 100, out, 10, &call) && call.values[0] == 100ull << 32);
	CHECK(!memcmp(in, out, 10) && out[10] == 0xee);
	FAILS(EMSGSIZE, echo(file, handle, in, 3969, out, 10, &call));
	FAILS(EFAULT, echo(file, handle, (void *)8, 16, out, 16, &call));
	FAILS(EFAULT, echo(file, handle, in, 16, (void *)8, 16, &call));
	FAILS(EINVAL, echo(file, must_open(file, "narrow"), in, 1, out, 1, &call));
	CHECK(!echo(file, handle, in, 8, out, 8, &call) && !call.status);
	close(file);
}

/* What one file's calls leave in a frame is not for another's eyes. */
static void test_secret(void)
{
	static unsigned char in[3968], out[3968], zeros[3968];
	int mine = open_gate(O_RDWR), other = open_gate(O_RDWR);
	struct callgate_transfer call;
	cpu_set_t one;
	uint32_t handle;

	/* One processor: the same frame again. */
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	sched_setaffinity(0, sizeof(one), &one);
	memset(in, 0x5a, sizeof(in));
	handle = must_open(mine, "echo");
	CHECK(!echo(mine, handle, in, sizeof(in), out, sizeof(out), &call) && !call.status);
	handle = must_open(other, "echo");
	/* All of the payload, of which nothing was given. */
	call = transfer(handle, 1, (uint64_t)sizeof(out) << 32, 0);
	call.out = (uintptr_t)out;
	call.out_length = sizeof(out);
	CHECK(!ioctl(other, CALLGATE_IOC_CALL, &call) && !call.status, "%s, status %u",
	      strerrorname(errno), call.status);
	CHECK(!memcmp(out, zeros, sizeof(out)));
	CPU_ZERO(&one);
	for (handle = 0; handle < 8; handle++)
		CPU_SET(handle, &one);
	sched_setaffinity(0, sizeof(one), &one);
	close(mine);
	close(other);
}

/* --- buffers ---------------------------------------------------------------------------------- */

static int with_buffer(int file, uint32_t handle, unsigned int arguments, void *memory,
		       uint32_t length, unsigned int flags, uint64_t last,
		       struct callgate_transfer *call)
{
	struct callgate_buffer buffer = {
		.address = (uintptr_t)memory,
		.length = length,
		.slot = 0,
		.flags = flags,
	};

	*call = transfer(handle, arguments, 0, 0);
	call->values[2] = last;
	call->buffers = (uintptr_t)&buffer;
	call->buffer_count = 1;
	return ioctl(file, CALLGATE_IOC_CALL, call);
}

static void test_buffers(void)
{
	static unsigned char memory[1 << 20];
	const uint32_t length = sizeof(memory) - 3;
	int file = open_gate(O_RDWR);
	uint32_t sum = must_open(file, "sum"), fill = must_open(file, "fill");
	uint32_t flip = must_open(file, "flip"), adder = must_open(file, "add");
	struct callgate_transfer call;
	uint64_t expected = 0;
	uint32_t i, bad = 0;

	for (i = 0; i < length; i++)
		expected += memory[i] = i * 31 >> 3;
	CHECK(!with_buffer(file, sum, 2, memory, length, CALLGATE_BUFFER_IN, 0, &call) &&
	      !call.status && call.values[0] == expected, "%s, status %u", strerrorname(errno),
	      call.status);
	CHECK(!with_buffer(file, flip, 3, memory, length,
			   CALLGATE_BUFFER_IN | CALLGATE_BUFFER_OUT, 0x5a, &call) && !call.status,
	      "%s, status %u", strerrorname(errno), call.status);
	for (i = 0; i < length; i++)
		bad += memory[i] != ((unsigned char)(i * 31 >> 3) ^ 0x5a);
	CHECK(!bad && !memory[length], "%u", bad);
	CHECK(!with_buffer(file, fill, 3, memory, length, CALLGATE_BUFFER_OUT, 0x77, &call) &&
	      !call.status);
	for (i = 0, bad = 0; i < length; i++)
		bad += memory[i] != 0x77;
	CHECK(!bad && !memory[length], "%u", bad);
	CHECK(!with_buffer(file, sum, 2, memory, 0, CALLGATE_BUFFER_IN, 0, &call) &&
	      !call.status && !call.values[0], "%s, status %u", strerrorname(errno), call.status);

	FAILS(EINVAL, with_buffer(file, sum, 2, memory, 8, 0, 0, &call));
	FAILS(EINVAL, with_buffer(file, sum, 2, memory, 8, 4, 0, &call));
	FAILS(EINVAL, with_buffer(file, adder, 2, memory, 8, CALLGATE_BUFFER_IN, 0, &call));
	FAILS(EMSGSIZE, with_buffer(file, sum, 2, memory, (4 << 20) + 1, CALLGATE_BUFFER_IN, 0,
				    &call));
	FAILS(EFAULT, with_buffer(file, sum, 2, (void *)8, 8, CALLGATE_BUFFER_IN, 0, &call));
	FAILS(EFAULT, with_buffer(file, fill, 3, (void *)8, 8, CALLGATE_BUFFER_OUT, 0, &call));
	call = transfer(sum, 2, 0, 0);
	call.buffer_count = 7;
	FAILS(EINVAL, ioctl(file, CALLGATE_IOC_CALL, &call));
	call.buffer_count = 1;
	FAILS(EFAULT, ioctl(file, CALLGATE_IOC_CALL, &call));
	close(file);
}

/* Who is not root can use what root opened, or let him open; but gives no addresses of his own. */
static void test_permissions(void)
{
	char path[64];
	pid_t child;
	int status;

	snprintf(path, sizeof(path), "/dev/%s", gate_name());
	child = fork();
	if (!child) {
		unsigned char memory[64] = { 1, 2, 3 };
		int inherited = open_gate(O_RDWR), file;
		struct callgate_transfer call;
		uint32_t sum, fill;

		failures = 0;
		if (setgid(65534) || setuid(65534))
			_exit(99);
		FAILS(EACCES, open(path, O_RDWR));
		FAILS(EACCES, open(path, O_RDONLY));
		file = inherited;
		sum = must_open(file, "sum");
		fill = must_open(file, "fill");
		CHECK(adds_up(file, must_open(file, "add")));
		CHECK(!with_buffer(file, sum, 2, memory, 3, CALLGATE_BUFFER_IN, 0, &call) &&
		      !call.status && call.values[0] == 6);
		/* Another direction than the call's would let the device write what it reads. */
		FAILS(EPERM, with_buffer(file, sum, 2, memory, 3, CALLGATE_BUFFER_OUT, 0, &call));
		FAILS(EPERM, with_buffer(file, fill, 3, memory, 3, CALLGATE_BUFFER_IN, 0, &call));
		call = transfer(fill, 3, 0x1000, 16);
		FAILS(EPERM, ioctl(file, CALLGATE_IOC_CALL, &call));
		fflush(stdout);
		_exit(failures);
	}
	waitpid(child, &status, 0);
	CHECK(WIFEXITED(status) && !WEXITSTATUS(status), "%x", status);
}

static void test_modes(void)
{
	int reader = open_gate(O_RDONLY), writer = open_gate(O_WRONLY);
	struct callgate_listing listing;
	struct callgate_info info;
	uint32_t handle;
	uint64_t sum;

	CHECK(!ioctl(reader, CALLGATE_IOC_INFO, &info));
	FAILS(EBADF, ioctl(writer, CALLGATE_IOC_INFO, &info));
	FAILS(EBADF, list(writer, 0, &listing));
	FAILS(EBADF, open_call(reader, "add", signature_of(reader, "add"), &handle));
	CHECK(add(reader, 0, 1, 2, &sum) == -EBADF);
	FAILS(EBADF, ioctl(reader, CALLGATE_IOC_CLOSE, 0));
	CHECK(!open_call(writer, "add", signature_of(reader, "add"), &handle));
	CHECK(adds_up(writer, handle));
	FAILS(EINVAL, read(reader, &info, sizeof(info)));
	FAILS(EINVAL, write(writer, &info, sizeof(info)));
	FAILS(ESPIPE, lseek(reader, 0, SEEK_SET));
	FAILS(ENODEV, mmap(NULL, 4096, PROT_READ, MAP_SHARED, reader, 0) == MAP_FAILED ? -1 : 0);
	close(reader);
	close(writer);
}

/* --- what takes long -------------------------------------------------------------------------- */

/* Whether the calls `hold` are answered only when they are let go: past all drivers. */
static void set_holding(uint32_t holding)
{
	int file = open(PCI "/resource0", O_RDWR | O_SYNC | O_CLOEXEC);
	volatile uint32_t *registers;

	CHECK(file >= 0, "%s", strerrorname(errno));
	registers = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	CHECK(registers != MAP_FAILED, "%s", strerrorname(errno));
	if (registers != MAP_FAILED) {
		registers[0] = holding;
		/* Writes are posted, and a frame that is watched would overtake this one. */
		CHECK(registers[0] == holding);
		munmap((void *)registers, 4096);
	}
	close(file);
}

static void release(void)
{
	set_holding(0);
}

/* The device watches for a while after a call: what follows at once does not hold up the guest. */
static void be_watched(int file)
{
	uint32_t handle = must_open(file, "add");
	unsigned long long before;
	unsigned int tries;

	for (tries = 0; tries < 100; tries++) {
		before = counter("polled");
		CHECK(adds_up(file, handle));
		if (counter("polled") > before)
			break;
	}
	CHECK(tries < 100);
	ioctl(file, CALLGATE_IOC_CLOSE, handle);
}

static void test_long(void)
{
	int file = open_gate(O_RDWR);
	uint32_t handle = must_open(file, "slow");
	struct callgate_transfer call = transfer(handle, 1, 60, 0);
	unsigned long long interrupts = counter("interrupts"), slept = counter("slept");

	be_watched(file);
	call.flags = CALLGATE_TRANSFER_LONG;
	CHECK(!ioctl(file, CALLGATE_IOC_CALL, &call) && !call.status && call.values[0] == 60);
	CHECK(counter("interrupts") > interrupts && counter("slept") > slept, "%llu, %llu",
	      counter("interrupts"), counter("slept"));
	/* Without it, the answer is looked for. */
	be_watched(file);
	call = transfer(handle, 1, 30, 0);
	CHECK(!ioctl(file, CALLGATE_IOC_CALL, &call) && !call.status && call.values[0] == 30);
	call = transfer(handle, 1, 1, 0);
	call.flags = 2;
	FAILS(EINVAL, ioctl(file, CALLGATE_IOC_CALL, &call));
	close(file);
}

static void test_timeout(void)
{
	int file = open_gate(O_RDWR);
	uint32_t handle = must_open(file, "slow");
	struct callgate_transfer call = transfer(handle, 1, 150, 0);
	unsigned long long timeouts = counter("timeouts");
	double began;

	be_watched(file);
	call.timeout_ms = 20;
	began = now();
	FAILS(ETIMEDOUT, ioctl(file, CALLGATE_IOC_CALL, &call));
	CHECK(now() - began >= 0.02 && counter("timeouts") == timeouts + 1);
	/* The device still has that frame; there are others. */
	CHECK(adds_up(file, must_open(file, "add")));
	close(file);
}

static void test_submit(void)
{
	int file = open_gate(O_RDWR);
	uint32_t hold = must_open(file, "hold"), adder = must_open(file, "add"), cookies[8];
	struct pollfd poller = { .fd = file, .events = POLLIN };
	struct callgate_transfer call;
	unsigned int i;

	/* Answers in another order than they are asked for. */
	be_watched(file);
	for (i = 0; i < COUNT(cookies); i++) {
		call = transfer(adder, 2, i, 1000);
		CHECK(!ioctl(file, CALLGATE_IOC_SUBMIT, &call), "%s", strerrorname(errno));
		cookies[i] = call.cookie;
	}
	/* All frames are taken by answers that nobody asked for yet: they make room. */
	CHECK(adds_up(file, adder));
	for (i = COUNT(cookies); i--;) {
		call = (struct callgate_transfer){ .cookie = cookies[i] };
		CHECK(!ioctl(file, CALLGATE_IOC_WAIT, &call) && !call.status &&
		      call.values[0] == 1000 + i, "%u: %s, status %u, %llu", i, strerrorname(errno),
		      call.status, call.values[0]);
		FAILS(EBADSLT, ioctl(file, CALLGATE_IOC_WAIT, &call));
	}

	set_holding(1);
	be_watched(file);
	call = transfer(hold, 1, 10000, 0);
	call.flags = CALLGATE_TRANSFER_LONG;
	CHECK(!ioctl(file, CALLGATE_IOC_SUBMIT, &call));
	CHECK(!poll(&poller, 1, 0));
	call.timeout_ms = 10;
	FAILS(ETIMEDOUT, ioctl(file, CALLGATE_IOC_WAIT, &call));
	release();
	CHECK(poll(&poller, 1, 5000) == 1 && poller.revents == POLLIN, "%x", poller.revents);
	CHECK(!ioctl(file, CALLGATE_IOC_WAIT, &call) && !call.status && call.values[0] == 10000);
	CHECK(!poll(&poller, 1, 0));

	/* Revoked on the way: looked up again when it is waited for. */
	control(REVOKE);
	call = transfer(adder, 2, 5, 6);
	CHECK(!ioctl(file, CALLGATE_IOC_SUBMIT, &call), "%s", strerrorname(errno));
	control(BIND);
	CHECK(!ioctl(file, CALLGATE_IOC_WAIT, &call) && !call.status && call.values[0] == 11,
	      "%s, status %u, %llu", strerrorname(errno), call.status, call.values[0]);

	/* Closed with a call on its way. */
	set_holding(1);
	be_watched(file);
	call = transfer(hold, 1, 10000, 0);
	CHECK(!ioctl(file, CALLGATE_IOC_SUBMIT, &call));
	close(file);
	release();
}

static void on_alarm(int signal)
{
	(void)signal;
}

static void test_signals(void)
{
	struct sigaction action = { .sa_handler = on_alarm };
	int file = open_gate(O_RDWR), status;
	uint32_t slow = must_open(file, "slow"), hold = must_open(file, "hold");
	struct callgate_transfer call;
	unsigned long long parked;
	pid_t child;
	double began;

	/* WAIT is interrupted, and may be repeated. */
	sigaction(SIGALRM, &action, NULL);
	set_holding(1);
	be_watched(file);
	call = transfer(hold, 1, 10000, 0);
	CHECK(!ioctl(file, CALLGATE_IOC_SUBMIT, &call));
	ualarm(30000, 0);
	FAILS(EINTR, ioctl(file, CALLGATE_IOC_WAIT, &call));
	release();
	CHECK(!ioctl(file, CALLGATE_IOC_WAIT, &call) && !call.status);

	/* CALL is not, since nobody could tell whether it ran. */
	be_watched(file);
	call = transfer(slow, 1, 60, 0);
	ualarm(20000, 0);
	CHECK(!ioctl(file, CALLGATE_IOC_CALL, &call) && !call.status, "%s", strerrorname(errno));

	/* But it can be killed. */
	parked = counter("parked");
	set_holding(1);
	be_watched(file);
	child = fork();
	if (!child) {
		call = transfer(hold, 1, 10000, 0);
		ioctl(file, CALLGATE_IOC_CALL, &call);
		_exit(0);
	}
	nap(50);
	began = now();
	kill(child, SIGKILL);
	waitpid(child, &status, 0);
	CHECK(WIFSIGNALED(status) && now() - began < 5, "%x after %f s", status, now() - began);
	CHECK(counter("parked") > parked);
	release();
	CHECK(adds_up(file, must_open(file, "add")));
	close(file);
}

static void test_limit(void)
{
	int file = open_gate(O_RDWR), second = open_gate(O_RDWR);
	uint32_t adder = must_open(file, "add");
	struct callgate_transfer call;
	unsigned int i;
	uint64_t sum;
	char saved[32];

	snprintf(saved, sizeof(saved), "%s", attribute("max_pending"));
	set_attribute("max_pending", "3");
	for (i = 0; i < 3; i++) {
		call = transfer(adder, 2, i, 1);
		CHECK(!ioctl(file, CALLGATE_IOC_SUBMIT, &call), "%s", strerrorname(errno));
	}
	FAILS(EDQUOT, ioctl(file, CALLGATE_IOC_SUBMIT, &call));
	CHECK(add(file, adder, 1, 2, &sum) == -EDQUOT);
	CHECK(adds_up(second, must_open(second, "add")));
	CHECK(!ioctl(file, CALLGATE_IOC_WAIT, &call));
	CHECK(adds_up(file, adder));
	set_attribute("max_pending", saved);
	close(file);
	close(second);
}

static void test_no_frames(void)
{
	int file = open_gate(O_RDWR), hasty = open_gate(O_RDWR | O_NONBLOCK);
	uint32_t hold = must_open(file, "hold"), adder = must_open(file, "add");
	uint32_t theirs = must_open(hasty, "add"), cookies[8];
	unsigned long long waits = counter("frame_waits");
	struct callgate_transfer call;
	unsigned int i;
	uint64_t sum;

	CHECK(adds_up(hasty, theirs));
	set_holding(1);
	be_watched(file);
	for (i = 0; i < COUNT(cookies); i++) {
		call = transfer(hold, 1, i ? 1 : 10000, 0);
		CHECK(!ioctl(file, CALLGATE_IOC_SUBMIT, &call), "%s", strerrorname(errno));
		cookies[i] = call.cookie;
	}
	CHECK(add(hasty, theirs, 1, 2, &sum) == -EAGAIN);
	call = transfer(adder, 2, 1, 2);
	call.timeout_ms = 5;
	FAILS(ETIMEDOUT, ioctl(file, CALLGATE_IOC_CALL, &call));
	release();
	CHECK(adds_up(file, adder));
	CHECK(counter("frame_waits") > waits);
	for (i = 0; i < COUNT(cookies); i++) {
		call = (struct callgate_transfer){ .cookie = cookies[i] };
		CHECK(!ioctl(file, CALLGATE_IOC_WAIT, &call) &&
		      call.values[0] == (i ? 1 : 10000));
	}
	close(file);
	close(hasty);
}

/* --- one-way ---------------------------------------------------------------------------------- */

static uint64_t pings(int file)
{
	struct callgate_transfer call = transfer(must_open(file, "pings"), 0, 0, 0);

	CHECK(!ioctl(file, CALLGATE_IOC_CALL, &call) && !call.status);
	return call.values[0];
}

static void test_one_way(void)
{
	int file = open_gate(O_RDWR);
	uint32_t ping = must_open(file, "ping"), step = must_open(file, "step");
	struct callgate_transfer call;
	uint64_t before = pings(file), tries;
	unsigned int i;

	CHECK(!ioctl(file, CALLGATE_IOC_NOTIFY, ping), "%s", strerrorname(errno));
	for (i = 0; i < 20; i++) { /* more than there are frames */
		call = transfer(step, 1, 10, 0);
		CHECK(!ioctl(file, CALLGATE_IOC_POST, &call), "%s", strerrorname(errno));
	}
	call = transfer(ping, 0, 0, 0);
	CHECK(!ioctl(file, CALLGATE_IOC_CALL, &call) && !call.status);
	for (tries = 0; pings(file) != before + 202 && tries < 1000; tries++)
		nap(1);
	CHECK(pings(file) == before + 202, "%llu", (unsigned long long)(pings(file) - before));
	FAILS(EINVAL, ioctl(file, CALLGATE_IOC_NOTIFY, step));
	FAILS(EINVAL, ioctl(file, CALLGATE_IOC_NOTIFY, must_open(file, "pings")));
	FAILS(EBADSLT, ioctl(file, CALLGATE_IOC_NOTIFY, 1000));
	FAILS(EBADSLT, ioctl(file, CALLGATE_IOC_NOTIFY, -1ul));
	close(file);
}

/* --- changes ---------------------------------------------------------------------------------- */

static void test_poll(void)
{
	int file = open_gate(O_RDWR), change = open(attribute_path("generation"), O_RDONLY);
	struct pollfd pollers[] = {
		{ .fd = file, .events = POLLPRI },
		{ .fd = change, .events = POLLPRI },
	};
	struct callgate_info info;
	uint32_t before;
	char text[32];

	CHECK(!ioctl(file, CALLGATE_IOC_INFO, &info));
	before = info.generation;
	CHECK(read(change, text, sizeof(text)) > 0);
	CHECK(!poll(pollers, 2, 0), "%x %x", pollers[0].revents, pollers[1].revents);
	control(REBIND);
	CHECK(poll(&pollers[0], 1, 2000) == 1 && pollers[0].revents == POLLPRI, "%x",
	      pollers[0].revents);
	CHECK(poll(&pollers[1], 1, 2000) == 1 && pollers[1].revents & POLLPRI, "%x",
	      pollers[1].revents);
	CHECK(!ioctl(file, CALLGATE_IOC_INFO, &info) && info.generation != before);
	/* A rebinding is two changes, and the second may be noticed after the first was taken in. */
	if (poll(&pollers[0], 1, 50))
		CHECK(!ioctl(file, CALLGATE_IOC_INFO, &info), "%s", strerrorname(errno));
	CHECK(!poll(&pollers[0], 1, 50), "%x", pollers[0].revents);
	close(file);
	close(change);
}

static volatile int stop;

static void *call_on(void *unused)
{
	int file = open_gate(O_RDWR), status;
	uint32_t handle = must_open(file, "add");
	unsigned long made = 0, i;
	uint64_t sum;

	(void)unused;
	for (i = 0; !stop; i++) {
		status = add(file, handle, i, 7, &sum);
		/* While the host has it revoked, it is not bound, or drains. */
		if (status == -ENOTCONN || status == CALLGATE_BUSY)
			continue;
		CHECK(!status && sum == i + 7, "%d", status);
		made++;
	}
	close(file);
	return (void *)made;
}

static void test_rebinding(void)
{
	unsigned long long lookups = counter("lookups");
	pthread_t threads[4];
	unsigned long made;
	unsigned int i;

	stop = 0;
	for (i = 0; i < COUNT(threads); i++)
		pthread_create(&threads[i], NULL, call_on, NULL);
	for (i = 0; i < 40; i++) {
		control(REBIND);
		nap(2);
	}
	stop = 1;
	for (i = 0; i < COUNT(threads); i++) {
		pthread_join(threads[i], (void **)&made);
		CHECK(made > 10, "%lu", made);
	}
	CHECK(counter("lookups") > lookups);
}

/* --- nonsense --------------------------------------------------------------------------------- */

static void test_ioctls(void)
{
	struct { struct callgate_info info; uint32_t later[4]; } longer = { 0 };
	struct { struct callgate_transfer call; uint64_t later; } more = { 0 };
	int file = open_gate(O_RDWR);
	uint32_t handle = must_open(file, "add");

	FAILS(ENOTTY, ioctl(file, _IO('T', 1), 0));
	FAILS(ENOTTY, ioctl(file, _IO(CALLGATE_IOC_MAGIC, 0x09), 0));
	FAILS(ENOTTY, ioctl(file, _IOR(CALLGATE_IOC_MAGIC, 0x00, uint32_t), &longer));
	FAILS(ENOTTY, ioctl(file, _IOW(CALLGATE_IOC_MAGIC, 0x00, longer), &longer));
	FAILS(ENOTTY, ioctl(file, _IOW(CALLGATE_IOC_MAGIC, 0x03, uint32_t), &handle));
	FAILS(EFAULT, ioctl(file, CALLGATE_IOC_INFO, NULL));
	FAILS(EFAULT, ioctl(file, CALLGATE_IOC_CALL, NULL));
	FAILS(EFAULT, ioctl(file, CALLGATE_IOC_OPEN, -4096l));
	FAILS(EFAULT, ioctl(file, CALLGATE_IOC_WAIT, 8));
	/* A later kernel's structures. */
	memset(longer.later, 0x11, sizeof(longer.later));
	CHECK(!ioctl(file, _IOR(CALLGATE_IOC_MAGIC, 0x00, longer), &longer));
	CHECK(longer.info.frames == 8 && longer.later[0] == 0x11111111);
	more.call = transfer(handle, 2, 2, 40);
	CHECK(!ioctl(file, _IOWR(CALLGATE_IOC_MAGIC, 0x04, more), &more) &&
	      more.call.values[0] == 42);
	more.call = transfer(handle, 2, 2, 40);
	more.later = 1;
	FAILS(E2BIG, ioctl(file, _IOWR(CALLGATE_IOC_MAGIC, 0x04, more), &more));
	close(file);
}

static uint64_t random_state = 0x5eed;

static uint64_t random64(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

/* Whatever bytes a program gives: the kernel lives, and so does the gate. */
static void test_random_ioctls(void)
{
	static const unsigned int commands[] = {
		CALLGATE_IOC_INFO, CALLGATE_IOC_LIST, CALLGATE_IOC_OPEN, CALLGATE_IOC_CLOSE,
		CALLGATE_IOC_CALL, CALLGATE_IOC_SUBMIT, CALLGATE_IOC_WAIT, CALLGATE_IOC_POST,
		CALLGATE_IOC_NOTIFY,
	};
	static uint64_t memory[512];
	int file = open_gate(O_RDWR);
	uint32_t handles[3];
	unsigned int i, word, command;

	handles[0] = must_open(file, "echo");
	handles[1] = must_open(file, "add");
	handles[2] = must_open(file, "sum");
	for (i = 0; i < 3000; i++) {
		struct callgate_transfer call = { 0 };
		uint64_t *words = (uint64_t *)&call;

		command = commands[random64() % COUNT(commands)];
		for (word = 0; word < sizeof(call) / 8; word++)
			words[word] = random64() >> random64() % 64;
		/* Half of the time something that gets further. */
		if (random64() & 1) {
			call.handle = handles[random64() % COUNT(handles)];
			call.flags = random64() & 1;
			call.arguments = random64() % 4;
			call.buffer_count = random64() % 3;
			call.in_length = random64() % 5000;
			call.out_length = random64() % 5000;
			call.in = (uintptr_t)memory + random64() % 64;
			call.out = (uintptr_t)memory + random64() % 64;
			call.buffers = (uintptr_t)memory;
		}
		call.timeout_ms = 1 + random64() % 20;
		for (word = 0; word < 8; word++)
			memory[word] = random64() >> random64() % 64;
		ioctl(file, command, &call);
		ioctl(file, random64() & 0xffff00ff, &call);
	}
	close(file);
	file = open_gate(O_RDWR);
	CHECK(adds_up(file, must_open(file, "add")));
	close(file);
}

static void test_processes(void)
{
	const unsigned int processes = atoi(getenv("PROCESSES") ?: "1000");
	unsigned int running = 0, i;
	int status, bad = 0;

	for (i = 0; i < processes || running; ) {
		if (i < processes && running < 200) {
			pid_t child = fork();

			if (!child) {
				int file = open_gate(O_RDWR);
				uint32_t handle;
				uint64_t sum = 0;

				_exit(open_call(file, "add", 0xb68bd69f011c6117, &handle) ||
				      add(file, handle, i, 1, &sum) || sum != i + 1);
			}
			CHECK(child > 0, "%s", strerrorname(errno));
			i++;
			running++;
			continue;
		}
		wait(&status);
		running--;
		bad += status != 0;
	}
	CHECK(!bad, "%d", bad);
}

/* --- the end of a device, at any moment ------------------------------------------------------- */

struct in_flight {
	pthread_t thread;
	int file;
	uint32_t handle;
	uint32_t flags;
	uint32_t ms;
	int error;
	double took;
};

static void *fly(void *data)
{
	struct in_flight *flight = data;
	struct callgate_transfer call = transfer(flight->handle, 1, flight->ms, 0);
	double began = now();

	call.flags = flight->flags;
	flight->error = ioctl(flight->file, CALLGATE_IOC_CALL, &call) ? errno : 0;
	flight->took = now() - began;
	return NULL;
}

/*
 * Calls in flight, which wait in several ways, and one that nobody waits for. The device holds them
 * for @ms, one after the other.
 */
static void take_off(struct in_flight *flights, unsigned int count, uint32_t ms)
{
	struct callgate_transfer call;
	unsigned int i;

	for (i = 0; i < count; i++) {
		flights[i].file = open_gate(O_RDWR);
		flights[i].handle = must_open(flights[i].file, "hold");
		flights[i].ms = ms;
		flights[i].flags = i & 1 ? CALLGATE_TRANSFER_LONG : 0;
	}
	set_holding(1);
	be_watched(flights[0].file);
	for (i = 0; i < count; i++)
		pthread_create(&flights[i].thread, NULL, fly, &flights[i]);
	nap(30);
	call = transfer(flights[0].handle, 1, 1, 0);
	CHECK(!ioctl(flights[0].file, CALLGATE_IOC_SUBMIT, &call), "%s", strerrorname(errno));
}

static void land(struct in_flight *flights, unsigned int count, int error)
{
	unsigned int i;

	for (i = 0; i < count; i++) {
		pthread_join(flights[i].thread, NULL);
		CHECK(flights[i].error == error, "%u: %s after %f s", i,
		      strerrorname(flights[i].error), flights[i].took);
	}
}

/* A file whose device has gone. */
static void is_dead(int file)
{
	struct pollfd poller = { .fd = file, .events = POLLIN | POLLPRI };
	struct callgate_transfer call = { 0 };
	struct callgate_listing listing;
	struct callgate_info info;
	uint64_t sum;

	CHECK(poll(&poller, 1, 0) == 1 && poller.revents & POLLHUP, "%x", poller.revents);
	FAILS(ENODEV, list(file, 0, &listing));
	CHECK(!ioctl(file, CALLGATE_IOC_INFO, &info));
	sum = add(file, 0, 1, 2, &sum);
	CHECK((int)sum == -ENODEV || (int)sum == -EINVAL, "%d", (int)sum);
	FAILS(ENODEV, ioctl(file, CALLGATE_IOC_WAIT, &call));
	close(file);
}

static void wait_for_gate(void)
{
	unsigned int tries;

	for (tries = 0; !gate_name() && tries < 1000; tries++)
		nap(5);
	CHECK(gate_name());
	nap(5);
}

static void test_unbind_in_flight(void)
{
	struct in_flight flights[3];
	unsigned int i;

	take_off(flights, COUNT(flights), 10000);
	CHECK(!put(DRIVER "/unbind", ADDRESS));
	land(flights, COUNT(flights), ENODEV);
	for (i = 0; i < COUNT(flights); i++)
		CHECK(flights[i].took < 9, "%f", flights[i].took);
	is_dead(flights[0].file);
	release();
	CHECK(!put(DRIVER "/bind", ADDRESS));
	wait_for_gate();
	/* Closed only now. */
	close(flights[1].file);
	close(flights[2].file);
	i = open_gate(O_RDWR);
	CHECK(adds_up(i, must_open(i, "add")));
	close(i);
}

static void test_remove_in_flight(void)
{
	struct in_flight flights[2];
	int file;

	take_off(flights, COUNT(flights), 10000);
	CHECK(!put(PCI "/remove", "1"));
	land(flights, COUNT(flights), ENODEV);
	is_dead(flights[0].file);
	close(flights[1].file);
	CHECK(!put("/sys/bus/pci/rescan", "1"));
	wait_for_gate();
	release();
	file = open_gate(O_RDWR);
	CHECK(adds_up(file, must_open(file, "add")));
	close(file);
}

static void test_reset_in_flight(void)
{
	struct in_flight flights[2];
	uint32_t handle;
	unsigned int i;

	for (i = 0; i < 2; i++) {
		/* The device ends it by itself: until then it puts the reset off. */
		take_off(flights, COUNT(flights), 900);
		handle = must_open(flights[0].file, "add");
		CHECK(!put(PCI "/reset", "1"), "%s", strerrorname(errno));
		land(flights, COUNT(flights), EIO);
		/* The same files and handles work on. */
		CHECK(adds_up(flights[0].file, handle));
		CHECK(adds_up(flights[1].file, must_open(flights[1].file, "add")));
		close(flights[0].file);
		close(flights[1].file);
	}
}

static void *call_through(void *unused)
{
	int file = open_gate(O_RDWR), status;
	uint32_t handle = must_open(file, "add");
	uint64_t sum, i;

	(void)unused;
	for (i = 0; !stop; i++) {
		status = add(file, handle, i, 7, &sum);
		CHECK(status == -EIO || status == CALLGATE_BUSY || (!status && sum == i + 7),
		      "%d", status);
	}
	CHECK(adds_up(file, handle));
	close(file);
	return NULL;
}

/* Resets while several call: each call ends, with an answer or an error. */
static void test_resets(void)
{
	pthread_t threads[3];
	unsigned int i;

	stop = 0;
	for (i = 0; i < COUNT(threads); i++)
		pthread_create(&threads[i], NULL, call_through, NULL);
	for (i = 0; i < 10; i++) {
		CHECK(!put(PCI "/reset", "1"));
		nap(5);
	}
	stop = 1;
	for (i = 0; i < COUNT(threads); i++)
		pthread_join(threads[i], NULL);
}

/*
 * To sleep and back; the clock wakes the machine up. Where that is to RAM ("deep"), QEMU resets the
 * device. Where it stops the processors alone ("s2idle"), the device works on.
 */
static void test_suspend(void)
{
	char depths[64];
	int file = open_gate(O_RDWR);
	uint32_t adder = must_open(file, "add"), hold = must_open(file, "hold");
	struct callgate_transfer call;

	/* Nobody would wake it up. */
	if (access("/sys/class/rtc/rtc0/wakealarm", W_OK))
		return;
	set_holding(1);
	be_watched(file);
	call = transfer(hold, 1, 500, 0);
	CHECK(!ioctl(file, CALLGATE_IOC_SUBMIT, &call), "%s", strerrorname(errno));
	/* An alarm that comes before it sleeps would wake nobody up. */
	CHECK(!put("/sys/class/rtc/rtc0/wakealarm", "+6"));
	CHECK(!put("/sys/power/state", "mem"));
	CHECK(!get("/sys/power/mem_sleep", depths, sizeof(depths)));
	if (strstr(depths, "[deep]"))
		FAILS(EIO, ioctl(file, CALLGATE_IOC_WAIT, &call));
	else
		CHECK(!ioctl(file, CALLGATE_IOC_WAIT, &call) && call.status == CALLGATE_OK,
		      "%s", strerrorname(errno));
	CHECK(adds_up(file, adder));
	close(file);
	test_long();
	test_poll();
}

static void test_binding(void)
{
	int file;
	unsigned int i;

	for (i = 0; i < 100; i++) {
		if (put(DRIVER "/unbind", ADDRESS) || put(DRIVER "/bind", ADDRESS))
			break;
	}
	CHECK(i == 100, "%u", i);
	wait_for_gate();
	file = open_gate(O_RDWR);
	CHECK(adds_up(file, must_open(file, "add")));
	close(file);
}

/* A gate with an id that nobody knows, in slot 2; a device without a gate, in slot 3. */
static void test_ids(void)
{
	const char *const other = "/sys/bus/pci/devices/0000:00:02.0";
	const char *const plain = "/sys/bus/pci/devices/0000:00:03.0";
	char path[128];

	snprintf(path, sizeof(path), "%s/driver", plain);
	CHECK(access(path, F_OK), "a device without a gate has a driver");
	snprintf(path, sizeof(path), "%s/driver", other);
	CHECK(access(path, F_OK), "an unknown id has a driver");

	CHECK(!put(DRIVER "/new_id", "1af4 10e0"));
	snprintf(path, sizeof(path), "%s/callgate", other);
	CHECK(!access(path, F_OK), "new_id");
	CHECK(!put(DRIVER "/unbind", "0000:00:02.0"));
	CHECK(!put(DRIVER "/remove_id", "1af4 10e0"));
	CHECK(put(DRIVER "/bind", "0000:00:02.0") == ENODEV);

	snprintf(path, sizeof(path), "%s/driver_override", other);
	CHECK(!put(path, "callgate_pci"));
	CHECK(!put("/sys/bus/pci/drivers_probe", "0000:00:02.0"));
	snprintf(path, sizeof(path), "%s/callgate", other);
	CHECK(!access(path, F_OK), "driver_override");
	CHECK(!put(DRIVER "/unbind", "0000:00:02.0"));
	snprintf(path, sizeof(path), "%s/driver_override", other);
	CHECK(!put(path, "\n"));

	snprintf(path, sizeof(path), "%s/driver_override", plain);
	CHECK(!put(path, "callgate_pci"));
	CHECK(put(DRIVER "/bind", "0000:00:03.0") == ENODEV);
	CHECK(!put(path, "\n"));
}

/* --- all -------------------------------------------------------------------------------------- */

static const struct {
	const char *name;
	void (*run)(void);
} scenarios[] = {
	{ "info", test_info },
	{ "sysfs", test_sysfs },
	{ "debugfs", test_debugfs },
	{ "list", test_list },
	{ "open", test_open },
	{ "transports", test_transports },
	{ "statuses", test_statuses },
	{ "twelve", test_twelve },
	{ "payload", test_payload },
	{ "secret", test_secret },
	{ "buffers", test_buffers },
	{ "permissions", test_permissions },
	{ "modes", test_modes },
	{ "long", test_long },
	{ "timeout", test_timeout },
	{ "submit", test_submit },
	{ "signals", test_signals },
	{ "limit", test_limit },
	{ "no_frames", test_no_frames },
	{ "one_way", test_one_way },
	{ "poll", test_poll },
	{ "rebinding", test_rebinding },
	{ "ioctls", test_ioctls },
	{ "random_ioctls", test_random_ioctls },
	{ "processes", test_processes },
	{ "unbind_in_flight", test_unbind_in_flight },
	{ "remove_in_flight", test_remove_in_flight },
	{ "reset_in_flight", test_reset_in_flight },
	{ "resets", test_resets },
	{ "suspend", test_suspend },
	{ "ids", test_ids },
	{ "binding", test_binding },
};

int main(int count, char **words)
{
	unsigned int i;
	double began;
	int word, before;

	for (i = 0; i < COUNT(scenarios); i++) {
		int wanted = count == 1;

		for (word = 1; word < count; word++)
			wanted |= !strcmp(words[word], scenarios[i].name);
		if (!wanted)
			continue;
		scenario = scenarios[i].name;
		before = failures;
		began = now();
		scenarios[i].run();
		if (failures == before)
			printf("ok %s %.2f s\n", scenario, now() - began);
		fflush(stdout);
	}
	printf("done\n");
	return failures != 0;
}
