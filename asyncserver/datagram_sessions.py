"""``Sessions``: gives each packet to the session of its peer, opens sessions and ends them."""

# A session and its keeper are two sides of one thing: what handlers see of it, and what the server does.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import contextvars
import errno
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeAlias, cast

from anyio import ClosedResourceError, EndOfStream

from asyncserver.ancillary import NetworkError
from asyncserver.checks import counted
from asyncserver.datagram import Datagram
from asyncserver.datagram_dispatch import Ended
from asyncserver.datagram_endpoint import DatagramEndpoint
from asyncserver.datagram_limits import DatagramLimits, DatagramTimeouts
from asyncserver.datagram_statistics import SessionEnd
from asyncserver.errors import PeerUnreachableError
from asyncserver.session import Session

__all__ = ["SessionFunction", "Sessions"]

SessionFunction: TypeAlias = Callable[[Session], Coroutine[Any, Any, object]]

_NAME = "datagram-session"
# Sessions are looked at so often within ``session_idle`` and ``grace``, but not more often than each 10 ms.
_LOOKS = 8
_SHORTEST_LOOK = 0.01
# Of the handlers that go on although their sessions are over, the most that there may be beside
# ``max_sessions``: such a fraction of these, and at least so many.
_LINGERING_FRACTION = 10
_LEAST_LINGERING = 1_000


class Sessions:
    """Belongs to one run of a server. All packets of all its endpoints come here."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handler: SessionFunction,
        limits: DatagramLimits,
        timeouts: DatagramTimeouts,
        host: Ended,
    ) -> None:
        self._loop = loop
        self._context = contextvars.copy_context()
        self._handler = handler
        self._host = host
        self._limits = limits
        self._timeouts = timeouts
        # By key, the least recently used first.
        self._sessions: OrderedDict[Hashable, Session] = OrderedDict()
        # Those that were told to end, or forgotten, and whose handlers go on; since when, or since when they
        # are cancelled. The longest first.
        self._lingering: OrderedDict[Session, float] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = 0.0
        self._draining = self._closed = False
        self._empty = asyncio.Event()
        # Those that have not heeded their cancellation: nothing waits for them.
        self._stuck: set[Session] = set()
        self.handled: int = 0
        self.dropped: int = 0
        self.peak: int = 0
        self.ended: Counter[SessionEnd] = Counter()
        self.ended_in_peace: int = 0
        """Sessions that ended without being cancelled by the server."""
        self.ended_by_force: int = 0
        """Sessions that were cancelled by the server, or left behind."""

    def update(self, limits: DatagramLimits, timeouts: DatagramTimeouts) -> None:
        """Obey other limits and timeouts from now on."""
        self._limits = limits
        self._timeouts = timeouts
        while len(self._sessions) > limits.max_sessions:
            self._evict()
        self._stop_looking()
        self._look_later()

    # --- what there is ---

    @property
    def queued(self) -> int:
        """Packets that no handler has taken yet."""
        return sum(session.queued for session in (*self._sessions.values(), *self._lingering))

    @property
    def running(self) -> int:
        """Handlers of single packets: none."""
        return 0

    @property
    def failed(self) -> int:
        """Packets whose handlers have raised: what counts here is how sessions end."""
        return 0

    @property
    def cancelled(self) -> int:
        """Packets whose handlers were cancelled: none, likewise."""
        return 0

    @property
    def stuck(self) -> int:
        """Handlers that go on although they were cancelled and given up."""
        return len(self._stuck)

    @property
    def current(self) -> int:
        """Sessions whose handlers run, but for the stuck ones."""
        return len(self._sessions) + len(self._lingering)

    @property
    def under_way(self) -> str:
        """In words."""
        return counted(self.current, "session")

    def runs_in(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether a session's handler runs in this task."""
        everyone = (*self._sessions.values(), *self._lingering)
        return task is not None and any(session.task is task for session in everyone)

    # --- packets ---

    def deliver(self, batch: list[Datagram]) -> None:
        """Give each to its session. Only from callbacks of the loop."""
        sessions, most = self._sessions, self._limits.session_queue
        drop_oldest = self._limits.when_full == "drop_oldest"
        now = self._loop.time()
        rest = iter(batch)
        try:
            for datagram in rest:
                key = datagram.peer_key
                session = sessions.get(key)
                if session is not None and (session.task is None or session.task.done()):
                    self.handler_ended(session)  # This packet has come before the callback of its task.
                    session = None
                if session is None:
                    if self._closed or not self._make_room():
                        self.dropped += 1
                        continue
                    session = self._open(datagram, key, now)
                else:
                    sessions.move_to_end(key)
                    session.used_at = now
                self.dropped += session.feed(datagram, most, drop_oldest=drop_oldest)
        except BaseException:  # SystemExit, from a handler.
            self.dropped += len(list(rest))
            raise

    def _open(self, first: Datagram, key: Hashable, now: float) -> Session:
        session = Session(first, key, self, self._loop, now)
        self._sessions[key] = session
        task = _SessionTask(self._handler(session), loop=self._loop, name=_NAME, context=self._context.copy())
        task.session = session
        session.task = task
        task.add_done_callback(_on_done, context=self._context)
        self.peak = max(self.peak, self.current)
        if len(self._sessions) == 1:  # The next look may be for those that linger, and much later.
            self._look_later()
        return session

    def network_error(self, endpoint: DatagramEndpoint, error: NetworkError) -> None:
        """Tell the session that it concerns, if there is one."""
        if error.errno == errno.EMSGSIZE:
            return  # A router wants smaller packets, and the kernel makes them from now on.
        session = self._sessions.get(endpoint.packets.key_for(error.peer, error.local))
        if session is not None:
            session.fail(PeerUnreachableError(str(error.peer), error.errno, os.strerror(error.errno)))

    # --- what sessions call ---

    def touch(self, session: Session) -> None:
        """See ``SessionHost``."""
        if self._sessions.get(session._key) is session:
            self._sessions.move_to_end(session._key)
            session.used_at = self._loop.time()

    def took(self) -> None:
        """See ``SessionHost``."""
        self.handled += 1

    def forget(self, session: Session) -> None:
        """See ``SessionHost``."""
        self.dropped += session.drop_queue()
        self._linger(session)

    # --- ending them ---

    def _make_room(self) -> bool:
        """Room for one more; False if there can be none: too many go on that were told to end."""
        most = self._limits.max_sessions
        lingering = max(_LEAST_LINGERING, most // _LINGERING_FRACTION)
        if self.current + len(self._stuck) >= most + lingering:
            return False
        if len(self._sessions) >= most:
            self._evict()
        return True

    def _evict(self) -> None:
        self._tell(next(iter(self._sessions.values())), SessionEnd.EVICTED)

    def _tell(self, session: Session, reason: SessionEnd) -> None:
        session.tell_to_end(reason)
        self._linger(session)

    def _linger(self, session: Session) -> None:
        """It is out of the way of its successor, and may go on for a while."""
        if self._sessions.get(session._key) is session:
            del self._sessions[session._key]
            self._lingering[session] = self._loop.time()
            self._look_later()

    # --- looking after them ---

    def _look_later(self) -> None:
        lengths = [self._timeouts.grace] if self._lingering else []
        if self._sessions and self._timeouts.session_idle is not None:
            lengths.append(self._timeouts.session_idle)
        if not lengths or self._closed:
            return
        delay = max(_SHORTEST_LOOK, min(lengths) / _LOOKS)
        looks_at = self._loop.time() + delay
        if self._timer is None or looks_at < self._looks_at:
            self._stop_looking()
            self._timer = self._loop.call_later(delay, self._look)
            self._looks_at = looks_at

    def _stop_looking(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        if not self._draining:
            self._look_for_idle(now)
        self._look_for_lingering(now)
        self._look_later()

    def _look_for_idle(self, now: float) -> None:
        idle = self._timeouts.session_idle
        while self._sessions and idle is not None:
            oldest = next(iter(self._sessions.values()))
            if now - oldest.used_at < idle:
                break
            self._tell(oldest, SessionEnd.IDLE)

    def _look_for_lingering(self, now: float) -> None:
        """Cancel those that have used up their grace; and give up those that have done so once more."""
        for session, since in list(self._lingering.items()):
            if now - since < self._timeouts.grace:
                break
            self._lingering[session] = now
            self._lingering.move_to_end(session)
            if session.end is SessionEnd.CANCELLED:
                del self._lingering[session]
                self._leave_behind(session)
            elif session.close_reason is not SessionEnd.CLOSED:
                self._cancel(session)

    def _cancel(self, session: Session) -> None:
        if session.task is not None and session.end is None:
            session.end = SessionEnd.CANCELLED
            session.task.cancel()

    def _leave_behind(self, session: Session) -> None:
        self._stuck.add(session)
        self.ended_by_force += 1
        self.dropped += session.drop_queue()
        session.close()
        self._note_if_empty()

    def _note_if_empty(self) -> None:
        if not self.current:
            self._empty.set()

    def handler_ended(self, session: Session) -> None:
        """See ``SessionHost``."""
        task, session.task = session.task, None
        if task is None:
            return  # It was noticed before.
        if session.end is None:
            self.ended_in_peace += 1
        elif session not in self._stuck:
            self.ended_by_force += 1
        session.end = self._judge(session, task)
        self.ended[session.end] += 1
        self.dropped += session.drop_queue()
        session.close()  # For tasks that the handler has left behind.
        if self._sessions.get(session._key) is session:
            del self._sessions[session._key]
        self._lingering.pop(session, None)
        self._stuck.discard(session)
        self._note_if_empty()

    def _judge(self, session: Session, task: asyncio.Task[Any]) -> SessionEnd:
        told = session._told
        if task.cancelled():
            return session.end or SessionEnd.HANDLER_CANCELLED
        exc = task.exception()
        if exc is None:
            return session.end or told or SessionEnd.HANDLER_RETURNED
        if told is not None and _consists_of(exc, _AT_THE_END):
            return session.end or told
        if _consists_of(exc, PeerUnreachableError):
            return session.end or told or SessionEnd.UNREACHABLE
        if isinstance(exc, Exception):
            self._host.handler_failed(session, exc)
        return SessionEnd.HANDLER_ERROR

    # --- the end of the server ---

    def tell_to_end(self) -> int:
        """Tell all of them; returns how many of them wait for a packet, and have none."""
        self._draining = True
        idle = sum(session.is_waiting for session in self._sessions.values())
        for session in self._sessions.values():
            session.tell_to_end(SessionEnd.DRAINED)
        return idle

    async def wait_empty(self) -> None:
        """Wait until there is no session, but for the stuck ones."""
        while self.current:
            self._empty.clear()
            await self._empty.wait()

    def cancel_all(self) -> int:
        """Cancel all handlers; returns how many."""
        self._closed = True
        everyone = [*self._sessions.values(), *self._lingering]
        for session in everyone:
            self._cancel(session)
        return len(everyone)

    def abandon(self) -> int:
        """Leave the handlers behind that have not heeded their cancellation; returns how many."""
        left = [*self._sessions.values(), *self._lingering]
        self._sessions.clear()
        self._lingering.clear()
        for session in left:
            self._leave_behind(session)
        self._empty.set()
        return len(left)

    def close(self) -> None:
        """Nothing is delivered any more."""
        self.cancel_all()
        self._stop_looking()


class _SessionTask(asyncio.Task[Any]):
    """Knows its session: a callback that does takes 64 bytes more."""

    __slots__ = ("session",)

    session: Session


def _on_done(task: Any) -> None:
    session: Session = task.session
    session._host.handler_ended(session)


# What a handler need not catch when its session was told to end.
_AT_THE_END = (EndOfStream, ClosedResourceError, PeerUnreachableError)


def _consists_of(exc: BaseException, kinds: type[BaseException] | tuple[type[BaseException], ...]) -> bool:
    """Whether it is one of these, or a group of nothing else."""
    if isinstance(exc, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", exc)
        return all(_consists_of(part, kinds) for part in group.exceptions)
    return isinstance(exc, kinds)
