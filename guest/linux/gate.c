// SPDX-License-Identifier: GPL-2.0
/*
 * A gate, from its creation over resets and suspends to its destruction.
 *
 *	callgate_create()	LIVE
 *	callgate_freeze()	LIVE or GONE -> FROZEN	calls in flight end with -EIO, new ones wait
 *	callgate_thaw()		FROZEN -> LIVE		all is read and negotiated anew, or -> GONE
 *	the device reads all ones, callgate_destroy()	-> GONE: calls end with -ENODEV
 *
 * Who uses what a gate maps does so between callgate_enter() and callgate_leave(): as a reader of a
 * percpu_rw_semaphore, of whom no two share a cache line. A freeze is its writer, as that of a file
 * system is: it waits until all are out.
 */
#include <linux/delay.h>
#include <linux/idr.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "internal.h"

#define CALLGATE_MINORS		1024
#define CALLGATE_FEATURES	(CALLGATE_FEATURE_POLLED | CALLGATE_FEATURE_NOTIFY)
#define CALLGATE_INTERRUPTS \
	(CALLGATE_FEATURE_CHANGE_INTERRUPT | CALLGATE_FEATURE_DONE_INTERRUPT)
/* How long destruction waits for calls that the device has not let go of. */
#define CALLGATE_LAST_WAIT_US	100000

static char *transport = "auto";
module_param(transport, charp, 0444);
MODULE_PARM_DESC(transport,
		 "auto, polled, hypercall, pio or mmio, for devices that offer it (default: auto)");

static unsigned int timeout_ms = 10000;
module_param(timeout_ms, uint, 0644);
MODULE_PARM_DESC(timeout_ms, "how long a call is waited for (default: 10000)");

static unsigned int spin_us = 100;
module_param(spin_us, uint, 0644);
MODULE_PARM_DESC(spin_us, "how long of that without sleeping (default: 100)");

static unsigned int max_pending = 64;
module_param(max_pending, uint, 0644);
MODULE_PARM_DESC(max_pending,
		 "how many calls of one open file can be on their way at once (default: 64)");

static DEFINE_IDA(callgate_ida);

/* --- states ----------------------------------------------------------------------------------- */

static void callgate_set_state(struct callgate *gate, enum callgate_state state)
{
	/* Pairs with the acquire in callgate_state(). */
	smp_store_release(&gate->state, state);
}

static void callgate_wake_all(struct callgate *gate)
{
	unsigned int i;

	for (i = 0; i < gate->layout.frame_count; i++)
		wake_up_all(&gate->slots[i].wait);
	wake_up_all(&gate->frame_wait);
	wake_up_all(&gate->thawed);
}

static bool callgate_is_frozen(struct callgate *gate)
{
	return callgate_state(gate) == CALLGATE_FROZEN;
}

static long callgate_wait_thawed(struct callgate *gate, enum callgate_patience patience,
				 unsigned long timeout)
{
	switch (patience) {
	case CALLGATE_SPIN:
		return 0;
	case CALLGATE_SLEEP:
		return wait_event_timeout(gate->thawed, !callgate_is_frozen(gate), timeout);
	default:
		return wait_event_killable_timeout(gate->thawed, !callgate_is_frozen(gate),
						   timeout);
	}
}

/* callgate_enter() for who is not let in at once. */
int callgate_wait_to_enter(struct callgate *gate, enum callgate_patience patience,
			   unsigned int timeout_us)
{
	unsigned long timeout = timeout_us ? usecs_to_jiffies(timeout_us) :
					     msecs_to_jiffies(READ_ONCE(gate->timeout_ms));
	long left;

	while (!callgate_try_enter(gate)) {
		if (callgate_state(gate) == CALLGATE_GONE)
			return -ENODEV;
		/* Frozen, or about to be thawed. */
		if (patience == CALLGATE_SPIN)
			return -EAGAIN;
		left = callgate_wait_thawed(gate, patience, timeout);
		if (left < 0)
			return -EINTR;
		if (!left)
			return -ETIMEDOUT;
		timeout = left;
	}
	return 0;
}

/*
 * The same for who has something to put away, also when the device has gone. False: all frames are
 * being abandoned, or were.
 */
bool callgate_enter_dead(struct callgate *gate)
{
	while (!percpu_down_read_trylock(&gate->users)) {
		if (callgate_state(gate) == CALLGATE_GONE)
			return false;
		wait_event(gate->thawed, callgate_state(gate) != CALLGATE_FROZEN);
	}
	return true;
}

/* Let nobody in any more and wait until all are out; callgate_open_up() lets them in again. */
static void callgate_shut(struct callgate *gate, enum callgate_state state)
{
	lockdep_assert_held(&gate->lock);
	callgate_set_state(gate, state);
	callgate_wake_all(gate);
	if (gate->shut)
		return;
	percpu_down_write(&gate->users);
	/* It is given back by another task: percpu_rwsem_release(), whose arguments changed. */
	rwsem_release(&gate->users.dep_map, _THIS_IP_);
	gate->shut = true;
}

static void callgate_open_up(struct callgate *gate)
{
	if (!gate->shut)
		return;
	rwsem_acquire(&gate->users.dep_map, 0, 1, _THIS_IP_);
	percpu_up_write(&gate->users);
	gate->shut = false;
}

/* Whether this is the first time that a device does so. */
bool callgate_first_lie(struct callgate *gate, enum callgate_lie lie)
{
	if (lie != CALLGATE_NO_ANSWER)
		callgate_count(gate, CALLGATE_COUNT_LIES);
	return !test_bit(lie, &gate->told) && !test_and_set_bit(lie, &gate->told);
}

/* Whether the device has gone, which costs an access to it. */
bool callgate_gone(struct callgate *gate)
{
	if (readl(gate->doorbell + CALLGATE_DOORBELL_REGISTER_DOORBELL) != U32_MAX)
		return false;
	if (cmpxchg(&gate->state, CALLGATE_LIVE, CALLGATE_GONE) == CALLGATE_LIVE) {
		pci_err(gate->pdev, "the gate reads all ones: the device has gone\n");
		callgate_wake_all(gate);
		schedule_work(&gate->change);
	}
	return true;
}

/* --- interrupt and changes -------------------------------------------------------------------- */

static void callgate_tell_change(struct work_struct *work)
{
	struct callgate *gate = container_of(work, struct callgate, change);

	wake_up_interruptible(&gate->poll_wait);
	if (callgate_state(gate) == CALLGATE_GONE) {
		blocking_notifier_call_chain(&gate->notifiers, CALLGATE_EVENT_GONE, gate);
		return;
	}
	callgate_count(gate, CALLGATE_COUNT_CHANGES);
	sysfs_notify(&gate->dev.kobj, NULL, "generation");
	blocking_notifier_call_chain(&gate->notifiers, CALLGATE_EVENT_CHANGE, gate);
}

/* Notice a change of the directory. An odd generation comes before a further one. */
void callgate_look_for_change(struct callgate *gate)
{
	const u32 generation = callgate_generation(gate);

	if (generation & 1 || generation == READ_ONCE(gate->generation))
		return;
	WRITE_ONCE(gate->generation, generation);
	schedule_work(&gate->change);
}

static irqreturn_t callgate_interrupt(int irq, void *data)
{
	struct callgate *gate = data;
	struct callgate_slot *slot;
	unsigned int i;

	callgate_count(gate, CALLGATE_COUNT_INTERRUPTS);
	if (callgate_state(gate) != CALLGATE_LIVE)
		return IRQ_HANDLED;
	/* Who waits is in the queue before he looks at the state; we look the other way round. */
	smp_mb();
	for (i = 0; i < gate->layout.frame_count; i++) {
		slot = &gate->slots[i];
		/* Behind the barrier above. */
		if (waitqueue_active(&slot->wait) &&
		    callgate_frame_state(callgate_frame(gate, i)) == CALLGATE_FRAME_STATE_DONE)
			wake_up(&slot->wait);
	}
	/* Behind the barrier above. */
	if (waitqueue_active(&gate->poll_wait))
		wake_up_interruptible(&gate->poll_wait);
	callgate_look_for_change(gate);
	return IRQ_HANDLED;
}

/* Interrupts are a comfort: without them answers are looked for, and changes found by the way. */
static void callgate_request_interrupt(struct callgate *gate)
{
	const unsigned int index = gate->layout.interrupt;
	struct pci_dev *pdev = gate->pdev;
	int irq, err;

	if (index == CALLGATE_NO_INTERRUPT)
		return;
	if (gate->flags & CALLGATE_MSIX && !pci_dev_msi_enabled(pdev)) {
		err = pci_alloc_irq_vectors(pdev, index + 1, index + 1, PCI_IRQ_MSIX);
		if (err < 0) {
			pci_info(pdev, "no MSI-X for the gate: %pe\n", ERR_PTR(err));
			return;
		}
		gate->owns_vectors = true;
	}
	if (!pdev->msix_enabled)
		return;
	irq = pci_irq_vector(pdev, index);
	err = irq < 0 ? irq : request_irq(irq, callgate_interrupt, 0, dev_name(&gate->dev), gate);
	if (err)
		pci_info(pdev, "no interrupt for the gate: %pe\n", ERR_PTR(err));
	else
		gate->irq = irq;
}

static void callgate_free_interrupt(struct callgate *gate)
{
	if (gate->irq)
		free_irq(gate->irq, gate);
	gate->irq = 0;
	if (gate->owns_vectors)
		pci_free_irq_vectors(gate->pdev);
	gate->owns_vectors = false;
}

/* --- reading and negotiating ------------------------------------------------------------------ */

static int callgate_negotiate(struct callgate *gate, const struct callgate_header *header)
{
	void __iomem *const version = gate->doorbell + CALLGATE_DOORBELL_REGISTER_VERSION;
	void __iomem *const features = gate->doorbell + CALLGATE_DOORBELL_REGISTER_FEATURES;
	const u32 minor = min_t(u32, le16_to_cpu(header->version_minor), CALLGATE_VERSION_MINOR);
	u32 wanted = CALLGATE_FEATURES;

	gate->abi_version = CALLGATE_VERSION_MAJOR << 16 | minor;
	writel(gate->abi_version, version);
	if (readl(version) != gate->abi_version)
		return callgate_gone(gate) ? -ENODEV : -EPROTONOSUPPORT;
	if (gate->irq)
		wanted |= CALLGATE_INTERRUPTS;
	wanted &= le32_to_cpu(header->features);
	writel(wanted, features);
	WRITE_ONCE(gate->features, readl(features) & wanted);
	WRITE_ONCE(gate->doorbell_vector, le32_to_cpu(header->doorbell_vector));
	gate->ways = callgate_find_ways(gate);
	WRITE_ONCE(gate->generation, callgate_generation(gate) & ~1);
	return 0;
}

/* --- creation --------------------------------------------------------------------------------- */

static void callgate_release(struct device *dev)
{
	struct callgate *gate = to_callgate(dev);
	const unsigned int id = dev->id;

	callgate_open_up(gate);
	percpu_free_rwsem(&gate->users);
	callgate_frames_exit(gate);
	free_percpu(gate->counters);
	kfree(gate);
	/* Last: callgate_exit() waits for it. */
	ida_free(&callgate_ida, id);
}

struct class callgate_class = {
	.name = "callgate",
	.dev_groups = callgate_groups,
};

/*
 * Not pci_request_region(): older kernels, as 6.1, release that once more, where it is given back
 * while a driver that used pcim_enable_device() is being unbound.
 */
static int callgate_request_bar(struct pci_dev *pdev, unsigned int bar)
{
	const resource_size_t start = pci_resource_start(pdev, bar);
	const resource_size_t length = pci_resource_len(pdev, bar);
	const struct resource *found;

	if (pci_resource_flags(pdev, bar) & IORESOURCE_IO)
		found = request_region(start, length, "callgate");
	else
		found = request_mem_region(start, length, "callgate");
	return found ? 0 : -EBUSY;
}

static void callgate_release_bar(struct pci_dev *pdev, unsigned int bar)
{
	const resource_size_t start = pci_resource_start(pdev, bar);
	const resource_size_t length = pci_resource_len(pdev, bar);

	if (pci_resource_flags(pdev, bar) & IORESOURCE_IO)
		release_region(start, length);
	else
		release_mem_region(start, length);
}

static int callgate_map(struct callgate *gate)
{
	const struct callgate_place *place = &gate->place;
	struct pci_dev *pdev = gate->pdev;
	int err;

	err = callgate_request_bar(pdev, place->bar);
	if (err)
		return err;
	/* transport.c says why cacheable. */
	gate->memory = memremap(pci_resource_start(pdev, place->bar) + place->offset,
				place->doorbell_offset, MEMREMAP_WB);
	if (!gate->memory)
		goto release;
	gate->doorbell = pci_iomap_range(pdev, place->bar, place->offset + place->doorbell_offset,
					 CALLGATE_DOORBELL_SIZE);
	if (!gate->doorbell)
		goto unmap;
	if (place->pio_bar != CALLGATE_NO_BAR &&
	    !callgate_request_bar(pdev, place->pio_bar)) {
		gate->ports = pci_iomap_range(pdev, place->pio_bar, place->pio_offset,
					      CALLGATE_PIO_SIZE);
		if (!gate->ports)
			callgate_release_bar(pdev, place->pio_bar);
	}
	return 0;

unmap:
	memunmap(gate->memory);
release:
	callgate_release_bar(pdev, place->bar);
	return -ENOMEM;
}

static void callgate_unmap(struct callgate *gate)
{
	const struct callgate_place *place = &gate->place;

	if (gate->ports) {
		pci_iounmap(gate->pdev, gate->ports);
		callgate_release_bar(gate->pdev, place->pio_bar);
	}
	pci_iounmap(gate->pdev, gate->doorbell);
	memunmap(gate->memory);
	callgate_release_bar(gate->pdev, place->bar);
}

static struct callgate *callgate_allocate(struct pci_dev *pdev, unsigned int flags)
{
	struct callgate *gate;
	int id, err;

	gate = kzalloc(sizeof(*gate), GFP_KERNEL);
	if (!gate)
		return ERR_PTR(-ENOMEM);
	id = ida_alloc_max(&callgate_ida, CALLGATE_MINORS - 1, GFP_KERNEL);
	if (id < 0) {
		kfree(gate);
		return ERR_PTR(id);
	}
	gate->pdev = pdev;
	gate->flags = flags;
	gate->state = CALLGATE_LIVE;
	gate->timeout_ms = READ_ONCE(timeout_ms);
	gate->spin_us = READ_ONCE(spin_us);
	gate->max_pending = READ_ONCE(max_pending);
	mutex_init(&gate->lock);
	init_waitqueue_head(&gate->thawed);
	init_waitqueue_head(&gate->frame_wait);
	init_waitqueue_head(&gate->poll_wait);
	BLOCKING_INIT_NOTIFIER_HEAD(&gate->notifiers);
	INIT_WORK(&gate->change, callgate_tell_change);

	device_initialize(&gate->dev);
	gate->dev.id = id;
	gate->dev.class = &callgate_class;
	gate->dev.parent = &pdev->dev;
	gate->dev.release = callgate_release;
	if (flags & CALLGATE_CDEV)
		gate->dev.devt = callgate_devt(id);
	err = dev_set_name(&gate->dev, "callgate%d", id);
	if (!err)
		err = percpu_init_rwsem(&gate->users);
	gate->counters = alloc_percpu(struct callgate_counters);
	if (!err && !gate->counters)
		err = -ENOMEM;
	if (err) {
		put_device(&gate->dev);
		return ERR_PTR(err);
	}
	return gate;
}

/* Make the gate usable; the device is not visible yet. */
static int callgate_set_up(struct callgate *gate)
{
	struct callgate_header header;
	int err, way;

	err = callgate_read_header(gate, &header, &gate->layout);
	if (err) {
		pci_err(gate->pdev, "the gate's header cannot be used: %pe\n", ERR_PTR(err));
		return err;
	}
	memcpy(gate->name, header.name, CALLGATE_NAME_LENGTH);
	memcpy(gate->uuid, header.uuid, sizeof(gate->uuid));
	gate->device_version = le32_to_cpu(header.device_version);
	err = callgate_frames_init(gate);
	if (err)
		return err;
	callgate_request_interrupt(gate);
	err = callgate_negotiate(gate, &header);
	if (err) {
		pci_err(gate->pdev, "the gate does not speak version 1.0: %pe\n", ERR_PTR(err));
		return err;
	}
	way = callgate_parse_way(transport);
	if (way < 0 || !test_bit(way, &gate->ways)) {
		pci_warn(gate->pdev, "transport %s is not there: auto\n", transport);
		way = CALLGATE_WAY_AUTO;
	}
	gate->way = way;
	return 0;
}

static int callgate_show(struct callgate *gate)
{
	int err;

	err = callgate_sysfs_init(gate);
	if (err)
		return err;
	if (gate->flags & CALLGATE_CDEV) {
		cdev_init(&gate->cdev, &callgate_fops);
		gate->cdev.owner = THIS_MODULE;
		err = cdev_device_add(&gate->cdev, &gate->dev);
	} else {
		err = device_add(&gate->dev);
	}
	if (err)
		callgate_sysfs_exit(gate);
	else
		callgate_debugfs_add(gate);
	return err;
}

/**
 * callgate_create() - take the gate of a PCI function into use
 * @pdev: the function, which the caller drives; it is enabled, and a bus master if calls have
 *	buffers
 * @flags: %CALLGATE_CDEV and %CALLGATE_MSIX
 *
 * Finds the gate, requests and maps its BARs (and no others), and agrees with the device on version
 * and features. Where the caller has enabled MSI-X before, with enough vectors to include the
 * gate's (the table's last entry; pci_msix_vec_count() tells), the gate requests that one; with
 * %CALLGATE_MSIX it enables MSI-X by itself, for a caller that has no interrupts of its own.
 *
 * Context: process context, may sleep. Not while the gate of @pdev is in use already.
 * Return: the gate, to be given to callgate_destroy(), or an ERR_PTR():
 *
 * * -ENODEV: the function has no gate, or has gone.
 * * -EIO: its capability or header contradicts itself.
 * * -EPROTONOSUPPORT: it speaks no version that is known here.
 * * -EBUSY: somebody has its BARs.
 * * -ENOMEM, -ENOSPC.
 */
struct callgate *callgate_create(struct pci_dev *pdev, unsigned int flags)
{
	struct callgate_place place;
	struct callgate *gate;
	int err;

	err = callgate_find_place(pdev, &place);
	if (err)
		return ERR_PTR(err);
	gate = callgate_allocate(pdev, flags);
	if (IS_ERR(gate))
		return gate;
	gate->place = place;
	err = callgate_map(gate);
	if (err)
		goto put;
	err = callgate_set_up(gate);
	if (err)
		goto unmap;
	err = callgate_show(gate);
	if (err)
		goto unmap;
	return gate;

unmap:
	callgate_free_interrupt(gate);
	cancel_work_sync(&gate->change);
	callgate_unmap(gate);
put:
	put_device(&gate->dev);
	return ERR_PTR(err);
}
EXPORT_SYMBOL_GPL(callgate_create);

/* --- destruction, reset ----------------------------------------------------------------------- */

/* Wait until the device has let go of all frames. */
static int callgate_lets_go(struct callgate *gate, unsigned int timeout_us)
{
	const ktime_t end = ktime_add_us(ktime_get(), timeout_us);

	for (;;) {
		if (callgate_reclaim_frames(gate))
			return 0;
		if (ktime_after(ktime_get(), end))
			return -ETIMEDOUT;
		usleep_range(50, 500);
	}
}

/**
 * callgate_destroy() - let go of a gate
 * @gate: the gate, of callgate_create(), or NULL
 *
 * Calls in flight end with -ENODEV, and so do all that come later from who still holds the gate.
 * The caller still drives the function, and leaves its interrupts enabled until this returns.
 * Where the device does not let go of calls in flight, it is no bus master any more afterwards.
 *
 * Context: process context, may sleep.
 */
void callgate_destroy(struct callgate *gate)
{
	if (IS_ERR_OR_NULL(gate))
		return;
	mutex_lock(&gate->lock);
	callgate_shut(gate, CALLGATE_GONE);
	mutex_unlock(&gate->lock);

	callgate_debugfs_remove(gate);
	if (gate->flags & CALLGATE_CDEV)
		cdev_device_del(&gate->cdev, &gate->dev);
	else
		device_del(&gate->dev);
	callgate_sysfs_exit(gate);
	callgate_free_interrupt(gate);
	cancel_work_sync(&gate->change);
	callgate_tell_change(&gate->change);

	if (callgate_lets_go(gate, CALLGATE_LAST_WAIT_US)) {
		pci_warn(gate->pdev, "calls are still in flight: no bus mastering any more\n");
		pci_clear_master(gate->pdev);
	}
	callgate_abandon_frames(gate);
	callgate_unmap(gate);
	put_device(&gate->dev);
}
EXPORT_SYMBOL_GPL(callgate_destroy);

static void callgate_destroy_action(void *gate)
{
	callgate_destroy(gate);
}

/**
 * devm_callgate_create() - take the gate of a PCI function into use, until its driver is unbound
 * @pdev: the function
 * @flags: as for callgate_create()
 *
 * Context: process context, may sleep.
 * Return: as callgate_create().
 */
struct callgate *devm_callgate_create(struct pci_dev *pdev, unsigned int flags)
{
	struct callgate *gate = callgate_create(pdev, flags);
	int err;

	if (IS_ERR(gate))
		return gate;
	err = devm_add_action_or_reset(&pdev->dev, callgate_destroy_action, gate);
	return err ? ERR_PTR(err) : gate;
}
EXPORT_SYMBOL_GPL(devm_callgate_create);

/**
 * callgate_freeze() - end all calls, before a reset of the function or a suspend
 * @gate: the gate
 *
 * Calls in flight end with -EIO; who wants to call waits, or is told -EAGAIN where he must not
 * sleep, until callgate_thaw(). A driver calls it from its reset_prepare() and suspend(). It may be
 * called again before callgate_thaw().
 *
 * Context: process context, may sleep.
 */
void callgate_freeze(struct callgate *gate)
{
	mutex_lock(&gate->lock);
	callgate_shut(gate, CALLGATE_FROZEN);
	mutex_unlock(&gate->lock);
}
EXPORT_SYMBOL_GPL(callgate_freeze);

/**
 * callgate_thaw() - let calls begin again, after a reset of the function or a suspend
 * @gate: the gate, frozen by callgate_freeze()
 *
 * The header is read anew, version and features are agreed on again; calls are looked up by name
 * when they are made next. The function's configuration space must be restored.
 *
 * Context: process context, may sleep.
 * Return: 0; or why the device cannot be used any more, and calls end with -ENODEV then: -ENODEV,
 * -EIO (it is not the one that it was) or -EPROTONOSUPPORT.
 */
int callgate_thaw(struct callgate *gate)
{
	struct callgate_header header;
	struct callgate_layout layout;
	int err = 0;

	mutex_lock(&gate->lock);
	if (!callgate_is_frozen(gate))
		goto unlock;
	err = callgate_read_header(gate, &header, &layout);
	if (!err && memcmp(&layout, &gate->layout, sizeof(layout)))
		err = -EIO;
	if (!err)
		err = callgate_negotiate(gate, &header);
	if (err) {
		pci_err(gate->pdev, "the gate cannot be used any more: %pe\n", ERR_PTR(err));
		callgate_set_state(gate, CALLGATE_GONE);
		pci_clear_master(gate->pdev);
		callgate_abandon_frames(gate);
	} else {
		callgate_open_up(gate);
		callgate_set_state(gate, CALLGATE_LIVE);
	}
	wake_up_all(&gate->thawed);
	schedule_work(&gate->change);
unlock:
	mutex_unlock(&gate->lock);
	return err;
}
EXPORT_SYMBOL_GPL(callgate_thaw);

/* --- for who does not drive the function ------------------------------------------------------ */

static int callgate_is_of(struct device *dev, const void *parent)
{
	return dev->parent == parent;
}

/**
 * callgate_get() - find the gate of a PCI function
 * @pdev: the function, whose driver has taken the gate into use
 *
 * For drivers of something else that call this device too. The gate can go away at any time, as the
 * function can be unbound: calls return -ENODEV then.
 *
 * Context: process context, may sleep.
 * Return: the gate, to be given to callgate_put(), or NULL.
 */
struct callgate *callgate_get(struct pci_dev *pdev)
{
	struct device *dev = class_find_device(&callgate_class, NULL, &pdev->dev, callgate_is_of);

	return dev ? to_callgate(dev) : NULL;
}
EXPORT_SYMBOL_GPL(callgate_get);

/**
 * callgate_put() - let go of a gate
 * @gate: the gate, of callgate_get(), or NULL
 *
 * Context: process context, may sleep.
 */
void callgate_put(struct callgate *gate)
{
	if (gate)
		put_device(&gate->dev);
}
EXPORT_SYMBOL_GPL(callgate_put);

/**
 * callgate_payload_size() - bytes of payload that a call carries each way
 * @gate: the gate
 *
 * Return: bytes.
 */
u32 callgate_payload_size(const struct callgate *gate)
{
	return gate->layout.frame_size - CALLGATE_PAYLOAD_OFFSET;
}
EXPORT_SYMBOL_GPL(callgate_payload_size);

/**
 * callgate_drain() - wait until the device has let go of all calls
 * @gate: the gate
 * @timeout_us: how long, in microseconds
 *
 * That is, of those that were posted, and of those whose caller gave up: when it returns 0 the
 * device uses no buffer of a call that ended before.
 *
 * Context: process context, may sleep.
 * Return: 0, -ETIMEDOUT, or -ENODEV: the device has gone, and uses nothing any more once it is no
 * bus master.
 */
int callgate_drain(struct callgate *gate, unsigned int timeout_us)
{
	int err = callgate_enter(gate, CALLGATE_SLEEP, timeout_us);

	if (err)
		return err;
	err = callgate_lets_go(gate, timeout_us);
	callgate_leave(gate);
	return err;
}
EXPORT_SYMBOL_GPL(callgate_drain);

/**
 * callgate_register_notifier() - be told of changes
 * @gate: the gate
 * @nb: told an enum callgate_event, and @gate as its data, in process context
 *
 * Changes are noticed by the gate's interrupt; without one, when a call turns out to be revoked.
 *
 * Context: process context, may sleep.
 * Return: 0, or -EEXIST.
 */
int callgate_register_notifier(struct callgate *gate, struct notifier_block *nb)
{
	return blocking_notifier_chain_register(&gate->notifiers, nb);
}
EXPORT_SYMBOL_GPL(callgate_register_notifier);

/**
 * callgate_unregister_notifier() - be told no more
 * @gate: the gate
 * @nb: what was registered
 *
 * Context: process context, may sleep.
 * Return: 0, or -ENOENT.
 */
int callgate_unregister_notifier(struct callgate *gate, struct notifier_block *nb)
{
	return blocking_notifier_chain_unregister(&gate->notifiers, nb);
}
EXPORT_SYMBOL_GPL(callgate_unregister_notifier);

/* --- the module ------------------------------------------------------------------------------- */

static int __init callgate_init(void)
{
	int err;

	if (callgate_parse_way(transport) < 0) {
		pr_err("callgate: transport must be auto, polled, hypercall, pio or mmio, not %s\n",
		       transport);
		return -EINVAL;
	}
	err = class_register(&callgate_class);
	if (err)
		return err;
	err = callgate_chardev_register(CALLGATE_MINORS);
	if (err) {
		class_unregister(&callgate_class);
		return err;
	}
	callgate_debugfs_register();
	return 0;
}

static void __exit callgate_exit(void)
{
	callgate_debugfs_unregister();
	callgate_chardev_unregister(CALLGATE_MINORS);
	class_unregister(&callgate_class);
	/* What releases the last gates is code of this module. */
	while (!ida_is_empty(&callgate_ida))
		msleep(20);
	ida_destroy(&callgate_ida);
}

module_init(callgate_init);
module_exit(callgate_exit);

MODULE_DESCRIPTION("Synchronous calls to PCI devices");
MODULE_AUTHOR("The callgate authors");
MODULE_VERSION("0.1.0");
MODULE_LICENSE("GPL");
