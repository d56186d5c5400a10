/* SPDX-License-Identifier: MIT */
/* A processor without I/O instructions: its boards map I/O BARs into memory, or not at all. */
#ifndef CALLGATE_ARCH_NOPORTS_H
#define CALLGATE_ARCH_NOPORTS_H

#include <stdint.h>

#define CALLGATE_ARCH_PORTS 0

static inline uint32_t callgate_arch_in(uint16_t port, unsigned int size)
{
	(void)port;
	(void)size;
	return UINT32_MAX;
}

static inline void callgate_arch_out(uint16_t port, unsigned int size, uint32_t value)
{
	(void)port;
	(void)size;
	(void)value;
}

#endif /* CALLGATE_ARCH_NOPORTS_H */
