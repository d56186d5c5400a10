/* SPDX-License-Identifier: MIT */
/* The callgate call ABI (docs/abi.md).
 * Generated from src/callgate/gate/abi.py: python -m callgate.generate.abi --update
 */
#ifndef CALLGATE_ABI_H
#define CALLGATE_ABI_H

#ifdef __KERNEL__
#include <linux/stddef.h>
#include <linux/types.h>
#else
#include <stddef.h>
#include <stdint.h>
#endif

#define CALLGATE_VERSION_MAJOR         1u           /* of the ABI that this header describes */
#define CALLGATE_VERSION_MINOR         0u
#define CALLGATE_VERSION               0x10000u     /* major << 16 | minor */
#define CALLGATE_CAPABILITY_SIGNATURE  0x54414743u  /* "CGAT" */
#define CALLGATE_HEADER_SIGNATURE      0x44484743u  /* "CGHD" */
#define CALLGATE_MAX_VALUES            12u          /* argument and result slots of a frame */
#define CALLGATE_MAX_REGISTER_VALUES   6u           /* of a hypercall in 64-bit code */
#define CALLGATE_NO_BAR                0xffu
#define CALLGATE_NO_INTERRUPT          0xffffu
#define CALLGATE_DOORBELL_SIZE         4096u        /* the doorbell page */
#define CALLGATE_PIO_DOORBELL          0x0u         /* offsets from pio_offset */
#define CALLGATE_PIO_NOTIFY            0x4u
#define CALLGATE_PIO_SIZE              0x10u
#define CALLGATE_PAYLOAD_OFFSET        0x80u        /* in a frame */
#define CALLGATE_PAYLOAD_ALIGN         8u           /* of each result's payload */
#define CALLGATE_MIN_FRAME_SIZE        256u
#define CALLGATE_NAME_LENGTH           39u          /* longest name in bytes; a NUL follows */

/* What a call answers: callgate_frame.status. */
enum callgate_status {
	/* the call ran; its results are valid */
	CALLGATE_OK = 0,
	/* this vector was never assigned to a call of this device */
	CALLGATE_NO_SUCH_VECTOR = 1,
	/* this vector was assigned once and never will be again: look the name up anew */
	CALLGATE_REVOKED = 2,
	/* the number of argument slots is not the one that the directory gives */
	CALLGATE_BAD_COUNT = 3,
	/* an argument lies outside its type */
	CALLGATE_BAD_VALUE = 4,
	/* a buffer is not wholly inside memory that the device may use this way */
	CALLGATE_BAD_BUFFER = 5,
	/* the frame is malformed: unknown flags, or a payload that leaves the frame */
	CALLGATE_BAD_FRAME = 6,
	/* the host's filter forbids this call */
	CALLGATE_DENIED = 7,
	/* a quota is used up or the call is draining: try again later */
	CALLGATE_BUSY = 8,
	/* the device refused; its own code is in the code field */
	CALLGATE_DEVICE_ERROR = 9,
	/* the device model failed; the host has the report */
	CALLGATE_DEVICE_FAULT = 10,
	/* the handler took longer than the host allows */
	CALLGATE_TIMED_OUT = 11,
};

/* Who owns a frame: callgate_frame.state. */
enum callgate_frame_state {
	CALLGATE_FRAME_STATE_FREE = 0,
	CALLGATE_FRAME_STATE_READY = 1,
	CALLGATE_FRAME_STATE_RUNNING = 2,
	CALLGATE_FRAME_STATE_DONE = 3,
};

/* Bits of callgate_frame.flags. */
enum callgate_frame_flag {
	CALLGATE_FRAME_FLAG_ONE_WAY = 0x01,
	CALLGATE_FRAME_FLAG_INTERRUPT = 0x02,
};

/* Bits of callgate_entry.flags. */
enum callgate_call_flag {
	CALLGATE_CALL_FLAG_ONE_WAY = 0x01,
	CALLGATE_CALL_FLAG_PAYLOAD_IN = 0x02,
	CALLGATE_CALL_FLAG_PAYLOAD_OUT = 0x04,
	CALLGATE_CALL_FLAG_BUFFERS = 0x08,
	CALLGATE_CALL_FLAG_REGISTERS = 0x10,
};

/* Bits of callgate_capability.transports. */
enum callgate_transport {
	CALLGATE_TRANSPORT_HYPERCALL = 0x01,
	CALLGATE_TRANSPORT_PIO = 0x02,
	CALLGATE_TRANSPORT_MMIO = 0x04,
	CALLGATE_TRANSPORT_POLLED = 0x08,
};

/* The trap instruction: callgate_capability.instruction. */
enum callgate_instruction {
	CALLGATE_INSTRUCTION_NONE = 0,
	CALLGATE_INSTRUCTION_VMCALL = 1,
	CALLGATE_INSTRUCTION_VMMCALL = 2,
	CALLGATE_INSTRUCTION_INT_1F = 3,
	CALLGATE_INSTRUCTION_HVC = 4,
	CALLGATE_INSTRUCTION_ECALL = 5,
};

/* Bits of callgate_header.features. */
enum callgate_feature {
	CALLGATE_FEATURE_POLLED = 0x01,
	CALLGATE_FEATURE_NOTIFY = 0x02,
	CALLGATE_FEATURE_CHANGE_INTERRUPT = 0x04,
	CALLGATE_FEATURE_DONE_INTERRUPT = 0x08,
};

/* Offsets in the doorbell page. */
enum callgate_doorbell_register {
	CALLGATE_DOORBELL_REGISTER_DOORBELL = 0x00,
	CALLGATE_DOORBELL_REGISTER_NOTIFY = 0x04,
	CALLGATE_DOORBELL_REGISTER_VERSION = 0x08,
	CALLGATE_DOORBELL_REGISTER_FEATURES = 0x0c,
};

#define CALLGATE_AT(layout, member, offset) \
	_Static_assert(offsetof(struct layout, member) == (offset), #layout "." #member)

/* Vendor-specific capability (PCI Local Bus 3.0, 6.7, appendix H): where the gate is. */
struct callgate_capability {
	uint8_t id;                /* 0x00 0x09, vendor specific */
	uint8_t next;              /* 0x01 offset of the next capability, or 0 */
	uint8_t length;            /* 0x02 bytes of this capability, these three included */
	uint8_t bar;               /* 0x03 index of the BAR that holds the gate, 0 to 5 */
	uint32_t signature;        /* 0x04 "CGAT" */
	uint16_t version_minor;    /* 0x08 highest ABI version offered: minor */
	uint16_t version_major;    /* 0x0a and major */
	uint32_t gate_offset;      /* 0x0c where the gate's header begins in that BAR, bytes */
	uint32_t gate_length;      /* 0x10 bytes from the header to the doorbell page's end */
	uint32_t doorbell_offset;  /* 0x14 of the doorbell page, from the gate's header */
	uint8_t transports;        /* 0x18 enum callgate_transport bits that this platform offers */
	uint8_t instruction;       /* 0x19 enum callgate_instruction, for hypercall */
	uint8_t pio_bar;           /* 0x1a index of the I/O BAR of the pio doorbell, or 0xff */
	uint8_t reserved;          /* 0x1b 0 */
	uint32_t pio_offset;       /* 0x1c of the pio doorbell in that BAR, bytes */
	/* 0x20 what a hypercall puts in the platform's function register */
	uint32_t selector;
	uint16_t frame_count;      /* 0x24 frames of the gate */
	uint16_t entry_count;      /* 0x26 directory entries, free ones included */
};
_Static_assert(sizeof(struct callgate_capability) == 0x28, "callgate_capability");
CALLGATE_AT(callgate_capability, id, 0x00);
CALLGATE_AT(callgate_capability, next, 0x01);
CALLGATE_AT(callgate_capability, length, 0x02);
CALLGATE_AT(callgate_capability, bar, 0x03);
CALLGATE_AT(callgate_capability, signature, 0x04);
CALLGATE_AT(callgate_capability, version_minor, 0x08);
CALLGATE_AT(callgate_capability, version_major, 0x0a);
CALLGATE_AT(callgate_capability, gate_offset, 0x0c);
CALLGATE_AT(callgate_capability, gate_length, 0x10);
CALLGATE_AT(callgate_capability, doorbell_offset, 0x14);
CALLGATE_AT(callgate_capability, transports, 0x18);
CALLGATE_AT(callgate_capability, instruction, 0x19);
CALLGATE_AT(callgate_capability, pio_bar, 0x1a);
CALLGATE_AT(callgate_capability, reserved, 0x1b);
CALLGATE_AT(callgate_capability, pio_offset, 0x1c);
CALLGATE_AT(callgate_capability, selector, 0x20);
CALLGATE_AT(callgate_capability, frame_count, 0x24);
CALLGATE_AT(callgate_capability, entry_count, 0x26);

/* The gate's header, at its offset 0. Readable without an exit; the host alone writes it. */
struct callgate_header {
	uint32_t signature;         /* 0x00 "CGHD" */
	uint16_t version_minor;     /* 0x04 highest ABI version offered: minor */
	uint16_t version_major;     /* 0x06 and major */
	uint32_t features;          /* 0x08 enum callgate_feature bits offered */
	/* 0x0c changes with every binding; odd while the host rewrites */
	uint32_t generation;
	uint8_t uuid[16];           /* 0x10 the device's ABI, a UUID in RFC 9562 byte order */
	uint32_t device_version;    /* 0x20 of that ABI */
	uint32_t directory_offset;  /* 0x24 from the header's start */
	uint16_t entry_count;       /* 0x28 entries in the directory */
	uint16_t entry_size;        /* 0x2a bytes of one entry */
	uint32_t frames_offset;     /* 0x2c from the header's start */
	uint16_t frame_count;       /* 0x30 frames */
	uint16_t interrupt;         /* 0x32 index of the gate's interrupt, or 0xffff: none */
	uint32_t frame_size;        /* 0x34 bytes of one frame */
	uint32_t doorbell_offset;   /* 0x38 of the doorbell page, from the header's start */
	uint32_t doorbell_vector;   /* 0x3c a hypercall with it and a frame's index rings it */
	char name[40];              /* 0x40 the device's name, padded with NUL */
	uint32_t text_offset;       /* 0x68 of the signature texts, from the header's start */
	uint32_t text_length;       /* 0x6c bytes of them */
	uint8_t reserved[16];       /* 0x70 0 */
	uint32_t watching;          /* 0x80 1 while the host watches the frames' states, else 0 */
	uint8_t reserved2[60];      /* 0x84 0 */
};
_Static_assert(sizeof(struct callgate_header) == 0xc0, "callgate_header");
CALLGATE_AT(callgate_header, signature, 0x00);
CALLGATE_AT(callgate_header, version_minor, 0x04);
CALLGATE_AT(callgate_header, version_major, 0x06);
CALLGATE_AT(callgate_header, features, 0x08);
CALLGATE_AT(callgate_header, generation, 0x0c);
CALLGATE_AT(callgate_header, uuid, 0x10);
CALLGATE_AT(callgate_header, device_version, 0x20);
CALLGATE_AT(callgate_header, directory_offset, 0x24);
CALLGATE_AT(callgate_header, entry_count, 0x28);
CALLGATE_AT(callgate_header, entry_size, 0x2a);
CALLGATE_AT(callgate_header, frames_offset, 0x2c);
CALLGATE_AT(callgate_header, frame_count, 0x30);
CALLGATE_AT(callgate_header, interrupt, 0x32);
CALLGATE_AT(callgate_header, frame_size, 0x34);
CALLGATE_AT(callgate_header, doorbell_offset, 0x38);
CALLGATE_AT(callgate_header, doorbell_vector, 0x3c);
CALLGATE_AT(callgate_header, name, 0x40);
CALLGATE_AT(callgate_header, text_offset, 0x68);
CALLGATE_AT(callgate_header, text_length, 0x6c);
CALLGATE_AT(callgate_header, reserved, 0x70);
CALLGATE_AT(callgate_header, watching, 0x80);
CALLGATE_AT(callgate_header, reserved2, 0x84);

/* One call in the directory. */
struct callgate_entry {
	uint32_t vector;       /* 0x00 what addresses the call, or 0 while it has none */
	uint8_t arguments;     /* 0x04 argument slots */
	uint8_t results;       /* 0x05 result slots */
	uint16_t flags;        /* 0x06 enum callgate_call_flag bits */
	uint64_t signature;    /* 0x08 hash of the signature text */
	char name[40];         /* 0x10 padded with NUL */
	uint32_t text_offset;  /* 0x38 of the signature text, from the header's start */
	uint32_t text_length;  /* 0x3c bytes of it, no NUL */
};
_Static_assert(sizeof(struct callgate_entry) == 0x40, "callgate_entry");
CALLGATE_AT(callgate_entry, vector, 0x00);
CALLGATE_AT(callgate_entry, arguments, 0x04);
CALLGATE_AT(callgate_entry, results, 0x05);
CALLGATE_AT(callgate_entry, flags, 0x06);
CALLGATE_AT(callgate_entry, signature, 0x08);
CALLGATE_AT(callgate_entry, name, 0x10);
CALLGATE_AT(callgate_entry, text_offset, 0x38);
CALLGATE_AT(callgate_entry, text_length, 0x3c);

/* One call on its way: the driver fills it, the host answers in place. The payload follows. */
struct callgate_frame {
	uint32_t state;       /* 0x00 enum callgate_frame_state */
	uint32_t vector;      /* 0x04 driver: the call */
	uint16_t flags;       /* 0x08 driver: enum callgate_frame_flag bits */
	uint8_t arguments;    /* 0x0a driver: argument slots filled */
	uint8_t results;      /* 0x0b host: result slots filled */
	uint32_t status;      /* 0x0c host: enum callgate_status */
	uint64_t code;        /* 0x10 host: the device's own code, with DEVICE_ERROR */
	uint64_t cookie;      /* 0x18 the driver's own; the host leaves it alone */
	uint64_t values[12];  /* 0x20 arguments in, results out */
};
_Static_assert(sizeof(struct callgate_frame) == 0x80, "callgate_frame");
CALLGATE_AT(callgate_frame, state, 0x00);
CALLGATE_AT(callgate_frame, vector, 0x04);
CALLGATE_AT(callgate_frame, flags, 0x08);
CALLGATE_AT(callgate_frame, arguments, 0x0a);
CALLGATE_AT(callgate_frame, results, 0x0b);
CALLGATE_AT(callgate_frame, status, 0x0c);
CALLGATE_AT(callgate_frame, code, 0x10);
CALLGATE_AT(callgate_frame, cookie, 0x18);
CALLGATE_AT(callgate_frame, values, 0x20);

#undef CALLGATE_AT

/* A status as it is called in docs/abi.md, or NULL. */
static inline const char *callgate_status_name(uint32_t status)
{
	switch (status) {
	case CALLGATE_OK:
		return "OK";
	case CALLGATE_NO_SUCH_VECTOR:
		return "NO_SUCH_VECTOR";
	case CALLGATE_REVOKED:
		return "REVOKED";
	case CALLGATE_BAD_COUNT:
		return "BAD_COUNT";
	case CALLGATE_BAD_VALUE:
		return "BAD_VALUE";
	case CALLGATE_BAD_BUFFER:
		return "BAD_BUFFER";
	case CALLGATE_BAD_FRAME:
		return "BAD_FRAME";
	case CALLGATE_DENIED:
		return "DENIED";
	case CALLGATE_BUSY:
		return "BUSY";
	case CALLGATE_DEVICE_ERROR:
		return "DEVICE_ERROR";
	case CALLGATE_DEVICE_FAULT:
		return "DEVICE_FAULT";
	case CALLGATE_TIMED_OUT:
		return "TIMED_OUT";
	}
	return NULL;
}

#endif /* CALLGATE_ABI_H */
