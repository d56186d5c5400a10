# SPDX-License-Identifier: MIT
"""The reference page of a device."""

import enum

from callgate.call import BufferIn, call, u8, u32
from callgate.device import Device
from callgate.generate import reference
from callgate.interrupt import Interrupt
from callgate.register import Bar, Field, Register


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Sample(Device):
    """A sample.

    With | in it.
    """

    id = 0x1AF4, 0x10FE
    subsystem = 0x1AF4, 0x0001
    window = Bar(1, 0x2000, width=64, prefetchable=True)
    shared = Bar(4, 0x4000, ram=True)
    control = Register(0x08, reset=0x31, doc="this | that")
    on = Field(control, 0)
    mode = Field(control, 4, 7, access="r")
    done = Interrupt("it is done")

    @call
    def measure(self, level: Level, data: BufferIn) -> tuple[u8, u32]:
        """Measure the data."""
        return 0, 0


def test_the_page_says_all_that_is_declared() -> None:
    spec = Sample.spec
    facts = (
        f"`measure(u32,in)->(u8,u32)`, hash {spec.calls[0].hash:#018x}; "
        "3 argument and 2 result slots; flags buffers, registers."
    )
    assert (
        reference(Sample)
        == f"""\
# Sample

A sample.

With | in it.

|  |  |
|---|---|
| PCI id | `1af4:10fe` |
| subsystem | `1af4:0001` |
| class code | `ff0000`, revision 0 |
| name | `sample` |
| ABI | `{spec.uuid}`, version 1 |
| frames | 16 of 4096 bytes |

## BARs

| index | name | kind | size |
|---|---|---|---|
| 1 | `window` | memory, 64 bits, prefetchable | 0x2000 |
| 4 | `shared` | memory, 32 bits, shared memory | 0x4000 |

## Registers

| BAR | offset | name | bits | access | reset |  |
|---|---|---|---|---|---|---|
| 1 | 0x08 | `control` | 32 | rw | 0x31 | this \\| that |
|  |  | `.on` | [0] | rw | 0x1 |  |
|  |  | `.mode` | [4-7] | r | 0x3 |  |

## Interrupts

By MSI-X, INTx.

| index | name |  |
|---|---|---|
| 0 | `done` | it is done |

## Calls

### `measure(level: u32, data: in) -> (u8,u32)`

Measure the data.

{facts}

| Level |  |
|---|---|
| 1 | `LOW` |
| 2 | `HIGH` |
"""
    )


def test_what_is_not_declared_has_no_section() -> None:
    class Bare(Device):
        id = 0x1AF4, 0x10FE

    assert reference(Bare) == (
        "# Bare\n\n|  |  |\n|---|---|\n| PCI id | `1af4:10fe` |\n"
        "| class code | `ff0000`, revision 0 |\n"
    )
