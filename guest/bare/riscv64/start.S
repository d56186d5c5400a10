/* SPDX-License-Identifier: MIT */
/* The ELF entry: machine mode. Hart 0 goes on; others sleep. */
#include "bare.h"

	.section .text.start, "ax"
	.globl	_start
_start:
	csrr	t0, mhartid
	bnez	t0, park
	la	sp, stack_top
	la	t0, fault
	csrw	mtvec, t0
	li	s0, 0
	li	ra, 0
	j	bare_start

park:
	wfi
	j	park

	.align	2
fault:
	csrr	a0, mcause
	csrr	a1, mepc
	csrr	a2, mtval
	j	bare_fault

	.section .bss.start, "aw", @nobits
	.align	4
	.skip	BARE_STACK_SIZE
stack_top:
