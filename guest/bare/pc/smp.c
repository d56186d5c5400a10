/* SPDX-License-Identifier: MIT */
/* INIT, then SIPI (Intel SDM, volume 3, 9.4.4). */
#include "smp.h"
#include "bare.h"

#include <callgate/arch.h>
#include <stdint.h>
#include <string.h>

#define APIC_SPURIOUS    0xfee000f0u
#define APIC_ENABLE      0x1ffu
#define APIC_COMMAND     0xfee00300u
#define APIC_DESTINATION 0xfee00310u
#define APIC_PENDING     0x1000u
#define APIC_INIT        0x4500u
#define APIC_STARTUP     0x4600u /* and the page's number */

#define PATIENCE 1000000u

extern const uint8_t smp_code[], smp_code_end[];

static uint8_t stacks[BARE_PROCESSORS][SMP_STACK_SIZE] __attribute__((aligned(16)));
static void (*volatile work)(unsigned int number);
static volatile unsigned int starting;
static volatile int answered;

static void set(unsigned int offset, unsigned long value)
{
	callgate_arch_write32((void *)(uintptr_t)(SMP_PAGE + offset), (uint32_t)value);
}

static void begin(void)
{
	const unsigned int number = starting;
	void (*const run)(unsigned int) = work;

	answered = 1;
	run(number);
}

static void command(unsigned int number, uint32_t what)
{
	callgate_arch_write32((void *)(uintptr_t)APIC_DESTINATION, number << 24);
	callgate_arch_write32((void *)(uintptr_t)APIC_COMMAND, what);
	while (callgate_arch_read32((void *)(uintptr_t)APIC_COMMAND) & APIC_PENDING)
		callgate_arch_pause();
}

int bare_start_processor(unsigned int number, void (*run)(unsigned int number))
{
	unsigned long cr0, cr3, cr4;
	unsigned int tries;

	if (number == 0 || number >= BARE_PROCESSORS)
		return -1;
	memcpy((void *)(uintptr_t)SMP_PAGE, smp_code, (size_t)(smp_code_end - smp_code));
	__asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
	__asm__ volatile("mov %%cr3, %0" : "=r"(cr3));
	__asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
	set(SMP_CR0, cr0);
	set(SMP_CR3, cr3);
	set(SMP_CR4, cr4);
	set(SMP_STACK, (uintptr_t)stacks[number] + SMP_STACK_SIZE);
	set(SMP_ENTRY, (uintptr_t)begin);
	work = run;
	starting = number;
	answered = 0;
	callgate_arch_full_barrier();
	callgate_arch_write32((void *)(uintptr_t)APIC_SPURIOUS, APIC_ENABLE);
	command(number, APIC_INIT);
	command(number, APIC_STARTUP | SMP_PAGE >> 12);
	for (tries = 0; tries < PATIENCE && !answered; tries++)
		callgate_arch_pause();
	return answered ? 0 : -1;
}
