"""Who is at the other end: the certificate that the peer has shown and that was verified."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NotRequired, TypeAlias, TypedDict, cast

__all__ = ["PeerCertificate", "PeerCertificateDict", "peer_certificate"]

TLSObject: TypeAlias = ssl.SSLObject | ssl.SSLSocket
_RelativeNames: TypeAlias = tuple[tuple[tuple[str, str], ...], ...]


class PeerCertificateDict(TypedDict):
    """A certificate as :meth:`ssl.SSLSocket.getpeercert` returns it."""

    subject: _RelativeNames
    issuer: _RelativeNames
    version: int
    serialNumber: str
    notBefore: str
    notAfter: str
    subjectAltName: NotRequired[tuple[tuple[str, str], ...]]
    OCSP: NotRequired[tuple[str, ...]]
    caIssuers: NotRequired[tuple[str, ...]]
    crlDistributionPoints: NotRequired[tuple[str, ...]]


def peer_certificate(ssl_object: TLSObject) -> PeerCertificateDict | None:
    """The peer's verified certificate.

    ``None`` when it has shown none, when it was not asked for one, when it was not verified, and
    while the handshake is not done.
    """
    try:
        certificate = ssl_object.getpeercert()
    except ValueError:
        return None
    # An empty dict means: there is one, and nobody has verified it.
    return cast("PeerCertificateDict", certificate) if certificate else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerCertificate:
    """What a program decides by, out of a peer's verified certificate."""

    subject: Mapping[str, tuple[str, ...]] = field(hash=False)
    """The subject's attributes by OpenSSL's long names (``"organizationalUnitName"``).

    Each has all its values in the order of the certificate, because an attribute may occur repeatedly.
    """
    common_name: str | None
    """The subject's common name, the last and so the most specific one where there are several."""
    dns_names: tuple[str, ...]
    """The DNS names among the subject alternative names."""
    uri_names: tuple[str, ...]
    """The URIs among them, such as a SPIFFE identity."""
    not_after: datetime
    """When the certificate expires, in UTC. It was valid during the full handshake, which may be long ago."""
    serial_number: str
    """In upper-case hexadecimal digits, as OpenSSL prints it; unique for one issuer."""
    der: bytes = field(repr=False)
    """The whole certificate, for pinning it by its digest or parsing it with a library."""

    @classmethod
    def from_ssl_object(cls, ssl_object: TLSObject) -> PeerCertificate | None:
        """The peer's certificate; None if there is none, or none that was verified."""
        certificate = peer_certificate(ssl_object)
        der = None if certificate is None else ssl_object.getpeercert(binary_form=True)
        if certificate is None or der is None:
            return None
        subject = _subject(certificate)
        return cls(
            subject=subject,
            common_name=subject.get("commonName", (None,))[-1],
            dns_names=_alternative_names(certificate, "DNS"),
            uri_names=_alternative_names(certificate, "URI"),
            not_after=datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC),
            serial_number=certificate["serialNumber"],
            der=der,
        )


def _subject(certificate: PeerCertificateDict) -> dict[str, tuple[str, ...]]:
    attributes: dict[str, tuple[str, ...]] = {}
    for relative_name in certificate["subject"]:
        for name, value in relative_name:
            attributes[name] = (*attributes.get(name, ()), value)
    return attributes


def _alternative_names(certificate: PeerCertificateDict, kind: str) -> tuple[str, ...]:
    return tuple(value for found, value in certificate.get("subjectAltName", ()) if found == kind)
