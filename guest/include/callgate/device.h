/* SPDX-License-Identifier: MIT */
/* A device: finding it, its registers, its gate. docs/abi.md, sections 2 and 3.
 *
 *	struct callgate_device dev;
 *
 *	if (callgate_find(&dev, 0x1af4, 0x10f0, 0) != CALLGATE_OK)
 *		...
 *	callgate_write32(&dev, 0, 0x08, 1);
 *
 * The driver does not trust the host: it copies what the host wrote, checks that every range lies
 * in its BAR, and uses the copy.
 */
#ifndef CALLGATE_DEVICE_H
#define CALLGATE_DEVICE_H

#include <callgate/abi.h>
#include <callgate/pci.h>

/* What the driver itself finds wrong. Functions that return an int return one of these, which are
 * negative, or an enum callgate_status.
 */
enum callgate_error {
	CALLGATE_ABSENT = -1,      /* no such device, call, interrupt or frame, or not bound */
	CALLGATE_MISMATCH = -2,    /* built for another ABI than the device has */
	CALLGATE_MALFORMED = -3,   /* what the host wrote contradicts itself */
	CALLGATE_GONE = -4,        /* the device reads all ones */
	CALLGATE_NO_ANSWER = -5,   /* gave up waiting, or a reset came between */
	CALLGATE_NOT_OFFERED = -6, /* the platform, or this call, cannot go that way */
	CALLGATE_TOO_LONG = -7,    /* a result is longer than the place for it; it was cut */
};

/* A status or error as a word. */
static inline const char *callgate_word(int status)
{
	static const char *const errors[] = {
		"ABSENT", "MISMATCH", "MALFORMED", "GONE", "NO_ANSWER", "NOT_OFFERED", "TOO_LONG",
	};
	const char *word = NULL;

	if (status >= 0)
		word = callgate_status_name((uint32_t)status);
	else if (-(unsigned int)status <= sizeof(errors) / sizeof(errors[0]))
		word = errors[-(unsigned int)status - 1];
	return word ? word : "UNKNOWN";
}

/* How a call reaches the host. */
enum callgate_path {
	CALLGATE_PATH_CHEAPEST,        /* whichever of these costs least now */
	CALLGATE_PATH_POLLED,          /* frame; a doorbell only while the host does not watch */
	CALLGATE_PATH_HYPERCALL,       /* the values in registers, no frame */
	CALLGATE_PATH_HYPERCALL_FRAME, /* frame; hypercall as doorbell */
	CALLGATE_PATH_PIO,             /* frame; doorbell in an I/O BAR */
	CALLGATE_PATH_MMIO,            /* frame; doorbell in the gate */
	CALLGATE_PATH_END,
};

static inline const char *callgate_path_word(enum callgate_path path)
{
	static const char *const words[] = {
		"cheapest", "polled", "hypercall", "hypercall-frame", "pio", "mmio",
	};

	return path < CALLGATE_PATH_END ? words[path] : "unknown";
}

#define CALLGATE_PATIENCE    (1u << 18)
#define CALLGATE_ROUND       4096u      /* looks at memory between two questions to the device */
#define CALLGATE_SETTLE      20000u     /* reads of a device until its directory rests */

/* One thread of control uses one of these. Further ones copy it and set `frame` to one of their
 * own, below header.frame_count.
 */
struct callgate_device {
	uint16_t function;                     /* PCI address */
	uint16_t frame;                        /* index of the frame that calls go through */
	enum callgate_path path;               /* how calls go: the cheapest, if not set */
	uint32_t patience;                     /* rounds of waiting before NO_ANSWER */
	uint64_t code;                         /* the device's own, after DEVICE_ERROR */
	uint32_t features;                     /* enum callgate_feature bits in force */
	uint8_t offers;                        /* 1 << enum callgate_path: what the platform has */
	volatile uint8_t *gate;                /* NULL: the device has no calls */
	struct callgate_bar bars[CALLGATE_PCI_BARS];
	struct callgate_capability capability; /* copies, checked */
	struct callgate_header header;
};

/* Registers: `bar` is the BAR's index; `offset` a multiple of the width. */
static inline uint64_t callgate_read(const struct callgate_device *dev, unsigned int bar,
				     uint64_t offset, unsigned int size)
{
	if (bar >= CALLGATE_PCI_BARS)
		return UINT64_MAX;
	return callgate_bar_read(&dev->bars[bar], offset, size);
}

static inline void callgate_write(const struct callgate_device *dev, unsigned int bar,
				  uint64_t offset, unsigned int size, uint64_t value)
{
	if (bar < CALLGATE_PCI_BARS)
		callgate_bar_write(&dev->bars[bar], offset, size, value);
}

#define CALLGATE_REGISTER_ACCESS(bits) \
	static inline uint##bits##_t callgate_read##bits(const struct callgate_device *dev, \
							 unsigned int bar, uint64_t offset) \
	{ \
		return (uint##bits##_t)callgate_read(dev, bar, offset, bits / 8); \
	} \
	static inline void callgate_write##bits(const struct callgate_device *dev, \
						unsigned int bar, uint64_t offset, \
						uint##bits##_t value) \
	{ \
		callgate_write(dev, bar, offset, bits / 8, value); \
	}

CALLGATE_REGISTER_ACCESS(8)
CALLGATE_REGISTER_ACCESS(16)
CALLGATE_REGISTER_ACCESS(32)
CALLGATE_REGISTER_ACCESS(64)

#undef CALLGATE_REGISTER_ACCESS

/* Words of shared memory into the driver's own; `from` and `length` are multiples of 4. */
static inline void callgate_copy_in(void *to, const volatile uint8_t *from, unsigned int length)
{
	unsigned int i;

	for (i = 0; i < length; i += 4) {
		uint32_t word = callgate_arch_read32(from + i);

		__builtin_memcpy((uint8_t *)to + i, &word, 4);
	}
}

/* Registers of the doorbell page. */
static inline uint32_t callgate_doorbell_read(const struct callgate_device *dev,
					      enum callgate_doorbell_register offset)
{
	uint32_t value = callgate_arch_read32(dev->gate + dev->header.doorbell_offset + offset);

	callgate_arch_load_barrier();
	return value;
}

static inline void callgate_doorbell_write(const struct callgate_device *dev,
					   enum callgate_doorbell_register offset, uint32_t value)
{
	callgate_arch_full_barrier();
	callgate_arch_write32(dev->gate + dev->header.doorbell_offset + offset, value);
}

static inline bool callgate_gone(const struct callgate_device *dev)
{
	return callgate_doorbell_read(dev, CALLGATE_DOORBELL_REGISTER_DOORBELL) ==
	       CALLGATE_PCI_ALL_ONES;
}

/* Copy the capability at `at`; false: it is not callgate's, or not one that we can use. */
static inline bool callgate_capability_copy(uint16_t function, uint8_t at,
					    struct callgate_capability *capability)
{
	unsigned int i;

	if (at + sizeof(*capability) > 0x100)
		return false;
	for (i = 0; i < sizeof(*capability); i += 4) {
		uint32_t word = callgate_pci_read(function, at + i, 4);

		__builtin_memcpy((uint8_t *)capability + i, &word, 4);
	}
	return capability->signature == CALLGATE_CAPABILITY_SIGNATURE &&
	       capability->length >= sizeof(*capability) &&
	       capability->version_major == CALLGATE_VERSION_MAJOR;
}

/* Copy callgate's capability; false, and all is zero: the function has none. */
static inline bool callgate_capability_find(uint16_t function,
					    struct callgate_capability *capability)
{
	unsigned int skip;
	uint8_t at;

	for (skip = 0; (at = callgate_pci_capability(function, CALLGATE_PCI_CAPABILITY_VENDOR,
						     skip)); skip++)
		if (callgate_capability_copy(function, at, capability))
			return true;
	*capability = (struct callgate_capability){ 0 };
	return false;
}

static inline bool callgate_header_sound(const struct callgate_header *header,
					 const struct callgate_capability *capability)
{
	const uint64_t entries = (uint64_t)header->entry_count * header->entry_size;
	const uint64_t frames = (uint64_t)header->frame_count * header->frame_size;
	const uint32_t alignment = header->directory_offset | header->entry_size |
				   header->frames_offset | header->frame_size |
				   header->doorbell_offset;

	return header->signature == CALLGATE_HEADER_SIGNATURE &&
	       header->version_major == CALLGATE_VERSION_MAJOR && alignment % 8 == 0 &&
	       header->entry_size >= sizeof(struct callgate_entry) &&
	       header->frame_size >= CALLGATE_MIN_FRAME_SIZE && header->frame_count &&
	       header->doorbell_offset == capability->doorbell_offset &&
	       header->directory_offset + entries <= header->doorbell_offset &&
	       header->frames_offset + frames <= header->doorbell_offset &&
	       (uint64_t)header->doorbell_offset + CALLGATE_DOORBELL_SIZE <=
		       capability->gate_length;
}

/* The ways that capability and features offer, as bits 1 << enum callgate_path. */
static inline uint8_t callgate_ways(const struct callgate_device *dev)
{
	const struct callgate_capability *capability = &dev->capability;
	unsigned int ways = 1u << CALLGATE_PATH_CHEAPEST;

	if (dev->features & CALLGATE_FEATURE_POLLED)
		ways |= 1u << CALLGATE_PATH_POLLED;
	if (capability->transports & CALLGATE_TRANSPORT_HYPERCALL && callgate_env_privileged() &&
	    callgate_arch_has(capability->instruction))
		ways |= 1u << CALLGATE_PATH_HYPERCALL | 1u << CALLGATE_PATH_HYPERCALL_FRAME;
	if (capability->transports & CALLGATE_TRANSPORT_PIO &&
	    capability->pio_bar < CALLGATE_PCI_BARS && dev->bars[capability->pio_bar].io &&
	    capability->pio_offset % 4 == 0 &&
	    callgate_bar_holds(&dev->bars[capability->pio_bar], capability->pio_offset,
			       CALLGATE_PIO_SIZE))
		ways |= 1u << CALLGATE_PATH_PIO;
	if (capability->transports & CALLGATE_TRANSPORT_MMIO)
		ways |= 1u << CALLGATE_PATH_MMIO;
	return (uint8_t)ways;
}

/* Agree on the version, and on those of the features `wanted` that the host has too. */
static inline int callgate_negotiate(struct callgate_device *dev, uint32_t wanted)
{
	uint32_t version = dev->header.version_minor;

	if (version > CALLGATE_VERSION_MINOR)
		version = CALLGATE_VERSION_MINOR;
	version |= CALLGATE_VERSION_MAJOR << 16;
	dev->features = 0;
	dev->offers = 0;
	callgate_doorbell_write(dev, CALLGATE_DOORBELL_REGISTER_VERSION, version);
	if (callgate_doorbell_read(dev, CALLGATE_DOORBELL_REGISTER_VERSION) != version)
		return callgate_gone(dev) ? CALLGATE_GONE : CALLGATE_MISMATCH;
	wanted &= dev->header.features;
	callgate_doorbell_write(dev, CALLGATE_DOORBELL_REGISTER_FEATURES, wanted);
	dev->features = callgate_doorbell_read(dev, CALLGATE_DOORBELL_REGISTER_FEATURES) & wanted;
	dev->offers = callgate_ways(dev);
	return CALLGATE_OK;
}

/* Copy and check the gate's header anew: at the start, and after a reset of the device. */
static inline int callgate_gate_open(struct callgate_device *dev)
{
	const struct callgate_capability *capability = &dev->capability;
	const struct callgate_bar *bar;

	dev->gate = NULL;
	if (capability->bar >= CALLGATE_PCI_BARS)
		return CALLGATE_MALFORMED;
	bar = &dev->bars[capability->bar];
	if (bar->io || capability->gate_offset % 8 ||
	    capability->gate_length < sizeof(dev->header) ||
	    !callgate_bar_holds(bar, capability->gate_offset, capability->gate_length))
		return CALLGATE_MALFORMED;
	dev->gate = bar->memory + capability->gate_offset;
	callgate_copy_in(&dev->header, dev->gate, sizeof(dev->header));
	if (!callgate_header_sound(&dev->header, capability)) {
		dev->gate = NULL;
		return dev->header.signature == CALLGATE_PCI_ALL_ONES ? CALLGATE_GONE :
									CALLGATE_MALFORMED;
	}
	dev->header.name[CALLGATE_NAME_LENGTH] = '\0';
	return callgate_negotiate(dev, CALLGATE_FEATURE_POLLED | CALLGATE_FEATURE_NOTIFY);
}

/* Take a function: measure, map and enable its BARs, let it master the bus, and open its gate if it
 * has one. CALLGATE_OK without a gate too: then dev->gate is NULL.
 */
static inline int callgate_probe(struct callgate_device *dev, uint16_t function)
{
	*dev = (struct callgate_device){ .function = function, .patience = CALLGATE_PATIENCE };
	if (!callgate_pci_present(function))
		return CALLGATE_ABSENT;
	if (callgate_pci_read(function, CALLGATE_PCI_HEADER_TYPE, 1) & 0x7f)
		return CALLGATE_ABSENT; /* a bridge */
	callgate_pci_bars(function, dev->bars);
	callgate_pci_enable(function, CALLGATE_PCI_COMMAND_IO | CALLGATE_PCI_COMMAND_MEMORY |
					      CALLGATE_PCI_COMMAND_MASTER);
	if (!callgate_capability_find(function, &dev->capability))
		return CALLGATE_OK;
	return callgate_gate_open(dev);
}

/* The device number `skip` (0: the first) with these ids. */
static inline int callgate_find(struct callgate_device *dev, uint16_t vendor, uint16_t id,
				unsigned int skip)
{
	struct callgate_pci_walk walk = { 0 };

	while (callgate_pci_next(&walk)) {
		if (callgate_pci_vendor(walk.function) != vendor ||
		    callgate_pci_device(walk.function) != id || skip--)
			continue;
		return callgate_probe(dev, walk.function);
	}
	return CALLGATE_ABSENT;
}

static inline bool callgate_same(const char *a, const char *b, unsigned int limit)
{
	unsigned int i;

	for (i = 0; i < limit; i++) {
		if (a[i] != b[i])
			return false;
		if (!a[i])
			break;
	}
	return true;
}

/* The device number `skip` whose gate has this name. Takes each device with a gate that it meets on
 * the way, so a driver that shares the bus with others looks for ids instead.
 */
static inline int callgate_find_name(struct callgate_device *dev, const char *name,
				     unsigned int skip)
{
	struct callgate_pci_walk walk = { 0 };
	struct callgate_capability capability;

	while (callgate_pci_next(&walk)) {
		if (!callgate_capability_find(walk.function, &capability) ||
		    callgate_probe(dev, walk.function) != CALLGATE_OK)
			continue;
		if (callgate_same(dev->header.name, name, sizeof(dev->header.name)) && !skip--)
			return CALLGATE_OK;
	}
	return CALLGATE_ABSENT;
}

/* The device number `skip` with these ids and this ABI. */
static inline int callgate_find_abi(struct callgate_device *dev, uint16_t vendor, uint16_t id,
				    const uint8_t uuid[16], unsigned int skip)
{
	int status, worst = CALLGATE_ABSENT;
	unsigned int seen, i;

	for (seen = 0; (status = callgate_find(dev, vendor, id, seen)) != CALLGATE_ABSENT; seen++) {
		if (status != CALLGATE_OK) {
			worst = status; /* another one may be sound */
			continue;
		}
		for (i = 0; dev->gate && i < 16 && dev->header.uuid[i] == uuid[i];)
			i++;
		if (i == 16 && !skip--)
			return CALLGATE_OK;
	}
	return worst;
}

#endif /* CALLGATE_DEVICE_H */
