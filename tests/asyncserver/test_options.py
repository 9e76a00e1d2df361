from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

from asyncserver.errors import OptionError
from asyncserver.options import MAX_BACKLOG, KeepAlive, SocketOptions


def test_defaults() -> None:
    assert SocketOptions() == SocketOptions(
        backlog=4096,
        reuse_address=True,
        reuse_port=False,
        no_delay=True,
        keep_alive=KeepAlive(idle=60.0, interval=15.0, probes=4),
        receive_buffer=None,
        send_buffer=None,
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: SocketOptions(backlog=1),
        lambda: SocketOptions(backlog=MAX_BACKLOG),
        lambda: SocketOptions(keep_alive=None),
        lambda: SocketOptions(receive_buffer=1, send_buffer=2**30 - 1),
        lambda: KeepAlive(idle=1, interval=32767, probes=127),
    ],
)
def test_what_is_in_range_is_taken(make: Callable[[], object]) -> None:
    assert make() == make()


WRONG: list[tuple[type, str, object, str]] = [
    (SocketOptions, "backlog", 0, "must be 1 to 65535"),
    (SocketOptions, "backlog", -1, "must be 1 to 65535"),
    (SocketOptions, "backlog", 65536, "must be 1 to 65535"),
    (SocketOptions, "backlog", True, "must be a whole number"),
    (SocketOptions, "backlog", "128", "must be a whole number"),
    (SocketOptions, "backlog", 1.0, "must be a whole number"),
    (SocketOptions, "backlog", None, "must be a whole number"),
    (SocketOptions, "reuse_address", 1, "must be True or False"),
    (SocketOptions, "reuse_port", "yes", "must be True or False"),
    (SocketOptions, "no_delay", None, "must be True or False"),
    (SocketOptions, "keep_alive", True, "must be a KeepAlive, or None"),
    (SocketOptions, "keep_alive", 60, "must be a KeepAlive, or None"),
    (SocketOptions, "receive_buffer", 0, "must be 1 to"),
    (SocketOptions, "receive_buffer", 2**30, "must be 1 to"),
    (SocketOptions, "send_buffer", -1, "must be 1 to"),
    (SocketOptions, "send_buffer", 64.5, "must be a whole number"),
    (KeepAlive, "idle", 0, "must be 1 to 32767 seconds"),
    (KeepAlive, "idle", 0.5, "must be 1 to 32767 seconds"),
    (KeepAlive, "idle", 1.5, "must be whole seconds"),
    (KeepAlive, "idle", 32768, "must be 1 to 32767 seconds"),
    (KeepAlive, "idle", float("nan"), "must be 1 to 32767 seconds"),
    (KeepAlive, "idle", float("inf"), "must be 1 to 32767 seconds"),
    (KeepAlive, "idle", None, "must be a number of seconds"),
    (KeepAlive, "idle", True, "must be a number of seconds"),
    (KeepAlive, "interval", "15", "must be a number of seconds"),
    (KeepAlive, "interval", -1, "must be 1 to 32767 seconds"),
    (KeepAlive, "probes", 0, "must be 1 to 127"),
    (KeepAlive, "probes", 128, "must be 1 to 127"),
    (KeepAlive, "probes", 4.0, "must be a whole number"),
]


@pytest.mark.parametrize(("kind", "option", "value", "reason"), WRONG)
def test_what_cannot_be_is_an_error_that_names_option_and_value(
    kind: type[Any], option: str, value: object, reason: str
) -> None:
    with pytest.raises(OptionError) as caught:
        kind(**{option: value})
    assert caught.value.option == option
    assert caught.value.value is value
    assert reason in caught.value.reason


def test_options_are_frozen_values_by_keyword_only() -> None:
    options = SocketOptions(backlog=7)
    assert replace(options, no_delay=False) == SocketOptions(backlog=7, no_delay=False)
    assert pickle.loads(pickle.dumps(options)) == options
    assert hash(options) == hash(SocketOptions(backlog=7))
    with pytest.raises(FrozenInstanceError):
        options.backlog = 8  # type: ignore[misc]
    with pytest.raises(TypeError):
        SocketOptions(128)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        KeepAlive(60)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        SocketOptions(nodelay=True)  # type: ignore[call-arg]


def test_every_option_is_covered_by_a_wrong_value() -> None:
    for kind in (SocketOptions, KeepAlive):
        assert {field.name for field in fields(kind)} == {name for k, name, *_ in WRONG if k is kind}
