/* SPDX-License-Identifier: MIT */
/* Exceptions, and interrupt messages: a write to the local APIC raises a vector of the IDT (Intel
 * SDM, volume 3, chapters 6 and 11).
 */
#include "bare.h"
#include "board.h"
#include "idt.h"

#include <callgate/environment.h>

#define MESSAGES      16
#define FIRST_MESSAGE 0x40 /* its vector */
#define VECTORS       (FIRST_MESSAGE + MESSAGES)
#define CODE_SELECTOR 0x08 /* of the GDT in start.S */

#define APIC          0xfee00000u
#define APIC_EOI      0x0b0u
#define APIC_SPURIOUS 0x0f0u
#define APIC_ENABLE   0x1ffu /* with spurious vector 0xff */

#define PIC_MASKS 0x21
#define PIC_SLAVE_MASKS 0xa1

/* What the processor pushes. */
struct interrupted {
	unsigned long ip, cs, flags, sp, ss;
};

static volatile uint32_t came[MESSAGES];
static uint32_t taken[MESSAGES];
static uint32_t opened; /* a bit each */
static struct idt_gate idt[VECTORS];

bool board_fifos;

static volatile void *apic(uint32_t offset)
{
	return (volatile void *)(uintptr_t)(APIC + offset);
}

static void message(unsigned int number)
{
	came[number]++;
	callgate_arch_write32(apic(APIC_EOI), 0);
}

static unsigned long fault_address(void)
{
	unsigned long address;

	__asm__ volatile("mov %%cr2, %0" : "=r"(address));
	return address;
}

#define PASTE(a, b) a##b

/* A function each, since the processor tells no function its vector. */
#define MESSAGE(number) \
	__attribute__((interrupt)) static void PASTE(message_, number)(struct interrupted *at) \
	{ \
		(void)at; \
		message(number); \
	}
#define FAULT(number) \
	__attribute__((interrupt)) static void PASTE(fault_, number)(struct interrupted *at) \
	{ \
		bare_fault(number, at->ip, fault_address()); \
	}
#define FAULT_WITH_CODE(number) \
	__attribute__((interrupt)) static void PASTE(fault_, number)(struct interrupted *at, \
								     unsigned long code) \
	{ \
		(void)code; \
		bare_fault(number, at->ip, fault_address()); \
	}

#define EACH_MESSAGE(X) \
	X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define EACH_FAULT(X) \
	X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(9) X(15) X(16) X(18) X(19)
#define EACH_FAULT_WITH_CODE(X) X(8) X(10) X(11) X(12) X(13) X(14) X(17)

EACH_MESSAGE(MESSAGE)
EACH_FAULT(FAULT)
EACH_FAULT_WITH_CODE(FAULT_WITH_CODE)

#define SET_MESSAGE(number) \
	idt_set(&idt[FIRST_MESSAGE + (number)], CODE_SELECTOR, \
		(uintptr_t)PASTE(message_, number));
#define SET_FAULT(number) idt_set(&idt[number], CODE_SELECTOR, (uintptr_t)PASTE(fault_, number));

void board_start(void)
{
	const struct {
		uint16_t limit;
		uintptr_t base;
	} __attribute__((packed)) table = { sizeof(idt) - 1, (uintptr_t)idt };

	EACH_MESSAGE(SET_MESSAGE)
	EACH_FAULT(SET_FAULT)
	EACH_FAULT_WITH_CODE(SET_FAULT)
	__asm__ volatile("lidt %0" : : "m"(table));
	board_fifos = (callgate_arch_in(BOARD_CONSOLE_CAUSE, 1) & BOARD_CONSOLE_FIFOS) ==
		      BOARD_CONSOLE_FIFOS;
	if (board_fifos)
		callgate_arch_out(BOARD_CONSOLE_ENABLE, 1, BOARD_CONSOLE_RECEIVE);
}

/* The first one turns interrupts on: a guest that has none is not disturbed. */
static void start_messages(void)
{
	callgate_arch_out(PIC_MASKS, 1, 0xff);
	callgate_arch_out(PIC_SLAVE_MASKS, 1, 0xff);
	callgate_arch_write32(apic(APIC_SPURIOUS), APIC_ENABLE);
	__asm__ volatile("sti" : : : "memory");
}

int callgate_env_message_open(uint64_t *address, uint32_t *data)
{
	int number;

	for (number = 0; number < MESSAGES; number++) {
		if (opened >> number & 1)
			continue;
		if (!opened)
			start_messages();
		opened |= 1u << number;
		taken[number] = came[number];
		*address = APIC; /* physical destination 0, fixed delivery, edge */
		*data = FIRST_MESSAGE + (uint32_t)number;
		return number;
	}
	return -1;
}

uint32_t callgate_env_message_take(int number)
{
	uint32_t count = came[number] - taken[number];

	taken[number] += count;
	return count;
}

void callgate_env_message_close(int number)
{
	opened &= ~(1u << number);
}
