/* SPDX-License-Identifier: MIT */
/* Device memory through volatile pointers: right where any load and store may reach a device. */
#ifndef CALLGATE_ARCH_PLAIN_H
#define CALLGATE_ARCH_PLAIN_H

#include <stdint.h>

#define CALLGATE_ARCH_ACCESS(bits) \
	static inline uint##bits##_t callgate_arch_read##bits(const volatile void *at) \
	{ \
		return *(const volatile uint##bits##_t *)at; \
	} \
	static inline void callgate_arch_write##bits(volatile void *at, uint##bits##_t value) \
	{ \
		*(volatile uint##bits##_t *)at = value; \
	}

CALLGATE_ARCH_ACCESS(8)
CALLGATE_ARCH_ACCESS(16)
CALLGATE_ARCH_ACCESS(32)

#undef CALLGATE_ARCH_ACCESS

#endif /* CALLGATE_ARCH_PLAIN_H */
