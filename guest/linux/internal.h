/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the parts of callgate.ko share.
 *
 *	gate.c		a gate: mapping it, its life from creation over resets to destruction
 *	directory.c	reading what the device wrote: header and entries
 *	frames.c	who has which frame
 *	transport.c	telling the device of a call
 *	call.c		making a call
 *	chardev.c	/dev/callgateN
 *	sysfs.c debugfs.c
 *
 * The device is not trusted. What it writes is read once, checked, and the copy is used.
 */
#ifndef _CALLGATE_INTERNAL_H
#define _CALLGATE_INTERNAL_H

#include <linux/callgate.h>
#include <linux/cdev.h>
#include <linux/device.h>
#include <linux/ktime.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/pci.h>
#include <linux/percpu-rwsem.h>
#include <linux/refcount.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#define CALLGATE_STATUSES	(CALLGATE_TIMED_OUT + 1)

/* How a call reaches the device. */
enum callgate_way {
	CALLGATE_WAY_AUTO,	/* whichever of these costs least now */
	CALLGATE_WAY_POLLED,	/* frame; a doorbell only while the device does not watch */
	CALLGATE_WAY_HYPERCALL,	/* registers; frame and hypercall where the call does not fit */
	CALLGATE_WAY_PIO,	/* frame; doorbell in an I/O BAR */
	CALLGATE_WAY_MMIO,	/* frame; doorbell page */
	CALLGATE_WAYS,
};

/* The capability, checked: where in which BAR the gate is, and how to reach the device. */
struct callgate_place {
	u8 bar;
	u8 pio_bar;		/* CALLGATE_NO_BAR: none that can be used */
	u8 transports;
	u8 instruction;
	u32 selector;
	u32 offset;
	u32 length;
	u32 doorbell_offset;
	u32 pio_offset;
};

/* What of the header stays as it is for a device's life, checked; bytes from the header. */
struct callgate_layout {
	u32 directory_offset;
	u32 frames_offset;
	u32 frame_size;
	u16 frame_count;
	u16 entry_count;
	u16 entry_size;
	u16 interrupt;
};

/* An entry of the directory, checked. */
struct callgate_record {
	u64 signature;
	u32 index;
	u32 generation;
	u32 vector;		/* 0: not bound */
	u32 text_offset;
	u32 text_length;
	u16 flags;
	u8 arguments;
	u8 results;
	char name[CALLGATE_NAME_LENGTH + 1];
};

/*
 * Who is told when the device has let go of a parked frame, see frames.c. @frame holds its answer,
 * if its state is DONE; NULL: there will be none, and the device is no bus master any more.
 */
struct callgate_parked {
	void (*settle)(struct callgate_parked *parked, const struct callgate_frame *frame);
};

/* What the driver knows of a frame. */
struct callgate_slot {
	wait_queue_head_t wait;		/* the one who waits for the answer */
	struct callgate_parked *parked;	/* NULL: not parked */
	u64 owner;			/* whose payload may still lie there */
} ____cacheline_aligned_in_smp;

enum callgate_state {
	CALLGATE_LIVE,
	CALLGATE_FROZEN,	/* being reset, or suspended */
	CALLGATE_GONE,
};

/* What is complained of once for each gate. */
enum callgate_lie {
	CALLGATE_LIE_DIRECTORY,
	CALLGATE_LIE_ENTRY,
	CALLGATE_LIE_STATE,
	CALLGATE_LIE_ANSWER,
	CALLGATE_LIE_LAYOUT,
	CALLGATE_LIE_HYPERCALL,
	CALLGATE_NO_ANSWER,
	CALLGATE_LIES,
};

enum callgate_count {
	CALLGATE_COUNT_POLLED,		/* calls that took no exit */
	CALLGATE_COUNT_HYPERCALL,
	CALLGATE_COUNT_PIO,
	CALLGATE_COUNT_MMIO,
	CALLGATE_COUNT_NOTIFY,
	CALLGATE_COUNT_SLEPT,		/* answers that were slept for */
	CALLGATE_COUNT_FRAME_WAITS,	/* calls that had to wait for a frame */
	CALLGATE_COUNT_LOOKUPS,		/* calls that were looked up again */
	CALLGATE_COUNT_INTERRUPTS,
	CALLGATE_COUNT_CHANGES,		/* of the directory, that were noticed */
	CALLGATE_COUNT_PARKED,		/* calls that nobody waited for any more, or yet */
	CALLGATE_COUNT_TIMEOUTS,
	CALLGATE_COUNT_LIES,
	CALLGATE_COUNT_STATUS,		/* answers by status; the last: unknown ones */
	CALLGATE_COUNTS = CALLGATE_COUNT_STATUS + CALLGATE_STATUSES + 1,
};

struct callgate_counters {
	u64 count[CALLGATE_COUNTS];
};

/**
 * struct callgate - the gate of a PCI function
 * @dev: in the class callgate; holds the last reference to all this
 * @cdev: /dev/callgateN, with %CALLGATE_CDEV
 * @pdev: the function; valid while the gate is in use, see callgate_enter()
 * @flags: of callgate_create()
 * @place: where the gate is
 * @layout: what it looks like
 * @memory: header, directory, texts and frames; plain memory that the device shares
 * @doorbell: the doorbell page
 * @ports: the I/O BAR of the doorbell ports, or NULL
 * @features: enum callgate_feature bits in force
 * @abi_version: in force
 * @device_version: of the device's ABI
 * @uuid: of the device's ABI
 * @name: of the device
 * @doorbell_vector: changes with a reset
 * @ways: 1 << enum callgate_way: what can be used here
 * @way: what is used, an enum callgate_way
 * @timeout_ms: how long a call is waited for if it does not say
 * @spin_us: how long of that without sleeping
 * @max_pending: limit of an open file
 * @state: enum callgate_state
 * @users: held for reading between callgate_enter() and callgate_leave(), for writing while @shut
 * @lock: life-cycle changes, one at a time
 * @shut: nobody is let in
 * @thawed: who waits for the end of a freeze
 * @slots: one for each frame
 * @spare: for each CPU a frame's index + 1, or 0
 * @taken: frames that are neither free nor parked, and those in @spare
 * @parked: frames that wait for the device alone: where to look for them
 * @frame_wait: who waits for a frame
 * @irq: Linux' number of the gate's interrupt, or 0
 * @owns_vectors: whether MSI-X was enabled here
 * @generation: of the directory, as of the last change that was noticed
 * @change: tells @notifiers and @poll_wait of a change
 * @notifiers: of changes
 * @poll_wait: who polls /dev/callgateN
 * @told: 1 << enum callgate_lie: what was complained of
 * @counters: enum callgate_count
 * @calls: sysfs' group of calls
 * @call_groups: that one, and NULL
 * @call_attributes: its attributes
 * @debugfs: the folder
 */
struct callgate {
	struct device dev;
	struct cdev cdev;
	struct pci_dev *pdev;
	unsigned int flags;

	struct callgate_place place;
	struct callgate_layout layout;
	void *memory;
	void __iomem *doorbell;
	void __iomem *ports;

	u32 features;
	u32 abi_version;
	u32 device_version;
	u8 uuid[16];
	char name[CALLGATE_NAME_LENGTH + 1];
	u32 doorbell_vector;
	unsigned long ways;
	unsigned int way;
	unsigned int timeout_ms;
	unsigned int spin_us;
	unsigned int max_pending;

	int state;
	struct percpu_rw_semaphore users;
	struct mutex lock;	/* changes of state */
	bool shut;
	wait_queue_head_t thawed;

	struct callgate_slot *slots;
	unsigned int __percpu *spare;
	unsigned long *taken;
	unsigned long *parked;
	wait_queue_head_t frame_wait;

	int irq;
	bool owns_vectors;
	u32 generation;
	struct work_struct change;
	struct blocking_notifier_head notifiers;
	wait_queue_head_t poll_wait;

	unsigned long told;
	struct callgate_counters __percpu *counters;
	struct attribute_group calls;
	const struct attribute_group *call_groups[2];
	struct callgate_call_attribute *call_attributes;
	struct dentry *debugfs;
};

/**
 * struct callgate_call - a call of a gate, looked up by name
 * @users: references
 * @gate: whose it is; holds a reference
 * @record: what the directory said when the call was opened; all but vector, index and generation
 *	stay so
 * @vector: what addresses it now; 0: look it up first
 * @index: of its entry, where it is looked for first
 * @generation: of the directory when @vector was looked up
 */
struct callgate_call {
	refcount_t users;
	struct callgate *gate;
	struct callgate_record record;
	u32 vector;
	u32 index;
	u32 generation;
};

/* How a caller may wait. */
enum callgate_patience {
	CALLGATE_SPIN,		/* not sleeping */
	CALLGATE_SLEEP,		/* whatever comes */
	CALLGATE_KILLABLE,	/* until the process is killed */
	CALLGATE_SIGNAL,	/* until a signal comes */
};

/* A call on its way. */
struct callgate_trip {
	struct callgate_call *call;
	struct callgate_msg *msg;
	u64 owner;		/* who may see a frame's payload; 0: the kernel */
	enum callgate_patience patience;
	ktime_t deadline;	/* 0: not looked at the clock yet */
	int frame;		/* the frame's index, or -1: none */
	u32 vector;		/* that it was called by */
};

static inline struct callgate *to_callgate(struct device *dev)
{
	return container_of(dev, struct callgate, dev);
}

/* What a task is while it waits; not with CALLGATE_SPIN. */
static inline unsigned int callgate_task_state(enum callgate_patience patience)
{
	switch (patience) {
	case CALLGATE_KILLABLE:
		return TASK_KILLABLE;
	case CALLGATE_SIGNAL:
		return TASK_INTERRUPTIBLE;
	default:
		return TASK_UNINTERRUPTIBLE;
	}
}

static inline void callgate_count(struct callgate *gate, enum callgate_count which)
{
	this_cpu_inc(gate->counters->count[which]);
}

static inline const struct callgate_header *callgate_header(const struct callgate *gate)
{
	return gate->memory;
}

static inline struct callgate_frame *callgate_frame(const struct callgate *gate, unsigned int index)
{
	return gate->memory + gate->layout.frames_offset +
	       (size_t)index * gate->layout.frame_size;
}

static inline void *callgate_payload(struct callgate_frame *frame)
{
	return (void *)frame + CALLGATE_PAYLOAD_OFFSET;
}

/*
 * Frames, header and directory are memory that processors of the host write while we read, so the
 * barriers are those between processors, also in a kernel that was built for one: virt_*().
 */
static inline u32 callgate_frame_state(const struct callgate_frame *frame)
{
	/* Who sees DONE sees the answer. */
	return le32_to_cpu(virt_load_acquire(&frame->state));
}

static inline u32 callgate_generation(const struct callgate *gate)
{
	return le32_to_cpu(READ_ONCE(callgate_header(gate)->generation));
}

static inline bool callgate_watching(const struct callgate *gate)
{
	return gate->features & CALLGATE_FEATURE_POLLED &&
	       READ_ONCE(callgate_header(gate)->watching) == cpu_to_le32(1);
}

/* --- the usual way of a call, without a function call ----------------------------------------- */

static inline int callgate_state(const struct callgate *gate)
{
	/* Pairs with the release of whoever changed it: who sees LIVE sees what is in force. */
	return smp_load_acquire(&gate->state);
}

/* Why a call cannot go on: 0 (it can), -EIO (a freeze came) or -ENODEV. */
static inline int callgate_why_not(const struct callgate *gate)
{
	const int state = callgate_state(gate);

	if (likely(state == CALLGATE_LIVE))
		return 0;
	return state == CALLGATE_FROZEN ? -EIO : -ENODEV;
}

static inline bool callgate_try_enter(struct callgate *gate)
{
	if (unlikely(!percpu_down_read_trylock(&gate->users)))
		return false;
	if (likely(callgate_state(gate) == CALLGATE_LIVE))
		return true;
	percpu_up_read(&gate->users);
	return false;
}

int callgate_wait_to_enter(struct callgate *gate, enum callgate_patience patience,
			   unsigned int timeout_us);

/*
 * Before anything that the gate maps is used. Waits while the gate is frozen, for as long as a call
 * may take, unless it must not sleep. 0, -ENODEV, -EAGAIN, -ETIMEDOUT or -EINTR.
 */
static inline int callgate_enter(struct callgate *gate, enum callgate_patience patience,
				 unsigned int timeout_us)
{
	if (likely(callgate_try_enter(gate)))
		return 0;
	return callgate_wait_to_enter(gate, patience, timeout_us);
}

static inline void callgate_leave(struct callgate *gate)
{
	percpu_up_read(&gate->users);
}

/* Whether the device has let go of a frame. */
static inline bool callgate_is_settled(const struct callgate *gate, unsigned int index)
{
	const u32 state = callgate_frame_state(callgate_frame(gate, index));

	return state == CALLGATE_FRAME_STATE_DONE || state == CALLGATE_FRAME_STATE_FREE;
}

int callgate_look_for_frame(struct callgate_trip *trip, int unsettled);
void callgate_give_away(struct callgate *gate, unsigned int index);

/*
 * Take a frame for a trip: its index, or -EAGAIN (none, and it may not wait), -ETIMEDOUT, -EINTR,
 * -EIO and -ENODEV (the gate is being frozen, or has gone).
 */
static inline int callgate_take_frame(struct callgate_trip *trip)
{
	struct callgate *gate = trip->call->gate;
	/*
	 * Not this_cpu_xchg(), which the xchg() of other CPUs would not respect. It does not matter
	 * whether this is still the CPU's own one by then.
	 */
	const int index = (int)xchg(raw_cpu_ptr(gate->spare), 0) - 1;

	if (likely(index >= 0 && callgate_is_settled(gate, index)))
		return index;
	return callgate_look_for_frame(trip, index);
}

/* Give back a frame that the device has let go of. */
static inline void callgate_give_frame(struct callgate *gate, unsigned int index)
{
	/* Who is missed here is found below. */
	if (unlikely(waitqueue_active(&gate->frame_wait)) ||
	    unlikely(cmpxchg(raw_cpu_ptr(gate->spare), 0, index + 1))) {
		callgate_give_away(gate, index);
		return;
	}
	/*
	 * cmpxchg() is a full barrier: who takes the frame sees what was done with it, and who
	 * waits for one is in the queue before he looks for it.
	 */
	if (unlikely(waitqueue_active(&gate->frame_wait)))
		wake_up(&gate->frame_wait);
}

/* gate.c */
extern struct class callgate_class;

bool callgate_enter_dead(struct callgate *gate);
bool callgate_gone(struct callgate *gate);
void callgate_look_for_change(struct callgate *gate);
bool callgate_first_lie(struct callgate *gate, enum callgate_lie lie);

#define callgate_complain(gate, lie, format, ...) \
do { \
	if (callgate_first_lie(gate, lie)) \
		pci_warn((gate)->pdev, format "\n", ##__VA_ARGS__); \
} while (0)

/* directory.c */
void callgate_copy_in(void *to, const void *from, size_t length);
int callgate_find_place(struct pci_dev *pdev, struct callgate_place *place);
int callgate_read_header(struct callgate *gate, struct callgate_header *header,
			 struct callgate_layout *layout);
int callgate_read_record(struct callgate *gate, u32 index, enum callgate_patience patience,
			 struct callgate_record *record);
int callgate_find_record(struct callgate *gate, const char *name, u32 hint,
			 enum callgate_patience patience, struct callgate_record *record);
size_t callgate_read_text(struct callgate *gate, const struct callgate_record *record, char *text,
			  size_t size);

/* frames.c */
int callgate_frames_init(struct callgate *gate);
void callgate_frames_exit(struct callgate *gate);
void callgate_park_frame(struct callgate *gate, unsigned int index, struct callgate_parked *parked);
bool callgate_unpark_frame(struct callgate *gate, unsigned int index,
			   struct callgate_parked *parked);
bool callgate_reclaim_frames(struct callgate *gate);
void callgate_abandon_frames(struct callgate *gate);

/* transport.c */
unsigned long callgate_find_ways(struct callgate *gate);
const char *callgate_way_name(unsigned int way);
int callgate_parse_way(const char *name);
bool callgate_prefers_ports(const struct callgate *gate, unsigned int way);
int callgate_hypercall(struct callgate *gate, u32 vector, u64 *slots, u32 *status);
void callgate_ring(struct callgate *gate, unsigned int index, unsigned int way);
void callgate_ring_vector(struct callgate *gate, u32 vector);

/* call.c */
int callgate_errno(u32 status);
struct callgate_call *callgate_call_get(struct callgate_call *call);
int callgate_begin(struct callgate_trip *trip, u16 frame_flags);
int callgate_begin_post(struct callgate_trip *trip);
int callgate_run(struct callgate_trip *trip);
int callgate_read_answer(struct callgate *gate, const struct callgate_frame *frame,
			 struct callgate_msg *msg);
s64 callgate_time_left(struct callgate_trip *trip, ktime_t now);
int callgate_check_msg(const struct callgate_call *call, const struct callgate_msg *msg);

/* chardev.c */
extern const struct file_operations callgate_fops;
int callgate_chardev_register(unsigned int minors);
void callgate_chardev_unregister(unsigned int minors);
dev_t callgate_devt(unsigned int minor);

/* sysfs.c */
extern const struct attribute_group *callgate_groups[];
int callgate_sysfs_init(struct callgate *gate);
void callgate_sysfs_exit(struct callgate *gate);

/* debugfs.c */
void callgate_debugfs_register(void);
void callgate_debugfs_unregister(void);
void callgate_debugfs_add(struct callgate *gate);
void callgate_debugfs_remove(struct callgate *gate);

#endif /* _CALLGATE_INTERNAL_H */
