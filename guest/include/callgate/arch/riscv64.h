/* SPDX-License-Identifier: MIT */
#ifndef CALLGATE_ARCH_RISCV64_H
#define CALLGATE_ARCH_RISCV64_H

#include <callgate/abi.h>
#include <callgate/arch/noports.h>
#include <callgate/arch/plain.h>
#include <stdbool.h>

#define CALLGATE_ARCH_VALUES 6

static inline uint64_t callgate_arch_read64(const volatile void *at)
{
	return *(const volatile uint64_t *)at;
}

static inline void callgate_arch_write64(volatile void *at, uint64_t value)
{
	*(volatile uint64_t *)at = value;
}

static inline void callgate_arch_load_barrier(void)
{
	__asm__ volatile("fence ir, iorw" : : : "memory");
}

static inline void callgate_arch_store_barrier(void)
{
	__asm__ volatile("fence iorw, ow" : : : "memory");
}

static inline void callgate_arch_full_barrier(void)
{
	__asm__ volatile("fence iorw, iorw" : : : "memory");
}

static inline void callgate_arch_pause(void)
{
	/* PAUSE of Zihintpause: a hint, and nothing elsewhere. Not all assemblers know it. */
	__asm__ volatile(".4byte 0x0100000f" : : : "memory");
}

static inline bool callgate_arch_has(unsigned int instruction)
{
	return instruction == CALLGATE_INSTRUCTION_ECALL;
}

/* A variable that is a register holds its value only as long as nothing else is computed: so they
 * come last, and the instruction follows at once (GCC manual, "Specifying Registers for Local
 * Variables").
 */
static inline bool callgate_arch_hypercall(unsigned int instruction, uint32_t selector,
					   uint32_t vector, uint64_t *slots, uint32_t *status)
{
	if (!callgate_arch_has(instruction))
		return false;
	{
		register uint64_t a0 __asm__("a0") = slots[0];
		register uint64_t a1 __asm__("a1") = slots[1];
		register uint64_t a2 __asm__("a2") = slots[2];
		register uint64_t a3 __asm__("a3") = slots[3];
		register uint64_t a4 __asm__("a4") = slots[4];
		register uint64_t a5 __asm__("a5") = slots[5];
		register uint64_t a6 __asm__("a6") = vector;
		register uint64_t a7 __asm__("a7") = selector;

		__asm__ volatile("ecall"
				 : "+r"(a0), "+r"(a1), "+r"(a2), "+r"(a3), "+r"(a4), "+r"(a5),
				   "+r"(a6)
				 : "r"(a7)
				 : "memory");
		slots[0] = a1;
		slots[1] = a2;
		slots[2] = a3;
		slots[3] = a4;
		slots[4] = a5;
		slots[5] = a6;
		*status = (uint32_t)a0;
	}
	return true;
}

#endif /* CALLGATE_ARCH_RISCV64_H */
