"""Which tests of the interpreter's own are run: those that build servers, or use what is made of them.

What would need the Internet is left out.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import NamedTuple

__all__ = ["OTHERS", "SOCKETSERVER", "Part", "missing"]


class Part(NamedTuple):
    """Some tests of one module, for one process; patterns are those of ``fnmatch``, for whole test ids."""

    name: str
    module: str
    at_least: int
    """Every version has more tests than that: with fewer, something is wrong with the selection."""
    only: tuple[str, ...] = ("*",)
    """Each of these has to match a test."""
    drop: tuple[str, ...] = ()
    as_user: bool = False
    """Whether root is to look like another user, because the tests skip themselves for root."""


SOCKETSERVER = Part("socketserver", "test.test_socketserver", 25)

_CGI = ("*.CGIHTTPServerTestCase.*",)
_SOCKET_LOGGING = (
    *(
        f"*.{name}HandlerTest.*"
        for name in (
            "Datagram",
            "HTTP",
            "IPv6SysLog",
            "Socket",
            "SysLog",
            "UnixDatagram",
            "UnixSocket",
            "UnixSysLog",
        )
    ),
    "*.ConfigDictTest.test_listen*",
)
_EVENTS_WITH_SERVERS = (
    "*_create_connection*",
    "*_create_ssl_*connection*",
    "*_create_unix_connection*",
)

# These wait for a time-out, each for three seconds.
_SLOW_PATHS = (
    ("*.MultiPathServerTestCase.test_empty_path*",),
    ("*.MultiPathServerTestCase.test_path_*",),
)

# And these for ten, up to Python 3.12.
_SLOW_MAILBOXES = (
    "*.NewIMAPTests.test_imaplib_timeout_test",
    "*.NewIMAPSSLTests.test_imaplib_timeout_test",
    "*.NewIMAPSSLTests.test_ssl_raises",
    "*.NewIMAPSSLTests.test_ssl_verified",
)
_REMOTE_MAILBOXES = ("*.Remote*",)

_MAILBOXES = (
    *(
        Part(f"imaplib, slow {number}", "test.test_imaplib", 1, only=(slow,))
        for number, slow in enumerate(_SLOW_MAILBOXES, 1)
    ),
    Part("imaplib, rest", "test.test_imaplib", 80, drop=(*_REMOTE_MAILBOXES, *_SLOW_MAILBOXES)),
)
if sys.version_info >= (3, 13):
    _MAILBOXES = (Part("imaplib", "test.test_imaplib", 85, drop=_REMOTE_MAILBOXES),)

OTHERS = (
    *_MAILBOXES,
    *(
        Part(f"xmlrpc, slow {number}", "test.test_xmlrpc", 3, only=slow)
        for number, slow in enumerate(_SLOW_PATHS, 1)
    ),
    Part("xmlrpc, rest", "test.test_xmlrpc", 80, drop=sum(_SLOW_PATHS, ())),
    Part("logging, sockets", "test.test_logging", 14, only=_SOCKET_LOGGING),
    Part("httpservers", "test.test_httpservers", 55, drop=_CGI),
    Part("httpservers, CGI", "test.test_httpservers", 12, only=_CGI, as_user=True),
    Part("docxmlrpc", "test.test_docxmlrpc", 8),
    Part("wsgiref", "test.test_wsgiref", 30),
    Part("urllib2_localnet", "test.test_urllib2_localnet", 20, drop=("*.TestUrlopen.test_bad_address",)),
    Part("robotparser", "test.test_robotparser", 50, drop=("*.NetworkTestCase.*",)),
    Part("httplib", "test.test_httplib", 100, drop=("*.test_networked*",)),
    Part("ssl", "test.test_ssl", 1, only=("*.ThreadedTests.test_socketserver",)),
    Part("pydoc", "test.test_pydoc", 3, only=("*.PydocServerTest.*", "*.PydocUrlHandlerTest.*")),
    Part("asyncio.streams", "test.test_asyncio.test_streams", 60),
    Part("asyncio.events", "test.test_asyncio.test_events", 20, only=_EVENTS_WITH_SERVERS),
    Part("idlelib.rpc", "idlelib.idle_test.test_rpc", 3),
    Part("idlelib.run", "idlelib.idle_test.test_run", 20),
)


def missing(part: Part) -> str | None:
    """What this Python has to be completed with; None where it has all that the part needs.

    A test module that is not there although others are has been moved or renamed: that is no excuse.
    """
    version = "{}.{}".format(*sys.version_info)
    needed = ["test.test_socketserver"]
    if part.module.startswith("idlelib."):
        needed = ["idlelib.rpc", "idlelib.idle_test.test_rpc", "_tkinter"]
    lacking = [name for name in needed if not _exists(name)]
    if not lacking:
        return None
    return (
        f"this Python has no {', '.join(lacking)}: on Debian and Ubuntu, apt-get install "
        f"libpython{version}-testsuite idle-python{version} python3-tk; elsewhere, take one that is complete"
    )


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
