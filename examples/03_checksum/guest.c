/* SPDX-License-Identifier: MIT */
/* Has the device sum and change a buffer in the guest's own memory, and checks it here. The same
 * file for all architectures and platforms.
 */
#include "checksum.h"

#include <stdio.h>

#define WORDS      0x4000
#define KEY        0xa5
#define BAD_LENGTH 1 /* the device's own code */

static uint32_t words[WORDS];

static uint32_t pattern(uint32_t i)
{
	return i * 2654435761u + 12345;
}

int main(void)
{
	struct checksum checksum;
	uint32_t expected = 0, sum, i;
	int status;

	status = checksum_open(&checksum);
	if (status != CALLGATE_OK) {
		printf("checksum: %s\n", callgate_word(status));
		return 1;
	}
	for (i = 0; i < WORDS; i++) {
		words[i] = pattern(i);
		expected += words[i];
	}

	status = checksum_sum32(&checksum, words, sizeof(words), &sum);
	if (status != CALLGATE_OK) { /* then there is no sum, not even to be printed */
		printf("sum32: %s\n", callgate_word(status));
		return 1;
	}
	if (sum != expected) {
		printf("sum32: %x instead of %x\n", sum, expected);
		return 1;
	}
	printf("sum32 of %u bytes: %08x ok\n", (unsigned int)sizeof(words), sum);

	status = checksum_xor(&checksum, words, sizeof(words), KEY);
	for (i = 0; i < WORDS && status == CALLGATE_OK; i++) {
		if (words[i] != (pattern(i) ^ KEY * 0x01010101u)) {
			printf("xor: word %u is %x\n", i, words[i]);
			return 1;
		}
	}
	if (status != CALLGATE_OK) {
		printf("xor: %s\n", callgate_word(status));
		return 1;
	}
	printf("xor in place ok\n");

	status = checksum_sum32(&checksum, words, 3, &sum);
	if (status != CALLGATE_DEVICE_ERROR || checksum.device.code != BAD_LENGTH) {
		printf("sum32 of 3 bytes: %s\n", callgate_word(status));
		return 1;
	}
	printf("sum32 of 3 bytes: refused with code %u ok\n", (unsigned int)checksum.device.code);
	return 0;
}
