// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/callgateN: calls from user space.
 *
 * A call on its way is a flight, which owns all that the device may still read or write when the
 * caller has gone. It ends in one of these ways:
 *
 *	CALL	waits for the answer. Where that does not come in time, or the process is killed,
 *		the flight is left with its frame, and freed when the device lets go of that.
 *	SUBMIT	parks the frame. Whoever needs a frame may take it when the answer is there, which
 *		is copied to the flight then. WAIT takes the frame back, or finds the answer.
 *	POST	leaves the flight with its frame at once.
 */
#include <linux/compat.h>
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/xarray.h>

#include "internal.h"

#define CALLGATE_HANDLES	1024		/* calls that a file can have opened */
#define CALLGATE_LONGEST_BUFFER	SZ_4M
#define CALLGATE_LONGEST_TEXT	SZ_64K
#define CALLGATE_BUFFERS	(CALLGATE_MAX_VALUES / 2)

static dev_t callgate_first;
static atomic64_t callgate_owners = ATOMIC64_INIT(0);

/**
 * struct callgate_file - an open file
 * @users: the file itself, and its flights
 * @gate: what it is of; holds a reference
 * @owner: whose payload lies in a frame
 * @generation: of the directory, as the program knows it
 * @pending: flights
 * @handles: struct callgate_opened by number
 * @flights: those that were submitted, by cookie
 */
struct callgate_file {
	refcount_t users;
	struct callgate *gate;
	u64 owner;
	u32 generation;
	atomic_t pending;
	struct xarray handles;
	struct xarray flights;
};

/* A call that a program has opened, and which of its argument slots are addresses of buffers. */
struct callgate_opened {
	struct callgate_call *call;
	u16 in;		/* the device reads what is there */
	u16 out;	/* and writes it */
	bool known;	/* false: the directory does not say which they are */
};

/* A buffer that the device works on, and the program's to which it is put back. */
struct callgate_bounce {
	void *memory;
	size_t size;
	dma_addr_t address;
	enum dma_data_direction direction;
	unsigned int slot;	/* the argument slot of the address */
	void __user *user;
	u32 length;
};

#define CALLGATE_FLIGHT_BUSY		0	/* somebody waits for it, or begins it */

/**
 * struct callgate_flight - a call on its way
 * @parked: of its frame, while nobody waits for it
 * @file: whose it is; holds a reference
 * @trip: the call
 * @msg: arguments and answer
 * @args: argument slots
 * @results: result slots
 * @index: of its frame, while that is parked
 * @bounce_count: buffers
 * @bounces: buffers
 * @flags: 1 << %CALLGATE_FLIGHT_BUSY
 * @cookie: its number, when it was submitted
 * @abandoned: nobody will ask for the answer
 * @landed: the answer was copied here, or there will be none
 * @err: 0 (the answer is in @msg) or why there is none, once it has landed
 */
struct callgate_flight {
	struct callgate_parked parked;
	struct callgate_file *file;
	struct callgate_trip trip;
	struct callgate_msg msg;
	u64 args[CALLGATE_MAX_VALUES];
	u64 results[CALLGATE_MAX_VALUES];
	unsigned int index;
	unsigned int bounce_count;
	struct callgate_bounce bounces[CALLGATE_BUFFERS];
	unsigned long flags;
	u32 cookie;
	bool abandoned;
	bool landed;
	int err;
};

/* --- files ------------------------------------------------------------------------------------ */

static void callgate_file_put(struct callgate_file *file)
{
	if (refcount_dec_and_test(&file->users)) {
		callgate_put(file->gate);
		kfree(file);
	}
}

static int callgate_chardev_open(struct inode *inode, struct file *filp)
{
	struct callgate *gate = container_of(inode->i_cdev, struct callgate, cdev);
	struct callgate_file *file;

	if (callgate_why_not(gate) == -ENODEV)
		return -ENODEV;
	file = kzalloc(sizeof(*file), GFP_KERNEL);
	if (!file)
		return -ENOMEM;
	refcount_set(&file->users, 1);
	get_device(&gate->dev);
	file->gate = gate;
	file->owner = atomic64_inc_return(&callgate_owners);
	file->generation = READ_ONCE(gate->generation);
	xa_init_flags(&file->handles, XA_FLAGS_ALLOC);
	xa_init_flags(&file->flights, XA_FLAGS_ALLOC);
	filp->private_data = file;
	return nonseekable_open(inode, filp);
}

/* --- flights ---------------------------------------------------------------------------------- */

static void callgate_flight_free(struct callgate_flight *flight)
{
	struct callgate_file *file = flight->file;
	unsigned int i;

	for (i = 0; i < flight->bounce_count; i++)
		free_pages_exact(flight->bounces[i].memory, flight->bounces[i].size);
	kvfree(flight->msg.in);
	kvfree(flight->msg.out);
	callgate_close(flight->trip.call);
	kfree(flight);
	atomic_dec(&file->pending);
	callgate_file_put(file);
}

/* Let the device see the buffers. Inside callgate_enter(). */
static int callgate_flight_map(struct callgate_flight *flight)
{
	struct device *dev = &flight->file->gate->pdev->dev;
	struct callgate_bounce *bounce;
	unsigned int i;

	for (i = 0; i < flight->bounce_count; i++) {
		bounce = &flight->bounces[i];
		bounce->address = dma_map_single(dev, bounce->memory, bounce->size,
						 bounce->direction);
		if (dma_mapping_error(dev, bounce->address)) {
			while (i--) {
				bounce = &flight->bounces[i];
				dma_unmap_single(dev, bounce->address, bounce->size,
						 bounce->direction);
			}
			return -ENOMEM;
		}
		flight->args[bounce->slot] = bounce->address;
	}
	return 0;
}

/* The device works on the buffers no more. Inside callgate_enter(). */
static void callgate_flight_unmap(struct callgate_flight *flight)
{
	struct device *dev = &flight->file->gate->pdev->dev;
	struct callgate_bounce *bounce;
	unsigned int i;

	for (i = 0; i < flight->bounce_count; i++) {
		bounce = &flight->bounces[i];
		dma_unmap_single(dev, bounce->address, bounce->size, bounce->direction);
	}
}

/* The device has let go of the flight's frame, which somebody else takes now. Any context. */
static void callgate_flight_settle(struct callgate_parked *parked,
				   const struct callgate_frame *frame)
{
	struct callgate_flight *flight = container_of(parked, struct callgate_flight, parked);
	struct callgate *gate = flight->file->gate;

	callgate_flight_unmap(flight);
	if (flight->abandoned) {
		callgate_flight_free(flight);
		return;
	}
	if (!frame)
		flight->err = -ENODEV;
	else if (callgate_frame_state(frame) == CALLGATE_FRAME_STATE_DONE)
		flight->err = callgate_read_answer(gate, frame, &flight->msg);
	else
		flight->err = -EIO;
	/* Pairs with the acquire in callgate_has_landed(). */
	smp_store_release(&flight->landed, true);
}

static bool callgate_has_landed(const struct callgate_flight *flight)
{
	/* Pairs with the release of whoever landed it: the answer is there. */
	return smp_load_acquire(&flight->landed);
}

/* Leave a flight to its frame. */
static void callgate_flight_park(struct callgate_flight *flight)
{
	flight->index = flight->trip.frame;
	callgate_park_frame(flight->file->gate, flight->index, &flight->parked);
}

/* The same for good: it is freed when the device lets go of the frame. */
static void callgate_flight_abandon(struct callgate_flight *flight)
{
	callgate_count(flight->file->gate, CALLGATE_COUNT_PARKED);
	flight->abandoned = true;
	callgate_flight_park(flight);
}

/*
 * Take a flight back that was parked: true when its frame is ours again, false when it has landed.
 * In between somebody is about to land it. Inside callgate_enter().
 */
static bool callgate_flight_unpark(struct callgate_flight *flight)
{
	for (;;) {
		if (callgate_has_landed(flight))
			return false;
		if (callgate_unpark_frame(flight->file->gate, flight->index, &flight->parked)) {
			flight->trip.frame = flight->index;
			return true;
		}
		usleep_range(10, 50);
	}
}

/* Whether the device answered, and what counts is the status. */
static bool callgate_answered(const struct callgate_msg *msg, int err)
{
	return msg->status != CALLGATE_NO_STATUS && err == callgate_errno(msg->status);
}

static unsigned int callgate_timeout_us(u32 ms)
{
	return min_t(u32, ms, UINT_MAX / USEC_PER_MSEC) * USEC_PER_MSEC;
}

/* --- from the program, and back --------------------------------------------------------------- */

/*
 * The opened call of a handle, with a reference to the call. *@opened is a copy: the handle may
 * stand for something else by now.
 */
static int callgate_find_opened(struct callgate_file *file, u32 handle,
				struct callgate_opened *opened)
{
	const struct callgate_opened *found;

	xa_lock(&file->handles);
	found = xa_load(&file->handles, handle);
	if (found) {
		*opened = *found;
		callgate_call_get(opened->call);
	}
	xa_unlock(&file->handles);
	return found ? 0 : -EBADSLT;
}

/* A buffer of the kernel's for one of the program's. */
static int callgate_bounce_in(struct callgate_flight *flight,
			      const struct callgate_buffer *buffer)
{
	const u16 both = CALLGATE_BUFFER_IN | CALLGATE_BUFFER_OUT;
	struct callgate_bounce *bounce;

	if (buffer->slot + 1 >= flight->msg.nargs || !(buffer->flags & both) ||
	    buffer->flags & ~both)
		return -EINVAL;
	if (buffer->length > CALLGATE_LONGEST_BUFFER)
		return -EMSGSIZE;
	bounce = &flight->bounces[flight->bounce_count];
	bounce->slot = buffer->slot;
	/* An empty one has an address too. */
	bounce->size = max_t(size_t, buffer->length, 1);
	bounce->direction = buffer->flags == both ? DMA_BIDIRECTIONAL :
			    buffer->flags == CALLGATE_BUFFER_IN ? DMA_TO_DEVICE : DMA_FROM_DEVICE;
	bounce->user = u64_to_user_ptr(buffer->address);
	bounce->length = buffer->length;
	/* Zero, since the device need not fill it. */
	bounce->memory = alloc_pages_exact(bounce->size, GFP_KERNEL_ACCOUNT | __GFP_NOWARN |
					   __GFP_ZERO);
	if (!bounce->memory)
		return -ENOMEM;
	flight->bounce_count++;
	flight->args[buffer->slot + 1] = buffer->length;
	if (buffer->flags & CALLGATE_BUFFER_IN &&
	    copy_from_user(bounce->memory, bounce->user, buffer->length))
		return -EFAULT;
	return 0;
}

/*
 * A program may give the device buffers of its own, but no address of its choice: each slot that
 * the call takes an address in must have a buffer, which the device may use as the call says.
 */
static int callgate_check_buffers(const struct callgate_flight *flight,
				  const struct callgate_opened *opened)
{
	const struct callgate_bounce *bounce;
	u16 in = 0, out = 0;
	unsigned int i;

	if (!(opened->call->record.flags & CALLGATE_CALL_FLAG_BUFFERS))
		return flight->bounce_count ? -EINVAL : 0;
	for (i = 0; i < flight->bounce_count; i++) {
		bounce = &flight->bounces[i];
		if (bounce->direction != DMA_FROM_DEVICE)
			in |= BIT(bounce->slot);
		if (bounce->direction != DMA_TO_DEVICE)
			out |= BIT(bounce->slot);
	}
	if (opened->known && in == opened->in && out == opened->out)
		return 0;
	return capable(CAP_SYS_RAWIO) ? 0 : -EPERM;
}

static int callgate_bounces_in(struct callgate_flight *flight,
			       const struct callgate_opened *opened,
			       const struct callgate_transfer *transfer)
{
	const struct callgate_buffer __user *buffers = u64_to_user_ptr(transfer->buffers);
	struct callgate_buffer buffer;
	unsigned int i;
	int err;

	if (transfer->buffer_count > CALLGATE_BUFFERS)
		return -EINVAL;
	for (i = 0; i < transfer->buffer_count; i++) {
		if (copy_from_user(&buffer, &buffers[i], sizeof(buffer)))
			return -EFAULT;
		err = callgate_bounce_in(flight, &buffer);
		if (err)
			return err;
	}
	return callgate_check_buffers(flight, opened);
}

static int callgate_payload_in(struct callgate_flight *flight,
			       const struct callgate_transfer *transfer)
{
	struct callgate_msg *msg = &flight->msg;
	void *in;

	if (msg->in_length) {
		in = vmemdup_user(u64_to_user_ptr(transfer->in), msg->in_length);
		if (IS_ERR(in))
			return PTR_ERR(in);
		msg->in = in;
	}
	if (msg->out_length) {
		msg->out = kvzalloc(msg->out_length, GFP_KERNEL_ACCOUNT);
		if (!msg->out)
			return -ENOMEM;
	}
	return 0;
}

/* What a program asks for, but for slots and payload. */
static void callgate_message(const struct file *filp, const struct callgate_transfer *transfer,
			     const struct callgate_call *call, struct callgate_msg *msg)
{
	msg->nargs = transfer->arguments;
	msg->nresults = call->record.results;
	msg->flags = transfer->flags & CALLGATE_TRANSFER_LONG ? CALLGATE_MSG_LONG : 0;
	if (filp->f_flags & O_NONBLOCK)
		msg->flags |= CALLGATE_MSG_NOWAIT;
	msg->timeout_us = callgate_timeout_us(transfer->timeout_ms);
	msg->status = CALLGATE_NO_STATUS;
}

static struct callgate_flight *callgate_flight_allocate(struct callgate_file *file,
							struct callgate_call *call)
{
	struct callgate_flight *flight = kzalloc(sizeof(*flight), GFP_KERNEL_ACCOUNT);

	if (!flight)
		return NULL;
	refcount_inc(&file->users);
	flight->file = file;
	flight->parked.settle = callgate_flight_settle;
	flight->trip = (struct callgate_trip){
		.call = call,
		.msg = &flight->msg,
		.owner = file->owner,
		.patience = CALLGATE_KILLABLE,
		.frame = -1,
	};
	return flight;
}

/* Make a flight of what a program asks for. */
static struct callgate_flight *callgate_flight_create(struct file *filp,
						      const struct callgate_transfer *transfer,
						      const struct callgate_opened *opened)
{
	struct callgate_file *file = filp->private_data;
	struct callgate_flight *flight;
	struct callgate_msg *msg;
	int err = 0;

	flight = callgate_flight_allocate(file, opened->call);
	if (!flight) {
		callgate_close(opened->call);
		return ERR_PTR(-ENOMEM);
	}
	memcpy(flight->args, transfer->values, sizeof(flight->args));
	msg = &flight->msg;
	callgate_message(filp, transfer, opened->call, msg);
	msg->args = flight->args;
	msg->results = flight->results;
	msg->in_length = transfer->in_length;
	msg->out_length = min(transfer->out_length, callgate_payload_size(file->gate));
	if (atomic_inc_return(&file->pending) > READ_ONCE(file->gate->max_pending))
		err = -EDQUOT;
	if (!err)
		err = callgate_check_msg(opened->call, msg);
	if (!err)
		err = callgate_payload_in(flight, transfer);
	if (!err)
		err = callgate_bounces_in(flight, opened, transfer);
	if (err) {
		callgate_flight_free(flight);
		return ERR_PTR(err);
	}
	return flight;
}

static struct callgate_flight *callgate_find_and_create(struct file *filp,
							const struct callgate_transfer *transfer)
{
	struct callgate_opened opened;
	int err;

	if (transfer->flags & ~CALLGATE_TRANSFER_LONG)
		return ERR_PTR(-EINVAL);
	err = callgate_find_opened(filp->private_data, transfer->handle, &opened);
	return err ? ERR_PTR(err) : callgate_flight_create(filp, transfer, &opened);
}

/* Give the program the answer. */
static int callgate_answer_out(const struct callgate_flight *flight,
			       struct callgate_transfer *transfer)
{
	const struct callgate_msg *msg = &flight->msg;
	const u32 length = min(transfer->out_length, msg->out_length);
	const struct callgate_bounce *bounce;
	unsigned int i;

	transfer->status = msg->status;
	transfer->code = msg->code;
	transfer->results = 0;
	/* A device that failed may have written to the buffers, but need not. */
	if (msg->status != CALLGATE_OK)
		return 0;
	transfer->results = msg->nresults;
	memcpy(transfer->values, flight->results, msg->nresults * sizeof(*flight->results));
	if (length && copy_to_user(u64_to_user_ptr(transfer->out), msg->out, length))
		return -EFAULT;
	for (i = 0; i < flight->bounce_count; i++) {
		bounce = &flight->bounces[i];
		if (bounce->direction != DMA_TO_DEVICE &&
		    copy_to_user(bounce->user, bounce->memory, bounce->length))
			return -EFAULT;
	}
	return 0;
}

/* --- ioctls ----------------------------------------------------------------------------------- */

static int callgate_ioctl_info(struct callgate_file *file, struct callgate_info *info)
{
	struct callgate *gate = file->gate;
	const unsigned long ways = READ_ONCE(gate->ways);

	*info = (struct callgate_info){
		.device_version = gate->device_version,
		.abi_version = gate->abi_version,
		.features = READ_ONCE(gate->features),
		.transports = CALLGATE_TRANSPORT_MMIO,
		.entries = gate->layout.entry_count,
		.frames = gate->layout.frame_count,
		.payload_size = callgate_payload_size(gate),
		.generation = READ_ONCE(gate->generation),
		.timeout_ms = READ_ONCE(gate->timeout_ms),
		.max_pending = READ_ONCE(gate->max_pending),
	};
	memcpy(info->uuid, gate->uuid, sizeof(info->uuid));
	memcpy(info->name, gate->name, sizeof(info->name));
	if (test_bit(CALLGATE_WAY_POLLED, &ways))
		info->transports |= CALLGATE_TRANSPORT_POLLED;
	if (test_bit(CALLGATE_WAY_HYPERCALL, &ways))
		info->transports |= CALLGATE_TRANSPORT_HYPERCALL;
	if (test_bit(CALLGATE_WAY_PIO, &ways))
		info->transports |= CALLGATE_TRANSPORT_PIO;
	WRITE_ONCE(file->generation, info->generation);
	return 0;
}

/* A record's text in memory of its own, which the caller frees; inside callgate_enter(). */
static char *callgate_copy_text(struct callgate *gate, const struct callgate_record *record)
{
	char *text;

	if (record->text_length > CALLGATE_LONGEST_TEXT)
		return ERR_PTR(-EIO);
	text = kvmalloc(record->text_length + 1, GFP_KERNEL_ACCOUNT);
	if (!text)
		return ERR_PTR(-ENOMEM);
	text[callgate_read_text(gate, record, text, record->text_length)] = '\0';
	return text;
}

static int callgate_ioctl_list(struct callgate_file *file, struct callgate_listing *listing)
{
	struct callgate *gate = file->gate;
	struct callgate_record record;
	char *text = NULL;
	u32 length;
	int err;

	err = callgate_enter(gate, CALLGATE_KILLABLE, 0);
	if (err)
		return err;
	err = callgate_read_record(gate, listing->index, CALLGATE_KILLABLE, &record);
	if (!err && listing->text) {
		text = callgate_copy_text(gate, &record);
		if (IS_ERR(text)) {
			err = PTR_ERR(text);
			text = NULL;
		}
	}
	callgate_leave(gate);
	if (err)
		return err;
	length = min(listing->text_length, record.text_length);
	if (text && length && copy_to_user(u64_to_user_ptr(listing->text), text, length))
		err = -EFAULT;
	kvfree(text);
	listing->generation = record.generation;
	listing->signature = record.signature;
	listing->text_length = record.text_length;
	listing->flags = record.flags;
	listing->arguments = record.arguments;
	listing->results = record.results;
	listing->bound = record.vector != 0;
	memset(listing->reserved, 0, sizeof(listing->reserved));
	memcpy(listing->name, record.name, sizeof(listing->name));
	return err;
}

/* Find in a signature, "name(types)->result", which argument slots are addresses of buffers. */
static void callgate_find_buffers(char *text, struct callgate_opened *opened)
{
	unsigned int slot = 0;
	char *types, *type;

	types = strchr(text, '(');
	if (!types)
		return;
	types[strcspn(types, ")")] = '\0';
	types++;
	while (slot < CALLGATE_MAX_VALUES && (type = strsep(&types, ",")) && *type) {
		const bool both = !strcmp(type, "inout");
		const bool in = both || !strcmp(type, "in");
		const bool out = both || !strcmp(type, "out");

		if (in)
			opened->in |= BIT(slot);
		if (out)
			opened->out |= BIT(slot);
		slot += in || out ? 2 : 1;
	}
	opened->known = slot == opened->call->record.arguments;
}

static int callgate_ioctl_open(struct callgate_file *file, struct callgate_handle *handle)
{
	struct callgate *gate = file->gate;
	struct callgate_opened *opened;
	const struct callgate_record *record;
	char *text;
	int err;

	if (strnlen(handle->name, sizeof(handle->name)) == sizeof(handle->name))
		return -EINVAL;
	opened = kzalloc(sizeof(*opened), GFP_KERNEL_ACCOUNT);
	if (!opened)
		return -ENOMEM;
	opened->call = callgate_open(gate, handle->name, handle->signature);
	if (IS_ERR(opened->call)) {
		err = PTR_ERR(opened->call);
		goto free;
	}
	record = &opened->call->record;
	if (record->flags & CALLGATE_CALL_FLAG_BUFFERS) {
		err = callgate_enter(gate, CALLGATE_KILLABLE, 0);
		if (err)
			goto close;
		text = callgate_copy_text(gate, record);
		callgate_leave(gate);
		if (IS_ERR(text)) {
			err = PTR_ERR(text);
			goto close;
		}
		callgate_find_buffers(text, opened);
		kvfree(text);
	}
	handle->flags = record->flags;
	handle->arguments = record->arguments;
	handle->results = record->results;
	err = xa_alloc(&file->handles, &handle->handle, opened,
		       XA_LIMIT(0, CALLGATE_HANDLES - 1), GFP_KERNEL_ACCOUNT);
	if (!err)
		return 0;
	/* -EBUSY: no number is left. */
	if (err == -EBUSY)
		err = -EMFILE;
close:
	callgate_close(opened->call);
free:
	kfree(opened);
	return err;
}

static int callgate_ioctl_close(struct callgate_file *file, unsigned long handle)
{
	struct callgate_opened *opened = xa_erase(&file->handles, handle);

	if (!opened)
		return -EBADSLT;
	callgate_close(opened->call);
	kfree(opened);
	return 0;
}

/*
 * A frame whose caller gave up, and with which nothing but its slots went to the device. The flight
 * counts it as the file's; without memory for one it is nobody's.
 */
static void callgate_leave_plain(struct callgate_file *file, struct callgate_call *call,
				 unsigned int frame)
{
	struct callgate_flight *flight = callgate_flight_allocate(file, call);

	callgate_count(file->gate, CALLGATE_COUNT_PARKED);
	if (flight) {
		flight->abandoned = true;
		flight->trip.frame = frame;
		callgate_flight_park(flight);
	} else {
		callgate_park_frame(file->gate, frame, NULL);
		callgate_close(call);
		atomic_dec(&file->pending);
	}
}

/* A call of numbers alone, without a flight unless it is left. */
static int callgate_call_plain(struct file *filp, struct callgate_transfer *transfer,
			       struct callgate_call *call)
{
	struct callgate_file *file = filp->private_data;
	struct callgate *gate = file->gate;
	u64 results[CALLGATE_MAX_VALUES];
	struct callgate_msg msg = { .args = transfer->values, .results = results };
	struct callgate_trip trip = {
		.call = call,
		.msg = &msg,
		.owner = file->owner,
		.patience = CALLGATE_KILLABLE,
		.frame = -1,
	};
	unsigned int i;
	int err;

	callgate_message(filp, transfer, call, &msg);
	err = callgate_check_msg(call, &msg);
	if (atomic_inc_return(&file->pending) > READ_ONCE(gate->max_pending))
		err = -EDQUOT;
	if (!err)
		err = callgate_enter(gate, CALLGATE_KILLABLE, msg.timeout_us);
	if (!err) {
		err = callgate_run(&trip);
		if (unlikely(trip.frame >= 0)) {
			callgate_leave_plain(file, call, trip.frame);
			callgate_leave(gate);
			return err;
		}
		callgate_leave(gate);
	}
	atomic_dec(&file->pending);
	callgate_close(call);
	if (!callgate_answered(&msg, err))
		return err;
	transfer->status = msg.status;
	transfer->code = msg.code;
	transfer->results = msg.status == CALLGATE_OK ? msg.nresults : 0;
	for (i = 0; i < transfer->results; i++)
		transfer->values[i] = results[i];
	return 0;
}

static int callgate_ioctl_call(struct file *filp, struct callgate_transfer *transfer)
{
	struct callgate_flight *flight;
	struct callgate_opened opened;
	struct callgate *gate;
	int err;

	if (transfer->flags & ~CALLGATE_TRANSFER_LONG)
		return -EINVAL;
	err = callgate_find_opened(filp->private_data, transfer->handle, &opened);
	if (err)
		return err;
	if (!transfer->in_length && !transfer->out_length && !transfer->buffer_count &&
	    !(opened.call->record.flags & CALLGATE_CALL_FLAG_BUFFERS))
		return callgate_call_plain(filp, transfer, opened.call);
	flight = callgate_flight_create(filp, transfer, &opened);
	if (IS_ERR(flight))
		return PTR_ERR(flight);
	gate = flight->file->gate;
	err = callgate_enter(gate, CALLGATE_KILLABLE, flight->msg.timeout_us);
	if (err)
		goto free;
	err = callgate_flight_map(flight);
	if (!err) {
		err = callgate_run(&flight->trip);
		if (flight->trip.frame >= 0) {
			callgate_flight_abandon(flight);
			callgate_leave(gate);
			return err;
		}
		callgate_flight_unmap(flight);
	}
	callgate_leave(gate);
	if (callgate_answered(&flight->msg, err))
		err = callgate_answer_out(flight, transfer);
free:
	callgate_flight_free(flight);
	return err;
}

static int callgate_ioctl_post(struct file *filp, struct callgate_transfer *transfer)
{
	struct callgate_flight *flight = callgate_find_and_create(filp, transfer);
	struct callgate *gate;
	int err;

	if (IS_ERR(flight))
		return PTR_ERR(flight);
	gate = flight->file->gate;
	err = callgate_enter(gate, CALLGATE_KILLABLE, flight->msg.timeout_us);
	if (err)
		goto free;
	err = callgate_flight_map(flight);
	if (!err) {
		err = callgate_begin_post(&flight->trip);
		if (!err) {
			callgate_flight_abandon(flight);
			callgate_leave(gate);
			return 0;
		}
		callgate_flight_unmap(flight);
	}
	callgate_leave(gate);
free:
	callgate_flight_free(flight);
	return err;
}

static int callgate_ioctl_submit(struct file *filp, struct callgate_transfer *transfer)
{
	struct callgate_flight *flight = callgate_find_and_create(filp, transfer);
	struct callgate_file *file;
	struct callgate *gate;
	int err;

	if (IS_ERR(flight))
		return PTR_ERR(flight);
	file = flight->file;
	gate = file->gate;
	/* Nobody can wait for it before it was begun. */
	set_bit(CALLGATE_FLIGHT_BUSY, &flight->flags);
	err = xa_alloc(&file->flights, &flight->cookie, flight, xa_limit_32b, GFP_KERNEL_ACCOUNT);
	if (err)
		goto free;
	err = callgate_enter(gate, CALLGATE_KILLABLE, flight->msg.timeout_us);
	if (err)
		goto erase;
	err = callgate_flight_map(flight);
	if (!err) {
		err = callgate_begin(&flight->trip, 0);
		if (!err) {
			transfer->cookie = flight->cookie;
			callgate_flight_park(flight);
			callgate_leave(gate);
			clear_bit_unlock(CALLGATE_FLIGHT_BUSY, &flight->flags);
			return 0;
		}
		callgate_flight_unmap(flight);
	}
	callgate_leave(gate);
erase:
	xa_erase(&file->flights, flight->cookie);
free:
	callgate_flight_free(flight);
	return err;
}

/* The flight of a cookie, busy for the caller. */
static struct callgate_flight *callgate_find_flight(struct callgate_file *file, u32 cookie)
{
	struct callgate_flight *flight;

	xa_lock(&file->flights);
	flight = xa_load(&file->flights, cookie);
	if (!flight)
		flight = ERR_PTR(-EBADSLT);
	else if (test_and_set_bit_lock(CALLGATE_FLIGHT_BUSY, &flight->flags))
		flight = ERR_PTR(-EBUSY);
	xa_unlock(&file->flights);
	return flight;
}

/*
 * Wait for a flight's answer. -ETIMEDOUT and -ERESTARTSYS: it goes on. Any other result is its end;
 * with *@left it was left with its frame and is not the caller's any more.
 */
static int callgate_flight_wait(struct callgate_flight *flight, bool *left)
{
	int err;

	*left = false;
	flight->trip.patience = CALLGATE_SIGNAL;
	flight->trip.deadline = 0;
	if (!callgate_flight_unpark(flight)) {
		flight->trip.frame = -1;
		if (flight->err || flight->msg.status != CALLGATE_REVOKED)
			return flight->err ?: callgate_errno(flight->msg.status);
		/* Make it again, since the one that landed did not run. */
		err = callgate_flight_map(flight);
		if (err)
			return err;
		flight->landed = false;
	}
	err = callgate_run(&flight->trip);
	if (flight->trip.frame < 0) {
		callgate_flight_unmap(flight);
		/* Not begun again yet: as it was. */
		if (err == -EINTR || err == -ETIMEDOUT) {
			flight->msg.status = CALLGATE_REVOKED;
			flight->err = 0;
			flight->landed = true;
		}
	} else if (err == -EINTR || err == -ETIMEDOUT) {
		callgate_flight_park(flight);
	} else {
		*left = true;
	}
	return err == -EINTR ? -ERESTARTSYS : err;
}

static int callgate_ioctl_wait(struct callgate_file *file, struct callgate_transfer *transfer)
{
	struct callgate_flight *flight = callgate_find_flight(file, transfer->cookie);
	struct callgate *gate = file->gate;
	bool left;
	int err;

	if (IS_ERR(flight))
		return PTR_ERR(flight);
	flight->msg.timeout_us = callgate_timeout_us(transfer->timeout_ms);
	err = callgate_enter(gate, CALLGATE_KILLABLE, flight->msg.timeout_us);
	if (err)
		goto goes_on;
	err = callgate_flight_wait(flight, &left);
	if (err == -ERESTARTSYS || err == -ETIMEDOUT) {
		callgate_leave(gate);
		goto goes_on;
	}
	xa_erase(&file->flights, flight->cookie);
	if (left)
		callgate_flight_abandon(flight);
	callgate_leave(gate);
	if (!left) {
		if (callgate_answered(&flight->msg, err))
			err = callgate_answer_out(flight, transfer);
		callgate_flight_free(flight);
	}
	return err;

goes_on:
	clear_bit_unlock(CALLGATE_FLIGHT_BUSY, &flight->flags);
	return err;
}

static int callgate_ioctl_notify(struct callgate_file *file, unsigned long handle)
{
	struct callgate_opened opened;
	int err;

	err = handle > U32_MAX ? -EBADSLT : callgate_find_opened(file, handle, &opened);
	if (err)
		return err;
	err = callgate_notify(opened.call);
	callgate_close(opened.call);
	return err;
}

/* An ioctl's number without the size of its structure, which may grow. */
#define CALLGATE_SIZELESS(cmd)	((cmd) & ~IOCSIZE_MASK)

/*
 * CALLGATE_IOC_CALL of a program that was built for this kernel: the same as all others, but copies
 * only what there is. By pointers, since nothing may check an array's bounds meanwhile.
 */
static int callgate_get_transfer(struct callgate_transfer *transfer,
				 const struct callgate_transfer __user *user)
{
	const unsigned int head = offsetof(struct callgate_transfer, values) / sizeof(u64);
	const u64 __user *from = (const u64 __user *)user;
	u64 *to = (u64 *)transfer;
	unsigned int i, end;

	if (!user_read_access_begin(user, sizeof(*user)))
		return -EFAULT;
	for (i = 0; i < head; i++)
		unsafe_get_user(to[i], &from[i], fault);
	end = head + min_t(unsigned int, transfer->arguments, CALLGATE_MAX_VALUES);
	for (; i < end; i++)
		unsafe_get_user(to[i], &from[i], fault);
	user_read_access_end();
	return 0;

fault:
	user_read_access_end();
	return -EFAULT;
}

static int callgate_put_transfer(const struct callgate_transfer *transfer,
				 struct callgate_transfer __user *user)
{
	u64 __user *to = user->values;
	const u64 *from = transfer->values;
	unsigned int i;

	if (!user_write_access_begin(user, sizeof(*user)))
		return -EFAULT;
	unsafe_put_user(transfer->status, &user->status, fault);
	unsafe_put_user(transfer->results, &user->results, fault);
	unsafe_put_user(transfer->code, &user->code, fault);
	for (i = 0; i < transfer->results; i++)
		unsafe_put_user(from[i], &to[i], fault);
	user_write_access_end();
	return 0;

fault:
	user_write_access_end();
	return -EFAULT;
}

static long callgate_quick_call(struct file *filp, struct callgate_transfer __user *user)
{
	struct callgate_transfer transfer = { };
	int err;

	if (!(filp->f_mode & FMODE_WRITE))
		return -EBADF;
	err = callgate_get_transfer(&transfer, user);
	if (!err)
		err = callgate_ioctl_call(filp, &transfer);
	return err ?: callgate_put_transfer(&transfer, user);
}

static long callgate_chardev_ioctl(struct file *filp, unsigned int cmd, unsigned long arg)
{
	struct callgate_file *file = filp->private_data;
	void __user *user = (void __user *)arg;
	const size_t size = _IOC_SIZE(cmd);
	union {
		struct callgate_info info;
		struct callgate_listing listing;
		struct callgate_handle handle;
		struct callgate_transfer transfer;
	} data;
	fmode_t mode = FMODE_WRITE;
	size_t known;
	int err;

	if (likely(cmd == CALLGATE_IOC_CALL))
		return callgate_quick_call(filp, user);
	switch (CALLGATE_SIZELESS(cmd)) {
	case CALLGATE_SIZELESS(CALLGATE_IOC_INFO):
		known = sizeof(data.info);
		mode = FMODE_READ;
		break;
	case CALLGATE_SIZELESS(CALLGATE_IOC_LIST):
		known = sizeof(data.listing);
		mode = FMODE_READ;
		break;
	case CALLGATE_SIZELESS(CALLGATE_IOC_OPEN):
		known = sizeof(data.handle);
		break;
	case CALLGATE_SIZELESS(CALLGATE_IOC_CALL):
	case CALLGATE_SIZELESS(CALLGATE_IOC_SUBMIT):
	case CALLGATE_SIZELESS(CALLGATE_IOC_WAIT):
	case CALLGATE_SIZELESS(CALLGATE_IOC_POST):
		known = sizeof(data.transfer);
		break;
	case CALLGATE_IOC_CLOSE:
	case CALLGATE_IOC_NOTIFY:
		known = 0;
		break;
	default:
		return -ENOTTY;
	}
	if (size < known || (size && !known))
		return -ENOTTY;
	if (!(filp->f_mode & mode))
		return -EBADF;
	if (_IOC_DIR(cmd) & _IOC_WRITE) {
		err = copy_struct_from_user(&data, known, user, size);
		if (err)
			return err;
	}
	switch (CALLGATE_SIZELESS(cmd)) {
	case CALLGATE_SIZELESS(CALLGATE_IOC_INFO):
		err = callgate_ioctl_info(file, &data.info);
		break;
	case CALLGATE_SIZELESS(CALLGATE_IOC_LIST):
		err = callgate_ioctl_list(file, &data.listing);
		break;
	case CALLGATE_SIZELESS(CALLGATE_IOC_OPEN):
		err = callgate_ioctl_open(file, &data.handle);
		break;
	case CALLGATE_SIZELESS(CALLGATE_IOC_CALL):
		err = callgate_ioctl_call(filp, &data.transfer);
		break;
	case CALLGATE_SIZELESS(CALLGATE_IOC_SUBMIT):
		err = callgate_ioctl_submit(filp, &data.transfer);
		break;
	case CALLGATE_SIZELESS(CALLGATE_IOC_WAIT):
		err = callgate_ioctl_wait(file, &data.transfer);
		break;
	case CALLGATE_SIZELESS(CALLGATE_IOC_POST):
		err = callgate_ioctl_post(filp, &data.transfer);
		break;
	case CALLGATE_IOC_CLOSE:
		err = callgate_ioctl_close(file, arg);
		break;
	default:
		err = callgate_ioctl_notify(file, arg);
		break;
	}
	if (!err && _IOC_DIR(cmd) & _IOC_READ && copy_to_user(user, &data, known))
		err = -EFAULT;
	return err;
}

/* --- the rest --------------------------------------------------------------------------------- */

/* Whether the answer of a submitted call is there. */
static bool callgate_has_answers(struct callgate_file *file)
{
	struct callgate *gate = file->gate;
	struct callgate_flight *flight;
	unsigned long cookie;
	bool found = false;

	if (xa_empty(&file->flights) || callgate_enter(gate, CALLGATE_SPIN, 0))
		return false;
	xa_lock(&file->flights);
	xa_for_each(&file->flights, cookie, flight) {
		if (test_bit(CALLGATE_FLIGHT_BUSY, &flight->flags))
			continue;
		/* The frame may be somebody else's by now: then it has landed. */
		if (callgate_has_landed(flight) ||
		    callgate_frame_state(callgate_frame(gate, flight->index)) ==
		    CALLGATE_FRAME_STATE_DONE) {
			found = true;
			break;
		}
	}
	xa_unlock(&file->flights);
	callgate_leave(gate);
	return found;
}

static __poll_t callgate_chardev_poll(struct file *filp, poll_table *wait)
{
	struct callgate_file *file = filp->private_data;
	struct callgate *gate = file->gate;
	__poll_t events = 0;

	poll_wait(filp, &gate->poll_wait, wait);
	if (callgate_why_not(gate) == -ENODEV)
		return EPOLLERR | EPOLLHUP;
	if (READ_ONCE(file->generation) != READ_ONCE(gate->generation))
		events |= EPOLLPRI;
	if (callgate_has_answers(file))
		events |= EPOLLIN | EPOLLRDNORM;
	return events;
}

static void callgate_drop_flight(struct callgate_flight *flight)
{
	struct callgate *gate = flight->file->gate;

	if (!callgate_enter_dead(gate)) {
		/* callgate_abandon_frames() comes to it. */
		while (!callgate_has_landed(flight))
			usleep_range(100, 1000);
		callgate_flight_free(flight);
		return;
	}
	if (callgate_flight_unpark(flight))
		callgate_flight_abandon(flight);
	else
		callgate_flight_free(flight);
	/* Perhaps the answer is there already. */
	callgate_reclaim_frames(gate);
	callgate_leave(gate);
}

static int callgate_chardev_release(struct inode *inode, struct file *filp)
{
	struct callgate_file *file = filp->private_data;
	struct callgate_opened *opened;
	struct callgate_flight *flight;
	unsigned long number;

	xa_for_each(&file->flights, number, flight)
		callgate_drop_flight(flight);
	xa_destroy(&file->flights);
	xa_for_each(&file->handles, number, opened) {
		callgate_close(opened->call);
		kfree(opened);
	}
	xa_destroy(&file->handles);
	callgate_file_put(file);
	return 0;
}

const struct file_operations callgate_fops = {
	.owner = THIS_MODULE,
	.open = callgate_chardev_open,
	.release = callgate_chardev_release,
	.unlocked_ioctl = callgate_chardev_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.poll = callgate_chardev_poll,
};

int callgate_chardev_register(unsigned int minors)
{
	return alloc_chrdev_region(&callgate_first, 0, minors, "callgate");
}

void callgate_chardev_unregister(unsigned int minors)
{
	unregister_chrdev_region(callgate_first, minors);
}

dev_t callgate_devt(unsigned int minor)
{
	return MKDEV(MAJOR(callgate_first), MINOR(callgate_first) + minor);
}
