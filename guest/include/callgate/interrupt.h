/* SPDX-License-Identifier: MIT */
/* Interrupts: MSI-X (PCI Local Bus 3.0, 6.8.2).
 *
 *	struct callgate_interrupt done;
 *
 *	callgate_interrupt_open(&dev, ADDER_INTERRUPT_DONE, &done);
 *	... start something ...
 *	if (callgate_interrupt_wait(&dev, &done) == CALLGATE_OK)
 *		... done.count, done.last ...
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

struct callgate_interrupt {
	uint64_t entry;   /* offset of its table entry in the BAR */
	uint32_t count;   /* how often it was seen */
	uint32_t last;    /* how often since the wait before */
	int message;      /* the environment's handle; -1: not open */
	uint8_t bar;
};

/* Mask or unmask; what happens while it is masked arrives when it is unmasked. */
static inline void callgate_interrupt_mask(struct callgate_device *dev,
					   struct callgate_interrupt *interrupt, bool masked)
{
	callgate_write32(dev, interrupt->bar, interrupt->entry + CALLGATE_MSIX_ENTRY_CONTROL,
			 masked);
}

/* Direct table entry `index` at this processor, enable MSI-X, unmask. */
static inline int callgate_interrupt_open(struct callgate_device *dev, unsigned int index,
					  struct callgate_interrupt *interrupt)
{
	const uint8_t at = callgate_pci_capability(dev->function, CALLGATE_PCI_CAPABILITY_MSIX, 0);
	uint32_t control, table, data;
	uint64_t address;

	*interrupt = (struct callgate_interrupt){ .message = -1 };
	if (!at)
		return CALLGATE_ABSENT;
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

/* Whether it came since it was last asked; counts. */
static inline bool callgate_interrupt_seen(struct callgate_interrupt *interrupt)
{
	if (interrupt->message < 0)
		return false;
	interrupt->last = callgate_env_message_take(interrupt->message);
	interrupt->count += interrupt->last;
	callgate_arch_load_barrier();
	return interrupt->last;
}

/* Wait until it came. NO_ANSWER after dev->patience rounds. */
static inline int callgate_interrupt_wait(struct callgate_device *dev,
					  struct callgate_interrupt *interrupt)
{
	unsigned int round, look;

	for (round = 0; round < dev->patience; round++) {
		for (look = 0; look < CALLGATE_ROUND; look++) {
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
	if (interrupt->message < 0)
		return;
	callgate_interrupt_mask(dev, interrupt, true);
	callgate_env_message_close(interrupt->message);
	interrupt->message = -1;
}

#endif /* CALLGATE_INTERRUPT_H */
