/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/* The callgate call ABI (docs/abi.md).
 * Generated from src/callgate/gate/abi.py: python -m callgate.generate.abi --update
 */
#ifndef _UAPI_LINUX_CALLGATE_ABI_H
#define _UAPI_LINUX_CALLGATE_ABI_H

#include <linux/types.h>

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

/* Vendor-specific capability (PCI Local Bus 3.0, 6.7, appendix H): where the gate is. */
struct callgate_capability {
	__u8 id;                 /* 0x00 0x09, vendor specific */
	__u8 next;               /* 0x01 offset of the next capability, or 0 */
	__u8 length;             /* 0x02 bytes of this capability, these three included */
	__u8 bar;                /* 0x03 index of the BAR that holds the gate, 0 to 5 */
	__le32 signature;        /* 0x04 "CGAT" */
	__le16 version_minor;    /* 0x08 highest ABI version offered: minor */
	__le16 version_major;    /* 0x0a and major */
	__le32 gate_offset;      /* 0x0c where the gate's header begins in that BAR, bytes */
	__le32 gate_length;      /* 0x10 bytes from the header to the doorbell page's end */
	__le32 doorbell_offset;  /* 0x14 of the doorbell page, from the gate's header */
	__u8 transports;         /* 0x18 enum callgate_transport bits that this platform offers */
	__u8 instruction;        /* 0x19 enum callgate_instruction, for hypercall */
	__u8 pio_bar;            /* 0x1a index of the I/O BAR of the pio doorbell, or 0xff */
	__u8 reserved;           /* 0x1b 0 */
	__le32 pio_offset;       /* 0x1c of the pio doorbell in that BAR, bytes */
	/* 0x20 what a hypercall puts in the platform's function register */
	__le32 selector;
	__le16 frame_count;      /* 0x24 frames of the gate */
	__le16 entry_count;      /* 0x26 directory entries, free ones included */
};

/* The gate's header, at its offset 0. Readable without an exit; the host alone writes it. */
struct callgate_header {
	__le32 signature;         /* 0x00 "CGHD" */
	__le16 version_minor;     /* 0x04 highest ABI version offered: minor */
	__le16 version_major;     /* 0x06 and major */
	__le32 features;          /* 0x08 enum callgate_feature bits offered */
	__le32 generation;        /* 0x0c changes with every binding; odd while the host rewrites */
	__u8 uuid[16];            /* 0x10 the device's ABI, a UUID in RFC 9562 byte order */
	__le32 device_version;    /* 0x20 of that ABI */
	__le32 directory_offset;  /* 0x24 from the header's start */
	__le16 entry_count;       /* 0x28 entries in the directory */
	__le16 entry_size;        /* 0x2a bytes of one entry */
	__le32 frames_offset;     /* 0x2c from the header's start */
	__le16 frame_count;       /* 0x30 frames */
	__le16 interrupt;         /* 0x32 index of the gate's interrupt, or 0xffff: none */
	__le32 frame_size;        /* 0x34 bytes of one frame */
	__le32 doorbell_offset;   /* 0x38 of the doorbell page, from the header's start */
	__le32 doorbell_vector;   /* 0x3c a hypercall with it and a frame's index rings it */
	char name[40];            /* 0x40 the device's name, padded with NUL */
	__le32 text_offset;       /* 0x68 of the signature texts, from the header's start */
	__le32 text_length;       /* 0x6c bytes of them */
	__u8 reserved[16];        /* 0x70 0 */
	__le32 watching;          /* 0x80 1 while the host watches the frames' states, else 0 */
	__u8 reserved2[60];       /* 0x84 0 */
};

/* One call in the directory. */
struct callgate_entry {
	__le32 vector;       /* 0x00 what addresses the call, or 0 while it has none */
	__u8 arguments;      /* 0x04 argument slots */
	__u8 results;        /* 0x05 result slots */
	__le16 flags;        /* 0x06 enum callgate_call_flag bits */
	__le64 signature;    /* 0x08 hash of the signature text */
	char name[40];       /* 0x10 padded with NUL */
	__le32 text_offset;  /* 0x38 of the signature text, from the header's start */
	__le32 text_length;  /* 0x3c bytes of it, no NUL */
};

/* One call on its way: the driver fills it, the host answers in place. The payload follows. */
struct callgate_frame {
	__le32 state;       /* 0x00 enum callgate_frame_state */
	__le32 vector;      /* 0x04 driver: the call */
	__le16 flags;       /* 0x08 driver: enum callgate_frame_flag bits */
	__u8 arguments;     /* 0x0a driver: argument slots filled */
	__u8 results;       /* 0x0b host: result slots filled */
	__le32 status;      /* 0x0c host: enum callgate_status */
	__le64 code;        /* 0x10 host: the device's own code, with DEVICE_ERROR */
	__le64 cookie;      /* 0x18 the driver's own; the host leaves it alone */
	__le64 values[12];  /* 0x20 arguments in, results out */
};

#endif /* _UAPI_LINUX_CALLGATE_ABI_H */
