/* SPDX-License-Identifier: MIT */
/* The driver side of callgate: C11, freestanding, no library needed.
 *
 *	abi.h          layouts and codes of docs/abi.md, generated
 *	arch.h         the processor: barriers, I/O, hypercalls
 *	environment.h  what the surroundings give: config space, mapping, interrupt messages
 *	pci.h          functions, capabilities, BARs
 *	device.h       finding a device, its registers, its gate
 *	call.h         calls
 *	interrupt.h    MSI-X, MSI, INTx
 */
#ifndef CALLGATE_DRIVER_H
#define CALLGATE_DRIVER_H

#include <callgate/abi.h>
#include <callgate/arch.h>
#include <callgate/call.h>
#include <callgate/device.h>
#include <callgate/environment.h>
#include <callgate/interrupt.h>
#include <callgate/pci.h>

#endif /* CALLGATE_DRIVER_H */
