/* SPDX-License-Identifier: MIT */
/* PCI functions: walking the bus, capabilities, BARs. PCI Local Bus 3.0, chapter 6. */
#ifndef CALLGATE_PCI_H
#define CALLGATE_PCI_H

#include <callgate/arch.h>
#include <callgate/environment.h>

#define CALLGATE_PCI_ID              0x00
#define CALLGATE_PCI_COMMAND         0x04
#define CALLGATE_PCI_STATUS          0x06
#define CALLGATE_PCI_HEADER_TYPE     0x0e
#define CALLGATE_PCI_BAR             0x10
#define CALLGATE_PCI_SUBORDINATE_BUS 0x1a
#define CALLGATE_PCI_CAPABILITIES    0x34
#define CALLGATE_PCI_INTERRUPT_PIN   0x3d

#define CALLGATE_PCI_COMMAND_IO     0x1u
#define CALLGATE_PCI_COMMAND_MEMORY 0x2u
#define CALLGATE_PCI_COMMAND_MASTER 0x4u
#define CALLGATE_PCI_COMMAND_NO_PIN 0x400u
#define CALLGATE_PCI_STATUS_PIN     0x8u
#define CALLGATE_PCI_STATUS_LIST    0x10u

#define CALLGATE_PCI_CAPABILITY_MSI    0x05u
#define CALLGATE_PCI_CAPABILITY_VENDOR 0x09u
#define CALLGATE_PCI_CAPABILITY_MSIX   0x11u

#define CALLGATE_PCI_BARS     6u
#define CALLGATE_PCI_NOTHING  0xffffu     /* no function has this address: bus 255, device 31.7 */
#define CALLGATE_PCI_ALL_ONES 0xffffffffu

static inline uint32_t callgate_pci_read(uint16_t function, unsigned int offset, unsigned int size)
{
	return callgate_env_config_read(function, offset, size);
}

static inline void callgate_pci_write(uint16_t function, unsigned int offset, unsigned int size,
				      uint32_t value)
{
	callgate_env_config_write(function, offset, size, value);
}

static inline uint16_t callgate_pci_vendor(uint16_t function)
{
	return (uint16_t)callgate_pci_read(function, CALLGATE_PCI_ID, 2);
}

static inline uint16_t callgate_pci_device(uint16_t function)
{
	return (uint16_t)callgate_pci_read(function, CALLGATE_PCI_ID + 2, 2);
}

static inline bool callgate_pci_present(uint16_t function)
{
	return callgate_pci_vendor(function) != 0xffff;
}

/* A walk over all functions:
 *
 *	struct callgate_pci_walk walk = { 0 };
 *	while (callgate_pci_next(&walk))
 *		... walk.function ...
 *
 * Bus 0, and then as many as its bridges say.
 */
struct callgate_pci_walk {
	uint16_t function;
	uint32_t next;
	uint8_t last_bus;
};

static inline bool callgate_pci_next(struct callgate_pci_walk *walk)
{
	uint32_t at;

	for (at = walk->next; at >> 8 <= walk->last_bus; at++) {
		uint8_t type, bus;

		if (!callgate_pci_present((uint16_t)at)) {
			if ((at & 7) == 0)
				at |= 7; /* without function 0 there are no others */
			continue;
		}
		type = (uint8_t)callgate_pci_read((uint16_t)at, CALLGATE_PCI_HEADER_TYPE, 1);
		if ((type & 0x7f) == 1) {
			bus = (uint8_t)callgate_pci_read((uint16_t)at,
							 CALLGATE_PCI_SUBORDINATE_BUS, 1);
			if (bus > walk->last_bus)
				walk->last_bus = bus;
		}
		walk->function = (uint16_t)at;
		walk->next = at + 1;
		if ((at & 7) == 0 && !(type & 0x80))
			walk->next = at + 8;
		return true;
	}
	walk->next = at;
	return false;
}

/* Offset of the capability number `skip` (0: the first) that has this id, or 0. */
static inline uint8_t callgate_pci_capability(uint16_t function, uint8_t id, unsigned int skip)
{
	unsigned int steps;
	uint8_t at;

	if (!(callgate_pci_read(function, CALLGATE_PCI_STATUS, 2) & CALLGATE_PCI_STATUS_LIST))
		return 0;
	at = (uint8_t)callgate_pci_read(function, CALLGATE_PCI_CAPABILITIES, 1);
	/* 48 capabilities fill the space; a longer list is a circle. */
	for (steps = 0; steps < 48; steps++) {
		at &= 0xfc;
		if (at < 0x40)
			return 0;
		if (callgate_pci_read(function, at, 1) == id && !skip--)
			return at;
		at = (uint8_t)callgate_pci_read(function, at + 1u, 1);
	}
	return 0;
}

/* Clear, then set bits of the command register. */
static inline void callgate_pci_change(uint16_t function, uint16_t clear, uint16_t set)
{
	uint32_t command = callgate_pci_read(function, CALLGATE_PCI_COMMAND, 2);

	callgate_pci_write(function, CALLGATE_PCI_COMMAND, 2, (command & ~(uint32_t)clear) | set);
}

static inline void callgate_pci_enable(uint16_t function, uint16_t bits)
{
	callgate_pci_change(function, 0, bits);
}

/* One BAR; `size` 0: there is none. */
struct callgate_bar {
	uint64_t address;
	uint64_t size;
	volatile uint8_t *memory; /* NULL: I/O instructions reach it, or nothing does */
	bool io;
	bool wide;                /* 64 bits: it takes the next index too */
};

/* Measure a BAR, and give it an address if it has none. Decoding must be off. */
static inline void callgate_pci_measure(uint16_t function, unsigned int index,
					struct callgate_bar *bar)
{
	unsigned int at = CALLGATE_PCI_BAR + 4 * index;
	uint32_t low, high = 0;
	uint64_t mask;

	*bar = (struct callgate_bar){ 0 };
	low = callgate_pci_read(function, at, 4);
	bar->io = low & 1;
	bar->wide = !bar->io && (low & 6) == 4 && index + 1 < CALLGATE_PCI_BARS;
	callgate_pci_write(function, at, 4, CALLGATE_PCI_ALL_ONES);
	mask = callgate_pci_read(function, at, 4);
	callgate_pci_write(function, at, 4, low);
	if (bar->wide) {
		high = callgate_pci_read(function, at + 4, 4);
		callgate_pci_write(function, at + 4, 4, CALLGATE_PCI_ALL_ONES);
		mask |= (uint64_t)callgate_pci_read(function, at + 4, 4) << 32;
		callgate_pci_write(function, at + 4, 4, high);
	} else if (mask) {
		mask |= bar->io ? 0xffffffffffff0000u : 0xffffffff00000000u;
	}
	mask &= bar->io ? ~(uint64_t)3 : ~(uint64_t)15;
	if (!mask)
		return;
	bar->size = ~mask + 1;
	bar->address = ((uint64_t)high << 32 | low) & mask;
	if (bar->address)
		return;
	bar->address = callgate_env_place(bar->io, bar->size);
	callgate_pci_write(function, at, 4, (uint32_t)bar->address);
	if (bar->wide)
		callgate_pci_write(function, at + 4, 4, (uint32_t)(bar->address >> 32));
}

/* Measure and map all BARs of an ordinary function. Decoding is off for a moment. */
static inline void callgate_pci_bars(uint16_t function, struct callgate_bar bars[CALLGATE_PCI_BARS])
{
	uint32_t command = callgate_pci_read(function, CALLGATE_PCI_COMMAND, 2);
	const uint32_t decode = CALLGATE_PCI_COMMAND_IO | CALLGATE_PCI_COMMAND_MEMORY;
	unsigned int index;

	if (command & decode)
		callgate_pci_write(function, CALLGATE_PCI_COMMAND, 2, command & ~decode);
	for (index = 0; index < CALLGATE_PCI_BARS; index++) {
		callgate_pci_measure(function, index, &bars[index]);
		if (bars[index].wide) {
			index++;
			bars[index] = (struct callgate_bar){ 0 };
		}
	}
	if (command & decode)
		callgate_pci_write(function, CALLGATE_PCI_COMMAND, 2, command);
	for (index = 0; index < CALLGATE_PCI_BARS; index++) {
		struct callgate_bar *bar = &bars[index];

		if (bar->size && bar->address)
			bar->memory = callgate_env_map(function, index, bar->io, bar->address,
						       bar->size);
	}
}

/* Whether `length` bytes at `offset` lie in the BAR and can be reached. */
static inline bool callgate_bar_holds(const struct callgate_bar *bar, uint64_t offset,
				      uint64_t length)
{
	if (!bar->address || (!bar->memory && !(bar->io && CALLGATE_ARCH_PORTS)))
		return false;
	return offset <= bar->size && length <= bar->size - offset;
}

/* One access of 1, 2, 4 or 8 bytes, `offset` a multiple; outside of the BAR all ones. Loads that
 * come later see what the device wrote to RAM before it answered.
 */
static inline uint64_t callgate_bar_read(const struct callgate_bar *bar, uint64_t offset,
					 unsigned int size)
{
	const volatile uint8_t *at = bar->memory;
	uint64_t value = UINT64_MAX;

	if (!callgate_bar_holds(bar, offset, size))
		return value;
	if (at)
		at += (uintptr_t)offset;
	if (!at)
		value = callgate_arch_in((uint16_t)(bar->address + offset), size);
	else if (size == 1)
		value = callgate_arch_read8(at);
	else if (size == 2)
		value = callgate_arch_read16(at);
	else if (size == 4)
		value = callgate_arch_read32(at);
	else if (size == 8)
		value = callgate_arch_read64(at);
	callgate_arch_load_barrier();
	return value;
}

/* The same for writing; outside of the BAR nothing. The device sees stores that came before. */
static inline void callgate_bar_write(const struct callgate_bar *bar, uint64_t offset,
				      unsigned int size, uint64_t value)
{
	volatile uint8_t *at = bar->memory;

	if (!callgate_bar_holds(bar, offset, size))
		return;
	callgate_arch_store_barrier();
	if (at)
		at += (uintptr_t)offset;
	if (!at)
		callgate_arch_out((uint16_t)(bar->address + offset), size, (uint32_t)value);
	else if (size == 1)
		callgate_arch_write8(at, (uint8_t)value);
	else if (size == 2)
		callgate_arch_write16(at, (uint16_t)value);
	else if (size == 4)
		callgate_arch_write32(at, (uint32_t)value);
	else if (size == 8)
		callgate_arch_write64(at, value);
}

/* Config space through a memory window (PCI Express 2.0, 7.2.2), for environments that have one. */
static inline uint32_t callgate_ecam_read(volatile uint8_t *window, uint16_t function,
					  unsigned int offset, unsigned int size)
{
	volatile uint8_t *at = window + ((uintptr_t)function << 12) + offset;

	if (size == 1)
		return callgate_arch_read8(at);
	return size == 2 ? callgate_arch_read16(at) : callgate_arch_read32(at);
}

static inline void callgate_ecam_write(volatile uint8_t *window, uint16_t function,
				       unsigned int offset, unsigned int size, uint32_t value)
{
	volatile uint8_t *at = window + ((uintptr_t)function << 12) + offset;

	if (size == 1)
		callgate_arch_write8(at, (uint8_t)value);
	else if (size == 2)
		callgate_arch_write16(at, (uint16_t)value);
	else
		callgate_arch_write32(at, value);
}

#endif /* CALLGATE_PCI_H */
