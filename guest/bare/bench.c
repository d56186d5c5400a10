/* SPDX-License-Identifier: MIT */
/* The guest of `callgate bench`: calls, or bare traps, in batches, with a store between two batches
 * by which the host takes the time.
 *
 *	machine with the device `bench`      mark | call call ... call | mark | ...
 *	emulator with nothing around it      mark | trap trap ... trap | mark | ...
 *
 * Where calls do not trap there are no marks, since a trap would wait for the host's watching thread:
 * each batch counts from 0, and the device takes the time when it is called with that.
 *
 * The host writes `bench_order` before the guest begins. Both loops go through the same functions of
 * the guest library as every driver.
 */
#include "bench.h"

/* src/callgate/bench/order.py says the same. */
enum {
	BENCH_CALL,  /* the device's call, by `path` */
	BENCH_STORE, /* a bare store of 32 bits to `place` */
	BENCH_OUT,   /* a bare output of 32 bits to the port `place` */
	BENCH_TRAP,  /* a bare hypercall by `instruction` with `selector` */
};

struct bench_order {
	uint32_t what;
	uint32_t path;
	uint32_t batches;
	uint32_t size; /* calls or traps in a batch */
	uint32_t instruction;
	uint32_t selector;
	uint64_t place;
	uint64_t mark; /* where a bare loop stores to have the time taken */
};

volatile struct bench_order bench_order = { .batches = 1 };

enum {
	BENCH_WRONG = 1,
	BENCH_NO_INSTRUCTION,
	BENCH_NO_DEVICE,
	BENCH_FAILED = 64, /* and the call's status or error */
};

static int calls(const struct bench_order *order)
{
	struct bench bench;
	uint32_t batch, i;
	uint64_t sum;
	int status;

	if (bench_open(&bench) != CALLGATE_OK)
		return BENCH_NO_DEVICE;
	bench.device.path = order->path;
	for (batch = 0; batch < order->batches; batch++) {
		if (order->path != CALLGATE_PATH_POLLED)
			bench_write_mark(&bench, batch);
		for (i = 0; i < order->size; i++) {
			status = bench_add(&bench, i, 40, &sum);
			if (status != CALLGATE_OK)
				return BENCH_FAILED + status;
			if (sum != (uint64_t)i + 40)
				return BENCH_WRONG;
		}
	}
	bench_write_mark(&bench, batch);
	return 0;
}

static bool trap(const struct bench_order *order)
{
	uint64_t slots[CALLGATE_MAX_REGISTER_VALUES] = { 2, 40 };
	uint32_t status;

	switch (order->what) {
	case BENCH_STORE:
		callgate_arch_write32((void *)(uintptr_t)order->place, 0);
		return true;
	case BENCH_OUT:
		callgate_arch_out((uint16_t)order->place, 4, 0);
		return true;
	default:
		return callgate_arch_hypercall(order->instruction, order->selector, 0, slots,
					       &status);
	}
}

static int traps(const struct bench_order *order)
{
	void *const at = (void *)(uintptr_t)order->mark;
	uint32_t batch, i;

	for (batch = 0; batch < order->batches; batch++) {
		callgate_arch_write32(at, batch);
		for (i = 0; i < order->size; i++)
			if (!trap(order))
				return BENCH_NO_INSTRUCTION;
	}
	callgate_arch_write32(at, batch);
	return 0;
}

int main(void)
{
	const struct bench_order order = bench_order;

	return order.what == BENCH_CALL ? calls(&order) : traps(&order);
}
