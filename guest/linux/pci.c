// SPDX-License-Identifier: GPL-2.0
/*
 * The driver for devices that have none of their own: gives user space their calls, as
 * /dev/callgateN. It takes the ids that are for experiments, if the function has a gate; any other
 * function with a gate by new_id or driver_override.
 */
#include <linux/callgate.h>
#include <linux/dma-mapping.h>
#include <linux/module.h>
#include <linux/pci.h>

static int callgate_pci_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct callgate *gate;
	int err;

	/* Before anything is done to what may be somebody else's. */
	if (!callgate_is_present(pdev))
		return -ENODEV;
	err = pcim_enable_device(pdev);
	if (err)
		return err;
	err = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64));
	if (err)
		return err;
	pci_set_master(pdev);
	gate = callgate_create(pdev, CALLGATE_CDEV | CALLGATE_MSIX);
	if (IS_ERR(gate)) {
		pci_clear_master(pdev);
		return PTR_ERR(gate);
	}
	pci_set_drvdata(pdev, gate);
	return 0;
}

static void callgate_pci_remove(struct pci_dev *pdev)
{
	callgate_destroy(pci_get_drvdata(pdev));
	pci_clear_master(pdev);
}

static int callgate_pci_suspend(struct device *dev)
{
	callgate_freeze(dev_get_drvdata(dev));
	return 0;
}

/* The device may have been without power. A gate that is lost is no reason not to resume. */
static int callgate_pci_resume(struct device *dev)
{
	callgate_thaw(dev_get_drvdata(dev));
	return 0;
}

static DEFINE_SIMPLE_DEV_PM_OPS(callgate_pci_pm_ops, callgate_pci_suspend, callgate_pci_resume);

static void callgate_pci_reset_prepare(struct pci_dev *pdev)
{
	callgate_freeze(pci_get_drvdata(pdev));
}

static void callgate_pci_reset_done(struct pci_dev *pdev)
{
	callgate_thaw(pci_get_drvdata(pdev));
}

static pci_ers_result_t callgate_pci_error_detected(struct pci_dev *pdev, pci_channel_state_t state)
{
	callgate_freeze(pci_get_drvdata(pdev));
	if (state == pci_channel_io_perm_failure)
		return PCI_ERS_RESULT_DISCONNECT;
	return PCI_ERS_RESULT_NEED_RESET;
}

static pci_ers_result_t callgate_pci_slot_reset(struct pci_dev *pdev)
{
	pci_restore_state(pdev);
	return PCI_ERS_RESULT_RECOVERED;
}

static const struct pci_error_handlers callgate_pci_error_handlers = {
	.reset_prepare = callgate_pci_reset_prepare,
	.reset_done = callgate_pci_reset_done,
	.error_detected = callgate_pci_error_detected,
	.slot_reset = callgate_pci_slot_reset,
	.resume = callgate_pci_reset_done,
};

/* docs/specs/pci-ids.rst of QEMU: for experiments, so anything may have them. */
static const struct pci_device_id callgate_pci_ids[] = {
	{ PCI_VDEVICE(REDHAT_QUMRANET, 0x10f0) },
	{ PCI_VDEVICE(REDHAT_QUMRANET, 0x10f1) },
	{ PCI_VDEVICE(REDHAT_QUMRANET, 0x10f2) },
	{ PCI_VDEVICE(REDHAT_QUMRANET, 0x10f3) },
	{ PCI_VDEVICE(REDHAT_QUMRANET, 0x10f4) },
	{ PCI_VDEVICE(REDHAT_QUMRANET, 0x10f5) },
	{ PCI_VDEVICE(REDHAT_QUMRANET, 0x10f6) },
	{ PCI_VDEVICE(REDHAT_QUMRANET, 0x10f7) },
	{ PCI_VDEVICE(REDHAT_QUMRANET, 0x10f8) },
	{ PCI_VDEVICE(REDHAT_QUMRANET, 0x10f9) },
	{ PCI_VDEVICE(REDHAT_QUMRANET, 0x10fa) },
	{ PCI_VDEVICE(REDHAT_QUMRANET, 0x10fb) },
	{ PCI_VDEVICE(REDHAT_QUMRANET, 0x10fc) },
	{ PCI_VDEVICE(REDHAT_QUMRANET, 0x10fd) },
	{ PCI_VDEVICE(REDHAT_QUMRANET, 0x10fe) },
	{ PCI_VDEVICE(REDHAT_QUMRANET, 0x10ff) },
	{ }
};
MODULE_DEVICE_TABLE(pci, callgate_pci_ids);

static struct pci_driver callgate_pci_driver = {
	.name = "callgate_pci",
	.id_table = callgate_pci_ids,
	.probe = callgate_pci_probe,
	.remove = callgate_pci_remove,
	.driver.pm = pm_sleep_ptr(&callgate_pci_pm_ops),
	.err_handler = &callgate_pci_error_handlers,
};
module_pci_driver(callgate_pci_driver);

MODULE_DESCRIPTION("Calls to PCI devices from user space");
MODULE_AUTHOR("The callgate authors");
MODULE_VERSION("0.1.0");
MODULE_LICENSE("GPL");
