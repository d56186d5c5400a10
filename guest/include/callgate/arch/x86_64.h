/* SPDX-License-Identifier: MIT */
#ifndef CALLGATE_ARCH_X86_64_H
#define CALLGATE_ARCH_X86_64_H

#include <callgate/arch/x86.h>

#define CALLGATE_ARCH_VALUES 6

static inline uint64_t callgate_arch_read64(const volatile void *at)
{
	return *(const volatile uint64_t *)at;
}

static inline void callgate_arch_write64(volatile void *at, uint64_t value)
{
	*(volatile uint64_t *)at = value;
}

static inline void callgate_arch_full_barrier(void)
{
	__asm__ volatile("mfence" : : : "memory");
}

static inline bool callgate_arch_has(unsigned int instruction)
{
	return instruction == CALLGATE_INSTRUCTION_VMCALL ||
	       instruction == CALLGATE_INSTRUCTION_VMMCALL;
}

/* A variable that is a register holds its value only as long as nothing else is computed: so they
 * come last, and the instruction follows at once (GCC manual, "Specifying Registers for Local
 * Variables").
 */
#define CALLGATE_ARCH_TRAP(instruction, vector, slots) do { \
		register uint64_t r10 __asm__("r10") = (slots)[3]; \
		register uint64_t r8 __asm__("r8") = (slots)[4]; \
		register uint64_t r9 __asm__("r9") = (slots)[5]; \
\
		__asm__ volatile(instruction \
				 : "+a"(vector), "+D"((slots)[0]), "+S"((slots)[1]), \
				   "+d"((slots)[2]), "+r"(r10), "+r"(r8), "+r"(r9) \
				 : : "memory", "cc"); \
		(slots)[3] = r10; \
		(slots)[4] = r8; \
		(slots)[5] = r9; \
	} while (0)

static inline bool callgate_arch_hypercall(unsigned int instruction, uint32_t selector,
					   uint32_t vector, uint64_t *slots, uint32_t *status)
{
	(void)selector;
	switch (instruction) {
	case CALLGATE_INSTRUCTION_VMCALL:
		CALLGATE_ARCH_TRAP("vmcall", vector, slots);
		break;
	case CALLGATE_INSTRUCTION_VMMCALL:
		CALLGATE_ARCH_TRAP("vmmcall", vector, slots);
		break;
	default:
		return false;
	}
	*status = vector;
	return true;
}

#undef CALLGATE_ARCH_TRAP

#endif /* CALLGATE_ARCH_X86_64_H */
