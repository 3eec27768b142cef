"""Tokens: what is accepted, and every way in which one is not."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
from dataclasses import replace
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from fhirshield.authenticate import Authenticator
from fhirshield.authenticate.keys import COOLDOWN, STALE_GRACE, TTL, Keys, usable
from fhirshield.errors import Unavailable
from fhirshield.model import Principal, Refused, Situation
from fhirshield.settings import Credential, Issuer, RoleSource, Upstream
from fhirshield.state.memory import MemoryMap

NOW = 1_767_225_600.0
AUDIENCE = "https://shield.example/fhir"
ISSUER = "https://idp.example"
RSA = RSAKey.generate_key(2048, {"kid": "rsa", "use": "sig"})
EC = ECKey.generate_key("P-256", {"kid": "ec", "use": "sig"})
OTHER = ECKey.generate_key("P-256", {"kid": "ec", "use": "sig"})
SETTINGS = Issuer(
    "hospital", ISSUER, "", None, ("RS256", "ES256"), "smart", {"vip_cleared": "vip", "unit": "org.unit"},
    RoleSource("roles", {"backend": ("system",)}, {"Practitioner": ("staff",)}, {"special": ("specialist",)}),
    {"backend": "TREAT"},
)  # fmt: skip
UPSTREAM = Upstream("/fhir", "https://up.example/fhir", ("hospital",), ("hospital",), Credential(), 1, 1, (AUDIENCE,), (), 64)


class Source:
    """A key source under the test's control."""

    def __init__(self, *keys: Any) -> None:
        self.keys: list[Any] = list(keys)
        self.away = False
        self.fetched = 0

    async def fetch(self) -> list[Any]:
        self.fetched += 1
        if self.away:
            raise Unavailable("away")
        return self.keys


def public(key: Any) -> Any:
    return key.as_dict(private=False)


def token(key: Any = EC, alg: str = "ES256", header: dict[str, Any] | None = None, **claims: Any) -> str:
    body = {"iss": ISSUER, "aud": AUDIENCE, "sub": "s", "client_id": "app", "scope": "user/*.rs", "exp": int(NOW + 300), **claims}
    body = {name: value for name, value in body.items() if value is not ...}
    head = {"alg": alg, "typ": "at+jwt", "kid": key.kid, **(header or {})}
    return jwt.encode(head, body, key, algorithms=[alg])


def situation(credential: str | None) -> Situation:
    now = dt.datetime.fromtimestamp(NOW, dt.UTC)
    return Situation("/fhir", AUDIENCE, (AUDIENCE, "https://up.example/fhir"), now, "127.0.0.1", "d", credential, "")


def authenticator(source: Source | None = None, issuer: Issuer = SETTINGS, upstream: Upstream = UPSTREAM) -> Authenticator:
    keys = Keys(source or Source(public(EC), public(RSA)), clock=lambda: 0.0)
    return Authenticator(upstream, {"hospital": issuer}, {"hospital": keys}, clock=lambda: NOW)


async def accepted(text: str, **how: Any) -> Principal:
    return await authenticator(**how)(situation(text))


async def refused(text: str | None, status: int = 401, **how: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await authenticator(**how)(situation(text))
    assert caught.value.denial.status == status
    return caught.value


async def test_a_good_token_says_who_is_asking() -> None:
    text = token(roles=["nurse"], fhirUser="Practitioner/7", patient="p1", vip=True, org={"unit": "3B"}, scope="user/*.rs special")
    principal = await accepted(text)
    assert principal.roles == {"nurse", "staff", "practitioner", "specialist"}
    assert (principal.fhir_user, principal.patient, principal.client) == ("Practitioner/7", "p1", "app")
    assert dict(principal.attributes) == {"vip_cleared": True, "unit": "3B"}


@pytest.mark.parametrize(("key", "alg"), [(EC, "ES256"), (RSA, "RS256")])
@pytest.mark.parametrize("typ", ["JWT", "at+jwt", "application/at+jwt"])
async def test_algorithms_and_types(key: Any, alg: str, typ: str) -> None:
    assert (await accepted(token(key, alg, {"typ": typ}))).subject == "s"


async def test_roles_and_purposes_of_plain_smart_tokens() -> None:
    backend = await accepted(token(client_id="backend", scope="system/*.rs"))
    assert backend.roles == {"system"} and backend.purposes == {"TREAT"}
    own = await accepted(token(scope="patient/*.rs", patient="p1", fhirUser="Patient/p1"))
    assert own.roles == {"patient"} and own.purposes == set()
    guardian = await accepted(token(scope="patient/*.rs", patient="p1", fhirUser="RelatedPerson/r1"))
    assert guardian.roles == {"representative"}


async def test_persons_count_only_for_issuers_that_identify_here() -> None:
    elsewhere = replace(UPSTREAM, identities=())
    principal = await accepted(token(patient="p1", fhirUser="Practitioner/7"), upstream=elsewhere)
    assert principal.patient == principal.fhir_user == ""
    assert principal.roles == set()


@pytest.mark.parametrize(
    ("user", "found"),
    [
        ("Practitioner/7", "Practitioner/7"),
        (f"{AUDIENCE}/Practitioner/7", "Practitioner/7"),
        ("https://up.example/fhir/Practitioner/7", "Practitioner/7"),
        ("https://evil.example/fhir/Practitioner/7", ""),
        ("Organization/7", ""),
        ("Practitioner/../7", ""),
        (5, ""),
    ],
)
async def test_fhir_user_must_be_of_this_server(user: Any, found: str) -> None:
    assert (await accepted(token(fhirUser=user))).fhir_user == found


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://other.example"}, {"iss": ...}, {"iss": ISSUER + "/"}, {"aud": "https://other.example"}, {"aud": ...},
        {"aud": []}, {"aud": {"x": AUDIENCE}}, {"exp": int(NOW)}, {"exp": ...}, {"exp": "later"}, {"exp": True},
        {"nbf": int(NOW + 60)}, {"nbf": "x"}, {"iat": int(NOW + 60)}, {"scope": ...}, {"scope": ["user/*.rs"]},
        {"typ": "ID"}, {"typ": "Refresh"}, {"nonce": "n"}, {"at_hash": "h"}, {"patient": "../p"},
    ],
)  # fmt: skip
async def test_claims_that_are_refused(claims: dict[str, Any]) -> None:
    await refused(token(**claims))


@pytest.mark.parametrize(
    "header",
    [{"typ": "JWS"}, {"typ": "logout+jwt"}, {"crit": ["exp"]}, {"crit": []}, {"b64": False, "crit": ["b64"]}, {"b64": True}],
)
async def test_headers_that_are_refused(header: dict[str, Any]) -> None:
    head = {"alg": "ES256", "kid": "ec", "typ": "JWT", **header}
    parts = [_b64(json.dumps(part).encode()) for part in (head, {"iss": ISSUER})]
    signature = token().split(".")[2]
    await refused(".".join([*parts, signature]))


async def test_audience_may_be_an_array() -> None:
    await accepted(token(aud=["x", AUDIENCE]))


async def test_other_algorithms_and_confusions() -> None:
    secret = OctKey.import_key(json.dumps(public(RSA)).encode())
    await refused(jwt.encode({"alg": "HS256", "typ": "JWT"}, {"iss": ISSUER}, secret, algorithms=["HS256"]))
    none = ".".join([_b64(b'{"alg":"none","typ":"JWT"}'), _b64(json.dumps({"iss": ISSUER}).encode()), "AAAA"])
    await refused(none)
    await refused(token(RSA, "RS384"))
    await refused(token(OTHER))


@pytest.mark.parametrize("text", [None, "", "x", "a.b.c", "a.b", "....", "é.é.é", "A" * 50_000])
async def test_things_that_are_no_tokens(text: str | None) -> None:
    error = await refused(text)
    challenge = dict(error.denial.headers)["WWW-Authenticate"]
    assert ("error" in challenge) is (text is not None)


async def test_repeated_claims_are_refused() -> None:
    head, _, _ = token().split(".")
    body = f'{{"iss":"{ISSUER}","iss":"{ISSUER}"}}'.encode()
    await refused(f"{head}.{_b64(body)}.{token().split('.')[2]}")


async def test_a_changed_byte_is_refused() -> None:
    text = token()
    for position in range(0, len(text), 7):
        changed = text[:position] + ("A" if text[position] != "A" else "B") + text[position + 1 :]
        if changed != text and not _same_signature(changed, text):
            await refused(changed)


def _same_signature(one: str, other: str) -> bool:
    """The last character of base64url may carry unused bits."""
    return one[:-1] == other[:-1]


async def test_verified_tokens_are_remembered_and_their_expiry_checked() -> None:
    clock = [NOW]
    source = Source(public(EC))
    keys = Keys(source, clock=lambda: clock[0])
    check = Authenticator(UPSTREAM, {"hospital": SETTINGS}, {"hospital": keys}, clock=lambda: clock[0])
    text = token(exp=int(NOW + 30))
    await check(situation(text))
    source.keys = []
    await check(situation(text))
    clock[0] = NOW + 31
    with pytest.raises(Refused):
        await check(situation(text))


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.promise
async def test_no_keys_means_503_never_an_open_door() -> None:
    source = Source(public(EC))
    source.away = True
    error = await refused(token(), 503, source=source)
    assert ("Retry-After", "5") in error.denial.headers


async def test_an_unknown_kid_is_looked_for_once_a_cooldown() -> None:
    clock = [1000.0]
    source = Source(public(EC))
    keys = Keys(source, clock=lambda: clock[0])
    assert len(await keys.candidates("ec")) == 1
    assert await keys.candidates("new") == []
    clock[0] += COOLDOWN + 1
    source.keys = [{**public(OTHER), "kid": "new"}]
    assert len(await keys.candidates("new")) == 1
    for _ in range(50):
        assert await keys.candidates("nope") == []
    assert source.fetched == 2


async def test_replicas_tell_each_other_of_key_ids_never_of_keys() -> None:
    """What one replica found at the issuer the others fetch at once; what it looked for in vain they do not ask for."""
    hints, clock = MemoryMap(), [1000.0]
    source = Source(public(EC))
    one, two = (Keys(source, clock=lambda: clock[0], issuer="https://idp.example", hints=hints) for _ in range(2))
    assert await one.candidates("ec") and await two.candidates("ec")
    clock[0] += COOLDOWN + 1
    assert await one.candidates("nope") == [] and source.fetched == 3
    assert await two.candidates("nope") == [] and source.fetched == 3  # the issuer is spared
    source.keys = [{**public(OTHER), "kid": "new"}]
    assert await two.candidates("new") and source.fetched == 4
    assert await one.candidates("new") and source.fetched == 5  # within its own cooldown
    assert all(value in {b"found", b"missing"} for _, value in hints._entries.values())
    forger = Keys(Source(public(EC)), clock=lambda: clock[0], issuer="https://idp.example", hints=hints)
    for _ in range(20):
        assert await forger.candidates("new") == []  # a hint is followed once; it opens nothing
    assert forger._source.fetched <= 2  # type: ignore[attr-defined]


async def test_without_the_shared_state_each_replica_seeks_keys_by_itself() -> None:
    class Away(MemoryMap):
        async def get(self, key: str) -> bytes | None:
            raise Unavailable("away")

        async def put(self, key: str, value: bytes, seconds: float) -> None:
            raise Unavailable("away")

    clock, source = [1000.0], Source(public(EC))
    keys = Keys(source, clock=lambda: clock[0], issuer="x", hints=Away())
    assert await keys.candidates("ec") and await keys.candidates("new") == []
    clock[0] += COOLDOWN + 1
    source.keys = [{**public(OTHER), "kid": "new"}]
    assert await keys.candidates("new")


async def test_good_keys_outlive_their_issuer_for_a_while() -> None:
    clock = [0.0]
    source = Source(public(EC))
    keys = Keys(source, clock=lambda: clock[0])
    await keys.candidates("ec")
    source.away = True
    clock[0] = TTL + STALE_GRACE - 1
    assert await keys.candidates("ec")
    clock[0] = TTL + STALE_GRACE + COOLDOWN + 2
    with pytest.raises(Unavailable):
        await keys.candidates("ec")


async def test_many_who_wait_fetch_once() -> None:

    class Slow(Source):
        async def fetch(self) -> list[Any]:
            await asyncio.sleep(0.01)
            return await super().fetch()

    source = Slow(public(EC))
    keys = Keys(source, clock=lambda: 1000.0)
    found = await asyncio.gather(*(keys.candidates("ec") for _ in range(30)))
    assert source.fetched == 1 and all(found)


@pytest.mark.parametrize(
    "raw",
    [
        None, 5, {}, {"kty": "oct", "k": "AAAA"}, {"kty": "RSA"}, {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
        {**public(RSA), "use": "enc"}, {**public(RSA), "e": "Aw=="}, RSA.as_dict(private=True), EC.as_dict(private=True),
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}, {"kty": "EC", "crv": "nope", "x": "AA", "y": "AA"},
        {"kty": "OKP", "crv": "X25519", "x": "AA"}, {"kty": ["RSA"]}, {**public(EC), "crv": "secp256k1"},
    ],
)  # fmt: skip
async def test_unusable_keys_are_skipped_and_the_rest_serve(raw: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        usable(raw)
    source = Source(raw, public(EC))
    await accepted(token(), source=source)


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


# --- Microsoft Entra ID -----------------------------------------------------------------------------------------------

AZURE = {
    "ver": "2.0", "tid": "11111111-1111-4111-8111-111111111111", "oid": "22222222-2222-4222-8222-222222222222", "uti": "u", "rh": "r",
    "azp": "33333333-3333-4333-8333-333333333333", "azpacr": "0", "scp": "patient.all.read user.Observation.rs fhirUser launch", "scope": ...,
    "client_id": ..., "fhirUser": "https://up.example/fhir/Practitioner/7", "patient": "p1",
}  # fmt: skip
"""The claims of an access token 2.0 as Microsoft's reference lists them, with SMART scopes as its FHIR service writes them."""


async def azure(**changes: Any) -> Principal:
    settings = replace(SETTINGS, profile="azure")
    return await accepted(token(header={"typ": "JWT"}, **{**AZURE, **changes}), issuer=settings)


async def test_scopes_and_clients_of_entra() -> None:
    found = await azure()
    assert found.client == AZURE["azp"] and found.fhir_user == "Practitioner/7" and found.patient == "p1"
    assert found.scopes.text == "patient/*.read user/Observation.rs"
    old = await azure(ver="1.0", azp=..., appid="app-one")
    assert old.client == "app-one"
    application = await azure(scp=..., roles=["system.all.rs", "nurse"], fhirUser=..., patient=...)
    assert application.scopes.text == "system/*.rs" and "system" in application.roles
    assert not (await azure(scp="openid User.Read system.all patient.patient.read system.all.read.more")).scopes.granted


@pytest.mark.parametrize("changes", [{"scp": ...}, {"scp": 7}, {"ver": ...}, {"ver": "3.0"}, {"nonce": "n"}, {"c_hash": "c"}])
async def test_what_is_no_access_token_of_entra(changes: dict[str, Any]) -> None:
    settings = replace(SETTINGS, profile="azure")
    await refused(token(header={"typ": "JWT"}, **{**AZURE, **changes}), issuer=settings)
