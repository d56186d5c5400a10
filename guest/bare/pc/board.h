/* SPDX-License-Identifier: MIT */
/* The PC: x86_64 and i386. The same addresses as QEMU's machine q35. */
#ifndef BARE_PC_BOARD_H
#define BARE_PC_BOARD_H

#include <callgate/arch.h>

#define BOARD_BARS      0xc0000000u
#define BOARD_BARS_END  0xd0000000u
#define BOARD_PORTS     0xc000u
#define BOARD_PORTS_END 0x10000u

/* The highest address that code can reach: what start.S maps. */
#define BOARD_LAST_ADDRESS 0xffffffffu

/* 16550 serial port */
#define BOARD_CONSOLE_DATA   0x3f8
#define BOARD_CONSOLE_STATUS 0x3fd
#define BOARD_CONSOLE_READY  0x01u /* a byte is there */
#define BOARD_CONSOLE_EMPTY  0x20u /* a byte can be sent */

#define BOARD_EXIT 0xf4

void board_start(void);

static inline void board_put(uint8_t byte)
{
	while (!(callgate_arch_in(BOARD_CONSOLE_STATUS, 1) & BOARD_CONSOLE_EMPTY))
		callgate_arch_pause();
	callgate_arch_out(BOARD_CONSOLE_DATA, 1, byte);
}

static inline uint8_t board_get(void)
{
	while (!(callgate_arch_in(BOARD_CONSOLE_STATUS, 1) & BOARD_CONSOLE_READY))
		callgate_arch_pause();
	return (uint8_t)callgate_arch_in(BOARD_CONSOLE_DATA, 1);
}

static inline void board_exit(uint32_t code)
{
	callgate_arch_out(BOARD_EXIT, 4, code);
}

static inline uint32_t board_config_read(uint16_t function, unsigned int offset, unsigned int size)
{
	return callgate_arch_config_read(function, offset, size);
}

static inline void board_config_write(uint16_t function, unsigned int offset, unsigned int size,
				      uint32_t value)
{
	callgate_arch_config_write(function, offset, size, value);
}

/* Where I/O ports are in memory: nowhere. */
static inline volatile uint8_t *board_ports(uint64_t port)
{
	(void)port;
	return NULL;
}

#endif /* BARE_PC_BOARD_H */
