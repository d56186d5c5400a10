/* SPDX-License-Identifier: MIT */
/* These boards are started with one processor. */
#include "bare.h"

int bare_start_processor(unsigned int number, void (*run)(unsigned int number))
{
	(void)number;
	(void)run;
	return -1;
}
