/* SPDX-License-Identifier: MIT */
/* The ELF entry: EL1, MMU off. Memory is then device memory to the processor, so all code is built
 * for aligned accesses.
 */
#include "bare.h"

	.section .text.start, "ax"
	.globl	_start
_start:
	adrp	x0, stack_top
	add	x0, x0, :lo12:stack_top
	mov	sp, x0
	adrp	x0, vectors
	add	x0, x0, :lo12:vectors
	msr	vbar_el1, x0
	isb
	mov	x29, xzr
	mov	x30, xzr
	b	bare_start

fault:
	mrs	x0, esr_el1
	mrs	x1, elr_el1
	mrs	x2, far_el1
	b	bare_fault

	.align	11
vectors:
	.rept	16
	b	fault
	.align	7
	.endr

	.section .bss.start, "aw", @nobits
	.align	4
	.skip	BARE_STACK_SIZE
stack_top:
