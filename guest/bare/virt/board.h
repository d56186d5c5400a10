/* SPDX-License-Identifier: MIT */
/* What the boards `virt` share: config space and I/O ports are in memory. */
#ifndef BARE_VIRT_BOARD_H
#define BARE_VIRT_BOARD_H

#include <callgate/pci.h>

#define BOARD_PORTS     0xc000u
#define BOARD_PORTS_END 0x10000u

#define BOARD_LAST_ADDRESS UINT64_MAX

static inline volatile uint8_t *board_at(uint64_t address)
{
	return (volatile uint8_t *)(uintptr_t)address;
}

/* A bus that the config window does not show is empty. */
static inline bool board_has_config(uint16_t function, unsigned int offset)
{
	return function >> 8 < BOARD_ECAM_BUSES && offset < 4096;
}

static inline uint32_t board_config_read(uint16_t function, unsigned int offset, unsigned int size)
{
	if (!board_has_config(function, offset))
		return UINT32_MAX;
	return callgate_ecam_read(board_at(BOARD_ECAM), function, offset, size);
}

static inline void board_config_write(uint16_t function, unsigned int offset, unsigned int size,
				      uint32_t value)
{
	if (board_has_config(function, offset))
		callgate_ecam_write(board_at(BOARD_ECAM), function, offset, size, value);
}

static inline volatile uint8_t *board_ports(uint64_t port)
{
	return board_at(BOARD_PORTS_WINDOW + port);
}

#endif /* BARE_VIRT_BOARD_H */
