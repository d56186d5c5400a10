# SPDX-License-Identifier: MIT
"""The bench measures what it says. That the figures are good is for `make bench` to tell."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from callgate.backends.board import BOARDS
from callgate.backends.platform import PLATFORMS
from callgate.bench import calls, host
from callgate.bench.calls import Way, find_program, measure, ways
from callgate.bench.order import CALL, OUT, PATHS, STORE, TRAP, Order
from callgate.bench.plot import check_plot, draw
from callgate.bench.report import Check, Row, as_json, percentile
from callgate.cli.bench import run_bench
from callgate.errors import BenchError, GuestError

ROOT = Path(__file__).resolve().parents[2]
BUILT = all((ROOT / "build" / "guest" / arch / "bench.elf").is_file() for arch in BOARDS)
needs_guests = pytest.mark.skipif(not BUILT, reason="no guest programs: python guest/build.py")


def row(**changes: Any) -> Row:
    given: dict[str, Any] = {
        "backend": "unicorn",
        "arch": "riscv64",
        "platform": "sbi",
        "transport": "mmio",
        "instruction": "store",
        "median": 2.0,
        "p99": 3.0,
        "per_second": 5e5,
        "bare": 0.5,
        "ratio": 4.0,
        "target": 4.0,
    }
    return Row(**{**given, **changes})


def way(arch: str, platform: str, transport: str) -> Way:
    return Way(arch, PLATFORMS[platform], transport)


# --- what is measured -----------------------------------------------------------------------------


def test_each_way_of_every_architecture_once() -> None:
    found = [(each.arch, each.transport, each.instruction) for each in ways(list(BOARDS))]
    assert len(set(found)) == len(found)
    assert {transport for _, transport, _ in found} == set(PATHS)
    assert {instruction for _, _, instruction in found} == {
        *("", "store", "out", "vmcall", "vmmcall", "int_1f", "hvc", "ecall")
    }
    assert {arch for arch, _, _ in found} == set(BOARDS)


@pytest.mark.parametrize(
    ("arch", "platform", "transport", "instruction", "target"),
    [
        ("x86_64", "kvm-intel", "pio", "out", 4),
        ("x86_64", "kvm-amd", "hypercall", "vmmcall", None),
        ("i386", "lguest", "hypercall", "int_1f", 6),
        ("aarch64", "smccc", "hypercall", "hvc", 6),
        ("aarch64", "smccc", "hypercall-frame", "hvc", None),
        ("riscv64", "sbi", "hypercall", "ecall", 6),
        ("riscv64", "sbi", "pio", "store", 4),
        ("riscv64", "sbi", "mmio", "store", 4),
        ("riscv64", "sbi", "polled", "", None),
    ],
)
def test_what_a_way_traps_by_and_may_cost(
    arch: str, platform: str, transport: str, instruction: str, target: float | None
) -> None:
    found = way(arch, platform, transport)
    assert (found.instruction, found.target) == (instruction, target)
    trap = found.trap()
    kinds = {"": None, "store": STORE, "out": OUT}
    assert (trap and trap.what) == kinds.get(instruction, TRAP)


def test_an_order_is_the_guests_struct() -> None:
    order = Order(3, 64, what=CALL, path=5, instruction=4, selector=6, place=7, mark=8)
    assert struct.unpack("<6I2Q", order.pack()) == (CALL, 5, 3, 64, 4, 6, 7, 8)
    source = (ROOT / "guest" / "bare" / "bench.c").read_text()
    members = source.partition("struct bench_order {")[2].partition("}")[0]
    names = [line.split()[1].rstrip(";") for line in members.strip().splitlines()]
    assert names == [
        *("what", "path", "batches", "size", "instruction", "selector", "place", "mark")
    ]


@needs_guests
@pytest.mark.parametrize(
    ("arch", "platform", "transport"),
    [
        ("x86_64", "kvm-intel", "pio"),
        ("x86_64", "kvm-intel", "hypercall"),
        ("i386", "lguest", "hypercall"),
        ("aarch64", "smccc", "hypercall"),
        ("aarch64", "smccc", "hypercall-frame"),
        ("riscv64", "sbi", "hypercall"),
        ("riscv64", "sbi", "mmio"),
        ("riscv64", "sbi", "polled"),
    ],
)
def test_a_way_is_measured(
    arch: str, platform: str, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "ROUNDS", 1)
    monkeypatch.chdir(ROOT)
    found = measure(way(arch, platform, transport), 600)
    assert (found.backend, found.arch, found.platform) == ("unicorn", arch, platform)
    assert found.median > 0
    assert found.p99 > 0
    assert found.per_second > 0
    if transport == "polled":
        assert (found.bare, found.ratio) == (None, None)
    else:
        assert found.bare is not None
        assert found.bare > 0
        assert found.ratio == pytest.approx(found.median / found.bare)


@needs_guests
def test_a_guest_that_does_not_call_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """`native` has no hypercall: the guest says so instead of making nothing quickly."""
    monkeypatch.setattr(calls, "ROUNDS", 1)
    monkeypatch.chdir(ROOT)
    with pytest.raises(GuestError, match="must end with 0, not 58"):
        measure(Way("riscv64", PLATFORMS["native"], "hypercall-frame"), 600)


@needs_guests
def test_a_bare_guest_that_stops_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from callgate.backends.unicorn.bare import run_bare

    with pytest.raises(GuestError, match="The bare guest must end by its last mark"):
        run_bare("riscv64", 0x1000, (), 1, lambda: None)


def test_a_missing_guest_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BenchError, match=r"aarch64/bench\.elf must be there: build it with"):
        find_program("aarch64")


def test_calls_from_python() -> None:
    rows = list(host.loopback_rows(200))
    assert [each.transport for each in rows] == ["hypercall", "pio", "mmio"]
    assert [each.target for each in rows] == [3.0, None, None]
    assert all(each.median > 0 < each.p99 for each in rows)


def test_dispatch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "MANY", 4000)
    monkeypatch.setattr(host, "_ROUNDS", 3)
    flat, cold = host.dispatch_checks()
    assert flat.target == 1.15
    assert cold.target is None
    assert flat.value is not None
    assert flat.value > 0


def test_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_STARTS", 1)
    (found,) = host.start_checks()
    assert (found.what, found.unit, found.target) == ("import callgate", "ms", 150.0)
    assert found.value is not None
    assert 1 < found.value < 10_000


@needs_guests
def test_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_STARTS", 1)
    monkeypatch.chdir(ROOT / "src")
    found = host.run_check()
    assert found.what == "callgate run examples/01_adder/device.py"
    assert found.value is not None
    assert found.value > 10


def test_a_run_that_is_not_possible_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = host.run_check()
    assert (found.value, found.met) == (None, None)
    assert found.what.endswith("no such file here or above")
    model = tmp_path / "examples" / "01_adder"
    model.mkdir(parents=True)
    (model / "device.py").write_text("from callgate import Device\nclass A(Device):\n  id = 1, 2")
    assert "must have a guest program" in host.run_check().what


# --- what is made of it ---------------------------------------------------------------------------


def test_a_target_is_met_or_not() -> None:
    assert row().met is True
    assert row(ratio=4.01).met is False
    assert row(target=None).met is None
    assert row(ratio=None, bare=None, median=2.9, target=3.0).met is True
    assert Check("x", 1.0).met is None
    assert Check("x", None, "", 1.0).met is None
    assert Check("x", 1.2, "", 1.15).met is False


def test_percentiles() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert percentile(values, 99) == 100
    assert percentile(values, 50) == 51
    assert percentile([7.0], 99) == 7


def test_json() -> None:
    found = json.loads(as_json([row()], [Check("import", 70.0, "ms", 150.0)]))
    assert found["calls"][0]["ratio"] == 4.0
    assert found["calls"][0]["met"] is True
    assert found["checks"] == [
        {"what": "import", "value": 70.0, "unit": "ms", "target": 150.0, "met": True}
    ]
    assert set(found["host"]) == {"python", "machine", "system"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bench that measures nothing."""
    loopback = row(backend="loopback", arch="none", transport="hypercall", instruction="",
                   bare=None, ratio=None, target=3.0)  # fmt: skip
    module = "callgate.cli.bench"
    monkeypatch.setattr(f"{module}.loopback_rows", lambda calls: iter([loopback]))
    monkeypatch.setattr(f"{module}.dispatch_checks", lambda: iter([Check("flat", 1.0, "", 1.15)]))
    monkeypatch.setattr(
        f"{module}.start_checks", lambda: iter([Check("start", 200.0, "ms", 150.0)])
    )
    monkeypatch.setattr(f"{module}.measure", lambda way, calls: row(arch=way.arch))
    monkeypatch.setattr(f"{module}.run_check", lambda: Check("not possible", None, "ms", 1000.0))


def bench(**changes: Any) -> None:
    given: dict[str, Any] = {
        "backends": None,
        "architectures": None,
        "calls": 1000,
        "form": "table",
        "plot": None,
        "modules": None,
    }
    run_bench(**{**given, **changes})


@pytest.mark.usefixtures("quick")
def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    bench(architectures=["riscv64"])
    out, err = capsys.readouterr()
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "unicorn riscv64 sbi mmio store 2.00 3.00 500,000 0.50 4.00 x <= 4 x met" in lines
    assert "loopback none sbi hypercall 2.00 3.00 500,000 <= 3 us met" in lines
    assert "flat 1 <= 1.15 met" in lines
    assert "start 200 ms <= 150 ms missed" in lines
    assert "not possible <= 1000 ms" in lines
    assert "measuring unicorn, riscv64, sbi, mmio ..." in err


@pytest.mark.usefixtures("quick")
def test_the_tables_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    bench(architectures=["riscv64"], form="markdown")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| backend | architecture | platform | transport | traps by |")
    assert (
        "| unicorn | riscv64 | sbi | mmio | store | 2.00 | 3.00 | 0.50 | 4.00 x | 4 x: met |"
        in lines
    )
    assert "| loopback |  |  | hypercall |  | 2.00 | 3.00 |  |  | 3 us: met |" in lines
    assert "| start | 200 ms | 150 ms: missed |" in lines
    assert "| not possible |  | 1000 ms: not measured |" in lines


@pytest.mark.usefixtures("quick")
def test_one_backend_and_one_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    bench(backends=["unicorn"], architectures=["aarch64"], form="json")
    found = json.loads(capsys.readouterr().out)
    assert {each["arch"] for each in found["calls"]} == {"aarch64"}
    bench(backends=["loopback"], form="json")
    found = json.loads(capsys.readouterr().out)
    assert {each["backend"] for each in found["calls"]} == {"loopback"}
    assert len(found["checks"]) == 2


def test_a_plot_needs_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callgate.bench.plot.find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r'needs matplotlib: pip install "callgate\[plot\]"'):
        check_plot(tmp_path / "figure.png")
    with pytest.raises(BenchError, match=r"must end in \.png, \.svg, \.pdf"):
        check_plot(tmp_path / "figure")


def test_a_plots_file_is_looked_at_before_anything_is_measured(tmp_path: Path) -> None:
    folder = tmp_path / "folder.png"
    folder.mkdir()
    for file in (tmp_path / "none" / "x.png", folder):
        with pytest.raises(BenchError, match=f"must be one that can be written, and {file} cannot"):
            check_plot(file)
    check_plot(tmp_path / "x.png")


def test_a_plot(tmp_path: Path) -> None:
    file = tmp_path / "figure.svg"
    draw([row(), row(bare=None, ratio=None, target=None)], file)
    assert "<svg" in file.read_text()
