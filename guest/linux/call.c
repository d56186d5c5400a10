// SPDX-License-Identifier: GPL-2.0
/*
 * Making a call. docs/abi.md, sections 4, 5, 7 and 8.
 */
#include <linux/delay.h>
#include <linux/hrtimer.h>
#include <linux/io.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "internal.h"

/* Times that a call is looked up anew: a device that rebinds without end must not hold a caller. */
#define CALLGATE_LOOKUPS	8
/* Looks at a directory that does not say yet what the answer REVOKED said. */
#define CALLGATE_REVOKED_TRIES	100
/* Looks at a frame between two looks at the clock, which may be a device of the hypervisor's. */
#define CALLGATE_LOOKS		128
/* A nap between two looks at a frame; the longest where an interrupt ends it. In microseconds. */
#define CALLGATE_SHORTEST_NAP	20
#define CALLGATE_LONGEST_NAP	10000
#define CALLGATE_INTERRUPT_NAP	100000
/* How often to ask a device that does not answer whether it is still there. In microseconds. */
#define CALLGATE_ASK		100000

static const int callgate_errnos[CALLGATE_STATUSES] = {
	[CALLGATE_OK] = 0,
	[CALLGATE_NO_SUCH_VECTOR] = -ENXIO,
	[CALLGATE_REVOKED] = -EAGAIN,
	[CALLGATE_BAD_COUNT] = -EINVAL,
	[CALLGATE_BAD_VALUE] = -EDOM,
	[CALLGATE_BAD_BUFFER] = -EFAULT,
	[CALLGATE_BAD_FRAME] = -EBADMSG,
	[CALLGATE_DENIED] = -EACCES,
	[CALLGATE_BUSY] = -EBUSY,
	[CALLGATE_DEVICE_ERROR] = -EREMOTEIO,
	[CALLGATE_DEVICE_FAULT] = -EIO,
	[CALLGATE_TIMED_OUT] = -ETIME,
};

int callgate_errno(u32 status)
{
	return status < CALLGATE_STATUSES ? callgate_errnos[status] : -EPROTO;
}

/* --- looking up ------------------------------------------------------------------------------- */

struct callgate_call *callgate_call_get(struct callgate_call *call)
{
	refcount_inc(&call->users);
	return call;
}

/**
 * callgate_open() - look a call up by name
 * @gate: the gate
 * @name: the call's name
 * @signature: hash of the signature that the driver was built for
 *
 * The call stays open while the device's side revokes it and binds it anew: it is looked up again
 * by name then. It holds a reference to @gate.
 *
 * Context: process context, may sleep.
 * Return: the call, to be given to callgate_close(), or an ERR_PTR():
 *
 * * -ENOENT: the device has no call of that name.
 * * -ESTALE: it has one with another signature.
 * * -EIO, -ETIMEDOUT: what the directory says of it is malformed, or never at rest.
 * * -ENODEV: the device has gone.
 * * -ENOMEM.
 */
struct callgate_call *callgate_open(struct callgate *gate, const char *name, u64 signature)
{
	struct callgate_call *call;
	int err;

	call = kzalloc(sizeof(*call), GFP_KERNEL);
	if (!call)
		return ERR_PTR(-ENOMEM);
	err = callgate_enter(gate, CALLGATE_KILLABLE, 0);
	if (!err) {
		err = callgate_find_record(gate, name, 0, CALLGATE_KILLABLE, &call->record);
		callgate_leave(gate);
	}
	if (!err && call->record.signature != signature)
		err = -ESTALE;
	if (err) {
		kfree(call);
		return ERR_PTR(err);
	}
	refcount_set(&call->users, 1);
	get_device(&gate->dev);
	call->gate = gate;
	call->vector = call->record.vector;
	call->index = call->record.index;
	call->generation = call->record.generation;
	return call;
}
EXPORT_SYMBOL_GPL(callgate_open);

/**
 * callgate_close() - let go of a call
 * @call: the call, of callgate_open(), or NULL
 *
 * Context: process context, may sleep.
 */
void callgate_close(struct callgate_call *call)
{
	if (call && refcount_dec_and_test(&call->users)) {
		callgate_put(call->gate);
		kfree(call);
	}
}
EXPORT_SYMBOL_GPL(callgate_close);

static void callgate_close_action(void *call)
{
	callgate_close(call);
}

/**
 * devm_callgate_open() - look a call up by name, until a driver is unbound
 * @dev: the device of that driver
 * @gate: the gate
 * @name: the call's name
 * @signature: hash of the signature that the driver was built for
 *
 * Context: process context, may sleep.
 * Return: as callgate_open().
 */
struct callgate_call *devm_callgate_open(struct device *dev, struct callgate *gate,
					 const char *name, u64 signature)
{
	struct callgate_call *call = callgate_open(gate, name, signature);
	int err;

	if (IS_ERR(call))
		return call;
	err = devm_add_action_or_reset(dev, callgate_close_action, call);
	return err ? ERR_PTR(err) : call;
}
EXPORT_SYMBOL_GPL(devm_callgate_open);

/* Look up by name what addresses the call now, when @stale does not any more. */
static int callgate_look_up_again(struct callgate_call *call, u32 stale,
				  enum callgate_patience patience)
{
	struct callgate *gate = call->gate;
	const struct callgate_record *known = &call->record;
	struct callgate_record record;
	unsigned int tries = 0;
	int err;

	callgate_count(gate, CALLGATE_COUNT_LOOKUPS);
	callgate_look_for_change(gate);
	do {
		err = callgate_find_record(gate, known->name, READ_ONCE(call->index), patience,
					   &record);
		if (err)
			return err;
		if (record.signature != known->signature || record.flags != known->flags ||
		    record.arguments != known->arguments || record.results != known->results)
			return -ESTALE;
		if (!record.vector)
			return -ENOTCONN;
		/* The device's side revokes first and writes the directory then. */
		if (record.vector == stale) {
			if (patience == CALLGATE_SPIN || ++tries == CALLGATE_REVOKED_TRIES)
				return -EAGAIN;
			usleep_range(50, 200);
		}
	} while (record.vector == stale);
	WRITE_ONCE(call->index, record.index);
	WRITE_ONCE(call->generation, record.generation);
	WRITE_ONCE(call->vector, record.vector);
	return 0;
}

/*
 * The same when the directory has changed since, for who is not told that a vector is stale. A
 * change that comes right now may be missed: then the device drops the call.
 */
static int callgate_look_up_if_changed(struct callgate_call *call, enum callgate_patience patience)
{
	const u32 generation = callgate_generation(call->gate);

	if (READ_ONCE(call->vector) && READ_ONCE(call->generation) == generation)
		return 0;
	return callgate_look_up_again(call, 0, patience);
}

/* --- a call on its way ------------------------------------------------------------------------ */

/* How many microseconds the trip may still take; 0 or less: its time is used up. */
s64 callgate_time_left(struct callgate_trip *trip, ktime_t now)
{
	u64 us = trip->msg->timeout_us;

	if (!trip->deadline) {
		if (!us && trip->patience == CALLGATE_SPIN)
			us = CALLGATE_ATOMIC_US;
		else if (!us)
			us = (u64)READ_ONCE(trip->call->gate->timeout_ms) * USEC_PER_MSEC;
		trip->deadline = ktime_add_us(now, us);
	}
	return ktime_us_delta(trip->deadline, now);
}

/* Whether the device's interrupt says that the answer is there. */
static bool callgate_is_told(const struct callgate_trip *trip)
{
	return trip->msg->flags & CALLGATE_MSG_LONG &&
	       READ_ONCE(trip->call->gate->features) & CALLGATE_FEATURE_DONE_INTERRUPT;
}

/*
 * What follows, with two underscores, is the usual way of a call, and becomes one function: in an
 * emulator, and where returns are guarded, to call one costs as much as a load that misses the
 * cache.
 */

/* Whether a message can be a call's at all. */
static __always_inline int __callgate_check_msg(const struct callgate_call *call,
						const struct callgate_msg *msg)
{
	const struct callgate_record *record = &call->record;

	if (msg->nargs != record->arguments || msg->nresults > record->results ||
	    msg->flags & ~(CALLGATE_MSG_LONG | CALLGATE_MSG_NOWAIT))
		return -EINVAL;
	if (likely(!msg->in_length && !msg->out_length))
		return 0;
	if ((msg->in_length && !(record->flags & CALLGATE_CALL_FLAG_PAYLOAD_IN)) ||
	    (msg->out_length && !(record->flags & CALLGATE_CALL_FLAG_PAYLOAD_OUT)))
		return -EINVAL;
	if (msg->in_length > callgate_payload_size(call->gate))
		return -EMSGSIZE;
	return 0;
}

int callgate_check_msg(const struct callgate_call *call, const struct callgate_msg *msg)
{
	return __callgate_check_msg(call, msg);
}

/* Whether the call fits the registers of a hypercall. */
static bool callgate_by_registers(const struct callgate_call *call)
{
	/* sbi_ecall() gives no more than the first two registers: the status and one result. */
	const unsigned int results = IS_ENABLED(CONFIG_RISCV) ? 1 : CALLGATE_MAX_REGISTER_VALUES;

	return call->record.flags & CALLGATE_CALL_FLAG_REGISTERS &&
	       call->record.arguments <= CALLGATE_MAX_REGISTER_VALUES &&
	       call->record.results <= results;
}

/* The way that a call takes now; -EOPNOTSUPP: the one asked for is not there any more. */
static int callgate_choose_way(struct callgate *gate, const struct callgate_call *call)
{
	const unsigned int way = READ_ONCE(gate->way);

	if (way != CALLGATE_WAY_AUTO)
		return test_bit(way, &gate->ways) ? way : -EOPNOTSUPP;
	if (callgate_watching(gate))
		return CALLGATE_WAY_POLLED;
	if (test_bit(CALLGATE_WAY_HYPERCALL, &gate->ways) && callgate_by_registers(call))
		return CALLGATE_WAY_HYPERCALL;
	return callgate_prefers_ports(gate, way) ? CALLGATE_WAY_PIO : CALLGATE_WAY_MMIO;
}

static void callgate_fill_frame(struct callgate_trip *trip, u16 frame_flags)
{
	struct callgate *gate = trip->call->gate;
	struct callgate_slot *slot = &gate->slots[trip->frame];
	struct callgate_frame *frame = callgate_frame(gate, trip->frame);
	const struct callgate_msg *msg = trip->msg;
	unsigned int i;

	if (trip->call->record.flags &
	    (CALLGATE_CALL_FLAG_PAYLOAD_IN | CALLGATE_CALL_FLAG_PAYLOAD_OUT)) {
		/* What lies there is not for everybody's eyes. */
		if (slot->owner != trip->owner)
			memset(callgate_payload(frame), 0, callgate_payload_size(gate));
		slot->owner = trip->owner;
		if (msg->in_length)
			memcpy(callgate_payload(frame), msg->in, msg->in_length);
	}
	for (i = 0; i < msg->nargs; i++)
		WRITE_ONCE(frame->values[i], cpu_to_le64(msg->args[i]));
	WRITE_ONCE(frame->flags, cpu_to_le16(frame_flags));
	WRITE_ONCE(frame->arguments, msg->nargs);
	WRITE_ONCE(frame->results, 0);
	/* A device that says DONE without having answered is found out by this. */
	WRITE_ONCE(frame->status, cpu_to_le32(CALLGATE_NO_STATUS));
	WRITE_ONCE(frame->code, 0);
	WRITE_ONCE(frame->vector, cpu_to_le32(trip->vector));
	/* All of that is seen by whoever sees READY. */
	virt_store_release(&frame->state, cpu_to_le32(CALLGATE_FRAME_STATE_READY));
}

/* Begin a call through a frame, which trip->frame names afterwards. */
static __always_inline int __callgate_begin(struct callgate_trip *trip, u16 frame_flags)
{
	struct callgate_call *call = trip->call;
	struct callgate *gate = call->gate;
	int way, index, err;

	trip->frame = -1;
	trip->vector = READ_ONCE(call->vector);
	if (!trip->vector) {
		err = callgate_look_up_again(call, 0, trip->patience);
		if (err)
			return err;
		trip->vector = READ_ONCE(call->vector);
	}
	way = callgate_choose_way(gate, call);
	if (way < 0)
		return way;
	index = callgate_take_frame(trip);
	if (index < 0)
		return index;
	trip->frame = index;
	if (callgate_is_told(trip))
		frame_flags |= CALLGATE_FRAME_FLAG_INTERRUPT;
	callgate_fill_frame(trip, frame_flags);
	if (way == CALLGATE_WAY_POLLED) {
		/* The device has one between its store of watching and its last look. */
		virt_mb();
		if (callgate_watching(gate)) {
			callgate_count(gate, CALLGATE_COUNT_POLLED);
			return 0;
		}
	}
	callgate_ring(gate, index, way);
	return 0;
}

int callgate_begin(struct callgate_trip *trip, u16 frame_flags)
{
	return __callgate_begin(trip, frame_flags);
}

/* Begin a call whose answer nobody wants. */
int callgate_begin_post(struct callgate_trip *trip)
{
	int err = callgate_look_up_if_changed(trip->call, trip->patience);

	return err ?: callgate_begin(trip, CALLGATE_FRAME_FLAG_ONE_WAY);
}

/* Sleep until somebody wakes us or @us have passed. -EINTR: by a signal. */
static int callgate_nap(struct callgate_trip *trip, unsigned int us)
{
	const unsigned int mode = callgate_task_state(trip->patience);
	struct callgate *gate = trip->call->gate;
	struct callgate_slot *slot = &gate->slots[trip->frame];
	struct callgate_frame *frame = callgate_frame(gate, trip->frame);
	ktime_t end = ns_to_ktime(us * NSEC_PER_USEC);
	DEFINE_WAIT(wait);
	int err = 0;

	/* The state is looked at behind a barrier: who changes it later finds us in the queue. */
	prepare_to_wait(&slot->wait, &wait, mode);
	if (signal_pending_state(mode, current))
		err = -EINTR;
	else if (callgate_frame_state(frame) != CALLGATE_FRAME_STATE_DONE &&
		 !callgate_why_not(gate))
		schedule_hrtimeout_range(&end, us * (NSEC_PER_USEC / 4), HRTIMER_MODE_REL);
	finish_wait(&slot->wait, &wait);
	return err;
}

/* How long to sleep for an answer that has not come in @passed microseconds. */
static s64 callgate_nap_length(s64 passed, bool told)
{
	if (told)
		return CALLGATE_INTERRUPT_NAP;
	return clamp_t(s64, passed / 8, CALLGATE_SHORTEST_NAP, CALLGATE_LONGEST_NAP);
}

/* Wait until the frame's state is DONE; trip->frame stays, whatever comes of it. */
static int callgate_await(struct callgate_trip *trip)
{
	struct callgate *gate = trip->call->gate;
	const struct callgate_frame *frame = callgate_frame(gate, trip->frame);
	const bool told = callgate_is_told(trip);
	const s64 spin_us = told ? 0 : READ_ONCE(gate->spin_us);
	unsigned int looks = 0;
	ktime_t now, began = 0, asked = 0;
	bool slept = false;
	s64 passed, left;
	int err;

	for (;;) {
		switch (callgate_frame_state(frame)) {
		case CALLGATE_FRAME_STATE_DONE:
			return 0;
		case CALLGATE_FRAME_STATE_FREE:
			/* The device was reset: the call may have run or not. */
			return -EIO;
		case CALLGATE_FRAME_STATE_READY:
		case CALLGATE_FRAME_STATE_RUNNING:
			break;
		default:
			callgate_complain(gate, CALLGATE_LIE_STATE,
					  "a frame's state is none that there is");
			return -EIO;
		}
		if (++looks % CALLGATE_LOOKS) {
			cpu_relax();
			continue;
		}
		err = callgate_why_not(gate);
		if (err)
			return err;
		now = ktime_get();
		left = callgate_time_left(trip, now);
		if (left <= 0) {
			callgate_count(gate, CALLGATE_COUNT_TIMEOUTS);
			callgate_complain(gate, CALLGATE_NO_ANSWER,
					  "a call of %s was not answered in time",
					  trip->call->record.name);
			return -ETIMEDOUT;
		}
		if (!began) {
			began = now;
			asked = now;
		}
		passed = ktime_us_delta(now, began);
		/* The answer also shows that the doorbell, which may be posted, has arrived. */
		if (ktime_us_delta(now, asked) > CALLGATE_ASK) {
			if (callgate_gone(gate))
				return -ENODEV;
			asked = now;
		}
		if (trip->patience == CALLGATE_SPIN || (passed < spin_us && !need_resched()))
			continue;
		if (!slept) {
			callgate_count(gate, CALLGATE_COUNT_SLEPT);
			slept = true;
		}
		err = callgate_nap(trip, min(left, callgate_nap_length(passed, told)));
		if (err)
			return err;
		looks = CALLGATE_LOOKS - 1;
	}
}

/*
 * Copy the answer of a frame that is DONE into a message. -EIO: what the device wrote contradicts
 * itself. The status stays to be looked at.
 */
static __always_inline int __callgate_read_answer(struct callgate *gate,
						  const struct callgate_frame *frame,
						  struct callgate_msg *msg)
{
	const u8 results = READ_ONCE(frame->results);
	unsigned int i;

	msg->status = le32_to_cpu(READ_ONCE(frame->status));
	if (msg->status == CALLGATE_DEVICE_ERROR)
		msg->code = le64_to_cpu(READ_ONCE(frame->code));
	callgate_count(gate, CALLGATE_COUNT_STATUS + min_t(u32, msg->status, CALLGATE_STATUSES));
	if (msg->status == CALLGATE_NO_STATUS || results > CALLGATE_MAX_VALUES ||
	    (msg->status == CALLGATE_OK && results < msg->nresults)) {
		callgate_complain(gate, CALLGATE_LIE_ANSWER,
				  "an answer has status %#x and %u results, %u are wanted",
				  msg->status, results, msg->nresults);
		msg->status = CALLGATE_NO_STATUS;
		return -EIO;
	}
	if (msg->status != CALLGATE_OK)
		return 0;
	for (i = 0; i < msg->nresults; i++)
		msg->results[i] = le64_to_cpu(READ_ONCE(frame->values[i]));
	if (msg->out_length)
		memcpy(msg->out, (const void *)frame + CALLGATE_PAYLOAD_OFFSET,
		       min(msg->out_length, callgate_payload_size(gate)));
	return 0;
}

int callgate_read_answer(struct callgate *gate, const struct callgate_frame *frame,
			 struct callgate_msg *msg)
{
	return __callgate_read_answer(gate, frame, msg);
}

/*
 * Wait for the answer of a call that was begun, and take it: 0, and msg->status says what. When the
 * device has not let go of the frame, trip->frame still names it, and the caller parks it.
 */
static __always_inline int __callgate_finish(struct callgate_trip *trip)
{
	struct callgate *gate = trip->call->gate;
	const struct callgate_frame *frame = callgate_frame(gate, trip->frame);
	int err;
	u32 state;

	err = callgate_await(trip);
	state = callgate_frame_state(frame);
	if (!err)
		err = __callgate_read_answer(gate, frame, trip->msg);
	else if (state != CALLGATE_FRAME_STATE_DONE && state != CALLGATE_FRAME_STATE_FREE)
		return err;
	callgate_give_frame(gate, trip->frame);
	trip->frame = -1;
	return err;
}

static noinline int callgate_finish(struct callgate_trip *trip)
{
	return __callgate_finish(trip);
}

/* Make the call by registers alone. */
static int callgate_run_registers(struct callgate_trip *trip)
{
	u64 slots[CALLGATE_MAX_REGISTER_VALUES] = { };
	struct callgate *gate = trip->call->gate;
	struct callgate_msg *msg = trip->msg;
	int err;

	trip->vector = READ_ONCE(trip->call->vector);
	memcpy(slots, msg->args, msg->nargs * sizeof(*slots));
	err = callgate_hypercall(gate, trip->vector, slots, &msg->status);
	if (err)
		return err;
	callgate_count(gate, CALLGATE_COUNT_STATUS + min_t(u32, msg->status, CALLGATE_STATUSES));
	if (msg->status == CALLGATE_DEVICE_ERROR)
		msg->code = slots[0];
	else if (msg->status == CALLGATE_OK)
		memcpy(msg->results, slots, msg->nresults * sizeof(*slots));
	return 0;
}

static int callgate_run_once(struct callgate_trip *trip)
{
	struct callgate_call *call = trip->call;
	int err;

	/* In registers the CPU waits: not for what takes long, if the device can interrupt. */
	if (READ_ONCE(call->vector) && callgate_by_registers(call) && !callgate_is_told(trip) &&
	    callgate_choose_way(call->gate, call) == CALLGATE_WAY_HYPERCALL) {
		err = callgate_run_registers(trip);
		if (err != -EOPNOTSUPP)
			return err;
	}
	err = __callgate_begin(trip, 0);
	return err ?: __callgate_finish(trip);
}

/*
 * Make a call, or finish the one that trip->frame is on its way with; look it up and make it again
 * when it was revoked. Returns an errno, also for a status. Inside callgate_enter().
 */
int callgate_run(struct callgate_trip *trip)
{
	unsigned int tries;
	int err;

	for (tries = 0; tries < CALLGATE_LOOKUPS; tries++) {
		err = trip->frame < 0 ? callgate_run_once(trip) : callgate_finish(trip);
		if (err)
			return err;
		if (likely(trip->msg->status == CALLGATE_OK))
			return 0;
		if (trip->msg->status != CALLGATE_REVOKED)
			return callgate_errno(trip->msg->status);
		if (tries + 1 == CALLGATE_LOOKUPS)
			break;
		trip->msg->status = CALLGATE_NO_STATUS;
		err = callgate_look_up_again(trip->call, trip->vector, trip->patience);
		if (err)
			return err;
	}
	return callgate_errno(CALLGATE_REVOKED);
}

static int callgate_make(struct callgate_call *call, struct callgate_msg *msg,
			 enum callgate_patience patience)
{
	struct callgate_trip trip = {
		.call = call,
		.msg = msg,
		.patience = patience,
		.frame = -1,
	};
	int err;

	msg->status = CALLGATE_NO_STATUS;
	msg->code = 0;
	err = __callgate_check_msg(call, msg);
	if (err)
		return err;
	err = callgate_enter(call->gate, patience, msg->timeout_us);
	if (err)
		return err;
	err = callgate_run(&trip);
	if (unlikely(trip.frame >= 0)) {
		callgate_count(call->gate, CALLGATE_COUNT_PARKED);
		callgate_park_frame(call->gate, trip.frame, NULL);
	}
	callgate_leave(call->gate);
	return err;
}

/**
 * callgate_call() - make a call and wait for its answer
 * @call: the call
 * @msg: its arguments, and where the answer goes
 *
 * The call takes whatever way to the device costs least. The wait spins as long as the gate's
 * attribute spin_us says, then sleeps; with %CALLGATE_MSG_LONG it sleeps at once, until the
 * device's interrupt.
 *
 * After -ETIMEDOUT, -EIO and -ENODEV the device may still work on the call, and write to buffers
 * that its arguments name: see callgate_drain().
 *
 * Context: process context, may sleep.
 * Return: 0 when the device answered CALLGATE_OK. The errno that stands for its status otherwise,
 * and then @msg->status has it:
 *
 * * -EINVAL: wrong counts, or a payload that the call does not take; the device was not asked. Or
 *   CALLGATE_BAD_COUNT.
 * * -EDOM: CALLGATE_BAD_VALUE.
 * * -EFAULT: CALLGATE_BAD_BUFFER.
 * * -EBADMSG: CALLGATE_BAD_FRAME.
 * * -EACCES: CALLGATE_DENIED.
 * * -EBUSY: CALLGATE_BUSY.
 * * -EREMOTEIO: CALLGATE_DEVICE_ERROR, with the device's own code in @msg->code.
 * * -EIO: CALLGATE_DEVICE_FAULT. Or, without a status, a malformed answer, or a reset that came
 *   between.
 * * -ETIME: CALLGATE_TIMED_OUT. Its handler may still run.
 * * -ENXIO: CALLGATE_NO_SUCH_VECTOR.
 * * -EPROTO: a status that this driver does not know.
 * * -EAGAIN: CALLGATE_REVOKED, again and again: the device's side never stops binding it anew.
 *
 * And without an answer, where @msg->status is %CALLGATE_NO_STATUS:
 *
 * * -ENOTCONN: the call is not bound now.
 * * -ENOENT, -ESTALE: it was bound anew with another signature, or is not there any more.
 * * -EAGAIN: with %CALLGATE_MSG_NOWAIT, all frames are in use.
 * * -EMSGSIZE: the payload does not fit a frame.
 * * -ETIMEDOUT: no answer in time.
 * * -EOPNOTSUPP: the transport that the gate's attribute asks for is not there any more.
 * * -ENODEV: the device has gone.
 */
int callgate_call(struct callgate_call *call, struct callgate_msg *msg)
{
	might_sleep();
	return callgate_make(call, msg, CALLGATE_SLEEP);
}
EXPORT_SYMBOL_GPL(callgate_call);

/**
 * callgate_call_atomic() - make a call and spin until its answer
 * @call: the call
 * @msg: its arguments, and where the answer goes
 *
 * As callgate_call(), for who must not sleep. Where that one would sleep, for a frame or for the
 * end of a reset, this one returns -EAGAIN; so it does when the call was revoked and is not at once
 * found again.
 *
 * Context: any but NMI; spins up to @msg->timeout_us.
 * Return: as callgate_call().
 */
int callgate_call_atomic(struct callgate_call *call, struct callgate_msg *msg)
{
	return callgate_make(call, msg, CALLGATE_SPIN);
}
EXPORT_SYMBOL_GPL(callgate_call_atomic);

/**
 * callgate_post() - make a call whose answer nobody wants
 * @call: the call
 * @msg: its arguments; nothing of the answer is written to it
 *
 * The device has been told when this returns. Buffers that the arguments name are in use until
 * callgate_drain() says that they are not. A call that was revoked meanwhile is lost.
 *
 * Context: any but NMI; with %CALLGATE_MSG_NOWAIT it does not sleep, else it may wait for a frame.
 * Return: 0, or what callgate_call() returns without an answer.
 */
int callgate_post(struct callgate_call *call, struct callgate_msg *msg)
{
	const enum callgate_patience patience =
		msg->flags & CALLGATE_MSG_NOWAIT ? CALLGATE_SPIN : CALLGATE_SLEEP;
	struct callgate_trip trip = {
		.call = call,
		.msg = msg,
		.patience = patience,
		.frame = -1,
	};
	int err;

	err = callgate_check_msg(call, msg);
	if (err)
		return err;
	err = callgate_enter(call->gate, patience, msg->timeout_us);
	if (err)
		return err;
	err = callgate_begin_post(&trip);
	if (!err)
		callgate_park_frame(call->gate, trip.frame, NULL);
	callgate_leave(call->gate);
	return err;
}
EXPORT_SYMBOL_GPL(callgate_post);

/**
 * callgate_notify() - ring for a one-way call without arguments
 * @call: the call
 *
 * A single write to the device, with no frame and no answer. A call that is revoked at this moment
 * is lost.
 *
 * Context: any but NMI; does not sleep.
 * Return: 0; -EOPNOTSUPP where the device does not offer it, -EINVAL where the call is none for it,
 * -ENODEV, -EAGAIN, -ENOTCONN and -ESTALE as callgate_call_atomic().
 */
int callgate_notify(struct callgate_call *call)
{
	struct callgate *gate = call->gate;
	int err;

	if (call->record.arguments || !(call->record.flags & CALLGATE_CALL_FLAG_ONE_WAY))
		return -EINVAL;
	err = callgate_enter(gate, CALLGATE_SPIN, 0);
	if (err)
		return err;
	if (!(gate->features & CALLGATE_FEATURE_NOTIFY))
		err = -EOPNOTSUPP;
	if (!err)
		err = callgate_look_up_if_changed(call, CALLGATE_SPIN);
	if (!err)
		callgate_ring_vector(gate, READ_ONCE(call->vector));
	callgate_leave(gate);
	return err;
}
EXPORT_SYMBOL_GPL(callgate_notify);

/**
 * callgate_result_bytes() - the part of the payload that a result names
 * @msg: the message of a call that returned 0
 * @slot: the result's slot
 * @offset: set to where the part begins in @msg->out
 * @length: set to its length in bytes
 *
 * Return: 0; -ENOBUFS when the part is not wholly in @msg->out, which was too short for it.
 */
int callgate_result_bytes(const struct callgate_msg *msg, u64 slot, u32 *offset, u32 *length)
{
	*offset = lower_32_bits(slot);
	*length = upper_32_bits(slot);
	return (u64)*offset + *length > msg->out_length ? -ENOBUFS : 0;
}
EXPORT_SYMBOL_GPL(callgate_result_bytes);
