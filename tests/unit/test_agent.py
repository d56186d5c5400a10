# SPDX-License-Identifier: MIT
"""AgentDoor: each access is a line, as the agent's source tells; what is no answer is an error."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from callgate.errors import GuestError
from callgate.gate.abi import Instruction, Status
from callgate.machine import Machine
from callgate.memory import GuestMemory
from callgate.testing.agent import AgentDoor

SCRATCH = 0x10_0000


class Agent:
    """Stands for the guest: answers what it was told to, and keeps what it was asked."""

    def __init__(self, bits: int = 64) -> None:
        self.lines: list[str] = []
        self.answers: dict[str, str] = {"m": f"={SCRATCH:x} 1000"}
        self.default = "="
        memory = GuestMemory()
        memory.add(SCRATCH, bytearray(0x1000))
        board = SimpleNamespace(bits=bits)
        self.machine = SimpleNamespace(memory=memory, board=board, exchange=self.exchange)

    def exchange(self, line: bytes) -> bytes:
        self.lines.append(line.decode())
        return self.answers.get(line.decode(), self.default).encode()

    def door(self) -> AgentDoor:
        return AgentDoor(cast(Machine, self.machine))


@pytest.mark.parametrize(
    ("access", "line", "answer", "value"),
    [
        (lambda door: door.read(0xC000_0010, 4), "r 4 c0000010", "=12ab", 0x12AB),
        (lambda door: door.write(0x10, 8, (1 << 64) - 1), f"w 8 10 {'f' * 16}", "=", None),
        (lambda door: door.io_read(0xC000, 2), "i 2 c000", "=ffff", 0xFFFF),
        (lambda door: door.io_write(0xC000, 1, 7), "o 1 c000 7", "=", None),
        (lambda door: door.config_read(0x08, 0x10, 4), "c 8 10 4", "=0", 0),
        (lambda door: door.config_write(0x08, 4, 2, 6), "C 8 4 2 6", "=", None),
        (
            lambda door: door.hypercall(Instruction.HVC, 0xC600_CA11, 0x123, (1, 2)),
            "h 4 c600ca11 123 1 2 0 0 0 0",
            "=9 1 2 3 4 5 6",
            (Status.DEVICE_ERROR, (1, 2, 3, 4, 5, 6)),
        ),
        (
            lambda door: door.hypercall(Instruction.ECALL, 1, 2, ()),
            "h 5 1 2 0 0 0 0 0 0",
            "=63 0 0 0 0 0 0",
            (0x63, (0,) * 6),
        ),
        (lambda door: door.message(3), "t 3", "=fee00000 43", (0xFEE0_0000, 0x43)),
        (lambda door: door.messages(3), "n 3", "=a", 10),
        (lambda door: door.map(SCRATCH, 4), "m", None, None),
    ],
)
def test_an_access_is_a_line(
    access: Callable[[AgentDoor], Any], line: str, answer: str | None, value: object
) -> None:
    agent = Agent()
    door = agent.door()
    if answer is not None:
        agent.answers[line] = answer
    assert access(door) == value
    assert agent.lines[-1] == line


def test_memory_is_the_agents_own_and_seen_from_the_host() -> None:
    agent = Agent()
    door = agent.door()
    first, second = door.allocate(3), door.allocate(100)
    assert (first.gpa, second.gpa) == (SCRATCH, SCRATCH + 64)
    door.store(first.gpa, b"abc")
    assert door.load(first.gpa, 4) == b"abc\0"
    assert agent.lines == ["m"]
    with pytest.raises(MemoryError, match="4096 bytes for DMA are more than the agent has left"):
        door.allocate(4096)
    door.restart()
    assert door.allocate(3).gpa == SCRATCH
    assert door.load(SCRATCH, 3) == bytes(3), "given out empty"


def test_registers_are_those_of_the_processor() -> None:
    assert Agent(64).door().register_slots == 6
    assert Agent(32).door().register_slots == 3


@pytest.mark.parametrize("answer", ["!", "", "guest: exception 0xe at 0x1000, address 0x0"])
def test_what_is_no_answer_is_an_error(answer: str) -> None:
    agent = Agent()
    door = agent.door()
    agent.default = answer
    with pytest.raises(GuestError, match="must carry out 'r 4 0', and it answered"):
        door.read(0, 4)


def test_a_pause_lets_the_guest_run() -> None:
    agent = Agent()
    agent.door().pause(0)
    assert agent.lines == ["m", "m"]
