"""Servers in threads of their own: for tests that have no event loop, and for servers that block.

::

    with serving_in_thread(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)) as server:
        with socket.create_connection(server.server_address) as client:
            ...
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import traceback
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Protocol, TypeVar

from asyncserver import DatagramServer, LoopName, OptionError, Server, loop_factory
from asyncserver.testing.bounds import TIMEOUT, check_timeout
from asyncserver.testing.leaks import describe_thread
from asyncserver.testing.servers import close

__all__ = ["BlockingServer", "open_in_thread", "serving_in_thread"]

T = TypeVar("T")

# The standard library's servers look whether they are to end this often; it is what their end takes.
_POLL_INTERVAL = 0.01


class BlockingServer(Protocol):
    """A server that occupies the thread that calls it, as those of ``socketserver`` do."""

    def serve_forever(self) -> object: ...
    def shutdown(self) -> object: ...
    def server_close(self) -> object: ...


ServerT = TypeVar("ServerT", bound=Server | DatagramServer | BlockingServer)


@contextmanager
def serving_in_thread(
    server: ServerT, *, loop: LoopName = "auto", timeout: float = TIMEOUT
) -> Generator[ServerT]:
    """The server, serving in a thread of its own until the end of the block; it is closed then.

    A ``Server`` or ``DatagramServer``, not started yet, is started in an event loop (``loop``) of the thread.
    Of everything else the thread calls ``serve_forever()``, and at the end ``shutdown()`` and
    ``server_close()`` are called: these are the servers of ``socketserver``, whether the standard library's
    or ``compat``'s.

    What starting it raises is raised here; what ends it before its time, or goes wrong when it ends, is
    raised at the end of the block (if that raises itself, it becomes a note). ``TimeoutError`` if it does not
    start, or not end, within ``timeout`` seconds (``Server`` and ``DatagramServer`` have their
    ``Timeouts.grace`` besides for their end); the thread, a daemon, is left behind then.

    The server belongs to its thread: from here call nothing but what ``socketserver`` allows, and look at the
    ``addresses`` of the others.
    """
    check_timeout(timeout)
    if isinstance(server, (Server, DatagramServer)):
        with open_in_thread(partial(_started, server, timeout), loop=loop, timeout=timeout):
            yield server
    else:
        _check_blocking(server)
        worker = _Worker(f"serving-{type(server).__name__}", _serve_forever_of(server))
        with _ending(partial(_end_blocking, server, worker, timeout)):
            yield server


@contextmanager
def open_in_thread(
    manager: Callable[[], AbstractAsyncContextManager[T]],
    *,
    loop: LoopName = "auto",
    timeout: float = TIMEOUT,
) -> Generator[T]:
    """An asynchronous context manager, entered and left in the event loop of a thread of its own.

    ``timeout``: seconds for each; if it is a server of ours that was opened, its grace is added at the end.
    """
    check_timeout(timeout)
    factory = loop_factory(loop)
    opened: Future[tuple[T, Callable[[], object]]] = Future()

    async def live() -> None:
        over = asyncio.Event()
        end = partial(asyncio.get_running_loop().call_soon_threadsafe, over.set)
        async with manager() as value:
            if opened.set_running_or_notify_cancel():  # Or else nobody waits for it any more.
                opened.set_result((value, end))
                await over.wait()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(live())
        finally:
            opened.cancel()  # Nothing happens if it is done.

    worker = _Worker("serving-in-a-loop", run)
    try:
        value, end = _result(opened, worker, timeout)
    except BaseException:  # KeyboardInterrupt, too, at which it must not go on serving.
        if not opened.cancel():
            _end_quietly(opened.result()[1])
        raise

    def finish() -> None:
        _end_quietly(end)
        worker.join(timeout + _grace_of(value))

    with _ending(finish):
        yield value


def _end_quietly(end: Callable[[], object]) -> None:
    with suppress(RuntimeError):  # The loop is closed: it has ended by itself.
        end()


def _grace_of(value: object) -> float:
    return value.timeouts.grace if isinstance(value, (Server, DatagramServer)) else 0.0


def _result(future: Future[T], worker: _Worker, timeout: float) -> T:
    try:
        return future.result(timeout)
    except CancelledError:
        worker.join(timeout)  # This raises what it was.
        raise
    except TimeoutError:
        if future.cancel():
            raise TimeoutError(f"waited {timeout:g} s for the start of a server in {worker}") from None
        return future.result(timeout)


@asynccontextmanager
async def _started(
    server: Server | DatagramServer, timeout: float
) -> AsyncGenerator[Server | DatagramServer]:
    await server.start()
    try:
        yield server
    finally:
        await close(server, timeout)


def _check_blocking(server: object) -> None:
    for name in ("serve_forever", "shutdown", "server_close"):
        if not callable(getattr(server, name, None)):
            raise OptionError("server", server, f"is no server: it has no {name}()")


def _serve_forever_of(server: BlockingServer) -> Callable[[], object]:
    if "poll_interval" in inspect.signature(server.serve_forever).parameters:
        return partial(server.serve_forever, poll_interval=_POLL_INTERVAL)  # type: ignore[call-arg]
    return server.serve_forever


def _end_blocking(server: BlockingServer, serving: _Worker, timeout: float) -> None:
    try:
        if serving.is_alive():
            _Worker("shutdown", server.shutdown).join(timeout)
        serving.join(timeout)
    finally:
        _Worker("server_close", server.server_close).join(timeout)


@contextmanager
def _ending(end: Callable[[], None]) -> Generator[None]:
    """Calls ``end()`` after the block; if both raise, it is the block's exception that counts."""
    try:
        yield
    except BaseException as raised:
        try:
            end()
        except BaseException as error:
            raised.add_note("And when its server ended:\n" + _described(error, beside=raised))
        raise
    end()


def _described(error: BaseException, beside: BaseException) -> str:
    """Its traceback, without that of the exception during whose handling it was raised."""
    first = error
    while first.__context__ is not None and first.__context__ is not beside:
        first = first.__context__
    first.__context__ = None
    return "".join(traceback.format_exception(error))


class _Worker:
    """A daemon thread that does one thing, and what came of it."""

    def __init__(self, name: str, work: Callable[[], object]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error

    def __str__(self) -> str:
        return f"thread {describe_thread(self._thread)}"

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def join(self, timeout: float) -> None:
        """Wait for its end, and raise what it has raised; ``TimeoutError`` if it does not end."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"waited {timeout:g} s for the end of {self}; it is left behind")
        error, self._error = self._error, None
        if error is not None:
            raise error
