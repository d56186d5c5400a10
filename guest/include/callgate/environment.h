/* SPDX-License-Identifier: MIT */
/* What the driver needs from where it runs. guest/bare defines these for a machine without an
 * operating system; a kernel, an RTOS or a program in user space gives its own.
 */
#ifndef CALLGATE_ENVIRONMENT_H
#define CALLGATE_ENVIRONMENT_H

#include <stdbool.h>
#include <stdint.h>

/* PCI config space. `function` is bus << 8 | device << 3 | function; `size` 1, 2 or 4; `offset` a
 * multiple of it. What is not there reads all ones.
 */
uint32_t callgate_env_config_read(uint16_t function, unsigned int offset, unsigned int size);
void callgate_env_config_write(uint16_t function, unsigned int offset, unsigned int size,
			       uint32_t value);

/* Where a BAR of `size` bytes may go that nobody has given an address, a multiple of `size`;
 * 0: no room.
 */
uint64_t callgate_env_place(bool io, uint64_t size);

/* Make a BAR accessible as device memory. NULL: it cannot be, or it is an I/O BAR and the
 * processor's I/O instructions reach it.
 */
volatile uint8_t *callgate_env_map(uint16_t function, unsigned int index, bool io,
				   uint64_t address, uint64_t size);

/* The guest physical address of memory that a device is to reach. */
uint64_t callgate_env_address(const volatile void *memory);

/* Whether this code has the kernel's privilege, which a hypercall takes (docs/abi.md, 6.3). */
bool callgate_env_privileged(void);

/* An interrupt message: what a device shall write, and where. Returns a handle, or -1: none left.
 * `take` says how often the message came since it was last asked (at least once, where messages
 * that came together count as one).
 */
int callgate_env_message_open(uint64_t *address, uint32_t *data);
uint32_t callgate_env_message_take(int message);
void callgate_env_message_close(int message);

#endif /* CALLGATE_ENVIRONMENT_H */
