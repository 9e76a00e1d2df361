"""What stands behind a server: its event loops, its executors, and the requests that are being served."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, cast

from asyncserver import LoopName, OptionError, loop_factory
from compat.async_handlers import AsyncRequestHandler, collect, run_to_end
from compat.defaults import DEFAULTS
from compat.executors import (
    CallingThread,
    ChildProcesses,
    FreshThreads,
    RequestExecutor,
    as_executor,
    names_executor,
)
from compat.jobs import JobCounter, RequestJob
from compat.pool import ThreadPool, check_max_threads, check_when_full
from compat.stdlib import STDLIB_SELECTOR, is_forking, is_threading, stdlib
from compat.turns import Exhaustion, LoopTurns, SelectorTurns, Turns, reap
from compat.waiting import LoopWaiter, is_loop_running

__all__ = [
    "Engine",
    "check_options",
    "engine_of",
    "existing_engine",
    "loop_of",
    "serve_here",
    "start_request",
]

logger: logging.Logger = logging.getLogger("asyncserver")

_ENGINE = "_EventLoopMixIn__engine"

_PACKAGE = __name__.partition(".")[0]


class Engine:
    """What ``EventLoopMixIn`` keeps of one server."""

    def __init__(self, server: Any) -> None:
        self._server = weakref.ref(server)
        self.turns: dict[int, Turns] = {}
        self.jobs: JobCounter = JobCounter(has_children=is_forking(server))
        self.exhaustion: Exhaustion = Exhaustion()
        self._spare: list[LoopWaiter] = []
        self._executors: dict[Any, RequestExecutor] = {}
        self._refused: dict[str, str] = {}
        self._closed = False
        weakref.finalize(server, _close_quietly, self._spare, self._executors)

    @property
    def server(self) -> Any:
        """The server, which owns this."""
        return self._server()

    def wake(self) -> None:
        """Have every thread that serves look at what has changed."""
        for turns in list(self.turns.values()):
            turns.wake()

    def current_turns(self) -> Turns | None:
        """Those of this thread, if it serves."""
        return self.turns.get(threading.get_ident())

    @contextmanager
    def take_turns(self, *, forever: bool) -> Generator[Turns]:
        """For one call of ``serve_forever()`` or ``handle_request()``."""
        server = self.server
        check_options(server)
        if stdlib._ServerSelector is not STDLIB_SELECTOR:
            with stdlib._ServerSelector() as selector:
                with self._registered(SelectorTurns(server, selector)) as turns:
                    yield turns
            return
        spare = self._take_spare()
        waiter = LoopWaiter(loop_factory(loop_of(server))) if spare is None else spare
        try:
            loop_turns = LoopTurns(
                server, waiter, self.exhaustion, self.executor, self.children, forever=forever
            )
            self._closed = False
            with closing(loop_turns), self._registered(loop_turns):
                yield loop_turns
        finally:
            self._put_back(waiter, keep=not forever)

    @contextmanager
    def _registered(self, turns: Turns) -> Generator[Turns]:
        ident = threading.get_ident()
        outer = self.turns.get(ident)
        self.turns[ident] = turns
        try:
            yield turns
        finally:
            if outer is None:
                self.turns.pop(ident, None)
            else:
                self.turns[ident] = outer

    def _put_back(self, waiter: LoopWaiter, *, keep: bool) -> None:
        """Async handlers go on when somebody serves again; until then, and then only, the loop is kept."""
        if self._closed and waiter.tasks:
            waiter.finish_tasks(cancel=not self._waits_for_requests())
        if (keep and not self._closed) or waiter.tasks:
            self._spare.append(waiter)
            if self._closed:  # By another thread, which may have looked for it just before.
                self._finish_spare()
        else:
            waiter.close()

    def _take_spare(self) -> LoopWaiter | None:
        try:
            return self._spare.pop()
        except IndexError:  # Another thread may have been quicker than a look at the length.
            return None

    def _finish_spare(self) -> None:
        while (waiter := self._take_spare()) is not None:
            _outside_loop(partial(_finish, waiter, cancel=not self._waits_for_requests()))

    # --- executors ---

    def executor(self, server: Any) -> RequestExecutor | None:
        """What runs the requests now; None where the class does that itself (``names_executor()``)."""
        spec = getattr(server, "request_executor", None)
        if spec is None:
            max_threads = getattr(server, "max_threads", None)
            if max_threads is not None:
                return self._own_pool(server, max_threads)
            spec = DEFAULTS.executor
            if spec is None:
                return None
        if isinstance(spec, RequestExecutor):
            return spec
        try:
            executor = self._executors.get(spec)
        except TypeError:  # It has no hash: a list, or another mistake.
            return as_executor(spec, self._make_pool)
        if executor is None:
            executor = self._executors[spec] = as_executor(spec, self._make_pool)
        return executor

    def _own_pool(self, server: Any, max_threads: int) -> ThreadPool:
        when_full = getattr(server, "when_full", "wait")
        pool = self._executors.get("max_threads")
        if not isinstance(pool, ThreadPool):
            pool = self._executors["max_threads"] = self._make_pool(max_threads)
        if pool.max_threads != max_threads:
            self._change(pool, "max_threads", max_threads)
        if pool.when_full != when_full:
            self._change(pool, "when_full", when_full)
        return pool

    def _change(self, pool: ThreadPool, name: str, value: object) -> None:
        """Where the program has set it to something bad while it serves, the last good value holds.

        Who has done it is not here, and clients are not to suffer; so it is logged, once.
        """
        try:
            setattr(pool, name, value)
        except OptionError as exc:
            said = f"{exc}; the server goes on with {getattr(pool, name)!r}"
            if self._refused.get(name) != said:
                self._refused[name] = said
                logger.error("%s: %s", type(self.server).__name__, said)

    def _make_pool(self, max_threads: int) -> ThreadPool:
        return ThreadPool(max_threads, name=type(self.server).__name__)

    # --- children ---

    def children(self, server: Any) -> set[int] | None:
        """The processes that serve requests. What else has the name ``active_children`` is the program's."""
        if not self.jobs.has_children:
            return None
        children: Any = getattr(server, "active_children", None)
        return cast("set[int]", children) if isinstance(children, set) else None

    # --- the end ---

    def close(self) -> None:
        """Wait for what the server has begun, as far as it says so, and release what is held for it."""
        self._closed = True
        server = self.server
        try:
            self._finish_spare()
            self.jobs.wait()
            if not is_forking(server):
                reap(self.children(server), blocking=getattr(server, "block_on_close", True))
        finally:
            _close_pools(self._executors)

    def _waits_for_requests(self) -> bool:
        server = self.server
        return bool(getattr(server, "block_on_close", True)) and not getattr(server, "daemon_threads", False)


def engine_of(server: Any) -> Engine:
    """Made when it is needed, because servers set their attributes in any order and skip ``__init__``."""
    engine = existing_engine(server)
    if engine is None:
        attributes: dict[str, Any] = server.__dict__
        engine = attributes.setdefault(_ENGINE, Engine(server))
        if engine.server is not server:  # It is a copy, and has brought that of the original.
            engine = attributes[_ENGINE] = Engine(server)
    return engine


def existing_engine(server: Any) -> Engine | None:
    """The engine of a server that has needed it already."""
    attributes: dict[str, Any] = server.__dict__
    engine: Engine | None = attributes.get(_ENGINE)
    return engine if engine is not None and engine.server is server else None


def loop_of(server: Any) -> LoopName:
    """The kind of event loop that the server asks for."""
    name: object = getattr(server, "event_loop", None)
    if isinstance(name, str):
        chosen = cast("LoopName", name)
        try:
            loop_factory(chosen)
        except OptionError as exc:
            raise OptionError("event_loop", name, exc.reason) from None
        return chosen
    return DEFAULTS.loop  # None, or a program's own attribute of that name.


def check_options(server: Any) -> None:
    """Raise ``OptionError`` for what would fail with the first request. ``server`` may be a class.

    With a ``process_request()`` of the program's own, these names may mean something else to it.
    """
    module: object = getattr(server.process_request, "__module__", None)  # None for some built-in methods.
    if not isinstance(module, str) or not module.startswith(_PACKAGE + "."):
        return
    max_threads = _option(server, "max_threads")
    if max_threads is not None:
        check_max_threads(max_threads)
        check_when_full(_option(server, "when_full", "wait"))
    spec = _option(server, "request_executor")
    if spec is not None:
        as_executor(spec, ThreadPool)


def _option(server: Any, name: str, default: Any = None) -> Any:
    value: object = getattr(server, name, default)
    if isinstance(server, type) and hasattr(type(value), "__get__"):
        return default  # A property: only a server has its value.
    return value


def start_request(server: Any, request: Any, client_address: Any) -> bool:
    """Have a request served by the loop or an executor; False where the class is to do it itself."""
    handler_class = getattr(server, "RequestHandlerClass", None)
    if isinstance(handler_class, type) and issubclass(handler_class, AsyncRequestHandler):
        serve_here(server, request, client_address)
        return True
    if not names_executor(server):
        return False
    engine = engine_of(server)
    executor = engine.executor(server)
    if executor is None or _does_that_itself(server, executor):
        return False
    turns = engine.current_turns()
    if not executor.has_room():
        if executor.rejects:
            server.shutdown_request(request)
            return True
        if not isinstance(turns, LoopTurns):
            executor.wait_for_room()  # Called by a loop of the program's own.
    job = RequestJob(server, request, client_address, engine.jobs)
    try:
        job.begin()
        if isinstance(turns, LoopTurns) and isinstance(executor, ThreadPool) and turns.may_put_off:
            turns.put_off(executor, job)
        else:
            executor.start(job)
    except BaseException:
        job.forget()
        raise
    finally:
        job.begun_by = None
    return True


def _does_that_itself(server: Any, executor: RequestExecutor) -> bool:
    if isinstance(executor, FreshThreads):
        return is_threading(server)
    if isinstance(executor, ChildProcesses):
        return is_forking(server)
    return isinstance(executor, CallingThread) and not is_threading(server) and not is_forking(server)


def serve_here(server: Any, request: Any, client_address: Any) -> None:
    """As ``BaseServer.process_request()``; an async handler is begun, and ends as a task of the loop.

    Where nobody drives a loop (``handle_request()``, loops of the program's own) it ends here.
    """
    handler = collect(server, request, client_address)
    if handler is not None:
        turns = engine_of(server).current_turns()
        if isinstance(turns, LoopTurns) and turns.forever:
            turns.waiter.spawn(_serve_async(server, request, client_address, handler))
            return
        run_to_end(handler)
    server.shutdown_request(request)


async def _serve_async(server: Any, request: Any, client_address: Any, handler: AsyncRequestHandler) -> None:
    try:
        await handler.run()
    except Exception:
        server.handle_error(request, client_address)
    finally:
        server.shutdown_request(request)


def _finish(waiter: LoopWaiter, *, cancel: bool) -> None:
    try:
        waiter.finish_tasks(cancel=cancel)
    finally:
        waiter.close()


def _outside_loop(call: Callable[[], None]) -> None:
    """Here, or in a thread where an event loop is running here."""
    if is_loop_running():
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    else:
        call()


def _close_pools(executors: dict[Any, RequestExecutor]) -> None:
    for executor in executors.values():
        if isinstance(executor, ThreadPool):
            executor.close()
    executors.clear()


def _close_quietly(spare: list[LoopWaiter], executors: dict[Any, RequestExecutor]) -> None:
    """The server is gone, and nobody has closed it."""
    while spare:
        spare.pop().close()
    _close_pools(executors)
