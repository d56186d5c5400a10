/* SPDX-License-Identifier: MIT */
/* Timing of single steps, and the lines that `callgate bench` reads. */
#ifndef MEASURE_H
#define MEASURE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define BATCH 16

static uint64_t now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return (uint64_t)at.tv_sec * 1000000000 + (uint64_t)at.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static uint64_t clock_cost;

static void check(const char *name, int status)
{
	if (status) {
		fprintf(stderr, "%s answered %d\n", name, status);
		exit(3);
	}
}

/* Run `step`, which is given its number and answers 0, `count` times in batches and `count` times alone, and print
 * the median of the batches and the 99th percentile of the single ones.
 */
static uint64_t measure(const char *name, unsigned int count, int (*step)(void *, unsigned int),
			void *with)
{
	const unsigned int batches = count / BATCH;
	uint64_t *times = malloc(count * sizeof(*times));
	uint64_t middle, tail;
	unsigned int i, j;

	if (!times) {
		fprintf(stderr, "no memory\n");
		exit(2);
	}
	for (i = 0; i < batches; i++) {
		const uint64_t before = now();

		for (j = 0; j < BATCH; j++)
			check(name, step(with, i * BATCH + j));
		times[i] = now() - before;
	}
	qsort(times, batches, sizeof(*times), ascending);
	middle = times[batches / 2];
	middle -= middle < clock_cost ? middle : clock_cost;
	for (i = 0; i < count; i++) {
		const uint64_t before = now();

		check(name, step(with, i));
		times[i] = now() - before;
	}
	qsort(times, count, sizeof(*times), ascending);
	tail = times[count - count / 100 - 1];
	tail -= tail < clock_cost ? tail : clock_cost;
	if (clock_cost)
		printf("%s %llu %llu %u\n", name, (unsigned long long)middle / BATCH,
		       (unsigned long long)tail, count);
	middle = times[count / 2];
	free(times);
	return middle;
}

static int nothing(void *with, unsigned int i)
{
	(void)with;
	(void)i;
	return 0;
}

/* Measure the clock, whose time is taken off from then on. */
static void measure_clock(unsigned int count)
{
	clock_cost = measure("nothing", count, nothing, NULL);
	measure("nothing", count, nothing, NULL);
}

#endif
