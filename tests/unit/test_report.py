# SPDX-License-Identifier: MIT
"""Bugs of a model: the user's own traceback, once."""

import logging
import threading
from collections.abc import Callable

import pytest

from callgate.device import Device
from callgate.register import Register
from callgate.report import Bugs, user_traceback


class Small(Device):
    id = 0x1AF4, 0x10F0
    control = Register(0)


def caught(act: Callable[[], object]) -> Exception:
    try:
        act()
    except Exception as error:
        return error
    raise AssertionError


def divide() -> None:
    _ = 1 / 0


def overflow() -> None:
    Small().control = 1 << 40  # Raised inside of callgate.


def chained() -> None:
    try:
        overflow()
    except ValueError as error:
        raise LookupError("no such thing") from error


def loud(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def test_the_traceback_is_the_users() -> None:
    text = user_traceback(caught(overflow))
    assert text.startswith("Traceback (most recent call last):\n")
    assert "in overflow" in text
    assert text.endswith("ValueError: Small.control must fit 32 bits, and 0x10000000000 does not")
    assert "register.py" not in text


def test_so_is_that_of_what_led_to_it() -> None:
    text = user_traceback(caught(chained))
    assert "The above exception was the direct cause" in text
    assert text.count("in overflow") == 1
    assert "register.py" not in text


def test_a_bug_of_our_own_is_shown_whole() -> None:
    """Nothing of the user's is in it, so there is nothing to choose."""
    error = caught(overflow)
    assert error.__traceback__ is not None
    ours = error.__traceback__.tb_next
    while ours is not None and "register.py" not in ours.tb_frame.f_code.co_filename:
        ours = ours.tb_next
    assert ours is not None
    assert "register.py" in user_traceback(error.with_traceback(ours))


def test_a_folder_that_is_named_like_ours_is_not_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from callgate import report

    assert report.is_ours(report.__file__)
    assert not report.is_ours(report.__file__.replace("/callgate/", "/callgate_models/"))
    assert not report.is_ours(report.__file__.replace("report.py", "devices/uart.py"))
    assert report.is_ours("<callgate stub of add(u64)->u64>")


def test_a_bug_is_told_loudly_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "callgate.device")
    bugs = Bugs()
    for _ in range(3):
        bugs.report("adder.add", caught(divide))
    assert len(loud(caplog)) == 1
    assert loud(caplog)[0].startswith("adder.add: the device model raised\nTraceback")
    quiet = [record for record in caplog.records if record.levelno == logging.DEBUG]
    assert [record.getMessage() for record in quiet] == [
        "adder.add: the device model raised again (ZeroDivisionError)"
    ] * 2


def test_another_bug_is_another_place_kind_or_line(caplog: pytest.LogCaptureFixture) -> None:
    bugs = Bugs()
    for where in ("adder.add", "adder.half"):
        bugs.report(where, caught(divide))
        bugs.report(where, caught(overflow))
        bugs.report(where, caught(lambda: 1 % 0))
    assert len(loud(caplog)) == 6


def test_what_the_guest_chose_is_shown_but_makes_no_other_bug(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bugs = Bugs()
    for offset in range(5):
        bugs.report("uart.window, read by the guest", caught(divide), at=f" at {offset:#x}")
    assert len(loud(caplog)) == 1
    assert loud(caplog)[0].startswith("uart.window, read by the guest at 0x0: the device model")


def test_devices_have_bugs_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        Bugs().report("adder.add", caught(divide))
    assert len(loud(caplog)) == 2


def test_the_log_does_not_grow_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    bugs = Bugs()
    for number in range(1000):
        bugs.report(f"place {number}", caught(divide))
    assert len(loud(caplog)) == 256


def test_an_exception_that_cannot_be_shown(caplog: pytest.LogCaptureFixture) -> None:
    class Rude(Exception):
        def __str__(self) -> str:
            raise ValueError("not even my name")

    def act() -> None:
        raise Rude

    Bugs().report("adder.add", caught(act))
    assert "Rude" in loud(caplog)[0]


def test_from_several_threads(caplog: pytest.LogCaptureFixture) -> None:
    bugs = Bugs()
    error = caught(divide)

    def report() -> None:
        for _ in range(50):
            bugs.report("x", error)

    threads = [threading.Thread(target=report) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert len(loud(caplog)) == 1
    assert bugs.counts == {"x": 200}
