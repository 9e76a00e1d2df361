from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from anyio import BrokenResourceError, ClosedResourceError, DelimiterNotFound, EndOfStream, IncompleteRead

from asyncserver import CloseReason, ConnectionTimeoutError, TLSUpgradeError
from asyncserver.blame import blame


def channel(**state: bool) -> Any:
    return SimpleNamespace(
        **{"input_over": False, "broken": False, "overrun": False, "closed": False} | state
    )


OVER = channel(input_over=True)
BROKEN = channel(broken=True)
OVERRUN = channel(overrun=True)
FAILED_UPGRADE = channel(closed=True)

PEERS_FAULTS = [
    (EndOfStream(), OVER, CloseReason.EOF),
    (IncompleteRead(), OVER, CloseReason.EOF),
    (BrokenResourceError(), BROKEN, CloseReason.RESET),
    (DelimiterNotFound(5), OVERRUN, CloseReason.PROTOCOL_ERROR),
    (TLSUpgradeError("no"), FAILED_UPGRADE, CloseReason.HANDSHAKE_FAILED),
    *(
        (ConnectionTimeoutError(deadline, 1.0), channel(), CloseReason(f"{deadline}_timeout"))
        for deadline in ("handshake", "first_byte", "idle", "send")
    ),
]


@pytest.mark.parametrize(("exc", "state", "reason"), PEERS_FAULTS)
def test_what_the_peer_did(exc: Exception, state: Any, reason: CloseReason) -> None:
    assert blame(exc, state) is reason


@pytest.mark.parametrize(("exc", "state", "reason"), PEERS_FAULTS)
def test_in_groups_in_groups(exc: Exception, state: Any, reason: CloseReason) -> None:
    assert blame(ExceptionGroup("", [ExceptionGroup("", [exc]), exc]), state) is reason
    assert blame(ExceptionGroup("", [exc, ValueError()]), state) is None
    assert blame(ExceptionGroup("", [ExceptionGroup("", [ValueError()]), exc]), state) is None


@pytest.mark.parametrize(
    ("exc", "state"),
    [
        # The same, but of some other stream than the connection's.
        *((exc, channel()) for exc, _, _ in PEERS_FAULTS[:5]),
        (EndOfStream(), BROKEN),
        (BrokenResourceError(), OVER),
        (DelimiterNotFound(5), OVER),
        (ConnectionTimeoutError("something", 1.0), channel()),
        (ClosedResourceError(), OVER),
        (TimeoutError(), channel()),
        (ConnectionResetError(), BROKEN),
        (ValueError(), channel(input_over=True, broken=True, overrun=True)),
        (BaseExceptionGroup("", [EndOfStream(), asyncio.CancelledError()]), OVER),
    ],
)
def test_what_the_program_did(exc: BaseException, state: Any) -> None:
    assert blame(exc, state) is None
