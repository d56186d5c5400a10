/* SPDX-License-Identifier: MIT */
#ifndef CALLGATE_ARCH_AARCH64_H
#define CALLGATE_ARCH_AARCH64_H

#include <callgate/abi.h>
#include <callgate/arch/noports.h>
#include <stdbool.h>

#define CALLGATE_ARCH_VALUES 6

/* A hypervisor is told the registers of a trapped access only for plain loads and stores, not for
 * pairs or those that write back an address; so no compiler may choose the instruction.
 */
#define CALLGATE_ARCH_ACCESS(bits, suffix, width) \
	static inline uint##bits##_t callgate_arch_read##bits(const volatile void *at) \
	{ \
		uint##bits##_t value; \
\
		__asm__ volatile("ldr" suffix " %" width "0, [%1]" \
				 : "=r"(value) : "r"(at) : "memory"); \
		return value; \
	} \
	static inline void callgate_arch_write##bits(volatile void *at, uint##bits##_t value) \
	{ \
		__asm__ volatile("str" suffix " %" width "0, [%1]" \
				 : : "rZ"(value), "r"(at) : "memory"); \
	}

CALLGATE_ARCH_ACCESS(8, "b", "w")
CALLGATE_ARCH_ACCESS(16, "h", "w")
CALLGATE_ARCH_ACCESS(32, "", "w")
CALLGATE_ARCH_ACCESS(64, "", "x")

#undef CALLGATE_ARCH_ACCESS

static inline void callgate_arch_load_barrier(void)
{
	__asm__ volatile("dmb ld" : : : "memory");
}

static inline void callgate_arch_store_barrier(void)
{
	__asm__ volatile("dmb sy" : : : "memory");
}

static inline void callgate_arch_full_barrier(void)
{
	__asm__ volatile("dmb sy" : : : "memory");
}

static inline void callgate_arch_pause(void)
{
	__asm__ volatile("yield" : : : "memory");
}

static inline bool callgate_arch_has(unsigned int instruction)
{
	return instruction == CALLGATE_INSTRUCTION_HVC;
}

/* SMC Calling Convention: X4 to X17 may be lost.
 *
 * A variable that is a register holds its value only as long as nothing else is computed: so they
 * come last, and the instruction follows at once (GCC manual, "Specifying Registers for Local
 * Variables").
 */
static inline bool callgate_arch_hypercall(unsigned int instruction, uint32_t selector,
					   uint32_t vector, uint64_t *slots, uint32_t *status)
{
	if (!callgate_arch_has(instruction))
		return false;
	{
		register uint64_t x0 __asm__("x0") = selector;
		register uint64_t x1 __asm__("x1") = vector;
		register uint64_t x2 __asm__("x2") = slots[0];
		register uint64_t x3 __asm__("x3") = slots[1];
		register uint64_t x4 __asm__("x4") = slots[2];
		register uint64_t x5 __asm__("x5") = slots[3];
		register uint64_t x6 __asm__("x6") = slots[4];
		register uint64_t x7 __asm__("x7") = slots[5];

		__asm__ volatile("hvc #0"
				 : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3), "+r"(x4), "+r"(x5),
				   "+r"(x6), "+r"(x7)
				 : : "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15", "x16",
				   "x17", "memory", "cc");
		slots[0] = x1;
		slots[1] = x2;
		slots[2] = x3;
		slots[3] = x4;
		slots[4] = x5;
		slots[5] = x6;
		*status = (uint32_t)x0;
	}
	return true;
}

#endif /* CALLGATE_ARCH_AARCH64_H */
