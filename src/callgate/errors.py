# SPDX-License-Identifier: MIT
"""What callgate raises. Every message is a sentence: what must hold, and what to do.

CallgateError
 +- DeclarationError        a class body is wrong
 +- BackendError            a backend or platform is unknown or lacks something
 +- LoadError               a device file or an ELF file cannot be loaded
 +- PlugError               a device is plugged in nowhere, or twice
 +- Stopped                 the caller stopped the machine before its guest ended
 +- BenchError              something that a bench needs is not there
 +- NotFound                what a driver looks for is not on the bus, or not in the device
 |   +- NotAGate             a gate is not one of version 1, or contradicts itself
 +- NoAnswer                a device did not answer its driver in time
 +- GuestError              the guest stopped in a way that it should not
 |   +- BudgetError         it used up its budget of instructions or time
 +- DmaError                an address range that the guest's memory map does not allow
 |   +- NoMemory            there is none, at least now
 |   +- NoView              it can be read and written, but not mapped as one piece
 |   +- VmmGone             the VMM that has it ended the connection
 +- VectorError             a gate was asked for what it cannot do
 |   +- VectorsExhausted    every vector was issued once
 |   +- DrainTimeout        calls are still in flight (.calls)
 +- CallError               a call was not answered with OK (.status)
     +- NoSuchVector, Revoked, BadCount, BadValue, BadBuffer, BadFrame, Denied, Busy
     +- DeviceError         the device refused on purpose (.code)
     +- DeviceFault, TimedOut
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


class CallgateError(Exception):
    """Base of everything that callgate raises on purpose."""


class DeclarationError(CallgateError):
    """A device's class body is wrong; raised while the class is being defined."""


class BackendError(CallgateError):
    """A backend or platform is unknown, or lacks something that was asked of it."""


class LoadError(CallgateError):
    """A device file or an ELF file cannot be loaded."""


class PlugError(CallgateError):
    """A device is used where it must be plugged in and is not, or is plugged in twice."""


class Stopped(CallgateError):
    """The caller stopped the machine before its guest ended; running it again goes on."""


class BenchError(CallgateError):
    """Something that a bench needs is not there."""


class NotFound(CallgateError):
    """What a driver looks for is not on the bus, or not in the device."""


class NotAGate(NotFound):
    """A gate is not one of version 1 of the call ABI, or what it says contradicts itself."""


class NoAnswer(CallgateError):
    """A frame did not become DONE in time, or the device was reset or has gone.

    The call may have run or not.
    """


class GuestError(CallgateError):
    """The guest stopped in a way that it should not."""


class BudgetError(GuestError):
    """The guest used up its budget of instructions or time."""


class DmaError(CallgateError):
    """An address range that the guest's memory map does not allow."""


class NoMemory(DmaError):
    """A range that is not, or not any more, all memory."""


class NoView(DmaError):
    """Memory that can be read and written, but has no view: not shared, or not in one piece."""


class VmmGone(DmaError):
    """Memory of a VMM that has ended the connection: nobody is left to be at fault."""


class VectorError(CallgateError):
    """A gate, or its machine's vector table, was asked for what it cannot do."""


class VectorsExhausted(VectorError):
    """Every vector of the table was issued once, and none is ever issued again."""


class DrainTimeout(VectorError):
    """The time-out ended before all calls did.

    `calls` names each one that is still in flight.
    """

    def __init__(self, message: str, calls: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.calls = tuple(calls)


class CallError(CallgateError):
    """A call was not answered with OK; `status` is the ABI's code (`callgate.gate.abi.Status`)."""

    status: ClassVar[int] = -1


class NoSuchVector(CallError):
    """The vector was never issued."""

    status = 1


class Revoked(CallError):
    """The vector was issued once and is revoked for ever."""

    status = 2


class BadCount(CallError):
    """The number of arguments is wrong."""

    status = 3


class BadValue(CallError):
    """An argument lies outside its type."""

    status = 4


class BadBuffer(CallError):
    """A buffer lies outside the memory that the device may use."""

    status = 5


class BadFrame(CallError):
    """The frame is malformed."""

    status = 6


class Denied(CallError):
    """The host's filter forbids the call."""

    status = 7


class Busy(CallError):
    """A quota is used up, or the call is draining: try again later."""

    status = 8


class DeviceError(CallError):
    """The device refused on purpose; `code` is the device's own number, of 64 bits.

    A negative one arrives in two's complement: -5 as 2**64 - 5.

    A handler raises it; the driver raises it again on the other side.
    """

    status = 9

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message or f"the device refused the call with its code {code}")
        self.code = code


class DeviceFault(CallError):
    """The device model itself failed; the host's log has the traceback."""

    status = 10


class TimedOut(CallError):
    """The handler took longer than the host allows."""

    status = 11
