/* SPDX-License-Identifier: MIT */
/* Calls again and again while the host takes the vector away and assigns new ones, first from the
 * call itself, then from a timer of its own: REVOKED means look the name up again and go on. The
 * same file for all architectures and platforms.
 */
#include "rebind.h"

#include <stdio.h>

#define CALLS     100
#define INTERVAL  10
#define PERIOD_US 1000
#define LOOKUPS   5
#define TRIES     100000
#define MOST      10000000

static uint64_t expected; /* what the device has counted */
static unsigned int lookups;

/* One call, looked up anew as often as it takes. None is lost, and none counted twice. */
static int count(struct rebind *rebind)
{
	uint64_t counted = 0;
	unsigned int tries;
	int status = CALLGATE_NO_ANSWER;

	for (tries = 0; tries < TRIES; tries++) {
		status = rebind_count(rebind, 1, &counted);
		lookups += status == CALLGATE_REVOKED;
		/* BUSY: the vector is being taken away. ABSENT: the next one is not there yet. */
		if (status != CALLGATE_REVOKED && status != CALLGATE_BUSY &&
		    status != CALLGATE_ABSENT)
			break;
		status = rebind_reopen(rebind);
		if (status != CALLGATE_OK)
			break;
	}
	expected++;
	if (status == CALLGATE_OK && counted == expected)
		return 0;
	printf("call %u: %s\n", (unsigned int)expected, callgate_word(status));
	return 1;
}

static int from_the_call(struct rebind *rebind)
{
	unsigned int i;

	rebind_write_interval(rebind, INTERVAL);
	for (i = 0; i < CALLS; i++)
		if (count(rebind))
			return 1;
	rebind_write_interval(rebind, 0);
	/* The last rebinding came after the last call. */
	if (rebind_read_rebinds(rebind) != CALLS / INTERVAL || lookups != CALLS / INTERVAL - 1) {
		printf("%u rebindings, %u look-ups\n", rebind_read_rebinds(rebind), lookups);
		return 1;
	}
	printf("%u calls, %u look-ups ok\n", CALLS, lookups);
	return 0;
}

static int from_a_timer(struct rebind *rebind)
{
	unsigned int i;

	if (count(rebind)) /* finds the last rebinding of before */
		return 1;
	lookups = 0;
	rebind_write_period(rebind, PERIOD_US);
	for (i = 0; i < MOST && lookups < LOOKUPS; i++)
		if (count(rebind))
			return 1;
	rebind_write_period(rebind, 0);
	if (lookups < LOOKUPS) {
		printf("%u look-ups in %u calls\n", lookups, i);
		return 1;
	}
	printf("while a timer rebinds: %u look-ups ok\n", LOOKUPS);
	return 0;
}

int main(void)
{
	struct rebind rebind;
	int status;

	status = rebind_open(&rebind);
	if (status != CALLGATE_OK) {
		printf("rebind: %s\n", callgate_word(status));
		return 1;
	}
	return from_the_call(&rebind) || from_a_timer(&rebind);
}
