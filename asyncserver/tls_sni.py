"""Server Name Indication: the certificate that fits the name a client asks for.

A client may put the server's name into its first message. What of the chosen context counts and
what was already settled by the default one is OpenSSL's decision:

========================================  ===================================================
the chosen name's context                 certificate and key, ALPN, ciphers (TLS 1.2),
                                          the certificate authorities that clients are checked against
the default context                       whether a client certificate is asked for, minimum version,
                                          session tickets, options
========================================  ===================================================

A server name with bytes beyond ASCII is refused by Python's ``ssl`` module before it asks anybody:
the handshake fails and ``sys.unraisablehook`` is called.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Mapping
from typing import TypeVar

from asyncserver.errors import TLSConfigurationError

__all__ = ["choose_by_server_name", "find_server_name", "normalized_server_name"]

T = TypeVar("T")

_WILDCARD = "*."
_HOST_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


def normalized_server_name(name: str) -> str:
    """The name as clients send it: lower case, IDNA A-labels, no dot at the end; a leading ``*.`` stays.

    Encoded as IDNA 2003, as the ``ssl`` module does on the client's side; a name for which IDNA 2008
    differs can be given as its A-label (``xn--...``). Raises :class:`TLSConfigurationError`.
    """
    if not isinstance(name, str):
        raise _name_error(name, "a server name is a str")
    host = name.removeprefix(_WILDCARD).removesuffix(".")
    try:
        host = host.encode("idna").decode("ascii").lower()
    except UnicodeError as error:
        raise _name_error(name, f"not a host name ({error})") from error
    if not _HOST_NAME.fullmatch(host):
        raise _name_error(name, "not a host name; write 'www.example.org' or '*.example.org', without a port")
    if _is_ip_address(host):
        raise _name_error(
            name, "clients send no server name for an IP address; it gets the default certificate"
        )
    return f"{_WILDCARD}{host}" if name.startswith(_WILDCARD) else host


def find_server_name(entries: Mapping[str, T], name: str) -> T | None:
    """What ``entries`` (normalized names) has for ``name``: exactly, else for one label under ``*.``."""
    name = name.lower().removesuffix(".")
    exact = entries.get(name)
    if exact is not None:
        return exact
    return entries.get(_WILDCARD + name.partition(".")[2])


def choose_by_server_name(
    default: ssl.SSLContext, contexts: Mapping[str, ssl.SSLContext], *, strict: bool
) -> None:
    """Make handshakes begun with ``default`` go on with the context for the name that the client asks for.

    A name that is not in ``contexts`` gets ``default``, or with ``strict`` an ``unrecognized_name``
    alert; a client that asks for no name gets ``default`` in both cases.
    """

    def choose(ssl_object: ssl.SSLObject | ssl.SSLSocket, name: str | None, _context: object) -> int | None:
        if name is None:
            return None
        chosen = find_server_name(contexts, name)
        if chosen is not None:
            ssl_object.context = chosen
        elif strict:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        return None

    default.sni_callback = choose


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _name_error(name: object, problem: str) -> TLSConfigurationError:
    return TLSConfigurationError(f"sni name {name!r}: {problem}")
