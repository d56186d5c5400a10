// SPDX-License-Identifier: MIT
/*
 * A Linux driver for the checksum device: it works on this machine's memory, by DMA.
 *
 *	head -c 64K /dev/urandom > /dev/checksum
 *	cat /sys/class/misc/checksum/sum		the sum of the 32-bit words
 *	echo 0xa5 > /sys/class/misc/checksum/xor	change each byte, in place
 *	cat /dev/checksum				what is there now
 */
#include <linux/callgate.h>
#include <linux/dma-mapping.h>
#include <linux/fs.h>
#include <linux/kref.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/sysfs.h>
#include <linux/uaccess.h>

#define CHECKSUM_SIZE		SZ_64K

/* The hashes of "sum32(in)->u32" and "xor(inout,u8)->()". */
#define CHECKSUM_SUM32_SIGNATURE	0xcbb10794d45b6479ULL
#define CHECKSUM_XOR_SIGNATURE		0xaefdaffc2f9e4aebULL

/* The device's own code, with the status CALLGATE_DEVICE_ERROR. */
#define CHECKSUM_BAD_LENGTH	1

struct checksum {
	struct kref kref;	/* the driver and each open file */
	struct miscdevice misc;
	struct mutex lock;	/* of all below */
	struct device *dev;	/* NULL: the device is not ours any more */
	struct callgate *gate;
	struct callgate_call *sum32;
	struct callgate_call *xor;
	void *data;
	size_t length;
};

static void checksum_free(struct kref *kref)
{
	struct checksum *checksum = container_of(kref, struct checksum, kref);

	kfree(checksum->data);
	kfree(checksum);
}

static void checksum_put(void *checksum)
{
	kref_put(&((struct checksum *)checksum)->kref, checksum_free);
}

/* Have the device work on the data; afterwards it is the CPU's again. */
static int checksum_run(struct checksum *checksum, struct callgate_call *call, u64 *args,
			unsigned int nargs, u64 *result, unsigned int nresults,
			enum dma_data_direction direction)
{
	/* Much data takes long: sleep until the device's interrupt. */
	struct callgate_msg msg = {
		.args = args,
		.nargs = nargs,
		.results = result,
		.nresults = nresults,
		.flags = CALLGATE_MSG_LONG,
	};
	dma_addr_t address;
	int err;

	lockdep_assert_held(&checksum->lock);
	if (!checksum->dev)
		return -ENODEV;
	if (!checksum->length)
		return -ENODATA;
	address = dma_map_single(checksum->dev, checksum->data, checksum->length, direction);
	if (dma_mapping_error(checksum->dev, address))
		return -ENOMEM;
	args[0] = address;
	args[1] = checksum->length;
	err = callgate_call(call, &msg);
	/* Without an answer the device may still be at it. */
	if (err && msg.status == CALLGATE_NO_STATUS)
		callgate_drain(checksum->gate, USEC_PER_SEC);
	dma_unmap_single(checksum->dev, address, checksum->length, direction);
	if (err == -EREMOTEIO && msg.code == CHECKSUM_BAD_LENGTH)
		return -EINVAL;
	return err;
}

/* --- /dev/checksum ---------------------------------------------------------------------------- */

static struct checksum *to_checksum(struct miscdevice *misc)
{
	return container_of(misc, struct checksum, misc);
}

/* The misc core keeps open() and misc_deregister() apart. */
static int checksum_open(struct inode *inode, struct file *file)
{
	struct checksum *checksum = to_checksum(file->private_data);

	kref_get(&checksum->kref);
	file->private_data = checksum;
	return 0;
}

static int checksum_release(struct inode *inode, struct file *file)
{
	checksum_put(file->private_data);
	return 0;
}

/* What is written replaces what was there, wherever it is written to. */
static ssize_t checksum_write(struct file *file, const char __user *from, size_t count, loff_t *at)
{
	struct checksum *checksum = file->private_data;
	unsigned long left;

	count = min_t(size_t, count, CHECKSUM_SIZE);
	mutex_lock(&checksum->lock);
	left = copy_from_user(checksum->data, from, count);
	checksum->length = left ? 0 : count;
	mutex_unlock(&checksum->lock);
	return left ? -EFAULT : count;
}

static ssize_t checksum_read(struct file *file, char __user *to, size_t count, loff_t *at)
{
	struct checksum *checksum = file->private_data;
	ssize_t copied;

	mutex_lock(&checksum->lock);
	copied = simple_read_from_buffer(to, count, at, checksum->data, checksum->length);
	mutex_unlock(&checksum->lock);
	return copied;
}

static const struct file_operations checksum_fops = {
	.owner = THIS_MODULE,
	.open = checksum_open,
	.release = checksum_release,
	.read = checksum_read,
	.write = checksum_write,
};

/* --- its attributes --------------------------------------------------------------------------- */

static ssize_t sum_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct checksum *checksum = to_checksum(dev_get_drvdata(dev));
	u64 args[2], sum;
	int err;

	mutex_lock(&checksum->lock);
	err = checksum_run(checksum, checksum->sum32, args, ARRAY_SIZE(args), &sum, 1,
			   DMA_TO_DEVICE);
	mutex_unlock(&checksum->lock);
	return err ?: sysfs_emit(buf, "%08llx\n", sum);
}
static DEVICE_ATTR_RO(sum);

static ssize_t xor_store(struct device *dev, struct device_attribute *attr, const char *buf,
			 size_t count)
{
	struct checksum *checksum = to_checksum(dev_get_drvdata(dev));
	u64 args[3];
	u8 key;
	int err = kstrtou8(buf, 0, &key);

	if (err)
		return err;
	args[2] = key;
	mutex_lock(&checksum->lock);
	err = checksum_run(checksum, checksum->xor, args, ARRAY_SIZE(args), NULL, 0,
			   DMA_BIDIRECTIONAL);
	mutex_unlock(&checksum->lock);
	return err ?: count;
}
static DEVICE_ATTR_WO(xor);

static struct attribute *checksum_attrs[] = {
	&dev_attr_sum.attr,
	&dev_attr_xor.attr,
	NULL
};
ATTRIBUTE_GROUPS(checksum);

/* --- life ------------------------------------------------------------------------------------- */

static int checksum_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct device *dev = &pdev->dev;
	struct checksum *checksum;
	int err;

	checksum = kzalloc(sizeof(*checksum), GFP_KERNEL);
	if (!checksum)
		return -ENOMEM;
	kref_init(&checksum->kref);
	err = devm_add_action_or_reset(dev, checksum_put, checksum);
	if (err)
		return err;
	/* From the page allocator: cache lines of its own, for DMA. */
	checksum->data = kmalloc(CHECKSUM_SIZE, GFP_KERNEL);
	if (!checksum->data)
		return -ENOMEM;
	mutex_init(&checksum->lock);
	pci_set_drvdata(pdev, checksum);

	err = pcim_enable_device(pdev);
	if (err)
		return err;
	err = dma_set_mask_and_coherent(dev, DMA_BIT_MASK(64));
	if (err)
		return err;
	pci_set_master(pdev);
	checksum->dev = dev;
	/* The device has no interrupts but the gate's. */
	checksum->gate = devm_callgate_create(pdev, CALLGATE_MSIX);
	if (IS_ERR(checksum->gate))
		return PTR_ERR(checksum->gate);
	checksum->sum32 = devm_callgate_open(dev, checksum->gate, "sum32",
					     CHECKSUM_SUM32_SIGNATURE);
	if (IS_ERR(checksum->sum32))
		return PTR_ERR(checksum->sum32);
	checksum->xor = devm_callgate_open(dev, checksum->gate, "xor", CHECKSUM_XOR_SIGNATURE);
	if (IS_ERR(checksum->xor))
		return PTR_ERR(checksum->xor);

	checksum->misc.minor = MISC_DYNAMIC_MINOR;
	checksum->misc.name = "checksum";
	checksum->misc.fops = &checksum_fops;
	checksum->misc.parent = dev;
	checksum->misc.groups = checksum_groups;
	return misc_register(&checksum->misc);
}

/* Files may stay open. */
static void checksum_remove(struct pci_dev *pdev)
{
	struct checksum *checksum = pci_get_drvdata(pdev);

	misc_deregister(&checksum->misc);
	mutex_lock(&checksum->lock);
	checksum->dev = NULL;
	mutex_unlock(&checksum->lock);
}

static int checksum_suspend(struct device *dev)
{
	struct checksum *checksum = dev_get_drvdata(dev);

	callgate_freeze(checksum->gate);
	return 0;
}

static int checksum_resume(struct device *dev)
{
	struct checksum *checksum = dev_get_drvdata(dev);

	return callgate_thaw(checksum->gate);
}

static DEFINE_SIMPLE_DEV_PM_OPS(checksum_pm_ops, checksum_suspend, checksum_resume);

static const struct pci_device_id checksum_ids[] = {
	{ PCI_DEVICE(0x1af4, 0x10f2) },
	{ }
};
MODULE_DEVICE_TABLE(pci, checksum_ids);

static struct pci_driver checksum_driver = {
	.name = "checksum",
	.id_table = checksum_ids,
	.probe = checksum_probe,
	.remove = checksum_remove,
	.driver.pm = pm_sleep_ptr(&checksum_pm_ops),
};
module_pci_driver(checksum_driver);

MODULE_DESCRIPTION("The checksum device, an example for callgate");
MODULE_LICENSE("Dual MIT/GPL");
