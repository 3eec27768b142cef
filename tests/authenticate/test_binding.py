"""Tokens that are bound to a key are nothing without it: DPoP (RFC 9449), client certificates (RFC 8705)."""

from __future__ import annotations

import base64
import hashlib
import time
import uuid
import warnings
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from fhirshield.authenticate import binding
from fhirshield.errors import Unavailable
from tests.world import World, world

KEY = ECKey.generate_key("P-256", {"use": "sig"})
CERTIFICATE = b"not really DER, but bytes are bytes"
THUMBPRINT = base64.urlsafe_b64encode(hashlib.sha256(CERTIFICATE).digest()).rstrip(b"=").decode()
TRUSTED = {"trusted_proxies": ["127.0.0.0/8"], "client_certificate_header": "Client-Cert"}


def proof(here: World, token: str, key: Any = KEY, header: dict[str, Any] | None = None, **claims: Any) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(token.encode()).digest()).rstrip(b"=").decode()
    body = {
        "jti": uuid.uuid4().hex,
        "htm": "GET",
        "htu": f"{here.base}/Patient/pat-1",
        "iat": int(time.time()),
        "ath": digest,
        **claims,
    }
    body = {name: value for name, value in body.items() if value is not ...}
    head = {"alg": "ES256", "typ": "dpop+jwt", "jwk": key.as_dict(private=False), **(header or {})}
    head = {name: value for name, value in head.items() if value is not ...}
    return jwt.encode(head, body, key, algorithms=["ES256", "RS256", "HS256"])


async def status(here: World, token: str, shown: str | None, scheme: str = "DPoP", **headers: str) -> int:
    sent = {"Authorization": f"{scheme} {token}", **({"DPoP": shown} if shown is not None else {}), **headers}
    return (await here.ask("/Patient/pat-1", headers=sent)).status


def bound(here: World, **cnf: Any) -> str:
    return here.token(cnf=cnf or {"jkt": KEY.thumbprint()})


@pytest.mark.promise
async def test_a_bound_token_needs_its_proof(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        token = bound(here)
        assert await status(here, token, proof(here, token)) == 200
        assert await status(here, token, proof(here, token)) == 200
        for scheme, shown in (("Bearer", None), ("Bearer", proof(here, token)), ("DPoP", None), ("DPoP", ""), ("DPoP", "a.b.c")):
            assert await status(here, token, shown, scheme) == 401
        answer = await here.ask("/Patient/pat-1", headers={"Authorization": f"DPoP {token}"})
        assert answer.headers["www-authenticate"].startswith('DPoP error="invalid_dpop_proof"')
        plain = here.token()
        assert await status(here, plain, proof(here, plain)) == 401
        assert await status(here, plain, None, "Bearer") == 200


@pytest.mark.promise
async def test_a_proof_is_good_once(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        token = bound(here)
        shown = proof(here, token)
        assert [await status(here, token, shown) for _ in range(3)] == [200, 401, 401]
        same = proof(here, token, jti="one")
        assert [await status(here, token, one) for one in (same, proof(here, token, jti="one"))] == [200, 401]


@pytest.mark.parametrize(
    ("header", "claims"),
    [
        ({"typ": "JWT"}, {}), ({"typ": ...}, {}), ({"jwk": ...}, {}), ({"jwk": {"kty": "oct", "k": "AAAA"}}, {}), ({"b64": True}, {}),
        ({}, {"htm": "POST"}), ({}, {"htm": ...}), ({}, {"htu": "https://evil.example/fhir/Patient/pat-1"}), ({}, {"htu": ...}),
        ({}, {"iat": 1}), ({}, {"iat": 1 << 40}), ({}, {"iat": "now"}), ({}, {"iat": ...}), ({}, {"ath": "AAAA"}), ({}, {"ath": ...}),
        ({}, {"jti": ...}), ({}, {"jti": "x" * 300}), ({}, {"jti": 7}),
    ],
)  # fmt: skip
async def test_proofs_that_are_refused(tmp_path: Path, header: dict[str, Any], claims: dict[str, Any]) -> None:
    async with world(tmp_path) as here:
        token = bound(here)
        assert await status(here, token, proof(here, token, header=header, **claims)) == 401


async def test_keys_of_proofs_that_are_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        token = bound(here)
        other = ECKey.generate_key("P-256", {"use": "sig"})
        assert await status(here, token, proof(here, token, key=other)) == 401
        forged = proof(here, token, key=other, header={"jwk": KEY.as_dict(private=False)})
        assert await status(here, token, forged) == 401
        assert await status(here, token, proof(here, token, header={"jwk": KEY.as_dict(private=True)})) == 401
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            weak = RSAKey.generate_key(1024, {"use": "sig"}, auto_kid=False)
            weakly = here.token(cnf={"jkt": weak.thumbprint()})
            shown = proof(here, weakly, key=weak, header={"alg": "RS256"})
        assert await status(here, weakly, shown) == 401
        query = proof(here, token, htu=f"{here.base}/Patient/pat-1?x=1#y")
        assert await status(here, token, query) == 200


@pytest.mark.parametrize("cnf", [{}, {"kid": "x"}, {"jkt": 7}, {"jkt": "", "x5t": "y"}, "text", [], {"jwk": {}}, {"x5t#S256": ""}])
async def test_bindings_that_are_not_known_are_refused(tmp_path: Path, cnf: Any) -> None:
    async with world(tmp_path) as here:
        token = here.token(cnf=cnf)
        assert await status(here, token, None, "Bearer") == 401
        assert await status(here, token, proof(here, token)) == 401


@pytest.mark.promise
async def test_without_the_memory_of_proofs_nobody_enters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path) as here:
        token = bound(here)

        async def away(key: str, seconds: float) -> bool:
            raise Unavailable("away")

        monkeypatch.setattr(here.parts.state, "add", away)
        assert await status(here, token, proof(here, token)) == 503


async def test_a_certificate_counts_only_from_a_trusted_proxy(tmp_path: Path) -> None:
    shown = f":{base64.b64encode(CERTIFICATE).decode()}:"
    async with world(tmp_path, settings=TRUSTED) as here:
        token = bound(here, **{"x5t#S256": THUMBPRINT})
        assert await status(here, token, None, "Bearer", **{"Client-Cert": shown}) == 200
        pem = (
            "-----BEGIN%20CERTIFICATE-----%0A"
            + base64.b64encode(CERTIFICATE).decode().replace("+", "%2B")
            + "%0A-----END%20CERTIFICATE-----"
        )
        assert await status(here, token, None, "Bearer", **{"Client-Cert": pem}) == 200
        for other in (":AAAA:", "", "nonsense", ":" + base64.b64encode(b"another").decode() + ":"):
            assert await status(here, token, None, "Bearer", **{"Client-Cert": other}) == 401
        assert await status(here, token, None, "Bearer") == 401
        both = bound(here, **{"x5t#S256": THUMBPRINT, "jkt": KEY.thumbprint()})
        assert await status(here, both, proof(here, both), **{"Client-Cert": shown}) == 200
        assert await status(here, both, None, "Bearer", **{"Client-Cert": shown}) == 401
        assert await status(here, both, proof(here, both)) == 401
    elsewhere = tmp_path / "b"
    elsewhere.mkdir()
    async with world(elsewhere, settings={**TRUSTED, "trusted_proxies": ["10.0.0.0/8"]}) as here:
        token = bound(here, **{"x5t#S256": THUMBPRINT})
        assert await status(here, token, None, "Bearer", **{"Client-Cert": shown}) == 401


async def test_the_address_in_the_record_is_the_one_that_a_trusted_proxy_says(tmp_path: Path) -> None:
    async with world(tmp_path, settings={"trusted_proxies": ["127.0.0.1", "10.0.0.0/8"]}) as here:
        for forwarded, found in (
            ("203.0.113.7", "203.0.113.7"), ("1.1.1.1, 203.0.113.7, 10.1.2.3", "203.0.113.7"), ("nonsense", "127.0.0.1"), ("", "127.0.0.1"),
        ):  # fmt: skip
            await here.ask("/Patient/pat-1", here.token(), headers={"X-Forwarded-For": forwarded})
            assert here.records()[-1]["address"] == found


def test_algorithms_of_proofs_are_asymmetric() -> None:
    assert not [name for name in binding.ALGORITHMS if name.startswith("HS") or name == "none"]
