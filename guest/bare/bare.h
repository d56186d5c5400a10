/* SPDX-License-Identifier: MIT */
/* The pieces of guest/bare and what they ask of each other.
 *
 *	start.S        the first instructions: stack, processor state, then bare_start()
 *	bare.c         start and end of a program
 *	board.h        the board of one processor: console, exit, config space, where BARs go
 *	messages.c     interrupt messages (pc/ by the local APIC, virt/ a word in RAM)
 *	smp.c smp.S    further processors (pc/)
 *	environment.c  <callgate/environment.h> on the board
 *	stdio.c string.c
 */
#ifndef BARE_H
#define BARE_H

#define BARE_FAULT_CODE 127
#define BARE_STACK_SIZE 0x10000
#define BARE_PROCESSORS 8

#ifndef __ASSEMBLER__

int main(void); /* its result is the program's exit code, 0 to 127 */

__attribute__((noreturn)) void bare_start(void);
__attribute__((noreturn)) void bare_exit(int code);

/* The processor took an exception: says so and ends with code 127. */
__attribute__((noreturn)) void bare_fault(unsigned long what, unsigned long where,
					  unsigned long address);

/* Write what of a line is not written yet. */
void bare_flush(void);

/* Let processor `number` (1 to BARE_PROCESSORS - 1) run a function, with interrupts off, and then
 * halt. 0, or -1: there is none.
 */
int bare_start_processor(unsigned int number, void (*run)(unsigned int number));

#endif /* __ASSEMBLER__ */

#endif /* BARE_H */
