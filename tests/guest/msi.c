/* SPDX-License-Identifier: MIT */
/* Interrupts by MSI, where there is no MSI-X: one message for all of them, its mask and its pending
 * bit, and INTx when it is closed. One line for each check that fails; the exit code is 0 when none
 * did.
 */
#include "msi.h"

#include <callgate/interrupt.h>

#include <stdio.h>

#define CONTROL 0x02u /* offsets in the capability, with a 64-bit address */
#define PENDING 0x14u

static struct msi msi;
static int failures;

static void check_at(int line, const char *what, unsigned int seen, unsigned int want)
{
	if (seen == want)
		return;
	failures++;
	printf("line %d: %s is 0x%x, not 0x%x\n", line, what, seen, want);
}

#define CHECK(seen, want) check_at(__LINE__, #seen, (unsigned int)(seen), (unsigned int)(want))

static uint32_t pending(const struct callgate_interrupt *interrupt)
{
	return callgate_pci_read(msi.device.function, interrupt->msi + PENDING, 4);
}

static bool intx(void)
{
	return callgate_interrupt_pin(msi.device.function);
}

static void one_message(struct callgate_interrupt *all)
{
	struct callgate_interrupt other;

	CHECK(callgate_interrupt_open(&msi.device, MSI_INTERRUPT_FIRST, all), CALLGATE_OK);
	CHECK(callgate_pci_read(msi.device.function, all->msi + CONTROL, 2), 0x183);
	CHECK(callgate_interrupt_open(&msi.device, MSI_INTERRUPT_SECOND, &other), CALLGATE_ABSENT);
	CHECK(callgate_interrupt_seen(all), false);
	msi_write_raised(&msi, MSI_INTERRUPT_FIRST);
	CHECK(callgate_interrupt_wait(&msi.device, all), CALLGATE_OK);
	msi_write_raised(&msi, MSI_INTERRUPT_SECOND);
	CHECK(callgate_interrupt_wait(&msi.device, all), CALLGATE_OK);
	CHECK(all->count, 2);
	CHECK(intx(), false);
}

static void masked(struct callgate_interrupt *all)
{
	const uint32_t patience = msi.device.patience;

	callgate_interrupt_mask(&msi.device, all, true);
	msi_write_raised(&msi, MSI_INTERRUPT_FIRST);
	msi_write_raised(&msi, MSI_INTERRUPT_SECOND);
	msi.device.patience = 2;
	CHECK(callgate_interrupt_wait(&msi.device, all), CALLGATE_NO_ANSWER);
	msi.device.patience = patience;
	CHECK(pending(all), 1);
	callgate_interrupt_mask(&msi.device, all, false);
	CHECK(callgate_interrupt_wait(&msi.device, all), CALLGATE_OK);
	CHECK(callgate_interrupt_seen(all), false); /* one bit, so one message */
	CHECK(pending(all), 0);

	callgate_interrupt_mask(&msi.device, all, true);
	msi_write_raised(&msi, MSI_INTERRUPT_SECOND);
	CHECK(pending(all), 1);
	msi_write_settled(&msi, MSI_INTERRUPT_SECOND);
	CHECK(pending(all), 0);
	callgate_interrupt_mask(&msi.device, all, false);
	CHECK(callgate_interrupt_seen(all), false);
}

int main(void)
{
	struct callgate_interrupt all;
	const int status = msi_open(&msi);

	if (status != CALLGATE_OK) {
		printf("msi: %s\n", callgate_word(status));
		return 1;
	}
	one_message(&all);
	masked(&all);
	callgate_interrupt_close(&msi.device, &all);
	msi_write_raised(&msi, MSI_INTERRUPT_FIRST);
	CHECK(intx(), true);
	msi_write_settled(&msi, MSI_INTERRUPT_FIRST);
	CHECK(intx(), false);
	one_message(&all);
	printf("%d checks failed\n", failures);
	return failures != 0;
}
