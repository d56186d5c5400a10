// SPDX-License-Identifier: GPL-2.0
/*
 * /sys/kernel/debug/callgate/callgateN: what happened, and what the device says right now.
 */
#include <linux/bitmap.h>
#include <linux/debugfs.h>
#include <linux/seq_file.h>

#include "internal.h"

static struct dentry *callgate_debugfs;

static const char * const callgate_count_names[CALLGATE_COUNTS] = {
	[CALLGATE_COUNT_POLLED] = "polled",
	[CALLGATE_COUNT_HYPERCALL] = "hypercall",
	[CALLGATE_COUNT_PIO] = "pio",
	[CALLGATE_COUNT_MMIO] = "mmio",
	[CALLGATE_COUNT_NOTIFY] = "notify",
	[CALLGATE_COUNT_SLEPT] = "slept",
	[CALLGATE_COUNT_FRAME_WAITS] = "frame_waits",
	[CALLGATE_COUNT_LOOKUPS] = "lookups",
	[CALLGATE_COUNT_INTERRUPTS] = "interrupts",
	[CALLGATE_COUNT_CHANGES] = "changes",
	[CALLGATE_COUNT_PARKED] = "parked",
	[CALLGATE_COUNT_TIMEOUTS] = "timeouts",
	[CALLGATE_COUNT_LIES] = "lies",
	[CALLGATE_COUNT_STATUS + CALLGATE_OK] = "status_ok",
	[CALLGATE_COUNT_STATUS + CALLGATE_NO_SUCH_VECTOR] = "status_no_such_vector",
	[CALLGATE_COUNT_STATUS + CALLGATE_REVOKED] = "status_revoked",
	[CALLGATE_COUNT_STATUS + CALLGATE_BAD_COUNT] = "status_bad_count",
	[CALLGATE_COUNT_STATUS + CALLGATE_BAD_VALUE] = "status_bad_value",
	[CALLGATE_COUNT_STATUS + CALLGATE_BAD_BUFFER] = "status_bad_buffer",
	[CALLGATE_COUNT_STATUS + CALLGATE_BAD_FRAME] = "status_bad_frame",
	[CALLGATE_COUNT_STATUS + CALLGATE_DENIED] = "status_denied",
	[CALLGATE_COUNT_STATUS + CALLGATE_BUSY] = "status_busy",
	[CALLGATE_COUNT_STATUS + CALLGATE_DEVICE_ERROR] = "status_device_error",
	[CALLGATE_COUNT_STATUS + CALLGATE_DEVICE_FAULT] = "status_device_fault",
	[CALLGATE_COUNT_STATUS + CALLGATE_TIMED_OUT] = "status_timed_out",
	[CALLGATE_COUNT_STATUS + CALLGATE_STATUSES] = "status_unknown",
};

/* "NAME COUNT" a line. */
static int counters_show(struct seq_file *seq, void *unused)
{
	const struct callgate *gate = seq->private;
	unsigned int which, cpu;
	u64 sum;

	for (which = 0; which < CALLGATE_COUNTS; which++) {
		sum = 0;
		for_each_possible_cpu(cpu)
			sum += per_cpu_ptr(gate->counters, cpu)->count[which];
		seq_printf(seq, "%s %llu\n", callgate_count_names[which], sum);
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(counters);

/* "VECTOR FLAGS SIGNATURE NAME" a line; a free entry has no line. */
static int directory_show(struct seq_file *seq, void *unused)
{
	struct callgate *gate = seq->private;
	struct callgate_record record;
	u32 index;
	int err;

	err = callgate_enter(gate, CALLGATE_KILLABLE, 0);
	if (err)
		return err;
	for (index = 0; index < gate->layout.entry_count; index++) {
		err = callgate_read_record(gate, index, CALLGATE_KILLABLE, &record);
		if (err && err != -EIO)
			break;
		if (err)
			seq_printf(seq, "entry %u is malformed\n", index);
		else if (*record.name)
			seq_printf(seq, "%08x %02x %016llx %*pEp\n", record.vector, record.flags,
				   record.signature, (int)strlen(record.name), record.name);
	}
	callgate_leave(gate);
	return err == -EIO ? 0 : err;
}
DEFINE_SHOW_ATTRIBUTE(directory);

/* "INDEX STATE VECTOR STATUS" a line, and who has the frame, as far as that is known. */
static int frames_show(struct seq_file *seq, void *unused)
{
	struct callgate *gate = seq->private;
	const struct callgate_frame *frame;
	unsigned int index;
	int err;

	err = callgate_enter(gate, CALLGATE_KILLABLE, 0);
	if (err)
		return err;
	for (index = 0; index < gate->layout.frame_count; index++) {
		frame = callgate_frame(gate, index);
		seq_printf(seq, "%u %u %08x %u %s\n", index, callgate_frame_state(frame),
			   le32_to_cpu(READ_ONCE(frame->vector)),
			   le32_to_cpu(READ_ONCE(frame->status)),
			   test_bit(index, gate->parked) ? "parked" :
			   test_bit(index, gate->taken) ? "used" : "free");
	}
	callgate_leave(gate);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(frames);

void callgate_debugfs_register(void)
{
	callgate_debugfs = debugfs_create_dir("callgate", NULL);
}

void callgate_debugfs_unregister(void)
{
	debugfs_remove(callgate_debugfs);
}

void callgate_debugfs_add(struct callgate *gate)
{
	gate->debugfs = debugfs_create_dir(dev_name(&gate->dev), callgate_debugfs);
	debugfs_create_file("counters", 0444, gate->debugfs, gate, &counters_fops);
	debugfs_create_file("directory", 0400, gate->debugfs, gate, &directory_fops);
	debugfs_create_file("frames", 0400, gate->debugfs, gate, &frames_fops);
}

void callgate_debugfs_remove(struct callgate *gate)
{
	debugfs_remove(gate->debugfs);
	gate->debugfs = NULL;
}
