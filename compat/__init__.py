"""The standard library's ``socketserver``, on the engine of ``asyncserver``.

``import compat as socketserver`` is the whole migration: the same classes, hooks and attributes, and an
event loop underneath. What is here beyond the standard library's names is not in ``__all__``.
"""

from __future__ import annotations

import sys as _sys

from compat import servers as _servers
from compat.async_handlers import AsyncDatagramRequestHandler as AsyncDatagramRequestHandler
from compat.async_handlers import AsyncRequestHandler as AsyncRequestHandler
from compat.async_handlers import AsyncStreamRequestHandler as AsyncStreamRequestHandler
from compat.executors import CallingThread as CallingThread
from compat.executors import ChildProcesses as ChildProcesses
from compat.executors import FreshThreads as FreshThreads
from compat.executors import Job as Job
from compat.executors import RequestExecutor as RequestExecutor
from compat.facade import StandIn as _StandIn
from compat.legacy import LegacyServer as LegacyServer
from compat.legacy import legacy as legacy
from compat.mixin import EventLoopMixIn as EventLoopMixIn
from compat.pool import ThreadPool as ThreadPool
from compat.stdlib import NAMES as _NAMES
from compat.stdlib import UNLISTED_NAMES as _UNLISTED_NAMES
from compat.swap import install as install
from compat.swap import installed as installed
from compat.swap import say_where as _say_where
from compat.swap import uninstall as uninstall

__all__ = list(_NAMES)  # pyright: ignore[reportUnsupportedDunderAll] - they differ by version and platform

for _each in (*_NAMES, *_UNLISTED_NAMES):
    if hasattr(_servers, _each):
        globals()[_each] = getattr(_servers, _each)
_say_where(__name__, (*_NAMES, *_UNLISTED_NAMES))
_sys.modules[__name__].__class__ = _StandIn
