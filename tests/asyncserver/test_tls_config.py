"""TLS configuration, reload and peer certificates, with handshakes in memory: no sockets, no loop."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import pickle
import shutil
import ssl
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from asyncserver.errors import ConfigurationError, TLSConfigurationError
from asyncserver.tls import PeerCertificate, ReloadableContext, TLSConfig, peer_certificate
from tests.certificates import CertificateFiles, authority
from tests.waiting import MS, PATIENCE

TLS_1_2 = ssl.TLSVersion.TLSv1_2
TLS_1_3 = ssl.TLSVersion.TLSv1_3
BOTH_VERSIONS = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3], ids=["TLS 1.2", "TLS 1.3"])


# Handshakes in memory.


@dataclass
class Ends:
    """Both ends of a connection in memory, and what went wrong at each during the handshake."""

    server: ssl.SSLObject
    client: ssl.SSLObject
    to_server: ssl.MemoryBIO
    server_error: ssl.SSLError | None = None
    client_error: ssl.SSLError | None = None

    @property
    def server_der(self) -> bytes | None:
        return self.client.getpeercert(binary_form=True)

    def assert_connected(self) -> None:
        assert self.server_error is None
        assert self.client_error is None
        self.client.write(b"ping")
        assert self.server.read(100) == b"ping"
        self.server.write(b"pong")
        assert self.client.read(100) == b"pong"

    def alert_at_client(self) -> str:
        """The reason of the alert that the server has sent, which in TLS 1.3 comes after the handshake."""
        if self.client_error is None:
            with pytest.raises(ssl.SSLError) as caught:
                self.client.read(100)
            self.client_error = caught.value
        return self.client_error.reason


def connect(
    server: ssl.SSLContext,
    client: ssl.SSLContext | None = None,
    name: str = "localhost",
    *,
    session: ssl.SSLSession | None = None,
    change_hello: Callable[[bytes], bytes] = bytes,
) -> Ends:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client or authority().client_context()
    ends = Ends(
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_hostname=name, session=session),
        to_server,
    )
    client_done, ends.client_error = step(ends.client)
    to_server.write(change_hello(to_server.read()))
    server_done = False
    while not (client_done and server_done) and not (ends.client_error or ends.server_error):
        server_done, ends.server_error = step(ends.server)
        client_done, ends.client_error = step(ends.client)
    return ends


def step(end: ssl.SSLObject) -> tuple[bool, ssl.SSLError | None]:
    """Carry on with a handshake: whether it is done, and what has ended it."""
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False, None
    except ssl.SSLError as error:
        return False, error
    return True, None


def config_of(files: CertificateFiles, **options: Any) -> TLSConfig:
    return TLSConfig(certificate=files.certificate, private_key=files.private_key, **options)


def server_config(*names: str, **options: Any) -> TLSConfig:
    return config_of(authority().server(*names), **options)


def problem_of(make: Callable[[], object]) -> str:
    with pytest.raises(TLSConfigurationError) as caught:
        make()
    return str(caught.value)


@pytest.fixture
def client_files() -> CertificateFiles:
    return authority().client("alice")


@pytest.fixture
def stranger() -> CertificateFiles:
    return authority("other").client("mallory")


# Certificates and keys.


def test_certificate_and_key_in_two_files() -> None:
    ends = connect(server_config().create_context())
    ends.assert_connected()
    assert ends.server_der == authority().server().der
    assert ends.server.version() == "TLSv1.3"


def test_certificate_and_key_in_one_file() -> None:
    connect(TLSConfig(certificate=authority().server().combined).create_context()).assert_connected()


def test_path_as_str() -> None:
    files = authority().server()
    config = TLSConfig(certificate=str(files.certificate), private_key=str(files.private_key))
    connect(config.create_context()).assert_connected()


def test_intermediate_certificates_are_sent() -> None:
    files = authority().intermediate("intermediate").issue("localhost")
    connect(config_of(files).create_context()).assert_connected()


@pytest.mark.parametrize(
    "password",
    ["secret", b"secret", lambda: "secret", lambda: b"secret"],
    ids=["str", "bytes", "function of str", "function of bytes"],
)
def test_encrypted_key(password: Any) -> None:
    files = authority().server()
    config = TLSConfig(
        certificate=files.certificate, private_key=files.encrypted_key("secret"), password=password
    )
    connect(config.create_context()).assert_connected()


def test_encrypted_key_in_the_certificate_file(tmp_path: Path) -> None:
    files = authority().server()
    combined = tmp_path / "combined.pem"
    combined.write_bytes(files.encrypted_key("secret").read_bytes() + files.certificate.read_bytes())
    connect(TLSConfig(certificate=combined, password="secret").create_context()).assert_connected()
    assert f"certificate '{combined}': the key is encrypted" in problem_of(
        TLSConfig(certificate=combined).create_context
    )


def test_password_of_a_key_that_is_not_encrypted_is_not_asked_for() -> None:
    server_config(password=lambda: pytest.fail("called")).create_context()


def failing_vault() -> str:
    raise LookupError("the vault is sealed")


@pytest.mark.parametrize(
    ("password", "expected"),
    [
        (None, "the key is encrypted and there is no password; set password, or store the key decrypted"),
        ("wrong", "the password is wrong"),
        ("", "the password is wrong"),
        ("x" * 1025, "longer than the 1024 bytes"),
        (lambda: 7, "returned int, not str or bytes"),
        (failing_vault, "failed: LookupError('the vault is sealed')"),
    ],
)
def test_encrypted_key_without_its_password(password: Any, expected: str) -> None:
    files = authority().server()
    key = files.encrypted_key("secret")
    config = TLSConfig(certificate=files.certificate, private_key=key, password=password)
    problem = problem_of(config.create_context)
    assert problem.startswith(f"private_key '{key}': ")
    assert expected in problem


def test_password_is_not_shown() -> None:
    assert "secret" not in repr(server_config(password="secret"))
    assert "7" not in problem_of(lambda: server_config(password=7))


# Files that cannot be used.


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    """A copy of a server's files that a test may damage."""
    original = authority().server()
    return CertificateFiles(
        certificate=Path(shutil.copy(original.certificate, tmp_path / "site.crt")),
        private_key=Path(shutil.copy(original.private_key, tmp_path / "site.key")),
        combined=Path(shutil.copy(original.combined, tmp_path / "site.pem")),
    )


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "no such file; check the path"),
    "directory": (lambda path: replace_by(os.mkdir, path), "not a regular file"),
    "empty": (lambda path: path.write_bytes(b""), "in this file; it is empty"),
    "text": (lambda path: path.write_bytes(b"hello"), "in PEM format"),
    "binary": (lambda path: path.write_bytes(authority().server().der), "it looks like DER or PKCS#12"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:100]), "the file is cut off"),
    "garbled": (lambda path: path.write_bytes(garbled(path.read_bytes())), "OpenSSL cannot use"),
}


def replace_by(make: Callable[[Path], object], path: Path) -> None:
    path.unlink()
    make(path)


def garbled(pem: bytes) -> bytes:
    first, body, *rest = pem.splitlines()
    return b"\n".join([first, b"A" * len(body), *rest])


@pytest.mark.parametrize("option", ["certificate", "private_key", "client_ca"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_file_is_named_with_what_is_wrong(
    files: CertificateFiles, tmp_path: Path, option: str, damage: str
) -> None:
    client_ca = Path(shutil.copy(authority().file, tmp_path / "clients.ca"))
    config = config_of(files, client_ca=client_ca, client_certificates="required")
    path = Path(os.fspath(getattr(config, option)))
    do_damage, expected = DAMAGE[damage]
    do_damage(path)
    problem = problem_of(config.create_context)
    assert problem.startswith(f"{option} '{path}': ")
    assert expected in problem


def test_missing_relative_path_tells_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    problem = problem_of(TLSConfig(certificate="site.pem").create_context)
    assert problem.startswith("certificate 'site.pem': no such file; check the path")
    assert problem.endswith(f"which starts at the working directory '{tmp_path}'")


def test_path_that_no_file_can_have() -> None:
    assert "cannot be read" in problem_of(TLSConfig(certificate="a\0b").create_context)


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root may read everything, so that a test about permissions has to be somebody else."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(65534)
    except OSError as error:
        pytest.skip(f"cannot give up root's privileges: {error}")
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def reachable_directory() -> Iterator[Path]:
    """pytest's own temporary directories are closed to other users."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="file permissions of POSIX")
@pytest.mark.parametrize("option", ["certificate", "private_key", "client_ca"])
def test_unreadable_file(reachable_directory: Path, option: str) -> None:
    server = authority().server()
    originals = {
        "certificate": server.certificate,
        "private_key": server.private_key,
        "client_ca": authority().file,
    }
    paths = {name: shutil.copy(path, reachable_directory / name) for name, path in originals.items()}
    for name, path in paths.items():
        os.chmod(path, 0 if name == option else 0o644)
    config = TLSConfig(**cast("Any", paths), client_certificates="required")
    with without_privileges():
        problem = problem_of(config.create_context)
    assert problem.startswith(f"{option} '{paths[option]}': permission denied; ")


def test_key_of_another_certificate() -> None:
    certificate = authority().server().certificate
    key = authority().issue("localhost").private_key
    problem = problem_of(TLSConfig(certificate=certificate, private_key=key).create_context)
    assert problem.startswith(f"private_key '{key}': the key does not belong to the first certificate in")
    assert str(certificate) in problem


def test_encrypted_key_of_another_certificate() -> None:
    certificate = authority().server().certificate
    key = authority().issue("localhost").encrypted_key("secret")
    config = TLSConfig(certificate=certificate, private_key=key, password="secret")
    assert "does not belong" in problem_of(config.create_context)


def test_certificate_file_without_the_key() -> None:
    certificate = authority().server().certificate
    problem = problem_of(TLSConfig(certificate=certificate).create_context)
    assert problem == (
        f"certificate '{certificate}': no private key in this file; add it, or name its file with private_key"
    )


def test_certificate_and_key_exchanged(files: CertificateFiles) -> None:
    config = TLSConfig(certificate=files.private_key, private_key=files.certificate)
    assert "but a private key; check which file is which" in problem_of(config.create_context)
    config = TLSConfig(certificate=files.certificate, private_key=files.certificate)
    assert "but a certificate; check which file is which" in problem_of(config.create_context)


def test_client_ca_with_nothing_but_a_revocation_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL loads such a file without complaint."""
    no_certificates = {"x509": 0, "crl": 1, "x509_ca": 0}
    monkeypatch.setattr(ssl.SSLContext, "cert_store_stats", lambda _: no_certificates, raising=False)
    config = server_config(client_ca=authority().file, client_certificates="required")
    assert f"client_ca '{authority().file}': no certificate" in problem_of(config.create_context)


# Options.


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"certificate": ""}, "certificate=''"),
        ({"certificate": None}, "certificate=None"),
        ({"private_key": b"site.key"}, "private_key=b'site.key'"),
        ({"client_ca": 5, "client_certificates": "required"}, "client_ca=5"),
        ({"password": 7}, "password is int"),
        ({"client_certificates": "requried"}, "it is one of 'none', 'optional', 'required'"),
        ({"client_certificates": "required"}, "client_ca has to name"),
        ({"client_certificates": "optional"}, "client_ca has to name"),
        ({"client_ca": "clients.ca"}, "not used; add client_certificates='required'"),
        ({"alpn": "h2"}, "write a tuple"),
        ({"alpn": ("h2", "")}, "1 to 255"),
        ({"alpn": ("x" * 256,)}, "1 to 255"),
        ({"alpn": ("é",)}, "ASCII"),
        ({"alpn": (b"h2",)}, "alpn name b'h2'"),
        ({"minimum_version": ssl.TLSVersion.TLSv1_1}, "TLSv1_2 is the lowest"),
        ({"minimum_version": ssl.TLSVersion.MINIMUM_SUPPORTED}, "TLSv1_2 is the lowest"),
        ({"minimum_version": "1.3"}, "minimum_version='1.3'"),
        ({"reload_interval": 0}, "reload_interval=0"),
        ({"reload_interval": -1.5}, "reload_interval=-1.5"),
        ({"reload_interval": float("nan")}, "reload_interval=nan"),
        ({"reload_interval": float("inf")}, "reload_interval=inf"),
        ({"reload_interval": True}, "reload_interval=True"),
        ({"sni_strict": True}, "sni_strict=True"),
        ({"sni": ["www.example.org"]}, "write a mapping"),
        ({"sni": {"www.example.org": "site.pem"}}, "sni name 'www.example.org' is str"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], expected: str) -> None:
    assert expected in problem_of(lambda: TLSConfig(**{"certificate": "site.pem"} | options))


def test_errors_are_configuration_errors() -> None:
    assert issubclass(TLSConfigurationError, ConfigurationError)


def test_misspelt_option_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        TLSConfig(certificate="site.pem", alnp=("h2",))  # type: ignore[call-arg]  # the misspelling is the test


def test_config_is_a_value() -> None:
    config = server_config(alpn=["h2"], sni={"a.example.org": server_config("a.example.org")})
    assert config.alpn == ("h2",)
    assert config == copy.copy(config) == pickle.loads(pickle.dumps(config))
    assert hash(config) == hash(copy.copy(config))
    assert dataclasses.replace(config, alpn=()).sni == config.sni
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.alpn = ()  # type: ignore[misc]  # the refusal is the test


def test_context_is_safe() -> None:
    context = server_config().create_context()
    for option in (ssl.OP_NO_COMPRESSION, ssl.OP_NO_RENEGOTIATION):
        assert context.options & option
    assert not context.options & getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    assert context.minimum_version == TLS_1_2
    assert context.verify_mode == ssl.CERT_NONE


def test_cut_is_told_from_an_end() -> None:
    ends = connect(server_config().create_context())
    ends.to_server.write_eof()
    with pytest.raises(ssl.SSLEOFError):
        ends.server.read(100)


def old_client(maximum: ssl.TLSVersion) -> ssl.SSLContext:
    """A client that really offers old versions: OpenSSL's security level would hold it back by itself."""
    client = authority().client_context()
    client.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        client.minimum_version = ssl.TLSVersion.TLSv1
        client.maximum_version = maximum
    return client


@pytest.mark.parametrize(
    ("minimum", "client_maximum"),
    [(TLS_1_2, ssl.TLSVersion.TLSv1), (TLS_1_2, ssl.TLSVersion.TLSv1_1), (TLS_1_3, TLS_1_2)],
)
def test_older_version_is_refused(minimum: ssl.TLSVersion, client_maximum: ssl.TLSVersion) -> None:
    ends = connect(server_config(minimum_version=minimum).create_context(), old_client(client_maximum))
    assert ends.server_error is not None
    assert ends.server_error.reason == "UNSUPPORTED_PROTOCOL"
    assert ends.alert_at_client() == "TLSV1_ALERT_PROTOCOL_VERSION"


@BOTH_VERSIONS
def test_version(version: ssl.TLSVersion) -> None:
    client = authority().client_context()
    client.maximum_version = version
    ends = connect(server_config().create_context(), client)
    ends.assert_connected()
    assert ends.server.version() == {TLS_1_2: "TLSv1.2", TLS_1_3: "TLSv1.3"}[version]


def test_ciphers() -> None:
    client = authority().client_context()
    client.maximum_version = TLS_1_2
    ends = connect(server_config(ciphers="ECDHE-ECDSA-AES128-GCM-SHA256").create_context(), client)
    ends.assert_connected()
    cipher = ends.server.cipher()
    assert cipher is not None
    assert cipher[0] == "ECDHE-ECDSA-AES128-GCM-SHA256"


@pytest.mark.parametrize("ciphers", ["nonsense", "", "TLS_AES_128_GCM_SHA256", "a\0b"])
def test_unknown_ciphers(ciphers: str) -> None:
    assert f"ciphers={ciphers!r}: " in problem_of(server_config(ciphers=ciphers).create_context)


@pytest.mark.parametrize(
    ("offered", "selected"),
    [(["h2", "echo"], "echo"), (["h2"], "h2"), (["spdy/1"], None), ([], None)],
)
def test_alpn(offered: list[str], selected: str | None) -> None:
    client = authority().client_context()
    if offered:
        client.set_alpn_protocols(offered)
    ends = connect(server_config(alpn=("echo", "h2")).create_context(), client)
    ends.assert_connected()
    assert ends.server.selected_alpn_protocol() == ends.client.selected_alpn_protocol() == selected


# Client certificates.


def mutual_config(mode: str, ca: Path | None = None, **options: Any) -> TLSConfig:
    return server_config(client_ca=ca or authority().file, client_certificates=mode, **options)


@BOTH_VERSIONS
@pytest.mark.parametrize("mode", ["optional", "required"])
def test_client_certificate_is_known_to_the_server(
    client_files: CertificateFiles, version: ssl.TLSVersion, mode: str
) -> None:
    client = authority().client_context(client_files)
    client.maximum_version = version
    ends = connect(mutual_config(mode).create_context(), client)
    ends.assert_connected()
    shown = PeerCertificate.from_ssl_object(ends.server)
    assert shown is not None
    assert shown.der == client_files.der


@BOTH_VERSIONS
def test_required_client_certificate_is_missing(version: ssl.TLSVersion) -> None:
    client = authority().client_context()
    client.maximum_version = version
    ends = connect(mutual_config("required").create_context(), client)
    assert ends.server_error is not None
    assert ends.server_error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE"
    expected = "SSLV3_ALERT_HANDSHAKE_FAILURE" if version == TLS_1_2 else "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    assert ends.alert_at_client() == expected


def test_optional_client_certificate_is_missing() -> None:
    ends = connect(mutual_config("optional").create_context())
    ends.assert_connected()
    assert peer_certificate(ends.server) is None


@pytest.mark.parametrize("mode", ["optional", "required"])
def test_client_certificate_of_a_stranger(stranger: CertificateFiles, mode: str) -> None:
    ends = connect(mutual_config(mode).create_context(), authority().client_context(stranger))
    assert ends.server_error is not None
    assert ends.server_error.reason == "CERTIFICATE_VERIFY_FAILED"


def test_client_certificate_that_nobody_asks_for(client_files: CertificateFiles) -> None:
    ends = connect(server_config().create_context(), authority().client_context(client_files))
    ends.assert_connected()
    assert peer_certificate(ends.server) is None


def test_intermediate_is_trusted_without_its_root(client_files: CertificateFiles) -> None:
    intermediate = authority().intermediate("clients")
    context = mutual_config("required", intermediate.file).create_context()
    client = authority().client_context(intermediate.client("bob"))
    connect(context, client).assert_connected()
    assert connect(context, authority().client_context(client_files)).server_error is not None


# Server names.


@pytest.fixture
def named_config() -> TLSConfig:
    return server_config(
        sni={
            "a.example.org": server_config("a.example.org"),
            "*.example.org": server_config("*.example.org"),
            "B.example.NET": authority().server_context("b.example.net"),
            "bücher.example": server_config("xn--bcher-kva.example"),
        }
    )


@pytest.mark.parametrize(
    ("asked_for", "served"),
    [
        ("a.example.org", "a.example.org"),
        ("A.Example.ORG", "a.example.org"),
        ("other.example.org", "*.example.org"),
        ("b.example.net", "b.example.net"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("deep.other.example.org", None),
        ("example.org", None),
        ("c.example.net", None),
        ("localhost", None),
        ("127.0.0.1", None),
    ],
)
@BOTH_VERSIONS
def test_certificate_by_server_name(
    named_config: TLSConfig, version: ssl.TLSVersion, asked_for: str, served: str | None
) -> None:
    client = authority().client_context()
    client.maximum_version = version
    client.check_hostname = False
    ends = connect(named_config.create_context(), client, asked_for)
    ends.assert_connected()
    assert ends.server_der == (authority().server(served) if served else authority().server()).der


def test_server_name_with_a_dot_at_the_end(named_config: TLSConfig) -> None:
    client = authority().client_context()
    client.check_hostname = False
    ends = connect(named_config.create_context(), client, "a.example.org.")
    assert ends.server_der == authority().server("a.example.org").der


def test_strict_refuses_unknown_names() -> None:
    config = server_config(sni={"a.example.org": server_config("a.example.org")}, sni_strict=True)
    context = config.create_context()
    connect(context, name="a.example.org").assert_connected()
    connect(context, name="127.0.0.1").assert_connected()
    ends = connect(context, name="localhost")
    assert ends.server_error is not None
    assert ends.alert_at_client() == "TLSV1_UNRECOGNIZED_NAME"


def test_server_name_beyond_ascii_is_refused(
    named_config: TLSConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the ``ssl`` module that refuses it, before the callback, and complains to the hook."""
    complaints: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: complaints.append(args.exc_type.__name__))
    ends = connect(
        named_config.create_context(), change_hello=lambda hello: hello.replace(b"localhost", b"local\xffost")
    )
    assert ends.server_error is not None
    assert complaints == ["UnicodeDecodeError"]


MALFORMED_NAMES = [
    *("", "*", "*.", "*.*.org", "a.*.org", "www*.org", "a..org", ".org", "x" * 64 + ".org"),
    *("www.example.org:443", "a b", "a/b", "127.0.0.1", "::1", 7),
]


@pytest.mark.parametrize("name", MALFORMED_NAMES)
def test_malformed_server_name(name: Any) -> None:
    problem = problem_of(lambda: server_config(sni={name: server_config("a.example.org")}))
    assert problem.startswith(f"sni name {name!r}: ")


def test_server_name_given_twice() -> None:
    inner = server_config("a.example.org")
    assert "there twice" in problem_of(lambda: server_config(sni={"a.org": inner, "A.ORG": inner}))


def test_file_of_a_server_name_is_named() -> None:
    config = server_config(sni={"a.org": TLSConfig(certificate="/nowhere/a.pem")})
    assert problem_of(config.create_context).startswith(
        "sni name 'a.org': certificate '/nowhere/a.pem': no such"
    )


def test_names_with_one_config_share_a_context(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[object] = []
    monkeypatch.setattr("asyncserver.tls_config.load_certificate", lambda *args: loaded.append(args[1]))
    inner = server_config("a.example.org", "b.example.org")
    server_config(sni={"a.example.org": inner, "b.example.org": inner}).create_context()
    assert len(loaded) == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sni": {"b.org": server_config("b.org")}}, "outermost"),
        ({"reload_interval": 5}, "outermost"),
        ({"minimum_version": TLS_1_3}, "minimum_version=TLSv1_3 cannot be kept for one name"),
        ({"client_ca": "ca.pem", "client_certificates": "required"}, "client_certificates has to be 'none'"),
    ],
)
def test_what_a_server_name_cannot_decide(options: dict[str, Any], expected: str) -> None:
    inner = server_config("a.org", **options)
    problem = problem_of(lambda: server_config(sni={"a.org": inner}))
    assert problem.startswith("sni name 'a.org': ")
    assert expected in problem


def test_ready_made_contexts_of_server_names_are_checked() -> None:
    demanding = authority().server_context("a.org")
    demanding.verify_mode = ssl.CERT_REQUIRED
    assert "client_certificates has to be 'none'" in problem_of(
        lambda: server_config(sni={"a.org": demanding})
    )
    client = authority().client_context()
    assert "is a client's SSL context" in problem_of(lambda: server_config(sni={"a.org": client}))


def test_which_context_decides_about_what() -> None:
    """The rows of the table in the documentation that the checks above do not make impossible."""
    inner = server_config("a.example.org", alpn=("inner",), ciphers="ECDHE-ECDSA-AES128-GCM-SHA256")
    outer = server_config(alpn=("outer",), minimum_version=TLS_1_2, sni={"a.example.org": inner})
    client = authority().client_context()
    client.set_alpn_protocols(["outer", "inner"])
    client.maximum_version = TLS_1_2
    ends = connect(outer.create_context(), client, "a.example.org")
    ends.assert_connected()
    assert ends.server.selected_alpn_protocol() == "inner"
    assert (ends.server.cipher() or ("",))[0] == "ECDHE-ECDSA-AES128-GCM-SHA256"
    ends = connect(outer.create_context(), client, "localhost")
    assert ends.server.selected_alpn_protocol() == "outer"
    assert (ends.server.cipher() or ("",))[0] != "ECDHE-ECDSA-AES128-GCM-SHA256"


@BOTH_VERSIONS
def test_ssl_module_takes_client_authentication_from_the_default_context(version: ssl.TLSVersion) -> None:
    """Why a name that differs in it is an error: its demand would silently be ignored."""
    outer, demanding = authority().server_context(), authority().server_context("a.example.org")
    demanding.verify_mode = ssl.CERT_REQUIRED
    outer.sni_callback = lambda ssl_object, _name, _context: setattr(ssl_object, "context", demanding)
    client = authority().client_context()
    client.maximum_version = version
    ends = connect(outer, client, "a.example.org")
    ends.assert_connected()
    assert ends.server.context is demanding


def two_authorities() -> TLSConfig:
    """``localhost`` trusts one authority's clients, ``a.example.org`` only the other's."""
    inner = server_config("a.example.org", client_ca=authority("other").file, client_certificates="required")
    return mutual_config("required", sni={"a.example.org": inner})


@BOTH_VERSIONS
def test_server_names_with_different_client_authorities(
    client_files: CertificateFiles, stranger: CertificateFiles, version: ssl.TLSVersion
) -> None:
    context = two_authorities().create_context()
    for certificate, trusted_by, refused_by in [
        (client_files, "localhost", "a.example.org"),
        (stranger, "a.example.org", "localhost"),
    ]:
        client = authority().client_context(certificate)
        client.maximum_version = version
        connect(context, client, trusted_by).assert_connected()
        assert connect(context, client, refused_by).server_error is not None


@BOTH_VERSIONS
def test_session_of_one_server_name_is_no_way_into_another(
    client_files: CertificateFiles, version: ssl.TLSVersion
) -> None:
    context = two_authorities().create_context()
    client = authority().client_context(client_files)
    client.maximum_version = version
    first = connect(context, client, "localhost")
    first.assert_connected()
    second = connect(context, client, "a.example.org", session=first.client.session)
    if second.server_error is None:  # TLS 1.2 goes on under the name that the session began with
        assert second.server.context is context
        assert second.server_der == authority().server().der


# Sessions.


@BOTH_VERSIONS
def test_session_is_resumed_until_the_reload(version: ssl.TLSVersion) -> None:
    reloadable = ReloadableContext(server_config())
    client = authority().client_context()
    client.maximum_version = version
    first = connect(reloadable.context, client)
    first.assert_connected()
    assert connect(reloadable.context, client, session=first.client.session).server.session_reused
    assert reloadable.reload()
    after = connect(reloadable.context, client, session=first.client.session)
    after.assert_connected()
    assert not after.server.session_reused


# Reload.


class Site:
    """A certificate and a key at fixed paths, renewed as an operator's tools do it."""

    def __init__(self, directory: Path) -> None:
        self.certificate = directory / "site.crt"
        self.private_key = directory / "site.key"
        self.current = self.renew()

    def renew(self) -> CertificateFiles:
        files = authority().issue("localhost")
        self.put_certificate(files)
        self.put_key(files)
        return files

    def put_certificate(self, files: CertificateFiles) -> None:
        replace_file(files.certificate, self.certificate)

    def put_key(self, files: CertificateFiles) -> None:
        replace_file(files.private_key, self.private_key)

    def config(self, **options: Any) -> TLSConfig:
        return TLSConfig(certificate=self.certificate, private_key=self.private_key, **options)


def replace_file(source: Path, target: Path) -> None:
    """By a rename: two writes within one tick of the file system's clock may leave the same time stamp."""
    written = shutil.copy(source, target.with_suffix(".new"))
    os.replace(written, target)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def errors(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "asyncserver")
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def served_der(reloadable: ReloadableContext) -> bytes | None:
    ends = connect(reloadable.context)
    ends.assert_connected()
    return ends.server_der


def test_reload_takes_the_new_certificate(site: Site, errors: Callable[[], list[str]]) -> None:
    reloadable = ReloadableContext(site.config(reload_interval=30))
    assert reloadable.reload_interval == 30
    assert (reloadable.reloads, reloadable.failed_reloads, reloadable.problem) == (0, 0, None)
    old_context, loaded_at = reloadable.context, reloadable.loaded_at
    before = connect(reloadable.context)
    assert not reloadable.files_changed()
    renewed = site.renew()
    assert reloadable.files_changed()
    assert reloadable.context is old_context
    assert reloadable.reload()
    assert not reloadable.files_changed()
    assert served_der(reloadable) == renewed.der
    assert reloadable.loaded_at >= loaded_at
    assert (reloadable.reloads, reloadable.failed_reloads) == (1, 0)
    before.assert_connected()
    assert before.server.context is old_context
    assert errors() == []


def test_bad_reload_keeps_the_old_certificate(site: Site, errors: Callable[[], list[str]]) -> None:
    reloadable = ReloadableContext(site.config())
    context, loaded_at = reloadable.context, reloadable.loaded_at
    site.certificate.write_bytes(b"oops")
    assert reloadable.files_changed()
    assert not reloadable.reload()
    assert reloadable.context is context
    assert reloadable.loaded_at == loaded_at
    assert served_der(reloadable) == site.current.der
    assert (reloadable.reloads, reloadable.failed_reloads) == (0, 1)
    [message] = errors()
    assert f"certificate '{site.certificate}': no certificate in PEM format" in message
    assert reloadable.problem is not None
    assert reloadable.problem in message


def test_half_written_pair_is_tried_again(site: Site, errors: Callable[[], list[str]]) -> None:
    reloadable = ReloadableContext(site.config())
    renewed = authority().issue("localhost")
    site.put_certificate(renewed)
    for _ in range(3):
        assert reloadable.files_changed()
        assert not reloadable.reload()
    assert served_der(reloadable) == site.current.der
    assert len(errors()) == 1
    assert "does not belong" in errors()[0]
    site.put_key(renewed)
    assert reloadable.files_changed()
    assert reloadable.reload()
    assert not reloadable.files_changed()
    assert served_der(reloadable) == renewed.der
    assert (reloadable.reloads, reloadable.failed_reloads) == (1, 3)


def test_another_error_is_logged_again(site: Site, errors: Callable[[], list[str]]) -> None:
    reloadable = ReloadableContext(site.config())
    site.private_key.unlink()
    assert not reloadable.reload()
    site.private_key.write_bytes(b"")
    assert not reloadable.reload()
    assert not reloadable.reload()
    assert [("no such file" in message, "it is empty" in message) for message in errors()] == [
        (True, False),
        (False, True),
    ]
    site.renew()
    assert reloadable.reload()
    site.private_key.write_bytes(b"")
    assert not reloadable.reload()
    assert len(errors()) == 3


def test_change_while_loading_is_seen_at_the_next_look(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    reloadable = ReloadableContext(site.config())
    original = TLSConfig.create_context

    def renewed_meanwhile(config: TLSConfig) -> ssl.SSLContext:
        context = original(config)
        site.renew()
        return context

    with monkeypatch.context() as patch:
        patch.setattr(TLSConfig, "create_context", renewed_meanwhile)
        assert reloadable.reload()
    assert reloadable.files_changed()


@pytest.mark.parametrize("way", ["time", "size", "inode", "gone"])
def test_changes_that_are_noticed(site: Site, way: str) -> None:
    reloadable = ReloadableContext(site.config())
    before = site.private_key.stat()
    if way == "time":
        os.utime(site.private_key, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    elif way == "size":
        site.private_key.write_bytes(site.private_key.read_bytes() + b"\n")
        os.utime(site.private_key, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif way == "inode":
        replace_file(site.private_key, site.private_key)
        os.utime(site.private_key, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        site.private_key.unlink()
    assert reloadable.files_changed()


def test_swapped_links_are_noticed(tmp_path: Path) -> None:
    """Kubernetes and certbot renew by pointing a symbolic link to another directory or file."""
    sites = []
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        sites.append(Site(tmp_path / version))
    data = tmp_path / "..data"
    data.symlink_to("1")
    (tmp_path / "site.crt").symlink_to("..data/site.crt")
    (tmp_path / "site.key").symlink_to("..data/site.key")
    reloadable = ReloadableContext(
        TLSConfig(certificate=tmp_path / "site.crt", private_key=tmp_path / "site.key")
    )
    assert served_der(reloadable) == sites[0].current.der
    (tmp_path / "..new").symlink_to("2")
    os.replace(tmp_path / "..new", data)
    assert reloadable.files_changed()
    assert reloadable.reload()
    assert served_der(reloadable) == sites[1].current.der


def test_files_of_server_names_and_client_ca_are_watched(site: Site, tmp_path: Path) -> None:
    client_ca = Path(shutil.copy(authority().file, tmp_path / "clients.ca"))
    options: dict[str, Any] = {"client_ca": client_ca, "client_certificates": "optional"}
    config = server_config(sni={"a.example.org": site.config(**options)}, **options)
    server = authority().server()
    assert config.files() == tuple(
        map(str, [server.certificate, server.private_key, client_ca, site.certificate, site.private_key])
    )
    reloadable = ReloadableContext(config)
    renewed = site.renew()
    assert reloadable.files_changed()
    assert reloadable.reload()
    client = authority().client_context()
    client.check_hostname = False
    assert connect(reloadable.context, client, "a.example.org").server_der == renewed.der
    replace_file(authority("other").file, client_ca)
    assert reloadable.files_changed()


def test_new_client_ca_is_in_force_after_the_reload(
    client_files: CertificateFiles, stranger: CertificateFiles, tmp_path: Path
) -> None:
    client_ca = Path(shutil.copy(authority().file, tmp_path / "clients.ca"))
    reloadable = ReloadableContext(mutual_config("required", client_ca))
    client = authority().client_context(client_files)
    first = connect(reloadable.context, client)
    first.assert_connected()
    replace_file(authority("other").file, client_ca)
    assert reloadable.reload()
    assert connect(reloadable.context, client, session=first.client.session).server_error is not None
    connect(reloadable.context, authority().client_context(stranger)).assert_connected()


def test_first_context_has_to_load(site: Site) -> None:
    site.certificate.unlink()
    assert "no such file" in problem_of(lambda: ReloadableContext(site.config()))


def test_reload_of_a_ready_made_context(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "asyncserver")
    context = authority().server_context()
    reloadable = ReloadableContext(context)
    assert reloadable.reload()
    assert reloadable.context is context
    assert not reloadable.files_changed()
    assert (reloadable.reloads, reloadable.reload_interval) == (0, None)
    assert ["nothing to reload" in record.getMessage() for record in caplog.records] == [True]


def test_reload_calls_a_function_again(errors: Callable[[], list[str]]) -> None:
    results: list[Any] = [authority().server_context(), authority().server_context(), "no context"]
    made = list(results)
    reloadable = ReloadableContext(lambda: results.pop(0))
    assert reloadable.context is made[0]
    assert reloadable.reload()
    assert reloadable.context is made[1]
    assert not reloadable.reload()
    assert not reloadable.reload()
    assert reloadable.context is made[1]
    assert not reloadable.files_changed()
    assert (reloadable.reloads, reloadable.failed_reloads, reloadable.reload_interval) == (1, 2, None)
    assert "is str, not an ssl.SSLContext" in errors()[0]
    assert "failed: IndexError('pop from empty list')" in errors()[1]


def raising_factory() -> ssl.SSLContext:
    raise OSError("no module")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (lambda: None, "returned is NoneType, not an ssl.SSLContext"),
        (
            raising_factory,
            "the function raising_factory that makes the TLS context failed: OSError('no module')",
        ),
        (lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "is a client's SSL context"),
        (ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "is a client's SSL context"),
        ("site.pem", "tls='site.pem': has to be a TLSConfig, an ssl.SSLContext or a function that"),
    ],
)
def test_sources_that_cannot_be(source: Any, expected: str) -> None:
    assert expected in problem_of(lambda: ReloadableContext(source))


def test_failed_reload_is_due_again_although_no_file_has_changed(
    errors: Callable[[], list[str]],
) -> None:
    files = authority().server()
    answers: list[str] = ["secret"]
    reloadable = ReloadableContext(
        TLSConfig(
            certificate=files.certificate,
            private_key=files.encrypted_key("secret"),
            password=answers.pop,
        )
    )
    assert not reloadable.files_changed()
    assert not reloadable.reload()
    assert "IndexError" in errors()[0]
    assert reloadable.files_changed()
    answers.append("secret")
    assert reloadable.reload()
    assert not reloadable.files_changed()


def test_slow_reload_does_not_replace_the_result_of_a_later_one() -> None:
    contexts = [authority().server_context() for _ in range(3)]
    calls = iter(contexts)
    slow_one_runs, later_one_done = threading.Event(), threading.Event()

    def make() -> ssl.SSLContext:
        context = next(calls)
        if context is contexts[1]:
            slow_one_runs.set()
            later_one_done.wait(100 * MS)  # in vain: the later one waits for this one
        return context

    reloadable = ReloadableContext(make)
    slow_one = threading.Thread(target=reloadable.reload)
    slow_one.start()
    assert slow_one_runs.wait(PATIENCE)
    assert reloadable.reload()
    later_one_done.set()
    slow_one.join()
    assert reloadable.context is contexts[2]


# The peer's certificate.


def test_peer_certificate_of_a_client(client_files: CertificateFiles) -> None:
    ends = connect(mutual_config("required").create_context(), authority().client_context(client_files))
    raw = peer_certificate(ends.server)
    shown = PeerCertificate.from_ssl_object(ends.server)
    assert raw is not None
    assert shown is not None
    assert shown.common_name == "alice"
    assert shown.subject["commonName"] == ("alice",)
    assert shown.dns_names == ("alice.example.org",)
    assert shown.uri_names == ()
    assert shown.serial_number == raw["serialNumber"]
    assert shown.not_after.tzinfo is UTC
    assert shown.not_after.timestamp() == ssl.cert_time_to_seconds(raw["notAfter"])
    assert shown.der == client_files.der
    assert hash(shown) == hash(copy.copy(shown))


def test_no_peer_certificate_before_the_handshake() -> None:
    server = mutual_config("required").create_context()
    ssl_object = server.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    assert peer_certificate(ssl_object) is None
    assert PeerCertificate.from_ssl_object(ssl_object) is None


def test_unverified_certificate_does_not_count() -> None:
    client = authority().client_context()
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    ends = connect(server_config().create_context(), client)
    assert ends.server_der is not None
    assert peer_certificate(ends.client) is None
    assert PeerCertificate.from_ssl_object(ends.client) is None


class RecordedSSLObject:
    """Has shown a certificate of a kind that is tedious to issue."""

    def getpeercert(self, binary_form: bool = False) -> object:
        if binary_form:
            return b"DER"
        return {
            "subject": (
                (("organizationalUnitName", "Payments"),),
                (("organizationalUnitName", "Ledger"),),
                (("commonName", "general"), ("userId", "u7")),
                (("commonName", "specific"),),
            ),
            "subjectAltName": (
                ("URI", "spiffe://example.org/ledger"),
                ("DNS", "ledger.example.org"),
                ("email", "ledger@example.org"),
                ("DNS", "ledger"),
            ),
            "serialNumber": "0A1B",
            "notAfter": "Dec 31 23:59:59 9999 GMT",
        }


def test_repeated_attributes_and_alternative_names() -> None:
    shown = PeerCertificate.from_ssl_object(cast("ssl.SSLObject", RecordedSSLObject()))
    assert shown == PeerCertificate(
        subject={
            "organizationalUnitName": ("Payments", "Ledger"),
            "commonName": ("general", "specific"),
            "userId": ("u7",),
        },
        common_name="specific",
        dns_names=("ledger.example.org", "ledger"),
        uri_names=("spiffe://example.org/ledger",),
        not_after=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
        serial_number="0A1B",
        der=b"DER",
    )


def test_subject_without_a_common_name() -> None:
    files = authority().issue("bob.example.org")
    ends = connect(mutual_config("required").create_context(), authority().client_context(files))
    shown = PeerCertificate.from_ssl_object(ends.server)
    assert shown is not None
    assert shown.common_name is None
