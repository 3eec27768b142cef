"""Hostile tokens and hostile key sets, before the running shield."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from tests.attacks.test_corpus import Answering, scripted
from tests.tally import tally
from tests.world import World, world

EC = ECKey.generate_key("P-256", {"use": "sig", "kid": "ours"})
RSA = RSAKey.generate_key(2048, {"use": "sig", "kid": "rsa"})


def part(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def claims(here: World, **more: Any) -> dict[str, Any]:
    now = int(time.time())
    return {
        "iss": here.issuer.url,
        "aud": here.base,
        "sub": "s",
        "client_id": "a",
        "scope": "system/*.rs",
        "iat": now,
        "exp": now + 60,
        **more,
    }


def signed(here: World, key: Any = EC, alg: str = "ES256", header: dict[str, Any] | None = None, **more: Any) -> str:
    head = {"alg": alg, "typ": "at+jwt", "kid": key.kid or "ours", **(header or {})}
    return jwt.encode(head, claims(here, **more), key, algorithms=[alg])


def spliced(token: str, header: Any = None, payload: Any = None, signature: str | None = None) -> str:
    one, two, three = token.split(".")
    return ".".join(
        (
            part(header) if header is not None else one,
            part(payload) if payload is not None else two,
            three if signature is None else signature,
        )
    )


def hostile(here: World) -> list[tuple[str, str]]:
    good = signed(here)
    body = claims(here)
    secret = OctKey.import_key(json.dumps(EC.as_dict(private=False)).encode())
    far = int(time.time()) + 400 * 86400
    return [
        ("none", spliced(good, {"alg": "none", "typ": "at+jwt"}, signature="")),
        ("None", spliced(good, {"alg": "None", "typ": "at+jwt"}, signature="AAAA")),
        (
            "HS256 by the public key",
            jwt.encode({"alg": "HS256", "typ": "at+jwt", "kid": "ours"}, body, secret, algorithms=["HS256"]),
        ),
        ("an algorithm not in the settings", signed(here, RSA, "PS512")),
        ("another key of the same kid", signed(here, ECKey.generate_key("P-256", {"kid": "ours"}))),
        ("the alg of another curve", spliced(good, {"alg": "ES384", "typ": "at+jwt", "kid": "ours"})),
        ("an RSA kid with an ECDSA signature", spliced(good, {"alg": "RS256", "typ": "at+jwt", "kid": "rsa"})),
        ("a short ECDSA signature", spliced(good, signature=part(b"\1" * 63))),
        ("a long ECDSA signature", spliced(good, signature=part(b"\1" * 65))),
        ("an empty ECDSA signature", spliced(good, signature=part(b"\0" * 64))),
        ("crit", spliced(good, {"alg": "ES256", "typ": "at+jwt", "kid": "ours", "crit": ["exp"], "exp": 1})),
        ("empty crit", spliced(good, {"alg": "ES256", "typ": "at+jwt", "kid": "ours", "crit": []})),
        ("b64", spliced(good, {"alg": "ES256", "typ": "at+jwt", "kid": "ours", "b64": False})),
        ("an embedded key", signed(here, ECKey.generate_key("P-256", {"kid": "mine"}), header={"jwk": EC.as_dict(private=False)})),
        ("an ID token's type", signed(here, header={"typ": "id+jwt"})),
        ("a logout token's type", signed(here, header={"typ": "logout+jwt"})),
        ("a DPoP proof", signed(here, header={"typ": "dpop+jwt"})),
        ("no type", spliced(good, {"alg": "ES256", "kid": "ours"})),
        ("far exp", signed(here, exp=far)),
        ("endless exp", signed(here, exp=1 << 60)),
        ("exp as text", signed(here, exp=str(far))),
        ("exp as a list", signed(here, exp=[1])),
        ("exp in the past", signed(here, exp=1)),
        ("nbf ahead", signed(here, nbf=far)),
        ("iat ahead", signed(here, iat=far)),
        ("a nonce", signed(here, nonce="x")),
        ("an at_hash", signed(here, at_hash="x")),
        ("another audience", signed(here, aud="https://other.example/fhir")),
        ("a prefix of our audience", signed(here, aud=here.base[:-1])),
        ("our audience with a slash", signed(here, aud=here.base + "/")),
        ("another issuer", signed(here, iss="https://other.example")),
        ("our issuer with a slash", signed(here, iss=here.issuer.url + "/")),
        ("claims twice", spliced(good, payload=b'{"iss":"a","iss":"b"}')),
        ("claims that are a list", spliced(good, payload=[1])),
        ("claims that are not UTF-8", spliced(good, payload=b'{"iss":"\xff"}')),
        (
            "claims without end",
            spliced(good, payload=b'{"iss":"' + here.issuer.url.encode() + b'","a":' + b"[" * 5000 + b"]" * 5000 + b"}"),
        ),
        ("claims changed", spliced(good, payload={**body, "scope": "system/*.cruds"})),
        ("NaN", spliced(good, payload=b'{"iss":"x","exp":NaN}')),
        ("a header that is a list", spliced(good, header=["ES256"])),
        ("a header that is no JSON", spliced(good, header=b"{")),
        ("four parts", good + ".AAAA"),
        ("two parts", ".".join(good.split(".")[:2])),
        ("five parts, encrypted", "eyJhbGciOiJSU0EtT0FFUCJ9.AAAA.AAAA.AAAA.AAAA"),
        ("padding", good + "="),
        ("white space", good[:20] + " " + good[20:]),
        ("base64 of the other alphabet", good.replace("_", "/").replace("-", "+") + "+"),
        ("too long", good + "A" * 70000),
        ("a kid that is a path", signed(here, header={"kid": "../../etc/passwd"})),
        ("a kid that is SQL", signed(here, header={"kid": "' OR 1=1 --"})),
    ]


@pytest.mark.promise
async def test_hostile_tokens_are_refused(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [EC.as_dict(private=False), RSA.as_dict(private=False)]}))
    settings = {"issuers": {"demo": {"jwks_url": None, "jwks_file": "keys.json"}}}
    async with world(tmp_path, settings=settings) as here:
        assert (await here.ask("/Patient/pat-1", signed(here))).status == 200
        assert (await here.ask("/Patient/pat-1", signed(here, RSA, "RS256"))).status == 200
        before, wrong = len(here.seen), []
        for name, token in hostile(here):
            try:
                answer = await here.ask("/Patient/pat-1", token)
            except OSError:
                continue  # the head was over the limit: the connection ended
            told = name == "white space" or answer.status == 400 or "error=" in answer.headers.get("www-authenticate", "")
            if answer.status not in {400, 401} or not told:
                wrong.append((name, answer.status, answer.body))
        assert not wrong and len(here.seen) == before
        for header in ({"jku": f"{here.issuer.url}/jwks"}, {"x5u": "http://127.0.0.1:9/"}, {"x5c": ["AAAA"]}):
            assert (await here.ask("/Patient/pat-1", signed(here, header=header))).status in {200, 401}
        assert len(here.seen) <= before + 3
    tally("tokens", tried=len(hostile(here)), refused=len(hostile(here)))


async def test_keys_that_two_issuers_share_open_only_what_each_may(tmp_path: Path) -> None:
    """The issuer's name decides, not the key: a token of the one says nothing at an upstream of the other."""
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [EC.as_dict(private=False)]}))
    issuers = {name: {"issuer": f"https://{name}.example", "jwks_file": "keys.json", "profile": "smart"} for name in ("one", "two")}
    async with world(tmp_path, settings={"issuers": {**issuers, "demo": None}, "upstreams": [
        {"path": "/one", "issuers": ["one"]}]}) as here:  # fmt: skip
        audience = f"{here.url}/one"
        ours, theirs = (signed(here, iss=f"https://{name}.example", aud=audience) for name in ("one", "two"))
        assert [(await here.ask(f"{audience}/Patient/pat-1", token)).status for token in (ours, theirs)] == [200, 401]


async def test_the_patient_and_audience_of_another_upstream_are_nobody_here(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [EC.as_dict(private=False)]}))
    rows = {name: {"issuer": f"https://{name}.example", "jwks_file": "keys.json", "profile": "smart"} for name in ("one", "two")}
    upstream = {"path": "/one", "issuers": ["one", "two"], "identities": ["one"]}
    async with world(tmp_path, settings={"issuers": {**rows, "demo": None}, "upstreams": [upstream]}) as here:
        audience = f"{here.url}/one"
        for name, wanted in (("one", 200), ("two", 403)):
            token = signed(here, iss=f"https://{name}.example", aud=audience, scope="patient/*.rs", patient="pat-1")
            assert (await here.ask(f"{audience}/Patient/pat-1", token)).status == wanted
        elsewhere = signed(here, iss="https://one.example", aud=f"{here.url}/two")
        assert (await here.ask(f"{audience}/Patient/pat-1", elsewhere)).status == 401


# --- key sets -------------------------------------------------------------------------------------------------------------


def saying(content: bytes, head: str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n", *, hang: bool = False) -> Answering:
    async def answer(writer: asyncio.StreamWriter) -> None:
        if hang:
            await asyncio.sleep(30)
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        await writer.drain()

    return answer


GOOD = json.dumps({"keys": [EC.as_dict(private=False)]}).encode()


@pytest.mark.parametrize(
    ("name", "answer", "status"),
    [
        ("good", saying(GOOD), 200),
        ("HTML", saying(b"<html>"), 503),
        ("a list", saying(b"[]"), 503),
        ("no keys", saying(b"{}"), 503),
        ("keys that are none", saying(b'{"keys": "x"}'), 503),
        ("no key", saying(b'{"keys": []}'), 401),
        ("a redirect", saying(GOOD, "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\n"), 503),
        ("an error", saying(GOOD, "HTTP/1.1 500 Oops\r\n"), 503),
        ("huge", saying(b'{"keys": [' + b" " * (5 << 20) + b"]}"), 503),
        ("deep", saying(b"[" * 100_000), 503),
        ("slow", saying(GOOD, hang=True), 503),
        ("a private key", saying(json.dumps({"keys": [EC.as_dict(private=True)]}).encode()), 401),
        ("a secret", saying(json.dumps({"keys": [{"kty": "oct", "k": "AAAA", "kid": "ours"}]}).encode()), 401),
        (
            "a weak key and a good one",
            saying(json.dumps({"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB"}, EC.as_dict(private=False)]}).encode()),
            200,
        ),
        (
            "nonsense and a good one",
            saying(json.dumps({"keys": [7, None, {}, {"kty": "EC"}, EC.as_dict(private=False)]}).encode()),
            200,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_key_sets(tmp_path: Path, name: str, answer: Answering, status: int) -> None:
    async with scripted([answer]) as url:
        settings = {"issuers": {"demo": {"jwks_url": url.replace("/fhir", "/keys")}}}
        async with world(tmp_path, settings=settings) as here:
            assert (await here.ask("/Patient/pat-1", signed(here))).status == status


async def test_a_key_set_that_changes_every_second_is_not_asked_every_time(tmp_path: Path) -> None:
    asked = 0

    async def rotating(writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        key = ECKey.generate_key("P-256", {"use": "sig", "kid": f"k{asked}"})
        await saying(json.dumps({"keys": [key.as_dict(private=False)]}).encode())(writer)

    async with scripted([rotating]) as url:
        settings = {"issuers": {"demo": {"jwks_url": url.replace("/fhir", "/keys")}}}
        async with world(tmp_path, settings=settings) as here:
            for number in range(30):
                assert (await here.ask("/Patient/pat-1", signed(here, header={"kid": f"k{number}"}))).status == 401
            assert asked <= 2
