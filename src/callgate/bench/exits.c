/* SPDX-License-Identifier: MIT */
/* A bare exit of KVM: a guest in real mode that does one thing for ever, and a loop around KVM_RUN.
 *
 *	exits out|store BATCHES SIZE		prints nanoseconds for each batch of SIZE exits
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

/* bench/kvm.py runs the same two programs. */
static const uint8_t out_code[] = { 0x66, 0xef, 0xeb, 0xfc };		/* 1: outl %eax, %dx; jmp 1b */
static const uint8_t store_code[] = { 0x66, 0x89, 0x07, 0xeb, 0xfb };	/* 1: movl %eax, (%bx); jmp 1b */

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

int main(int argc, char **argv)
{
	const int store = argc == 4 && !strcmp(argv[1], "store");
	const long batches = argc == 4 ? atol(argv[2]) : 0, size = argc == 4 ? atol(argv[3]) : 0;
	int kvm = check(open("/dev/kvm", O_RDWR), "/dev/kvm");
	int vm = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	int vcpu, wanted = store ? KVM_EXIT_MMIO : KVM_EXIT_IO;
	struct kvm_run *run;
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rflags = 2, .rdx = 0x1000, .rbx = 0x5000 };
	struct kvm_userspace_memory_region slot = { .memory_size = 0x1000 };
	uint8_t *memory = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			       -1, 0);
	long batch, i;

	if (store)
		memcpy(memory, store_code, sizeof(store_code));
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
	check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
	for (batch = 0; batch < batches; batch++) {
		uint64_t began = now();

		for (i = 0; i < size; i++) {
			check(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
			if ((int)run->exit_reason != wanted) {
				fprintf(stderr, "exit reason %u\n", run->exit_reason);
				return 1;
			}
		}
		printf("%llu\n", (unsigned long long)(now() - began));
	}
	return 0;
}
