# SPDX-License-Identifier: MIT
"""The stock devices, driven by Linux' own drivers in a stock QEMU."""

import hashlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.qemu.tools import e2fsprogs

from callgate import Device
from callgate.backends.qemu.command import device as plugged
from callgate.backends.qemu.guest import Guest
from callgate.backends.result import Result
from callgate.backends.vfio_user.server import Server
from callgate.devices.serial import Serial
from callgate.devices.serial_stream import SerialStream
from callgate.devices.virtio_blk import VirtioBlk
from callgate.devices.virtio_rng import VirtioRng
from callgate.testing.linux import needs_linux

Boot = Callable[..., Result]

ROOT = Path(__file__).resolve().parents[2]
MODULES = ["virtio_pci", "virtio_blk", "virtio_rng"]
TIMEOUT = 200.0
ECHOED = int(os.environ.get("CALLGATE_SERIAL", 16 << 10))
"""Bytes that go through the serial port in each direction; `make stress` takes a megabyte."""
DATA = 256 << 20
SIZE = 384 << 20


def blameless(*devices: Device) -> bool:
    """Whether neither guest nor model did anything wrong."""
    return all(not each.faults.counts and not each.bugs._known for each in devices)


# --- serial --------------------------------------------------------------------------------------

_ECHO = f"""
exec 3<>/dev/ttyS1
stty raw -echo crtscts <&3
echo port open
head -c {ECHOED} <&3 >&3
echo port echoed
read line <&3
grep ^1: /proc/tty/driver/serial
grep ttyS1 /proc/interrupts
readlink /sys/bus/pci/devices/0000:00:01.0/driver
"""


def test_a_serial_port_echoes_all_that_is_sent() -> None:
    """8250_pci: what a `cat` gets comes back, whole; errors of the line are counted."""
    needs_linux()
    port = Serial()
    port.flow_control = True
    ours, far = socket.socketpair()
    content = random.Random(3).randbytes(ECHOED)
    with ours, far, Guest(port, program=_ECHO, timeout=TIMEOUT) as guest:
        with SerialStream(port, far):
            guest.start()
            guest.wait_for("port open", TIMEOUT)
            threading.Thread(target=ours.sendall, args=(content,), daemon=True).start()
            ours.settimeout(TIMEOUT)
            echoed = b""
            while len(echoed) < len(content) and (part := ours.recv(1 << 16)):
                echoed += part
            guest.wait_for("port echoed", TIMEOUT)
        assert echoed == content
        port.send_break()
        port.inject(ord("p"), parity=True)
        for _ in range(2):
            port.inject(ord("f"), framing=True)
        port.inject(ord("o"), overrun=True)
        port.feed(b"\n")
        result = guest.run()
    line, interrupts, driver = result.output.splitlines()[-3:]
    counts = {name: int(count) for name, count in re.findall(r"(\w+):(\d+)(?= |$)", line)}
    assert "uart:16550A" in line
    assert counts["tx"] == ECHOED
    assert counts["rx"] == ECHOED + len("\0pffo\n")
    assert [counts[name] for name in ("brk", "pe", "fe", "oe")] == [1, 1, 2, 1]
    assert int(interrupts.split()[1]) > 0
    assert driver.endswith("/pci/drivers/serial")
    assert blameless(port)


# --- entropy, and all of them again and again ----------------------------------------------------

_REBIND = """
P=/sys/bus/pci/drivers V=/sys/bus/virtio/drivers
virtio_of() { (cd /sys/bus/pci/devices/0000:00:0$1.0 && echo virtio*); }
again() {  # COUNT FOLDER NAME COMMAND
    for i in $(seq $1); do
        echo $3 > $2/unbind && echo $3 > $2/bind && eval "$4" || { echo $2 failed at $i; exit 1; }
    done
}
use_blk="dd if=/dev/vda of=/dev/null bs=512 count=1 2> /dev/null"
# Slot 4 has a second source: when the last one leaves, Linux 6.1 stops a thread that may be gone.
current=/sys/class/misc/hw_random/rng_current
use_rng="echo virtio_rng.0 > $current && dd if=/dev/hwrng of=/dev/null bs=8 count=1 2> /dev/null"
use_serial="printf .%d \\$i > /dev/ttyS1"
stty raw < /dev/ttyS1
again 100 $P/serial 0000:00:01.0 "$use_serial"
again 50 $P/virtio-pci 0000:00:02.0 "$use_blk"
again 50 $P/virtio-pci 0000:00:03.0 "$use_rng"
again 100 $V/virtio_blk $(virtio_of 2) "$use_blk"
again 100 $V/virtio_rng $(virtio_of 3) "$use_rng"
for i in $(seq 10); do
    for slot in 1 2 3; do echo 1 > /sys/bus/pci/devices/0000:00:0$slot.0/remove; done
    echo 1 > /sys/bus/pci/rescan
    eval "$use_serial" && eval "$use_blk" && eval "$use_rng" || { echo rescan $i; exit 1; }
done
cat $current
dd if=/dev/hwrng bs=4096 count=1 2> /dev/null | xxd -p | tr -d '\\n'
"""


def test_drivers_come_and_go_and_entropy_is_the_sources(linux_guest: Boot) -> None:
    """Each driver is unbound and bound a hundred times, each function removed and found again."""
    sent, given = bytearray(), bytearray()
    seeded = random.Random(7)

    def source(count: int) -> bytes:
        given.extend(data := seeded.randbytes(count))
        return data

    devices = Serial(sent.extend), VirtioBlk(size=1 << 20), VirtioRng(source), VirtioRng()
    result = linux_guest(*devices, exec=_REBIND, module=MODULES, timeout=TIMEOUT)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("virtio_rng.0\n"), result.output
    entropy = result.output.split()[1]
    assert len(bytes.fromhex(entropy)) == 4096
    assert is_part(bytes.fromhex(entropy), bytes(given))
    expected = [*range(1, 101), *range(1, 11)]
    assert sent.decode() == "".join(f".{each}" for each in expected)
    assert blameless(*devices)


def is_part(data: bytes, whole: bytes) -> bool:
    """Whether `data` is in `whole` in this order, but for what Linux took for itself."""
    at = 0
    for begin in range(0, len(data), 8):
        at = whole.find(data[begin : begin + 8], at) + 8
        if at < 8:
            return False
    return True


# --- a disk --------------------------------------------------------------------------------------

_FIRST = """
mkdir /mnt
mkfs.ext4 -q -b 4096 -E lazy_itable_init=0 /dev/vda && mount -t ext4 /dev/vda /mnt || exit 1
part() { dd if=/dev/vdb of=/mnt/data bs=1M conv=notrunc "$@" 2> /dev/null || exit 2; }
taskset -p 1 $$ > /dev/null
part count=64
taskset -p 2 $$ > /dev/null
part skip=64 seek=64 iflag=direct oflag=direct
dd if=/dev/zero of=/mnt/junk bs=1M count=32 2> /dev/null
sync
rm /mnt/junk
sync
fstrim /mnt || exit 3
echo 3 > /proc/sys/vm/drop_caches
md5sum /mnt/data
umount /mnt
e2fsck -fn /dev/vda > /dev/null 2>&1 || exit 4
cat /sys/block/vda/ro /sys/block/vdb/ro /sys/block/vda/queue/discard_max_bytes
ls /sys/block/vda/mq
dd if=/dev/zero of=/dev/vdb count=1 2> /dev/null && exit 5
for queue in 0 1; do
    awk "/virtio0-req.$queue/ { print (\\$2 + \\$3 > 0) }" /proc/interrupts
done
"""
_SECOND = """
mkdir /mnt
mount -t ext4 /dev/vda /mnt || exit 1
md5sum /mnt/data
umount /mnt
"""


class Counting(VirtioBlk):
    """A disk with two queues that counts what it was asked."""

    queues = 2

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.discards = self.zeroes = 0

    def _discard(self, data: list[tuple[int, int]]) -> None:
        self.discards += 1
        super()._discard(data)

    def _write_zeroes(self, data: list[tuple[int, int]]) -> None:
        self.zeroes += 1
        super()._write_zeroes(data)


def test_a_file_system_lives_on_a_disk(tmp_path: Path) -> None:
    """Two queues; 256 MiB written, trimmed, and read; and read again by another boot, and here."""
    needs_linux()
    tools = e2fsprogs()
    path, source, copy = (tmp_path / name for name in ("disk.img", "source.img", "copy"))
    with path.open("wb") as file:
        file.truncate(SIZE)
    with source.open("wb") as file:
        for _ in range(DATA >> 20):
            file.write(os.urandom(1 << 20))
    expected = [md5(source), "/mnt/data"]
    disk, readonly = Counting(path), VirtioBlk(source, readonly=True)
    result = boot(disk, readonly, program=_FIRST, files=tools.files("mkfs.ext4", "e2fsck"), cpus=2)
    assert result.exit_code == 0, result.output
    found = result.output.split()
    assert found[:2] == expected
    assert found[2:] == ["0", "1", str(1 << 30), "0", "1", "1", "1"]
    assert disk.discards > 0
    assert disk.zeroes > 0
    assert blameless(disk, readonly)
    # What was trimmed takes no room: the file holds the data, journal and inodes.
    assert DATA < path.stat().st_blocks * 512 < DATA + (48 << 20)
    disk = Counting(path)
    assert boot(disk, program=_SECOND).output.split() == expected
    assert blameless(disk)
    assert tools.run("e2fsck", "-fn", path).returncode == 0
    tools.run("debugfs", "-R", f"dump /data {copy}", path)
    assert md5(copy) == expected[0]


_PRIVATE = """
dd if=/dev/urandom of=random bs=1M count=4 2> /dev/null
dd if=random of=/dev/vda bs=1M conv=fsync 2> /dev/null || exit 1
echo 3 > /proc/sys/vm/drop_caches
dd if=/dev/vda bs=1M count=4 2> /dev/null | cmp - random || exit 2
dd if=/dev/hwrng of=/dev/null bs=64 count=16 2> /dev/null
"""


def test_a_vmm_may_keep_its_memory_to_itself() -> None:
    """What devices read and write then goes by messages."""
    needs_linux()
    devices = VirtioBlk(size=8 << 20), VirtioRng()
    result = boot(*devices, program=_PRIVATE, shared=False)
    assert (result.exit_code, result.output) == (0, "")
    assert blameless(*devices)


def boot(
    *devices: Device,
    program: str,
    files: dict[str, Path] | None = None,
    cpus: int = 1,
    shared: bool = True,
) -> Result:
    with Guest(
        *devices,
        program=program,
        modules=MODULES,
        files=files,
        cpus=cpus,
        shared=shared,
        timeout=TIMEOUT,
    ) as guest:
        return guest.run()


def md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


# --- what is killed ------------------------------------------------------------------------------

_WRITE = """
mkdir /mnt
if [ -e expected ]; then
    e2fsck -fy /dev/vda > fsck 2>&1
    [ $? -le 1 ] || { cat fsck; exit 1; }
else
    mkfs.ext4 -q -b 4096 /dev/vda || exit 2
fi
mount -t ext4 /dev/vda /mnt && cd /mnt || exit 3
[ ! -s ~/expected ] || md5sum -c -s ~/expected || exit 4
echo found all
while :; do dd if=/dev/urandom of=junk bs=1M count=8 2> /dev/null; done &
i=$(ls | wc -l)
while :; do
    dd if=/dev/urandom of=$i bs=64k count=4 conv=fsync 2> /dev/null || exit 5
    echo "$(md5sum $i) synced"
    i=$((i + 1))
done
"""
KILLS = 3
_DISK = """
from callgate.devices.virtio_blk import VirtioBlk

class Disk(VirtioBlk):
    path = {!r}
"""


class Writer:
    """Guests that write to a disk which somebody else serves at `socket`, until all is killed."""

    def __init__(self, folder: Path, socket: Path) -> None:
        self.expected = folder / "expected"
        self.socket = socket
        self.tools = e2fsprogs()
        self.random = random.Random()

    def start(self) -> Guest:
        """A guest that has checked what the ones before made stable, and writes now."""
        files = self.tools.files("mkfs.ext4", "e2fsck")
        if self.expected.exists():
            files["expected"] = self.expected
        extra = ["-device", json.dumps(plugged(self.socket, 1))]
        guest = Guest(program=_WRITE, modules=MODULES, files=files, extra=extra, timeout=TIMEOUT)
        try:
            guest.start()
            guest.wait_for("found all", TIMEOUT)
            guest.wait_for("synced", TIMEOUT)
            time.sleep(self.random.uniform(0, 1))
        except BaseException:
            guest.close()
            raise
        return guest

    def note(self, guest: Guest) -> None:
        """Keep what the guest said is stable."""
        said = re.findall(r"^([0-9a-f]{32}  \d+) synced$", guest.text, re.MULTILINE)
        with self.expected.open("a") as file:
            file.writelines(f"{line}\n" for line in said)


def test_what_was_flushed_outlives_every_kill(tmp_path: Path) -> None:
    """QEMU is killed while it writes, and its server is ready for the next; then the server is."""
    needs_linux()
    path, socket = tmp_path / "disk.img", tmp_path / "disk.sock"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    writer = Writer(tmp_path, socket)
    with Server(VirtioBlk(path), socket) as server:
        idle = leftovers()
        for _ in range(KILLS):
            with writer.start() as guest:
                assert guest._process is not None
                guest._process.kill()
            writer.note(guest)
            until(lambda: leftovers() == idle)
            assert not server.memory.slots
            # What was cut short finds no memory.
            assert set(server.function.device.faults.counts) <= {"dma"}
            assert not server.function.device.bugs._known
    source = tmp_path / "disk.py"
    source.write_text(_DISK.format(str(path)))
    line = [sys.executable, "-m", "callgate", "serve", str(source), "--socket", str(socket)]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL) as program:
        until(socket.exists)
        with writer.start() as guest:
            program.send_signal(signal.SIGKILL)
            program.wait()
            writer.note(guest)
    with Server(VirtioBlk(path), socket), writer.start():
        assert len(writer.expected.read_text().splitlines()) > KILLS


def leftovers() -> tuple[int, int]:
    """Open files, and threads."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)
