# SPDX-License-Identifier: MIT
"""What `from callgate import ...` offers is a promise: a change here is a change for users."""

import tomllib
from pathlib import Path

import pytest

import callgate

ROOT = Path(__file__).resolve().parents[2]

DECLARE = {"Bar", "Device", "Field", "Interrupt", "Interrupts", "Register", "Timer"}
CALL = {"Buffer", "BufferIn", "BufferInOut", "BufferOut", "call"}
WIDTHS = {"i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"}
RUN = {"Machine", "main"}
ERRORS = {
    "BackendError",
    "BudgetError",
    "CallError",
    "CallgateError",
    "DeclarationError",
    "DeviceError",
    "DmaError",
    "GuestError",
    "LoadError",
    "PlugError",
    "Stopped",
    "VectorError",
}
PUBLIC = DECLARE | CALL | WIDTHS | RUN | ERRORS


def test_the_public_names_are_these() -> None:
    assert set(callgate.__all__) == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_can_be_imported(name: str) -> None:
    assert getattr(callgate, name) is not None


@pytest.mark.parametrize("name", sorted(PUBLIC - WIDTHS))
def test_a_public_name_says_what_it_is_for(name: str) -> None:
    assert (getattr(callgate, name).__doc__ or "").strip()


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_every_error_is_a_callgate_error(name: str) -> None:
    assert issubclass(getattr(callgate, name), callgate.CallgateError)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = callgate.nonsense


def test_the_version_is_the_one_that_is_packaged() -> None:
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert callgate.__version__ == packaged
