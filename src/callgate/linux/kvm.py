# SPDX-License-Identifier: MIT
"""<linux/kvm.h> and <asm/kvm.h> for x86-64: what a VMM needs, by the kernel's names.

Documentation/virt/kvm/api.rst says what each does. Left out is what serves other architectures,
nested and confidential guests, Hyper-V, the PMU and the dirty ring.

A structure or union without a tag is named by its path: `kvm_run.io` is a `kvm_run_io`. One without
a name, whose fields are those of the structure around it, can be had as `u` too.
"""

from ctypes import Array, Structure, Union, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p, sizeof
from mmap import PAGESIZE
from typing import Annotated

from .ioctl import _IO, _IOR, _IOW, _IOWR, name_ioctls
from .layout import layout, s32, s64, u8, u16, u32, u64

KVMIO = 0xAE
KVM_API_VERSION = 12

# /dev/kvm

KVM_GET_API_VERSION = _IO(KVMIO, 0x00)
KVM_CREATE_VM = _IO(KVMIO, 0x01)
KVM_CHECK_EXTENSION = _IO(KVMIO, 0x03)  # of a VM too, with KVM_CAP_CHECK_EXTENSION_VM
KVM_GET_VCPU_MMAP_SIZE = _IO(KVMIO, 0x04)

KVM_CAP_IRQCHIP = 0
KVM_CAP_HLT = 1
KVM_CAP_USER_MEMORY = 3
KVM_CAP_SET_TSS_ADDR = 4
KVM_CAP_EXT_CPUID = 7
KVM_CAP_CLOCKSOURCE = 8
KVM_CAP_NR_VCPUS = 9
KVM_CAP_NR_MEMSLOTS = 10
KVM_CAP_PIT = 11
KVM_CAP_MP_STATE = 14
KVM_CAP_COALESCED_MMIO = 15
KVM_CAP_SYNC_MMU = 16
KVM_CAP_DESTROY_MEMORY_REGION_WORKS = 21
KVM_CAP_USER_NMI = 22
KVM_CAP_SET_GUEST_DEBUG = 23
KVM_CAP_IRQ_ROUTING = 25
KVM_CAP_IRQ_INJECT_STATUS = 26
KVM_CAP_JOIN_MEMORY_REGIONS_WORKS = 30
KVM_CAP_IRQFD = 32
KVM_CAP_PIT2 = 33
KVM_CAP_PIT_STATE2 = 35
KVM_CAP_IOEVENTFD = 36
KVM_CAP_SET_IDENTITY_MAP_ADDR = 37
KVM_CAP_XEN_HVM = 38
KVM_CAP_ADJUST_CLOCK = 39
KVM_CAP_INTERNAL_ERROR_DATA = 40
KVM_CAP_VCPU_EVENTS = 41
KVM_CAP_INTR_SHADOW = 49
KVM_CAP_DEBUGREGS = 50
KVM_CAP_X86_ROBUST_SINGLESTEP = 51
KVM_CAP_ENABLE_CAP = 54
KVM_CAP_XSAVE = 55
KVM_CAP_XCRS = 56
KVM_CAP_TSC_CONTROL = 60
KVM_CAP_GET_TSC_KHZ = 61
KVM_CAP_MAX_VCPUS = 66
KVM_CAP_TSC_DEADLINE_TIMER = 72
KVM_CAP_SYNC_REGS = 74
KVM_CAP_KVMCLOCK_CTRL = 76
KVM_CAP_SIGNAL_MSI = 77
KVM_CAP_READONLY_MEM = 81
KVM_CAP_IRQFD_RESAMPLE = 82
KVM_CAP_IOAPIC_POLARITY_IGNORED = 97
KVM_CAP_ENABLE_CAP_VM = 98
KVM_CAP_IOEVENTFD_NO_LENGTH = 100
KVM_CAP_CHECK_EXTENSION_VM = 105
KVM_CAP_X86_SMM = 117
KVM_CAP_MULTI_ADDRESS_SPACE = 118
KVM_CAP_SPLIT_IRQCHIP = 121
KVM_CAP_IOEVENTFD_ANY_LENGTH = 122
KVM_CAP_MAX_VCPU_ID = 128
KVM_CAP_X2APIC_API = 129
KVM_CAP_IMMEDIATE_EXIT = 136
KVM_CAP_X86_DISABLE_EXITS = 143
KVM_CAP_COALESCED_PIO = 162
KVM_CAP_EXCEPTION_PAYLOAD = 164
KVM_CAP_HALT_POLL = 182
KVM_CAP_X86_USER_SPACE_MSR = 188
KVM_CAP_X86_BUS_LOCK_EXIT = 193
KVM_CAP_SET_GUEST_DEBUG2 = 195
KVM_CAP_SREGS2 = 200
KVM_CAP_EXIT_HYPERCALL = 201
KVM_CAP_EXIT_ON_EMULATION_FAILURE = 204
KVM_CAP_VM_GPA_BITS = 207
KVM_CAP_XSAVE2 = 208
KVM_CAP_DISABLE_QUIRKS2 = 213
KVM_CAP_VM_TSC_CONTROL = 214
KVM_CAP_SYSTEM_EVENT_DATA = 215
KVM_CAP_X86_TRIPLE_FAULT_EVENT = 218
KVM_CAP_X86_NOTIFY_VMEXIT = 219
KVM_CAP_MEMORY_FAULT_INFO = 232
KVM_CAP_X86_APIC_BUS_CYCLES_NS = 237
KVM_CAP_X86_GUEST_MODE = 238


@layout
class kvm_enable_cap(Structure):
    """For KVM_ENABLE_CAP."""

    cap: u32
    flags: u32
    args: Annotated[Array[c_uint64], 4]
    pad: Annotated[Array[c_uint8], 64]


KVM_ENABLE_CAP = _IOW(KVMIO, 0xA3, kvm_enable_cap)

# args[0] of KVM_CAP_X86_USER_SPACE_MSR; the reason of KVM_EXIT_X86_RDMSR and _WRMSR
KVM_MSR_EXIT_REASON_INVAL = 1 << 0
KVM_MSR_EXIT_REASON_UNKNOWN = 1 << 1
KVM_MSR_EXIT_REASON_FILTER = 1 << 2
# of KVM_CAP_X86_DISABLE_EXITS
KVM_X86_DISABLE_EXITS_MWAIT = 1 << 0
KVM_X86_DISABLE_EXITS_HLT = 1 << 1
KVM_X86_DISABLE_EXITS_PAUSE = 1 << 2
KVM_X86_DISABLE_EXITS_CSTATE = 1 << 3
KVM_X86_DISABLE_EXITS_APERFMPERF = 1 << 4
# of KVM_CAP_X2APIC_API
KVM_X2APIC_API_USE_32BIT_IDS = 1 << 0
KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK = 1 << 1
# of KVM_CAP_X86_BUS_LOCK_EXIT
KVM_BUS_LOCK_DETECTION_OFF = 1 << 0
KVM_BUS_LOCK_DETECTION_EXIT = 1 << 1
# of KVM_CAP_X86_NOTIFY_VMEXIT; the high 32 bits hold the window
KVM_X86_NOTIFY_VMEXIT_ENABLED = 1 << 0
KVM_X86_NOTIFY_VMEXIT_USER = 1 << 1
# of KVM_CAP_DISABLE_QUIRKS2
KVM_X86_QUIRK_LINT0_REENABLED = 1 << 0
KVM_X86_QUIRK_CD_NW_CLEARED = 1 << 1
KVM_X86_QUIRK_LAPIC_MMIO_HOLE = 1 << 2
KVM_X86_QUIRK_OUT_7E_INC_RIP = 1 << 3
KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT = 1 << 4
KVM_X86_QUIRK_FIX_HYPERCALL_INSN = 1 << 5
KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS = 1 << 6
KVM_X86_QUIRK_SLOT_ZAP_ALL = 1 << 7
KVM_X86_QUIRK_STUFF_FEATURE_MSRS = 1 << 8
KVM_X86_QUIRK_IGNORE_GUEST_PAT = 1 << 9


@layout
class kvm_cpuid_entry2(Structure):
    """One leaf, or sub-leaf, of struct kvm_cpuid2."""

    function: u32
    index: u32
    flags: u32
    eax: u32
    ebx: u32
    ecx: u32
    edx: u32
    padding: Annotated[Array[c_uint32], 3]


@layout
class kvm_cpuid2(Structure):
    """For KVM_GET_SUPPORTED_CPUID and KVM_SET_CPUID2."""

    nent: u32
    padding: u32
    entries: Annotated[Array[kvm_cpuid_entry2], 0]


KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1 << 0  # sic
KVM_CPUID_FLAG_STATEFUL_FUNC = 1 << 1
KVM_CPUID_FLAG_STATE_READ_NEXT = 1 << 2

KVM_GET_SUPPORTED_CPUID = _IOWR(KVMIO, 0x05, kvm_cpuid2)
KVM_SET_CPUID2 = _IOW(KVMIO, 0x90, kvm_cpuid2)


@layout
class kvm_msr_list(Structure):
    """For KVM_GET_MSR_INDEX_LIST."""

    nmsrs: u32
    indices: Annotated[Array[c_uint32], 0]


KVM_GET_MSR_INDEX_LIST = _IOWR(KVMIO, 0x02, kvm_msr_list)

# Memory


@layout
class kvm_userspace_memory_region(Structure):
    """For KVM_SET_USER_MEMORY_REGION."""

    slot: u32  # bits 16 to 31: the address space
    flags: u32
    guest_phys_addr: u64
    memory_size: u64  # in bytes; 0 deletes the slot
    userspace_addr: u64


KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
KVM_MEM_READONLY = 1 << 1

KVM_SET_USER_MEMORY_REGION = _IOW(KVMIO, 0x46, kvm_userspace_memory_region)
KVM_SET_TSS_ADDR = _IO(KVMIO, 0x47)
KVM_SET_IDENTITY_MAP_ADDR = _IOW(KVMIO, 0x48, c_uint64)


@layout
class kvm_dirty_log_u(Union):
    """The union in struct kvm_dirty_log."""

    dirty_bitmap: Annotated[int | None, c_void_p]  # a bit for each page
    padding2: u64


@layout
class kvm_dirty_log(Structure):
    """For KVM_GET_DIRTY_LOG."""

    _anonymous_ = ("u",)
    slot: u32
    padding1: u32
    u: kvm_dirty_log_u


KVM_GET_DIRTY_LOG = _IOW(KVMIO, 0x42, kvm_dirty_log)

# Interrupt controllers and timer


@layout
class kvm_irq_level_u(Union):
    """The union in struct kvm_irq_level."""

    irq: u32
    status: s32


@layout
class kvm_irq_level(Structure):
    """For KVM_IRQ_LINE."""

    _anonymous_ = ("u",)
    u: kvm_irq_level_u
    level: u32


@layout
class kvm_pic_state(Structure):
    """For KVM_GET_IRQCHIP and KVM_SET_IRQCHIP."""

    last_irr: u8
    irr: u8
    imr: u8
    isr: u8
    priority_add: u8
    irq_base: u8
    read_reg_select: u8
    poll: u8
    special_mask: u8
    init_state: u8
    auto_eoi: u8
    rotate_on_auto_eoi: u8
    special_fully_nested_mode: u8
    init4: u8
    elcr: u8
    elcr_mask: u8


@layout
class kvm_ioapic_state_redirtbl_fields(Structure):
    """One entry of an I/O APIC's redirection table."""

    vector: u8
    delivery_mode: Annotated[int, c_uint8, 3]
    dest_mode: Annotated[int, c_uint8, 1]
    delivery_status: Annotated[int, c_uint8, 1]
    polarity: Annotated[int, c_uint8, 1]
    remote_irr: Annotated[int, c_uint8, 1]
    trig_mode: Annotated[int, c_uint8, 1]
    mask: Annotated[int, c_uint8, 1]
    reserve: Annotated[int, c_uint8, 7]
    reserved: Annotated[Array[c_uint8], 4]
    dest_id: u8


@layout
class kvm_ioapic_state_redirtbl(Union):
    """The same, as it is read and written."""

    bits: u64
    fields: kvm_ioapic_state_redirtbl_fields


KVM_IOAPIC_NUM_PINS = 24


@layout
class kvm_ioapic_state(Structure):
    """For KVM_GET_IRQCHIP and KVM_SET_IRQCHIP."""

    base_address: u64
    ioregsel: u32
    id: u32
    irr: u32
    pad: u32
    redirtbl: Annotated[Array[kvm_ioapic_state_redirtbl], KVM_IOAPIC_NUM_PINS]


@layout
class kvm_irqchip_chip(Union):
    """The union in struct kvm_irqchip."""

    dummy: Annotated[Array[c_uint8], 512]
    pic: kvm_pic_state
    ioapic: kvm_ioapic_state


@layout
class kvm_irqchip(Structure):
    """For KVM_GET_IRQCHIP and KVM_SET_IRQCHIP."""

    chip_id: u32
    pad: u32
    chip: kvm_irqchip_chip


KVM_IRQCHIP_PIC_MASTER = 0
KVM_IRQCHIP_PIC_SLAVE = 1
KVM_IRQCHIP_IOAPIC = 2
KVM_NR_IRQCHIPS = 3

KVM_CREATE_IRQCHIP = _IO(KVMIO, 0x60)
KVM_IRQ_LINE = _IOW(KVMIO, 0x61, kvm_irq_level)
KVM_GET_IRQCHIP = _IOWR(KVMIO, 0x62, kvm_irqchip)
KVM_SET_IRQCHIP = _IOR(KVMIO, 0x63, kvm_irqchip)  # sic


@layout
class kvm_pit_config(Structure):
    """For KVM_CREATE_PIT2."""

    flags: u32
    pad: Annotated[Array[c_uint32], 15]


@layout
class kvm_pit_channel_state(Structure):
    """One of three in struct kvm_pit_state2."""

    count: u32
    latched_count: u16
    count_latched: u8
    status_latched: u8
    status: u8
    read_state: u8
    write_state: u8
    write_latch: u8
    rw_mode: u8
    mode: u8
    bcd: u8
    gate: u8
    count_load_time: s64


@layout
class kvm_pit_state2(Structure):
    """For KVM_GET_PIT2 and KVM_SET_PIT2."""

    channels: Annotated[Array[kvm_pit_channel_state], 3]
    flags: u32
    reserved: Annotated[Array[c_uint32], 9]


KVM_PIT_SPEAKER_DUMMY = 1  # of kvm_pit_config
KVM_PIT_FLAGS_HPET_LEGACY = 0x1
KVM_PIT_FLAGS_SPEAKER_DATA_ON = 0x2

KVM_CREATE_PIT2 = _IOW(KVMIO, 0x77, kvm_pit_config)
KVM_GET_PIT2 = _IOR(KVMIO, 0x9F, kvm_pit_state2)
KVM_SET_PIT2 = _IOW(KVMIO, 0xA0, kvm_pit_state2)


@layout
class kvm_irq_routing_irqchip(Structure):
    """A pin of an interrupt controller."""

    irqchip: u32
    pin: u32


@layout
class kvm_irq_routing_msi_u(Union):
    """The union in struct kvm_irq_routing_msi."""

    pad: u32
    devid: u32


@layout
class kvm_irq_routing_msi(Structure):
    """A message."""

    _anonymous_ = ("u",)
    address_lo: u32
    address_hi: u32
    data: u32
    u: kvm_irq_routing_msi_u


@layout
class kvm_irq_routing_s390_adapter(Structure):
    """An adapter of s390; its 64-bit fields align the entry."""

    ind_addr: u64
    summary_addr: u64
    ind_offset: u64
    summary_offset: u32
    adapter_id: u32


@layout
class kvm_irq_routing_hv_sint(Structure):
    """A synthetic interrupt of Hyper-V."""

    vcpu: u32
    sint: u32


@layout
class kvm_irq_routing_xen_evtchn(Structure):
    """An event channel."""

    port: u32
    vcpu: u32
    priority: u32


@layout
class kvm_irq_routing_entry_u(Union):
    """By the type of struct kvm_irq_routing_entry."""

    irqchip: kvm_irq_routing_irqchip
    msi: kvm_irq_routing_msi
    adapter: kvm_irq_routing_s390_adapter
    hv_sint: kvm_irq_routing_hv_sint
    xen_evtchn: kvm_irq_routing_xen_evtchn
    pad: Annotated[Array[c_uint32], 8]


@layout
class kvm_irq_routing_entry(Structure):
    """Where one GSI leads."""

    gsi: u32
    type: u32
    flags: u32
    pad: u32
    u: kvm_irq_routing_entry_u


@layout
class kvm_irq_routing(Structure):
    """For KVM_SET_GSI_ROUTING."""

    nr: u32
    flags: u32
    entries: Annotated[Array[kvm_irq_routing_entry], 0]


KVM_IRQ_ROUTING_IRQCHIP = 1
KVM_IRQ_ROUTING_MSI = 2
KVM_IRQ_ROUTING_S390_ADAPTER = 3
KVM_IRQ_ROUTING_HV_SINT = 4
KVM_IRQ_ROUTING_XEN_EVTCHN = 5
KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL = 0xFFFFFFFF

KVM_SET_GSI_ROUTING = _IOW(KVMIO, 0x6A, kvm_irq_routing)


@layout
class kvm_msi(Structure):
    """For KVM_SIGNAL_MSI."""

    address_lo: u32
    address_hi: u32
    data: u32
    flags: u32
    devid: u32
    pad: Annotated[Array[c_uint8], 12]


KVM_MSI_VALID_DEVID = 1 << 0

KVM_SIGNAL_MSI = _IOW(KVMIO, 0xA5, kvm_msi)

# Event file descriptors and coalesced writes


@layout
class kvm_irqfd(Structure):
    """For KVM_IRQFD."""

    fd: u32
    gsi: u32
    flags: u32
    resamplefd: u32
    pad: Annotated[Array[c_uint8], 16]


KVM_IRQFD_FLAG_DEASSIGN = 1 << 0
KVM_IRQFD_FLAG_RESAMPLE = 1 << 1

KVM_IRQFD = _IOW(KVMIO, 0x76, kvm_irqfd)


@layout
class kvm_ioeventfd(Structure):
    """For KVM_IOEVENTFD."""

    datamatch: u64
    addr: u64
    len: u32  # 1, 2, 4 or 8; 0, with KVM_CAP_IOEVENTFD_ANY_LENGTH, for any
    fd: s32
    flags: u32
    pad: Annotated[Array[c_uint8], 36]


KVM_IOEVENTFD_FLAG_DATAMATCH = 1 << 0
KVM_IOEVENTFD_FLAG_PIO = 1 << 1
KVM_IOEVENTFD_FLAG_DEASSIGN = 1 << 2

KVM_IOEVENTFD = _IOW(KVMIO, 0x79, kvm_ioeventfd)


@layout
class kvm_coalesced_mmio_zone_u(Union):
    """The union in struct kvm_coalesced_mmio_zone."""

    pad: u32
    pio: u32


@layout
class kvm_coalesced_mmio_zone(Structure):
    """For KVM_REGISTER_COALESCED_MMIO and KVM_UNREGISTER_COALESCED_MMIO."""

    _anonymous_ = ("u",)
    addr: u64
    size: u32
    u: kvm_coalesced_mmio_zone_u


@layout
class kvm_coalesced_mmio_u(Union):
    """The union in struct kvm_coalesced_mmio."""

    pad: u32
    pio: u32


@layout
class kvm_coalesced_mmio(Structure):
    """One write that waits in the ring."""

    _anonymous_ = ("u",)
    phys_addr: u64
    len: u32
    u: kvm_coalesced_mmio_u
    data: Annotated[Array[c_uint8], 8]


@layout
class kvm_coalesced_mmio_ring(Structure):
    """In a page of a vCPU's mapping, one for the whole VM: the kernel moves `last`, user space
    `first`.
    """

    first: u32
    last: u32
    coalesced_mmio: Annotated[Array[kvm_coalesced_mmio], 0]


KVM_COALESCED_MMIO_MAX = (PAGESIZE - sizeof(kvm_coalesced_mmio_ring)) // sizeof(kvm_coalesced_mmio)

KVM_REGISTER_COALESCED_MMIO = _IOW(KVMIO, 0x67, kvm_coalesced_mmio_zone)
KVM_UNREGISTER_COALESCED_MMIO = _IOW(KVMIO, 0x68, kvm_coalesced_mmio_zone)

# vCPUs

KVM_CREATE_VCPU = _IO(KVMIO, 0x41)
KVM_RUN = _IO(KVMIO, 0x80, restart=False)  # EINTR is an answer: a signal, or immediate_exit

# Pages of a vCPU's mapping behind struct kvm_run.
KVM_PIO_PAGE_OFFSET = 1
KVM_COALESCED_MMIO_PAGE_OFFSET = 2


@layout
class kvm_regs(Structure):
    """For KVM_GET_REGS and KVM_SET_REGS."""

    rax: u64
    rbx: u64
    rcx: u64
    rdx: u64
    rsi: u64
    rdi: u64
    rsp: u64
    rbp: u64
    r8: u64
    r9: u64
    r10: u64
    r11: u64
    r12: u64
    r13: u64
    r14: u64
    r15: u64
    rip: u64
    rflags: u64


KVM_GET_REGS = _IOR(KVMIO, 0x81, kvm_regs)
KVM_SET_REGS = _IOW(KVMIO, 0x82, kvm_regs)


@layout
class kvm_segment(Structure):
    """A segment register, with what the CPU remembers of its descriptor."""

    base: u64
    limit: u32  # in bytes, whatever g is
    selector: u16
    type: u8
    present: u8
    dpl: u8
    db: u8
    s: u8
    l: u8  # noqa: E741
    g: u8
    avl: u8
    unusable: u8
    padding: u8


@layout
class kvm_dtable(Structure):
    """GDTR or IDTR."""

    base: u64
    limit: u16
    padding: Annotated[Array[c_uint16], 3]


KVM_NR_INTERRUPTS = 256


@layout
class kvm_sregs(Structure):
    """For KVM_GET_SREGS and KVM_SET_SREGS."""

    cs: kvm_segment
    ds: kvm_segment
    es: kvm_segment
    fs: kvm_segment
    gs: kvm_segment
    ss: kvm_segment
    tr: kvm_segment
    ldt: kvm_segment
    gdt: kvm_dtable
    idt: kvm_dtable
    cr0: u64
    cr2: u64
    cr3: u64
    cr4: u64
    cr8: u64
    efer: u64
    apic_base: u64
    interrupt_bitmap: Annotated[Array[c_uint64], (KVM_NR_INTERRUPTS + 63) // 64]


@layout
class kvm_sregs2(Structure):
    """For KVM_GET_SREGS2 and KVM_SET_SREGS2."""

    cs: kvm_segment
    ds: kvm_segment
    es: kvm_segment
    fs: kvm_segment
    gs: kvm_segment
    ss: kvm_segment
    tr: kvm_segment
    ldt: kvm_segment
    gdt: kvm_dtable
    idt: kvm_dtable
    cr0: u64
    cr2: u64
    cr3: u64
    cr4: u64
    cr8: u64
    efer: u64
    apic_base: u64
    flags: u64
    pdptrs: Annotated[Array[c_uint64], 4]


KVM_SREGS2_FLAGS_PDPTRS_VALID = 1

KVM_GET_SREGS = _IOR(KVMIO, 0x83, kvm_sregs)
KVM_SET_SREGS = _IOW(KVMIO, 0x84, kvm_sregs)
KVM_GET_SREGS2 = _IOR(KVMIO, 0xCC, kvm_sregs2)
KVM_SET_SREGS2 = _IOW(KVMIO, 0xCD, kvm_sregs2)


@layout
class kvm_fpu(Structure):
    """For KVM_GET_FPU and KVM_SET_FPU."""

    fpr: Annotated[Array[Array[c_uint8]], 8, 16]
    fcw: u16
    fsw: u16
    ftwx: u8
    pad1: u8
    last_opcode: u16
    last_ip: u64
    last_dp: u64
    xmm: Annotated[Array[Array[c_uint8]], 16, 16]
    mxcsr: u32
    pad2: u32


KVM_GET_FPU = _IOR(KVMIO, 0x8C, kvm_fpu)
KVM_SET_FPU = _IOW(KVMIO, 0x8D, kvm_fpu)


@layout
class kvm_xsave(Structure):
    """For KVM_GET_XSAVE, KVM_GET_XSAVE2 and KVM_SET_XSAVE.

    The last two use as many bytes as KVM_CAP_XSAVE2 of the VM says, which the buffer must have.
    """

    region: Annotated[Array[c_uint32], 1024]
    extra: Annotated[Array[c_uint32], 0]


KVM_GET_XSAVE = _IOR(KVMIO, 0xA4, kvm_xsave)
KVM_SET_XSAVE = _IOW(KVMIO, 0xA5, kvm_xsave)
KVM_GET_XSAVE2 = _IOR(KVMIO, 0xCF, kvm_xsave)

KVM_MAX_XCRS = 16


@layout
class kvm_xcr(Structure):
    """An extended control register."""

    xcr: u32
    reserved: u32
    value: u64


@layout
class kvm_xcrs(Structure):
    """For KVM_GET_XCRS and KVM_SET_XCRS."""

    nr_xcrs: u32
    flags: u32
    xcrs: Annotated[Array[kvm_xcr], KVM_MAX_XCRS]
    padding: Annotated[Array[c_uint64], 16]


KVM_GET_XCRS = _IOR(KVMIO, 0xA6, kvm_xcrs)
KVM_SET_XCRS = _IOW(KVMIO, 0xA7, kvm_xcrs)


@layout
class kvm_msr_entry(Structure):
    """An MSR."""

    index: u32
    reserved: u32
    data: u64


@layout
class kvm_msrs(Structure):
    """For KVM_GET_MSRS and KVM_SET_MSRS, which return how many they did."""

    nmsrs: u32
    pad: u32
    entries: Annotated[Array[kvm_msr_entry], 0]


KVM_GET_MSRS = _IOWR(KVMIO, 0x88, kvm_msrs)
KVM_SET_MSRS = _IOW(KVMIO, 0x89, kvm_msrs)

KVM_APIC_REG_SIZE = 0x400


@layout
class kvm_lapic_state(Structure):
    """For KVM_GET_LAPIC and KVM_SET_LAPIC."""

    regs: Annotated[Array[c_uint8], KVM_APIC_REG_SIZE]


KVM_GET_LAPIC = _IOR(KVMIO, 0x8E, kvm_lapic_state)
KVM_SET_LAPIC = _IOW(KVMIO, 0x8F, kvm_lapic_state)


@layout
class kvm_interrupt(Structure):
    """For KVM_INTERRUPT."""

    irq: u32


KVM_INTERRUPT = _IOW(KVMIO, 0x86, kvm_interrupt)
KVM_NMI = _IO(KVMIO, 0x9A)


@layout
class kvm_vcpu_events_exception(Structure):
    """The exception of struct kvm_vcpu_events."""

    injected: u8
    nr: u8
    has_error_code: u8
    pending: u8
    error_code: u32


@layout
class kvm_vcpu_events_interrupt(Structure):
    """The interrupt of struct kvm_vcpu_events."""

    injected: u8
    nr: u8
    soft: u8
    shadow: u8


@layout
class kvm_vcpu_events_nmi(Structure):
    """The NMI of struct kvm_vcpu_events."""

    injected: u8
    pending: u8
    masked: u8
    pad: u8


@layout
class kvm_vcpu_events_smi(Structure):
    """The SMI of struct kvm_vcpu_events."""

    smm: u8
    pending: u8
    smm_inside_nmi: u8
    latched_init: u8


@layout
class kvm_vcpu_events_triple_fault(Structure):
    """The triple fault of struct kvm_vcpu_events."""

    pending: u8


@layout
class kvm_vcpu_events(Structure):
    """For KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS."""

    exception: kvm_vcpu_events_exception
    interrupt: kvm_vcpu_events_interrupt
    nmi: kvm_vcpu_events_nmi
    sipi_vector: u32
    flags: u32
    smi: kvm_vcpu_events_smi
    triple_fault: kvm_vcpu_events_triple_fault
    reserved: Annotated[Array[c_uint8], 26]
    exception_has_payload: u8
    exception_payload: u64


KVM_VCPUEVENT_VALID_NMI_PENDING = 0x01
KVM_VCPUEVENT_VALID_SIPI_VECTOR = 0x02
KVM_VCPUEVENT_VALID_SHADOW = 0x04
KVM_VCPUEVENT_VALID_SMM = 0x08
KVM_VCPUEVENT_VALID_PAYLOAD = 0x10
KVM_VCPUEVENT_VALID_TRIPLE_FAULT = 0x20

KVM_X86_SHADOW_INT_MOV_SS = 0x01
KVM_X86_SHADOW_INT_STI = 0x02

KVM_GET_VCPU_EVENTS = _IOR(KVMIO, 0x9F, kvm_vcpu_events)
KVM_SET_VCPU_EVENTS = _IOW(KVMIO, 0xA0, kvm_vcpu_events)


@layout
class kvm_debugregs(Structure):
    """For KVM_GET_DEBUGREGS and KVM_SET_DEBUGREGS."""

    db: Annotated[Array[c_uint64], 4]
    dr6: u64
    dr7: u64
    flags: u64
    reserved: Annotated[Array[c_uint64], 9]


KVM_GET_DEBUGREGS = _IOR(KVMIO, 0xA1, kvm_debugregs)
KVM_SET_DEBUGREGS = _IOW(KVMIO, 0xA2, kvm_debugregs)


@layout
class kvm_guest_debug_arch(Structure):
    """The debug registers that the host uses."""

    debugreg: Annotated[Array[c_uint64], 8]


@layout
class kvm_guest_debug(Structure):
    """For KVM_SET_GUEST_DEBUG."""

    control: u32
    pad: u32
    arch: kvm_guest_debug_arch


KVM_GUESTDBG_ENABLE = 0x00000001
KVM_GUESTDBG_SINGLESTEP = 0x00000002
KVM_GUESTDBG_USE_SW_BP = 0x00010000
KVM_GUESTDBG_USE_HW_BP = 0x00020000
KVM_GUESTDBG_INJECT_DB = 0x00040000
KVM_GUESTDBG_INJECT_BP = 0x00080000
KVM_GUESTDBG_BLOCKIRQ = 0x00100000

KVM_SET_GUEST_DEBUG = _IOW(KVMIO, 0x9B, kvm_guest_debug)


@layout
class kvm_mp_state(Structure):
    """For KVM_GET_MP_STATE and KVM_SET_MP_STATE."""

    mp_state: u32


KVM_MP_STATE_RUNNABLE = 0
KVM_MP_STATE_UNINITIALIZED = 1
KVM_MP_STATE_INIT_RECEIVED = 2
KVM_MP_STATE_HALTED = 3
KVM_MP_STATE_SIPI_RECEIVED = 4

KVM_GET_MP_STATE = _IOR(KVMIO, 0x98, kvm_mp_state)
KVM_SET_MP_STATE = _IOW(KVMIO, 0x99, kvm_mp_state)


@layout
class kvm_signal_mask(Structure):
    """For KVM_SET_SIGNAL_MASK: `len` bytes of the kernel's sigset_t, so 8."""

    len: u32
    sigset: Annotated[Array[c_uint8], 0]


KVM_SET_SIGNAL_MASK = _IOW(KVMIO, 0x8B, kvm_signal_mask)

# Clocks

KVM_SET_TSC_KHZ = _IO(KVMIO, 0xA2)  # of a VM too, with KVM_CAP_VM_TSC_CONTROL
KVM_GET_TSC_KHZ = _IO(KVMIO, 0xA3)
KVM_KVMCLOCK_CTRL = _IO(KVMIO, 0xAD)


@layout
class kvm_clock_data(Structure):
    """For KVM_GET_CLOCK and KVM_SET_CLOCK, in nanoseconds."""

    clock: u64
    flags: u32
    pad0: u32
    realtime: u64
    host_tsc: u64
    pad: Annotated[Array[c_uint32], 4]


KVM_CLOCK_TSC_STABLE = 2
KVM_CLOCK_REALTIME = 1 << 2
KVM_CLOCK_HOST_TSC = 1 << 3

KVM_SET_CLOCK = _IOW(KVMIO, 0x7B, kvm_clock_data)
KVM_GET_CLOCK = _IOR(KVMIO, 0x7C, kvm_clock_data)

# Xen


@layout
class kvm_xen_hvm_config(Structure):
    """For KVM_XEN_HVM_CONFIG."""

    flags: u32
    msr: u32
    blob_addr_32: u64
    blob_addr_64: u64
    blob_size_32: u8
    blob_size_64: u8
    pad2: Annotated[Array[c_uint8], 30]


KVM_XEN_HVM_CONFIG_HYPERCALL_MSR = 1 << 0
KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL = 1 << 1
KVM_XEN_HVM_CONFIG_SHARED_INFO = 1 << 2
KVM_XEN_HVM_CONFIG_RUNSTATE = 1 << 3
KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL = 1 << 4
KVM_XEN_HVM_CONFIG_EVTCHN_SEND = 1 << 5
KVM_XEN_HVM_CONFIG_RUNSTATE_UPDATE_FLAG = 1 << 6
KVM_XEN_HVM_CONFIG_PVCLOCK_TSC_UNSTABLE = 1 << 7
KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA = 1 << 8

KVM_XEN_HVM_CONFIG = _IOW(KVMIO, 0x7A, kvm_xen_hvm_config)


@layout
class kvm_xen_hvm_attr_u_shared_info(Union):
    """Where the shared_info page is."""

    gfn: u64
    hva: u64


@layout
class kvm_xen_hvm_attr_u_evtchn_deliver_port(Structure):
    """To the guest itself."""

    port: u32
    vcpu: u32
    priority: u32


@layout
class kvm_xen_hvm_attr_u_evtchn_deliver_eventfd(Structure):
    """To an eventfd."""

    port: u32
    fd: s32


@layout
class kvm_xen_hvm_attr_u_evtchn_deliver(Union):
    """Where an event goes that the guest sends."""

    port: kvm_xen_hvm_attr_u_evtchn_deliver_port
    eventfd: kvm_xen_hvm_attr_u_evtchn_deliver_eventfd
    padding: Annotated[Array[c_uint32], 4]


@layout
class kvm_xen_hvm_attr_u_evtchn(Structure):
    """A port from which the guest sends."""

    send_port: u32
    type: u32
    flags: u32
    deliver: kvm_xen_hvm_attr_u_evtchn_deliver


@layout
class kvm_xen_hvm_attr_u(Union):
    """By the type of struct kvm_xen_hvm_attr."""

    long_mode: u8
    vector: u8
    runstate_update_flag: u8
    shared_info: kvm_xen_hvm_attr_u_shared_info
    evtchn: kvm_xen_hvm_attr_u_evtchn
    xen_version: u32
    pad: Annotated[Array[c_uint64], 8]


@layout
class kvm_xen_hvm_attr(Structure):
    """For KVM_XEN_HVM_GET_ATTR and KVM_XEN_HVM_SET_ATTR."""

    type: u16
    pad: Annotated[Array[c_uint16], 3]
    u: kvm_xen_hvm_attr_u


KVM_XEN_ATTR_TYPE_LONG_MODE = 0x0
KVM_XEN_ATTR_TYPE_SHARED_INFO = 0x1
KVM_XEN_ATTR_TYPE_UPCALL_VECTOR = 0x2
KVM_XEN_ATTR_TYPE_EVTCHN = 0x3
KVM_XEN_ATTR_TYPE_XEN_VERSION = 0x4
KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG = 0x5
KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA = 0x6

KVM_XEN_INVALID_GFN = 0xFFFFFFFFFFFFFFFF

KVM_XEN_EVTCHN_DEASSIGN = 1 << 0
KVM_XEN_EVTCHN_UPDATE = 1 << 1
KVM_XEN_EVTCHN_RESET = 1 << 2

KVM_XEN_HVM_GET_ATTR = _IOWR(KVMIO, 0xC8, kvm_xen_hvm_attr)
KVM_XEN_HVM_SET_ATTR = _IOW(KVMIO, 0xC9, kvm_xen_hvm_attr)


@layout
class kvm_xen_vcpu_attr_u_runstate(Structure):
    """A vCPU's state, and the time it spent in each, in nanoseconds."""

    state: u64
    state_entry_time: u64
    time_running: u64
    time_runnable: u64
    time_blocked: u64
    time_offline: u64


@layout
class kvm_xen_vcpu_attr_u_timer(Structure):
    """The event of a vCPU's timer."""

    port: u32
    priority: u32
    expires_ns: u64


@layout
class kvm_xen_vcpu_attr_u(Union):
    """By the type of struct kvm_xen_vcpu_attr."""

    gpa: u64
    hva: u64
    pad: Annotated[Array[c_uint64], 8]
    runstate: kvm_xen_vcpu_attr_u_runstate
    vcpu_id: u32
    timer: kvm_xen_vcpu_attr_u_timer
    vector: u8


@layout
class kvm_xen_vcpu_attr(Structure):
    """For KVM_XEN_VCPU_GET_ATTR and KVM_XEN_VCPU_SET_ATTR."""

    type: u16
    pad: Annotated[Array[c_uint16], 3]
    u: kvm_xen_vcpu_attr_u


KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO = 0x0
KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO = 0x1
KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR = 0x2
KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT = 0x3
KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA = 0x4
KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST = 0x5
KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID = 0x6
KVM_XEN_VCPU_ATTR_TYPE_TIMER = 0x7
KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR = 0x8
KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA = 0x9

KVM_XEN_INVALID_GPA = 0xFFFFFFFFFFFFFFFF

KVM_XEN_VCPU_GET_ATTR = _IOWR(KVMIO, 0xCA, kvm_xen_vcpu_attr)
KVM_XEN_VCPU_SET_ATTR = _IOW(KVMIO, 0xCB, kvm_xen_vcpu_attr)

# Exits

KVM_EXIT_UNKNOWN = 0
KVM_EXIT_EXCEPTION = 1
KVM_EXIT_IO = 2
KVM_EXIT_HYPERCALL = 3
KVM_EXIT_DEBUG = 4
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_IRQ_WINDOW_OPEN = 7
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10
KVM_EXIT_SET_TPR = 11
KVM_EXIT_TPR_ACCESS = 12
KVM_EXIT_S390_SIEIC = 13
KVM_EXIT_S390_RESET = 14
KVM_EXIT_DCR = 15
KVM_EXIT_NMI = 16
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_OSI = 18
KVM_EXIT_PAPR_HCALL = 19
KVM_EXIT_S390_UCONTROL = 20
KVM_EXIT_WATCHDOG = 21
KVM_EXIT_S390_TSCH = 22
KVM_EXIT_EPR = 23
KVM_EXIT_SYSTEM_EVENT = 24
KVM_EXIT_S390_STSI = 25
KVM_EXIT_IOAPIC_EOI = 26
KVM_EXIT_HYPERV = 27
KVM_EXIT_ARM_NISV = 28
KVM_EXIT_X86_RDMSR = 29
KVM_EXIT_X86_WRMSR = 30
KVM_EXIT_DIRTY_RING_FULL = 31
KVM_EXIT_AP_RESET_HOLD = 32
KVM_EXIT_X86_BUS_LOCK = 33
KVM_EXIT_XEN = 34
KVM_EXIT_RISCV_SBI = 35
KVM_EXIT_RISCV_CSR = 36
KVM_EXIT_NOTIFY = 37
KVM_EXIT_LOONGARCH_IOCSR = 38
KVM_EXIT_MEMORY_FAULT = 39
KVM_EXIT_TDX = 40
KVM_EXIT_ARM_SEA = 41
KVM_EXIT_ARM_LDST64B = 42
KVM_EXIT_SNP_REQ_CERTS = 43


@layout
class kvm_run_hw(Structure):
    """KVM_EXIT_UNKNOWN."""

    hardware_exit_reason: u64


@layout
class kvm_run_fail_entry(Structure):
    """KVM_EXIT_FAIL_ENTRY."""

    hardware_entry_failure_reason: u64
    cpu: u32


@layout
class kvm_run_ex(Structure):
    """KVM_EXIT_EXCEPTION."""

    exception: u32
    error_code: u32


@layout
class kvm_run_io(Structure):
    """KVM_EXIT_IO. `count` items of `size` bytes lie `data_offset` bytes behind the start of struct
    kvm_run.
    """

    direction: u8
    size: u8
    port: u16
    count: u32
    data_offset: u64


KVM_EXIT_IO_IN = 0
KVM_EXIT_IO_OUT = 1


@layout
class kvm_debug_exit_arch(Structure):
    """Where a vCPU stopped, and why."""

    exception: u32
    pad: u32
    pc: u64
    dr6: u64
    dr7: u64


@layout
class kvm_run_debug(Structure):
    """KVM_EXIT_DEBUG."""

    arch: kvm_debug_exit_arch


@layout
class kvm_run_mmio(Structure):
    """KVM_EXIT_MMIO."""

    phys_addr: u64
    data: Annotated[Array[c_uint8], 8]
    len: u32
    is_write: u8


@layout
class kvm_run_hypercall_u(Union):
    """The union in kvm_run.hypercall."""

    longmode: u32
    flags: u64


@layout
class kvm_run_hypercall(Structure):
    """KVM_EXIT_HYPERCALL."""

    _anonymous_ = ("u",)
    nr: u64
    args: Annotated[Array[c_uint64], 6]
    ret: u64
    u: kvm_run_hypercall_u


KVM_EXIT_HYPERCALL_LONG_MODE = 1 << 0


@layout
class kvm_run_tpr_access(Structure):
    """KVM_EXIT_TPR_ACCESS."""

    rip: u64
    is_write: u32
    pad: u32


@layout
class kvm_run_internal(Structure):
    """KVM_EXIT_INTERNAL_ERROR."""

    suberror: u32
    ndata: u32
    data: Annotated[Array[c_uint64], 16]


@layout
class kvm_run_emulation_failure_s(Structure):
    """With KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES."""

    insn_size: u8
    insn_bytes: Annotated[Array[c_uint8], 15]


@layout
class kvm_run_emulation_failure_u(Union):
    """The union in kvm_run.emulation_failure."""

    _anonymous_ = ("s",)
    s: kvm_run_emulation_failure_s


@layout
class kvm_run_emulation_failure(Structure):
    """KVM_EXIT_INTERNAL_ERROR with KVM_INTERNAL_ERROR_EMULATION; `ndata` tells what is there."""

    _anonymous_ = ("u",)
    suberror: u32
    ndata: u32
    flags: u64
    u: kvm_run_emulation_failure_u


KVM_INTERNAL_ERROR_EMULATION = 1
KVM_INTERNAL_ERROR_SIMUL_EX = 2
KVM_INTERNAL_ERROR_DELIVERY_EV = 3
KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 4
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1 << 0


@layout
class kvm_run_system_event_u(Union):
    """The union in kvm_run.system_event."""

    flags: u64
    data: Annotated[Array[c_uint64], 16]


@layout
class kvm_run_system_event(Structure):
    """KVM_EXIT_SYSTEM_EVENT."""

    _anonymous_ = ("u",)
    type: u32
    ndata: u32
    u: kvm_run_system_event_u


KVM_SYSTEM_EVENT_SHUTDOWN = 1
KVM_SYSTEM_EVENT_RESET = 2
KVM_SYSTEM_EVENT_CRASH = 3
KVM_SYSTEM_EVENT_WAKEUP = 4
KVM_SYSTEM_EVENT_SUSPEND = 5
KVM_SYSTEM_EVENT_SEV_TERM = 6
KVM_SYSTEM_EVENT_TDX_FATAL = 7


@layout
class kvm_run_eoi(Structure):
    """KVM_EXIT_IOAPIC_EOI."""

    vector: u8


@layout
class kvm_run_msr(Structure):
    """KVM_EXIT_X86_RDMSR and KVM_EXIT_X86_WRMSR; a non-zero `error` injects #GP."""

    error: u8
    pad: Annotated[Array[c_uint8], 7]
    reason: u32
    index: u32
    data: u64


@layout
class kvm_xen_exit_u_hcall(Structure):
    """KVM_EXIT_XEN_HCALL."""

    longmode: u32
    cpl: u32
    input: u64
    result: u64
    params: Annotated[Array[c_uint64], 6]


@layout
class kvm_xen_exit_u(Union):
    """By the type of struct kvm_xen_exit."""

    hcall: kvm_xen_exit_u_hcall


@layout
class kvm_xen_exit(Structure):
    """KVM_EXIT_XEN."""

    type: u32
    u: kvm_xen_exit_u


KVM_EXIT_XEN_HCALL = 1


@layout
class kvm_run_notify(Structure):
    """KVM_EXIT_NOTIFY."""

    flags: u32


KVM_NOTIFY_CONTEXT_INVALID = 1 << 0


@layout
class kvm_run_memory_fault(Structure):
    """KVM_EXIT_MEMORY_FAULT, where KVM_RUN itself fails with EFAULT or EHWPOISON."""

    flags: u64
    gpa: u64
    size: u64


KVM_MEMORY_EXIT_FLAG_PRIVATE = 1 << 3


@layout
class kvm_run_u(Union):
    """By the exit_reason of struct kvm_run."""

    hw: kvm_run_hw
    fail_entry: kvm_run_fail_entry
    ex: kvm_run_ex
    io: kvm_run_io
    debug: kvm_run_debug
    mmio: kvm_run_mmio
    hypercall: kvm_run_hypercall
    tpr_access: kvm_run_tpr_access
    internal: kvm_run_internal
    emulation_failure: kvm_run_emulation_failure
    system_event: kvm_run_system_event
    eoi: kvm_run_eoi
    msr: kvm_run_msr
    xen: kvm_xen_exit
    notify: kvm_run_notify
    memory_fault: kvm_run_memory_fault
    padding: Annotated[Array[c_uint8], 256]


@layout
class kvm_sync_regs(Structure):
    """What kvm_valid_regs and kvm_dirty_regs of struct kvm_run choose from."""

    regs: kvm_regs
    sregs: kvm_sregs
    events: kvm_vcpu_events


SYNC_REGS_SIZE_BYTES = 2048


@layout
class kvm_run_s(Union):
    """The registers of struct kvm_run."""

    regs: kvm_sync_regs
    padding: Annotated[Array[c_uint8], SYNC_REGS_SIZE_BYTES]


@layout
class kvm_run(Structure):
    """The start of a vCPU's mapping: `kvm_run.from_buffer(mmap(vcpu, size))`."""

    _anonymous_ = ("u",)
    request_interrupt_window: u8
    immediate_exit: u8
    padding1: Annotated[Array[c_uint8], 6]
    exit_reason: u32
    ready_for_interrupt_injection: u8
    if_flag: u8
    flags: u16
    cr8: u64
    apic_base: u64
    u: kvm_run_u
    kvm_valid_regs: u64
    kvm_dirty_regs: u64
    s: kvm_run_s


KVM_RUN_X86_SMM = 1 << 0
KVM_RUN_X86_BUS_LOCK = 1 << 1
KVM_RUN_X86_GUEST_MODE = 1 << 2

KVM_SYNC_X86_REGS = 1 << 0
KVM_SYNC_X86_SREGS = 1 << 1
KVM_SYNC_X86_EVENTS = 1 << 2

name_ioctls(globals())
