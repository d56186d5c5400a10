/* SPDX-License-Identifier: MIT */
/* <callgate/environment.h> without an operating system: addresses are physical, and nobody else
 * hands out BARs.
 */
#include "board.h"

#include <callgate/environment.h>

uint32_t callgate_env_config_read(uint16_t function, unsigned int offset, unsigned int size)
{
	return board_config_read(function, offset, size);
}

void callgate_env_config_write(uint16_t function, unsigned int offset, unsigned int size,
			       uint32_t value)
{
	board_config_write(function, offset, size, value);
}

uint64_t callgate_env_place(bool io, uint64_t size)
{
	static uint64_t next[2] = { BOARD_BARS, BOARD_PORTS };
	const uint64_t end = io ? BOARD_PORTS_END : BOARD_BARS_END;
	const uint64_t at = (next[io] + size - 1) & ~(size - 1);

	if (at < next[io] || at > end || size > end - at)
		return 0;
	next[io] = at + size;
	return at;
}

volatile uint8_t *callgate_env_map(uint16_t function, unsigned int index, bool io,
				   uint64_t address, uint64_t size)
{
	(void)function;
	(void)index;
	if (io)
		return board_ports(address);
	if (size - 1 > UINTPTR_MAX - address || address + size - 1 > BOARD_LAST_ADDRESS)
		return NULL;
	return (volatile uint8_t *)(uintptr_t)address;
}

uint64_t callgate_env_address(const volatile void *memory)
{
	return (uintptr_t)memory;
}

bool callgate_env_privileged(void)
{
	return true;
}
