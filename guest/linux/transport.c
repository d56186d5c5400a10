// SPDX-License-Identifier: GPL-2.0
/*
 * Telling the device of a call. docs/abi.md, section 6.
 *
 * A frame is filled before its state is stored by a release store, as for another processor. What
 * follows depends on the way:
 *
 *	polled	The device's side looks at the state, unless it says in @watching that it does not.
 *		The store of the state and the load of @watching must not change places: virt_mb().
 *	mmio	writel() orders what was stored in memory before against the doorbell, for whoever
 *		is told by the doorbell: by a barrier on arm64 (dmb oshst) and riscv (fence w,o),
 *		while x86 keeps stores in order. So no further barrier is needed.
 *	pio	iowrite32() does the same; where ports are I/O instructions, those come after all
 *		earlier stores.
 *	hypercall  A trap is no barrier by itself on arm64 and riscv: virt_mb().
 *
 * The frames' mapping is a cacheable one, although they lie in a BAR. The host backs them by its
 * own memory, to which its processors go through their caches. A guest that goes past the caches
 * reads what is old on arm64, unless its processors force the attributes (FEAT_S2FWB), and pays
 * some 100 ns for each word on x86, if the hypervisor heeds the type that the guest asks for.
 */
#include <linux/cc_platform.h>
#include <linux/io.h>

#include "internal.h"

#if defined(CONFIG_X86_64)
#include <asm/asm.h>
#include <asm/cpufeature.h>
#elif defined(CONFIG_ARM64)
#include <linux/arm-smccc.h>
#elif defined(CONFIG_RISCV_SBI)
#include <asm/sbi.h>
#endif

static const char * const callgate_way_names[] = {
	[CALLGATE_WAY_AUTO] = "auto",
	[CALLGATE_WAY_POLLED] = "polled",
	[CALLGATE_WAY_HYPERCALL] = "hypercall",
	[CALLGATE_WAY_PIO] = "pio",
	[CALLGATE_WAY_MMIO] = "mmio",
};

const char *callgate_way_name(unsigned int way)
{
	return callgate_way_names[way];
}

int callgate_parse_way(const char *name)
{
	return sysfs_match_string(callgate_way_names, name);
}

/*
 * Whether a hypercall can do what the device says, and nothing else. The device chooses the number
 * that the hypervisor sees, so it could ask for something else than a call of itself:
 *
 *   - On arm64 and riscv the selector must lie where hypervisors have their own services, so that
 *     it is neither PSCI's or SBI's way to switch the machine off.
 *   - On x86 the hypervisor hands every number to the device or none. Where none, as on KVM without
 *     a VMM that asks for them, what comes back is an error, and where no hypervisor is, an
 *     exception that is caught.
 *   - A confidential guest makes no hypercall that its own kernel has not reviewed.
 */
static bool callgate_has_hypercall(const struct callgate_place *place)
{
	if (!(place->transports & CALLGATE_TRANSPORT_HYPERCALL) ||
	    cc_platform_has(CC_ATTR_GUEST_MEM_ENCRYPT))
		return false;
#if defined(CONFIG_X86_64)
	return boot_cpu_has(X86_FEATURE_HYPERVISOR) &&
	       (place->instruction == CALLGATE_INSTRUCTION_VMCALL ||
		place->instruction == CALLGATE_INSTRUCTION_VMMCALL);
#elif defined(CONFIG_ARM64)
	return place->instruction == CALLGATE_INSTRUCTION_HVC &&
	       ARM_SMCCC_IS_FAST_CALL(place->selector) && ARM_SMCCC_IS_64(place->selector) &&
	       ARM_SMCCC_OWNER_NUM(place->selector) == ARM_SMCCC_OWNER_VENDOR_HYP;
#elif defined(CONFIG_RISCV_SBI)
	return place->instruction == CALLGATE_INSTRUCTION_ECALL &&
	       place->selector >= SBI_EXT_EXPERIMENTAL_START &&
	       place->selector <= SBI_EXT_VENDOR_END;
#else
	return false;
#endif
}

/* The ways that can be used here, as bits 1 << enum callgate_way. */
unsigned long callgate_find_ways(struct callgate *gate)
{
	unsigned long ways = BIT(CALLGATE_WAY_AUTO) | BIT(CALLGATE_WAY_MMIO);

	if (gate->features & CALLGATE_FEATURE_POLLED)
		ways |= BIT(CALLGATE_WAY_POLLED);
	if (gate->ports)
		ways |= BIT(CALLGATE_WAY_PIO);
	if (callgate_has_hypercall(&gate->place))
		ways |= BIT(CALLGATE_WAY_HYPERCALL);
	return ways;
}

/* The registers of docs/abi.md, section 6.3. False: the instruction was not carried out. */
static bool callgate_trap(const struct callgate_place *place, u32 vector, u64 *slots, u64 *status)
{
#if defined(CONFIG_X86_64)
	register u64 r10 asm("r10") = slots[3];
	register u64 r8 asm("r8") = slots[4];
	register u64 r9 asm("r9") = slots[5];
	u64 rax = vector;
	int err = 0;

	/* Without a hypervisor behind it each is an invalid opcode, and sets err. */
	if (place->instruction == CALLGATE_INSTRUCTION_VMCALL)
		asm volatile("1:	vmcall\n"
			     "2:\n"
			     _ASM_EXTABLE_TYPE_REG(1b, 2b, EX_TYPE_EFAULT_REG, %[err])
			     : "+a" (rax), "+D" (slots[0]), "+S" (slots[1]), "+d" (slots[2]),
			       "+r" (r10), "+r" (r8), "+r" (r9), [err] "+r" (err)
			     : : "memory", "cc");
	else
		asm volatile("1:	vmmcall\n"
			     "2:\n"
			     _ASM_EXTABLE_TYPE_REG(1b, 2b, EX_TYPE_EFAULT_REG, %[err])
			     : "+a" (rax), "+D" (slots[0]), "+S" (slots[1]), "+d" (slots[2]),
			       "+r" (r10), "+r" (r8), "+r" (r9), [err] "+r" (err)
			     : : "memory", "cc");
	slots[3] = r10;
	slots[4] = r8;
	slots[5] = r9;
	/* KVM's errors are 64 bits wide, a status 32. */
	*status = rax;
	return !err;
#elif defined(CONFIG_ARM64)
	const struct arm_smccc_1_2_regs in = {
		.a0 = place->selector, .a1 = vector, .a2 = slots[0], .a3 = slots[1],
		.a4 = slots[2], .a5 = slots[3], .a6 = slots[4], .a7 = slots[5],
	};
	struct arm_smccc_1_2_regs out;

	arm_smccc_1_2_hvc(&in, &out);
	slots[0] = out.a1;
	slots[1] = out.a2;
	slots[2] = out.a3;
	slots[3] = out.a4;
	slots[4] = out.a5;
	slots[5] = out.a6;
	*status = out.a0;
	return true;
#elif defined(CONFIG_RISCV_SBI)
	struct sbiret out = sbi_ecall(place->selector, vector, slots[0], slots[1], slots[2],
				      slots[3], slots[4], slots[5]);

	slots[0] = out.value;
	*status = out.error;
	return true;
#else
	return false;
#endif
}

/*
 * Make a hypercall with CALLGATE_MAX_REGISTER_VALUES slots, which give the results. -EOPNOTSUPP:
 * nobody heard it, and nobody will in future.
 */
int callgate_hypercall(struct callgate *gate, u32 vector, u64 *slots, u32 *status)
{
	u64 word;

	/* What the call refers to in memory is stored before. */
	virt_mb();
	if (callgate_trap(&gate->place, vector, slots, &word) && word <= S32_MAX) {
		/* And what it left there is loaded after. */
		virt_mb();
		*status = word;
		callgate_count(gate, CALLGATE_COUNT_HYPERCALL);
		return 0;
	}
	/* SMCCC answers -1, SBI -2, KVM -1000, what they do not know. */
	callgate_complain(gate, CALLGATE_LIE_HYPERCALL,
			  "no hypervisor hears the hypercalls that the device offers");
	clear_bit(CALLGATE_WAY_HYPERCALL, &gate->ways);
	return -EOPNOTSUPP;
}

/*
 * The doorbell write that costs less: I/O instructions are decoded by the processor for the
 * hypervisor. Where ports are memory, nothing is won.
 */
bool callgate_prefers_ports(const struct callgate *gate, unsigned int way)
{
	return gate->ports &&
	       (way == CALLGATE_WAY_PIO || (way != CALLGATE_WAY_MMIO && IS_ENABLED(CONFIG_X86)));
}

/* Have the device look at a frame that is READY, where it does not watch. */
void callgate_ring(struct callgate *gate, unsigned int index, unsigned int way)
{
	u64 slots[CALLGATE_MAX_REGISTER_VALUES] = { index };
	u32 status;

	/* If nobody looks then, the doorbell does as well. */
	if (way == CALLGATE_WAY_HYPERCALL &&
	    !callgate_hypercall(gate, READ_ONCE(gate->doorbell_vector), slots, &status) &&
	    status == CALLGATE_OK)
		return;
	if (callgate_prefers_ports(gate, way)) {
		callgate_count(gate, CALLGATE_COUNT_PIO);
		iowrite32(index, gate->ports + CALLGATE_PIO_DOORBELL);
	} else {
		callgate_count(gate, CALLGATE_COUNT_MMIO);
		writel(index, gate->doorbell + CALLGATE_DOORBELL_REGISTER_DOORBELL);
	}
}

/* Have the device run a call that takes and returns nothing. */
void callgate_ring_vector(struct callgate *gate, u32 vector)
{
	callgate_count(gate, CALLGATE_COUNT_NOTIFY);
	if (callgate_prefers_ports(gate, READ_ONCE(gate->way)))
		iowrite32(vector, gate->ports + CALLGATE_PIO_NOTIFY);
	else
		writel(vector, gate->doorbell + CALLGATE_DOORBELL_REGISTER_NOTIFY);
}
