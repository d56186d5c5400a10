// SPDX-License-Identifier: GPL-2.0
/*
 * Measures calls that a driver makes, for `callgate bench --on qemu --modules`. Each read of a file
 * in /sys/kernel/debug/callgate_bench prints a line as guest/user/bench.c does:
 *
 *	call	module-call MEDIAN P99 COUNT		nanoseconds
 *	cpus	module-cpus-N CALLS/S 0 COUNT		all of the N processors at once
 *
 * User space has the same device as /dev/callgateN.
 */
#include <linux/callgate.h>
#include <linux/completion.h>
#include <linux/cpumask.h>
#include <linux/debugfs.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/sort.h>

/* The hash of "add(u64,u64)->u64". */
#define BENCH_ADD_SIGNATURE	0xb68bd69f011c6117ULL
#define BENCH_BATCH		16
#define BENCH_CALLS		4000
#define BENCH_LONG		50000	/* calls of each processor */
#define BENCH_CPUS		8

struct bench {
	struct callgate *gate;
	struct callgate_call *add;
	struct dentry *folder;
};

struct bench_runner {
	struct task_struct *task;
	struct bench *bench;
	struct completion *begin;
	struct completion ended;
	int err;
};

static int bench_add(struct bench *bench, u64 a)
{
	const u64 args[] = { a, 40 };
	u64 sum = 0;
	struct callgate_msg msg = {
		.args = args, .nargs = 2, .results = &sum, .nresults = 1,
	};
	int err = callgate_call(bench->add, &msg);

	return err ?: sum == a + 40 ? 0 : -EBADMSG;
}

static int bench_ascending(const void *a, const void *b)
{
	const u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

/* The median of batches, the 99th percentile of single calls. */
static int bench_call_show(struct seq_file *seq, void *unused)
{
	const unsigned int batches = BENCH_CALLS / BENCH_BATCH;
	struct bench *bench = seq->private;
	unsigned int i, j;
	u64 *times, began, middle;
	int err = 0;

	times = kvcalloc(BENCH_CALLS, sizeof(*times), GFP_KERNEL);
	if (!times)
		return -ENOMEM;
	for (i = 0; i < batches && !err; i++) {
		began = ktime_get_ns();
		for (j = 0; j < BENCH_BATCH && !err; j++)
			err = bench_add(bench, j);
		times[i] = ktime_get_ns() - began;
	}
	sort(times, batches, sizeof(*times), bench_ascending, NULL);
	middle = times[batches / 2] / BENCH_BATCH;
	for (i = 0; i < BENCH_CALLS && !err; i++) {
		began = ktime_get_ns();
		err = bench_add(bench, i);
		times[i] = ktime_get_ns() - began;
	}
	sort(times, BENCH_CALLS, sizeof(*times), bench_ascending, NULL);
	if (!err)
		seq_printf(seq, "module-call %llu %llu %u\n", middle,
			   times[BENCH_CALLS - BENCH_CALLS / 100 - 1], BENCH_CALLS);
	kvfree(times);
	return err;
}
DEFINE_SHOW_ATTRIBUTE(bench_call);

static int bench_run(void *data)
{
	struct bench_runner *runner = data;
	unsigned int i;

	wait_for_completion(runner->begin);
	for (i = 0; i < BENCH_LONG && !runner->err; i++)
		runner->err = bench_add(runner->bench, i);
	complete(&runner->ended);
	return 0;
}

static int bench_cpus_show(struct seq_file *seq, void *unused)
{
	const unsigned int cpus = min_t(unsigned int, num_online_cpus(), BENCH_CPUS);
	DECLARE_COMPLETION_ONSTACK(begin);
	struct bench_runner *runners;
	unsigned int i, count = 0;
	u64 began, took;
	int err = 0;

	runners = kcalloc(cpus, sizeof(*runners), GFP_KERNEL);
	if (!runners)
		return -ENOMEM;
	for (i = 0; i < cpus && !err; i++) {
		struct bench_runner *runner = &runners[i];

		runner->bench = seq->private;
		runner->begin = &begin;
		init_completion(&runner->ended);
		runner->task = kthread_create(bench_run, runner, "callgate_bench/%u", i);
		err = PTR_ERR_OR_ZERO(runner->task);
		if (err)
			break;
		get_task_struct(runner->task);
		kthread_bind(runner->task, cpumask_nth(i, cpu_online_mask));
		wake_up_process(runner->task);
		count++;
	}
	began = ktime_get_ns();
	complete_all(&begin);
	for (i = 0; i < count; i++)
		wait_for_completion(&runners[i].ended);
	took = ktime_get_ns() - began;
	for (i = 0; i < count; i++) {
		err = err ?: runners[i].err;
		kthread_stop(runners[i].task);
		put_task_struct(runners[i].task);
	}
	if (!err)
		seq_printf(seq, "module-cpus-%u %llu 0 %u\n", cpus,
			   div64_u64((u64)cpus * BENCH_LONG * NSEC_PER_SEC, took), BENCH_LONG);
	kfree(runners);
	return err;
}
DEFINE_SHOW_ATTRIBUTE(bench_cpus);

static int bench_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct bench *bench;
	int err;

	bench = devm_kzalloc(&pdev->dev, sizeof(*bench), GFP_KERNEL);
	if (!bench)
		return -ENOMEM;
	err = pcim_enable_device(pdev);
	if (err)
		return err;
	pci_set_master(pdev);
	bench->gate = callgate_create(pdev, CALLGATE_CDEV | CALLGATE_MSIX);
	if (IS_ERR(bench->gate))
		return PTR_ERR(bench->gate);
	bench->add = callgate_open(bench->gate, "add", BENCH_ADD_SIGNATURE);
	if (IS_ERR(bench->add)) {
		callgate_destroy(bench->gate);
		return PTR_ERR(bench->add);
	}
	pci_set_drvdata(pdev, bench);
	bench->folder = debugfs_create_dir("callgate_bench", NULL);
	debugfs_create_file("call", 0400, bench->folder, bench, &bench_call_fops);
	debugfs_create_file("cpus", 0400, bench->folder, bench, &bench_cpus_fops);
	return 0;
}

static void bench_remove(struct pci_dev *pdev)
{
	struct bench *bench = pci_get_drvdata(pdev);

	debugfs_remove(bench->folder);
	callgate_close(bench->add);
	callgate_destroy(bench->gate);
}

static const struct pci_device_id bench_ids[] = {
	{ PCI_DEVICE(0x1af4, 0x10fe) },
	{ }
};
MODULE_DEVICE_TABLE(pci, bench_ids);

static struct pci_driver bench_driver = {
	.name = "callgate_bench",
	.id_table = bench_ids,
	.probe = bench_probe,
	.remove = bench_remove,
};
module_pci_driver(bench_driver);

MODULE_DESCRIPTION("Measures callgate's calls");
MODULE_LICENSE("GPL");
