// SPDX-License-Identifier: GPL-2.0
/*
 * Reading what the device wrote: the capability in configuration space, the gate's header, and the
 * directory, which may change at any time. docs/abi.md, sections 2 to 4.
 */
#include <linux/delay.h>
#include <linux/pci.h>
#include <linux/sched/signal.h>
#include <linux/string.h>

#include "internal.h"

/* More than a configuration space has room for: a list that is a circle ends too. */
#define CALLGATE_CAPABILITIES	48
/* Tries to read a directory that changes, here or where one must not sleep. */
#define CALLGATE_TRIES		1000
#define CALLGATE_SPIN_TRIES	10

static_assert(sizeof(struct callgate_capability) == 0x28);
static_assert(sizeof(struct callgate_header) == 0xc0);
static_assert(sizeof(struct callgate_entry) == 0x40);
static_assert(sizeof(struct callgate_frame) == CALLGATE_PAYLOAD_OFFSET);

/*
 * Copy what the device may change meanwhile. Each word is read once, so that what is checked is
 * what is used. @from and @length are multiples of 4.
 */
void callgate_copy_in(void *to, const void *from, size_t length)
{
	const u32 *words = from;
	u32 *copy = to;
	size_t i;

	for (i = 0; i < length / sizeof(*words); i++)
		copy[i] = READ_ONCE(words[i]);
}

static int callgate_copy_capability(struct pci_dev *pdev, u8 at,
				    struct callgate_capability *capability)
{
	__le32 *words = (__le32 *)capability;
	unsigned int i;
	u32 word;

	if (at + sizeof(*capability) > PCI_CFG_SPACE_SIZE)
		return -EIO;
	for (i = 0; i < sizeof(*capability) / sizeof(word); i++) {
		if (pci_read_config_dword(pdev, at + i * sizeof(word), &word))
			return -EIO;
		words[i] = cpu_to_le32(word);
	}
	return 0;
}

/* Whether @length bytes at @offset lie in a BAR of this type. */
static bool callgate_bar_holds(struct pci_dev *pdev, unsigned int bar, unsigned long type,
			       u64 offset, u64 length)
{
	unsigned long flags;

	if (bar >= PCI_STD_NUM_BARS)
		return false;
	flags = pci_resource_flags(pdev, bar);
	return flags & type && !(flags & IORESOURCE_UNSET) &&
	       offset + length <= pci_resource_len(pdev, bar);
}

static int callgate_check_capability(struct pci_dev *pdev,
				     const struct callgate_capability *capability,
				     struct callgate_place *place)
{
	*place = (struct callgate_place){
		.bar = capability->bar,
		.pio_bar = capability->pio_bar,
		.transports = capability->transports,
		.instruction = capability->instruction,
		.selector = le32_to_cpu(capability->selector),
		.offset = le32_to_cpu(capability->gate_offset),
		.length = le32_to_cpu(capability->gate_length),
		.doorbell_offset = le32_to_cpu(capability->doorbell_offset),
		.pio_offset = le32_to_cpu(capability->pio_offset),
	};
	if (capability->length < sizeof(*capability))
		return -EIO;
	if (le16_to_cpu(capability->version_major) != CALLGATE_VERSION_MAJOR)
		return -EPROTONOSUPPORT;
	if (place->offset % CALLGATE_DOORBELL_SIZE ||
	    place->doorbell_offset % CALLGATE_DOORBELL_SIZE || !place->doorbell_offset ||
	    (u64)place->doorbell_offset + CALLGATE_DOORBELL_SIZE > place->length ||
	    !callgate_bar_holds(pdev, place->bar, IORESOURCE_MEM, place->offset, place->length))
		return -EIO;
	/* The one transport that can be done without. */
	if (!(place->transports & CALLGATE_TRANSPORT_PIO) || place->pio_offset % 4 ||
	    !callgate_bar_holds(pdev, place->pio_bar, IORESOURCE_IO, place->pio_offset,
				CALLGATE_PIO_SIZE)) {
		place->transports &= ~CALLGATE_TRANSPORT_PIO;
		place->pio_bar = CALLGATE_NO_BAR;
	}
	return 0;
}

/* Where in configuration space the gate's capability is, and a copy of it; 0: there is none. */
static u8 callgate_find_capability(struct pci_dev *pdev, struct callgate_capability *capability)
{
	unsigned int seen = 0;
	u8 at;

	for (at = pci_find_capability(pdev, PCI_CAP_ID_VNDR); at && seen < CALLGATE_CAPABILITIES;
	     at = pci_find_next_capability(pdev, at, PCI_CAP_ID_VNDR), seen++) {
		/* Somebody else's may be too short to be ours. */
		if (!callgate_copy_capability(pdev, at, capability) &&
		    le32_to_cpu(capability->signature) == CALLGATE_CAPABILITY_SIGNATURE)
			return at;
	}
	return 0;
}

/**
 * callgate_is_present() - whether a PCI function says that it has a gate
 * @pdev: the function, which need not be enabled
 *
 * Context: process context.
 * Return: whether it has the capability; callgate_create() tells whether that can be used.
 */
bool callgate_is_present(struct pci_dev *pdev)
{
	struct callgate_capability capability;

	return callgate_find_capability(pdev, &capability);
}
EXPORT_SYMBOL_GPL(callgate_is_present);

/* -ENODEV: the function has no gate. */
int callgate_find_place(struct pci_dev *pdev, struct callgate_place *place)
{
	struct callgate_capability capability;
	const u8 at = callgate_find_capability(pdev, &capability);
	int err;

	if (!at)
		return -ENODEV;
	err = callgate_check_capability(pdev, &capability, place);
	if (err)
		pci_err(pdev, "the gate's capability at %#x cannot be used: %pe\n", at,
			ERR_PTR(err));
	return err;
}

static int callgate_check_header(struct callgate *gate, const struct callgate_header *header,
				 struct callgate_layout *layout)
{
	const u32 end = gate->place.doorbell_offset;

	*layout = (struct callgate_layout){
		.directory_offset = le32_to_cpu(header->directory_offset),
		.frames_offset = le32_to_cpu(header->frames_offset),
		.frame_size = le32_to_cpu(header->frame_size),
		.frame_count = le16_to_cpu(header->frame_count),
		.entry_count = le16_to_cpu(header->entry_count),
		.entry_size = le16_to_cpu(header->entry_size),
		.interrupt = le16_to_cpu(header->interrupt),
	};
	if (le32_to_cpu(header->signature) == U32_MAX)
		return -ENODEV;
	if (le32_to_cpu(header->signature) != CALLGATE_HEADER_SIGNATURE)
		return -EIO;
	if (le16_to_cpu(header->version_major) != CALLGATE_VERSION_MAJOR)
		return -EPROTONOSUPPORT;
	if ((layout->directory_offset | layout->frames_offset | layout->frame_size |
	     layout->entry_size) % 8)
		return -EIO;
	if (layout->entry_size < sizeof(struct callgate_entry) ||
	    layout->frame_size < CALLGATE_MIN_FRAME_SIZE || !layout->frame_count)
		return -EIO;
	if (le32_to_cpu(header->doorbell_offset) != end ||
	    layout->directory_offset + (u64)layout->entry_count * layout->entry_size > end ||
	    layout->frames_offset + (u64)layout->frame_count * layout->frame_size > end)
		return -EIO;
	return 0;
}

/*
 * The directory may change between two looks at its generation. It was at rest, and what was read
 * is used, when both are the same even number.
 */
static bool callgate_begin_look(struct callgate *gate, u32 *generation)
{
	*generation = callgate_generation(gate);
	/* What follows is read after the generation. */
	virt_rmb();
	return !(*generation & 1);
}

static bool callgate_end_look(struct callgate *gate, u32 generation)
{
	/* What was read before was read before the generation. */
	virt_rmb();
	return callgate_generation(gate) == generation;
}

/* Copy the header, check the copy, and take from it what stays. */
int callgate_read_header(struct callgate *gate, struct callgate_header *header,
			 struct callgate_layout *layout)
{
	unsigned int tries;
	u32 generation;

	for (tries = 0; tries < CALLGATE_TRIES; tries++) {
		const bool rests = callgate_begin_look(gate, &generation);

		callgate_copy_in(header, gate->memory, sizeof(*header));
		/* What is no header, or gone, has no generation either. */
		if (le32_to_cpu(header->signature) != CALLGATE_HEADER_SIGNATURE ||
		    (rests && callgate_end_look(gate, generation)))
			return callgate_check_header(gate, header, layout);
		usleep_range(10, 100);
	}
	return -ETIMEDOUT;
}

static void callgate_copy_entry(struct callgate *gate, u32 index, struct callgate_entry *entry)
{
	const void *at = gate->memory + gate->layout.directory_offset +
			 (size_t)index * gate->layout.entry_size;

	callgate_copy_in(entry, at, sizeof(*entry));
}

static int callgate_check_entry(struct callgate *gate, const struct callgate_entry *entry,
				struct callgate_record *record)
{
	const u32 end = gate->place.doorbell_offset;

	record->signature = le64_to_cpu(entry->signature);
	record->vector = le32_to_cpu(entry->vector);
	record->text_offset = le32_to_cpu(entry->text_offset);
	record->text_length = le32_to_cpu(entry->text_length);
	record->flags = le16_to_cpu(entry->flags);
	record->arguments = entry->arguments;
	record->results = entry->results;
	memcpy(record->name, entry->name, sizeof(record->name));
	if (record->name[CALLGATE_NAME_LENGTH] || record->vector >> 31 ||
	    record->arguments > CALLGATE_MAX_VALUES || record->results > CALLGATE_MAX_VALUES ||
	    (u64)record->text_offset + record->text_length > end) {
		callgate_complain(gate, CALLGATE_LIE_ENTRY,
				  "entry %u of the directory is malformed", record->index);
		return -EIO;
	}
	return 0;
}

/* Before another try, number @tries. */
static int callgate_settle(struct callgate *gate, unsigned int tries,
			   enum callgate_patience patience)
{
	const unsigned int most = patience == CALLGATE_SPIN ? CALLGATE_SPIN_TRIES : CALLGATE_TRIES;
	int why = callgate_why_not(gate);

	if (why)
		return why;
	if (tries == most) {
		if (callgate_gone(gate))
			return -ENODEV;
		callgate_complain(gate, CALLGATE_LIE_DIRECTORY, "the directory never rests");
		return -ETIMEDOUT;
	}
	if (patience == CALLGATE_SPIN) {
		udelay(1);
		return 0;
	}
	usleep_range(10, 100);
	return fatal_signal_pending(current) ? -EINTR : 0;
}

/* The entry at @index; -ENOENT behind the last. */
int callgate_read_record(struct callgate *gate, u32 index, enum callgate_patience patience,
			 struct callgate_record *record)
{
	struct callgate_entry entry;
	unsigned int tries = 0;
	u32 generation;
	int err;

	if (index >= gate->layout.entry_count)
		return -ENOENT;
	for (;;) {
		if (callgate_begin_look(gate, &generation)) {
			callgate_copy_entry(gate, index, &entry);
			if (callgate_end_look(gate, generation))
				break;
		}
		err = callgate_settle(gate, ++tries, patience);
		if (err)
			return err;
	}
	record->index = index;
	record->generation = generation;
	return callgate_check_entry(gate, &entry, record);
}

/*
 * The entry of this name: at @hint, where it was before, or elsewhere. -ENOENT: there is none.
 * Who must not sleep is told -EAGAIN when it is not at @hint.
 */
int callgate_find_record(struct callgate *gate, const char *name, u32 hint,
			 enum callgate_patience patience, struct callgate_record *record)
{
	const size_t length = strlen(name) + 1;
	struct callgate_entry entry;
	unsigned int tries = 0;
	u32 generation, index;
	bool found;
	int err;

	if (length > sizeof(entry.name))
		return -ENOENT;
	if (hint < gate->layout.entry_count) {
		err = callgate_read_record(gate, hint, patience, record);
		/* Malformed: perhaps another one's. */
		if (err && err != -EIO)
			return err;
		if (!err && !strcmp(record->name, name))
			return 0;
	}
	if (patience == CALLGATE_SPIN)
		return -EAGAIN;
	for (;;) {
		found = false;
		if (callgate_begin_look(gate, &generation)) {
			for (index = 0; index < gate->layout.entry_count && !found; index++) {
				callgate_copy_entry(gate, index, &entry);
				found = !memcmp(entry.name, name, length);
				cond_resched();
			}
			if (callgate_end_look(gate, generation))
				break;
		}
		err = callgate_settle(gate, ++tries, patience);
		if (err)
			return err;
	}
	if (!found)
		return -ENOENT;
	record->index = index - 1;
	record->generation = generation;
	return callgate_check_entry(gate, &entry, record);
}

/* Copy a call's signature text; returns its length, of which at most @size bytes were copied. */
size_t callgate_read_text(struct callgate *gate, const struct callgate_record *record, char *text,
			  size_t size)
{
	memcpy(text, gate->memory + record->text_offset, min_t(size_t, size, record->text_length));
	return record->text_length;
}
