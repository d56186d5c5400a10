/* SPDX-License-Identifier: MIT */
/* Calls again and again while the host takes the vector away and assigns new ones: REVOKED means
 * look the name up again and go on. The same file for all architectures and platforms.
 */
#include "rebind.h"

#include <stdio.h>

#define CALLS    100
#define INTERVAL 10

int main(void)
{
	uint64_t expected, count = 0;
	unsigned int lookups = 0;
	struct rebind rebind;
	uint32_t rebinds;
	int status;

	status = rebind_open(&rebind);
	if (status != CALLGATE_OK) {
		printf("rebind: %s\n", callgate_word(status));
		return 1;
	}
	rebind_write_interval(&rebind, INTERVAL);
	for (expected = 1; expected <= CALLS; expected++) {
		status = rebind_count(&rebind, 1, &count);
		if (status == CALLGATE_REVOKED) {
			status = rebind_reopen(&rebind);
			if (status == CALLGATE_OK)
				status = rebind_count(&rebind, 1, &count);
			lookups++;
		}
		if (status != CALLGATE_OK || count != expected) {
			printf("call %u: %s\n", (unsigned int)expected, callgate_word(status));
			return 1;
		}
	}
	rebinds = rebind_read_rebinds(&rebind);
	/* The last rebinding comes after the last call. */
	if (rebinds != CALLS / INTERVAL || lookups != rebinds - 1) {
		printf("%u rebindings, %u look-ups\n", rebinds, lookups);
		return 1;
	}
	printf("%u calls, %u look-ups ok\n", CALLS, lookups);
	return 0;
}
