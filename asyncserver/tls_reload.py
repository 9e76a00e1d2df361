"""An SSL context that can be replaced while the server runs, as certificates are renewed."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable
from typing import TypeAlias

from asyncserver.errors import TLSConfigurationError
from asyncserver.tls_config import TLSConfig, check_server_context
from asyncserver.tls_files import Fingerprint, fingerprint

__all__ = ["ReloadableContext", "TLSSource", "check_tls_source"]

TLSSource: TypeAlias = TLSConfig | ssl.SSLContext | Callable[[], ssl.SSLContext]
"""Where a server's SSL context comes from: files and options, a finished one, or a function that makes it."""

logger: logging.Logger = logging.getLogger("asyncserver")


class ReloadableContext:
    """The SSL context for new handshakes, and how to get a newer one.

    A connection keeps the context that its handshake began with; a context that does not load never
    replaces one that works.

    Making one of these and :meth:`reload` read files, and :meth:`files_changed` asks the file system
    about them: call them in a thread. They may be called from several at once.

    Raises :class:`TLSConfigurationError` when the first context cannot be made.
    """

    def __init__(self, source: TLSSource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._files = source.files() if isinstance(source, TLSConfig) else ()
        self._loaded_files = fingerprint(self._files)
        self._context = _create_context(source)
        self._loaded_at = time.time()
        self._problem: str | None = None
        self._reloads = 0
        self._failed_reloads = 0

    @property
    def context(self) -> ssl.SSLContext:
        """The context for new handshakes; ask again for each, because it changes with a reload."""
        return self._context

    @property
    def reload_interval(self) -> float | None:
        """Seconds between two calls of :meth:`files_changed`; ``None``: nobody is to look."""
        return self._source.reload_interval if isinstance(self._source, TLSConfig) else None

    @property
    def reloads(self) -> int:
        """How often :meth:`reload` has put a new context in force."""
        return self._reloads

    @property
    def failed_reloads(self) -> int:
        """How often :meth:`reload` had to keep the old context."""
        return self._failed_reloads

    @property
    def loaded_at(self) -> float:
        """When the context in force was made, in seconds as of :func:`time.time`."""
        return self._loaded_at

    @property
    def problem(self) -> str | None:
        """Why the last :meth:`reload` kept the old context; ``None`` when it did not."""
        return self._problem

    def files_changed(self) -> bool:
        """Whether a reload is due: a file is not the one that was loaded, or the last reload failed.

        The second, because a certificate and its key are written one after the other: a reload in
        between fails, and has to be tried again even though nothing changes any more. Always
        ``False`` for a context or a function, whose files are not known. Blocking.
        """
        if not self._files:
            return False
        return self._problem is not None or fingerprint(self._files) != self._loaded_files

    def reload(self) -> bool:
        """Make a new context; returns whether what is in force is as new as can be. Blocking.

        When it cannot be made the old one stays and the reason is logged, once until the reason is
        another one. A source that is a finished ``ssl.SSLContext`` cannot be made again: nothing
        happens, which is logged, and ``True`` is returned.
        """
        if isinstance(self._source, ssl.SSLContext):
            logger.info(
                "TLS: nothing to reload, the server was given a finished ssl.SSLContext; "
                "give it a TLSConfig, or a function that makes the context"
            )
            return True
        with self._lock:
            return self._replace_context()

    def _replace_context(self) -> bool:
        # Looked at before they are read: what changes in between is then seen at the next look.
        files = fingerprint(self._files)
        try:
            context = _create_context(self._source)
        except TLSConfigurationError as error:
            self._keep_old_context(str(error))
            return False
        self._put_in_force(context, files)
        return True

    def _put_in_force(self, context: ssl.SSLContext, files: Fingerprint) -> None:
        self._context = context
        self._loaded_files = files
        self._loaded_at = time.time()
        self._problem = None
        self._reloads += 1
        logger.info(
            "TLS: reloaded; new connections get %s", ", ".join(self._files) or "the function's new context"
        )

    def _keep_old_context(self, problem: str) -> None:
        self._failed_reloads += 1
        if problem != self._problem:
            logger.error("TLS: reload failed, the certificate in force stays: %s", problem)
        self._problem = problem


def _create_context(source: TLSSource) -> ssl.SSLContext:
    if isinstance(source, TLSConfig):
        return source.create_context()
    if isinstance(source, ssl.SSLContext):
        return check_server_context(source, "the TLS context")
    check_tls_source(source)
    return _call_function(source)


def check_tls_source(source: object) -> None:
    """Raise :class:`TLSConfigurationError` for what no context can come of."""
    if isinstance(source, TLSConfig | ssl.SSLContext) or (callable(source) and source is not TLSConfig):
        return
    certificate = source if isinstance(source, str) else "cert.pem"
    raise TLSConfigurationError(
        f"tls={source!r}: has to be a TLSConfig, an ssl.SSLContext or a function that returns one; for files "
        f"write TLSConfig(certificate={certificate!r}, private_key='key.pem')"
    )


def _call_function(function: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    name = getattr(function, "__qualname__", repr(function))
    try:
        context = function()
    except Exception as error:
        raise TLSConfigurationError(
            f"the function {name} that makes the TLS context failed: {error!r}"
        ) from error
    return check_server_context(context, f"what the function {name} returned")
