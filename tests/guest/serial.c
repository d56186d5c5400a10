/* SPDX-License-Identifier: MIT */
/* A driver of the 16550A at 1b36:0002 (QEMU's pci-serial, or ours): looks at the chip as drivers
 * do before they trust it, then sends back what it receives, until it saw as many bytes as the far
 * end is to send. It goes by the interrupts that IIR names, as an interrupt handler does, but asks
 * for them: the boards have no interrupt controller.
 */
#include "serial.h"

#include <stdio.h>

#define BYTES 0x10000u
#define FIFO  16u

#define FCR_FIFOS    0x01u
#define FCR_CLEAR    0x06u
#define FCR_TRIGGER8 0x80u
#define IIR_SOURCE   0x0fu
#define IIR_THRE     0x02u
#define IIR_DATA     0x04u
#define IIR_LINE     0x06u
#define IIR_TIMEOUT  0x0cu
#define IIR_FIFOS    0xc0u
#define LCR_8N1      0x03u
#define LSR_ERRORS   (SERIAL_OE_MASK | SERIAL_PE_MASK | SERIAL_FE_MASK | SERIAL_BI_MASK)
#define EMPTY        (SERIAL_THRE_MASK | SERIAL_TEMT_MASK)
#define OUTPUTS      (SERIAL_DTR_MASK | SERIAL_RTS_MASK | SERIAL_OUT2_MASK)

static struct serial port;
static int failures;

static void check_at(int line, const char *what, unsigned int seen, unsigned int want)
{
	if (seen == want)
		return;
	failures++;
	printf("line %d: %s is 0x%x, not 0x%x\n", line, what, seen, want);
}

#define CHECK(seen, want) check_at(__LINE__, #seen, (unsigned int)(seen), (unsigned int)(want))

static void configure(void)
{
	serial_write_lcr(&port, SERIAL_DLAB_MASK | LCR_8N1);
	serial_write_data(&port, 1); /* 115200 baud */
	serial_write_ier(&port, 0);
	CHECK(serial_read_data(&port), 1);
	CHECK(serial_read_ier(&port), 0);
	serial_write_lcr(&port, LCR_8N1);
	serial_write_iir(&port, FCR_FIFOS | FCR_CLEAR | FCR_TRIGGER8);
}

/* What Linux's autoconfig() asks. */
static void identify(void)
{
	serial_write_ier(&port, 0);
	CHECK(serial_read_ier(&port), 0);
	serial_write_ier(&port, 0xff);
	CHECK(serial_read_ier(&port), 0x0f);
	serial_write_ier(&port, 0);
	serial_write_mcr(&port, SERIAL_LOOP_MASK | SERIAL_OUT2_MASK | SERIAL_RTS_MASK);
	CHECK(serial_read_msr(&port) & 0xf0, SERIAL_DCD_MASK | SERIAL_CTS_MASK);
	serial_write_mcr(&port, 0);
	serial_write_lcr(&port, 0xbf);
	CHECK(serial_read_iir(&port) != 0, true); /* no extended features */
	serial_write_lcr(&port, 0);
	serial_write_iir(&port, 0);
	CHECK(serial_read_iir(&port), SERIAL_NONE_PENDING_MASK);
	serial_write_iir(&port, FCR_FIFOS | 0x20); /* a TI16750 would show bit 5 */
	CHECK(serial_read_iir(&port), IIR_FIFOS | SERIAL_NONE_PENDING_MASK);
	serial_write_scr(&port, 0xa5);
	CHECK(serial_read_scr(&port), 0xa5);
}

/* The THRE interrupt: enabling raises it, IIR takes it back, enabling raises it again. */
static void thre(void)
{
	configure();
	CHECK(serial_read_lsr(&port), EMPTY);
	serial_write_ier(&port, SERIAL_ETBEI_MASK);
	CHECK(serial_read_iir(&port), IIR_FIFOS | IIR_THRE);
	CHECK(serial_read_iir(&port), IIR_FIFOS | SERIAL_NONE_PENDING_MASK);
	serial_write_ier(&port, 0);
	serial_write_ier(&port, SERIAL_ETBEI_MASK);
	CHECK(serial_read_iir(&port), IIR_FIFOS | IIR_THRE);
	serial_write_ier(&port, 0);
}

/* Loopback: the FIFO holds 16, trigger levels, overrun, and what belongs to which interrupt. */
static void loopback(void)
{
	unsigned int i;

	configure();
	serial_write_mcr(&port, SERIAL_LOOP_MASK);
	serial_write_ier(&port, SERIAL_ERBFI_MASK | SERIAL_ELSI_MASK);
	for (i = 0; i < 7; i++)
		serial_write_data(&port, (uint8_t)i);
	CHECK(serial_read_lsr(&port), EMPTY | SERIAL_DR_MASK);
	serial_write_data(&port, 7);
	while ((serial_read_iir(&port) & IIR_SOURCE) == SERIAL_NONE_PENDING_MASK)
		;
	for (i = 8; i < 20; i++)
		serial_write_data(&port, (uint8_t)i);
	CHECK(serial_read_iir(&port), IIR_FIFOS | IIR_LINE);
	CHECK(serial_read_lsr(&port), EMPTY | SERIAL_DR_MASK | SERIAL_OE_MASK);
	CHECK(serial_read_lsr(&port), EMPTY | SERIAL_DR_MASK);
	for (i = 0; serial_read_lsr(&port) & SERIAL_DR_MASK; i++)
		CHECK(serial_read_data(&port), i);
	CHECK(i, FIFO);
	CHECK(serial_read_iir(&port), IIR_FIFOS | SERIAL_NONE_PENDING_MASK);

	/* One that is left alone times out. */
	serial_write_data(&port, 0x5a);
	while ((serial_read_iir(&port) & IIR_SOURCE) != IIR_TIMEOUT)
		;
	CHECK(serial_read_data(&port), 0x5a);
	CHECK(serial_read_iir(&port), IIR_FIFOS | SERIAL_NONE_PENDING_MASK);
	serial_write_ier(&port, 0);
	serial_write_mcr(&port, 0);
}

/* What came in and has not gone out yet. */
static uint8_t ring[FIFO * 256];
static uint32_t received, sent;

static void receive(void)
{
	uint8_t status;

	while (received - sent < sizeof(ring) &&
	       (status = serial_read_lsr(&port)) & SERIAL_DR_MASK) {
		CHECK(status & LSR_ERRORS, 0);
		ring[received++ % sizeof(ring)] = serial_read_data(&port);
	}
}

static void transmit(void)
{
	unsigned int room = FIFO;

	if (!(serial_read_lsr(&port) & SERIAL_THRE_MASK))
		return;
	for (; room && sent != received; room--)
		serial_write_data(&port, ring[sent++ % sizeof(ring)]);
}

static void echo(void)
{
	uint8_t enabled = SERIAL_ERBFI_MASK | SERIAL_ELSI_MASK, iir, want;

	configure();
	serial_write_mcr(&port, OUTPUTS);
	serial_write_ier(&port, enabled);
	puts("ready");
	while (sent != BYTES || !(serial_read_lsr(&port) & SERIAL_TEMT_MASK)) {
		iir = serial_read_iir(&port) & IIR_SOURCE;
		if (iir == IIR_LINE)
			CHECK(serial_read_lsr(&port) & LSR_ERRORS, 0);
		if (iir == IIR_DATA || iir == IIR_TIMEOUT)
			receive();
		if (iir != SERIAL_NONE_PENDING_MASK)
			transmit(); /* also when a full ring keeps the receiver's pending */
		/* As drivers do: ask for THRE while there is something to send. */
		want = enabled & (uint8_t)~SERIAL_ETBEI_MASK;
		if (sent != received)
			want |= SERIAL_ETBEI_MASK;
		if (want != enabled)
			serial_write_ier(&port, enabled = want);
	}
	serial_write_ier(&port, 0);
	serial_write_mcr(&port, 0);
	CHECK(received, BYTES);
}

int main(void)
{
	int status = serial_open(&port);

	if (status != CALLGATE_OK) {
		printf("serial: %s\n", callgate_word(status));
		return 1;
	}
	identify();
	thre();
	loopback();
	echo();
	printf("%u bytes each way, %d checks failed\n", (unsigned int)received, failures);
	return failures != 0;
}
