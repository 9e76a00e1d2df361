"""``asyncserver.testing.certificates``, and what tests of this package need beyond it.

Making and reading certificates blocks: an async test gets them from a fixture that is not async.

::

    files = authority().server("localhost", "127.0.0.1")
    config = TLSConfig(certificate=files.certificate, private_key=files.private_key)
    client = authority().client_context()
"""

from __future__ import annotations

import functools
from pathlib import Path

from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from asyncserver.testing import certificates
from asyncserver.testing.certificates import SERVER_NAMES

__all__ = ["SERVER_NAMES", "Authority", "CertificateFiles", "authority"]


class CertificateFiles(certificates.CertificateFiles):
    """Files whose key can be had encrypted, too."""

    def encrypted_key(self, password: str) -> Path:
        """A new file with the key, encrypted with ``password``."""
        key = load_pem_private_key(self.private_key.read_bytes(), None)
        encryption = BestAvailableEncryption(password.encode())
        encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        return certificates.write_file("encrypted.key", encrypted)


class Authority(certificates.Authority):
    """A certificate authority of the tests."""

    files_type = CertificateFiles


@functools.cache
def authority(name: str = "main") -> Authority:
    """The certificate authority of this name: the same one for every test of the process."""
    return Authority.create(name)
