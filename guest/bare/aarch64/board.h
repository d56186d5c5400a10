/* SPDX-License-Identifier: MIT */
/* The same addresses as QEMU's machine virt with highmem=off. */
#ifndef BARE_BOARD_H
#define BARE_BOARD_H

#define BOARD_BARS         0x10000000u
#define BOARD_BARS_END     0x3eff0000u
#define BOARD_PORTS_WINDOW 0x3eff0000u
#define BOARD_ECAM         0x3f000000u
#define BOARD_ECAM_BUSES   16

#include "virt/board.h"

#include <stddef.h>

/* PL011 serial port */
#define BOARD_CONSOLE        0x09000000u
#define BOARD_CONSOLE_DATA   0x00
#define BOARD_CONSOLE_FLAGS  0x18
#define BOARD_CONSOLE_NO_BYTE 0x10u
#define BOARD_CONSOLE_FULL    0x20u

/* Semihosting for AArch32 and AArch64, 2.0 */
#define BOARD_SYS_EXIT_EXTENDED 0x20
#define BOARD_APPLICATION_EXIT  0x20026

static inline void board_start(void)
{
}

static inline void board_put(uint8_t byte)
{
	while (callgate_arch_read32(board_at(BOARD_CONSOLE + BOARD_CONSOLE_FLAGS)) &
	       BOARD_CONSOLE_FULL)
		callgate_arch_pause();
	callgate_arch_write32(board_at(BOARD_CONSOLE + BOARD_CONSOLE_DATA), byte);
}

static inline void board_write(const char *text, size_t length)
{
	for (; length; length--)
		board_put((uint8_t)*text++);
}

static inline uint8_t board_get(void)
{
	while (callgate_arch_read32(board_at(BOARD_CONSOLE + BOARD_CONSOLE_FLAGS)) &
	       BOARD_CONSOLE_NO_BYTE)
		callgate_arch_pause();
	return (uint8_t)callgate_arch_read32(board_at(BOARD_CONSOLE + BOARD_CONSOLE_DATA));
}

static inline void board_exit(uint32_t code)
{
	const uint64_t block[2] = { BOARD_APPLICATION_EXIT, code };
	register uint64_t operation __asm__("x0") = BOARD_SYS_EXIT_EXTENDED;
	register const uint64_t *parameter __asm__("x1") = block;

	__asm__ volatile("hlt #0xf000" : "+r"(operation) : "r"(parameter) : "memory");
}

#endif /* BARE_BOARD_H */
