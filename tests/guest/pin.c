/* SPDX-License-Identifier: MIT */
/* Interrupts by the pin, of a device without messages; a device that has calls alone has none. One
 * line for each check that fails; the exit code is 0 when none did.
 */
#include "pin.h"

#include <stdio.h>

#define ADDER_VENDOR 0x1af4
#define ADDER_DEVICE 0x10f0

static int failures;

static void check_at(int line, const char *what, unsigned int seen, unsigned int want)
{
	if (seen == want)
		return;
	failures++;
	printf("line %d: %s is 0x%x, not 0x%x\n", line, what, seen, want);
}

#define CHECK(seen, want) check_at(__LINE__, #seen, (unsigned int)(seen), (unsigned int)(want))

static void levels(struct pin *pin)
{
	struct callgate_interrupt both;

	CHECK(callgate_interrupt_open(&pin->device, PIN_INTERRUPT_FIRST, &both), CALLGATE_ABSENT);
	CHECK(callgate_interrupt_pin_open(&pin->device, &both), CALLGATE_OK);
	CHECK(callgate_interrupt_seen(&both), false);
	pin_write_raised(pin, PIN_INTERRUPT_SECOND);
	CHECK(callgate_interrupt_wait(&pin->device, &both), CALLGATE_OK);
	CHECK(callgate_interrupt_seen(&both), true);
	CHECK(both.count, 2);
	pin_write_raised(pin, PIN_INTERRUPT_FIRST);
	pin_write_settled(pin, PIN_INTERRUPT_SECOND);
	callgate_interrupt_mask(&pin->device, &both, true);
	CHECK(callgate_pci_read(pin->device.function, CALLGATE_PCI_COMMAND, 2) &
		      CALLGATE_PCI_COMMAND_NO_PIN, CALLGATE_PCI_COMMAND_NO_PIN);
	CHECK(callgate_interrupt_seen(&both), true);
	callgate_interrupt_mask(&pin->device, &both, false);
	CHECK(callgate_pci_read(pin->device.function, CALLGATE_PCI_COMMAND, 2) &
		      CALLGATE_PCI_COMMAND_NO_PIN, 0);
	pin_write_settled(pin, PIN_INTERRUPT_FIRST);
	pin->device.patience = 2;
	CHECK(callgate_interrupt_wait(&pin->device, &both), CALLGATE_NO_ANSWER);
	CHECK(both.count, 3);
	callgate_interrupt_close(&pin->device, &both);
	pin_write_raised(pin, PIN_INTERRUPT_FIRST);
	CHECK(callgate_interrupt_seen(&both), false);
	CHECK(callgate_interrupt_pin(pin->device.function), true);
}

static void messages(void)
{
	struct callgate_device adder;
	struct callgate_interrupt message, pin;

	CHECK(callgate_find(&adder, ADDER_VENDOR, ADDER_DEVICE, 0), CALLGATE_OK);
	CHECK(callgate_interrupt_pin_open(&adder, &pin), CALLGATE_OK);
	CHECK(callgate_interrupt_open(&adder, 0, &message), CALLGATE_OK);
	CHECK(callgate_interrupt_pin_open(&adder, &pin), CALLGATE_ABSENT);
	callgate_interrupt_close(&adder, &message);
}

static void none(void)
{
	struct callgate_interrupt pin;
	struct callgate_device calls;

	CHECK(callgate_find_name(&calls, "checksum", 0), CALLGATE_OK);
	CHECK(callgate_interrupt_pin_open(&calls, &pin), CALLGATE_ABSENT);
}

int main(void)
{
	struct pin pin;
	const int status = pin_open(&pin);

	if (status != CALLGATE_OK) {
		printf("pin: %s\n", callgate_word(status));
		return 1;
	}
	levels(&pin);
	messages();
	none();
	printf("%d checks failed\n", failures);
	return failures != 0;
}
