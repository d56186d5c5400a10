/* SPDX-License-Identifier: MIT */
/* Where further processors of a PC begin. */
#ifndef BARE_PC_SMP_H
#define BARE_PC_SMP_H

#define SMP_PAGE 0x8000 /* below 1 MiB, where start-up messages can send a processor */
/* What the code there finds behind itself. */
#define SMP_CR0   0xf00
#define SMP_CR3   0xf04
#define SMP_CR4   0xf08
#define SMP_STACK 0xf0c
#define SMP_ENTRY 0xf10

#define SMP_STACK_SIZE 0x4000

#endif /* BARE_PC_SMP_H */
