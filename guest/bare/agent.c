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
 *	b                               =ADDRESS SIZE   two stretches of RAM of SIZE bytes each: an empty
 *	                                line means that the line stands in the first one, and its
 *	                                answer is put into the second one, each with its end. That
 *	                                takes a tenth of the exits.
 *	t INDEX                         =ADDRESS DATA   what an interrupt message shall write
 *	n INDEX                         =COUNT          how often it came
 *	q CODE                          ends with this exit code
 *
 * Anything else, or what this processor cannot do: !
 */
#include <callgate/driver.h>
#include <stdio.h>

#define LINE     256
#define WORDS    10
#define MESSAGES 16
#define SCRATCH  0x40000

static uint8_t scratch[SCRATCH] __attribute__((aligned(4096)));

static volatile char box[2][LINE];
static bool boxed; /* the line that is carried out stands in there */
static unsigned int box_read, box_written;

static int get(void)
{
	if (!boxed)
		return getchar();
	return box_read < LINE ? box[0][box_read++] : '\n';
}

static void put(char c)
{
	if (!boxed)
		putchar(c);
	else if (box_written < LINE)
		box[1][box_written++] = c;
}

static void put_number(uint64_t value)
{
	unsigned int digits = 1;

	while (digits < 16 && value >> 4 * digits)
		digits++;
	while (digits--)
		put("0123456789abcdef"[value >> 4 * digits & 15]);
}

/* Say what the answer is. The end of the line is what the host waits for. */
static bool answer(unsigned int count, const uint64_t *values)
{
	unsigned int i;

	put('=');
	for (i = 0; i < count; i++) {
		if (i)
			put(' ');
		put_number(values[i]);
	}
	put('\n');
	return true;
}

static bool answer_one(uint64_t value)
{
	return answer(1, &value);
}

static bool answer_two(uint64_t first, uint64_t second)
{
	const uint64_t both[] = { first, second };

	return answer(2, both);
}

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
	boxed = false;
	c = getchar();
	if (c == '\n') {
		boxed = true;
		box_read = box_written = 0;
		c = get();
	}
	for (length = 0; c != '\n'; length++, c = get()) {
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
	uint64_t values[1 + CALLGATE_MAX_REGISTER_VALUES];
	uint32_t status;
	unsigned int i;

	for (i = 0; i < CALLGATE_MAX_REGISTER_VALUES; i++)
		slots[i] = line->word[3 + i];
	if (!callgate_arch_hypercall((unsigned int)line->word[0], (uint32_t)line->word[1],
				     (uint32_t)line->word[2], slots, &status))
		return false;
	values[0] = status;
	for (i = 0; i < CALLGATE_MAX_REGISTER_VALUES; i++)
		values[1 + i] = i < CALLGATE_ARCH_VALUES ? slots[i] : 0;
	return answer(1 + CALLGATE_MAX_REGISTER_VALUES, values);
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
	if (line->command == 't')
		return answer_two(messages[index].address, messages[index].data);
	messages[index].count += callgate_env_message_take((int)index);
	return answer_one(messages[index].count);
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
		return answer_one(callgate_bar_read(&at, 0, size) & UINT64_MAX >> (64 - 8 * size));
	callgate_bar_write(&at, 0, size, line->word[2]);
	return answer(0, NULL);
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
		return answer_one(value & UINT32_MAX >> (32 - 8 * size));
	}
	callgate_pci_write(function, offset, size, (uint32_t)line->word[3]);
	return answer(0, NULL);
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
	if (line->count)
		return false;
	if (line->command == 'm')
		return answer_two(callgate_env_address(scratch), SCRATCH);
	return line->command == 'b' &&
	       answer_two(callgate_env_address((const void *)box), LINE);
}

int main(void)
{
	struct line line;

	for (;;) {
		bool good = read_line(&line);

		if (good && line.command == 'q' && line.count == 1)
			return (int)line.word[0];
		if (!good || !carry_out(&line)) {
			put('!');
			put('\n');
		}
		if (boxed)
			putchar('\n');
	}
}
