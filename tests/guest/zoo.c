/* SPDX-License-Identifier: MIT */
/* What the C driver can do, against the device of zoo.py. One line for each check that fails; the
 * exit code is 0 when none did.
 */
#include "zoo.h"

#include <stdio.h>
#include <string.h>

static struct zoo zoo;
static int failures;
static const char *where = "";

static void check_at(int line, const char *what, unsigned long long seen, unsigned long long want)
{
	if (seen == want)
		return;
	failures++;
	printf("%s, line %d: %s is 0x%llx, not 0x%llx\n", where, line, what, seen, want);
}

#define CHECK(seen, want) \
	check_at(__LINE__, #seen, (unsigned long long)(seen), (unsigned long long)(want))

static void registers(void)
{
	where = "registers";
	zoo_write_byte(&zoo, 0x12);
	zoo_write_half(&zoo, 0x3456);
	zoo_write_word(&zoo, 0x789abcde);
	zoo_write_quad(&zoo, 0xfedcba9876543210);
	zoo_write_port(&zoo, 0xcafef00d);
	CHECK(zoo_read_byte(&zoo), 0x12);
	CHECK(zoo_read_half(&zoo), 0x3456);
	CHECK(zoo_read_word(&zoo), 0x789abcde);
	CHECK(zoo_read_quad(&zoo), 0xfedcba9876543210);
	CHECK(zoo_read_port(&zoo), 0xcafef00d);
	CHECK(callgate_read32(&zoo.device, 0, ZOO_QUAD + 4), 0xfedcba98);
	CHECK(callgate_read8(&zoo.device, 0, ZOO_WORD + 3), 0x78);
	/* Outside of the BARs there is nothing. */
	CHECK(callgate_read32(&zoo.device, 0, 0x1000), UINT32_MAX);
	CHECK(callgate_read32(&zoo.device, 0, UINT64_MAX - 3), UINT32_MAX);
	CHECK(callgate_read32(&zoo.device, 1, 0), UINT32_MAX);
	CHECK(callgate_read32(&zoo.device, 7, 0), UINT32_MAX);
}

static void interrupts(void)
{
	struct callgate_interrupt first, second, none;
	const uint32_t patience = zoo.device.patience;

	where = "interrupts";
	CHECK(callgate_interrupt_open(&zoo.device, 77, &none), CALLGATE_ABSENT);
	CHECK(callgate_interrupt_open(&zoo.device, ZOO_INTERRUPT_FIRST, &first), CALLGATE_OK);
	CHECK(callgate_interrupt_open(&zoo.device, ZOO_INTERRUPT_SECOND, &second), CALLGATE_OK);
	zoo_write_trigger(&zoo, 1);
	CHECK(callgate_interrupt_wait(&zoo.device, &second), CALLGATE_OK);
	CHECK(first.count, 0);
	CHECK(second.count, 1);
	CHECK(callgate_interrupt_seen(&first), false);
	callgate_interrupt_mask(&zoo.device, &first, true);
	zoo_write_trigger(&zoo, 0);
	zoo.device.patience = 2;
	CHECK(callgate_interrupt_wait(&zoo.device, &first), CALLGATE_NO_ANSWER);
	zoo.device.patience = patience;
	callgate_interrupt_mask(&zoo.device, &first, false);
	CHECK(callgate_interrupt_wait(&zoo.device, &first), CALLGATE_OK);
	CHECK(first.count, 1);
	callgate_interrupt_close(&zoo.device, &first);
	callgate_interrupt_close(&zoo.device, &second);
	CHECK(callgate_interrupt_seen(&first), false);
}

/* Calls that each way can carry. */
static void numbers(void)
{
	enum zoo_mode mode;
	uint64_t value = 0;
	int64_t sum = 0;
	int8_t small = 0;
	bool on = false;

	CHECK(zoo_nothing(&zoo), CALLGATE_OK);
	CHECK(zoo_unsigned(&zoo, 0xff, 0xffff, 0xffffffff, &value), CALLGATE_OK);
	CHECK(value, 0x1000100fdull);
	CHECK(zoo_choose(&zoo, ZOO_MODE_SLOW, false, &mode, &on), CALLGATE_OK);
	CHECK(mode, ZOO_MODE_FAST);
	CHECK(on, true);
	CHECK(zoo_choose(&zoo, (enum zoo_mode)3, false, &mode, &on), CALLGATE_BAD_VALUE);
	CHECK(zoo_refuse(&zoo, 0xfedcba9876543210, &value), CALLGATE_DEVICE_ERROR);
	CHECK(zoo.device.code, 0xfedcba9876543210);
	CHECK(zoo_fail(&zoo), CALLGATE_DEVICE_FAULT);
	CHECK(zoo_forbid(&zoo), CALLGATE_OK);
	CHECK(zoo_nothing(&zoo), CALLGATE_DENIED);
	CHECK(zoo_permit(&zoo), CALLGATE_OK);
	/* Four slots each way do not fit the registers of 32-bit code. */
	if (zoo.device.path == CALLGATE_PATH_HYPERCALL &&
	    !callgate_offers(&zoo.device, &zoo.calls.signed_, CALLGATE_PATH_HYPERCALL)) {
		CHECK(zoo_signed(&zoo, 0, 0, 0, 0, &sum, &small), CALLGATE_NOT_OFFERED);
		return;
	}
	CHECK(zoo_signed(&zoo, -128, -32768, INT32_MIN, 7, &sum, &small), CALLGATE_OK);
	CHECK(sum, -128ll - 32768 + INT32_MIN + 7);
	CHECK(small, (int8_t)-128);
	CHECK(zoo_signed(&zoo, 1, 1, 1, INT64_MIN, &sum, &small), CALLGATE_OK);
	CHECK(sum, INT64_MIN + 3);
}

/* Calls that only a frame can carry. */
static void payloads(void)
{
	static uint8_t room[4096];
	uint64_t in[12], out[12];
	uint32_t length, rest, total;
	char left[16], right[16];
	unsigned int i;

	for (i = 0; i < 12; i++)
		in[i] = 0x0101010101010101 * (i + 1);
	CHECK(zoo_twelve(&zoo, in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7], in[8], in[9],
			 in[10], in[11], &out[0], &out[1], &out[2], &out[3], &out[4], &out[5],
			 &out[6], &out[7], &out[8], &out[9], &out[10], &out[11]),
	      CALLGATE_OK);
	for (i = 0; i < 12; i++)
		CHECK(out[i], in[11 - i]);

	length = sizeof(left);
	CHECK(zoo_join(&zoo, "Hello, ", 7, "world", 6, left, &length), CALLGATE_OK);
	CHECK(length, 13);
	CHECK(strcmp(left, "Hello, world"), 0);
	length = 5;
	CHECK(zoo_join(&zoo, "Hello, ", 7, "world", 6, left, &length), CALLGATE_TOO_LONG);
	CHECK(length, 13);
	length = 0;
	CHECK(zoo_join(&zoo, NULL, 0, NULL, 0, left, &length), CALLGATE_OK);
	CHECK(length, 0);

	length = rest = 16;
	CHECK(zoo_split(&zoo, "seven beasts", 12, 5, left, &length, &total, right, &rest),
	      CALLGATE_OK);
	CHECK(length, 5);
	CHECK(rest, 7);
	CHECK(total, 12);
	CHECK(memcmp(left, "seven", 5), 0);
	CHECK(memcmp(right, " beasts", 7), 0);

	/* As much as the frame holds, and one byte more. */
	for (i = 0; i < sizeof(room); i++)
		room[i] = (uint8_t)(i * 7);
	length = sizeof(room);
	total = zoo.device.header.frame_size - CALLGATE_PAYLOAD_OFFSET;
	CHECK(zoo_join(&zoo, room, total, NULL, 0, room, &length), CALLGATE_OK);
	CHECK(length, total);
	for (i = 0; i < total; i++)
		if (room[i] != (uint8_t)(i * 7))
			break;
	CHECK(i, total);
	CHECK(zoo_join(&zoo, room, total + 1, NULL, 0, room, &length), CALLGATE_BAD_FRAME);
	CHECK(zoo_join(&zoo, room, total, room, 1, room, &length), CALLGATE_BAD_FRAME);
}

static void buffers(void)
{
	static uint8_t source[5000], target[6000];
	uint64_t copied = 0;
	unsigned int i;

	for (i = 0; i < sizeof(source); i++)
		source[i] = (uint8_t)(i ^ i >> 8);
	if (zoo.device.path == CALLGATE_PATH_HYPERCALL &&
	    !callgate_offers(&zoo.device, &zoo.calls.copy, CALLGATE_PATH_HYPERCALL)) {
		CHECK(zoo_copy(&zoo, source, 1, target, 1, &copied), CALLGATE_NOT_OFFERED);
		return;
	}
	CHECK(zoo_copy(&zoo, source, sizeof(source), target, sizeof(target), &copied), CALLGATE_OK);
	CHECK(copied, sizeof(source));
	CHECK(memcmp(source, target, sizeof(source)), 0);
	CHECK(zoo_invert(&zoo, target, sizeof(source)), CALLGATE_OK);
	for (i = 0; i < sizeof(source) && target[i] == (uint8_t)~source[i];)
		i++;
	CHECK(i, sizeof(source));
	CHECK(zoo_copy(&zoo, source, 0, target, 0, &copied), CALLGATE_OK);
	CHECK(zoo_invert(&zoo, target, UINT64_MAX), CALLGATE_BAD_BUFFER);
	CHECK(zoo_invert(&zoo, (void *)(uintptr_t)0xf0000000, 16), CALLGATE_BAD_BUFFER);
}

/* One way: nobody waits, but the next call through the frame comes after. */
static void one_way(void)
{
	uint32_t pokes = zoo_read_pokes(&zoo);

	CHECK(zoo_poke(&zoo), CALLGATE_OK);
	CHECK(zoo_poke(&zoo), CALLGATE_OK);
	CHECK(callgate_call(&zoo.device, &zoo.calls.poke, NULL, 0, NULL, 0), CALLGATE_OK);
	CHECK(zoo_read_pokes(&zoo), pokes + 3);
	CHECK(callgate_notify(&zoo.device, &zoo.calls.poke), CALLGATE_OK);
	(void)callgate_generation(&zoo.device);
	CHECK(callgate_gone(&zoo.device), false);
	CHECK(zoo_read_pokes(&zoo), pokes + 4);
	CHECK(callgate_notify(&zoo.device, &zoo.calls.nothing), CALLGATE_NOT_OFFERED);
}

static void log_one_way(void)
{
	CHECK(zoo_log(&zoo, "twelve bytes", 12), CALLGATE_OK);
	CHECK(callgate_frame_take(&zoo.device), CALLGATE_OK);
	CHECK(zoo_read_logged(&zoo), 12);
}

static void rebinding(void)
{
	uint64_t value;

	CHECK(zoo_hide(&zoo), CALLGATE_OK);
	CHECK(zoo_unsigned(&zoo, 1, 2, 3, &value), CALLGATE_REVOKED);
	CHECK(zoo_reopen(&zoo), CALLGATE_OK);
	CHECK(zoo_unsigned(&zoo, 1, 2, 3, &value), CALLGATE_ABSENT);
	CHECK(zoo_show(&zoo), CALLGATE_OK);
	CHECK(callgate_reopen(&zoo.device, &zoo.calls.unsigned_), CALLGATE_OK);
	CHECK(zoo_unsigned(&zoo, 1, 2, 3, &value), CALLGATE_OK);
	CHECK(value, 6);
}

/* Callers with frames of their own, of which one waits while the other calls. */
static void frames(void)
{
	struct zoo other = zoo;
	const uint64_t slots[] = { 1, 2, 3 };
	uint64_t value = 0;

	where = "frames";
	other.device.frame = 3;
	CHECK(callgate_start(&zoo.device, &zoo.calls.unsigned_, slots, 3, 0), CALLGATE_OK);
	CHECK(zoo_unsigned(&other, 10, 20, 30, &value), CALLGATE_OK);
	CHECK(value, 60);
	CHECK(callgate_finish(&zoo.device, &value, 1), CALLGATE_OK);
	CHECK(value, 6);
	other.device.path = CALLGATE_PATH_MMIO;
	other.device.frame = other.device.header.frame_count;
	CHECK(zoo_unsigned(&other, 10, 20, 30, &value), CALLGATE_ABSENT);
	/* A frame that the host never saw: nothing was rung. */
	other = zoo;
	other.device.frame = 2;
	other.device.patience = 2;
	callgate_arch_write32(callgate_frame(&other.device), CALLGATE_FRAME_STATE_RUNNING);
	other.device.path = CALLGATE_PATH_MMIO;
	CHECK(zoo_unsigned(&other, 10, 20, 30, &value), CALLGATE_NO_ANSWER);
	callgate_arch_write32(callgate_frame(&other.device), CALLGATE_FRAME_STATE_FREE);
	CHECK(callgate_finish(&other.device, &value, 1), CALLGATE_NO_ANSWER);
}

/* What the host says when the driver is wrong. */
static void mistakes(void)
{
	struct callgate_device *dev = &zoo.device;
	struct callgate_call wrong = CALLGATE_CALL("nothing", 0x1234);
	struct callgate_call missing = CALLGATE_CALL("missing", 0x1234);
	struct callgate_call forged = zoo.calls.nothing;
	const uint64_t slots[CALLGATE_MAX_VALUES + 1] = { 0 };
	uint64_t value;

	CHECK(callgate_open(dev, &wrong), CALLGATE_MISMATCH);
	CHECK(callgate_open(dev, &missing), CALLGATE_ABSENT);
	CHECK(callgate_call(dev, &missing, NULL, 0, NULL, 0), CALLGATE_ABSENT);
	CHECK(callgate_call(dev, &zoo.calls.nothing, slots, 1, NULL, 0), CALLGATE_BAD_COUNT);
	CHECK(callgate_call(dev, &zoo.calls.nothing, slots, 13, NULL, 0), CALLGATE_BAD_COUNT);
	CHECK(callgate_call(dev, &zoo.calls.nothing, slots, 0, &value, 1), CALLGATE_MISMATCH);
	forged.vector ^= 0x40000000;
	CHECK(callgate_call(dev, &forged, NULL, 0, NULL, 0), CALLGATE_NO_SUCH_VECTOR);
}

static void by_name(void)
{
	struct callgate_device found;
	struct callgate_call nothing = CALLGATE_CALL("nothing", zoo.calls.nothing.signature);

	where = "by name";
	CHECK(callgate_find_name(&found, "zoo", 0), CALLGATE_OK);
	CHECK(found.function, zoo.device.function);
	CHECK(callgate_open(&found, &nothing), CALLGATE_OK);
	CHECK(nothing.vector, zoo.calls.nothing.vector);
	CHECK(callgate_find_name(&found, "zo", 0), CALLGATE_ABSENT);
	CHECK(callgate_find_name(&found, "zoo", 1), CALLGATE_ABSENT);
	CHECK(callgate_find(&found, 0x1af4, 0xffff, 0), CALLGATE_ABSENT);
}

/* The host says when a frame is done, by the gate's interrupt. */
static void done_interrupt(void)
{
	const uint32_t features = CALLGATE_FEATURE_POLLED | CALLGATE_FEATURE_NOTIFY |
				  CALLGATE_FEATURE_DONE_INTERRUPT;
	const uint64_t slots[] = { 1, 2, 3 };
	struct callgate_interrupt gate;
	uint64_t value = 0;

	where = "done interrupt";
	if (zoo.device.header.interrupt == CALLGATE_NO_INTERRUPT)
		return;
	zoo.device.path = CALLGATE_PATH_CHEAPEST;
	CHECK(callgate_negotiate(&zoo.device, features), CALLGATE_OK);
	CHECK(zoo.device.features & CALLGATE_FEATURE_DONE_INTERRUPT,
	      CALLGATE_FEATURE_DONE_INTERRUPT);
	CHECK(callgate_interrupt_open(&zoo.device, zoo.device.header.interrupt, &gate),
	      CALLGATE_OK);
	CHECK(callgate_start(&zoo.device, &zoo.calls.unsigned_, slots, 3,
			     CALLGATE_FRAME_FLAG_INTERRUPT),
	      CALLGATE_OK);
	CHECK(callgate_interrupt_wait(&zoo.device, &gate), CALLGATE_OK);
	CHECK(callgate_finish(&zoo.device, &value, 1), CALLGATE_OK);
	CHECK(value, 6);
	callgate_interrupt_close(&zoo.device, &gate);
}

int main(void)
{
	int path, status = zoo_open(&zoo);

	if (status != CALLGATE_OK) {
		printf("zoo: %s\n", callgate_word(status));
		return 1;
	}
	registers();
	interrupts();
	by_name();
	for (path = CALLGATE_PATH_CHEAPEST; path < CALLGATE_PATH_END; path++) {
		zoo.device.path = path;
		where = callgate_path_word(path);
		if (!callgate_offers(&zoo.device, &zoo.calls.nothing, path)) {
			CHECK(zoo_nothing(&zoo), CALLGATE_NOT_OFFERED);
			continue;
		}
		numbers();
		buffers();
		one_way();
		rebinding();
		mistakes();
		if (path != CALLGATE_PATH_HYPERCALL) {
			payloads();
			log_one_way();
		}
	}
	zoo.device.path = CALLGATE_PATH_CHEAPEST;
	frames();
	done_interrupt();
	printf("%d checks failed\n", failures);
	return failures != 0;
}
