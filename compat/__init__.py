"""The standard library's ``socketserver``, on the engine of ``asyncserver``.

``import compat as socketserver`` is the whole migration: the same classes, hooks and attributes, and an
event loop underneath. What is here beyond the standard library's names is not in ``__all__``.
"""

from __future__ import annotations

import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING

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

if _TYPE_CHECKING:  # What the loop below finds out: which of them this version and platform has.
    from compat.servers import BaseRequestHandler as BaseRequestHandler
    from compat.servers import BaseServer as BaseServer
    from compat.servers import DatagramRequestHandler as DatagramRequestHandler
    from compat.servers import ForkingMixIn as ForkingMixIn
    from compat.servers import ForkingTCPServer as ForkingTCPServer
    from compat.servers import ForkingUDPServer as ForkingUDPServer
    from compat.servers import ForkingUnixDatagramServer as ForkingUnixDatagramServer
    from compat.servers import ForkingUnixStreamServer as ForkingUnixStreamServer
    from compat.servers import StreamRequestHandler as StreamRequestHandler
    from compat.servers import TCPServer as TCPServer
    from compat.servers import ThreadingMixIn as ThreadingMixIn
    from compat.servers import ThreadingTCPServer as ThreadingTCPServer
    from compat.servers import ThreadingUDPServer as ThreadingUDPServer
    from compat.servers import ThreadingUnixDatagramServer as ThreadingUnixDatagramServer
    from compat.servers import ThreadingUnixStreamServer as ThreadingUnixStreamServer
    from compat.servers import UDPServer as UDPServer
    from compat.servers import UnixDatagramServer as UnixDatagramServer
    from compat.servers import UnixStreamServer as UnixStreamServer

for _each in (*_NAMES, *_UNLISTED_NAMES):
    if hasattr(_servers, _each):
        globals()[_each] = getattr(_servers, _each)
_say_where(__name__, (*_NAMES, *_UNLISTED_NAMES))
_sys.modules[__name__].__class__ = _StandIn
