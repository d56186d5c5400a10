// SPDX-License-Identifier: MIT
/*
 * What a driver can do with a gate: callgate.ko's exported functions, from the kernel. For the device
 * `workbench` (device.py beside this file), which callgate_pci has.
 *
 * /sys/kernel/debug/callgate_test/SCENARIO reads "ok", or what is wrong. The gate is held until the
 * module is removed: `gone` is for when the device was unbound.
 */
#include <linux/callgate.h>
#include <linux/completion.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/io.h>
#include <linux/irq_work.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/pci.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/sort.h>

#define ADD	0xb68bd69f011c6117ULL
#define REBIND	1

static struct dentry *folder;
static struct pci_dev *pdev;
static struct callgate *gate;
static struct callgate_call *add;
static u32 __iomem *registers;

#define CHECK(seq, condition, format, ...) \
do { \
	if (!(condition)) \
		seq_printf(seq, "line %d: %s: " format "\n", __LINE__, #condition, \
			   ##__VA_ARGS__); \
} while (0)

static int make(struct callgate_call *call, const u64 *args, unsigned int nargs, u64 *result,
		struct callgate_msg *msg)
{
	*msg = (struct callgate_msg){
		.args = args, .nargs = nargs, .results = result, .nresults = result ? 1 : 0,
	};
	return callgate_call(call, msg);
}

/* Calls of the signature name(u64) and name(), by hashes that the host computes: see module.py. */
static unsigned long long signatures[16];
static int signature_count;
module_param_array(signatures, ullong, &signature_count, 0444);

enum { CONTROL, STATUS, ECHO, SUM, HOLD, PING, STEP, PINGS, SLOW };

static const char * const names[] = {
	"control", "status", "echo", "sum", "hold", "ping", "step", "pings", "slow",
};

static struct callgate_call *open_call(struct seq_file *seq, unsigned int which)
{
	struct callgate_call *call = callgate_open(gate, names[which], signatures[which]);

	CHECK(seq, !IS_ERR(call), "%s: %pe", names[which], call);
	return call;
}

static u64 pings(struct seq_file *seq)
{
	struct callgate_call *call = open_call(seq, PINGS);
	struct callgate_msg msg;
	u64 count = 0;

	CHECK(seq, !make(call, NULL, 0, &count, &msg), "status %u", msg.status);
	callgate_close(call);
	return count;
}

/* --- scenarios -------------------------------------------------------------------------------- */

static void test_open(struct seq_file *seq)
{
	struct pci_dev *bridge = pci_get_slot(pdev->bus, PCI_DEVFN(0, 0));
	struct callgate *again = callgate_get(pdev);

	CHECK(seq, again == gate, "%p", again);
	callgate_put(again);
	callgate_put(NULL);
	CHECK(seq, bridge && !callgate_get(bridge), "the host bridge has a gate");
	CHECK(seq, !callgate_is_present(bridge), "the host bridge has a gate");
	CHECK(seq, callgate_is_present(pdev), "the workbench has none");
	CHECK(seq, PTR_ERR(callgate_create(bridge, 0)) == -ENODEV, "the host bridge has a gate");
	/* Somebody has it. */
	CHECK(seq, PTR_ERR(callgate_create(pdev, 0)) == -EBUSY, "two gates of one device");
	pci_dev_put(bridge);
	CHECK(seq, PTR_ERR(callgate_open(gate, "subtract", ADD)) == -ENOENT, "subtract");
	CHECK(seq, PTR_ERR(callgate_open(gate, "add", ADD + 1)) == -ESTALE, "signature");
	callgate_close(NULL);
	CHECK(seq, callgate_payload_size(gate) == 3968, "%u", callgate_payload_size(gate));
}

static void test_call(struct seq_file *seq)
{
	const u64 args[] = { 0xfedcba9876543210, 0x0123456789abcdef };
	struct callgate_msg msg;
	u64 sum = 0;

	CHECK(seq, !make(add, args, 2, &sum, &msg) && sum == U64_MAX && !msg.status, "%llx", sum);
	CHECK(seq, !make(add, args, 2, NULL, &msg), "without a result");
	CHECK(seq, make(add, args, 1, &sum, &msg) == -EINVAL && msg.status == CALLGATE_NO_STATUS,
	      "%u", msg.status);
	msg = (struct callgate_msg){ .args = args, .nargs = 2, .results = &sum, .nresults = 2 };
	CHECK(seq, callgate_call(add, &msg) == -EINVAL, "two results");
	msg = (struct callgate_msg){ .args = args, .nargs = 2, .in = args, .in_length = 8 };
	CHECK(seq, callgate_call(add, &msg) == -EINVAL, "a payload");
	msg = (struct callgate_msg){ .args = args, .nargs = 2, .flags = 4 };
	CHECK(seq, callgate_call(add, &msg) == -EINVAL, "a flag");
}

static void test_statuses(struct seq_file *seq)
{
	static const int errnos[] = {
		0, -ENXIO, -EAGAIN, -EINVAL, -EDOM, -EFAULT, -EBADMSG, -EACCES, -EBUSY,
		-EREMOTEIO, -EIO, -ETIME,
	};
	struct callgate_call *call = open_call(seq, STATUS);
	struct callgate_msg msg;
	unsigned int i;
	u64 arg;
	int err;

	for (i = 0; i < ARRAY_SIZE(errnos); i++) {
		arg = i;
		err = make(call, &arg, 1, NULL, &msg);
		CHECK(seq, err == errnos[i], "%u: %d", i, err);
		/* Where the device revokes without end, looking it up again is what failed. */
		CHECK(seq, msg.status == (i == CALLGATE_REVOKED ? CALLGATE_NO_STATUS : i),
		      "%u: status %u", i, msg.status);
		CHECK(seq, msg.code == (i == CALLGATE_DEVICE_ERROR ? 77 : 0), "%llu", msg.code);
	}
	callgate_close(call);
}

static void test_payload(struct seq_file *seq)
{
	static const char text[] = "the payload";
	struct callgate_call *call = open_call(seq, ECHO);
	const u64 arg = callgate_bytes(4, 7);
	u32 offset, length;
	char out[32] = "";
	u64 slot = 0;
	struct callgate_msg msg = {
		.args = &arg, .nargs = 1, .results = &slot, .nresults = 1,
		.in = text, .in_length = sizeof(text), .out = out, .out_length = sizeof(out),
	};

	CHECK(seq, !callgate_call(call, &msg), "status %u", msg.status);
	CHECK(seq, !callgate_result_bytes(&msg, slot, &offset, &length), "%llx", slot);
	CHECK(seq, offset == 0 && length == 7 && !memcmp(out, "payload", 7), "%u, %u", offset,
	      length);
	msg.out_length = 6;
	CHECK(seq, !callgate_call(call, &msg), "status %u", msg.status);
	CHECK(seq, callgate_result_bytes(&msg, slot, &offset, &length) == -ENOBUFS && length == 7,
	      "%u", length);
	CHECK(seq, callgate_result_bytes(&msg, U64_MAX, &offset, &length) == -ENOBUFS, "all ones");
	msg.in_length = 3969;
	CHECK(seq, callgate_call(call, &msg) == -EMSGSIZE, "%u", msg.status);
	callgate_close(call);
}

static void test_buffer(struct seq_file *seq)
{
	struct callgate_call *call = open_call(seq, SUM);
	u8 *memory = kmalloc(PAGE_SIZE, GFP_KERNEL);
	struct callgate_msg msg;
	dma_addr_t address;
	u64 args[2], sum = 0;

	if (!memory)
		return;
	memset(memory, 3, PAGE_SIZE);
	address = dma_map_single(&pdev->dev, memory, PAGE_SIZE, DMA_TO_DEVICE);
	if (!dma_mapping_error(&pdev->dev, address)) {
		args[0] = address;
		args[1] = PAGE_SIZE;
		CHECK(seq, !make(call, args, 2, &sum, &msg) && sum == 3 * PAGE_SIZE,
		      "status %u, %llu", msg.status, sum);
		dma_unmap_single(&pdev->dev, address, PAGE_SIZE, DMA_TO_DEVICE);
	}
	args[0] = U64_MAX - 8;
	CHECK(seq, make(call, args, 2, &sum, &msg) == -EFAULT, "status %u", msg.status);
	kfree(memory);
	callgate_close(call);
}

static int add_atomic(u64 a, u64 b)
{
	const u64 args[] = { a, b };
	u64 sum = 0;
	struct callgate_msg msg = {
		.args = args, .nargs = 2, .results = &sum, .nresults = 1, .timeout_us = 2000000,
	};
	int err = callgate_call_atomic(add, &msg);

	return err ?: sum == a + b ? 0 : -ERANGE;
}

struct hard {
	struct irq_work work;
	struct completion done;
	int err;
};

static void add_in_interrupt(struct irq_work *work)
{
	struct hard *hard = container_of(work, struct hard, work);

	hard->err = add_atomic(20, 22);
	complete(&hard->done);
}

static void test_atomic(struct seq_file *seq)
{
	static DEFINE_SPINLOCK(lock);
	struct hard hard = { .work = IRQ_WORK_INIT_HARD(add_in_interrupt) };
	unsigned long flags;
	int err, i;

	for (i = 0; i < 20; i++) {
		spin_lock_irqsave(&lock, flags);
		err = add_atomic(i, 2);
		spin_unlock_irqrestore(&lock, flags);
		CHECK(seq, !err, "%d", err);
	}
	init_completion(&hard.done);
	irq_work_queue(&hard.work);
	wait_for_completion(&hard.done);
	irq_work_sync(&hard.work);
	CHECK(seq, !hard.err, "in an interrupt: %d", hard.err);
}

static void test_one_way(struct seq_file *seq)
{
	struct callgate_call *ping = open_call(seq, PING), *step = open_call(seq, STEP);
	const u64 before = pings(seq), arg = 10;
	struct callgate_msg msg = { .args = &arg, .nargs = 1 };
	struct callgate_msg hasty = { .args = &arg, .nargs = 1, .flags = CALLGATE_MSG_NOWAIT };
	unsigned int i, hasted = 0;
	int err;

	for (i = 0; i < 20; i++)
		CHECK(seq, !callgate_post(step, &msg), "%u", i);
	for (i = 0; i < 20; i++) {
		err = callgate_post(step, &hasty);
		hasted += !err;
		CHECK(seq, !err || err == -EAGAIN, "%d", err);
	}
	CHECK(seq, !callgate_notify(ping), "ping");
	CHECK(seq, callgate_notify(step) == -EINVAL, "step");
	CHECK(seq, callgate_notify(add) == -EINVAL, "add");
	CHECK(seq, !callgate_drain(gate, USEC_PER_SEC), "drain");
	for (i = 0; pings(seq) != before + 201 + 10 * hasted && i < 1000; i++)
		usleep_range(500, 1000);
	CHECK(seq, pings(seq) == before + 201 + 10 * hasted, "%llu", pings(seq) - before);
	callgate_close(step);
	callgate_close(ping);
}

struct listener {
	struct notifier_block nb;
	struct completion told;
	unsigned long event;
	void *data;
};

static int be_told(struct notifier_block *nb, unsigned long event, void *data)
{
	struct listener *listener = container_of(nb, struct listener, nb);

	listener->event = event;
	listener->data = data;
	complete(&listener->told);
	return NOTIFY_OK;
}

static void test_notifier(struct seq_file *seq)
{
	struct listener listener = { .nb.notifier_call = be_told };
	struct callgate_call *control = open_call(seq, CONTROL);
	struct callgate_msg msg;
	u64 what = REBIND, args[] = { 1, 2 }, sum;

	init_completion(&listener.told);
	CHECK(seq, !callgate_register_notifier(gate, &listener.nb), "register");
	CHECK(seq, !make(control, &what, 1, NULL, &msg), "status %u", msg.status);
	CHECK(seq, wait_for_completion_timeout(&listener.told, 5 * HZ), "nobody told");
	CHECK(seq, listener.event == CALLGATE_EVENT_CHANGE && listener.data == gate, "%lu",
	      listener.event);
	CHECK(seq, !callgate_unregister_notifier(gate, &listener.nb), "unregister");
	/* What was opened before works on, also for who must not sleep. */
	CHECK(seq, !make(add, args, 2, &sum, &msg) && sum == 3, "status %u", msg.status);
	CHECK(seq, !make(control, &what, 1, NULL, &msg), "status %u", msg.status);
	preempt_disable();
	CHECK(seq, !add_atomic(1, 2), "rebound, atomic");
	preempt_enable();
	callgate_close(control);
}

/* All frames are on their way: who may not wait is told so. */
static void test_no_frames(struct seq_file *seq)
{
	struct callgate_call *hold = open_call(seq, HOLD);
	const u64 ms = 10000, args[] = { 1, 2 };
	struct callgate_msg held = { .args = &ms, .nargs = 1 };
	struct callgate_msg msg = { .args = args, .nargs = 2 };
	unsigned int i;
	int err;

	iowrite32(1, registers);
	ioread32(registers);
	/* Until the device watches, so that the calls do not hold up this machine. */
	for (i = 0; i < 100; i++)
		CHECK(seq, !callgate_call(add, &msg), "%u", i);
	for (i = 0; i < 8; i++)
		CHECK(seq, !callgate_post(hold, &held), "%u", i);
	msg.flags = CALLGATE_MSG_NOWAIT;
	err = callgate_call(add, &msg);
	CHECK(seq, err == -EAGAIN, "%d", err);
	err = callgate_post(hold, &msg);
	CHECK(seq, err == -EINVAL, "%d", err);
	preempt_disable();
	err = add_atomic(1, 2);
	preempt_enable();
	CHECK(seq, err == -EAGAIN, "%d", err);
	msg.flags = 0;
	msg.timeout_us = 5000;
	err = callgate_call(add, &msg);
	CHECK(seq, err == -ETIMEDOUT, "%d", err);
	CHECK(seq, callgate_drain(gate, 1000) == -ETIMEDOUT, "drain");
	iowrite32(0, registers);
	msg.timeout_us = 0;
	err = callgate_call(add, &msg);
	CHECK(seq, !err, "%d", err);
	CHECK(seq, !callgate_drain(gate, USEC_PER_SEC), "drain");
	callgate_close(hold);
}

static int call_on(void *data)
{
	atomic_t *wrong = data;
	struct callgate_msg msg;
	u64 args[2], sum, i;
	int err;

	for (i = 0; i < 300; i++) {
		args[0] = i;
		args[1] = task_pid_nr(current);
		if (i & 1) {
			preempt_disable();
			err = add_atomic(args[0], args[1]);
			preempt_enable();
		} else {
			err = make(add, args, 2, &sum, &msg);
		}
		/* The host revokes and binds anew meanwhile. */
		if (err && err != -ENOTCONN && err != -EBUSY && err != -EAGAIN)
			atomic_inc(wrong);
		cond_resched();
	}
	return 0;
}

/* On each CPU at once, spinning and sleeping, while the call is bound anew. */
static void test_cpus(struct seq_file *seq)
{
	struct callgate_call *control = open_call(seq, CONTROL);
	struct task_struct *threads[8];
	unsigned int i, count = 0;
	struct callgate_msg msg;
	atomic_t wrong = ATOMIC_INIT(0);
	u64 what = REBIND;

	for (i = 0; i < 6; i++) {
		threads[count] = kthread_create(call_on, &wrong, "callgate_test/%u", i);
		if (IS_ERR(threads[count]))
			continue;
		get_task_struct(threads[count]);
		kthread_bind(threads[count], cpumask_nth(i % num_online_cpus(), cpu_online_mask));
		wake_up_process(threads[count++]);
	}
	for (i = 0; i < 20; i++) {
		CHECK(seq, !make(control, &what, 1, NULL, &msg), "status %u", msg.status);
		usleep_range(1000, 2000);
	}
	for (i = 0; i < count; i++) {
		kthread_stop(threads[i]);
		put_task_struct(threads[i]);
	}
	CHECK(seq, !atomic_read(&wrong), "%d", atomic_read(&wrong));
	callgate_close(control);
}

static void test_timeout(struct seq_file *seq)
{
	struct callgate_call *slow = open_call(seq, SLOW);
	const u64 ms = 100, args[] = { 1, 2 };
	struct callgate_msg msg = { .args = &ms, .nargs = 1, .timeout_us = 1000 };
	struct callgate_msg quick = { .args = args, .nargs = 2 };
	unsigned int i;
	int err;

	for (i = 0; i < 100; i++)
		callgate_call(add, &quick);
	err = callgate_call(slow, &msg);
	CHECK(seq, err == -ETIMEDOUT && msg.status == CALLGATE_NO_STATUS, "%d, %u", err,
	      msg.status);
	preempt_disable();
	err = callgate_call_atomic(slow, &msg);
	preempt_enable();
	CHECK(seq, err == -ETIMEDOUT, "%d", err);
	CHECK(seq, !callgate_drain(gate, USEC_PER_SEC), "drain");
	callgate_close(slow);
}

static int ascending(const void *a, const void *b)
{
	const u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

/* What a call takes, the median of batches of 16, as the user space's bench has it. */
static void measure(struct seq_file *seq, const char *name, int (*run)(u64 a, u64 b))
{
	enum { BATCH = 16, BATCHES = 300 };
	u64 *times = kcalloc(BATCHES, sizeof(*times), GFP_KERNEL);
	unsigned int i, j;
	u64 began;

	if (!times)
		return;
	for (i = 0; i < BATCHES; i++) {
		began = ktime_get_ns();
		for (j = 0; j < BATCH; j++)
			CHECK(seq, !run(i, j), "%s", name);
		times[i] = (ktime_get_ns() - began) / BATCH;
	}
	sort(times, BATCHES, sizeof(*times), ascending, NULL);
	seq_printf(seq, "%s %llu ns, %llu at best\n", name, times[BATCHES / 2], times[BATCHES / 10]);
	kfree(times);
}

static int add_asleep(u64 a, u64 b)
{
	const u64 args[] = { a, b };
	struct callgate_msg msg;
	u64 sum = 0;

	return make(add, args, 2, &sum, &msg) ?: sum == a + b ? 0 : -ERANGE;
}

static void test_bench(struct seq_file *seq)
{
	measure(seq, "callgate_call", add_asleep);
	measure(seq, "callgate_call_atomic", add_atomic);
}

/* After the device was unbound from its driver. */
static void test_gone(struct seq_file *seq)
{
	const u64 args[] = { 1, 2 };
	struct callgate_msg msg = { .args = args, .nargs = 2 };

	CHECK(seq, callgate_call(add, &msg) == -ENODEV, "call");
	CHECK(seq, callgate_call_atomic(add, &msg) == -ENODEV, "atomic");
	CHECK(seq, callgate_post(add, &msg) == -ENODEV, "post");
	CHECK(seq, PTR_ERR(callgate_open(gate, "add", ADD)) == -ENODEV, "open");
	CHECK(seq, callgate_drain(gate, 1000) == -ENODEV, "drain");
	CHECK(seq, !callgate_get(pdev), "get");
}

/* --- the module ------------------------------------------------------------------------------- */

static const struct {
	const char *name;
	void (*run)(struct seq_file *seq);
} scenarios[] = {
	{ "open", test_open },
	{ "call", test_call },
	{ "statuses", test_statuses },
	{ "payload", test_payload },
	{ "buffer", test_buffer },
	{ "atomic", test_atomic },
	{ "one_way", test_one_way },
	{ "notifier", test_notifier },
	{ "no_frames", test_no_frames },
	{ "timeout", test_timeout },
	{ "cpus", test_cpus },
	{ "bench", test_bench },
	{ "gone", test_gone },
};

static int scenario_show(struct seq_file *seq, void *unused)
{
	const unsigned int which = (unsigned long)seq->private;
	size_t before = seq->count;

	scenarios[which].run(seq);
	if (seq->count == before)
		seq_puts(seq, "ok\n");
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(scenario);

static int __init callgate_test_init(void)
{
	unsigned long i;

	pdev = pci_get_device(0x1af4, 0x10f8, NULL);
	if (!pdev)
		return -ENODEV;
	gate = callgate_get(pdev);
	if (!gate)
		goto put_pdev;
	registers = pci_iomap(pdev, 0, 0);
	if (!registers)
		goto put_gate;
	add = callgate_open(gate, "add", ADD);
	if (IS_ERR(add))
		goto unmap;
	folder = debugfs_create_dir("callgate_test", NULL);
	for (i = 0; i < ARRAY_SIZE(scenarios); i++)
		debugfs_create_file(scenarios[i].name, 0400, folder, (void *)i, &scenario_fops);
	return 0;

unmap:
	pci_iounmap(pdev, registers);
put_gate:
	callgate_put(gate);
put_pdev:
	pci_dev_put(pdev);
	return -ENODEV;
}

static void __exit callgate_test_exit(void)
{
	debugfs_remove(folder);
	callgate_close(add);
	pci_iounmap(pdev, registers);
	callgate_put(gate);
	pci_dev_put(pdev);
}

module_init(callgate_test_init);
module_exit(callgate_test_exit);

MODULE_DESCRIPTION("Tests of callgate");
MODULE_LICENSE("Dual MIT/GPL");
