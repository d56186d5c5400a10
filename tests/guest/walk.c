/* SPDX-License-Identifier: MIT */
/* Takes every function of the bus but the host bridge, and says what came of it. */
#include <callgate/driver.h>
#include <stdio.h>

int main(void)
{
	struct callgate_pci_walk walk = { 0 };

	while (callgate_pci_next(&walk)) {
		struct callgate_device dev;
		int status;

		if (walk.function == 0)
			continue;
		status = callgate_probe(&dev, walk.function);
		printf("%x ", walk.function);
		if (status != CALLGATE_OK)
			puts(callgate_word(status));
		else if (!dev.gate)
			puts("no gate");
		else
			printf("OK %s\n", dev.header.name);
	}
	return 0;
}
