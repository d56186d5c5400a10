/* SPDX-License-Identifier: MIT */
/* Interrupts: by MSI-X (PCI Local Bus 3.0, 6.8.2), or by MSI (6.8.1) where there is no MSI-X.
 *
 *	struct callgate_interrupt done;
 *
 *	callgate_interrupt_open(&dev, ADDER_INTERRUPT_DONE, &done);
 *	... start something ...
 *	if (callgate_interrupt_wait(&dev, &done) == CALLGATE_OK)
 *		... done.count, done.last ...
 *
 * By MSI-X each interrupt has a message. By MSI the function is granted one vector, which all its
 * interrupts share: one of them is open at a time, and it comes for all.
 *
 * Without either there is the function's pin (INTx), which is polled:
 *
 *	if (callgate_interrupt_open(&dev, ADDER_INTERRUPT_DONE, &done) == CALLGATE_ABSENT)
 *		status = callgate_interrupt_pin_open(&dev, &done);
 */
#ifndef CALLGATE_INTERRUPT_H
#define CALLGATE_INTERRUPT_H

#include <callgate/device.h>

#define CALLGATE_MSIX_CONTROL 0x02u
#define CALLGATE_MSIX_TABLE   0x04u
#define CALLGATE_MSIX_ENABLE  0x8000u
#define CALLGATE_MSIX_MASKED  0x4000u
#define CALLGATE_MSIX_LAST    0x07ffu

#define CALLGATE_MSIX_ENTRY_SIZE    16u
#define CALLGATE_MSIX_ENTRY_ADDRESS 0u
#define CALLGATE_MSIX_ENTRY_DATA    8u
#define CALLGATE_MSIX_ENTRY_CONTROL 12u

#define CALLGATE_MSI_CONTROL 0x02u
#define CALLGATE_MSI_ADDRESS 0x04u
#define CALLGATE_MSI_ENABLE  0x0001u
#define CALLGATE_MSI_GRANTED 0x0070u /* logarithm of the number of vectors */
#define CALLGATE_MSI_WIDE    0x0080u /* a 64-bit address: what follows is 4 bytes further on */
#define CALLGATE_MSI_MASKING 0x0100u

struct callgate_interrupt {
	uint64_t entry;   /* MSI-X: offset of its table entry in the BAR */
	uint32_t count;   /* how often it was seen */
	uint32_t last;    /* how often since the wait before */
	int message;      /* the environment's handle; -1: not open */
	uint8_t bar;
	uint8_t msi;      /* MSI: where the capability is; 0: MSI-X */
	uint8_t mask;     /* MSI: where its mask bits are; 0: it has none */
	bool pin;         /* it is the pin of `function` */
	uint16_t function;
};

/* The level of the function's pin, whether or not it is masked (6.2.3). */
static inline bool callgate_interrupt_pin(uint16_t function)
{
	return callgate_pci_read(function, CALLGATE_PCI_STATUS, 2) & CALLGATE_PCI_STATUS_PIN;
}

/* Mask or unmask; what happens while it is masked arrives when it is unmasked. MSI without masks
 * has no way to do so (6.8.1.3). Of a pin this is what an interrupt controller sees of it.
 */
static inline void callgate_interrupt_mask(struct callgate_device *dev,
					   struct callgate_interrupt *interrupt, bool masked)
{
	if (interrupt->pin)
		callgate_pci_change(dev->function, masked ? 0 : CALLGATE_PCI_COMMAND_NO_PIN,
				    masked ? CALLGATE_PCI_COMMAND_NO_PIN : 0);
	else if (!interrupt->msi)
		callgate_write32(dev, interrupt->bar,
				 interrupt->entry + CALLGATE_MSIX_ENTRY_CONTROL, masked);
	else if (interrupt->mask)
		callgate_pci_write(dev->function, interrupt->mask, 4, masked);
}

static inline int callgate_msi_open(struct callgate_device *dev,
				    struct callgate_interrupt *interrupt)
{
	const uint8_t at = callgate_pci_capability(dev->function, CALLGATE_PCI_CAPABILITY_MSI, 0);
	unsigned int data_at = at + CALLGATE_MSI_ADDRESS + 4u;
	uint32_t control, data;
	uint64_t address;

	if (!at)
		return CALLGATE_ABSENT;
	control = callgate_pci_read(dev->function, at + CALLGATE_MSI_CONTROL, 2);
	if (control & CALLGATE_MSI_ENABLE)
		return CALLGATE_ABSENT; /* its message is another one's */
	interrupt->message = callgate_env_message_open(&address, &data);
	if (interrupt->message < 0)
		return CALLGATE_ABSENT;
	if (address >> 32 && !(control & CALLGATE_MSI_WIDE)) {
		callgate_env_message_close(interrupt->message);
		interrupt->message = -1;
		return CALLGATE_ABSENT;
	}
	callgate_pci_write(dev->function, at + CALLGATE_MSI_ADDRESS, 4, (uint32_t)address);
	if (control & CALLGATE_MSI_WIDE) {
		callgate_pci_write(dev->function, data_at, 4, (uint32_t)(address >> 32));
		data_at += 4;
	}
	callgate_pci_write(dev->function, data_at, 2, data);
	interrupt->msi = at;
	if (control & CALLGATE_MSI_MASKING)
		interrupt->mask = (uint8_t)(data_at + 4);
	callgate_interrupt_mask(dev, interrupt, false);
	control = (control | CALLGATE_MSI_ENABLE) & ~CALLGATE_MSI_GRANTED;
	callgate_pci_write(dev->function, at + CALLGATE_MSI_CONTROL, 2, control);
	return CALLGATE_OK;
}

/* Direct interrupt `index` at this processor, by MSI-X or MSI, and unmask it. */
static inline int callgate_interrupt_open(struct callgate_device *dev, unsigned int index,
					  struct callgate_interrupt *interrupt)
{
	const uint8_t at = callgate_pci_capability(dev->function, CALLGATE_PCI_CAPABILITY_MSIX, 0);
	uint32_t control, table, data;
	uint64_t address;

	*interrupt = (struct callgate_interrupt){ .message = -1 };
	if (!at)
		return callgate_msi_open(dev, interrupt);
	control = callgate_pci_read(dev->function, at + CALLGATE_MSIX_CONTROL, 2);
	table = callgate_pci_read(dev->function, at + CALLGATE_MSIX_TABLE, 4);
	if (index > (control & CALLGATE_MSIX_LAST))
		return CALLGATE_ABSENT;
	interrupt->entry = (table & ~7u) + (uint64_t)index * CALLGATE_MSIX_ENTRY_SIZE;
	interrupt->bar = table & 7;
	if (interrupt->bar >= CALLGATE_PCI_BARS ||
	    !callgate_bar_holds(&dev->bars[interrupt->bar], interrupt->entry,
				CALLGATE_MSIX_ENTRY_SIZE))
		return CALLGATE_MALFORMED;
	interrupt->message = callgate_env_message_open(&address, &data);
	if (interrupt->message < 0)
		return CALLGATE_ABSENT;
	callgate_interrupt_mask(dev, interrupt, true);
	callgate_write32(dev, interrupt->bar, interrupt->entry + CALLGATE_MSIX_ENTRY_ADDRESS,
			 (uint32_t)address);
	callgate_write32(dev, interrupt->bar, interrupt->entry + CALLGATE_MSIX_ENTRY_ADDRESS + 4,
			 (uint32_t)(address >> 32));
	callgate_write32(dev, interrupt->bar, interrupt->entry + CALLGATE_MSIX_ENTRY_DATA, data);
	control = (control | CALLGATE_MSIX_ENABLE) & ~CALLGATE_MSIX_MASKED;
	callgate_pci_write(dev->function, at + CALLGATE_MSIX_CONTROL, 2, control);
	callgate_interrupt_mask(dev, interrupt, false);
	return CALLGATE_OK;
}

/* Be told of the function's interrupts by its pin. They share it, and it stays asserted until the
 * driver has told the device, by a register of the device's own, that what asserted it is settled.
 * ABSENT: the function has no pin, or its interrupts come as messages.
 */
static inline int callgate_interrupt_pin_open(struct callgate_device *dev,
					      struct callgate_interrupt *interrupt)
{
	const uint16_t function = dev->function;
	const uint8_t msix = callgate_pci_capability(function, CALLGATE_PCI_CAPABILITY_MSIX, 0);
	const uint8_t msi = callgate_pci_capability(function, CALLGATE_PCI_CAPABILITY_MSI, 0);

	*interrupt = (struct callgate_interrupt){ .message = -1 };
	if (!callgate_pci_read(function, CALLGATE_PCI_INTERRUPT_PIN, 1))
		return CALLGATE_ABSENT;
	if (msix && callgate_pci_read(function, msix + CALLGATE_MSIX_CONTROL, 2) &
			    CALLGATE_MSIX_ENABLE)
		return CALLGATE_ABSENT;
	if (msi && callgate_pci_read(function, msi + CALLGATE_MSI_CONTROL, 2) &
			   CALLGATE_MSI_ENABLE)
		return CALLGATE_ABSENT;
	interrupt->pin = true;
	interrupt->function = function;
	return CALLGATE_OK;
}

/* Whether it came since it was last asked; counts. A pin is there as long as it is asserted. */
static inline bool callgate_interrupt_seen(struct callgate_interrupt *interrupt)
{
	if (interrupt->pin)
		interrupt->last = callgate_interrupt_pin(interrupt->function);
	else if (interrupt->message < 0)
		return false;
	else
		interrupt->last = callgate_env_message_take(interrupt->message);
	interrupt->count += interrupt->last;
	callgate_arch_load_barrier();
	return interrupt->last;
}

/* Wait until it came. NO_ANSWER after dev->patience rounds. */
static inline int callgate_interrupt_wait(struct callgate_device *dev,
					  struct callgate_interrupt *interrupt)
{
	/* A look at a pin traps, so it takes as long as many at memory. */
	const unsigned int looks = interrupt->pin ? 1 : CALLGATE_ROUND;
	unsigned int round, look;

	for (round = 0; round < dev->patience; round++) {
		for (look = 0; look < looks; look++) {
			if (callgate_interrupt_seen(interrupt))
				return CALLGATE_OK;
			callgate_arch_pause();
		}
		if (!callgate_pci_present(dev->function))
			return CALLGATE_GONE;
	}
	return CALLGATE_NO_ANSWER;
}

static inline void callgate_interrupt_close(struct callgate_device *dev,
					    struct callgate_interrupt *interrupt)
{
	interrupt->pin = false;
	if (interrupt->message < 0)
		return;
	callgate_interrupt_mask(dev, interrupt, true);
	if (interrupt->msi)
		callgate_pci_write(dev->function, interrupt->msi + CALLGATE_MSI_CONTROL, 2, 0);
	callgate_env_message_close(interrupt->message);
	interrupt->message = -1;
}

#endif /* CALLGATE_INTERRUPT_H */
