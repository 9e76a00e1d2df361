"""Certificate authorities and certificates for tests, made once per process, as temporary files.

They need ``trustme`` (``pip install 'asyncserver[testing]'``). Making and reading them blocks: in an event
loop do it in a thread, or get them from a fixture that is not async.

::

    files = authority().server("localhost", "127.0.0.1")
    config = TLSConfig(certificate=files.certificate, private_key=files.private_key)
    client = authority().client_context()
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import shutil
import ssl
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from asyncserver import TLSConfig

__all__ = ["SERVER_NAMES", "Authority", "CertificateFiles", "authority", "default_authority"]

SERVER_NAMES = ("localhost", "127.0.0.1", "::1")
"""What a server's certificate is for unless its names are given."""

_numbers = itertools.count(1)

# What is made once is made by one thread: two authorities of one name would not trust each other.
_making = threading.RLock()


def authority(name: str = "tests") -> Authority:
    """The certificate authority of this name: the same one for every test and thread of the process.

    Raises ``ImportError`` with what to install if there is no ``trustme``.
    """
    with _making:
        return _authority(name)


@functools.cache
def _authority(name: str) -> Authority:
    return Authority.create(name)


def default_authority() -> Authority:
    """The one that issues for ``serving(transport="tls")``, and that ``TLSClient`` trusts."""
    return authority("asyncserver.testing")


@dataclass(frozen=True)
class CertificateFiles:
    """One certificate with its chain and its key, in PEM files of their own and in one together."""

    certificate: Path
    private_key: Path
    combined: Path

    @property
    def der(self) -> bytes:
        """The certificate itself, without its chain."""
        pem, end, _ = self.certificate.read_text().partition("-----END CERTIFICATE-----")
        return ssl.PEM_cert_to_DER_cert(pem + end)

    @property
    def config(self) -> TLSConfig:
        """For a server: ``Server(..., tls=files.config)``."""
        return TLSConfig(certificate=self.certificate, private_key=self.private_key)


class Authority:
    """A certificate authority, made by ``authority()``; what it issues is for servers and for clients."""

    files_type: ClassVar[type[CertificateFiles]] = CertificateFiles
    """What its certificates come as."""

    def __init__(self, name: str, ca: Any) -> None:
        """``ca``: a ``trustme.CA``."""
        self._ca = ca
        self._issued: dict[tuple[str | None, ...], CertificateFiles] = {}
        self.file: Path = write_file(f"{name}.ca", ca.cert_pem.bytes())
        """The authority's own certificate, for who is to trust it."""

    @classmethod
    def create(cls, name: str) -> Self:
        """A new one."""
        return cls(name, _trustme().CA(organization_name=f"{name} authority"))

    def server(self, *names: str) -> CertificateFiles:
        """A server's certificate for these host names and addresses, or ``SERVER_NAMES``; always the same."""
        return self._issue_once(*(names or SERVER_NAMES))

    def client(self, common_name: str = "client") -> CertificateFiles:
        """A client's certificate, with ``<common_name>.example.org`` as its DNS name; always the same."""
        return self._issue_once(f"{common_name}.example.org", common_name=common_name)

    def _issue_once(self, *names: str, common_name: str | None = None) -> CertificateFiles:
        key = (common_name, *names)
        with _making:
            if key not in self._issued:
                self._issued[key] = self.issue(*names, common_name=common_name)
            return self._issued[key]

    def issue(self, *names: str, common_name: str | None = None) -> CertificateFiles:
        """A new certificate with a new key, as at a renewal."""
        leaf = self._ca.issue_cert(*names, common_name=common_name)
        certificate = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
        private_key = leaf.private_key_pem.bytes()
        return self.files_type(
            certificate=write_file("certificate.pem", certificate),
            private_key=write_file("private.key", private_key),
            combined=write_file("combined.pem", private_key + certificate),
        )

    def intermediate(self, name: str) -> Self:
        """An authority below this one; what it issues comes with its certificate in the chain."""
        return type(self)(name, self._ca.create_child_ca())

    def client_context(self, certificate: CertificateFiles | None = None) -> ssl.SSLContext:
        """A new client's context that trusts this authority alone and shows ``certificate`` if asked."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.file)
        if certificate is not None:
            context.load_cert_chain(certificate.certificate, certificate.private_key)
        return context

    def server_context(self, *names: str) -> ssl.SSLContext:
        """A new server's context with a certificate for ``names``, or ``SERVER_NAMES``."""
        files = self.server(*names)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.private_key)
        return context


def _trustme() -> Any:
    try:
        import trustme
    except ImportError as error:
        raise ImportError(
            "certificates for tests need trustme: pip install 'asyncserver[testing]'"
        ) from error
    return trustme


@functools.cache
def _directory() -> Path:
    directory = tempfile.mkdtemp(prefix="certificates-")
    atexit.register(_remove_in, os.getpid(), directory)
    return Path(directory)


def _remove_in(process: int, directory: str) -> None:
    """A child that was forked ends with the functions of its parent, too."""
    if os.getpid() == process:
        shutil.rmtree(directory, ignore_errors=True)


def write_file(name: str, content: bytes) -> Path:
    """A new file with this in it, which is there as long as the process."""
    with _making:  # A child that was forked counts on where its parent does, in the same directory.
        path = _directory() / f"{os.getpid()}-{next(_numbers)}-{name}"
    path.write_bytes(content)
    return path
