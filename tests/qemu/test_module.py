# SPDX-License-Identifier: MIT
"""callgate.ko in a stock Linux: calls from user space and from drivers, while devices come and go.

Each test is one boot, in which many scenarios run one after the other: see module/user.c and
module/kernel.c. A scenario that fails says in which line, and what was there.
"""

import os
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.qemu.module import build
from tests.qemu.module.device import Other, Plain, Workbench
from tests.qemu.module.liar import LIES, Liar

from callgate import Device
from callgate.backends.qemu.guest import Guest
from callgate.gate.watcher import LINGER
from callgate.load import load_device_class
from callgate.testing.linux import needs_linux

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("x86_64", "aarch64", "riscv64")
COMPAT = {"x86_64": "x86", "aarch64": "arm"}
"""Whose programs the kernel runs too."""
TIMEOUT = 1800.0 if "CALLGATE_KDIR" in os.environ else 300.0
"""A kernel that was built here may be one for debugging."""
COMPLAINTS = re.compile(
    r"WARNING:|BUG:|Oops|general protection|Call Trace|KASAN|UBSAN|possible circular|refcount_t|"
    r"unexpected IRQ|nobody cared|DMA-API|memory leak|has active|sleeping function|"
    r"nonexistent resource"
)
"""What a kernel writes into its log when something is wrong with a driver."""
BEGIN = "the script begins"
"""Before that, a console may have what firmware said."""
LOG = "log of the kernel"


class Boot:
    """What a guest wrote: lines of the program, and of the kernel's log since the first module."""

    def __init__(self, output: str, exit_code: int) -> None:
        said, _, log = output.partition(f"{BEGIN}\n")[2].partition(f"{LOG}\n")
        self.lines = said.splitlines()
        self.log = log.splitlines()
        self.exit_code = exit_code

    @property
    def wrong(self) -> list[str]:
        """Lines that tell of something that is wrong."""
        said = [line for line in self.lines if line and not line.startswith(("ok ", "done"))]
        return said + [line for line in self.log if COMPLAINTS.search(line)]


def boot(
    *devices: Device,
    script: str,
    loaded: Sequence[str],
    files: Sequence[Path] = (),
    arch: str = "x86_64",
    newer: bool = False,
    linger: float = LINGER,
) -> Boot:
    """Run a shell script in a guest with `loaded` modules and these files; its log follows."""
    needs_linux(arch)
    folder = build.modules(arch, newer=newer)
    program = (
        f"echo '{BEGIN}'; mount -t debugfs debugfs /sys/kernel/debug\n{script}\ncode=$?\n"
        f"echo '{LOG}'; dmesg | sed -n '/callgate/,$p'\nexit $code\n"
    )
    with Guest(
        *devices,
        arch=arch,
        program=program,
        files={path.name: path for path in files},
        modules=[str(folder / f"{name}.ko") for name in loaded],
        kernel=build.kernel(newer=newer),
        timeout=TIMEOUT,
        cpus=2,
        linger=linger,
    ) as guest:
        result = guest.run()
    return Boot(result.output, result.exit_code)


def parameters() -> str:
    """The signatures that kernel.c needs, as a parameter of its module."""
    calls = {call.name: call.hash for call in Workbench.spec.calls}
    names = ("control", "status", "echo", "sum", "hold", "ping", "step", "pings", "slow")
    return "signatures=" + ",".join(f"{calls[name]:#x}" for name in names)


@pytest.mark.parametrize(
    ("arch", "newer"),
    [("x86_64", False), ("x86_64", True), ("aarch64", False), ("riscv64", False)],
    ids=["stable", "newer", "aarch64", "riscv64"],
)
def test_calls_from_user_space_and_kernel(arch: str, newer: bool) -> None:
    folder = build.modules(arch, newer=newer)
    programs = [build.program("user", arch)]
    script = f"./{programs[0].name} || exit\n"
    if arch in COMPAT:
        programs.append(build.program("user", COMPAT[arch]))
        script += f"""
            PROCESSES=20 ./{programs[1].name} info list open twelve payload buffers submit ioctls \\
                random_ioctls processes || exit
        """
    script += f"""
        insmod ./callgate_test.ko {parameters()}
        cd /sys/kernel/debug/callgate_test
        for each in open call statuses payload buffer atomic one_way notifier no_frames timeout cpus
        do
            said=$(cat $each); [ "$said" = ok ] || echo "$each: $said"
        done
        echo 0000:00:01.0 > /sys/bus/pci/drivers/callgate_pci/unbind
        said=$(cat gone); [ "$said" = ok ] || echo "gone: $said"
        cd; rmmod callgate_test && rmmod callgate_pci && rmmod callgate
    """
    said = boot(
        Workbench(),
        Other(),
        Plain(),
        script=script,
        loaded=["callgate", "callgate_pci"],
        files=[*programs, folder / "callgate_test.ko"],
        # A handler that waits is to do so in the thread that watches, and not hold up the guest.
        linger=0.5,
        arch=arch,
        newer=newer,
    )
    assert said.wrong == [], "\n".join(said.wrong)
    assert (said.exit_code, said.lines.count("done")) == (0, len(programs)), said.lines


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_device_that_lies(arch: str) -> None:
    program = build.program("liar", arch)
    echo = next(call.hash for call in Liar.spec.calls if call.name == "echo")
    said = boot(
        Liar(),
        script=f"ECHO={echo:#x} ./{program.name} && rmmod callgate_pci && rmmod callgate",
        loaded=["callgate", "callgate_pci"],
        files=[program],
        arch=arch,
    )
    wrong = [line for line in said.log if COMPLAINTS.search(line)]
    seen = [line for line in said.lines if line.startswith("lie ")]
    for line, lie in zip(seen, (*LIES, LIES[0]), strict=False):
        # "lie 7 bind=0 open=0 call=status 12"
        steps = dict(step.split("=") for step in re.split(r" (?=\w+=)", line)[1:])
        for step, expected in (lie.expected or {}).items():
            if steps.get(step) != expected:
                wrong.append(f"{lie.name}: {step} must give {expected}: {line}")
    assert wrong == [], "\n".join(wrong)
    assert len(seen) == len(LIES) + 1, said.lines[-5:]
    assert (said.exit_code, said.lines[-1]) == (0, "done")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_drivers_of_the_examples(arch: str) -> None:
    """Registers, interrupts and calls together; and errnos that a host brings about."""
    adder = load_device_class(str(ROOT / "examples" / "01_adder" / "device.py"))
    checksum = load_device_class(str(ROOT / "examples" / "03_checksum" / "device.py"))
    pytest.importorskip("numpy", reason="the example 03_checksum takes numpy")
    script = r"""
        is() { [ "$2" = "$3" ] || echo "$1: $2, not $3"; }
        cd /sys/bus/pci/drivers/adder/0000:00:01.0 || exit
        for i in $(seq 20); do
            echo $i > a; echo 40 > b
            is total "$(cat total)" $((i + 40)); is sum "$(cat sum)" $((i + 40))
        done
        echo 0xffffffff > a
        is total "$(cat total)" 39; is sum "$(cat sum)" 4294967335
        is attribute "$(cat /sys/class/callgate/callgate0/calls/add)" 'add(u64,u64)->u64'
        is device "$(ls /dev/callgate* 2>/dev/null)" ""
        grep -q ' adder$' /proc/interrupts || echo "no interrupt"
        for i in $(seq 10); do
            echo 0000:00:01.0 > /sys/bus/pci/drivers/adder/unbind
            echo 0000:00:01.0 > /sys/bus/pci/drivers/adder/bind
        done
        cd /; cd /sys/bus/pci/drivers/adder/0000:00:01.0 || exit
        echo 2 > a; echo 3 > b; is total "$(cat total)" 5; is sum "$(cat sum)" 5

        cd /sys/class/misc/checksum || exit
        is empty "$(cat sum 2>&1)" "cat: read error: No data available"
        printf '\1\0\0\0\2\0\0\0\377\377\377\377' > /dev/checksum
        is sum "$(cat sum)" 00000002
        echo 0x20 > xor

        printf abc > /dev/checksum
        is length "$(cat sum 2>&1)" "cat: read error: Invalid argument"
        dd if=/dev/urandom of=/tmp/data bs=64k count=1 2>/dev/null
        cat /tmp/data > /dev/checksum
        echo 0x5a > xor; echo 0x5a > xor
        cmp /tmp/data /dev/checksum || echo "data changed"
        exec 3</dev/checksum
        echo 0000:00:02.0 > /sys/bus/pci/drivers/checksum/unbind
        exec 3<&-
        cd /; rmmod checksum && rmmod adder && rmmod callgate
    """
    loaded = ["callgate", "adder", "checksum"]
    said = boot(adder(), checksum(), script=script, loaded=loaded, arch=arch)
    assert said.wrong == [], "\n".join(said.wrong)
    assert said.exit_code == 0


# --- a terminal over calls: examples/05_console ---------------------------------------------------

FLOOD = random.Random(5).randbytes(200_000)
DATA = random.Random(6).randbytes(20_000)


ASK = b"\x1b[6n"
"""A shell asks a terminal where its cursor is, and goes on without an answer."""


class Swapper:
    """A far end that types back what it gets, with upper and lower case exchanged; it takes half of
    what is left, and more later. `flood` and `later` are commands."""

    def __init__(self, console: Any) -> None:
        self.console = console
        self.parts = 0
        console.far = self.take

    def take(self, data: bytes) -> int:
        if data == b"flood\n":
            self.console.type(FLOOD)
            return len(data)
        if data == b"later\n":
            self.console.after(0.5, lambda: self.console.type(b"now\n"))
            return len(data)
        taken = data[: (len(data) + 1) // 2]
        if taken != data:
            self.parts += 1
            self.console.after(0.001, self.console.resume)
        self.console.type(taken.swapcase())
        return len(taken)


class Typist:
    """Somebody at a shell: types the next line when there is a prompt."""

    def __init__(self, console: Any, *lines: bytes) -> None:
        self.console = console
        self.lines = list(lines)
        self.screen = b""
        console.far = self.see

    def see(self, data: bytes) -> None:
        self.screen += (data := data.replace(ASK, b""))
        if data and self.screen.endswith(b"$ ") and self.lines:
            self.console.type(self.lines.pop(0) + b"\n")


@pytest.mark.parametrize(
    ("arch", "newer"),
    [("x86_64", False), ("x86_64", True), ("aarch64", False), ("riscv64", False)],
    ids=["stable", "newer", "aarch64", "riscv64"],
)
def test_a_terminal_over_calls(arch: str, newer: bool, tmp_path: Path) -> None:
    """Both directions, however little each side takes; who waits for input has no frame; a shell;
    hang-up when the device goes, and when it comes back."""
    kind = load_device_class(str(ROOT / "examples" / "05_console" / "device.py"))
    line, shell = kind(), kind()
    swapper = Swapper(line)
    typist = Typist(shell, b"tty", b"echo $((6 * 7))", b"sleep 100", b"\x03")
    for name, content in ("data", DATA), ("swapped", DATA.swapcase()), ("flood", FLOOD):
        (tmp_path / name).write_bytes(content)
    script = r"""
        is() { [ "$2" = "$3" ] || echo "$1: $2, not $3"; }
        pci=/sys/bus/pci/devices
        exec 3<>/dev/ttyCG0 || exit
        stty raw -echo <&3
        echo Hello, console. >&3
        read line <&3; is line "$line" "hELLO, CONSOLE."
        echo "ok line"
        cat data >&3 &
        head -c 20000 <&3 > got; cmp got swapped
        wait
        echo "ok data"

        # Nobody reads for a while: it waits in the device.
        echo flood >&3
        sleep 1
        head -c 200000 <&3 > got; cmp got flood
        echo "ok flood"

        # Who waits for input has no frame.
        (read line <&3; echo "$line" > got) &
        echo later >&3
        sleep .1
        frames=/sys/kernel/debug/callgate/callgate0/frames
        is frames "$(awk '$2 == 1 || $2 == 2' $frames)" ""  # ready, running
        wait; is later "$(cat got)" now
        echo "ok later"

        # What comes while it is closed is there when it is opened again.
        echo later >&3; exec 3<&-
        sleep 1
        exec 3<>/dev/ttyCG0
        read line <&3; is reopened "$line" now
        echo "ok reopened"

        # A shell, with somebody who types.
        PS1='$ ' setsid -c sh -i <>/dev/ttyCG1 >&0 2>&1 3<&- &
        shell=$!

        # The device goes: who reads comes to an end, who writes is refused.
        (cat <&3 > /dev/null; echo ended > got) & reader=$!
        sleep .3
        echo 1 > $pci/0000:00:01.0/remove
        wait $reader; is reader "$(cat got)" ended
        (echo x >&3) 2> /dev/null && echo "a line that was hung up takes output"
        [ -e /dev/ttyCG0 ] && echo "ttyCG0 is still there"
        echo "ok gone"

        # It comes back, as another one, since the file is still open; and then as itself.
        echo 1 > /sys/bus/pci/rescan
        exec 4<>/dev/ttyCG2 || exit
        stty raw -echo <&4
        echo Again >&4; read line <&4; is again "$line" aGAIN
        exec 3<&- 4<&-
        echo "ok again"
        for i in $(seq 10); do
            echo 0000:00:01.0 > /sys/bus/pci/drivers/console/unbind
            echo 0000:00:01.0 > /sys/bus/pci/drivers/console/bind
            exec 4<>/dev/ttyCG0 || exit
            stty raw -echo <&4
            echo $i >&4; read line <&4; is bound "$line" $i
            exec 4<&-
        done
        echo "ok bound"

        if [ -w /sys/class/rtc/rtc0/wakealarm ]; then
            exec 4<>/dev/ttyCG0
            stty raw -echo <&4
            # An alarm that comes before it sleeps would wake nobody up.
            echo +6 > /sys/class/rtc/rtc0/wakealarm; echo mem > /sys/power/state
            echo Awake >&4; read line <&4; is awake "$line" aWAKE
            exec 4<&-
            echo "ok awake"
        fi

        # Who sits at the shell is hung up.
        sleep 1
        echo 0000:00:02.0 > /sys/bus/pci/drivers/console/unbind
        wait $shell; is shell $? 129
        rmmod console_tty && rmmod callgate
    """
    said = boot(
        line,
        shell,
        script=script,
        loaded=["callgate", "console_tty"],
        files=[tmp_path / name for name in ("data", "swapped", "flood")],
        arch=arch,
        newer=newer,
    )
    assert said.wrong == [], "\n".join(said.wrong)
    assert said.exit_code == 0
    assert swapper.parts > 10
    assert typist.lines == [b"\x03"]
    assert b"/dev/ttyCG1\r\n" in typist.screen
    assert b"\n42\r\n" in typist.screen
