/* SPDX-License-Identifier: MIT */
/* Gates of the interrupt descriptor table (Intel SDM, volume 3, 6.14.1). */
#ifndef BARE_IDT_H
#define BARE_IDT_H

#include <stdint.h>

struct idt_gate {
	uint16_t low;
	uint16_t selector;
	uint16_t type;
	uint16_t middle;
	uint32_t high;
	uint32_t reserved;
};
_Static_assert(sizeof(struct idt_gate) == 16, "a gate of 64-bit code");

#define IDT_INTERRUPT_GATE 0x8e00u /* present, for the kernel, interrupts off */

static inline void idt_set(struct idt_gate *gate, uint16_t selector, uint64_t handler)
{
	*gate = (struct idt_gate){
		.low = (uint16_t)handler,
		.selector = selector,
		.type = IDT_INTERRUPT_GATE,
		.middle = (uint16_t)(handler >> 16),
		.high = (uint32_t)(handler >> 32),
	};
}

#endif /* BARE_IDT_H */
