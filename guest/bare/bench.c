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
#include "bare.h"

/* src/callgate/bench/order.py says the same. */
enum {
	BENCH_CALL,  /* the device's call, by `path` */
	BENCH_STORE, /* a bare store of 32 bits to `place` */
	BENCH_OUT,   /* a bare output of 32 bits to the port `place` */
	BENCH_TRAP,  /* a bare hypercall by `instruction` with `selector` */
	BENCH_READ,  /* a read of the device's register `constant` */
	BENCH_WRITE, /* a write to its register `scratch` */
	BENCH_POST,  /* a one-way call by the doorbell NOTIFY */
	BENCH_ROUND, /* a write to `ring`, and the wait for the interrupt that it brings */
	BENCH_RING_PORT, /* a call by the pio doorbell, in two instructions */
	BENCH_WATCHED,   /* a call that the host's watcher answers */
	BENCH_SEVERAL, /* calls by `place` processors at once, each as many */
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
	BENCH_NO_PROCESSOR,
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

/* Sixteen times in a row, so that the loop around it does not count. */
#define SIXTEEN(step) \
	do { \
		step; step; step; step; step; step; step; step; \
		step; step; step; step; step; step; step; step; \
	} while (0)

static bool rang(struct callgate_interrupt *interrupt)
{
	while (!callgate_interrupt_seen(interrupt))
		callgate_arch_pause();
	return true;
}

/* What a device does, in as few of the guest's instructions as it takes: where an instruction costs
 * a microsecond, a driver's own would hide the rest. A call's frame is filled once; then READY is
 * stored anew each time, and the results are where the arguments were.
 */
static int tight(const struct bench_order *order)
{
	struct callgate_interrupt interrupt = { .message = -1 };
	volatile uint8_t *frame, *registers, *notify;
	uint32_t batch, i, zero = 0;
	uint16_t port = 0;
	struct bench bench;

	if (bench_open(&bench) != CALLGATE_OK || callgate_frame_take(&bench.device) != CALLGATE_OK)
		return BENCH_NO_DEVICE;
	if (order->what == BENCH_ROUND &&
	    callgate_interrupt_open(&bench.device, BENCH_INTERRUPT_RANG, &interrupt) != CALLGATE_OK)
		return BENCH_NO_DEVICE;
	frame = callgate_frame(&bench.device);
	registers = bench.device.bars[0].memory;
	notify = bench.device.gate + bench.device.header.doorbell_offset +
		 CALLGATE_DOORBELL_REGISTER_NOTIFY;
	if (bench.device.capability.pio_bar < CALLGATE_PCI_BARS)
		port = (uint16_t)(bench.device.bars[bench.device.capability.pio_bar].address +
				  bench.device.capability.pio_offset);
	/* A call that rings lets the host watch, from now on for longer than this takes. */
	for (i = 0; order->what == BENCH_WATCHED && !callgate_watching(&bench.device); i++)
		if (callgate_post(&bench.device, &bench.calls.nothing, NULL, 0) != CALLGATE_OK ||
		    callgate_frame_take(&bench.device) != CALLGATE_OK)
			return BENCH_FAILED;
	callgate_arch_write32(frame + CALLGATE_FRAME_AT(vector), bench.calls.add.vector);
	callgate_arch_write32(frame + CALLGATE_FRAME_AT(flags), 2u << 16);
	callgate_arch_write64(frame + CALLGATE_FRAME_AT(values), 0);
	callgate_arch_write64(frame + CALLGATE_FRAME_AT(values) + 8, 1);
	for (batch = 0; batch < order->batches; batch++) {
		bench_write_mark(&bench, batch);
		for (i = 0; i < order->size; i += 16) {
			switch (order->what) {
			case BENCH_READ:
				SIXTEEN(zero |= callgate_arch_read32(registers + BENCH_CONSTANT));
				break;
			case BENCH_WRITE:
				SIXTEEN(callgate_arch_write32(registers + BENCH_SCRATCH, 1));
				break;
			case BENCH_POST:
				SIXTEEN(callgate_arch_write32(notify, bench.calls.nothing.vector));
				break;
			case BENCH_ROUND:
				SIXTEEN(callgate_arch_write32(registers + BENCH_RING, 1);
					rang(&interrupt));
				break;
			case BENCH_RING_PORT:
				SIXTEEN(callgate_arch_write32(frame, CALLGATE_FRAME_STATE_READY);
					callgate_arch_out(port, 4, 0));
				break;
			default:
				SIXTEEN(callgate_arch_write32(frame, CALLGATE_FRAME_STATE_READY);
					while (callgate_arch_read32(frame) !=
					       CALLGATE_FRAME_STATE_DONE));
			}
		}
	}
	bench_write_mark(&bench, batch);
	if (order->what == BENCH_RING_PORT || order->what == BENCH_WATCHED)
		return callgate_arch_read64(frame + CALLGATE_FRAME_AT(values)) ==
				       (uint64_t)order->batches * order->size ?
			       0 :
			       BENCH_WRONG;
	return order->what == BENCH_READ && order->batches && zero != 0x600dcafe ? BENCH_WRONG : 0;
}

static struct bench shared;
static struct bench_order several_order;
static volatile int several_ended[BARE_PROCESSORS];

static void several_run(unsigned int processor)
{
	struct bench bench = shared;
	uint64_t sum;
	uint32_t i;
	int status = CALLGATE_OK;

	bench.device.frame = processor;
	for (i = 0; i < several_order.size && status == CALLGATE_OK; i++) {
		status = bench_add(&bench, i, 40, &sum);
		if (status == CALLGATE_OK && sum != (uint64_t)i + 40)
			status = BENCH_WRONG;
	}
	callgate_arch_full_barrier();
	several_ended[processor] = 1 + status;
}

static int several(const struct bench_order *order)
{
	uint32_t batch, i;

	if (bench_open(&shared) != CALLGATE_OK)
		return BENCH_NO_DEVICE;
	shared.device.path = order->path;
	several_order = *order;
	for (batch = 0; batch < order->batches; batch++) {
		for (i = 0; i < order->place; i++)
			several_ended[i] = 0;
		bench_write_mark(&shared, batch);
		for (i = 1; i < order->place; i++)
			if (bare_start_processor(i, several_run))
				return BENCH_NO_PROCESSOR;
		several_run(0);
		for (i = 0; i < order->place; i++) {
			while (!several_ended[i])
				callgate_arch_pause();
			if (several_ended[i] != 1 + CALLGATE_OK)
				return BENCH_FAILED;
		}
	}
	bench_write_mark(&shared, batch);
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

	switch (order.what) {
	case BENCH_CALL:
		return calls(&order);
	case BENCH_STORE:
	case BENCH_OUT:
	case BENCH_TRAP:
		return traps(&order);
	case BENCH_SEVERAL:
		return several(&order);
	default:
		return tight(&order);
	}
}
