/* SPDX-License-Identifier: MIT */
/* 64-bit division, which compilers leave to a function in 32-bit code. */
#include <stdint.h>

uint64_t __udivmoddi4(uint64_t value, uint64_t by, uint64_t *rest);
uint64_t __udivdi3(uint64_t value, uint64_t by);
uint64_t __umoddi3(uint64_t value, uint64_t by);
int64_t __divdi3(int64_t value, int64_t by);
int64_t __moddi3(int64_t value, int64_t by);

uint64_t __udivmoddi4(uint64_t value, uint64_t by, uint64_t *rest)
{
	uint64_t quotient = 0, remainder = 0;
	int bit;

	for (bit = 63; bit >= 0; bit--) {
		uint64_t carry = remainder >> 63;

		remainder = remainder << 1 | (value >> bit & 1);
		if (carry || remainder >= by) {
			remainder -= by;
			quotient |= (uint64_t)1 << bit;
		}
	}
	if (rest)
		*rest = remainder;
	return quotient;
}

uint64_t __udivdi3(uint64_t value, uint64_t by)
{
	return __udivmoddi4(value, by, 0);
}

uint64_t __umoddi3(uint64_t value, uint64_t by)
{
	uint64_t rest;

	__udivmoddi4(value, by, &rest);
	return rest;
}

static uint64_t magnitude(int64_t value)
{
	return value < 0 ? -(uint64_t)value : (uint64_t)value;
}

int64_t __divdi3(int64_t value, int64_t by)
{
	uint64_t quotient = __udivmoddi4(magnitude(value), magnitude(by), 0);

	return (int64_t)((value < 0) != (by < 0) ? -quotient : quotient);
}

int64_t __moddi3(int64_t value, int64_t by)
{
	uint64_t rest;

	__udivmoddi4(magnitude(value), magnitude(by), &rest);
	return (int64_t)(value < 0 ? -rest : rest);
}
