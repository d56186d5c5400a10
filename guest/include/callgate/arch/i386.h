/* SPDX-License-Identifier: MIT */
#ifndef CALLGATE_ARCH_I386_H
#define CALLGATE_ARCH_I386_H

#include <callgate/arch/x86.h>

#define CALLGATE_ARCH_VALUES 3 /* each takes two of the six registers */

static inline uint64_t callgate_arch_read64(const volatile void *at)
{
	uint32_t low = callgate_arch_read32(at);

	return low | (uint64_t)callgate_arch_read32((const volatile uint8_t *)at + 4) << 32;
}

static inline void callgate_arch_write64(volatile void *at, uint64_t value)
{
	callgate_arch_write32(at, (uint32_t)value);
	callgate_arch_write32((volatile uint8_t *)at + 4, (uint32_t)(value >> 32));
}

static inline void callgate_arch_full_barrier(void)
{
	__asm__ volatile("lock; addl $0, (%%esp)" : : : "memory", "cc");
}

static inline bool callgate_arch_has(unsigned int instruction)
{
	return instruction == CALLGATE_INSTRUCTION_VMCALL ||
	       instruction == CALLGATE_INSTRUCTION_VMMCALL ||
	       instruction == CALLGATE_INSTRUCTION_INT_1F;
}

/* The call takes every register but ESP: EBP and EBX, which the compiler may need, wait on the
 * stack, and so does the address of the registers' image.
 */
#define CALLGATE_ARCH_TRAP(instruction, image) \
	__asm__ volatile("pushl %%ebp\n\t" \
			 "pushl %%ebx\n\t" \
			 "pushl %%eax\n\t" \
			 "movl 4(%%eax), %%ebx\n\t" \
			 "movl 8(%%eax), %%ecx\n\t" \
			 "movl 12(%%eax), %%edx\n\t" \
			 "movl 16(%%eax), %%esi\n\t" \
			 "movl 20(%%eax), %%edi\n\t" \
			 "movl 24(%%eax), %%ebp\n\t" \
			 "movl (%%eax), %%eax\n\t" \
			 instruction "\n\t" \
			 "xchgl %%eax, (%%esp)\n\t" \
			 "movl %%ebx, 4(%%eax)\n\t" \
			 "movl %%ecx, 8(%%eax)\n\t" \
			 "movl %%edx, 12(%%eax)\n\t" \
			 "movl %%esi, 16(%%eax)\n\t" \
			 "movl %%edi, 20(%%eax)\n\t" \
			 "movl %%ebp, 24(%%eax)\n\t" \
			 "popl (%%eax)\n\t" \
			 "popl %%ebx\n\t" \
			 "popl %%ebp" \
			 : "+a"(image) : : "ecx", "edx", "esi", "edi", "memory", "cc")

static inline bool callgate_arch_hypercall(unsigned int instruction, uint32_t selector,
					   uint32_t vector, uint64_t *slots, uint32_t *status)
{
	uint32_t image[7] = { vector };
	uint32_t *at = image;
	unsigned int i;

	(void)selector;
	for (i = 0; i < CALLGATE_ARCH_VALUES; i++) {
		image[1 + 2 * i] = (uint32_t)slots[i];
		image[2 + 2 * i] = (uint32_t)(slots[i] >> 32);
	}
	switch (instruction) {
	case CALLGATE_INSTRUCTION_VMCALL:
		CALLGATE_ARCH_TRAP("vmcall", at);
		break;
	case CALLGATE_INSTRUCTION_VMMCALL:
		CALLGATE_ARCH_TRAP("vmmcall", at);
		break;
	case CALLGATE_INSTRUCTION_INT_1F:
		CALLGATE_ARCH_TRAP("int $0x1f", at);
		break;
	default:
		return false;
	}
	for (i = 0; i < CALLGATE_ARCH_VALUES; i++)
		slots[i] = image[1 + 2 * i] | (uint64_t)image[2 + 2 * i] << 32;
	*status = image[0];
	return true;
}

#undef CALLGATE_ARCH_TRAP

#endif /* CALLGATE_ARCH_I386_H */
