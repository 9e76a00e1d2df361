"""``legacy()``: blocking request handlers on the native server."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import os
import select
import signal
import socket
import ssl
import threading
import warnings
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from asyncserver import Endpoint, IPEndpoint, OptionError, Stream, StreamHandler, current_connection
from compat.async_handlers import AsyncRequestHandler
from compat.executors import CallingThread, ChildProcesses, RequestExecutor, as_executor
from compat.pool import ThreadPool

__all__ = ["LegacyServer", "legacy"]

logger: logging.Logger = logging.getLogger("asyncserver")

# How long a child process waits for the peer's answer when it ends a TLS session.
_GOODBYE_SECONDS = 5.0


class LegacyServer:
    """What handlers on the native server have as ``self.server``; the program may add its own attributes."""

    def __init__(self, handler_class: Callable[..., Any]) -> None:
        self.RequestHandlerClass = handler_class

    @property
    def native(self) -> Any:
        """The ``asyncserver.Server``. To be asked from the handler's own thread."""
        return current_connection().server

    @property
    def server_address(self) -> Any:
        """Where the connection that is being handled came in, as the socket module writes addresses."""
        return _sockaddr(current_connection().local)

    def shutdown(self) -> None:
        """Drain the native server. Does not wait: the handler that calls this would wait for itself."""
        native = self.native
        loop: asyncio.AbstractEventLoop = _loop.get()
        loop.call_soon_threadsafe(lambda: _keep(loop.create_task(native.drain())))


def legacy(
    handler_class: Callable[..., Any],
    executor: RequestExecutor | str | Any = "threads",
    *,
    server: Any = None,
) -> Callable[[Stream], Awaitable[None]]:
    """An async handler for ``asyncserver.Server`` that serves each connection with ``handler_class``.

    ``handler_class(request, client_address, server)`` is called in a thread: ``"threads"`` (one for each
    connection), ``"pool:N"``, a ``ThreadPool``, or a thread pool of ``concurrent.futures``; or, with
    ``"fork"``, in a child process, which has no other socket of the server. ``request`` is the
    connection's socket, in blocking mode; under TLS an ``ssl.SSLSocket``. The server closes it when the
    handler has returned. ``server`` is what the handler has as ``self.server``; by default a
    ``LegacyServer``.

    When the handler is cancelled (by a drain that has waited long enough, or a deadline), the socket
    is shut down for reading, so that a blocked ``recv`` returns ``b""``; when the connection is aborted
    after that, for writing as well. A thread cannot be interrupted otherwise.

    Raises ``OptionError`` for what cannot work.
    """
    _check_blocks(handler_class)
    made: Callable[..., Any] = handler_class
    try:
        chosen = as_executor(executor, ThreadPool)
    except OptionError as exc:
        raise OptionError("executor", executor, exc.reason) from None
    if isinstance(chosen, CallingThread):
        raise OptionError(
            "executor",
            executor,
            "the calling thread is that of the event loop, which would stop: use 'threads'",
        )
    session_class = _ChildSession if isinstance(chosen, ChildProcesses) else _Session
    facade = LegacyServer(made) if server is None else server

    async def serve_legacy(stream: Stream) -> None:
        if chosen.rejects and not chosen.has_room():
            return  # And the connection is closed.
        connection = current_connection()
        async with stream.blocking_socket() as sock:
            address = _sockaddr(connection.peer)
            session = session_class(stream, sock, lambda: made(sock, address, facade))
            failure = await session.run_in(chosen)
            if isinstance(failure, OSError) and _is_gone(sock):
                stream.give_up(failure)
        if failure is not None:
            if stream.broken:
                await stream.receive()  # Raises what streams raise then, and the server knows it.
            raise failure

    return serve_legacy


def _check_blocks(given: object) -> None:
    """Raise ``OptionError`` for what is no handler class, or has nothing that blocks in it."""
    if not callable(given):
        raise OptionError(
            "handler_class",
            given,
            "has to be a request handler class, such as a StreamRequestHandler",
        )
    if _extends(given, AsyncRequestHandler):
        raise OptionError("handler_class", given, "is async already: use an asyncserver.StreamHandler")
    if inspect.iscoroutinefunction(given) or _extends(given, StreamHandler):
        raise OptionError("handler_class", given, "is async already: give it to asyncserver.Server as it is")
    if inspect.iscoroutinefunction(getattr(given, "handle", None)):
        raise OptionError(
            "handler_class",
            given,
            "has an async handle(), which nobody would await: write `def handle(self)`, or make it an "
            "asyncserver.StreamHandler",
        )


def _extends(given: object, base: type) -> bool:
    return isinstance(given, type) and issubclass(given, base)


_loop: contextvars.ContextVar[asyncio.AbstractEventLoop] = contextvars.ContextVar("compat_loop")
_draining: set[asyncio.Task[Any]] = set()


def _keep(task: asyncio.Task[Any]) -> None:
    """The loop itself holds tasks weakly."""
    _draining.add(task)
    task.add_done_callback(_draining.discard)


class _Session:
    """One connection that a thread serves."""

    daemon = True

    def __init__(self, stream: Stream, sock: socket.socket, call: Callable[[], object]) -> None:
        self._stream = stream
        self._sock = sock
        self._call = call
        self._loop = asyncio.get_running_loop()
        _loop.set(self._loop)
        self._context = contextvars.copy_context()
        self._done: asyncio.Future[BaseException | None] = self._loop.create_future()
        if isinstance(sock, ssl.SSLSocket):
            tls: Any = sock
            tls.suppress_ragged_eofs = True  # As the standard library wraps sockets.

    async def run_in(self, executor: RequestExecutor) -> BaseException | None:
        """Returns what the handler has raised, once its thread is done with the socket, never before."""
        self._start(executor)
        cancelled: asyncio.CancelledError | None = None
        while not self._done.done():
            try:
                await asyncio.wait([self._done])
            except asyncio.CancelledError as exc:
                cancelled = exc
                with suppress(OSError):
                    # Not the TLS socket's own method, which would go on in plain text.
                    socket.socket.shutdown(self._sock, socket.SHUT_RD)
        self._finish()
        if cancelled is not None:
            raise cancelled
        return self._done.result()

    def _start(self, executor: RequestExecutor) -> None:
        executor.start(self)

    def run(self) -> None:
        """See ``Job``."""
        failure: BaseException | None = None
        try:
            self._context.run(self._call)
        except SystemExit:
            pass  # It ends a thread without a word.
        except BaseException as exc:
            failure = exc
        self._tell_soon(failure)

    def _tell_soon(self, failure: BaseException | None) -> None:
        """For any thread."""
        with suppress(RuntimeError):  # The loop was closed with this connection left behind.
            self._loop.call_soon_threadsafe(self._tell, failure)

    def _tell(self, failure: BaseException | None) -> None:
        if not self._done.done():
            self._done.set_result(failure)

    def _finish(self) -> None:
        """The handler is done with the socket. Files that it has made of it would keep it open."""
        sock: Any = self._sock
        sock._io_refs = 0
        if isinstance(sock, ssl.SSLSocket):
            sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]

    def fail(self, error: Exception) -> None:
        """See ``Job``."""
        self._tell_soon(error)

    def run_here(self) -> None:
        """Not for what keeps the loop running: see ``Job``."""
        raise NotImplementedError

    def run_in_child(self) -> int:
        """Not for threads: see ``Job``."""
        raise NotImplementedError

    def left_to(self, pid: int) -> None:
        """Not for threads: see ``Job``."""
        raise NotImplementedError


class _ChildSession(_Session):
    """One connection that a child process serves. It has sockets of nobody else."""

    def _start(self, executor: RequestExecutor) -> None:
        with warnings.catch_warnings():
            # Python 3.12 and later warn of forking with threads. Those here are idle: they have bound
            # the sockets.
            warnings.simplefilter("ignore", DeprecationWarning)
            executor.start(self)

    def run_in_child(self) -> int:
        """See ``Job``."""
        _forget_signals()
        current_connection().server.close_inherited(self._stream)
        try:
            self._call()
        except SystemExit as exc:
            # More bits than these nobody sees of a status, and the system may not take them.
            return exc.code & 0xFF if isinstance(exc.code, int) else int(exc.code is not None)
        except Exception as exc:
            if not (isinstance(exc, OSError) and _is_gone(self._sock)):
                logger.exception("a handler has failed in process %d", os.getpid())
                return 1
        finally:
            _end_tls(self._sock)
        return 0

    def left_to(self, pid: int) -> None:
        """See ``Job``."""
        try:
            descriptor = os.pidfd_open(pid)
        except (AttributeError, OSError):  # The platform has none, or the process no descriptor left.
            threading.Thread(target=self._wait_for, args=(pid,), daemon=True).start()
            return

        def reap() -> None:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
            self._wait_for(pid)

        self._loop.add_reader(descriptor, reap)

    def _wait_for(self, pid: int) -> None:
        failure = None
        with suppress(ChildProcessError):
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if status:
                failure = RuntimeError(f"the handler's process {pid} has ended with status {status}")
        self._tell_soon(failure)

    def _finish(self) -> None:
        super()._finish()
        if isinstance(self._sock, ssl.SSLSocket):
            # The session has gone on in the child: what this process knows of its keys is of the past.
            with suppress(OSError):
                socket.socket.shutdown(self._sock, socket.SHUT_WR)
            self._stream.close_now()


def _forget_signals() -> None:
    """The handlers, and the descriptor that wakes the loop up, are the parent's."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)


def _end_tls(sock: socket.socket) -> None:
    """Exchange the closing alerts; the parent cannot do that any more."""
    if isinstance(sock, ssl.SSLSocket):
        with suppress(OSError, ValueError):
            sock.settimeout(_GOODBYE_SECONDS)
            sock.unwrap()


def _is_gone(sock: socket.socket) -> bool:
    """Whether it is this connection that is broken, and not another that the handler has."""
    if sock.fileno() < 0:
        return False
    if sock.family == getattr(socket, "AF_UNIX", None):
        poll = select.poll()
        poll.register(sock)
        return any(events & select.POLLHUP for _, events in poll.poll(0))
    try:
        sock.getpeername()
    except OSError:
        return True
    return False


def _sockaddr(endpoint: Endpoint) -> Any:
    """As ``accept()`` gives it."""
    if not isinstance(endpoint, IPEndpoint):
        return b"\0" + os.fsencode(endpoint.path[1:]) if endpoint.path.startswith("@") else endpoint.path
    return tuple(endpoint) if ":" in endpoint.host else (endpoint.host, endpoint.port)
