/* SPDX-License-Identifier: MIT */
/* Gates of the interrupt descriptor table (Intel SDM, volume 3, 6.11). */
#ifndef BARE_IDT_H
#define BARE_IDT_H

#include <stdint.h>

struct idt_gate {
	uint16_t low;
	uint16_t selector;
	uint16_t type;
	uint16_t high;
};
_Static_assert(sizeof(struct idt_gate) == 8, "a gate of 32-bit code");

#define IDT_INTERRUPT_GATE 0x8e00u /* present, for the kernel, interrupts off */

static inline void idt_set(struct idt_gate *gate, uint16_t selector, uint32_t handler)
{
	*gate = (struct idt_gate){
		.low = (uint16_t)handler,
		.selector = selector,
		.type = IDT_INTERRUPT_GATE,
		.high = (uint16_t)(handler >> 16),
	};
}

#endif /* BARE_IDT_H */
