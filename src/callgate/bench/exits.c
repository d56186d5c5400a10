/* SPDX-License-Identifier: MIT */
/* A bare exit of KVM: a guest that does one thing for ever, and a loop around KVM_RUN.
 *
 *	exits out|store BATCHES SIZE		prints nanoseconds for each batch of SIZE exits
 *	exits call BATCHES SIZE			the same of calls by pio
 *	exits watched BATCHES SIZE		the same of calls without an exit; SIZE is a multiple of 64
 *
 * The first two guests are in real mode. The others are in long mode, as ours are, and are the least
 * that a call can be: the guest stores READY, and executes `out` or waits for DONE; whoever gets the
 * exit, or a thread that does nothing else, adds two numbers in the frame and stores DONE. There is
 * no directory, no vector, no check, and no Python.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#define CALLS 64 /* watched ones, between two exits */

/* bench/kvm.py runs the same two programs. */
static const uint8_t out_code[] = { 0x66, 0xef, 0xeb, 0xfc };		/* 1: outl %eax, %dx; jmp 1b */
static const uint8_t store_code[] = { 0x66, 0x89, 0x07, 0xeb, 0xfb };	/* 1: movl %eax, (%bx); jmp 1b */

/* 1: movl $1, 0x8000; outl %eax, %dx; jmp 1b */
static const uint8_t call_code[] = { 0xc7, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00,
				     0xef, 0xeb, 0xf2 };
/* 1: movl $64, %ecx; 2: movl $1, 0x8000; 3: cmpl $3, 0x8000; jne 3b; decl %ecx; jnz 2b;
 * outl %eax, %dx; jmp 1b
 */
static const uint8_t watched_code[] = { 0xb9, CALLS, 0x00, 0x00, 0x00, 0xc7, 0x04, 0x25, 0x00, 0x80,
					0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x83, 0x3c, 0x25,
					0x00, 0x80, 0x00, 0x00, 0x03, 0x75, 0xf6, 0xff, 0xc9,
					0x75, 0xe7, 0xef, 0xeb, 0xdf };
#define MEMORY 0x9000u
#define TABLES 0x1000u	/* three of them, that map the first 2 MiB */
#define FRAME  0x8000u

static int check(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

static uint64_t now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

static void enter_long_mode(uint8_t *memory, struct kvm_sregs *sregs)
{
	uint64_t *tables = (uint64_t *)(memory + TABLES);

	tables[0] = (TABLES + 0x1000) | 3;	/* present, writable */
	tables[512] = (TABLES + 0x2000) | 3;
	tables[1024] = 0x83;			/* of 2 MiB */
	sregs->cr3 = TABLES;
	sregs->cr4 = 0x20;			/* PAE */
	sregs->cr0 = 0x80000011;		/* PG, ET, PE */
	sregs->efer = 0x500;			/* LMA, LME */
	sregs->cs.l = 1;
	sregs->cs.db = 0;
	sregs->cs.selector = 8;
}

/* What a device does that adds its arguments. */
static int answer(volatile uint64_t *frame)
{
	volatile uint32_t *state = (volatile uint32_t *)frame;

	if (*state != 1)
		return -1;
	*state = 2;
	frame[4] += frame[5];
	__atomic_store_n(state, 3, __ATOMIC_RELEASE);
	return 0;
}

static void *watch(void *frame)
{
	for (;;)
		answer(frame);
	return NULL;
}

int main(int argc, char **argv)
{
	const int store = argc == 4 && !strcmp(argv[1], "store");
	const int call = argc == 4 && !strcmp(argv[1], "call");
	const int watched = argc == 4 && !strcmp(argv[1], "watched");
	const long batches = argc == 4 ? atol(argv[2]) : 0, size = argc == 4 ? atol(argv[3]) : 0;
	int kvm = check(open("/dev/kvm", O_RDWR), "/dev/kvm");
	int vm = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	int vcpu, wanted = store ? KVM_EXIT_MMIO : KVM_EXIT_IO;
	struct kvm_run *run;
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rflags = 2, .rdx = 0x1000, .rbx = 0xa000 };
	struct kvm_userspace_memory_region slot = { .memory_size = MEMORY };
	uint8_t *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			       -1, 0);
	pthread_t watcher;
	long batch, i;

	if (store)
		memcpy(memory, store_code, sizeof(store_code));
	else if (call)
		memcpy(memory, call_code, sizeof(call_code));
	else if (watched)
		memcpy(memory, watched_code, sizeof(watched_code));
	else
		memcpy(memory, out_code, sizeof(out_code));
	slot.userspace_addr = (uintptr_t)memory;
	check(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
	check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot), "KVM_SET_USER_MEMORY_REGION");
	vcpu = check(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	run = mmap(NULL, (size_t)check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "mmap size"),
		   PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	if (call || watched)
		enter_long_mode(memory, &sregs);
	check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
	if (watched)
		check(-pthread_create(&watcher, NULL, watch, memory + FRAME), "pthread_create");
	for (batch = 0; batch < batches; batch++) {
		uint64_t began = now();

		for (i = 0; i < size; i += watched ? CALLS : 1) {
			check(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
			if ((int)run->exit_reason != wanted) {
				fprintf(stderr, "exit reason %u\n", run->exit_reason);
				return 1;
			}
			if (call)
				check(answer((volatile uint64_t *)(memory + FRAME)), "READY");
		}
		printf("%llu\n", (unsigned long long)(now() - began));
	}
	return 0;
}
