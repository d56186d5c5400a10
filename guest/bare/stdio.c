/* SPDX-License-Identifier: MIT */
#include "bare.h"
#include "board.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* What of a line was written. */
static char line[64];
static size_t held;

void bare_flush(void)
{
	board_write(line, held);
	held = 0;
}

int putchar(int character)
{
	line[held++] = (char)character;
	if (character == '\n' || held == sizeof(line))
		bare_flush();
	return (unsigned char)character;
}

int puts(const char *text)
{
	return printf("%s\n", text);
}

int getchar(void)
{
	bare_flush();
	return board_get();
}

/* One conversion: text, padded to its width. */
struct field {
	const char *text;
	size_t length;
	size_t width;
	bool left;
	bool zeros;
};

static int put_field(const struct field *field)
{
	size_t pad = field->width > field->length ? field->width - field->length : 0;
	int count = (int)(pad + field->length);
	const char *text = field->text;
	size_t length = field->length;

	if (field->zeros && length && *text == '-') {
		putchar(*text++);
		length--;
	}
	for (; !field->left && pad; pad--)
		putchar(field->zeros ? '0' : ' ');
	for (; length; length--)
		putchar(*text++);
	for (; pad; pad--)
		putchar(' ');
	return count;
}

/* Digits of a number, written backwards from `end`. */
static char *digits(char *end, uint64_t value, unsigned int base)
{
	do
		*--end = "0123456789abcdef"[value % base];
	while (value /= base);
	return end;
}

static uint64_t next_unsigned(va_list *values, unsigned int longs)
{
	if (longs == 0)
		return va_arg(*values, unsigned int);
	return longs == 1 ? va_arg(*values, unsigned long) : va_arg(*values, unsigned long long);
}

static int64_t next_signed(va_list *values, unsigned int longs)
{
	if (longs == 0)
		return va_arg(*values, int);
	return longs == 1 ? va_arg(*values, long) : va_arg(*values, long long);
}

int vprintf(const char *format, va_list values)
{
	va_list rest;
	int count = 0;

	va_copy(rest, values);
	for (; *format; format++) {
		struct field field = { 0 };
		unsigned int longs = 0;
		char buffer[24];
		char *end = buffer + sizeof(buffer);
		int64_t number;

		if (*format != '%') {
			putchar(*format);
			count++;
			continue;
		}
		for (format++; *format == '-' || *format == '0'; format++) {
			field.left |= *format == '-';
			field.zeros |= *format == '0';
		}
		for (; *format >= '0' && *format <= '9'; format++)
			field.width = field.width * 10 + (size_t)(*format - '0');
		for (; *format == 'l' || *format == 'h' || *format == 'z'; format++)
			longs += *format == 'h' ? 0 : 1;
		field.text = end;
		switch (*format) {
		case 's':
			field.text = va_arg(rest, const char *);
			field.length = strlen(field.text);
			break;
		case 'c':
			*--end = (char)va_arg(rest, int);
			break;
		case 'd':
		case 'i':
			number = next_signed(&rest, longs);
			end = digits(end, number < 0 ? -(uint64_t)number : (uint64_t)number, 10);
			if (number < 0)
				*--end = '-';
			break;
		case 'u':
			end = digits(end, next_unsigned(&rest, longs), 10);
			break;
		case 'x':
			end = digits(end, next_unsigned(&rest, longs), 16);
			break;
		case 'p':
			end = digits(end, (uintptr_t)va_arg(rest, void *), 16);
			*--end = 'x';
			*--end = '0';
			break;
		case '%':
			*--end = '%';
			break;
		default: /* a conversion that we lack shows itself */
			va_end(rest);
			return count + printf("%%?\n");
		}
		if (*format != 's') {
			field.text = end;
			field.length = (size_t)(buffer + sizeof(buffer) - end);
		}
		count += put_field(&field);
	}
	va_end(rest);
	return count;
}

int printf(const char *format, ...)
{
	va_list values;
	int count;

	va_start(values, format);
	count = vprintf(format, values);
	va_end(values);
	return count;
}
