from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from asyncserver import DatagramLimits, DatagramTimeouts, OptionError


def test_limits_that_are_not_set() -> None:
    assert DatagramLimits() == DatagramLimits(
        max_packet_size=65_535,
        max_handlers=100,
        order="any",
        max_queue=1_000,
        when_full="drop_newest",
        max_sessions=10_000,
        session_queue=100,
    )


def test_timeouts_that_are_not_set() -> None:
    assert DatagramTimeouts() == DatagramTimeouts(handler=None, session_idle=300.0, send=5.0, grace=5.0)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_packet_size", 1),
        ("max_packet_size", 65_535),
        ("max_handlers", 1),
        ("max_handlers", None),
        ("order", "any"),
        ("order", "peer"),
        ("order", "strict"),
        ("max_queue", 0),
        ("when_full", "drop_newest"),
        ("when_full", "drop_oldest"),
        ("max_sessions", 1),
        ("session_queue", 1),
    ],
)
def test_limits_that_can_be(option: str, value: Any) -> None:
    assert getattr(DatagramLimits(**{option: value}), option) == value


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("max_packet_size", 0, "at least 1 bytes"),
        ("max_packet_size", 65_536, "at most 65535 bytes"),
        ("max_packet_size", None, "a whole number of bytes"),
        ("max_packet_size", 1.0, "a whole number of bytes"),
        ("max_packet_size", True, "a whole number of bytes"),
        ("max_handlers", 0, "at least 1 handlers, or None"),
        ("max_handlers", "5", "a whole number of handlers, or None"),
        ("max_handlers", True, "a whole number of handlers, or None"),
        ("order", "fifo", "'any', 'peer' or 'strict'"),
        ("order", None, "'any', 'peer' or 'strict'"),
        ("max_queue", -1, "at least 0 packets"),
        ("max_queue", None, "a whole number of packets"),
        ("when_full", "drop", "'drop_newest' or 'drop_oldest'"),
        ("when_full", None, "'drop_newest' or 'drop_oldest'"),
        ("max_sessions", 0, "at least 1 sessions"),
        ("max_sessions", None, "a whole number of sessions"),
        ("session_queue", 0, "at least 1 packets"),
        ("session_queue", None, "a whole number of packets"),
    ],
)
def test_limits_that_cannot_be(option: str, value: Any, reason: str) -> None:
    with pytest.raises(OptionError, match=reason) as caught:
        DatagramLimits(**{option: value})
    assert (caught.value.option, caught.value.value) == (option, value)
    assert str(caught.value).startswith(f"{option}={value!r}: ")


@pytest.mark.parametrize("option", ["handler", "session_idle", "send", "grace"])
@pytest.mark.parametrize("value", [-1, -0.5, math.nan, math.inf, "5", True, [1]])
def test_no_number_of_seconds(option: str, value: Any) -> None:
    with pytest.raises(OptionError, match="seconds") as caught:
        DatagramTimeouts(**{option: value})
    assert caught.value.option == option
    assert caught.value.value is value


@pytest.mark.parametrize("option", ["handler", "session_idle", "send"])
def test_timeouts_that_can_be_off_and_cannot_be_zero(option: str) -> None:
    assert getattr(DatagramTimeouts(**{option: None}), option) is None
    assert getattr(DatagramTimeouts(**{option: 0.5}), option) == 0.5
    with pytest.raises(OptionError, match="more than zero seconds") as caught:
        DatagramTimeouts(**{option: 0})
    assert (caught.value.option, caught.value.value) == (option, 0)


def test_grace_can_be_zero_and_cannot_be_off() -> None:
    assert DatagramTimeouts(grace=0).grace == 0
    with pytest.raises(OptionError, match="zero does not wait") as caught:
        DatagramTimeouts(grace=None)  # type: ignore[arg-type]
    assert (caught.value.option, caught.value.value) == ("grace", None)


@pytest.mark.parametrize("values", [DatagramLimits(), DatagramTimeouts()])
def test_they_are_values(values: Any) -> None:
    name = dataclasses.fields(values)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(values, name, 5)
    assert dataclasses.replace(values) == values
    assert hash(dataclasses.replace(values)) == hash(values)
    with pytest.raises(TypeError):
        type(values)(5)
