/* SPDX-License-Identifier: MIT */
/* What x86_64 and i386 share. */
#ifndef CALLGATE_ARCH_X86_H
#define CALLGATE_ARCH_X86_H

#include <callgate/abi.h>
#include <callgate/arch/plain.h>
#include <stdbool.h>

#define CALLGATE_ARCH_PORTS 1

static inline uint32_t callgate_arch_in(uint16_t port, unsigned int size)
{
	uint32_t value = 0;

	if (size == 1)
		__asm__ volatile("inb %w1, %b0" : "+a"(value) : "Nd"(port) : "memory");
	else if (size == 2)
		__asm__ volatile("inw %w1, %w0" : "+a"(value) : "Nd"(port) : "memory");
	else
		__asm__ volatile("inl %w1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

static inline void callgate_arch_out(uint16_t port, unsigned int size, uint32_t value)
{
	if (size == 1)
		__asm__ volatile("outb %b0, %w1" : : "a"(value), "Nd"(port) : "memory");
	else if (size == 2)
		__asm__ volatile("outw %w0, %w1" : : "a"(value), "Nd"(port) : "memory");
	else
		__asm__ volatile("outl %0, %w1" : : "a"(value), "Nd"(port) : "memory");
}

/* Loads pass no loads and stores pass no stores here; only the compiler must be held back. */
static inline void callgate_arch_load_barrier(void)
{
	__asm__ volatile("" : : : "memory");
}

static inline void callgate_arch_store_barrier(void)
{
	__asm__ volatile("" : : : "memory");
}

static inline void callgate_arch_pause(void)
{
	__asm__ volatile("pause" : : : "memory");
}

/* PCI configuration mechanism 1 (PCI Local Bus 3.0, 3.2.2.3.2): the first 256 bytes. */
#define CALLGATE_ARCH_CONFIG_ADDRESS 0xcf8
#define CALLGATE_ARCH_CONFIG_DATA    0xcfc

static inline void callgate_arch_config_select(uint16_t function, unsigned int offset)
{
	callgate_arch_out(CALLGATE_ARCH_CONFIG_ADDRESS, 4,
			  0x80000000u | (uint32_t)function << 8 | (offset & 0xfc));
}

static inline uint32_t callgate_arch_config_read(uint16_t function, unsigned int offset,
						 unsigned int size)
{
	callgate_arch_config_select(function, offset);
	return callgate_arch_in(CALLGATE_ARCH_CONFIG_DATA + (offset & 3), size);
}

static inline void callgate_arch_config_write(uint16_t function, unsigned int offset,
					      unsigned int size, uint32_t value)
{
	callgate_arch_config_select(function, offset);
	callgate_arch_out(CALLGATE_ARCH_CONFIG_DATA + (offset & 3), size, value);
}

#endif /* CALLGATE_ARCH_X86_H */
