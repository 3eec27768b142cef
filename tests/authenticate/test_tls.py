"""TLS of the shield's own: client certificates that tokens are bound to (RFC 8705), and certificates that are renewed."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import ipaddress
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fhirshield.errors import OperatorError
from fhirshield.settings import load
from tests.world import World, world

SETTINGS = {"tls": {"certificate_file": "server.crt", "key_file": "server.key", "client_ca_file": "clients.crt"}}


def certificate(folder: Path, name: str, by: str = "") -> str:
    """A certificate and its key as PEM files, signed by another or by itself; the thumbprint of RFC 8705."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signer = subject, key
    if by:
        parent = x509.load_pem_x509_certificate((folder / f"{by}.crt").read_bytes())
        loaded = serialization.load_pem_private_key((folder / f"{by}.key").read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        issuer, signer = parent.subject, loaded
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=not by, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{name}.key").write_bytes(key.private_bytes(*plain))
    (folder / f"{name}.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    digest = hashlib.sha256(made.public_bytes(serialization.Encoding.DER)).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def client(folder: Path, name: str = "") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=folder / "server.crt")
    if name:
        context.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
    return context


async def status(here: World, token: str, context: ssl.SSLContext, **headers: str) -> int:
    return (await here.ask("/Patient/pat-1", token, ssl=context, headers=headers)).status


@pytest.mark.promise
async def test_a_token_that_is_bound_to_a_certificate_needs_it_on_the_connection(tmp_path: Path) -> None:
    for name in ("server", "clients", "strangers"):
        certificate(tmp_path, name)
    mine, other = certificate(tmp_path, "app", "clients"), certificate(tmp_path, "other", "clients")
    certificate(tmp_path, "stranger", "strangers")
    async with world(tmp_path, settings=SETTINGS) as here:
        token = here.token(cnf={"x5t#S256": mine})
        assert await status(here, token, client(tmp_path, "app")) == 200
        assert await status(here, token, client(tmp_path, "other")) == 401
        assert await status(here, token, client(tmp_path)) == 401
        assert await status(here, here.token(cnf={"x5t#S256": other}), client(tmp_path, "other")) == 200
        assert await status(here, here.token(), client(tmp_path)) == 200
        text = base64.b64encode(x509.load_pem_x509_certificate((tmp_path / "app.crt").read_bytes()).public_bytes(_DER)).decode()
        assert await status(here, token, client(tmp_path, "other"), **{"Client-Cert": f":{text}:"}) == 401
        with pytest.raises((aiohttp.ClientError, ConnectionError, ssl.SSLError)):
            await status(here, token, client(tmp_path, "stranger"))


_DER = serialization.Encoding.DER


async def test_behind_a_trusted_proxy_the_connections_certificate_is_the_proxys(tmp_path: Path) -> None:
    for name in ("server", "clients"):
        certificate(tmp_path, name)
    proxys = certificate(tmp_path, "proxy", "clients")
    trusted: dict[str, Any] = {"trusted_proxies": ["127.0.0.0/8"], "client_certificate_header": "Client-Cert"}
    async with world(tmp_path, settings={**SETTINGS, **trusted}) as here:
        token = here.token(cnf={"x5t#S256": proxys})
        assert await status(here, token, client(tmp_path, "proxy")) == 401
        text = base64.b64encode(x509.load_pem_x509_certificate((tmp_path / "proxy.crt").read_bytes()).public_bytes(_DER)).decode()
        assert await status(here, token, client(tmp_path, "proxy"), **{"Client-Cert": f":{text}:"}) == 200


async def test_a_renewed_certificate_is_used_and_a_broken_one_is_not(tmp_path: Path) -> None:
    for name in ("server", "clients"):
        certificate(tmp_path, name)
    async with world(tmp_path, settings=SETTINGS) as here:
        old = client(tmp_path)
        assert await status(here, here.token(), old) == 200
        certificate(tmp_path, "server")
        assert await here.parts.reload()
        (tmp_path / "kept.crt").write_bytes((tmp_path / "server.crt").read_bytes())
        (tmp_path / "server.crt").write_text("no certificate")
        assert not await here.parts.reload()
        (tmp_path / "server.crt").write_bytes((tmp_path / "kept.crt").read_bytes())
        async with aiohttp.ClientSession() as session:
            target = f"{here.base}/metadata"
            async with session.get(target, ssl=client(tmp_path)) as answer:
                assert answer.status == 200
            with pytest.raises(aiohttp.ClientError):
                async with aiohttp.ClientSession() as fresh, fresh.get(target, ssl=old):
                    pass


def test_files_that_are_no_certificates_are_told(tmp_path: Path) -> None:
    from fhirshield.app import build

    for name in ("server", "clients"):
        certificate(tmp_path, name)
    (tmp_path / "server.key").write_bytes((tmp_path / "clients.key").read_bytes())
    (tmp_path / "rules.yaml").write_text("rules: []")
    (tmp_path / "fhirshield.yaml").write_text(
        "public_url: https://a.example\n"
        "issuers: {i: {issuer: https://i.example, jwks_url: https://i.example/jwks, profile: smart}}\n"
        "upstreams: [{path: /fhir, url: https://u.example/fhir, issuers: [i]}]\n"
        "rules: rules.yaml\naudit: {journal: audit}\n"
        "tls: {certificate_file: server.crt, key_file: server.key}\n"
    )
    with pytest.raises(OperatorError, match="cannot be used"):
        build(load(tmp_path / "fhirshield.yaml"))
