/* SPDX-License-Identifier: MIT */
/* The same addresses as QEMU's machine virt. */
#ifndef BARE_BOARD_H
#define BARE_BOARD_H

#define BOARD_BARS         0x40000000u
#define BOARD_BARS_END     0x80000000u
#define BOARD_PORTS_WINDOW 0x03000000u
#define BOARD_ECAM         0x30000000u
#define BOARD_ECAM_BUSES   256

#include "virt/board.h"

#include <stddef.h>

/* 16550 serial port */
#define BOARD_CONSOLE        0x10000000u
#define BOARD_CONSOLE_DATA   0
#define BOARD_CONSOLE_STATUS 5
#define BOARD_CONSOLE_READY  0x01u /* a byte is there */
#define BOARD_CONSOLE_EMPTY  0x20u /* a byte can be sent */

/* SiFive test device */
#define BOARD_EXIT      0x00100000u
#define BOARD_EXIT_PASS 0x5555u
#define BOARD_EXIT_FAIL 0x3333u

static inline void board_start(void)
{
}

static inline void board_put(uint8_t byte)
{
	while (!(callgate_arch_read8(board_at(BOARD_CONSOLE + BOARD_CONSOLE_STATUS)) &
		 BOARD_CONSOLE_EMPTY))
		callgate_arch_pause();
	callgate_arch_write8(board_at(BOARD_CONSOLE + BOARD_CONSOLE_DATA), byte);
}

static inline void board_write(const char *text, size_t length)
{
	for (; length; length--)
		board_put((uint8_t)*text++);
}

static inline uint8_t board_get(void)
{
	while (!(callgate_arch_read8(board_at(BOARD_CONSOLE + BOARD_CONSOLE_STATUS)) &
		 BOARD_CONSOLE_READY))
		callgate_arch_pause();
	return callgate_arch_read8(board_at(BOARD_CONSOLE + BOARD_CONSOLE_DATA));
}

static inline void board_exit(uint32_t code)
{
	callgate_arch_write32(board_at(BOARD_EXIT),
			      code ? code << 16 | BOARD_EXIT_FAIL : BOARD_EXIT_PASS);
}

#endif /* BARE_BOARD_H */
