/* SPDX-License-Identifier: MIT */
/* Adds with the adder: by its registers and its interrupt, then by its call, over every way that
 * this platform offers. The same file for all architectures and platforms.
 */
#include "adder.h"

#include <stdio.h>

static int by_registers(struct adder *adder)
{
	struct callgate_interrupt done;
	uint32_t total;
	int status;

	status = callgate_interrupt_open(&adder->device, ADDER_INTERRUPT_DONE, &done);
	if (status == CALLGATE_OK) {
		adder_write_a(adder, 2);
		adder_write_b(adder, 40);
		adder_write_start(adder, 1);
		status = callgate_interrupt_wait(&adder->device, &done);
	}
	if (status != CALLGATE_OK) {
		printf("registers: interrupt: %s\n", callgate_word(status));
		return 1;
	}
	total = adder_read_total(adder);
	printf("registers: 2 + 40 = %u %s\n", total, total == 42 ? "ok" : "wrong");
	callgate_interrupt_close(&adder->device, &done);
	return total != 42;
}

static int by_call(struct adder *adder, enum callgate_path path)
{
	uint64_t sum = 0, large = 0;
	int status;

	adder->device.path = path;
	status = adder_add(adder, 2, 40, &sum);
	if (status == CALLGATE_OK) /* all 64 bits, in both directions */
		status = adder_add(adder, 0xfedcba9876543210, 0x0123456789abcdef, &large);
	printf("call %s: ", callgate_path_word(path));
	if (status != CALLGATE_OK) {
		printf("%s\n", callgate_word(status));
		return 1;
	}
	if (sum != 42 || large != UINT64_MAX) {
		printf("2 + 40 = %llu wrong\n", (unsigned long long)sum);
		return 1;
	}
	printf("2 + 40 = 42 ok\n");
	return 0;
}

int main(void)
{
	struct adder adder;
	int failed, path, status;

	status = adder_open(&adder);
	if (status != CALLGATE_OK) {
		printf("adder: %s\n", callgate_word(status));
		return 1;
	}
	failed = by_registers(&adder);
	for (path = CALLGATE_PATH_CHEAPEST; path < CALLGATE_PATH_END; path++)
		if (callgate_offers(&adder.device, &adder.calls.add, path))
			failed += by_call(&adder, path);
	return failed != 0;
}
