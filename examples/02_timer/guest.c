/* SPDX-License-Identifier: MIT */
/* Lets the ticker run and waits for its interrupts. The same file for all architectures and
 * platforms.
 */
#include "ticker.h"

#include <stdio.h>

#define TICKS     5
#define PERIOD_US 1000

int main(void)
{
	struct callgate_interrupt tick;
	struct ticker ticker;
	uint64_t counted;
	int status, seen;

	status = ticker_open(&ticker);
	if (status == CALLGATE_OK)
		status = callgate_interrupt_open(&ticker.device, TICKER_INTERRUPT_TICK, &tick);
	if (status != CALLGATE_OK) {
		printf("ticker: %s\n", callgate_word(status));
		return 1;
	}
	ticker_write_period(&ticker, PERIOD_US);
	ticker_write_control(&ticker, TICKER_ENABLE_MASK);
	for (seen = 1; seen <= TICKS; seen++) {
		status = callgate_interrupt_wait(&ticker.device, &tick);
		if (status != CALLGATE_OK) {
			printf("tick %d: %s\n", seen, callgate_word(status));
			return 1;
		}
		ticker_write_status(&ticker, TICKER_EXPIRED_MASK);
		printf("tick %d\n", seen);
	}
	ticker_write_control(&ticker, 0);
	counted = ticker_read_ticks(&ticker);
	callgate_interrupt_close(&ticker.device, &tick);
	if (counted < TICKS) {
		printf("only %llu ticks were counted\n", (unsigned long long)counted);
		return 1;
	}
	printf("stopped ok\n");
	return 0;
}
