// SPDX-License-Identifier: GPL-2.0
/*
 * Who has which frame.
 *
 * A frame is in one of these places; its number moves between them by atomic operations alone:
 *
 *	spare	each CPU keeps one for who calls there next. While calls are short, this is the
 *		only place that a call looks at, and no other CPU does.
 *	free	a clear bit in @taken
 *	used	a call has it: nobody else may touch it
 *	parked	its caller went away before the answer came: it gave up waiting, or did not want to
 *		wait (yet). The device still writes to it. Once its state says that the device let
 *		go of it, whoever needs a frame takes it, and tells @settle. Who exchanges the
 *		slot's @parked for NULL has the frame; the bitmap says only where to look.
 *
 * A call may sleep while it has a frame, and others run on that CPU meanwhile. They find no spare
 * one then and take a free one, a parked one that is settled, or another CPU's spare one. With
 * fewer frames than CPUs the frames wander to where calls are made. Who finds none waits in
 * @frame_wait.
 */
#include <linux/bitmap.h>
#include <linux/percpu.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "internal.h"

/* How often who waits for a frame looks at parked ones, whose end nobody announces; and else. */
#define CALLGATE_LOOK_PARKED	msecs_to_jiffies(10)
#define CALLGATE_LOOK_AGAIN	msecs_to_jiffies(200)

/* Take a parked frame back, whatever its state. False: somebody else took it, and settles it. */
bool callgate_unpark_frame(struct callgate *gate, unsigned int index,
			   struct callgate_parked *parked)
{
	/* A full barrier: what was written before it was parked is seen. */
	if (cmpxchg(&gate->slots[index].parked, parked, NULL) != parked)
		return false;
	clear_bit(index, gate->parked);
	return true;
}

/* A parked frame that the device has let go of, or -1. */
static int callgate_take_parked(struct callgate *gate)
{
	struct callgate_parked *parked;
	unsigned int index;

	for_each_set_bit(index, gate->parked, gate->layout.frame_count) {
		parked = READ_ONCE(gate->slots[index].parked);
		if (!parked || !callgate_is_settled(gate, index) ||
		    !callgate_unpark_frame(gate, index, parked))
			continue;
		/* Between the two, it may have been parked anew by the same. */
		if (!callgate_is_settled(gate, index)) {
			callgate_park_frame(gate, index, parked);
			continue;
		}
		parked->settle(parked, callgate_frame(gate, index));
		return index;
	}
	return -1;
}

/* A frame that nobody uses, or -1. */
static int callgate_find_frame(struct callgate *gate)
{
	const unsigned int count = gate->layout.frame_count;
	unsigned int index, cpu;
	int parked;

	index = xchg(raw_cpu_ptr(gate->spare), 0);
	if (index)
		return index - 1;
	for_each_clear_bit(index, gate->taken, count) {
		if (!test_and_set_bit(index, gate->taken))
			return index;
	}
	parked = callgate_take_parked(gate);
	if (parked >= 0)
		return parked;
	for_each_possible_cpu(cpu) {
		index = xchg(per_cpu_ptr(gate->spare, cpu), 0);
		if (index)
			return index - 1;
	}
	return -1;
}

/* The device says that it has taken a frame that nobody calls with: so let it have it. */
static void callgate_leave_unsettled(struct callgate *gate, unsigned int index)
{
	callgate_complain(gate, CALLGATE_LIE_STATE,
			  "frame %u is not free, though nobody calls with it", index);
	callgate_count(gate, CALLGATE_COUNT_PARKED);
	callgate_park_frame(gate, index, NULL);
}

/*
 * A frame that nobody uses, and that the device does not say to have taken; -1: none. A device may
 * change its mind without end, but is heard once for each frame.
 */
static int callgate_find_settled(struct callgate *gate)
{
	unsigned int tries;
	int index;

	for (tries = 0; tries < gate->layout.frame_count; tries++) {
		index = callgate_find_frame(gate);
		if (index < 0 || callgate_is_settled(gate, index))
			return index;
		callgate_leave_unsettled(gate, index);
	}
	return -1;
}

/* Who waits for a frame. */
struct callgate_waiter {
	struct wait_queue_entry entry;
	int frame;		/* that was handed over, or -1 */
};

/* Called with the queue's lock. @key is the frame to hand over; NULL: have a look again. */
static int callgate_wake_waiter(struct wait_queue_entry *entry, unsigned int mode, int flags,
				void *key)
{
	struct callgate_waiter *waiter = container_of(entry, struct callgate_waiter, entry);
	int *frame = key;

	if (!frame)
		return autoremove_wake_function(entry, mode, flags, NULL);
	if (waiter->frame >= 0)
		return 0;
	waiter->frame = *frame;
	*frame = -1;
	autoremove_wake_function(entry, mode, flags, NULL);
	return 1;
}

/* Hand a frame over to who has waited longest, lest who comes now is quicker. False: nobody is. */
static bool callgate_hand_over(struct callgate *gate, int frame)
{
	__wake_up(&gate->frame_wait, TASK_NORMAL, 1, &frame);
	return frame < 0;
}

static int callgate_wait_for_frame(struct callgate_trip *trip)
{
	struct callgate *gate = trip->call->gate;
	const unsigned int mode = callgate_task_state(trip->patience);
	struct callgate_waiter waiter = { .frame = -1 };
	int index, why;

	callgate_count(gate, CALLGATE_COUNT_FRAME_WAITS);
	init_wait_entry(&waiter.entry, 0);
	waiter.entry.func = callgate_wake_waiter;
	for (;;) {
		prepare_to_wait_exclusive(&gate->frame_wait, &waiter.entry, mode);
		index = waiter.frame >= 0 ? waiter.frame : callgate_find_settled(gate);
		if (index >= 0)
			break;
		why = callgate_why_not(gate);
		if (!why && signal_pending_state(mode, current))
			why = -EINTR;
		if (!why && callgate_time_left(trip, ktime_get()) <= 0)
			why = -ETIMEDOUT;
		if (why) {
			index = why;
			break;
		}
		schedule_timeout(bitmap_empty(gate->parked, gate->layout.frame_count) ?
				 CALLGATE_LOOK_AGAIN : CALLGATE_LOOK_PARKED);
	}
	finish_wait(&gate->frame_wait, &waiter.entry);
	/* Now nobody hands a frame over any more; but somebody may have, just now. */
	if (index < 0)
		return waiter.frame >= 0 ? waiter.frame : index;
	if (waiter.frame >= 0 && waiter.frame != index)
		callgate_give_frame(gate, waiter.frame);
	return index;
}

/* callgate_take_frame() for who did not find one at once; or one that is not settled, or -1. */
int callgate_look_for_frame(struct callgate_trip *trip, int unsettled)
{
	struct callgate *gate = trip->call->gate;
	int index;

	if (unsettled >= 0)
		callgate_leave_unsettled(gate, unsettled);
	index = callgate_find_settled(gate);
	if (index >= 0)
		return index;
	if (trip->patience == CALLGATE_SPIN || trip->msg->flags & CALLGATE_MSG_NOWAIT)
		return -EAGAIN;
	return callgate_wait_for_frame(trip);
}

/* callgate_give_frame() where somebody waits for one, or this CPU has one already. */
void callgate_give_away(struct callgate *gate, unsigned int index)
{
	/* Who is missed here is found below. */
	if (waitqueue_active(&gate->frame_wait) && callgate_hand_over(gate, index))
		return;
	/* Who takes it, by a full barrier, sees what was done with it. */
	if (cmpxchg(raw_cpu_ptr(gate->spare), 0, index + 1))
		clear_bit_unlock(index, gate->taken);
	/* Who began to wait meanwhile is in the queue before he looks for a frame. */
	if (wq_has_sleeper(&gate->frame_wait))
		wake_up(&gate->frame_wait);
}

static void callgate_settle_nobody(struct callgate_parked *parked,
				   const struct callgate_frame *frame)
{
}

static struct callgate_parked callgate_nobody = { .settle = callgate_settle_nobody };

/*
 * Leave a frame to the device. @parked, if there is one, is told when the device let go of it, by
 * whoever takes the frame then, in any context but NMI.
 */
void callgate_park_frame(struct callgate *gate, unsigned int index, struct callgate_parked *parked)
{
	/* Pairs with cmpxchg() in callgate_unpark_frame(). */
	smp_store_release(&gate->slots[index].parked, parked ?: &callgate_nobody);
	set_bit(index, gate->parked);
}

/* Take back all frames that the device has let go of. True: there is no parked one left. */
bool callgate_reclaim_frames(struct callgate *gate)
{
	unsigned int i;
	int index;

	while ((index = callgate_take_parked(gate)) >= 0)
		callgate_give_frame(gate, index);
	for (i = 0; i < gate->layout.frame_count; i++)
		if (READ_ONCE(gate->slots[i].parked))
			return false;
	return true;
}

/* The device can write to no frame any more, nor to what they refer to. */
void callgate_abandon_frames(struct callgate *gate)
{
	struct callgate_parked *parked;
	unsigned int index;

	for_each_set_bit(index, gate->parked, gate->layout.frame_count) {
		parked = READ_ONCE(gate->slots[index].parked);
		if (parked && callgate_unpark_frame(gate, index, parked))
			parked->settle(parked, NULL);
	}
}

/*
 * Before anybody calls. A frame that an earlier driver has left with the device is parked, until
 * the device lets go of it.
 */
int callgate_frames_init(struct callgate *gate)
{
	const unsigned int count = gate->layout.frame_count;
	unsigned int i;

	gate->slots = kvcalloc(count, sizeof(*gate->slots), GFP_KERNEL);
	gate->taken = bitmap_zalloc(count, GFP_KERNEL);
	gate->parked = bitmap_zalloc(count, GFP_KERNEL);
	gate->spare = alloc_percpu(unsigned int);
	if (!gate->slots || !gate->taken || !gate->parked || !gate->spare)
		return -ENOMEM;
	for (i = 0; i < count; i++) {
		init_waitqueue_head(&gate->slots[i].wait);
		if (!callgate_is_settled(gate, i)) {
			set_bit(i, gate->taken);
			callgate_park_frame(gate, i, NULL);
		}
	}
	return 0;
}

void callgate_frames_exit(struct callgate *gate)
{
	free_percpu(gate->spare);
	bitmap_free(gate->parked);
	bitmap_free(gate->taken);
	kvfree(gate->slots);
}
