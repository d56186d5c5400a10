# SPDX-License-Identifier: MIT
"""The root file system that Linux boots into: busybox, modules, files, and one program to run.

The program's end is told on the console in a line that only this run knows:

    <token> exit 0
"""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence

from callgate.backends.qemu.kernel import Module

_TRAILER = "TRAILER!!!"
_FOLDER = 0o040755
_PROGRAM = 0o100755
_NEWLINE = 0x0A
_CODE = re.compile("[0-9]{1,3}")
_INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/root HOME=/root TERM=linux
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
ln -sf /proc/self/fd /dev/fd
echo 0 > /proc/sys/kernel/printk
cd /root
for module in {modules}; do
	insmod /lib/modules/$module.ko || exit_code=$?
done
echo {token} ready
if [ -z "$exit_code" ]; then
	setsid -c sh -c {program} < /dev/console > /dev/console 2>&1
	exit_code=$?
fi
sync
echo
echo {token} exit $exit_code
{after}poweroff -f
"""
_WAIT = "read line < /dev/console\n"


class Init:
    """Hears on a console what /init says, and parts it from what the guest's programs say.

    `hear` takes what comes, in any pieces, and calls `on_byte` with each byte that is the
    programs' own.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self.on_byte: Callable[[int], None] | None = None
        self.ready = False
        """Whether modules are loaded and the program starts."""
        self.exit_code: int | None = None
        """The program's; None while it runs."""
        self._marker = token.encode()
        self._line = bytearray()
        self._shown = 0

    def hear(self, data: bytes) -> None:
        """Take what came over the console."""
        line = self._line
        for byte in data:
            line.append(byte)
            ours = line.startswith(self._marker[: len(line)])
            if self.on_byte is not None and not ours:
                for each in line[self._shown :]:
                    self.on_byte(each)
                self._shown = len(line)
            if byte == _NEWLINE:
                if ours:
                    self._heed(line.decode(errors="replace").split())
                line.clear()
                self._shown = 0

    def without(self, output: bytes) -> str:
        """What of a console's output is the programs' own, with plain ends of lines."""
        said = output.replace(b"\r\n", b"\n")
        return re.sub(rb"\n?" + self._marker + rb"[^\n]*\n", b"", said).decode("utf-8", "replace")

    def _heed(self, words: list[str]) -> None:
        if words[1:] == ["ready"]:
            self.ready = True
        if len(words) == 3 and words[1] == "exit":
            self.exit_code = int(words[2]) if _CODE.fullmatch(words[2]) else 1


def new_token() -> str:
    """A word that only this run knows."""
    return f"callgate-{secrets.token_hex(8)}"


def build(
    *,
    busybox: bytes,
    program: str,
    token: str,
    modules: Sequence[Module] = (),
    files: Mapping[str, bytes] | None = None,
    wait: bool = False,
) -> bytes:
    """An initramfs, uncompressed, in cpio's format newc (Linux' early-userspace/buffer-format.rst).

    `program` is a line for the shell. `files` are put at their absolute paths, executable. With
    `wait` the guest does not power itself off before a line comes in on its console.
    """
    placed = {f"/lib/modules/{module.name}.ko": module.data for module in modules}
    init = _INIT.format(
        modules=" ".join(module.name for module in modules),
        token=token,
        program=shlex.quote(program),
        after=_WAIT if wait else "",
    )
    placed |= {"/init": init.encode(), "/bin/busybox": busybox}
    placed |= files or {}
    folders = {"bin", "dev", "proc", "root", "sys", "tmp"}
    for path in placed:
        parts = path.strip("/").split("/")[:-1]
        folders |= {"/".join(parts[: end + 1]) for end in range(len(parts))}
    archive = bytearray()
    for number, name in enumerate(sorted(folders), 1):
        archive += _entry(number, name, _FOLDER, b"")
    for number, (path, data) in enumerate(placed.items(), 1 + len(folders)):
        archive += _entry(number, path.lstrip("/"), _PROGRAM, data)
    return bytes(archive + _entry(0, _TRAILER, 0, b""))


def _entry(number: int, name: str, mode: int, data: bytes) -> bytes:
    """One file: a header of eight hexadecimal digits a field, name, content, each padded to 4."""
    path = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + path
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
