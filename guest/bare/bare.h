/* SPDX-License-Identifier: MIT */
/* The pieces of guest/bare and what they ask of each other.
 *
 *	start.S        the first instructions: stack, processor state, then bare_start()
 *	bare.c         start and end of a program
 *	board.h        the board of one processor: console, exit, config space, where BARs go
 *	messages.c     interrupt messages (pc/ by the local APIC, virt/ a word in RAM)
 *	environment.c  <callgate/environment.h> on the board
 *	stdio.c string.c
 */
#ifndef BARE_H
#define BARE_H

#define BARE_FAULT_CODE 127
#define BARE_STACK_SIZE 0x10000

#ifndef __ASSEMBLER__

int main(void); /* its result is the program's exit code, 0 to 127 */

__attribute__((noreturn)) void bare_start(void);
__attribute__((noreturn)) void bare_exit(int code);

/* The processor took an exception: says so and ends with code 127. */
__attribute__((noreturn)) void bare_fault(unsigned long what, unsigned long where,
					  unsigned long address);

#endif /* __ASSEMBLER__ */

#endif /* BARE_H */
