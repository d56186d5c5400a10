# SPDX-License-Identifier: MIT
"""DEVICE_GET_IRQ_INFO: INTA, the vectors of MSI-X and of MSI."""

import errno
from pathlib import Path

import pytest
from tests.vfio_user.rig import Board, Peer

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.protocol import Command, Irq, IrqInfo
from callgate.backends.vfio_user.server import Server
from callgate.device import Device


def ask(peer: Peer, index: int, argsz: int = 16) -> tuple[int, ...]:
    request = p.IRQ_INFO.pack(argsz, 0, index, 0)
    return p.IRQ_INFO.unpack(peer.get(Command.DEVICE_GET_IRQ_INFO, request))


@pytest.mark.parametrize("argsz", [16, 64])
def test_what_there_is(peer: Peer, argsz: int) -> None:
    level = IrqInfo.EVENTFD | IrqInfo.MASKABLE | IrqInfo.AUTOMASKED
    edge = IrqInfo.EVENTFD | IrqInfo.MASKABLE
    assert ask(peer, Irq.INTX, argsz) == (16, level, Irq.INTX, 1)
    assert ask(peer, Irq.MSIX, argsz) == (16, edge, Irq.MSIX, 3)
    assert ask(peer, Irq.ERR, argsz) == (16, IrqInfo.EVENTFD, Irq.ERR, 1)
    for index in (Irq.MSI, Irq.REQ):
        assert ask(peer, index, argsz) == (16, 0, index, 0)


class Messages(Board):
    """Three interrupts, by MSI alone: vectors come in powers of two."""

    msi, msix = True, False


def test_msi(tmp_path: Path) -> None:
    with Server(Messages(), tmp_path / "s"), Peer(tmp_path / "s") as peer:
        assert [ask(peer, index)[3] for index in Irq] == [1, 4, 0, 1, 0]
        assert ask(peer, Irq.MSI)[1] == IrqInfo.EVENTFD | IrqInfo.MASKABLE


class Quiet(Device):
    """No interrupts."""

    id = 0x1AF4, 0x10F2


def test_a_device_without_interrupts(tmp_path: Path) -> None:
    with Server(Quiet(), tmp_path / "s"), Peer(tmp_path / "s") as peer:
        assert [ask(peer, index)[3] for index in Irq] == [0, 0, 0, 1, 0]
        request = p.IRQ_SET.pack(20, p.DATA_NONE | p.ACTION_TRIGGER, Irq.MSIX, 0, 0)
        assert peer.get(Command.DEVICE_SET_IRQS, request) == b""


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes(15),
        p.IRQ_INFO.pack(0, 0, 0, 0),
        p.IRQ_INFO.pack(15, 0, 0, 0),
        p.IRQ_INFO.pack(16, 0, 5, 0),
        p.IRQ_INFO.pack(16, 0, 0xFFFF_FFFF, 0),
    ],
)
def test_what_is_refused(peer: Peer, payload: bytes) -> None:
    assert peer.refused(Command.DEVICE_GET_IRQ_INFO, payload) == errno.EINVAL
