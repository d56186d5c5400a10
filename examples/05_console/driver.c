// SPDX-License-Identifier: MIT
/*
 * A Linux driver for the console: a terminal over calls, /dev/ttyCG0 and so on.
 *
 *	stty raw -echo < /dev/ttyCG0
 *	cat < /dev/ttyCG0 &
 *	echo hello > /dev/ttyCG0
 *	/sbin/getty -L ttyCG0
 *
 * Each direction has a work item, the only place where its call is made. Interrupts set them off,
 * so that a call, and the frame that it takes, never waits for somebody who types.
 */
#include <linux/callgate.h>
#include <linux/idr.h>
#include <linux/interrupt.h>
#include <linux/kfifo.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/tty.h>
#include <linux/tty_driver.h>
#include <linux/tty_flip.h>
#include <linux/version.h>
#include <linux/workqueue.h>

#define CONSOLE_LINES		16
#define CONSOLE_OUTPUT		4096
/* Until what was read has been passed on, and there is memory for more. */
#define CONSOLE_PAUSE		msecs_to_jiffies(10)
/* Until a call that failed is made again. */
#define CONSOLE_LATER		HZ

#define CONSOLE_INTERRUPT_TYPED	0
#define CONSOLE_INTERRUPT_TAKEN	1

/* The hashes of "write(bytes)->u32" and "read(u32)->bytes". */
#define CONSOLE_WRITE_SIGNATURE	0x4ccbac29ba808eecULL
#define CONSOLE_READ_SIGNATURE	0x053e936572d955e1ULL

/* What a terminal's write() counts in. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0)
#define CONSOLE_COUNT		size_t
#define CONSOLE_COUNTED		ssize_t
#else
#define CONSOLE_COUNT		int
#define CONSOLE_COUNTED		int
#endif

struct console {
	struct tty_port port;	/* holds the last reference to all this */
	struct device *dev;
	int index;		/* /dev/ttyCG<index>; -1: none */
	bool gone;		/* the device is not ours any more; of the port's mutex */
	struct callgate *gate;
	struct notifier_block notifier;
	struct callgate_call *write_call;
	struct callgate_call *read_call;
	u32 size;		/* bytes that a call carries */
	struct work_struct transmit;
	struct delayed_work receive;
	u8 *out;		/* what these work on */
	u8 *in;
	spinlock_t lock;	/* of all below */
	bool running;		/* work may begin */
	bool stuffed;		/* nobody reads: take no more input */
	bool flushed;		/* what @out is a copy of is not in @output any more */
	DECLARE_KFIFO(output, u8, CONSOLE_OUTPUT);
};

static struct tty_driver *console_driver;
/* By index; NULL where the device has gone, and files are still open. */
static DEFINE_IDR(console_consoles);
static DEFINE_MUTEX(console_mutex);

/* --- work ------------------------------------------------------------------------------------- */

static void console_kick_transmit(struct console *console)
{
	unsigned long flags;

	spin_lock_irqsave(&console->lock, flags);
	if (console->running)
		schedule_work(&console->transmit);
	spin_unlock_irqrestore(&console->lock, flags);
}

static void console_kick_receive(struct console *console, unsigned long delay)
{
	unsigned long flags;

	spin_lock_irqsave(&console->lock, flags);
	if (console->running && !console->stuffed)
		schedule_delayed_work(&console->receive, delay);
	spin_unlock_irqrestore(&console->lock, flags);
}

/* Let work begin, or end it and let none begin. With the port's mutex. */
static void console_start(struct console *console)
{
	spin_lock_irq(&console->lock);
	console->running = true;
	spin_unlock_irq(&console->lock);
	/* What came and went meanwhile interrupted nobody. */
	console_kick_transmit(console);
	console_kick_receive(console, 0);
}

static void console_stop(struct console *console)
{
	spin_lock_irq(&console->lock);
	console->running = false;
	spin_unlock_irq(&console->lock);
	cancel_work_sync(&console->transmit);
	cancel_delayed_work_sync(&console->receive);
}

static void console_flush(struct console *console)
{
	unsigned long flags;

	spin_lock_irqsave(&console->lock, flags);
	kfifo_reset(&console->output);
	console->flushed = true;
	spin_unlock_irqrestore(&console->lock, flags);
}

/* Write what lies in console->out; returns how much was taken. */
static unsigned int console_write_out(struct console *console, unsigned int length)
{
	const u64 arg = callgate_bytes(0, length);
	u64 taken = 0;
	/* The far end may be slow: sleep until the device's interrupt. */
	struct callgate_msg msg = {
		.args = &arg,
		.nargs = 1,
		.results = &taken,
		.nresults = 1,
		.flags = CALLGATE_MSG_LONG,
		.in = console->out,
		.in_length = length,
	};
	int err = callgate_call(console->write_call, &msg);

	if (err) {
		/* As a line that leads nowhere does. */
		dev_warn_ratelimited(console->dev, "output is lost: %pe\n", ERR_PTR(err));
		return length;
	}
	return min_t(u64, taken, length);
}

static void console_transmit(struct work_struct *work)
{
	struct console *console = container_of(work, struct console, transmit);
	unsigned int length, taken;

	do {
		spin_lock_irq(&console->lock);
		length = kfifo_out_peek(&console->output, console->out, console->size);
		console->flushed = false;
		spin_unlock_irq(&console->lock);
		if (!length)
			break;
		taken = console_write_out(console, length);
		spin_lock_irq(&console->lock);
		if (!console->flushed)
			taken = kfifo_out(&console->output, console->out, taken);
		spin_unlock_irq(&console->lock);
		/* For the rest there is an interrupt. */
	} while (taken == length);
	tty_port_tty_wakeup(&console->port);
}

/* Read up to @room bytes to where console->in and *@offset say: how many, or an errno. */
static int console_read_in(struct console *console, u32 room, u32 *offset)
{
	const u64 arg = room;
	u64 slot = 0;
	struct callgate_msg msg = {
		.args = &arg,
		.nargs = 1,
		.results = &slot,
		.nresults = 1,
		.out = console->in,
		.out_length = room,
	};
	u32 length;
	int err;

	err = callgate_call(console->read_call, &msg);
	if (!err)
		err = callgate_result_bytes(&msg, slot, offset, &length);
	return err ?: length;
}

static void console_receive(struct work_struct *work)
{
	struct console *console = container_of(work, struct console, receive.work);
	struct tty_port *port = &console->port;
	int room, length;
	u32 offset;

	while (!READ_ONCE(console->stuffed)) {
		/* No more than can be kept: what is not read waits in the device. */
		room = tty_buffer_request_room(port, console->size);
		if (!room) {
			console_kick_receive(console, CONSOLE_PAUSE);
			return;
		}
		length = console_read_in(console, room, &offset);
		if (!length)
			return;
		if (length < 0) {
			dev_warn_ratelimited(console->dev, "no input: %pe\n", ERR_PTR(length));
			if (length != -ENODEV)
				console_kick_receive(console, CONSOLE_LATER);
			return;
		}
		tty_insert_flip_string(port, console->in + offset, length);
		tty_flip_buffer_push(port);
		cond_resched();
	}
}

static irqreturn_t console_typed(int irq, void *data)
{
	console_kick_receive(data, 0);
	return IRQ_HANDLED;
}

static irqreturn_t console_taken(int irq, void *data)
{
	console_kick_transmit(data);
	return IRQ_HANDLED;
}

/* --- the port --------------------------------------------------------------------------------- */

static struct console *to_console(struct tty_port *port)
{
	return container_of(port, struct console, port);
}

/* The first open. With the port's mutex. */
static int console_activate(struct tty_port *port, struct tty_struct *tty)
{
	struct console *console = to_console(port);

	if (console->gone)
		return -ENODEV;
	console->stuffed = false;
	console_start(console);
	return 0;
}

/* The last close, or a hang-up. With the port's mutex. */
static void console_shutdown(struct tty_port *port)
{
	struct console *console = to_console(port);

	console_stop(console);
	console_flush(console);
}

static void console_destruct(struct tty_port *port)
{
	struct console *console = to_console(port);

	if (console->index >= 0) {
		mutex_lock(&console_mutex);
		idr_remove(&console_consoles, console->index);
		mutex_unlock(&console_mutex);
	}
	kfree(console->in);
	kfree(console->out);
	kfree(console);
}

static const struct tty_port_operations console_port_ops = {
	.activate = console_activate,
	.shutdown = console_shutdown,
	.destruct = console_destruct,
};

/* --- the terminal ----------------------------------------------------------------------------- */

static int console_install(struct tty_driver *driver, struct tty_struct *tty)
{
	struct console *console;
	int err;

	mutex_lock(&console_mutex);
	console = idr_find(&console_consoles, tty->index);
	if (console)
		tty_port_get(&console->port);
	mutex_unlock(&console_mutex);
	if (!console)
		return -ENODEV;
	err = tty_port_install(&console->port, driver, tty);
	if (err)
		tty_port_put(&console->port);
	else
		tty->driver_data = console;
	return err;
}

static void console_cleanup(struct tty_struct *tty)
{
	struct console *console = tty->driver_data;

	tty_port_put(&console->port);
}

static int console_open(struct tty_struct *tty, struct file *file)
{
	return tty_port_open(tty->port, tty, file);
}

static void console_close(struct tty_struct *tty, struct file *file)
{
	tty_port_close(tty->port, tty, file);
}

static void console_hangup(struct tty_struct *tty)
{
	tty_port_hangup(tty->port);
}

static CONSOLE_COUNTED console_write(struct tty_struct *tty, const u8 *from, CONSOLE_COUNT count)
{
	struct console *console = tty->driver_data;
	unsigned long flags;

	spin_lock_irqsave(&console->lock, flags);
	count = kfifo_in(&console->output, from, count);
	spin_unlock_irqrestore(&console->lock, flags);
	console_kick_transmit(console);
	return count;
}

static unsigned int console_write_room(struct tty_struct *tty)
{
	struct console *console = tty->driver_data;
	unsigned long flags;
	unsigned int room;

	spin_lock_irqsave(&console->lock, flags);
	room = kfifo_avail(&console->output);
	spin_unlock_irqrestore(&console->lock, flags);
	return room;
}

static unsigned int console_chars_in_buffer(struct tty_struct *tty)
{
	return CONSOLE_OUTPUT - console_write_room(tty);
}

static void console_flush_buffer(struct tty_struct *tty)
{
	console_flush(tty->driver_data);
	tty_wakeup(tty);
}

static void console_stuff(struct console *console, bool stuffed)
{
	spin_lock_irq(&console->lock);
	console->stuffed = stuffed;
	spin_unlock_irq(&console->lock);
}

static void console_throttle(struct tty_struct *tty)
{
	console_stuff(tty->driver_data, true);
}

static void console_unthrottle(struct tty_struct *tty)
{
	console_stuff(tty->driver_data, false);
	console_kick_receive(tty->driver_data, 0);
}

static const struct tty_operations console_ops = {
	.install = console_install,
	.cleanup = console_cleanup,
	.open = console_open,
	.close = console_close,
	.hangup = console_hangup,
	.write = console_write,
	.write_room = console_write_room,
	.chars_in_buffer = console_chars_in_buffer,
	.flush_buffer = console_flush_buffer,
	.throttle = console_throttle,
	.unthrottle = console_unthrottle,
};

/* --- life ------------------------------------------------------------------------------------- */

/* The device has gone without a word: who has the terminal open is told so. */
static int console_notify(struct notifier_block *notifier, unsigned long event, void *gate)
{
	struct console *console = container_of(notifier, struct console, notifier);

	if (event == CALLGATE_EVENT_GONE)
		tty_port_tty_hangup(&console->port, false);
	return NOTIFY_OK;
}

static void console_put(void *console)
{
	tty_port_put(&((struct console *)console)->port);
}

/* The gate, its calls and their buffers. */
static int console_open_gate(struct console *console, struct pci_dev *pdev)
{
	struct device *dev = &pdev->dev;

	console->gate = devm_callgate_create(pdev, 0);
	if (IS_ERR(console->gate))
		return PTR_ERR(console->gate);
	console->write_call = devm_callgate_open(dev, console->gate, "write",
						 CONSOLE_WRITE_SIGNATURE);
	if (IS_ERR(console->write_call))
		return PTR_ERR(console->write_call);
	console->read_call = devm_callgate_open(dev, console->gate, "read",
						CONSOLE_READ_SIGNATURE);
	if (IS_ERR(console->read_call))
		return PTR_ERR(console->read_call);
	console->size = min_t(u32, callgate_payload_size(console->gate), CONSOLE_OUTPUT);
	console->out = kmalloc(console->size, GFP_KERNEL);
	console->in = kmalloc(console->size, GFP_KERNEL);
	return console->out && console->in ? 0 : -ENOMEM;
}

static int console_request_irqs(struct console *console, struct pci_dev *pdev)
{
	int err, vectors;

	/* All of them: the last is the gate's. */
	vectors = pci_msix_vec_count(pdev);
	if (vectors < 0)
		return vectors;
	err = pci_alloc_irq_vectors(pdev, vectors, vectors, PCI_IRQ_MSIX);
	if (err < 0)
		return err;
	err = devm_request_irq(&pdev->dev, pci_irq_vector(pdev, CONSOLE_INTERRUPT_TYPED),
			       console_typed, 0, "console typed", console);
	if (err)
		return err;
	return devm_request_irq(&pdev->dev, pci_irq_vector(pdev, CONSOLE_INTERRUPT_TAKEN),
				console_taken, 0, "console taken", console);
}

/* Nobody finds it any more; nobody else gets its index before all files are closed. */
static void console_hide(struct console *console)
{
	mutex_lock(&console_mutex);
	idr_replace(&console_consoles, NULL, console->index);
	mutex_unlock(&console_mutex);
}

static int console_register(struct console *console)
{
	struct device *tty;
	int index;

	mutex_lock(&console_mutex);
	index = idr_alloc(&console_consoles, console, 0, CONSOLE_LINES, GFP_KERNEL);
	if (index >= 0)
		console->index = index;
	mutex_unlock(&console_mutex);
	if (index < 0)
		return index;
	tty = tty_port_register_device(&console->port, console_driver, index, console->dev);
	if (IS_ERR(tty))
		console_hide(console);
	return PTR_ERR_OR_ZERO(tty);
}

static int console_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct console *console;
	int err;

	console = kzalloc(sizeof(*console), GFP_KERNEL);
	if (!console)
		return -ENOMEM;
	tty_port_init(&console->port);
	console->port.ops = &console_port_ops;
	console->index = -1;
	err = devm_add_action_or_reset(&pdev->dev, console_put, console);
	if (err)
		return err;
	console->dev = &pdev->dev;
	spin_lock_init(&console->lock);
	INIT_KFIFO(console->output);
	INIT_WORK(&console->transmit, console_transmit);
	INIT_DELAYED_WORK(&console->receive, console_receive);
	console->notifier.notifier_call = console_notify;
	pci_set_drvdata(pdev, console);

	err = pcim_enable_device(pdev);
	if (err)
		return err;
	pci_set_master(pdev);
	err = console_request_irqs(console, pdev);
	if (err)
		return err;
	err = console_open_gate(console, pdev);
	if (err)
		return err;
	err = callgate_register_notifier(console->gate, &console->notifier);
	if (err)
		return err;
	err = console_register(console);
	if (err)
		callgate_unregister_notifier(console->gate, &console->notifier);
	return err;
}

/* Files may stay open: they are hung up. */
static void console_remove(struct pci_dev *pdev)
{
	struct console *console = pci_get_drvdata(pdev);
	struct tty_struct *tty;

	console_hide(console);
	/* Who has just found it does not get it open. */
	mutex_lock(&console->port.mutex);
	console->gone = true;
	mutex_unlock(&console->port.mutex);
	callgate_unregister_notifier(console->gate, &console->notifier);
	tty = tty_port_tty_get(&console->port);
	if (tty) {
		tty_vhangup(tty);
		tty_kref_put(tty);
	}
	tty_unregister_device(console_driver, console->index);
}

static int console_suspend(struct device *dev)
{
	struct console *console = dev_get_drvdata(dev);

	/* Calls come to their end first, so that no output is lost, or written twice. */
	mutex_lock(&console->port.mutex);
	console_stop(console);
	callgate_freeze(console->gate);
	mutex_unlock(&console->port.mutex);
	return 0;
}

static int console_resume(struct device *dev)
{
	struct console *console = dev_get_drvdata(dev);
	int err;

	mutex_lock(&console->port.mutex);
	err = callgate_thaw(console->gate);
	if (!err && tty_port_initialized(&console->port))
		console_start(console);
	mutex_unlock(&console->port.mutex);
	return err;
}

static DEFINE_SIMPLE_DEV_PM_OPS(console_pm_ops, console_suspend, console_resume);

static void console_reset_prepare(struct pci_dev *pdev)
{
	console_suspend(&pdev->dev);
}

static void console_reset_done(struct pci_dev *pdev)
{
	console_resume(&pdev->dev);
}

static const struct pci_error_handlers console_error_handlers = {
	.reset_prepare = console_reset_prepare,
	.reset_done = console_reset_done,
};

static const struct pci_device_id console_ids[] = {
	{ PCI_DEVICE(0x1af4, 0x10f4) },
	{ }
};
MODULE_DEVICE_TABLE(pci, console_ids);

static struct pci_driver console_pci_driver = {
	.name = "console",
	.id_table = console_ids,
	.probe = console_probe,
	.remove = console_remove,
	.err_handler = &console_error_handlers,
	.driver.pm = pm_sleep_ptr(&console_pm_ops),
};

static int __init console_init(void)
{
	int err;

	console_driver = tty_alloc_driver(CONSOLE_LINES,
					  TTY_DRIVER_REAL_RAW | TTY_DRIVER_DYNAMIC_DEV);
	if (IS_ERR(console_driver))
		return PTR_ERR(console_driver);
	console_driver->driver_name = "callgate_console";
	console_driver->name = "ttyCG";
	console_driver->type = TTY_DRIVER_TYPE_SERIAL;
	console_driver->subtype = SERIAL_TYPE_NORMAL;
	console_driver->init_termios = tty_std_termios;
	/* There is no carrier to wait for. */
	console_driver->init_termios.c_cflag |= CLOCAL;
	tty_set_operations(console_driver, &console_ops);
	err = tty_register_driver(console_driver);
	if (err)
		goto put;
	err = pci_register_driver(&console_pci_driver);
	if (err)
		goto unregister;
	return 0;

unregister:
	tty_unregister_driver(console_driver);
put:
	tty_driver_kref_put(console_driver);
	return err;
}

static void __exit console_exit(void)
{
	pci_unregister_driver(&console_pci_driver);
	tty_unregister_driver(console_driver);
	tty_driver_kref_put(console_driver);
	idr_destroy(&console_consoles);
}

module_init(console_init);
module_exit(console_exit);

MODULE_DESCRIPTION("The console, an example for callgate");
MODULE_LICENSE("Dual MIT/GPL");
