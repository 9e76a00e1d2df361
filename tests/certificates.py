"""Certificate authorities and certificates for tests, made once per process, as temporary files.

Making and reading them blocks: an async test gets them from a fixture that is not async.

::

    files = authority().server("localhost", "127.0.0.1")
    config = TLSConfig(certificate=files.certificate, private_key=files.private_key)
    client = authority().client_context()
"""

from __future__ import annotations

import atexit
import functools
import itertools
import shutil
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

__all__ = ["SERVER_NAMES", "Authority", "CertificateFiles", "authority"]

SERVER_NAMES = ("localhost", "127.0.0.1", "::1")

_numbers = itertools.count(1)


def authority(name: str = "main") -> Authority:
    """The certificate authority of this name: the same one for every test of the process."""
    return _authority(name)


@functools.cache
def _authority(name: str) -> Authority:
    return Authority(name, trustme.CA(organization_name=f"{name} authority"))


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

    def encrypted_key(self, password: str) -> Path:
        """A new file with the key, encrypted with ``password``."""
        key = load_pem_private_key(self.private_key.read_bytes(), None)
        encryption = BestAvailableEncryption(password.encode())
        return _write("encrypted.key", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))


class Authority:
    """A certificate authority; what it issues is good for servers and for clients."""

    def __init__(self, name: str, ca: trustme.CA) -> None:
        self._ca = ca
        self.file = _write(f"{name}.ca", ca.cert_pem.bytes())

    @functools.cache  # noqa: B019 - an authority lives as long as the process
    def server(self, *names: str) -> CertificateFiles:
        """A server's certificate for these host names and addresses, or ``SERVER_NAMES``; always the same."""
        return self.issue(*(names or SERVER_NAMES))

    @functools.cache  # noqa: B019 - an authority lives as long as the process
    def client(self, common_name: str = "client") -> CertificateFiles:
        """A client's certificate, with ``<common_name>.example.org`` as its DNS name; always the same."""
        return self.issue(f"{common_name}.example.org", common_name=common_name)

    def issue(self, *names: str, common_name: str | None = None) -> CertificateFiles:
        """A new certificate with a new key, as at a renewal."""
        leaf = self._ca.issue_cert(*names, common_name=common_name)
        certificate = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
        private_key = leaf.private_key_pem.bytes()
        return CertificateFiles(
            certificate=_write("certificate.pem", certificate),
            private_key=_write("private.key", private_key),
            combined=_write("combined.pem", private_key + certificate),
        )

    def intermediate(self, name: str) -> Authority:
        """An authority below this one; what it issues comes with its certificate in the chain."""
        return Authority(name, self._ca.create_child_ca())

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


@functools.cache
def _directory() -> Path:
    directory = tempfile.mkdtemp(prefix="certificates-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)


def _write(name: str, content: bytes) -> Path:
    path = _directory() / f"{next(_numbers)}-{name}"
    path.write_bytes(content)
    return path
