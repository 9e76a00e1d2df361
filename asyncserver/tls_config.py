"""What a server needs to know to speak TLS, as files and options, and the SSL context made of it."""

from __future__ import annotations

import math
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from asyncserver.checks import names_fields
from asyncserver.errors import TLSConfigurationError
from asyncserver.tls_files import Password, StrPath, load_certificate, load_client_ca
from asyncserver.tls_sni import choose_by_server_name, normalized_server_name

__all__ = ["ClientCertificates", "TLSConfig", "check_server_context"]

ClientCertificates = Literal["none", "optional", "required"]
SNIEntry: TypeAlias = "TLSConfig | ssl.SSLContext"

_VERIFY_MODES: dict[str, ssl.VerifyMode] = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}
_SERVER_OPTIONS = (
    ssl.OP_NO_COMPRESSION  # compressed secrets leak through the length (CRIME)
    | ssl.OP_NO_RENEGOTIATION  # lets a client make the server work for nothing; TLS 1.3 has none
    | ssl.OP_SINGLE_DH_USE
    | ssl.OP_SINGLE_ECDH_USE
)


@names_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class TLSConfig:
    """Certificates and TLS options of a server, or of one of its names.

    A value: nothing is read before :meth:`create_context`. Options that contradict each other raise
    :class:`TLSConfigurationError` at once. Relative paths start at the working directory of the
    moment in which they are read.
    """

    certificate: StrPath
    """PEM file with the server's certificate, followed by the intermediate ones that lead to its root."""

    private_key: StrPath | None = None
    """PEM file with the certificate's private key; ``None``: it is in the certificate's file."""

    password: Password = field(default=None, repr=False)
    """What an encrypted private key is decrypted with, at most 1,024 bytes, or a function that returns it.

    The function is called at every load, in the thread that loads. Nobody is ever asked on the
    terminal: an encrypted key without a password is an error.
    """

    client_ca: StrPath | None = None
    """PEM file with the certificates that clients' certificates have to lead to.

    Just these are trusted, not the system's; an intermediate certificate, or a client's own, is
    trusted without its root. Needs ``client_certificates``.
    """

    client_certificates: ClientCertificates = "none"
    """Whether clients are asked for a certificate (mutual TLS).

    ``"none"``: they are not. ``"optional"``: they are, and may have none; one that is shown has to
    be good. ``"required"``: the handshake fails without a good one. The last two need ``client_ca``.
    """

    alpn: tuple[str, ...] = ()
    """Application protocols, the preferred one first: ASCII, 1 to 255 bytes each.

    A client that offers none of them is not refused; its connection has no selected protocol.
    """

    minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    """``TLSv1_2`` or ``TLSv1_3``; what is older is broken, and an error here."""

    ciphers: str | None = None
    """OpenSSL's cipher list for TLS 1.2; ``None``: OpenSSL's own. TLS 1.3's suites are not affected."""

    sni: Mapping[str, SNIEntry] = field(default_factory=dict[str, SNIEntry], hash=False)
    """Other certificates by the server name that the client asks for.

    ``"www.example.org"``, or ``"*.example.org"`` for every name with one label more; an exact name
    comes first. Upper and lower case are the same; a name beyond ASCII is compared as its A-label.
    The chosen entry decides about certificate, ``alpn``, ``ciphers`` and ``client_ca``. What else it
    says has to agree with the outer one, because it is settled before the name is known:
    ``client_certificates`` the same, ``minimum_version`` not higher, no ``sni``, ``sni_strict`` or
    ``reload_interval`` of its own.

    Together with client certificates it turns TLS 1.3 session tickets off: with one, a client that
    one name trusts could go on under another name that does not.
    """

    sni_strict: bool = False
    """Refuse a name that is not in ``sni`` with the alert ``unrecognized_name``.

    Without it such a name gets this certificate. With it the names of this certificate itself have
    to be in ``sni`` as well. A client that names no server, as one that connects to an IP address,
    is served in both cases.
    """

    reload_interval: float | None = None
    """Seconds between two looks at whether the files have changed; ``None``: reloaded on demand only."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpn", _checked_alpn(self.alpn))
        object.__setattr__(self, "sni", _normalized_names(self.sni))
        _check_paths(self)
        _check_password(self.password)
        _check_client_certificates(self)
        _check_minimum_version(self.minimum_version)
        _check_reload_interval(self.reload_interval)
        _check_sni(self)

    def create_context(self) -> ssl.SSLContext:
        """Load all files and make a server's SSL context of them. Blocking.

        Raises :class:`TLSConfigurationError`, which names the file, what is wrong with it and what to do.
        """
        context = self._context_of_one_name()
        if self.sni:
            choose_by_server_name(context, self._contexts_by_name(), strict=self.sni_strict)
            if self.client_certificates != "none":
                # A ticket made under one name is good under every other, and the client's
                # certificate is not checked again. (A TLS 1.2 session stays with its first name.)
                context.num_tickets = 0
        return context

    def files(self) -> tuple[str, ...]:
        """The path of every file that :meth:`create_context` reads, those of ``sni`` included."""
        own = (self.certificate, self.private_key, self.client_ca)
        paths = [os.fspath(path) for path in own if path is not None]
        for entry in self.sni.values():
            if isinstance(entry, TLSConfig):
                paths.extend(entry.files())
        return tuple(dict.fromkeys(paths))

    def _context_of_one_name(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # OP_IGNORE_UNEXPECTED_EOF stays off: with it, a connection that somebody cut in the middle
        # looks like one that the peer has ended. What to do about a cut is for the stream to say.
        # Session tickets stay as they are: every context has keys of its own, so a session does not
        # outlive a reload, nor a client its removal from client_ca.
        context.options |= _SERVER_OPTIONS
        context.minimum_version = self.minimum_version
        load_certificate(context, self.certificate, self.private_key, self.password)
        if self.client_ca is not None:
            load_client_ca(context, self.client_ca)
            # What the file holds is what is trusted: an intermediate needs no root beside it.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.verify_mode = _VERIFY_MODES[self.client_certificates]
        if self.alpn:
            context.set_alpn_protocols(self.alpn)
        if self.ciphers is not None:
            _set_ciphers(context, self.ciphers)
        return context

    def _contexts_by_name(self) -> dict[str, ssl.SSLContext]:
        made: dict[int, ssl.SSLContext] = {}
        contexts: dict[str, ssl.SSLContext] = {}
        for name, entry in self.sni.items():
            if id(entry) not in made:
                made[id(entry)] = self._context_for_name(name, entry)
            contexts[name] = made[id(entry)]
        return contexts

    @staticmethod
    def _context_for_name(name: str, entry: SNIEntry) -> ssl.SSLContext:
        if isinstance(entry, ssl.SSLContext):
            return entry
        try:
            return entry._context_of_one_name()
        except TLSConfigurationError as error:
            raise TLSConfigurationError(f"sni name {name!r}: {error}") from error


def check_server_context(context: object, origin: str) -> ssl.SSLContext:
    """``context`` if a server can use it, else a :class:`TLSConfigurationError` that names ``origin``."""
    if not isinstance(context, ssl.SSLContext):
        raise TLSConfigurationError(f"{origin} is {type(context).__name__}, not an ssl.SSLContext")
    if context.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise TLSConfigurationError(
            f"{origin} is a client's SSL context; make it with ssl.PROTOCOL_TLS_SERVER "
            "or ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)"
        )
    return context


def _set_ciphers(context: ssl.SSLContext, ciphers: str) -> None:
    try:
        context.set_ciphers(ciphers)
    except (ssl.SSLError, ValueError) as error:
        raise TLSConfigurationError(
            f"ciphers={ciphers!r}: OpenSSL knows no TLS 1.2 cipher by this; see openssl ciphers -v"
        ) from error


def _checked_alpn(alpn: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(alpn, tuple | list):
        raise TLSConfigurationError(
            f"alpn={alpn!r}: write a tuple of protocol names, such as ('h2', 'http/1.1')"
        )
    for name in alpn:
        if not _is_protocol_name(name):
            raise TLSConfigurationError(f"alpn name {name!r}: a protocol name is 1 to 255 ASCII characters")
    return tuple(alpn)


def _is_protocol_name(name: object) -> bool:
    return isinstance(name, str) and name.isascii() and 1 <= len(name) <= 255


def _normalized_names(sni: Mapping[str, SNIEntry]) -> dict[str, SNIEntry]:
    _check_is_mapping(sni)
    entries: dict[str, SNIEntry] = {}
    for name, entry in sni.items():
        normalized = normalized_server_name(name)
        if normalized in entries:
            raise TLSConfigurationError(f"sni name {name!r}: there twice, both are {normalized!r}")
        entries[normalized] = entry
    return entries


def _check_is_mapping(sni: object) -> None:
    if not isinstance(sni, Mapping):
        raise TLSConfigurationError(
            f"sni={sni!r}: write a mapping of server names to TLSConfig or SSLContext"
        )


def _check_paths(config: TLSConfig) -> None:
    _check_path("certificate", config.certificate)
    for option, path in (("private_key", config.private_key), ("client_ca", config.client_ca)):
        if path is not None:
            _check_path(option, path)


def _check_path(option: str, path: object) -> None:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise TLSConfigurationError(f"{option}={path!r}: write the path of a file in PEM format")


def _check_password(password: object) -> None:
    if password is not None and not isinstance(password, str | bytes) and not callable(password):
        # The value itself must not get into a log.
        raise TLSConfigurationError(f"password is {type(password).__name__}; it is str, bytes or a function")


def _check_client_certificates(config: TLSConfig) -> None:
    mode = config.client_certificates
    if mode not in _VERIFY_MODES:
        choices = ", ".join(map(repr, get_args(ClientCertificates)))
        raise TLSConfigurationError(f"client_certificates={mode!r}: it is one of {choices}")
    if mode != "none" and config.client_ca is None:
        raise TLSConfigurationError(
            f"client_certificates={mode!r}: client_ca has to name the file with the authorities to trust"
        )
    if mode == "none" and config.client_ca is not None:
        # To let everybody in is not what somebody wanted who named an authority.
        raise TLSConfigurationError(
            f"client_ca={os.fspath(config.client_ca)!r}: not used; "
            "add client_certificates='required' (or 'optional'), or leave it out"
        )


def _check_minimum_version(version: object) -> None:
    if version not in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        raise TLSConfigurationError(
            f"minimum_version={version!r}: ssl.TLSVersion.TLSv1_2 is the lowest, TLSv1_3 the other one"
        )


def _check_reload_interval(seconds: object) -> None:
    if seconds is not None and not _is_positive_number(seconds):
        raise TLSConfigurationError(
            f"reload_interval={seconds!r}: seconds above 0, or None for on demand only"
        )


def _is_positive_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _check_sni(config: TLSConfig) -> None:
    if config.sni_strict and not config.sni:
        raise TLSConfigurationError(
            "sni_strict=True: without names in sni every client that names one is refused"
        )
    for name, entry in config.sni.items():
        if isinstance(entry, TLSConfig):
            _check_inner_config(name, entry, config)
        else:
            check_server_context(entry, f"sni name {name!r}")
        _check_client_certificates_agree(name, entry, config)


def _check_inner_config(name: str, inner: TLSConfig, outer: TLSConfig) -> None:
    if inner.sni or inner.sni_strict or inner.reload_interval is not None:
        raise TLSConfigurationError(
            f"sni name {name!r}: sni, sni_strict and reload_interval belong to the outermost TLSConfig only"
        )
    if inner.minimum_version > outer.minimum_version:
        raise TLSConfigurationError(
            f"sni name {name!r}: minimum_version={inner.minimum_version.name} cannot be kept for one name, "
            "because the version is settled before the name is known; set it on the outer TLSConfig"
        )


def _check_client_certificates_agree(name: str, entry: SNIEntry, outer: TLSConfig) -> None:
    mode = (
        entry.verify_mode if isinstance(entry, ssl.SSLContext) else _VERIFY_MODES[entry.client_certificates]
    )
    if mode != _VERIFY_MODES[outer.client_certificates]:
        raise TLSConfigurationError(
            f"sni name {name!r}: client_certificates has to be {outer.client_certificates!r} as in the outer "
            "TLSConfig, because OpenSSL settles it before the name is known; listen on another address for "
            "this name, or ask for 'optional' everywhere and look at the stream's certificate"
        )
