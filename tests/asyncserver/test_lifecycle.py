"""``Lifecycle`` with a hub that has jobs instead of connections: it knows nothing of what is under way."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from asyncserver import (
    Address,
    BindError,
    DrainReport,
    LifespanError,
    LoopName,
    OptionError,
    ServerStateError,
    TCPAddress,
    run_server,
)
from asyncserver.lifecycle import Lifecycle
from tests.waiting import MS, stays, wait_until, within

Job = Callable[[], Awaitable[None]]


@dataclasses.dataclass(frozen=True)
class Capacity:
    jobs: int = 10


@dataclasses.dataclass(frozen=True)
class Patience:
    job: float | None = None
    grace: float = 50 * MS


class FakeSocket:
    def __init__(self, address: Address, events: list[str]) -> None:
        self.address = address
        self._events = events

    def release(self) -> None:
        assert threading.current_thread() is not threading.main_thread(), "it blocks"
        self._events.append("released")

    def abandon(self) -> None:
        self._events.append("abandoned")


class JobHub:
    """Runs jobs, each in a task."""

    def __init__(self, limits: Capacity, timeouts: Patience, events: list[str]) -> None:
        self.limits = limits
        self.timeouts = timeouts
        self.jobs: set[asyncio.Future[None]] = set()
        self.told = asyncio.Event()
        self._events = events

    def run(self, job: Job) -> asyncio.Future[None]:
        task = asyncio.ensure_future(job())
        self.jobs.add(task)
        task.add_done_callback(self.jobs.discard)
        return task

    def update(self, limits: Capacity, timeouts: Patience) -> None:
        self.limits, self.timeouts = limits, timeouts

    def runs_in(self, task: asyncio.Task[Any] | None) -> bool:
        return task in self.jobs

    async def release_sockets(self) -> None:
        self._events.append("released early")

    async def drain(
        self, timeout: float | None, release: Callable[[], Awaitable[None]] | None
    ) -> DrainReport:
        if release is not None:
            await release()
        before = len(self.jobs)
        self.told.set()
        if self.jobs and timeout != 0:
            await asyncio.wait(self.jobs, timeout=timeout)
        cancelled = len(self.jobs)
        self.cancel_all()
        if self.jobs:
            await asyncio.wait(self.jobs, timeout=self.timeouts.grace)
        left = len(self.jobs)
        self._events.append("drained")
        return DrainReport(0, before - cancelled, cancelled - left, left, 0.0)

    def cancel_all(self) -> None:
        for job in self.jobs:
            job.cancel()

    def abort_all(self) -> None:
        self._events.append("aborted")

    async def close(self) -> None:
        self._events.append("hub closed")


class JobServer(Lifecycle[JobHub, FakeSocket, Capacity, Patience]):
    """Its events are what has happened to it, in order."""

    _limits_type = Capacity
    _timeouts_type = Patience

    def __init__(self, **options: Any) -> None:
        self.events: list[str] = []
        self.opening = threading.Event()
        self.may_open = threading.Event()
        self.may_open.set()
        self.failure: Exception | None = None
        options = {"limits": None, "timeouts": None, "lifespan": self._log_lifespan} | options
        super().__init__(["job:requested"], **options)

    @staticmethod
    @asynccontextmanager
    async def _log_lifespan(server: JobServer) -> AsyncIterator[str]:
        server.events.append("lifespan begins")
        yield "a value"
        server.events.append("lifespan ends")

    async def _prepare(self) -> None:
        self.events.append("prepared")

    def _open_sockets(self) -> list[FakeSocket]:
        self.opening.set()
        assert self.may_open.wait(10)
        if self.failure is not None:
            raise self.failure
        self.events.append("opened")
        return [FakeSocket(TCPAddress("127.0.0.1", 1234), self.events)]

    def _make_hub(self, loop: asyncio.AbstractEventLoop) -> JobHub:
        assert loop is asyncio.get_running_loop()
        return JobHub(self.limits, self.timeouts, self.events)

    def _begin(self, hub: JobHub, opened: Sequence[FakeSocket], exits: AsyncExitStack) -> None:
        assert self.addresses == tuple(each.address for each in opened)
        exits.callback(self.events.append, "ended before the hub")
        self.events.append("begun")

    @property
    def under_way(self) -> str:
        return f"{len(self.hub.jobs)} jobs"

    @property
    def hub(self) -> JobHub:
        return self._require_hub()


STARTED = ["prepared", "lifespan begins", "opened", "begun"]
CLOSED = ["drained", "aborted", "ended before the hub", "hub closed", "released", "lifespan ends"]


async def for_ever() -> None:
    await asyncio.Event().wait()


async def test_order_of_start_and_end() -> None:
    server = JobServer()
    assert repr(server) == "<JobServer job:requested stopped>"
    for _ in range(2):
        async with server:
            assert server.events == STARTED
            assert server.ready
            assert server.lifespan_state == "a value"
            assert repr(server) == "<JobServer tcp://127.0.0.1:1234 serving>"
        assert server.events == STARTED + CLOSED
        assert (server.ready, server.addresses, server.lifespan_state) == (False, (), None)
        server.events.clear()


async def test_serve_and_wait() -> None:
    server = JobServer()
    await server.wait_closed()
    ready = asyncio.ensure_future(server.wait_ready())
    serving = asyncio.ensure_future(server.serve())
    await within(ready)
    await stays(lambda: not serving.done())
    await server.aclose()
    await within(serving)
    await within(server.wait_closed())


async def test_drain_releases_tells_waits_and_reports() -> None:
    server = JobServer()
    await server.start()
    hub = server.hub
    hub.run(hub.told.wait)  # type: ignore[arg-type]
    hub.run(for_ever)
    report = await within(server.drain(50 * MS))
    assert (report.finished, report.cancelled, report.aborted) == (1, 1, 0)
    assert server.events[4:6] == ["released early", "drained"]
    assert server.events[-2:] == ["released", "lifespan ends"]
    assert (await server.drain()).clean, "nothing happens when it is closed"


async def test_not_ready_while_it_drains() -> None:
    server = JobServer()
    await server.start()
    server.hub.run(for_ever)
    draining = asyncio.ensure_future(server.drain(None, delay=20 * MS))
    await wait_until(lambda: not server.ready)
    assert "released early" not in server.events
    await wait_until(lambda: "released early" in server.events)
    await stays(lambda: not draining.done())
    await within(server.aclose())
    await within(draining)


async def test_grace_of_aclose_reaches_the_hub() -> None:
    server = JobServer(timeouts=Patience(job=1.0, grace=3600.0))
    await server.start()
    hub = server.hub

    async def stubborn() -> None:
        while not given_up.is_set():
            try:
                await given_up.wait()
            except asyncio.CancelledError:
                continue

    given_up = asyncio.Event()
    job = hub.run(stubborn)
    await stays(lambda: not job.done(), during=10 * MS)
    await within(server.aclose(grace=10 * MS))
    assert hub.timeouts == Patience(job=1.0, grace=10 * MS)
    assert server.timeouts.grace == 3600.0
    given_up.set()
    await within(job)


@pytest.mark.parametrize("what", ["drain", "aclose"])
async def test_jobs_cannot_wait_for_themselves(what: str) -> None:
    async with JobServer() as server:

        async def stop() -> None:
            await getattr(server, what)()

        with pytest.raises(ServerStateError, match=rf"create_task\(server\.{what}\(\)\)"):
            await within(server.hub.run(stop))
        assert server.ready


async def test_drain_before_the_start() -> None:
    with pytest.raises(ServerStateError):
        await JobServer().drain()


async def test_cancelled_while_sockets_are_opened() -> None:
    server = JobServer()
    server.may_open.clear()
    starting = asyncio.ensure_future(server.start())
    await wait_until(server.opening.is_set)
    starting.cancel()
    await stays(lambda: not starting.done())
    server.may_open.set()
    with pytest.raises(asyncio.CancelledError):
        await within(starting)
    assert server.events == ["prepared", "lifespan begins", "opened", "abandoned", "lifespan ends"]


async def test_closed_while_sockets_are_opened() -> None:
    server = JobServer()
    server.may_open.clear()
    starting = asyncio.ensure_future(server.start())
    await wait_until(server.opening.is_set)
    closing = asyncio.ensure_future(server.aclose())
    await stays(lambda: not closing.done())
    server.may_open.set()
    with pytest.raises(ServerStateError, match="while it was starting"):
        await within(starting)
    await within(closing)
    assert server.events[-2:] == ["released", "lifespan ends"]


async def test_failed_opening() -> None:
    server = JobServer()
    server.failure = BindError("job:requested", "on purpose")
    with pytest.raises(BindError):
        await server.start()
    assert server.events == ["prepared", "lifespan begins", "lifespan ends"]
    server.failure = None
    await server.start()
    await server.aclose()


async def test_failed_lifespan() -> None:
    @asynccontextmanager
    async def lifespan(server: JobServer) -> AsyncIterator[None]:
        raise LookupError("on purpose")
        yield

    server = JobServer(lifespan=lifespan)
    with pytest.raises(LifespanError, match="on purpose"):
        await server.start()
    assert server.events == ["prepared"]


@pytest.mark.parametrize("option", ["limits", "timeouts", "lifespan"])
def test_options_are_checked(option: str) -> None:
    with pytest.raises(OptionError) as caught:
        JobServer(**{option: 7})
    assert caught.value.option == option


async def test_update_of_other_dataclasses() -> None:
    server = JobServer()
    server.update(jobs=5)
    async with server:
        assert server.hub.limits == Capacity(5)
        server.update(Capacity(7), job=2.0)
        assert (server.limits, server.timeouts) == (Capacity(7), Patience(job=2.0))
        assert (server.hub.limits, server.hub.timeouts) == (server.limits, server.timeouts)
        with pytest.raises(OptionError, match="is not a field of Capacity or Patience"):
            server.update(jobs=8, max_connections=3)
        assert server.limits == Capacity(7)


def test_is_run_as_any_server(loop_name: LoopName, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "asyncserver")
    servers = [JobServer(), JobServer()]
    kept: list[asyncio.Future[None]] = []

    @asynccontextmanager
    async def lifespan(server: JobServer) -> AsyncIterator[None]:
        kept.append(asyncio.ensure_future(close_all(server)))
        yield

    async def close_all(last: JobServer) -> None:
        await wait_until(lambda: any("listening" in message for message in caplog.messages))
        for server in (*servers, last):
            await server.aclose()

    run_server(*servers, JobServer(lifespan=lifespan), loop=loop_name)
    assert all(server.events == STARTED + CLOSED for server in servers)
    assert "listening on " + ", ".join(["tcp://127.0.0.1:1234"] * 3) in caplog.messages
