from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from asyncserver import Limits, OptionError, Timeouts
from asyncserver.limits import TokenBucket


@pytest.mark.parametrize(("value", "option"), [(Limits(), "max_connections"), (Timeouts(), "idle")])
def test_the_defaults_are_valid_and_frozen(value: Any, option: str) -> None:
    assert dataclasses.replace(value) == value
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, option, 1)


def test_only_keywords() -> None:
    with pytest.raises(TypeError):
        Limits(5)  # type: ignore[misc]
    with pytest.raises(TypeError, match="max_conections"):
        Limits(max_conections=5)  # type: ignore[call-arg]


COUNTS = ["max_connections", "max_connections_per_peer", "max_handshakes", "receive_buffer", "send_buffer"]
NO_COUNTS = [0, -1, 1.0, math.nan, "5", True, b"", [], 10**6j]
CLOCKS = ["handshake", "first_byte", "idle", "send", "handler", "lifetime"]
DURATIONS = ["linger", "grace"]
NO_SECONDS = [-1, -0.001, math.nan, math.inf, -math.inf, "5", True, b"", [], 1j]

BAD_LIMITS = [
    *((option, value) for option in COUNTS for value in NO_COUNTS),
    *(("accept_rate", value) for value in [*NO_SECONDS, 0, 0.0]),
    *(("reject_message", value) for value in ["full", 5, bytearray(b"full"), memoryview(b"full"), True]),
    *(("when_full", value) for value in ["", "WAIT", "drop", None, 1, b"wait", True]),
    ("receive_buffer", None),
    ("receive_buffer", 1_048_577),
    ("send_buffer", None),
]

BAD_TIMEOUTS = [
    *((option, value) for option in [*CLOCKS, *DURATIONS] for value in NO_SECONDS),
    *((option, 0) for option in CLOCKS),
    *((option, None) for option in DURATIONS),
    *(("lifetime_jitter", value) for value in [-0.1, 1.1, math.nan, math.inf, "0.1", None, True, 1j]),
]


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [(Limits, *bad) for bad in BAD_LIMITS] + [(Timeouts, *bad) for bad in BAD_TIMEOUTS],
)
def test_an_error_names_the_option_and_its_value(kind: type[Any], option: str, value: object) -> None:
    with pytest.raises(OptionError) as caught:
        kind(**{option: value})
    assert caught.value.option == option
    assert caught.value.value is value
    assert f"{option}={value!r}: " in str(caught.value)


@pytest.mark.parametrize("value", NO_COUNTS)
def test_accept_burst_is_a_count(value: Any) -> None:
    with pytest.raises(OptionError, match="accept_burst="):
        Limits(accept_rate=1, accept_burst=value)


def test_accept_burst_needs_a_rate() -> None:
    with pytest.raises(OptionError, match="accept_burst=5: has no meaning without accept_rate"):
        Limits(accept_burst=5)


def test_a_long_reject_message_is_cut_in_the_error() -> None:
    assert Limits(reject_message=b"x" * 4_096).reject_message == b"x" * 4_096
    with pytest.raises(OptionError, match="4096") as caught:
        Limits(reject_message=b"x" * 4_097)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        *((Limits, option) for option in COUNTS[:3]),
        (Limits, "accept_rate"),
        (Limits, "reject_message"),
        *((Timeouts, option) for option in CLOCKS),
    ],
)
def test_none_is_no_limit(kind: type[Any], option: str) -> None:
    assert getattr(kind(**{option: None}), option) is None


def test_the_least_and_the_most_are_allowed() -> None:
    Limits(max_connections=1, max_connections_per_peer=1, max_handshakes=1, send_buffer=1, receive_buffer=1)
    Limits(receive_buffer=1_048_576, accept_rate=0.001, accept_burst=1, reject_message=b"")
    Timeouts(linger=0, grace=0.0, lifetime_jitter=0, handler=1e-9)
    Timeouts(lifetime_jitter=1)


class TestTokenBucket:
    def test_a_burst_is_granted_at_once(self) -> None:
        bucket = TokenBucket(rate=10, burst=3, now=100.0)
        assert [bucket.take(100.0) for _ in range(3)] == [0.0, 0.0, 0.0]
        assert bucket.take(100.0) == pytest.approx(0.1)

    def test_it_fills_with_time_and_no_further_than_the_burst(self) -> None:
        bucket = TokenBucket(rate=10, burst=2, now=0.0)
        assert [bucket.take(0.0), bucket.take(0.0)] == [0.0, 0.0]
        assert bucket.take(0.1) == 0.0
        assert bucket.take(0.1) > 0
        assert [bucket.take(1_000.0), bucket.take(1_000.0)] == [0.0, 0.0]
        assert bucket.take(1_000.0) > 0

    @pytest.mark.parametrize(("rate", "burst"), [(0.1, 1), (1, 1), (1.5, 2), (100, 100), (99.1, 100)])
    def test_the_burst_is_a_second_of_the_rate_unless_it_is_given(self, rate: float, burst: int) -> None:
        bucket = TokenBucket(rate, None, 0.0)
        assert [bucket.take(0.0) for _ in range(burst)] == [0.0] * burst
        assert bucket.take(0.0) > 0

    def test_who_waits_as_long_as_it_says_gets_a_token(self) -> None:
        bucket = TokenBucket(rate=3, burst=1, now=0.0)
        now = 0.0
        for _ in range(1_000):
            while delay := bucket.take(now):
                assert delay <= 1 / 3
                now += max(delay, 1e-9)
        assert now == pytest.approx(999 / 3, rel=1e-6)

    def test_a_change_keeps_the_tokens(self) -> None:
        """Those of the time before it came at the old rate."""
        bucket = TokenBucket(rate=10, burst=3, now=0.0)
        assert [bucket.take(0.0) for _ in range(3)] == [0.0] * 3
        bucket.change(1, 3, 0.2)
        assert [bucket.take(0.2), bucket.take(0.2)] == [0.0, 0.0]
        assert bucket.take(0.2) == pytest.approx(1.0)
