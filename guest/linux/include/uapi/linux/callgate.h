/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * Calling the device behind /dev/callgateN.
 *
 * Every structure may grow at its end. Its size is part of the ioctl's number, so an old program
 * works with a new kernel, whose further members are then zero, and a new program with an old
 * kernel as long as the members that the kernel does not know are zero (else E2BIG). What is called
 * reserved must be zero. Layouts are the same for 32-bit and 64-bit programs.
 */
#ifndef _UAPI_LINUX_CALLGATE_H
#define _UAPI_LINUX_CALLGATE_H

#include <linux/callgate_abi.h>
#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * struct callgate_info - what the device is
 * @uuid: the ABI of its calls, a UUID in RFC 9562 byte order
 * @name: the device's name, NUL-terminated
 * @device_version: version of the ABI of its calls
 * @abi_version: version of the call ABI in force, major << 16 | minor
 * @features: enum callgate_feature bits in force
 * @transports: enum callgate_transport bits that can be used here
 * @entries: entries of the directory, free ones included
 * @frames: frames of the gate: how many calls can be on their way at once
 * @payload_size: bytes of payload that a frame carries
 * @generation: number of the directory's last change that is known; even
 * @timeout_ms: how long a call is waited for if it does not say
 * @max_pending: how many calls of one open file can be on their way at once
 */
struct callgate_info {
	__u8 uuid[16];
	char name[40];
	__u32 device_version;
	__u32 abi_version;
	__u32 features;
	__u32 transports;
	__u32 entries;
	__u32 frames;
	__u32 payload_size;
	__u32 generation;
	__u32 timeout_ms;
	__u32 max_pending;
};

/**
 * struct callgate_listing - an entry of the directory
 * @index: in: which one, from 0
 * @generation: of the directory when it was read
 * @signature: hash of the signature text
 * @text: in: where to put the signature text, a pointer; 0: nowhere
 * @text_length: in: bytes at @text; out: bytes of the text, of which as many were copied as fitted.
 *	There is no NUL.
 * @flags: enum callgate_call_flag bits
 * @arguments: argument slots
 * @results: result slots
 * @bound: 1 while the call can be called
 * @reserved: 0
 * @name: the call's name, NUL-terminated; empty: the entry is free
 */
struct callgate_listing {
	__u32 index;
	__u32 generation;
	__u64 signature;
	__u64 text;
	__u32 text_length;
	__u16 flags;
	__u8 arguments;
	__u8 results;
	__u8 bound;
	__u8 reserved[7];
	char name[40];
};

/**
 * struct callgate_handle - a call, opened by name
 * @name: in: its name, NUL-terminated
 * @signature: in: hash of the signature that the program was built for
 * @handle: the call's number in this open file
 * @flags: enum callgate_call_flag bits
 * @arguments: argument slots
 * @results: result slots
 */
struct callgate_handle {
	char name[40];
	__u64 signature;
	__u32 handle;
	__u16 flags;
	__u8 arguments;
	__u8 results;
};

/* Bits of callgate_buffer.flags. */
#define CALLGATE_BUFFER_IN	(1 << 0)	/* the device reads it */
#define CALLGATE_BUFFER_OUT	(1 << 1)	/* the device writes it */

/**
 * struct callgate_buffer - a buffer argument of a call
 * @address: of the buffer, a pointer
 * @length: of the buffer in bytes
 * @slot: argument slot that gets the buffer's bus address; the one behind it gets the length
 * @flags: %CALLGATE_BUFFER_IN, %CALLGATE_BUFFER_OUT or both
 *
 * The device works on a copy that the kernel makes, and puts back for %CALLGATE_BUFFER_OUT.
 */
struct callgate_buffer {
	__u64 address;
	__u32 length;
	__u16 slot;
	__u16 flags;
};

/* Bits of callgate_transfer.flags. */
#define CALLGATE_TRANSFER_LONG	(1 << 0)	/* takes long: wait for the device's interrupt */

/**
 * struct callgate_transfer - a call on its way
 * @handle: in: the call
 * @flags: in: %CALLGATE_TRANSFER_LONG or 0
 * @timeout_ms: in: how long to wait for the answer; 0: callgate_info.timeout_ms
 * @cookie: CALLGATE_IOC_SUBMIT gives it, CALLGATE_IOC_WAIT takes it
 * @status: what the device answered, an enum callgate_status
 * @arguments: in: argument slots
 * @results: out: result slots that the device filled; 0 unless @status is CALLGATE_OK
 * @buffer_count: in: buffers
 * @code: the device's own code, with the status CALLGATE_DEVICE_ERROR
 * @buffers: in: an array of struct callgate_buffer, a pointer
 * @in: in: what to copy to the payload's start, a pointer
 * @in_length: in: bytes of it
 * @out_length: in: bytes at @out
 * @out: in: where to copy the start of the answer's payload to, with CALLGATE_OK, a pointer
 * @values: in: arguments; out: results
 *
 * A slot of type bytes is offset | (length << 32), of the payload.
 */
struct callgate_transfer {
	__u32 handle;
	__u32 flags;
	__u32 timeout_ms;
	__u32 cookie;
	__u32 status;
	__u8 arguments;
	__u8 results;
	__u16 buffer_count;
	__u64 code;
	__u64 buffers;
	__u64 in;
	__u32 in_length;
	__u32 out_length;
	__u64 out;
	__u64 values[12];
};

#define CALLGATE_IOC_MAGIC	0xC6

/*
 * All return 0, or -1 with errno. To read the directory takes a file that was opened for reading,
 * everything else one that was opened for writing.
 */

/* What the device is. Afterwards poll() reports changes of the directory since then. */
#define CALLGATE_IOC_INFO		_IOR(CALLGATE_IOC_MAGIC, 0x00, struct callgate_info)
/* An entry of the directory; ENOENT behind the last. */
#define CALLGATE_IOC_LIST		_IOWR(CALLGATE_IOC_MAGIC, 0x01, struct callgate_listing)
/* Look a call up. */
#define CALLGATE_IOC_OPEN		_IOWR(CALLGATE_IOC_MAGIC, 0x02, struct callgate_handle)
/* Forget a handle: the argument is the number itself. */
#define CALLGATE_IOC_CLOSE		_IO(CALLGATE_IOC_MAGIC, 0x03)
/* Make a call and wait for its answer. 0: the device answered, and status says what. */
#define CALLGATE_IOC_CALL		_IOWR(CALLGATE_IOC_MAGIC, 0x04, struct callgate_transfer)
/* Begin a call: the first half of CALLGATE_IOC_CALL. */
#define CALLGATE_IOC_SUBMIT		_IOWR(CALLGATE_IOC_MAGIC, 0x05, struct callgate_transfer)
/* Wait for a call that was begun, and take its answer: @out and @out_length may be given anew. */
#define CALLGATE_IOC_WAIT		_IOWR(CALLGATE_IOC_MAGIC, 0x06, struct callgate_transfer)
/* Make a call whose answer nobody wants: it has begun when this returns. */
#define CALLGATE_IOC_POST		_IOW(CALLGATE_IOC_MAGIC, 0x07, struct callgate_transfer)
/* Ring for a one-way call without arguments: the argument is the handle itself. */
#define CALLGATE_IOC_NOTIFY		_IO(CALLGATE_IOC_MAGIC, 0x08)

#endif /* _UAPI_LINUX_CALLGATE_H */
