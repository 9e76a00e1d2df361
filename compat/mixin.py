"""``EventLoopMixIn``: the methods of ``socketserver.BaseServer`` that wait, on an event loop."""

from __future__ import annotations

import asyncio
import socketserver
import threading
import warnings
from contextlib import suppress
from time import monotonic
from typing import Any

from asyncserver import LoopName, loop_factory
from compat.engine import (
    check_options,
    engine_of,
    existing_engine,
    loop_of,
    serve_here,
    start_request,
)
from compat.waiting import is_loop_running

__all__ = ["LISTEN_QUEUE", "EventLoopMixIn"]

# Where a program does not set `request_queue_size`: with the standard library's 5 the kernel drops the
# connections of a burst, and the clients try again after one, three, seven ... seconds.
LISTEN_QUEUE = 1024


class _ShutdownRequest:
    """``_BaseServer__shutdown_request``, in the instance as ever; setting it wakes the server up.

    There is no ``__get__``, so that reading it finds the instance's own without a call in between.
    """

    _NAME = "_BaseServer__shutdown_request"

    def __set__(self, server: Any, value: Any) -> None:
        vars(server)[self._NAME] = value
        if value:
            engine = existing_engine(server)
            if engine is not None:
                engine.wake()

    def __delete__(self, server: Any) -> None:
        if server.__dict__.pop(self._NAME, self) is self:
            raise AttributeError(self._NAME)

    def __bool__(self) -> bool:
        """What a server has that was never initialized."""
        return False


class EventLoopMixIn(socketserver.BaseServer):
    """The engine: any server class of ``socketserver`` waits on an event loop with this mixed in.

    ::

        class Server(EventLoopMixIn, http.server.ThreadingHTTPServer): ...

    The thread that calls ``serve_forever()`` or ``handle_request()`` runs the loop, and leaves it to call
    the hooks: they are called in the order and the thread of the standard library, with no event loop
    running. Neither the thread's current event loop nor signal handlers are changed.

    ``shutdown()`` takes effect at once, and so does setting ``_BaseServer__shutdown_request``. When there are
    no more descriptors the server waits for some instead of trying without end. A server without
    ``fileno()``, or with one that cannot be waited for, is asked for requests every ``poll_interval``
    seconds, and again at once while it has some: ``get_request()`` raises ``OSError`` for "none yet".
    """

    event_loop: LoopName | None = None
    """``"uvloop"``, ``"asyncio"`` or ``"auto"``, which is uvloop where it is installed; None: as the
    command line says, or ``"auto"``."""

    request_executor: Any = None
    """Where requests run: ``"serial"``, ``"threads"``, ``"pool:N"``, ``"fork"``, a ``RequestExecutor`` or a
    ``concurrent.futures.ThreadPoolExecutor``. None: as the class does (``ThreadingMixIn`` ...)."""

    _BaseServer__shutdown_request: Any = _ShutdownRequest()

    __is_serial = True
    """Whether the class serves requests one after the other: no mix-in behind this one does otherwise."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _check_order(cls)
        check_options(cls)
        loop_factory(loop_of(cls))  # It imports what it needs: without descriptors, it could not later.
        cls.__is_serial = _next_after(cls, EventLoopMixIn, "process_request") is socketserver.BaseServer

    def serve_forever(self, poll_interval: float | None = 0.5) -> None:
        """Handle requests until ``shutdown()``, which may come from any other thread.

        ``service_actions()`` is called after each request, and every ``poll_interval`` seconds at least;
        nothing else depends on them. Raises ``OptionError`` for a bad option of this package, and what
        ``get_request()`` (``OSError`` excepted), ``verify_request()`` and ``service_actions()`` raise.
        """
        state: Any = self
        if is_loop_running():
            _warn("serve_forever")
            check_options(self)
            super().serve_forever(poll_interval)  # type: ignore[arg-type]
            return
        state._BaseServer__is_shut_down.clear()
        try:
            with engine_of(self).take_turns(forever=True) as turns:
                while not state._BaseServer__shutdown_request:
                    ready = turns.wait(poll_interval)
                    if state._BaseServer__shutdown_request:
                        break
                    if ready:
                        state._handle_request_noblock()
                    self.service_actions()
        finally:
            state._BaseServer__shutdown_request = False
            state._BaseServer__is_shut_down.set()

    def handle_request(self) -> Any:
        """Handle one request, or return what ``handle_timeout()`` does.

        That is called when there is none within ``timeout`` seconds, or those of the socket's own
        timeout if they are fewer. Raises as ``serve_forever()`` does.
        """
        if is_loop_running():
            _warn("handle_request")
            check_options(self)
            return super().handle_request()
        server: Any = self
        timeout = _smaller(_socket_timeout(server), self.timeout)
        deadline = None if timeout is None else monotonic() + timeout
        with engine_of(self).take_turns(forever=False) as turns:
            while True:
                if turns.wait(timeout):
                    result = server._handle_request_noblock()
                    if not turns.in_vain:
                        return result
                if deadline is not None:
                    timeout = deadline - monotonic()
                    if timeout < 0:
                        return server.handle_timeout()

    async def serve_async(self, poll_interval: float = 0.5) -> None:
        """Serve in a thread of its own, for programs that have an event loop already (asyncio's).

        Ends when ``shutdown()`` is called, and raises what ``serve_forever()`` raises. Cancellation
        shuts the server down and waits for the thread. ``server_close()`` is left to the caller, and
        waits for requests: ``await asyncio.to_thread(server.server_close)`` does so without blocking.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[BaseException | None] = loop.create_future()
        state: Any = self
        lock = threading.Lock()
        ended = cancelled = False

        def tell(error: BaseException | None) -> None:
            if not done.done():
                done.set_result(error)

        def serve() -> None:
            nonlocal ended
            error: BaseException | None = None
            try:
                self.serve_forever(poll_interval)
            except BaseException as exc:
                error = exc
            with lock:
                ended = True
                if cancelled:  # It may have come after the end, and would end the next serve_forever().
                    state._BaseServer__shutdown_request = False
            with suppress(RuntimeError):  # The loop was closed, and nobody waits.
                loop.call_soon_threadsafe(tell, error)

        name = f"{type(self).__name__}.serve_async"
        threading.Thread(target=serve, name=name, daemon=True).start()
        try:
            error = await asyncio.shield(done)
        except asyncio.CancelledError:
            with lock:
                if not ended:
                    cancelled = True
                    state._BaseServer__shutdown_request = True
            await _wait_patiently(done)
            raise
        if error is not None:
            raise error

    def _handle_request_noblock(self) -> None:
        """Handle one request that is there; also called by programs with loops of their own."""
        try:
            request, client_address = self.get_request()
        except OSError as error:
            turns = engine_of(self).current_turns()
            if turns is not None:
                turns.failed(error)
            return
        engine = existing_engine(self)
        if engine is not None and engine.exhaustion.ask and (turns := engine.current_turns()) is not None:
            turns.got_request()
        if self.verify_request(request, client_address):
            try:
                self.process_request(request, client_address)
            except Exception:
                self.handle_error(request, client_address)
                self.shutdown_request(request)
            except:
                self.shutdown_request(request)
                raise
        else:
            self.shutdown_request(request)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Have the request served, where the executor says, and closed."""
        if start_request(self, request, client_address):
            return
        if self.__is_serial:
            serve_here(self, request, client_address)
        else:
            super().process_request(request, client_address)

    def server_activate(self) -> None:
        """Called by the constructor: listen, with a longer queue where the program has set none."""
        super().server_activate()
        server: Any = self
        if _has_default_queue(server):
            server.socket.listen(LISTEN_QUEUE)

    def server_close(self) -> None:
        """Close the server's socket, and wait for the requests that are being served.

        That is for those of ``max_threads`` and other executors, and async ones. With ``block_on_close``
        unset or ``daemon_threads`` set, threads are left alone and async handlers are cancelled.
        """
        super().server_close()
        engine = existing_engine(self)
        if engine is not None:
            engine.close()


def _check_order(cls: type) -> None:
    """What comes after the mix-in and waits itself would never be called."""
    order = cls.__mro__
    behind = order[order.index(EventLoopMixIn) + 1 :]
    for name in ("serve_forever", "handle_request", "_handle_request_noblock"):
        front = order[: order.index(EventLoopMixIn)]
        hidden = [each for each in behind if name in vars(each) and each.__module__ != socketserver.__name__]
        if hidden and not any(name in vars(each) for each in front):
            raise TypeError(
                f"{cls.__name__}: EventLoopMixIn would hide {hidden[0].__name__}.{name}(); name it after"
                f" {hidden[0].__name__} in the list of bases"
            )


def _next_after(cls: type, mixin: type, name: str) -> type | None:
    """The class whose method ``super()`` finds in a method of ``mixin``."""
    behind = cls.__mro__[cls.__mro__.index(mixin) + 1 :]
    return next((each for each in behind if name in vars(each)), None)


def _warn(method: str) -> None:
    warnings.warn(
        f"{method}() blocks the event loop that runs in this thread; await server.serve_async() instead",
        RuntimeWarning,
        stacklevel=3,
    )


def _socket_timeout(server: Any) -> float | None:
    if not hasattr(server, "socket"):
        return None
    timeout: float | None = server.socket.gettimeout()
    return timeout


def _smaller(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _has_default_queue(server: Any) -> bool:
    if "request_queue_size" in vars(server) or not isinstance(server, socketserver.TCPServer):
        return False
    if isinstance(server, socketserver.UDPServer):
        return False
    owner = next(each for each in type(server).__mro__ if "request_queue_size" in vars(each))
    return owner is socketserver.TCPServer


async def _wait_patiently(future: asyncio.Future[Any]) -> None:
    """Until it is done, whatever it brings, and however often this task is cancelled."""
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue
