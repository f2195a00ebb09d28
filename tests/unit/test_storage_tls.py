"""A store behind HTTPS: trusted by the bundle of its authority, and otherwise one clear error that names the next step.

The server is moto's with certificates that are made here; nothing of TLS is pretended.
"""

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from buckets import Bucket
from prunella.config import StorageConfig
from prunella.errors import ConfigError, StorageUnavailable
from prunella.storage import RetryingStore, S3Store

DAY = datetime.timedelta(days=1)
AUTHORITY = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "prunella-tests authority")])
STORE = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "prunella-tests store")])
#: Patient enough that a test which waits instead of refusing runs into its time limit.
PATIENT = StorageConfig(retry_s=600.0)


def certificate(
    subject: x509.Name,
    key: EllipticCurvePrivateKey,
    signer: EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
    *,
    age: datetime.timedelta,
) -> x509.Certificate:
    """What the authority signs; good for two days of which `age` is over."""
    first = datetime.datetime.now(datetime.UTC) - age
    builder = x509.CertificateBuilder(AUTHORITY, subject, key.public_key(), x509.random_serial_number(), first, first + 2 * DAY)
    return builder.add_extension(extension, critical=True).sign(signer, hashes.SHA256())


class Authority:
    """Whoever signs certificates; `bundle` is the file of those who trust it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bundle = folder, folder / "authority.pem"
        self._key = generate_private_key(SECP256R1())
        may_sign = x509.BasicConstraints(ca=True, path_length=None)
        own = certificate(AUTHORITY, self._key, self._key, may_sign, age=DAY)
        self.bundle.write_bytes(own.public_bytes(Encoding.PEM))

    def context(self, *, age: datetime.timedelta = DAY) -> ssl.SSLContext:
        """Of a server at 127.0.0.1, and at no other name."""
        key = generate_private_key(SECP256R1())
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        signed = certificate(STORE, key, self._key, address, age=age)
        path = self.folder / f"store-{age.days}.pem"
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(signed.public_bytes(Encoding.PEM) + private)
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(path)
        return made


@contextmanager
def served(context: ssl.SSLContext) -> Iterator[int]:
    """Port of moto's server behind TLS."""
    application = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, application, threaded=True, ssl_context=context)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def port(authority: Authority) -> Iterator[int]:
    with served(authority.context()) as found:
        yield found


@pytest.fixture
def root(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix of its own in the bucket, which every server of moto in this process has. Trust and address are the test's."""
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path / "scratch"))
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    return f"{bucket.root}/{tmp_path.name}"


def store_at(root: str, monkeypatch: pytest.MonkeyPatch, address: str, bundle: Path | None) -> RetryingStore:
    """A patient store that reaches the bucket there."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
    if bundle is not None:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    return RetryingStore(S3Store(root), PATIENT)


def test_a_store_is_trusted_by_the_bundle_of_its_authority(
    root: str, port: int, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_at(root, monkeypatch, f"https://127.0.0.1:{port}", authority.bundle)

    store.put_new("a/b", b"content")

    assert store.get("a/b") == b"content"


def test_a_certificate_of_an_unknown_authority_is_refused_at_once(
    root: str, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_at(root, monkeypatch, f"https://127.0.0.1:{port}", None)

    with pytest.raises(ConfigError, match=r"not trusted; name its .* certificates with AWS_CA_BUNDLE, .*: .*local issuer"):
        store.get("a/b")


def test_a_certificate_for_another_name_is_refused_at_once(
    root: str, port: int, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_at(root, monkeypatch, f"https://localhost:{port}", authority.bundle)

    with pytest.raises(ConfigError, match=r"certificate is not trusted; .*localhost.* doesn't match"):
        store.get("a/b")


def test_a_certificate_that_has_expired_is_refused_at_once(
    root: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(authority.context(age=3 * DAY)) as port:
        store = store_at(root, monkeypatch, f"https://127.0.0.1:{port}", authority.bundle)

        with pytest.raises(ConfigError, match=r"certificate is not trusted; .* or have it renewed: certificate has expired"):
            store.get("a/b")


@pytest.mark.parametrize("content", [None, "", "no certificate"], ids=["absent", "empty", "something else"])
def test_a_bundle_without_certificates_is_refused_at_once(
    root: str, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "bundle.pem").write_text(content)
    store = store_at(root, monkeypatch, f"https://127.0.0.1:{port}", tmp_path / "bundle.pem")

    with pytest.raises(ConfigError, match=r"AWS_CA_BUNDLE, or `ca_bundle` of the profile, names no readable file"):
        store.get("a/b")


def test_https_where_the_server_speaks_http_is_refused_at_once(
    root: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = bucket.environment["AWS_ENDPOINT_URL_S3"].replace("http://", "https://")

    with pytest.raises(ConfigError, match=r"there is a server, but not with TLS; set AWS_ENDPOINT_URL_S3 to http://"):
        store_at(root, monkeypatch, address, None).get("a/b")


def test_a_connection_that_is_cut_before_it_is_private_is_an_outage(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        cutting = threading.Thread(target=lambda: server.accept()[0].close())
        cutting.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"https://127.0.0.1:{server.getsockname()[1]}")

        with pytest.raises(StorageUnavailable, match="out of reach"):
            S3Store(root).get("a/b")
        cutting.join()
