/* SPDX-License-Identifier: MIT */
/* Carries out single accesses that come as lines over the console, so that a test of the host can
 * be written on the host. Numbers are hexadecimal, without 0x.
 *
 *	r SIZE ADDRESS                  =VALUE          read memory, SIZE 1, 2, 4 or 8
 *	w SIZE ADDRESS VALUE            =               write memory
 *	i SIZE PORT                     =VALUE          read an I/O port, SIZE 1, 2 or 4
 *	o SIZE PORT VALUE               =               write an I/O port
 *	c FUNCTION OFFSET SIZE          =VALUE          read config space
 *	C FUNCTION OFFSET SIZE VALUE    =               write config space
 *	h INSTRUCTION SELECTOR VECTOR A0 A1 A2 A3 A4 A5
 *	                                =STATUS R0 R1 R2 R3 R4 R5
 *	                                hypercall; in 32-bit code A0 to A2 and R0 to R2
 *	m                               =ADDRESS SIZE   RAM that nobody else uses
 *	t INDEX                         =ADDRESS DATA   what an interrupt message shall write
 *	n INDEX                         =COUNT          how often it came
 *	q CODE                          ends with this exit code
 *
 * Anything else, or what this processor cannot do: !
 */
#include <callgate/driver.h>
#include <stdio.h>

#define LINE     160
#define WORDS    10
#define MESSAGES 16
#define SCRATCH  0x40000

static uint8_t scratch[SCRATCH] __attribute__((aligned(4096)));

struct line {
	char command;
	unsigned int count;
	uint64_t word[WORDS];
};

/* Read one line; false: it is none of ours. */
static bool read_line(struct line *line)
{
	unsigned int length;
	bool digits = false, good = true;
	int c;

	*line = (struct line){ 0 };
	for (length = 0; (c = getchar()) != '\n'; length++) {
		if (c == '\r')
			continue;
		if (length == 0) {
			line->command = (char)c;
		} else if (c == ' ') {
			digits = false;
		} else {
			int digit = c >= '0' && c <= '9' ? c - '0' :
				    c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;

			if (!digits && line->count == WORDS)
				good = false;
			if (digit < 0 || length == 1 || !good) {
				good = false;
				continue;
			}
			line->count += !digits;
			digits = true;
			line->word[line->count - 1] = line->word[line->count - 1] << 4 |
						      (unsigned int)digit;
		}
	}
	return good && length > 0 && length < LINE;
}

static bool answer(uint64_t value)
{
	printf("=%llx\n", (unsigned long long)value);
	return true;
}

static bool done(void)
{
	puts("=");
	return true;
}

static bool good_size(uint64_t size, unsigned int largest)
{
	return size <= largest && (size == 1 || size == 2 || size == 4 || size == 8);
}

/* A window that begins at the address, so that the driver's own accessors make the access. */
static struct callgate_bar window(uint64_t address, uint64_t size, bool io)
{
	return (struct callgate_bar){
		.address = address,
		.size = size,
		.io = io,
		.memory = io ? callgate_env_map(0, 0, true, address, size) :
			       (volatile uint8_t *)(uintptr_t)address,
	};
}

static bool hypercall(const struct line *line)
{
	uint64_t slots[CALLGATE_MAX_REGISTER_VALUES] = { 0 };
	uint32_t status;
	unsigned int i;

	for (i = 0; i < CALLGATE_MAX_REGISTER_VALUES; i++)
		slots[i] = line->word[3 + i];
	if (!callgate_arch_hypercall((unsigned int)line->word[0], (uint32_t)line->word[1],
				     (uint32_t)line->word[2], slots, &status))
		return false;
	for (i = CALLGATE_ARCH_VALUES; i < CALLGATE_MAX_REGISTER_VALUES; i++)
		slots[i] = 0;
	printf("=%x", status);
	for (i = 0; i < CALLGATE_MAX_REGISTER_VALUES; i++)
		printf(" %llx", (unsigned long long)slots[i]);
	printf("\n");
	return true;
}

static bool message(const struct line *line)
{
	static struct {
		uint64_t address;
		uint32_t data;
		uint32_t count;
	} messages[MESSAGES];
	static unsigned int opened;
	const uint64_t index = line->word[0];

	if (index >= MESSAGES)
		return false;
	for (; opened <= index; opened++)
		callgate_env_message_open(&messages[opened].address, &messages[opened].data);
	if (line->command == 't') {
		printf("=%llx %x\n", (unsigned long long)messages[index].address,
		       messages[index].data);
		return true;
	}
	messages[index].count += callgate_env_message_take((int)index);
	return answer(messages[index].count);
}

static bool access(const struct line *line)
{
	const bool io = line->command == 'i' || line->command == 'o';
	const unsigned int size = (unsigned int)line->word[0];
	struct callgate_bar at;

	if (!good_size(line->word[0], io ? 4 : 8))
		return false;
	at = window(line->word[1], size, io);
	if (line->command == 'r' || line->command == 'i')
		return answer(callgate_bar_read(&at, 0, size) & UINT64_MAX >> (64 - 8 * size));
	callgate_bar_write(&at, 0, size, line->word[2]);
	return done();
}

static bool config(const struct line *line)
{
	const uint16_t function = (uint16_t)line->word[0];
	const unsigned int offset = (unsigned int)line->word[1];
	const unsigned int size = (unsigned int)line->word[2];
	uint32_t value;

	if (!good_size(line->word[2], 4))
		return false;
	if (line->command == 'c') {
		value = callgate_pci_read(function, offset, size);
		return answer(value & UINT32_MAX >> (32 - 8 * size));
	}
	callgate_pci_write(function, offset, size, (uint32_t)line->word[3]);
	return done();
}

static bool carry_out(const struct line *line)
{
	static const struct {
		char command;
		unsigned int count;
		bool (*run)(const struct line *line);
	} commands[] = {
		{ 'r', 2, access }, { 'w', 3, access }, { 'i', 2, access },  { 'o', 3, access },
		{ 'c', 3, config }, { 'C', 4, config }, { 't', 1, message }, { 'n', 1, message },
		{ 'h', 9, hypercall },
	};
	unsigned int i;

	for (i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (commands[i].command == line->command)
			return commands[i].count == line->count && commands[i].run(line);
	if (line->command != 'm' || line->count)
		return false;
	printf("=%llx %x\n", (unsigned long long)callgate_env_address(scratch), SCRATCH);
	return true;
}

int main(void)
{
	struct line line;

	for (;;) {
		bool good = read_line(&line);

		if (good && line.command == 'q' && line.count == 1)
			return (int)line.word[0];
		if (!good || !carry_out(&line))
			puts("!");
	}
}
