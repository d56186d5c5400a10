/* SPDX-License-Identifier: MIT */
/* What differs from one processor to the next. The one place that asks which processor it is.
 *
 * Each header in arch/ gives:
 *
 *   CALLGATE_ARCH_VALUES   slots that the register form of a hypercall carries each way
 *   CALLGATE_ARCH_PORTS    1 where the processor has I/O instructions, else 0
 *
 *   uint{8,16,32,64}_t callgate_arch_read{8,16,32,64}(const volatile void *);
 *   void callgate_arch_write{8,16,32,64}(volatile void *, value);
 *     One access to device memory, in one instruction that every hypervisor can decode
 *     (64 bits in 32-bit code: two accesses, low half first).
 *
 *   uint32_t callgate_arch_in(uint16_t port, unsigned int size);
 *   void callgate_arch_out(uint16_t port, unsigned int size, uint32_t value);
 *     I/O instructions, size 1, 2 or 4. Without them: all ones, and nothing.
 *
 *   void callgate_arch_load_barrier(void);    loads before it are done before loads and
 *                                             stores after it
 *   void callgate_arch_store_barrier(void);   loads and stores before it are done before
 *                                             stores after it
 *   void callgate_arch_full_barrier(void);    everything; stores before loads too
 *     Of RAM and device memory alike.
 *
 *   void callgate_arch_pause(void);           inside a loop that waits
 *
 *   bool callgate_arch_hypercall(unsigned int instruction, uint32_t selector, uint32_t vector,
 *                                uint64_t slots[CALLGATE_ARCH_VALUES], uint32_t *status);
 *     docs/abi.md, section 6.3: arguments in, results out. False, and nothing happened: this
 *     processor has no such instruction.
 *   bool callgate_arch_has(unsigned int instruction);
 */
#ifndef CALLGATE_ARCH_H
#define CALLGATE_ARCH_H

#if defined(__x86_64__)
#include <callgate/arch/x86_64.h>
#elif defined(__i386__)
#include <callgate/arch/i386.h>
#elif defined(__aarch64__)
#include <callgate/arch/aarch64.h>
#elif defined(__riscv) && __riscv_xlen == 64
#include <callgate/arch/riscv64.h>
#else
#error "callgate has no arch/ header for this processor: write one, as this file says"
#endif

#endif /* CALLGATE_ARCH_H */
