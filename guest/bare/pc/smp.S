/* SPDX-License-Identifier: MIT */
/* Where another processor begins: real mode, at SMP_PAGE, where smp.c copies this code. It takes
 * over the first processor's mode, its page tables among it, and goes on in C on a stack of its own.
 */
#include "smp.h"

#define CR0_PROTECTION 0x00000001
#define CR0_PAGING     0x80000000
#define EFER           0xc0000080
#define AT(label)      (SMP_PAGE + (label) - smp_code)

	.section .text.smp, "ax"
	.globl	smp_code, smp_code_end
	.code16
smp_code:
	cli
	cld
	xorw	%ax, %ax
	movw	%ax, %ds
	lgdtl	AT(gdt_pointer)
	movl	%cr0, %eax
	orl	$CR0_PROTECTION, %eax
	movl	%eax, %cr0
	ljmpl	$0x08, $AT(protected)

	.code32
protected:
	movw	$0x10, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	SMP_PAGE + SMP_CR4, %eax
	movl	%eax, %cr4
	movl	SMP_PAGE + SMP_CR3, %eax
	movl	%eax, %cr3
#ifdef __x86_64__
	movl	$EFER, %ecx
	rdmsr
	orl	$0x100, %eax /* long mode */
	wrmsr
#endif
	movl	SMP_PAGE + SMP_CR0, %eax
	movl	%eax, %cr0
#ifdef __x86_64__
	ljmp	$0x18, $AT(long_mode)
	.code64
long_mode:
	movl	SMP_PAGE + SMP_STACK, %esp
	movl	SMP_PAGE + SMP_ENTRY, %eax
	xorl	%ebp, %ebp
	call	*%rax
#else
	movl	SMP_PAGE + SMP_STACK, %esp
	movl	SMP_PAGE + SMP_ENTRY, %eax
	xorl	%ebp, %ebp
	call	*%eax
#endif
1:	hlt
	jmp	1b

	.balign	8
gdt:	.quad	0
	.quad	0x00cf9b000000ffff	/* 0x08 code, 32 bits */
	.quad	0x00cf93000000ffff	/* 0x10 data */
	.quad	0x00af9b000000ffff	/* 0x18 code, 64 bits */
gdt_pointer:
	.word	gdt_pointer - gdt - 1
	.long	AT(gdt)
smp_code_end:
