/* SPDX-License-Identifier: MIT */
/* The PC: x86_64 and i386. The same addresses as QEMU's machine q35. */
#ifndef BARE_PC_BOARD_H
#define BARE_PC_BOARD_H

#include <callgate/arch.h>

#include <stdbool.h>
#include <stddef.h>

#define BOARD_BARS      0xc0000000u
#define BOARD_BARS_END  0xd0000000u
#define BOARD_PORTS     0xc000u
#define BOARD_PORTS_END 0x10000u

/* The highest address that code can reach: what start.S maps. */
#define BOARD_LAST_ADDRESS 0xffffffffu

/* 16550 serial port */
#define BOARD_CONSOLE_DATA    0x3f8
#define BOARD_CONSOLE_ENABLE  0x3f9
#define BOARD_CONSOLE_CAUSE   0x3fa
#define BOARD_CONSOLE_STATUS  0x3fd
#define BOARD_CONSOLE_READY   0x01u /* a byte is there */
#define BOARD_CONSOLE_EMPTY   0x20u /* all bytes are sent */
#define BOARD_CONSOLE_DEPTH   16u   /* bytes that can be sent then */
#define BOARD_CONSOLE_FIFOS   0xc0u /* they are on: of the cause */
#define BOARD_CONSOLE_RECEIVE 0x01u /* tell of them as a cause */
#define BOARD_CONSOLE_SEVERAL 0x04u /* the cause: there are several */

#define BOARD_EXIT 0xf4

/* Whether the FIFOs were on, and tell of 4 bytes, when we began: to turn them on would lose what came
 * by then. With them several bytes go by one instruction, each of which is an exit where a
 * hypervisor runs us.
 */
extern bool board_fifos;

void board_start(void);

static inline void board_write(const char *text, size_t length)
{
	const size_t depth = board_fifos ? BOARD_CONSOLE_DEPTH : 1;

	while (length) {
		size_t part = length < depth ? length : depth;

		length -= part;
		while (!(callgate_arch_in(BOARD_CONSOLE_STATUS, 1) & BOARD_CONSOLE_EMPTY))
			callgate_arch_pause();
		__asm__ volatile("rep outsb"
				 : "+S"(text), "+c"(part)
				 : "d"((uint16_t)BOARD_CONSOLE_DATA)
				 : "memory");
	}
}

static inline uint8_t board_get(void)
{
	static uint8_t bytes[4];
	static unsigned int taken, there;

	while (taken == there) {
		taken = there = 0;
		if (board_fifos &&
		    (callgate_arch_in(BOARD_CONSOLE_CAUSE, 1) & 0x0f) == BOARD_CONSOLE_SEVERAL) {
			uint8_t *to = bytes;
			size_t count = sizeof(bytes);

			__asm__ volatile("rep insb"
					 : "+D"(to), "+c"(count)
					 : "d"((uint16_t)BOARD_CONSOLE_DATA)
					 : "memory");
			there = sizeof(bytes);
		} else if (callgate_arch_in(BOARD_CONSOLE_STATUS, 1) & BOARD_CONSOLE_READY) {
			bytes[0] = (uint8_t)callgate_arch_in(BOARD_CONSOLE_DATA, 1);
			there = 1;
		} else {
			callgate_arch_pause();
		}
	}
	return bytes[taken++];
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
