/* SPDX-License-Identifier: MIT */
/* A driver of the educational device 1234:11e8 (QEMU's edu, or ours) that prints what each part of
 * it does. What it prints depends neither on time nor on which of the two devices it is.
 */
#include "edu.h"

#include <callgate/interrupt.h>

#include <stdio.h>

#define WORD sizeof(uintptr_t) /* the widest access that this processor makes at once */

#define BUFFER      0x40000u
#define BUFFER_SIZE 0x1000u
#define TO_BUFFER   EDU_DMA_START_MASK
#define TO_RAM      (EDU_DMA_START_MASK | EDU_DMA_TO_RAM_MASK)
#define COMPUTED    0x001u
#define TRANSFERRED 0x100u
#define MANY        0x08000000u /* multiplications: long enough to look meanwhile */

#define REVISION    0x08u /* offsets in config space */
#define SUBSYSTEM   0x2cu
#define PIN         0x3du
#define INTX_STATUS 0x08u /* of the status register */

static struct edu edu;
static struct callgate_interrupt message = { .message = -1 };
static _Alignas(BUFFER_SIZE) uint8_t here[BUFFER_SIZE], there[BUFFER_SIZE];

static uint32_t read(uint32_t offset)
{
	return callgate_read32(&edu.device, 0, offset);
}

static void write(uint32_t offset, uint32_t value)
{
	callgate_write32(&edu.device, 0, offset, value);
}

/* --- what it is ------------------------------------------------------------------------------ */

static void identify(void)
{
	const uint16_t function = edu.device.function;

	printf("class and revision 0x%x, subsystem 0x%x, interrupt pin %u\n",
	       callgate_pci_read(function, REVISION, 4), callgate_pci_read(function, SUBSYSTEM, 4),
	       callgate_pci_read(function, PIN, 1));
	printf("BAR 0: 0x%x bytes\n", (unsigned int)edu.device.bars[0].size);
	printf("identification 0x%x\n", edu_read_identification(&edu));
}

static void liveness(uint32_t value)
{
	edu_write_liveness(&edu, value);
	printf("liveness: 0x%x reads 0x%x\n", value, edu_read_liveness(&edu));
}

/* Registers that cannot be read, cannot be written, or do not exist. */
static void elsewhere(void)
{
	static const uint32_t none[] = { 0x0c, 0x28, 0x7c, 0x84, 0xa0, BUFFER, 0xffffc };
	unsigned int i;

	write(EDU_IDENTIFICATION, 1);
	write(EDU_INTERRUPT_STATUS, 1);
	printf("read-only: 0x%x, 0x%x\n", edu_read_identification(&edu),
	       edu_read_interrupt_status(&edu));
	printf("write-only: 0x%x, 0x%x\n", read(EDU_INTERRUPT_RAISE), read(EDU_INTERRUPT_ACK));
	for (i = 0; i < sizeof(none) / sizeof(none[0]); i++) {
		write(none[i], 1);
		printf("nothing at 0x%x: 0x%x\n", none[i], read(none[i]));
	}
}

/* Accesses of 8 bytes, where the processor has them. */
static void wide(void)
{
	static const uint32_t narrow[] = { EDU_IDENTIFICATION, EDU_FACTORIAL, EDU_STATUS,
					   EDU_INTERRUPT_RAISE };
	const struct callgate_device *dev = &edu.device;
	unsigned int i;

	for (i = 0; i < sizeof(narrow) / sizeof(narrow[0]); i++) {
		callgate_write64(dev, 0, narrow[i], 5);
		printf("8 bytes at 0x%x: 0x%lx\n", narrow[i],
		       (unsigned long)callgate_read64(dev, 0, narrow[i]));
	}
	edu_write_dma_count(&edu, 0x1122334455667788);
	printf("8 bytes: 0x%lx, 4 of them read: 0x%x\n", (unsigned long)edu_read_dma_count(&edu),
	       read(EDU_DMA_COUNT));
	write(EDU_DMA_COUNT, 0x99aabbcc);
	printf("8 bytes, 4 of them written: 0x%lx\n", (unsigned long)edu_read_dma_count(&edu));
}

/* --- interrupts ------------------------------------------------------------------------------ */

/* What is raised, and whether by INTx. */
static void print_interrupt(void)
{
	const uint32_t status = callgate_pci_read(edu.device.function, CALLGATE_PCI_STATUS, 2);

	printf("interrupt status 0x%x, INTx %d\n", edu_read_interrupt_status(&edu),
	       !!(status & INTX_STATUS));
}

static void raise(uint32_t bits)
{
	edu_write_interrupt_raise(&edu, bits);
	printf("raise 0x%x: ", bits);
	print_interrupt();
}

static void acknowledge(uint32_t bits)
{
	edu_write_interrupt_ack(&edu, bits);
	printf("acknowledge 0x%x: ", bits);
	print_interrupt();
}

static void wait_for_message(const char *of)
{
	printf("message of %s: %s, ", of,
	       callgate_word(callgate_interrupt_wait(&edu.device, &message)));
	print_interrupt();
}

/* --- factorial ------------------------------------------------------------------------------- */

static uint32_t factorial(uint32_t n)
{
	edu_write_factorial(&edu, n);
	while (edu_read_status(&edu) & EDU_COMPUTING_MASK)
		callgate_arch_pause();
	return edu_read_factorial(&edu);
}

static void factorials(void)
{
	static const uint32_t numbers[] = { 0, 1, 5, 12, 13, 33, 34, 100 };
	unsigned int i;

	for (i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		printf("factorial of %u: 0x%x\n", numbers[i], factorial(numbers[i]));
	edu_write_status(&edu, 0xffffffff);
	printf("status: 0x%x\n", edu_read_status(&edu));
	edu_write_status(&edu, 0);

	edu_write_factorial(&edu, MANY);
	edu_write_factorial(&edu, 5);
	edu_write_status(&edu, EDU_COMPUTED_INTERRUPT_MASK);
	printf("meanwhile: status 0x%x, factorial 0x%x\n", edu_read_status(&edu),
	       edu_read_factorial(&edu));
	while (!edu_read_interrupt_status(&edu))
		callgate_arch_pause();
	printf("then: status 0x%x, factorial 0x%x\n", edu_read_status(&edu),
	       edu_read_factorial(&edu));
	print_interrupt();
	acknowledge(COMPUTED);
	edu_write_status(&edu, 0);
}

/* --- DMA ------------------------------------------------------------------------------------- */

static void set(uint32_t offset, uint64_t value)
{
	callgate_write(&edu.device, 0, offset, WORD, value);
}

static void start(uint64_t source, uint64_t destination, uint64_t count, uint32_t command)
{
	set(EDU_DMA_SOURCE, source);
	set(EDU_DMA_DESTINATION, destination);
	set(EDU_DMA_COUNT, count);
	set(EDU_DMA_COMMAND, command);
}

static void finish(void)
{
	while (read(EDU_DMA_COMMAND) & EDU_DMA_START_MASK)
		callgate_arch_pause();
	callgate_arch_load_barrier();
}

static void dma(uint64_t source, uint64_t destination, uint64_t count, uint32_t command)
{
	start(source, destination, count, command);
	finish();
}

static void fill(uint8_t *memory, uint32_t seed)
{
	unsigned int i;

	for (i = 0; i < BUFFER_SIZE; i++)
		memory[i] = (uint8_t)((i * 2654435761u >> 16) + seed);
}

static uint32_t sum(const uint8_t *memory)
{
	uint32_t sum = 0;
	unsigned int i;

	for (i = 0; i < BUFFER_SIZE; i++)
		sum = sum * 31 + memory[i];
	return sum;
}

static void master(bool on)
{
	const uint16_t function = edu.device.function;
	const uint32_t command = callgate_pci_read(function, CALLGATE_PCI_COMMAND, 2);
	const uint32_t bit = CALLGATE_PCI_COMMAND_MASTER;

	callgate_pci_write(function, CALLGATE_PCI_COMMAND, 2, on ? command | bit : command & ~bit);
}

static void transfers(void)
{
	const uint64_t from = callgate_env_address(here), to = callgate_env_address(there);
	/* An address bit that a device does not have which reaches no more than this memory. */
	const uint64_t masked = from | (uint64_t)1 << (WORD == 8 ? 40 : 28);

	fill(here, 1);
	start(from, BUFFER, BUFFER_SIZE, TO_BUFFER);
	set(EDU_DMA_COUNT, 1); /* too late */
	set(EDU_DMA_COMMAND, TO_RAM);
	printf("meanwhile: command 0x%x, count 0x%x\n", read(EDU_DMA_COMMAND), read(EDU_DMA_COUNT));
	finish();
	printf("then: command 0x%x\n", read(EDU_DMA_COMMAND));
	print_interrupt();
	set(EDU_DMA_COMMAND, EDU_DMA_TO_RAM_MASK);
	printf("a command without start: 0x%x\n", read(EDU_DMA_COMMAND));

	dma(BUFFER, to, BUFFER_SIZE, TO_RAM | EDU_DMA_INTERRUPT_MASK);
	printf("there and back: 0x%x, 0x%x\n", sum(here), sum(there));
	printf("command 0x%x\n", read(EDU_DMA_COMMAND));
	print_interrupt();
	acknowledge(TRANSFERRED);

	/* Addresses that the device does not have, then a piece of the buffer. */
	fill(here, 2);
	dma(masked, BUFFER + 0x100, 0x200, TO_BUFFER);
	dma(BUFFER + 0x180, to + 0x40, 0x7f, TO_RAM);
	printf("a masked address: 0x%x\n", sum(there));

	/* What is not all in the buffer does not move, and ends all the same. */
	dma(from, BUFFER + 8, BUFFER_SIZE, TO_BUFFER);
	dma(BUFFER - 1, to, 8, TO_RAM | EDU_DMA_INTERRUPT_MASK);
	printf("outside of the buffer: 0x%x\n", sum(there));
	print_interrupt();
	acknowledge(TRANSFERRED);

	/* Nor does what may not master the bus; what could not be read is zero. */
	master(false);
	dma(BUFFER, to, BUFFER_SIZE, TO_RAM);
	printf("without bus mastering, to RAM: 0x%x\n", sum(there));
	dma(from, BUFFER + 0x110, 0x10, TO_BUFFER | EDU_DMA_INTERRUPT_MASK);
	print_interrupt();
	acknowledge(TRANSFERRED);
	master(true);
	dma(BUFFER, to, BUFFER_SIZE, TO_RAM);
	printf("without bus mastering, to the buffer: 0x%x\n", sum(there));
}

static void messages(void)
{
	const int status = callgate_interrupt_open(&edu.device, EDU_INTERRUPT_INTR, &message);

	printf("messages: %s\n", callgate_word(status));
	edu_write_interrupt_raise(&edu, 1);
	wait_for_message("one that was raised");
	edu_write_interrupt_raise(&edu, 2);
	wait_for_message("another, not acknowledged");
	acknowledge(3);
	edu_write_status(&edu, EDU_COMPUTED_INTERRUPT_MASK);
	factorial(10);
	wait_for_message("a factorial");
	acknowledge(COMPUTED);
	dma(callgate_env_address(here), BUFFER, 8, TO_BUFFER | EDU_DMA_INTERRUPT_MASK);
	wait_for_message("a DMA");
	acknowledge(TRANSFERRED);
	printf("further messages: %d\n", callgate_interrupt_seen(&message));
}

int main(void)
{
	const int status = edu_open(&edu);

	if (status != CALLGATE_OK) {
		printf("edu: %s\n", callgate_word(status));
		return 1;
	}
	identify();
	liveness(0x12345678);
	liveness(0);
	elsewhere();
	if (WORD == 8)
		wide();
	factorials();
	raise(0x12);
	raise(0x21);
	acknowledge(0x03);
	acknowledge(0xffffffff);
	raise(0); /* nothing is */
	transfers();
	messages();
	return 0;
}
