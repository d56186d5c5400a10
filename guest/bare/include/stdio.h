/* SPDX-License-Identifier: MIT */
/* The console. As much of the C library's <stdio.h> as the guests use. */
#ifndef BARE_STDIO_H
#define BARE_STDIO_H

#include <stdarg.h>

#define EOF (-1)

int putchar(int character);
int puts(const char *text);
int getchar(void); /* waits */

/* %s %c %d %i %u %x %p %%, with h, hh, l, ll and z, a width, and 0 or - before it. */
int printf(const char *format, ...) __attribute__((format(printf, 1, 2)));
int vprintf(const char *format, va_list values) __attribute__((format(printf, 1, 0)));

#endif /* BARE_STDIO_H */
