/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Synchronous calls to PCI devices that have a callgate.
 *
 *	gate = devm_callgate_create(pdev, 0);
 *	...
 *	add = devm_callgate_open(&pdev->dev, gate, "add", ADDER_ADD_SIGNATURE);
 *	...
 *	struct callgate_msg msg = {
 *		.args = (u64[]){ 2, 40 }, .nargs = 2,
 *		.results = &sum, .nresults = 1,
 *	};
 *	err = callgate_call(add, &msg);
 */
#ifndef _LINUX_CALLGATE_H
#define _LINUX_CALLGATE_H

#include <linux/bits.h>
#include <linux/types.h>
#include <uapi/linux/callgate.h>

struct callgate;
struct callgate_call;
struct device;
struct notifier_block;
struct pci_dev;

/* Flags of callgate_create(). */
#define CALLGATE_CDEV		BIT(0)	/* let user space call too: /dev/callgateN */
#define CALLGATE_MSIX		BIT(1)	/* enable MSI-X, for the gate's interrupt alone */

/* Flags of struct callgate_msg. */
#define CALLGATE_MSG_LONG	BIT(0)	/* takes long: sleep until the device's interrupt */
#define CALLGATE_MSG_NOWAIT	BIT(1)	/* do not wait for a frame: -EAGAIN when all are in use */

/**
 * enum callgate_event - what a notifier is told, with the gate as its data
 * @CALLGATE_EVENT_CHANGE: calls were bound, revoked or bound anew
 * @CALLGATE_EVENT_GONE: the device has gone, or its gate is being destroyed
 */
enum callgate_event {
	CALLGATE_EVENT_CHANGE,
	CALLGATE_EVENT_GONE,
};

/**
 * struct callgate_msg - a call's arguments and its answer
 * @args: argument slots
 * @nargs: how many
 * @results: where to put result slots, which are valid when the call returned 0
 * @nresults: how many are wanted; not more than the call has
 * @flags: %CALLGATE_MSG_LONG and %CALLGATE_MSG_NOWAIT
 * @timeout_us: how long to wait for the answer, in microseconds; 0: as long as the gate's attribute
 *	timeout_ms says, and %CALLGATE_ATOMIC_US in callgate_call_atomic()
 * @in: what to copy to the payload's start, or NULL
 * @in_length: bytes of it, not more than callgate_payload_size()
 * @out_length: bytes at @out
 * @out: where to copy the start of the answer's payload to, or NULL
 * @status: what the device answered, an enum callgate_status, when the call returned 0 or the errno
 *	that stands for a status; %CALLGATE_NO_STATUS when there was no answer
 * @code: the device's own code, with the status CALLGATE_DEVICE_ERROR
 *
 * An argument of type bytes is callgate_bytes(offset, length) of the payload; for a result of that
 * type there is callgate_result_bytes(). A buffer argument takes two slots: the DMA address, as
 * dma_map_single() and its like gave it, and the length.
 */
struct callgate_msg {
	const u64 *args;
	u64 *results;
	unsigned int nargs;
	unsigned int nresults;
	unsigned int flags;
	unsigned int timeout_us;
	const void *in;
	void *out;
	u32 in_length;
	u32 out_length;
	u32 status;
	u64 code;
};

#define CALLGATE_NO_STATUS	U32_MAX
#define CALLGATE_ATOMIC_US	10000

/**
 * callgate_bytes() - the argument slot of a part of the payload
 * @offset: of the part from the payload's start
 * @length: bytes of it
 *
 * Return: the slot.
 */
static inline u64 callgate_bytes(u32 offset, u32 length)
{
	return (u64)length << 32 | offset;
}

bool callgate_is_present(struct pci_dev *pdev);
struct callgate *callgate_create(struct pci_dev *pdev, unsigned int flags);
void callgate_destroy(struct callgate *gate);
struct callgate *devm_callgate_create(struct pci_dev *pdev, unsigned int flags);

struct callgate *callgate_get(struct pci_dev *pdev);
void callgate_put(struct callgate *gate);

void callgate_freeze(struct callgate *gate);
int callgate_thaw(struct callgate *gate);

u32 callgate_payload_size(const struct callgate *gate);
int callgate_drain(struct callgate *gate, unsigned int timeout_us);

int callgate_register_notifier(struct callgate *gate, struct notifier_block *nb);
int callgate_unregister_notifier(struct callgate *gate, struct notifier_block *nb);

struct callgate_call *callgate_open(struct callgate *gate, const char *name, u64 signature);
void callgate_close(struct callgate_call *call);
struct callgate_call *devm_callgate_open(struct device *dev, struct callgate *gate,
					 const char *name, u64 signature);

int callgate_call(struct callgate_call *call, struct callgate_msg *msg);
int callgate_call_atomic(struct callgate_call *call, struct callgate_msg *msg);
int callgate_post(struct callgate_call *call, struct callgate_msg *msg);
int callgate_notify(struct callgate_call *call);
int callgate_result_bytes(const struct callgate_msg *msg, u64 slot, u32 *offset, u32 *length);

#endif /* _LINUX_CALLGATE_H */
