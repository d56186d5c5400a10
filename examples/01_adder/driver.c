// SPDX-License-Identifier: MIT
/*
 * A Linux driver for the adder, by its registers and its interrupt, and by its call.
 *
 *	cd /sys/bus/pci/drivers/adder/0000:*
 *	echo 2 > a; echo 40 > b
 *	cat total			registers: start, wait for the interrupt, read
 *	cat sum				the call
 */
#include <linux/callgate.h>
#include <linux/completion.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/sysfs.h>

/* BAR 0 */
#define ADDER_A			0x00
#define ADDER_B			0x04
#define ADDER_START		0x08
#define ADDER_TOTAL		0x0c

#define ADDER_INTERRUPT_DONE	0
#define ADDER_PATIENCE		HZ

/* The hash of "add(u64,u64)->u64". */
#define ADDER_ADD_SIGNATURE	0xb68bd69f011c6117ULL

struct adder {
	void __iomem *registers;
	struct mutex lock;		/* one addition by registers at a time */
	struct completion done;
	struct callgate *gate;
	struct callgate_call *add;
};

static irqreturn_t adder_done(int irq, void *data)
{
	struct adder *adder = data;

	complete(&adder->done);
	return IRQ_HANDLED;
}

/* --- registers -------------------------------------------------------------------------------- */

static ssize_t adder_show(struct device *dev, unsigned int offset, char *buf)
{
	struct adder *adder = dev_get_drvdata(dev);

	return sysfs_emit(buf, "%u\n", readl(adder->registers + offset));
}

static ssize_t adder_store(struct device *dev, unsigned int offset, const char *buf, size_t count)
{
	struct adder *adder = dev_get_drvdata(dev);
	u32 value;
	int err = kstrtou32(buf, 0, &value);

	if (err)
		return err;
	mutex_lock(&adder->lock);
	writel(value, adder->registers + offset);
	mutex_unlock(&adder->lock);
	return count;
}

static ssize_t a_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return adder_show(dev, ADDER_A, buf);
}

static ssize_t a_store(struct device *dev, struct device_attribute *attr, const char *buf,
		       size_t count)
{
	return adder_store(dev, ADDER_A, buf, count);
}
static DEVICE_ATTR_RW(a);

static ssize_t b_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return adder_show(dev, ADDER_B, buf);
}

static ssize_t b_store(struct device *dev, struct device_attribute *attr, const char *buf,
		       size_t count)
{
	return adder_store(dev, ADDER_B, buf, count);
}
static DEVICE_ATTR_RW(b);

static ssize_t total_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct adder *adder = dev_get_drvdata(dev);
	u32 total = 0;
	bool done;

	mutex_lock(&adder->lock);
	reinit_completion(&adder->done);
	writel(1, adder->registers + ADDER_START);
	done = wait_for_completion_timeout(&adder->done, ADDER_PATIENCE);
	if (done)
		total = readl(adder->registers + ADDER_TOTAL);
	mutex_unlock(&adder->lock);
	return done ? sysfs_emit(buf, "%u\n", total) : -ETIMEDOUT;
}
static DEVICE_ATTR_RO(total);

/* --- the call --------------------------------------------------------------------------------- */

static int adder_add(struct adder *adder, u64 a, u64 b, u64 *sum)
{
	const u64 args[] = { a, b };
	struct callgate_msg msg = {
		.args = args,
		.nargs = ARRAY_SIZE(args),
		.results = sum,
		.nresults = 1,
	};

	return callgate_call(adder->add, &msg);
}

static ssize_t sum_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct adder *adder = dev_get_drvdata(dev);
	u64 sum;
	int err;

	err = adder_add(adder, readl(adder->registers + ADDER_A),
			readl(adder->registers + ADDER_B), &sum);
	return err ?: sysfs_emit(buf, "%llu\n", sum);
}
static DEVICE_ATTR_RO(sum);

static struct attribute *adder_attrs[] = {
	&dev_attr_a.attr,
	&dev_attr_b.attr,
	&dev_attr_total.attr,
	&dev_attr_sum.attr,
	NULL
};
ATTRIBUTE_GROUPS(adder);

/* --- life ------------------------------------------------------------------------------------- */

static int adder_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct adder *adder;
	int err, vectors;

	adder = devm_kzalloc(&pdev->dev, sizeof(*adder), GFP_KERNEL);
	if (!adder)
		return -ENOMEM;
	mutex_init(&adder->lock);
	init_completion(&adder->done);
	pci_set_drvdata(pdev, adder);

	err = pcim_enable_device(pdev);
	if (err)
		return err;
	pci_set_master(pdev);
	err = pcim_iomap_regions(pdev, BIT(0), "adder");
	if (err)
		return err;
	adder->registers = pcim_iomap_table(pdev)[0];

	/* All of them: the last is the gate's. */
	vectors = pci_msix_vec_count(pdev);
	if (vectors < 0)
		return vectors;
	err = pci_alloc_irq_vectors(pdev, vectors, vectors, PCI_IRQ_MSIX);
	if (err < 0)
		return err;
	err = devm_request_irq(&pdev->dev, pci_irq_vector(pdev, ADDER_INTERRUPT_DONE), adder_done,
			       0, "adder", adder);
	if (err)
		return err;

	adder->gate = devm_callgate_create(pdev, 0);
	if (IS_ERR(adder->gate))
		return PTR_ERR(adder->gate);
	adder->add = devm_callgate_open(&pdev->dev, adder->gate, "add", ADDER_ADD_SIGNATURE);
	return PTR_ERR_OR_ZERO(adder->add);
}

static int adder_suspend(struct device *dev)
{
	struct adder *adder = dev_get_drvdata(dev);

	callgate_freeze(adder->gate);
	return 0;
}

static int adder_resume(struct device *dev)
{
	struct adder *adder = dev_get_drvdata(dev);

	return callgate_thaw(adder->gate);
}

static DEFINE_SIMPLE_DEV_PM_OPS(adder_pm_ops, adder_suspend, adder_resume);

static void adder_reset_prepare(struct pci_dev *pdev)
{
	adder_suspend(&pdev->dev);
}

static void adder_reset_done(struct pci_dev *pdev)
{
	adder_resume(&pdev->dev);
}

static const struct pci_error_handlers adder_error_handlers = {
	.reset_prepare = adder_reset_prepare,
	.reset_done = adder_reset_done,
};

static const struct pci_device_id adder_ids[] = {
	{ PCI_DEVICE(0x1af4, 0x10f0) },
	{ }
};
MODULE_DEVICE_TABLE(pci, adder_ids);

static struct pci_driver adder_driver = {
	.name = "adder",
	.id_table = adder_ids,
	.probe = adder_probe,
	.err_handler = &adder_error_handlers,
	.dev_groups = adder_groups,
	.driver.pm = pm_sleep_ptr(&adder_pm_ops),
};
module_pci_driver(adder_driver);

MODULE_DESCRIPTION("The adder, an example for callgate");
MODULE_LICENSE("Dual MIT/GPL");
