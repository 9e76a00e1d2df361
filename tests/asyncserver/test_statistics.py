from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any

import pytest

from asyncserver import CloseReason, ConnectionState, DrainReport, ListenerStatistics, ServerStatistics

LISTENER = ListenerStatistics("tcp://127.0.0.1:1", 1, 0, 0, frozenset())
SERVER = ServerStatistics(
    uptime=1.0,
    current=0,
    peak=1,
    accepted=1,
    rejected=0,
    handshakes=0,
    bytes_received=5,
    bytes_sent=5,
    stuck_handlers=0,
    states=MappingProxyType({}),
    closed=MappingProxyType({CloseReason.EOF: 1}),
    listeners=(LISTENER,),
)
REPORT = DrainReport(idle=1, finished=2, cancelled=0, aborted=0, duration=0.5)


@pytest.mark.parametrize("value", [LISTENER, SERVER, REPORT])
def test_they_are_frozen(value: Any) -> None:
    for field in dataclasses.fields(value):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, 5)
    with pytest.raises((AttributeError, TypeError)):
        value.something_else = 5


@pytest.mark.parametrize(
    ("changes", "clean"), [({}, True), ({"cancelled": 1}, False), ({"aborted": 1}, False)]
)
def test_a_drain_is_clean_when_nobody_was_forced(changes: dict[str, int], clean: bool) -> None:
    assert dataclasses.replace(REPORT, **changes).clean is clean


@pytest.mark.parametrize("kind", [CloseReason, ConnectionState])
def test_reasons_and_states_are_their_text(kind: Any) -> None:
    for member in kind:
        assert str(member) == member.value == member
        assert member.name.lower() == member.value
