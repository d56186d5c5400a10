/* SPDX-License-Identifier: MIT */
/* The ELF entry and the PVH entry (QEMU -kernel) are one: 32-bit code, flat memory, paging off. */
#include "bare.h"

#define XEN_ELFNOTE_PHYS32_ENTRY 18

	.section .note.pvh, "a", @note
	.align	4
	.long	2f - 1f
	.long	4f - 3f
	.long	XEN_ELFNOTE_PHYS32_ENTRY
1:	.asciz	"Xen"
2:	.align	4
3:	.long	_start
4:	.align	4

	.section .text.start, "ax"
	.globl	_start
_start:
	cli
	cld
	movl	$stack_top, %esp
	lgdt	gdt_pointer
	ljmp	$0x08, $1f
1:	movw	$0x10, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %fs
	movw	%ax, %gs
	movw	%ax, %ss
	xorl	%ebp, %ebp
	call	bare_start

	.section .rodata.gdt, "a"
	.align	8
gdt:	.quad	0
	.quad	0x00cf9b000000ffff	/* 0x08 code, 32 bits */
	.quad	0x00cf93000000ffff	/* 0x10 data */
gdt_pointer:
	.word	gdt_pointer - gdt - 1
	.long	gdt

	.section .bss.start, "aw", @nobits
	.align	16
	.skip	BARE_STACK_SIZE
stack_top:
