"""Certificates, keys and CA files on their way into an SSL context, and what is wrong when they do not fit.

OpenSSL says ``[SSL] PEM lib`` to almost everything and names no file, so after a failure the files
are looked at again here, and the error says which file, what is wrong with it, and what to do.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
import stat
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from asyncserver.errors import TLSConfigurationError

__all__ = ["Fingerprint", "Password", "StrPath", "fingerprint", "load_certificate", "load_client_ca"]

StrPath: TypeAlias = str | os.PathLike[str]
Password: TypeAlias = str | bytes | Callable[[], str | bytes] | None
Fingerprint: TypeAlias = tuple[tuple[int, int, int, int] | None, ...]

logger: logging.Logger = logging.getLogger("asyncserver")

_LONGEST_PASSWORD = 1024  # OpenSSL's buffer, PEM_BUFSIZE
_CERTIFICATE = re.compile(rb"-----(BEGIN|END) (?:X509 |TRUSTED )?CERTIFICATE-----")
_PRIVATE_KEY = re.compile(rb"-----(BEGIN|END) (?:[A-Z0-9]+ )*PRIVATE KEY-----")
_DER_SEQUENCE = b"\x30"


def load_certificate(
    context: ssl.SSLContext, certificate: StrPath, private_key: StrPath | None, password: Password
) -> None:
    """Load a certificate chain and its key (``private_key=None``: in the same file) into ``context``.

    Raises :class:`TLSConfigurationError`. Never asks for a password on the terminal.
    """
    source = _PasswordSource(password, _named_key(certificate, private_key))
    try:
        context.load_cert_chain(certificate, private_key, password=source)
    except TLSConfigurationError:
        raise
    except (OSError, ValueError) as error:
        problem = _certificate_problem(certificate, private_key, error, asked=source.asked)
        raise TLSConfigurationError(problem) from error
    _warn_if_expired(certificate)


def load_client_ca(context: ssl.SSLContext, client_ca: StrPath) -> None:
    """Make ``context`` trust the certificates in ``client_ca``; raises :class:`TLSConfigurationError`."""
    try:
        context.load_verify_locations(client_ca)
    except (OSError, ValueError) as error:
        problem = _missing_certificates("client_ca", client_ca) or _unusable(
            _named("client_ca", client_ca), error
        )
        raise TLSConfigurationError(problem) from error
    # A file with nothing but a revocation list loads without an error and then refuses everybody.
    if not context.cert_store_stats()["x509"]:
        raise TLSConfigurationError(_no_certificate("client_ca", client_ca))


def fingerprint(paths: Iterable[StrPath]) -> Fingerprint:
    """What tells that one of the files has changed; ``None`` stands for one that cannot be looked at.

    Symbolic links are followed: certbot and Kubernetes renew by pointing a link somewhere else, and
    then it is the target's inode that differs. Blocking.
    """
    return tuple(_file_identity(path) for path in paths)


def _file_identity(path: StrPath) -> tuple[int, int, int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _warn_if_expired(certificate: StrPath) -> None:
    try:
        # Not public, and the only way to read a certificate that no peer has shown.
        implementation: Any = ssl
        found = implementation._ssl._test_decode_cert(os.fspath(certificate))
        expired = ssl.cert_time_to_seconds(found["notAfter"]) < time.time()
    except (AttributeError, KeyError, OSError, ValueError):
        return
    if expired:
        name = _named("certificate", certificate)
        logger.warning("%s: expired on %s, so that clients refuse it; renew it", name, found["notAfter"])


class _PasswordSource:
    """Hands the key's password to OpenSSL.

    It is always installed: without a callback OpenSSL asks on the terminal, which stops a server
    that was started from one and confuses every other.
    """

    def __init__(self, password: Password, key_name: str) -> None:
        self.asked = False
        self._password = password
        self._key_name = key_name

    def __call__(self) -> str | bytes:
        self.asked = True
        if self._password is None:
            raise self._error(
                "the key is encrypted and there is no password; set password, "
                "or store the key decrypted (openssl pkey -in FILE -out DECRYPTED)"
            )
        if isinstance(self._password, str | bytes):
            return self._checked(self._password)
        try:
            given = self._password()
        except Exception as error:
            raise self._error(f"the function that is to give the password failed: {error!r}") from error
        return self._checked(given)

    def _checked(self, password: object) -> str | bytes:
        if not isinstance(password, str | bytes):
            kind = type(password).__name__
            raise self._error(f"the function that is to give the password returned {kind}, not str or bytes")
        if len(password.encode() if isinstance(password, str) else password) > _LONGEST_PASSWORD:
            raise self._error(f"the password is longer than the {_LONGEST_PASSWORD} bytes that OpenSSL takes")
        return password

    def _error(self, problem: str) -> TLSConfigurationError:
        return TLSConfigurationError(f"{self._key_name}: {problem}")


def _certificate_problem(
    certificate: StrPath, private_key: StrPath | None, error: Exception, *, asked: bool
) -> str:
    problem = _missing_certificates("certificate", certificate) or _missing_key(private_key, certificate)
    if problem:
        return problem
    if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
        return (
            f"{_named_key(certificate, private_key)}: the key does not belong to the first certificate in "
            f"{os.fspath(certificate)!r}; take the key that this certificate was issued for, and put the "
            "server's own certificate before the intermediate ones"
        )
    if not _holds_readable_certificates(certificate):
        return _unusable(_named("certificate", certificate), error)
    key_name = _named_key(certificate, private_key)
    if asked:
        return f"{key_name}: the password is wrong, or the encrypted key is damaged"
    return _unusable(key_name, error)


def _missing_certificates(option: str, path: StrPath) -> str | None:
    content = _content_or_problem(option, path)
    if isinstance(content, str):
        return content
    marks = _CERTIFICATE.findall(content)
    if not marks:
        return _no_certificate(option, path, _hint(content, _PRIVATE_KEY, "a private key"))
    return _cut_off(option, path, marks)


def _missing_key(private_key: StrPath | None, certificate: StrPath) -> str | None:
    option, path = ("certificate", certificate) if private_key is None else ("private_key", private_key)
    content = _content_or_problem(option, path)
    if isinstance(content, str):
        return content
    marks = _PRIVATE_KEY.findall(content)
    if marks:
        return _cut_off(option, path, marks)
    if private_key is None:
        return (
            f"{_named(option, path)}: no private key in this file; add it, or name its file with private_key"
        )
    hint = _hint(content, _CERTIFICATE, "a certificate")
    return f"{_named(option, path)}: no private key in PEM format (BEGIN PRIVATE KEY) in this file{hint}"


def _content_or_problem(option: str, path: StrPath) -> bytes | str:
    """The file's bytes, or a sentence (``str``) about why there are none."""
    try:
        # Opening a pipe would wait for a writer, perhaps for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return f"{_named(option, path)}: not a regular file; name a file in PEM format"
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return f"{_named(option, path)}: no such file; {_where_looked(path)}"
    except PermissionError:
        return f"{_named(option, path)}: permission denied; let the server's user read it (chown, chmod)"
    except (OSError, ValueError) as error:
        return f"{_named(option, path)}: cannot be read: {error}"


def _where_looked(path: StrPath) -> str:
    if os.path.isabs(path):
        return "check the path"
    return f"check the path, which starts at the working directory {os.getcwd()!r}"


def _no_certificate(option: str, path: StrPath, hint: str = "") -> str:
    return f"{_named(option, path)}: no certificate in PEM format (BEGIN CERTIFICATE) in this file{hint}"


def _hint(content: bytes, other: re.Pattern[bytes], name: str) -> str:
    if not content:
        return "; it is empty"
    if other.search(content):
        return f", but {name}; check which file is which"
    if content.startswith(_DER_SEQUENCE):
        return "; it looks like DER or PKCS#12, convert it with openssl x509, openssl pkey or openssl pkcs12"
    return ""


def _cut_off(option: str, path: StrPath, marks: list[bytes]) -> str | None:
    if marks.count(b"BEGIN") == marks.count(b"END"):
        return None
    return f"{_named(option, path)}: the file is cut off, its last BEGIN line has no END line; write it anew"


def _holds_readable_certificates(path: StrPath) -> bool:
    """Whether it is the certificate or the key that OpenSSL stumbled over."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (OSError, ValueError):
        return False
    return True


def _unusable(name: str, error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return (
        f"{name}: OpenSSL cannot use what is in this file ({reason}); "
        "it is damaged, or of a kind that OpenSSL does not know or refuses as too weak"
    )


def _named_key(certificate: StrPath, private_key: StrPath | None) -> str:
    return _named("certificate", certificate) if private_key is None else _named("private_key", private_key)


def _named(option: str, path: StrPath) -> str:
    return f"{option} {os.fspath(path)!r}"
