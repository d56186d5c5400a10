/* SPDX-License-Identifier: MIT */
/* Two ways in:
 *
 *	_start     the ELF entry: 64-bit code, flat memory, whatever pages there are
 *	pvh_start  the PVH entry (QEMU -kernel): 32-bit code, paging off; goes on at _start with the
 *	           first 4 GiB mapped one to one
 */
#include "bare.h"

#define CR0_PAGING       0x80000000
#define CR4_PAE          0x20
#define EFER             0xc0000080
#define EFER_LONG_MODE   0x100
#define PAGE_TABLE       0x003 /* present, writable */
#define PAGE_2M          0x083
#define XEN_ELFNOTE_PHYS32_ENTRY 18

	.section .note.pvh, "a", @note
	.align	4
	.long	2f - 1f
	.long	4f - 3f
	.long	XEN_ELFNOTE_PHYS32_ENTRY
1:	.asciz	"Xen"
2:	.align	4
3:	.quad	pvh_start
4:	.align	4

	.section .text.start, "ax"
	.code64
	.globl	_start
_start:
	cli
	leaq	stack_top(%rip), %rsp
	lgdt	gdt_pointer(%rip)
	pushq	$0x08
	leaq	1f(%rip), %rax
	pushq	%rax
	lretq
1:	movw	$0x10, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %fs
	movw	%ax, %gs
	movw	%ax, %ss
	xorl	%ebp, %ebp
	call	bare_start

	.code32
pvh_start:
	cli
	cld
	/* 2048 pages of 2 MiB, in 4 tables that follow each other */
	movl	$page_directories, %edi
	movl	$PAGE_2M, %eax
	xorl	%edx, %edx
	movl	$2048, %ecx
1:	movl	%eax, (%edi)
	movl	%edx, 4(%edi)
	addl	$0x200000, %eax
	addl	$8, %edi
	loop	1b
	movl	$page_directories + PAGE_TABLE, %eax
	movl	$page_directory_pointers, %edi
	movl	$4, %ecx
1:	movl	%eax, (%edi)
	addl	$0x1000, %eax
	addl	$8, %edi
	loop	1b
	movl	$page_directory_pointers + PAGE_TABLE, page_map
	movl	$page_map, %eax
	movl	%eax, %cr3
	movl	%cr4, %eax
	orl	$CR4_PAE, %eax
	movl	%eax, %cr4
	movl	$EFER, %ecx
	rdmsr
	orl	$EFER_LONG_MODE, %eax
	wrmsr
	movl	%cr0, %eax
	orl	$CR0_PAGING, %eax
	movl	%eax, %cr0
	lgdt	gdt_pointer
	ljmp	$0x08, $_start

	.section .rodata.gdt, "a"
	.align	8
gdt:	.quad	0
	.quad	0x00af9b000000ffff	/* 0x08 code, 64 bits */
	.quad	0x00cf93000000ffff	/* 0x10 data */
gdt_pointer:
	.word	gdt_pointer - gdt - 1
	.quad	gdt

	.section .bss.start, "aw", @nobits
	.align	4096
page_map:
	.skip	4096
page_directory_pointers:
	.skip	4096
page_directories:
	.skip	4 * 4096
	.skip	BARE_STACK_SIZE
stack_top:
