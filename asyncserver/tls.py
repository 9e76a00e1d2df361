"""TLS for servers: configuration, reload and the peer's certificate. No event loop, no socket.

General layout: ``tls_files`` loads files and explains what is wrong with them, ``tls_sni`` chooses by
server name, ``tls_config`` makes contexts, ``tls_reload`` replaces them, ``tls_peer`` reads what the
other side has shown.
"""

from __future__ import annotations

from asyncserver.tls_config import ClientCertificates, TLSConfig
from asyncserver.tls_peer import PeerCertificate, PeerCertificateDict, peer_certificate
from asyncserver.tls_reload import ReloadableContext, TLSSource, check_tls_source

__all__ = [
    "ClientCertificates",
    "PeerCertificate",
    "PeerCertificateDict",
    "ReloadableContext",
    "TLSConfig",
    "TLSSource",
    "check_tls_source",
    "peer_certificate",
]
