/* SPDX-License-Identifier: MIT */
/* Every processor calls as often as the device says, each through a frame of its own and with no
 * lock. What is busy or denied is called again, what is revoked looked up again. At the end, one
 * line for each: answers that were right, and what else came.
 */
#include "smp.h"

#include "bare.h"
#include <stdio.h>

struct turn {
	struct smp smp;
	uint64_t ok, busy, denied, revoked, wrong;
	volatile bool done;
};

static struct turn turns[BARE_PROCESSORS];
static struct smp found;
static uint32_t rounds;

static void call(struct turn *turn, unsigned int processor, uint64_t number)
{
	uint64_t result = 0;

	for (;;) {
		int status = smp_work(&turn->smp, processor, number, &result);

		switch (status) {
		case CALLGATE_OK:
			if (result == number + processor)
				turn->ok++;
			else
				turn->wrong++;
			return;
		case CALLGATE_BUSY:
			turn->busy++;
			break;
		case CALLGATE_DENIED:
			turn->denied++;
			break;
		case CALLGATE_REVOKED:
		case CALLGATE_ABSENT: /* not bound again yet */
			turn->revoked++;
			smp_reopen(&turn->smp);
			break;
		default:
			turn->wrong++;
			return;
		}
	}
}

static void run(unsigned int processor)
{
	struct turn *turn = &turns[processor];
	uint32_t i;

	turn->smp = found;
	turn->smp.device.frame = processor;
	for (i = 0; i < rounds; i++)
		call(turn, processor, (uint64_t)i << 32 | i);
	callgate_arch_full_barrier();
	turn->done = true;
}

int main(void)
{
	uint32_t processors, i;
	int status = smp_open(&found);

	if (status != CALLGATE_OK) {
		printf("smp: %s\n", callgate_word(status));
		return 1;
	}
	processors = smp_read_processors(&found);
	rounds = smp_read_rounds(&found);
	if (processors > BARE_PROCESSORS)
		return 2;
	for (i = 1; i < processors; i++) {
		if (bare_start_processor(i, run)) {
			printf("processor %u does not answer\n", i);
			return 3;
		}
	}
	run(0);
	for (i = 0; i < processors; i++) {
		while (!turns[i].done)
			callgate_arch_pause();
		printf("%u: %lu ok, %lu busy, %lu denied, %lu revoked, %lu wrong\n", i,
		       (unsigned long)turns[i].ok, (unsigned long)turns[i].busy,
		       (unsigned long)turns[i].denied, (unsigned long)turns[i].revoked,
		       (unsigned long)turns[i].wrong);
	}
	return 0;
}
