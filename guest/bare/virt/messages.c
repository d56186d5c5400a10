/* SPDX-License-Identifier: MIT */
/* Interrupt messages without an interrupt controller: a message is a write, so it may as well go to
 * a word in RAM, at which the guest looks.
 */
#include <callgate/arch.h>
#include <callgate/environment.h>

#define MESSAGES 16
#define CAME     1u /* what a device writes */

static uint32_t words[MESSAGES];
static uint32_t opened; /* a bit each */

int callgate_env_message_open(uint64_t *address, uint32_t *data)
{
	int number;

	for (number = 0; number < MESSAGES; number++) {
		if (opened >> number & 1)
			continue;
		opened |= 1u << number;
		callgate_arch_write32(&words[number], 0);
		*address = callgate_env_address(&words[number]);
		*data = CAME;
		return number;
	}
	return -1;
}

uint32_t callgate_env_message_take(int number)
{
	if (!callgate_arch_read32(&words[number]))
		return 0;
	callgate_arch_write32(&words[number], 0);
	callgate_arch_full_barrier(); /* what comes from here on is seen the next time */
	return 1;
}

void callgate_env_message_close(int number)
{
	opened &= ~(1u << number);
}
