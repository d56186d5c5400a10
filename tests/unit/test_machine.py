# SPDX-License-Identifier: MIT
"""Machine: what it is made of, and what it does not take."""

import threading
from typing import Any

import pytest

from callgate.backends.result import Result
from callgate.device import Device
from callgate.errors import BackendError, PlugError
from callgate.interrupt import Interrupt
from callgate.machine import Machine
from callgate.pci import config as space
from callgate.pci.bus import Place
from callgate.register import Register


class Small(Device):
    id = 0x1AF4, 0x10F0
    value = Register(0)
    done = Interrupt()


def loopback(*devices: Any, **options: Any) -> Machine:
    return Machine(*devices, on="loopback", watch=False, **options)


def test_a_tuple_of_devices_is_one_slot() -> None:
    first, second, third, fourth = (Small() for _ in range(4))
    with loopback((first, second), third, (fourth,)) as machine:
        places = list(machine.bus.functions)
        assert places == [Place(0, 0), Place(1, 0), Place(1, 1), Place(2, 0), Place(3, 0)]
        devices = [function.device for function in machine.functions]
        assert devices == [first, second, third, fourth]
        several = [
            machine.bus.config_read(place, space.HEADER_TYPE, 1) & space.MULTIFUNCTION
            for place in places
        ]
        assert several == [0, space.MULTIFUNCTION, 0, 0, 0]


def test_functions_of_one_slot_share_its_interrupt_line() -> None:
    first, second = Small(), Small()
    with loopback((first, second)) as machine:
        system = machine.system
        system.lines = True
        heard: list[bool] = []
        machine.backend.set_line = lambda gsi, level: heard.append(level)  # type: ignore[method-assign]
        first.done.trigger()
        second.done.trigger()
        first.done.deassert()
        assert heard[-1]  # The other one still pulls it.
        second.done.deassert()
        assert not heard[-1]


def test_what_is_no_slot() -> None:
    with pytest.raises(BackendError, match=r"must be plugged into slot 1 to 31 as function 0 to 7"):
        loopback(tuple(Small() for _ in range(9)))
    with pytest.raises(BackendError, match="slot 1 to 31"):
        loopback(*(Small() for _ in range(32)))
    small = Small()
    with pytest.raises(PlugError, match="small must be unplugged before it is plugged in again"):
        loopback(small, small)
    with loopback(small):  # What failed left nothing plugged in.
        pass


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (Small, r"must be a device, Small\(\), not <class"),
        ((Small,), r"must be a device, Small\(\), not <class"),
        ("device.py", "must be a device, not 'device.py'"),
        ([Small()], "must be a device, not "),
    ],
)
def test_what_is_no_device(given: object, sentence: str) -> None:
    with pytest.raises(TypeError, match=f"What is plugged in {sentence}"):
        loopback(given)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ram": "x"}, "A machine's ram must be a multiple of 4096 bytes, not 'x'"),
        ({"ram": 4096.0}, "A machine's ram must be a multiple of 4096 bytes, not 4096.0"),
        ({"ram": 100}, "A machine's ram must be a multiple of 4096 bytes, not 100"),
        ({"cpus": "2"}, "A machine on loopback must have 1 to 1 processors, not '2'"),
        ({"cpus": 0}, "A machine on loopback must have 1 to 1 processors, not 0"),
        ({"timeout": -1}, "A machine's timeout must be more than 0 seconds, not -1"),
        ({"timeout": 0}, "A machine's timeout must be more than 0 seconds, not 0"),
        ({"timeout": "soon"}, "A machine's timeout must be more than 0 seconds, not 'soon'"),
        ({"timeout": float("nan")}, "A machine's timeout must be more than 0 seconds, not nan"),
        ({"handler_timeout": 0}, "A machine's handler_timeout must be more than 0 seconds, not 0"),
        ({"instructions": 0}, "A machine's instructions must be a number of at least 1, not 0"),
        ({"instructions": 1.5}, "A machine's instructions must be a number of at least 1, not 1.5"),
        ({"on": "bochs"}, "The backend must be one of"),
        ({"arch": "vax"}, "The architecture on loopback must be one of x86_64"),
    ],
)
def test_what_a_machine_cannot_be(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BackendError) as refused:
        Machine(Small(), **{"on": "loopback", **options})
    assert str(refused.value).startswith(sentence)


def test_without_a_processor_a_stop_is_the_end() -> None:
    """Where there is one, it is Stopped: tests/guest/test_unicorn_run.py."""
    with loopback(Small(), timeout=10) as machine:
        machine.stop()
        assert machine.run().exit_code == 0
        found: list[Result] = []
        thread = threading.Thread(target=lambda: found.append(machine.run()))
        thread.start()
        machine.stop()
        thread.join(5)
        assert [result.exit_code for result in found] == [0]
