/* SPDX-License-Identifier: MIT */
/* Calls: looking one up by name, and making it. docs/abi.md, sections 4 to 8.
 *
 *	struct callgate_call add = CALLGATE_CALL("add", 0x72c5a7a8f2ae6f4d);
 *	uint64_t values[2] = { 2, 40 }, sum;
 *
 *	if (callgate_open(&dev, &add) != CALLGATE_OK)
 *		...
 *	status = callgate_call(&dev, &add, values, 2, &sum, 1);
 *	if (status == CALLGATE_REVOKED)
 *		status = callgate_reopen(&dev, &add);
 *
 * `callgate header` writes the name, the hash and a typed function for each call of a device.
 */
#ifndef CALLGATE_CALL_H
#define CALLGATE_CALL_H

#include <callgate/device.h>

struct callgate_call {
	const char *name;
	uint64_t signature;
	uint32_t vector; /* 0: not bound */
	uint16_t flags;  /* enum callgate_call_flag bits */
	uint8_t arguments;
	uint8_t results;
};

#define CALLGATE_CALL(call_name, hash) { .name = (call_name), .signature = (hash) }

static inline uint32_t callgate_generation(const struct callgate_device *dev)
{
	return callgate_arch_read32(dev->gate + offsetof(struct callgate_header, generation));
}

/* Find the entry of a name while the directory may change. Who changes it is given the time to: a
 * read of the device's register is an exit on every hypervisor, where a processor's pause is none.
 */
static inline int callgate_lookup(const struct callgate_device *dev, const char *name,
				  struct callgate_entry *found)
{
	const volatile uint8_t *directory = dev->gate + dev->header.directory_offset;
	unsigned int tries, i;

	for (tries = 0; tries < CALLGATE_SETTLE; tries++) {
		uint32_t generation = callgate_generation(dev);
		struct callgate_entry entry;
		bool seen = false;

		callgate_arch_load_barrier();
		if (generation & 1) {
			if (callgate_gone(dev))
				return CALLGATE_GONE;
			continue;
		}
		for (i = 0; i < dev->header.entry_count && !seen; i++) {
			callgate_copy_in(&entry, directory + i * dev->header.entry_size,
					 sizeof(entry));
			seen = callgate_same(entry.name, name, sizeof(entry.name));
		}
		callgate_arch_load_barrier();
		if (callgate_generation(dev) != generation)
			continue;
		if (!seen)
			return CALLGATE_ABSENT;
		*found = entry;
		return CALLGATE_OK;
	}
	return CALLGATE_NO_ANSWER;
}

/* Look up call->name and check that its signature is call->signature. Otherwise the call has
 * vector 0 afterwards, and calling it answers ABSENT.
 */
static inline int callgate_open(struct callgate_device *dev, struct callgate_call *call)
{
	struct callgate_entry entry;
	int status;

	call->vector = 0;
	if (!dev->gate)
		return CALLGATE_ABSENT;
	status = callgate_lookup(dev, call->name, &entry);
	if (status != CALLGATE_OK)
		return status;
	if (entry.signature != call->signature)
		return CALLGATE_MISMATCH;
	if (!entry.vector)
		return CALLGATE_ABSENT;
	if (entry.vector >> 31 || entry.arguments > CALLGATE_MAX_VALUES ||
	    entry.results > CALLGATE_MAX_VALUES)
		return CALLGATE_MALFORMED;
	call->vector = entry.vector;
	call->flags = entry.flags;
	call->arguments = entry.arguments;
	call->results = entry.results;
	return CALLGATE_OK;
}

/* After a reset of the device its doorbell has another vector, and what was negotiated is
 * forgotten: open the gate again if so.
 */
static inline int callgate_refresh(struct callgate_device *dev)
{
	uint32_t vector;

	if (!dev->gate)
		return CALLGATE_ABSENT;
	vector = callgate_arch_read32(dev->gate +
				      offsetof(struct callgate_header, doorbell_vector));
	if (vector == dev->header.doorbell_vector &&
	    callgate_doorbell_read(dev, CALLGATE_DOORBELL_REGISTER_FEATURES) == dev->features)
		return CALLGATE_OK;
	return callgate_gate_open(dev);
}

/* Look up a call again that answered REVOKED. */
static inline int callgate_reopen(struct callgate_device *dev, struct callgate_call *call)
{
	int status = callgate_refresh(dev);

	call->vector = 0;
	return status == CALLGATE_OK ? callgate_open(dev, call) : status;
}

/* --- frames: what they hold is written here and read by the host, and the other way round --- */

#define CALLGATE_FRAME_AT(member) offsetof(struct callgate_frame, member)

static inline volatile uint8_t *callgate_frame(const struct callgate_device *dev)
{
	return dev->gate + dev->header.frames_offset +
	       (uint64_t)dev->frame * dev->header.frame_size;
}

/* Wait until the frame's state is DONE or FREE, and give it. */
static inline int callgate_frame_wait(struct callgate_device *dev, uint32_t *state)
{
	const volatile uint8_t *at = callgate_frame(dev) + CALLGATE_FRAME_AT(state);
	unsigned int round, look;

	for (round = 0; round < dev->patience; round++) {
		for (look = 0; look < CALLGATE_ROUND; look++) {
			*state = callgate_arch_read32(at);
			if (*state == CALLGATE_FRAME_STATE_DONE ||
			    *state == CALLGATE_FRAME_STATE_FREE) {
				callgate_arch_load_barrier();
				return CALLGATE_OK;
			}
			callgate_arch_pause();
		}
		/* The read waits for a doorbell that was posted. */
		if (callgate_gone(dev))
			return CALLGATE_GONE;
	}
	return CALLGATE_NO_ANSWER;
}

/* Let the host see a frame that is filled but for its vector: READY comes last, or with it. */
static inline void callgate_frame_publish(volatile uint8_t *frame, uint32_t vector)
{
	const uint32_t ready = CALLGATE_FRAME_STATE_READY;

	if (UINTPTR_MAX > UINT32_MAX) { /* 64 bits are one access */
		callgate_arch_store_barrier();
		callgate_arch_write64(frame + CALLGATE_FRAME_AT(state),
				      (uint64_t)vector << 32 | ready);
		return;
	}
	callgate_arch_write32(frame + CALLGATE_FRAME_AT(vector), vector);
	callgate_arch_store_barrier();
	callgate_arch_write32(frame + CALLGATE_FRAME_AT(state), ready);
}

/* Wait until the frame is ours to fill. Before callgate_put(); a call does it by itself. */
static inline int callgate_frame_take(struct callgate_device *dev)
{
	uint32_t state;

	if (!dev->gate || dev->frame >= dev->header.frame_count)
		return CALLGATE_ABSENT;
	return callgate_frame_wait(dev, &state);
}

/* Append bytes to the payload, of which `used` are taken, and return the argument's slot. Bytes for
 * which there is no room are not written: the host answers BAD_FRAME.
 */
static inline uint64_t callgate_put(struct callgate_device *dev, const void *data, uint32_t length,
				    uint32_t *used)
{
	const uint32_t room = dev->header.frame_size - CALLGATE_PAYLOAD_OFFSET;
	const uint8_t *from = data;
	volatile uint8_t *to;
	uint32_t at = *used, i;

	if (at > room || length > room - at)
		return (uint64_t)length << 32 | room;
	to = callgate_frame(dev) + CALLGATE_PAYLOAD_OFFSET + at;
	for (i = 0; i + 8 <= length; i += 8) {
		uint64_t word;

		__builtin_memcpy(&word, from + i, 8);
		callgate_arch_write64(to + i, word);
	}
	for (; i < length; i++)
		callgate_arch_write8(to + i, from[i]);
	*used = (at + length + CALLGATE_PAYLOAD_ALIGN - 1) & ~(CALLGATE_PAYLOAD_ALIGN - 1);
	return (uint64_t)length << 32 | at;
}

/* Copy the payload that a result's slot names. `length` is the room at `data`, and afterwards the
 * length of the result; TOO_LONG when that is more.
 */
static inline int callgate_get(struct callgate_device *dev, uint64_t slot, void *data,
			       uint32_t *length)
{
	const uint32_t offset = (uint32_t)slot, size = (uint32_t)(slot >> 32);
	const uint32_t copied = size < *length ? size : *length;
	const volatile uint8_t *from;
	uint8_t *to = data;
	uint32_t i;

	if (offset % CALLGATE_PAYLOAD_ALIGN ||
	    (uint64_t)offset + size > dev->header.frame_size - CALLGATE_PAYLOAD_OFFSET)
		return CALLGATE_MALFORMED;
	from = callgate_frame(dev) + CALLGATE_PAYLOAD_OFFSET + offset;
	for (i = 0; i + 8 <= copied; i += 8) {
		uint64_t word = callgate_arch_read64(from + i);

		__builtin_memcpy(to + i, &word, 8);
	}
	for (; i < copied; i++)
		to[i] = callgate_arch_read8(from + i);
	*length = size;
	return size > copied ? CALLGATE_TOO_LONG : CALLGATE_OK;
}

/* --- the ways --------------------------------------------------------------------------------- */

static inline bool callgate_fits_registers(const struct callgate_call *call)
{
	return call->flags & CALLGATE_CALL_FLAG_REGISTERS &&
	       call->arguments <= CALLGATE_ARCH_VALUES && call->results <= CALLGATE_ARCH_VALUES;
}

/* Whether the platform offers this way and the call fits it. */
static inline bool callgate_offers(const struct callgate_device *dev,
				   const struct callgate_call *call, enum callgate_path path)
{
	return path < CALLGATE_PATH_END && dev->offers >> path & 1 &&
	       (path != CALLGATE_PATH_HYPERCALL || callgate_fits_registers(call));
}

static inline bool callgate_watching(const struct callgate_device *dev)
{
	return dev->features & CALLGATE_FEATURE_POLLED &&
	       callgate_arch_read32(dev->gate + offsetof(struct callgate_header, watching)) == 1;
}

/* The doorbell write that costs less: the processor decodes I/O instructions for the hypervisor.
 * Where ports are memory, nothing is won.
 */
static inline enum callgate_path callgate_cheapest_doorbell(const struct callgate_device *dev,
							    const struct callgate_call *call)
{
	if (CALLGATE_ARCH_PORTS && callgate_offers(dev, call, CALLGATE_PATH_PIO))
		return CALLGATE_PATH_PIO;
	return CALLGATE_PATH_MMIO;
}

/* The way that a call takes now: the one that was asked for, or the cheapest. */
static inline enum callgate_path callgate_way(const struct callgate_device *dev,
					      const struct callgate_call *call)
{
	if (dev->path != CALLGATE_PATH_CHEAPEST)
		return dev->path;
	if (callgate_watching(dev))
		return CALLGATE_PATH_POLLED;
	if (callgate_offers(dev, call, CALLGATE_PATH_HYPERCALL))
		return CALLGATE_PATH_HYPERCALL;
	return callgate_cheapest_doorbell(dev, call);
}

static inline int callgate_call_registers(struct callgate_device *dev,
					  const struct callgate_call *call,
					  const uint64_t *arguments, unsigned int argument_count,
					  uint64_t *results, unsigned int result_count)
{
	uint64_t slots[CALLGATE_ARCH_VALUES] = { 0 };
	uint32_t status;
	unsigned int i;

	if (!callgate_offers(dev, call, CALLGATE_PATH_HYPERCALL))
		return CALLGATE_NOT_OFFERED;
	if (argument_count != call->arguments)
		return CALLGATE_BAD_COUNT; /* registers have no count that the host could judge */
	for (i = 0; i < argument_count; i++)
		slots[i] = arguments[i];
	/* Buffers that the call names must be in place. */
	callgate_arch_full_barrier();
	if (!callgate_arch_hypercall(dev->capability.instruction, dev->capability.selector,
				     call->vector, slots, &status))
		return CALLGATE_NOT_OFFERED;
	callgate_arch_full_barrier();
	if (status == CALLGATE_DEVICE_ERROR)
		dev->code = slots[0];
	for (i = 0; status == CALLGATE_OK && i < result_count; i++)
		results[i] = slots[i];
	return status >> 31 ? CALLGATE_MALFORMED : (int)status;
}

/* Ring for the frame. */
static inline int callgate_ring(struct callgate_device *dev, const struct callgate_call *call,
				enum callgate_path path)
{
	const struct callgate_capability *capability = &dev->capability;
	uint64_t slots[CALLGATE_ARCH_VALUES] = { dev->frame };
	uint32_t status;

	callgate_arch_full_barrier();
	if (path == CALLGATE_PATH_POLLED) {
		if (callgate_watching(dev))
			return CALLGATE_OK;
		path = callgate_cheapest_doorbell(dev, call);
	}
	if (path == CALLGATE_PATH_HYPERCALL_FRAME) {
		if (!callgate_arch_hypercall(capability->instruction, capability->selector,
					     dev->header.doorbell_vector, slots, &status))
			return CALLGATE_NOT_OFFERED;
		return status >> 31 ? CALLGATE_MALFORMED : (int)status;
	}
	if (path == CALLGATE_PATH_PIO)
		callgate_bar_write(&dev->bars[capability->pio_bar],
				   (uint64_t)capability->pio_offset + CALLGATE_PIO_DOORBELL, 4,
				   dev->frame);
	else /* behind the barrier above, so without another one */
		callgate_arch_write32(dev->gate + dev->header.doorbell_offset +
					      CALLGATE_DOORBELL_REGISTER_DOORBELL,
				      dev->frame);
	return CALLGATE_OK;
}

/* Fill the frame and ring. */
static inline int callgate_send(struct callgate_device *dev, const struct callgate_call *call,
				enum callgate_path path, const uint64_t *arguments,
				unsigned int argument_count, uint16_t flags)
{
	volatile uint8_t *frame;
	unsigned int i;
	int status;

	if (!dev->gate || !call->vector)
		return CALLGATE_ABSENT;
	if (argument_count > CALLGATE_MAX_VALUES)
		return CALLGATE_BAD_COUNT;
	if (path == CALLGATE_PATH_HYPERCALL || !callgate_offers(dev, call, path))
		return CALLGATE_NOT_OFFERED;
	status = callgate_frame_take(dev);
	if (status != CALLGATE_OK)
		return status;
	frame = callgate_frame(dev);
	/* flags, arguments, and no results yet */
	callgate_arch_write32(frame + CALLGATE_FRAME_AT(flags),
			      flags | (uint32_t)argument_count << 16);
	callgate_arch_write64(frame + CALLGATE_FRAME_AT(code), 0);
	for (i = 0; i < argument_count; i++)
		callgate_arch_write64(frame + CALLGATE_FRAME_AT(values) + 8 * i, arguments[i]);
	callgate_frame_publish(frame, call->vector);
	status = callgate_ring(dev, call, path);
	if (status == CALLGATE_OK)
		return CALLGATE_OK;
	/* The host was not told. If it watches, it sees the frame by itself, and ends the call. */
	if (callgate_watching(dev))
		return CALLGATE_OK;
	callgate_arch_write32(frame + CALLGATE_FRAME_AT(state), CALLGATE_FRAME_STATE_FREE);
	return status;
}

/* First half of a call through the frame. `flags`: enum callgate_frame_flag bits. */
static inline int callgate_start(struct callgate_device *dev, const struct callgate_call *call,
				 const uint64_t *arguments, unsigned int argument_count,
				 uint16_t flags)
{
	enum callgate_path path = callgate_way(dev, call);

	if (path == CALLGATE_PATH_HYPERCALL && dev->path == CALLGATE_PATH_CHEAPEST)
		path = callgate_cheapest_doorbell(dev, call);
	return callgate_send(dev, call, path, arguments, argument_count, flags);
}

/* Second half: wait for the answer and take it. */
static inline int callgate_finish(struct callgate_device *dev, uint64_t *results,
				  unsigned int result_count)
{
	const volatile uint8_t *frame;
	uint32_t state, status;
	unsigned int i;
	int waited;

	if (!dev->gate)
		return CALLGATE_ABSENT;
	waited = callgate_frame_wait(dev, &state);
	if (waited != CALLGATE_OK)
		return waited;
	if (state == CALLGATE_FRAME_STATE_FREE)
		return CALLGATE_NO_ANSWER; /* the device was reset */
	frame = callgate_frame(dev);
	status = callgate_arch_read32(frame + CALLGATE_FRAME_AT(status));
	if (status == CALLGATE_DEVICE_ERROR)
		dev->code = callgate_arch_read64(frame + CALLGATE_FRAME_AT(code));
	if (status != CALLGATE_OK)
		return status >> 31 ? CALLGATE_MALFORMED : (int)status;
	if (callgate_arch_read8(frame + CALLGATE_FRAME_AT(results)) < result_count)
		return CALLGATE_MALFORMED;
	for (i = 0; i < result_count; i++)
		results[i] = callgate_arch_read64(frame + CALLGATE_FRAME_AT(values) + 8 * i);
	return CALLGATE_OK;
}

/* Make a call and wait for its answer: an enum callgate_status, or an enum callgate_error.
 *
 * The way is dev->path, or the cheapest. `results` holds values only with CALLGATE_OK. The device's
 * own code is in dev->code with CALLGATE_DEVICE_ERROR.
 */
static inline int callgate_call(struct callgate_device *dev, const struct callgate_call *call,
				const uint64_t *arguments, unsigned int argument_count,
				uint64_t *results, unsigned int result_count)
{
	enum callgate_path path;
	int status;

	if (!dev->gate || !call->vector)
		return CALLGATE_ABSENT;
	if (result_count > call->results)
		return CALLGATE_MISMATCH;
	path = callgate_way(dev, call);
	if (path == CALLGATE_PATH_HYPERCALL)
		return callgate_call_registers(dev, call, arguments, argument_count, results,
					       result_count);
	status = callgate_send(dev, call, path, arguments, argument_count, 0);
	if (status != CALLGATE_OK)
		return status;
	return callgate_finish(dev, results, result_count);
}

/* Make a call whose answer nobody wants: returns when the host has been told. */
static inline int callgate_post(struct callgate_device *dev, const struct callgate_call *call,
				const uint64_t *arguments, unsigned int argument_count)
{
	enum callgate_path path;

	if (!dev->gate || !call->vector)
		return CALLGATE_ABSENT;
	path = callgate_way(dev, call);
	if (path == CALLGATE_PATH_HYPERCALL)
		return callgate_call_registers(dev, call, arguments, argument_count, NULL, 0);
	return callgate_send(dev, call, path, arguments, argument_count,
			     CALLGATE_FRAME_FLAG_ONE_WAY);
}

/* Ring for a one-way call without arguments by its vector alone (section 6.5): no frame, and no
 * answer.
 */
static inline int callgate_notify(struct callgate_device *dev, const struct callgate_call *call)
{
	const struct callgate_capability *capability = &dev->capability;

	if (!dev->gate || !call->vector)
		return CALLGATE_ABSENT;
	if (!(dev->features & CALLGATE_FEATURE_NOTIFY) || call->arguments ||
	    !(call->flags & CALLGATE_CALL_FLAG_ONE_WAY))
		return CALLGATE_NOT_OFFERED;
	if ((CALLGATE_ARCH_PORTS || dev->path == CALLGATE_PATH_PIO) &&
	    dev->path != CALLGATE_PATH_MMIO && callgate_offers(dev, call, CALLGATE_PATH_PIO))
		callgate_bar_write(&dev->bars[capability->pio_bar],
				   (uint64_t)capability->pio_offset + CALLGATE_PIO_NOTIFY, 4,
				   call->vector);
	else
		callgate_doorbell_write(dev, CALLGATE_DOORBELL_REGISTER_NOTIFY, call->vector);
	return CALLGATE_OK;
}

#endif /* CALLGATE_CALL_H */
