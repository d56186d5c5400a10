/* SPDX-License-Identifier: MIT */
#include "bare.h"
#include "board.h"

#include <stdint.h>
#include <stdio.h>

void bare_start(void)
{
	board_start();
	bare_exit(main());
}

void bare_exit(int code)
{
	bare_flush();
	board_exit((uint32_t)code);
	for (;;)
		callgate_arch_pause();
}

void bare_fault(unsigned long what, unsigned long where, unsigned long address)
{
	printf("guest: exception 0x%lx at 0x%lx, address 0x%lx\n", what, where, address);
	bare_exit(BARE_FAULT_CODE);
}
