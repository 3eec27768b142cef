"""Settings: every accepted key changes a decision or an output; every fault is told at once; nothing is accepted in vain."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from joserfc.jwk import ECKey

from fhirshield.document import schema_of
from fhirshield.errors import OperatorError
from fhirshield.policy.check import advise_settings
from fhirshield.settings import NOT_YET, load
from tests.authenticate.test_binding import CERTIFICATE, KEY, THUMBPRINT, proof
from tests.authenticate.test_tls import SETTINGS as TLS
from tests.authenticate.test_tls import certificate, client
from tests.consent.material import consent, provision
from tests.simulators.server import Simulator
from tests.test_shield import NURSE, upstream_saying
from tests.world import OPEN, World, merged, world

PLAIN: dict[str, Any] = {
    "public_url": "https://shield.example",
    "issuers": {"demo": {"issuer": "https://idp.example", "jwks_url": "https://idp.example/jwks", "profile": "smart"}},
    "upstreams": [{"path": "/fhir", "url": "https://up.example/fhir", "issuers": ["demo"]}],
    "rules": "rules.yaml",
    "audit": {"journal": "audit"},
}


def leaves(schema: Any, root: Any, path: str = "") -> Iterator[str]:
    """Every key that the schema accepts, dotted; maps by ``*``."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    inner = {**schema.get("properties", {})}
    options = schema.get("oneOf", ())
    for option in options:
        inner |= option.get("properties", {})
    if any("type" in option and "properties" not in option for option in options):
        yield path
    if isinstance(schema.get("additionalProperties"), dict):
        inner["*"] = schema["additionalProperties"]
    if "items" in schema and ("properties" in schema["items"] or "$ref" in schema["items"]):
        inner["[]"] = schema["items"]
    if not inner:
        yield path
    for key, child in inner.items():
        yield from leaves(child, root, f"{path}.{key}".lstrip("."))


def write(folder: Path, changes: Any) -> Path:
    path = folder / "fhirshield.yaml"
    path.write_text(yaml.safe_dump(merged(PLAIN, changes)))
    return path


# --- each key has an effect ---------------------------------------------------------------------------------------------

Effect = Callable[[Path], Awaitable[None]]


async def status(
    folder: Path, settings: Any, path: str = "/Patient/pat-1", rules: Any = None, upstream: Any = None, **claims: Any
) -> int:
    folder.mkdir(exist_ok=True)
    async with world(folder, rules, settings, upstream) as here:
        return (await here.ask(path, here.token(**claims))).status


async def told(folder: Path, changes: Any) -> Any:
    """The loaded value of settings, for keys whose effect is where the shield listens or writes."""
    return await asyncio.to_thread(load, write(folder, changes))


async def _listen(folder: Path) -> None:
    assert (await told(folder, {"listen": "0.0.0.0:9"})).port == 9


async def _tls(folder: Path) -> None:
    for name in ("server", "clients", "app"):
        certificate(folder, name, "clients" if name == "app" else "")
    async with world(folder, settings=TLS) as here:
        bound = here.token(cnf={"x5t#S256": certificate(folder, "mine", "clients")})
        assert (await here.ask("/Patient/pat-1", bound, ssl=client(folder, "mine"))).status == 200
        assert (await here.ask("/Patient/pat-1", bound, ssl=client(folder, "app"))).status == 401


async def _public_url(folder: Path) -> None:
    async with world(folder) as here:
        assert (await here.ask("/Patient/pat-1", here.token())).headers["content-location"].startswith(here.url)


async def _issuer(folder: Path) -> None:
    assert await status(folder, {"issuers": {"demo": {"issuer": "https://other.example"}}}) == 401


async def _jwks_url(folder: Path) -> None:
    assert await status(folder, {"issuers": {"demo": {"jwks_url": "http://127.0.0.1:9/jwks"}}}) == 503


async def _jwks_file(folder: Path) -> None:
    (folder / "keys.json").write_text('{"keys": []}')
    assert await status(folder, {"issuers": {"demo": {"jwks_url": None, "jwks_file": "keys.json"}}}) == 401


async def _algorithms(folder: Path) -> None:
    assert await status(folder, {"issuers": {"demo": {"algorithms": ["RS256"]}}}) == 401


async def _profile(folder: Path) -> None:
    assert await status(folder, {"issuers": {"demo": {"profile": "keycloak"}}}) == 401


async def _claims(folder: Path) -> None:
    rules = merged(OPEN, {"rules": [{"who": {"unless": "principal.out"}}]})
    settings = {"issuers": {"demo": {"claims": {"out": "left"}}}}
    assert await status(folder, settings, rules=rules, left=False) == 200
    assert await status(folder / "b", settings, rules=rules, left=True) == 403


def _role(settings: Any, **claims: Any) -> Effect:
    async def effect(folder: Path) -> None:
        rules = merged(OPEN, {"rules": [{"who": {"roles": ["wanted"]}}]})
        assert await status(folder, {}, rules=rules, **claims) == 403
        assert await status(folder / "b", {"issuers": {"demo": {"roles": settings}}}, rules=rules, **claims) == 200

    return effect


async def _default_purpose(folder: Path) -> None:
    rules = merged(OPEN, {"rules": [{"who": {"purposes": ["TREAT"]}}]})
    assert await status(folder, {}, rules=rules) == 403
    assert await status(folder / "b", {"issuers": {"demo": {"default_purpose": {"demo-app": "TREAT"}}}}, rules=rules) == 200


async def _path(folder: Path) -> None:
    assert await status(folder, {"upstreams": [{"path": "/r4"}]}) == 404


async def _url(folder: Path) -> None:
    async with world(folder, upstream="http://127.0.0.1:9/fhir") as here:
        assert (await here.ask("/Patient/pat-1", here.token())).status == 502


async def _issuers(folder: Path) -> None:
    other = {"issuer": "https://other.example", "jwks_url": "http://127.0.0.1:9/", "profile": "smart"}
    assert await status(folder, {"issuers": {"other": other}, "upstreams": [{"issuers": ["other"]}]}) == 401


async def _identities(folder: Path) -> None:
    assert await status(folder, {"upstreams": [{"identities": []}]}) == 403


async def _bearer_file(folder: Path) -> None:
    (folder / "secret").write_text("s3cret\n")
    async with world(folder, settings={"upstreams": [{"credential": {"bearer_file": "secret"}}]}) as here:
        await here.ask("/Patient/pat-1", here.token())
        assert here.seen[-1][2]["authorization"] == "Bearer s3cret"
        (folder / "secret").unlink()
        assert (await here.ask("/Patient/pat-1", here.token())).status == 502


async def _forward(folder: Path) -> None:
    async with world(folder, settings={"upstreams": [{"credential": {"forward": True}}]}) as here:
        token = here.token()
        await here.ask("/Patient/pat-1", token)
        assert here.seen[-1][2]["authorization"] == f"Bearer {token}"


def _client_credentials(**extra: Any) -> Effect:
    async def effect(folder: Path) -> None:

        (folder / "client.pem").write_bytes(ECKey.generate_key("P-384").as_pem(private=True))
        asked: list[bytes] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                return
            message = await receive()
            body: bytes = b'{"resourceType":"Patient","id":"pat-1"}'
            if scope["path"] == "/token":
                asked.append(message["body"])
                body = b'{"access_token":"granted","expires_in":300}'
            else:
                sent = dict(scope["headers"]).get(b"authorization")
                assert sent == b"Bearer granted"
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/fhir+json")]})
            await send({"type": "http.response.body", "body": body})

        async with world(folder, upstream=app) as probe:
            token_url = probe.upstream.replace("/fhir", "/token")
            inner = folder / "b"
            inner.mkdir()
            (inner / "client.pem").write_bytes((folder / "client.pem").read_bytes())
            credential = {"token_url": token_url, "client_id": "shield", "key_file": "client.pem", "algorithm": "ES384", **extra}
            settings = {"upstreams": [{"credential": credential}]}
            async with world(inner, upstream=app, settings=settings) as here:
                assert (await here.ask("/Patient/pat-1", here.token())).status == 200
                assert (await here.ask("/Patient/pat-1", here.token())).status == 200
            form = asked[0].decode()
            assert len(asked) == 1 and "client_assertion=" in form and ("scope=system" in form) is ("scope" in extra)

    return effect


async def _connect(folder: Path) -> None:
    assert (await told(folder, {"upstreams": [{"timeout": {"connect": "1500ms"}}]})).upstreams[0].connect_timeout == 1.5


async def _answer(folder: Path) -> None:
    slow = upstream_saying(200, b"{}", delay=0.4)
    async with world(folder, upstream=slow, settings={"upstreams": [{"timeout": {"answer": "50ms"}}]}) as here:
        assert (await here.ask("/Patient/pat-1", here.token())).status == 504


async def _audience(folder: Path) -> None:
    assert await status(folder, {"upstreams": [{"audience": ["https://other.example"]}]}) == 401


async def _origins(folder: Path) -> None:
    async with world(folder, settings={"upstreams": [{"origins": ["https://app.example"]}]}) as here:
        answer = await here.ask("/Patient/pat-1", here.token(), headers={"Origin": "https://app.example"})
        assert "access-control-allow-origin" in answer.headers


async def _id_length(folder: Path) -> None:
    assert await status(folder, {"upstreams": [{"id_length": 3}]}) == 400


async def written(folder: Path, settings: Any, method: str, rules: Any, body: Any = None) -> int:
    """The status of one write by a caller of these rules."""
    folder.mkdir(exist_ok=True)
    async with world(folder, rules, settings) as here:
        headers = {"Content-Type": "application/json-patch+json"} if body else {}
        content = json.dumps(body) if body else None
        token = here.token("user/*.cruds", roles=["nurse"])
        return (await here.ask("/Patient/pat-1", token, method, data=content, headers=headers)).status


async def _delete_if_match(folder: Path) -> None:
    assert await written(folder, {}, "DELETE", OPEN) == 403
    assert await written(folder / "b", {"upstreams": [{"delete_if_match": True}]}, "DELETE", OPEN) == 204


async def _hidden_narrative(folder: Path) -> None:
    hides = {"resources": ["Patient"], "path": "$.birthDate", "with": "remove"}
    rules = merged(OPEN, {"rules": [{"redact": [hides]}]})
    patch = [{"op": "add", "path": "/active", "value": True}]
    assert await written(folder, {"upstreams": [{"hidden_narrative": "refuse"}]}, "PATCH", rules, patch) == 403
    assert await written(folder / "b", {"upstreams": [{"hidden_narrative": "drop"}]}, "PATCH", rules, patch) == 200


async def _rules(folder: Path) -> None:
    (folder / "others.yaml").write_text("rules: []")
    assert await status(folder, {"rules": "others.yaml"}) == 403


def _written(settings: Any, name: str) -> Effect:
    async def effect(folder: Path) -> None:
        async with world(folder, settings=settings) as here:
            await here.ask("/Patient/pat-1", here.token())
        assert (folder / name).exists()

    return effect


async def _zone(folder: Path) -> None:
    rules = merged(OPEN, {"rules": [{"who": {"when": "env.hour == 30"}}]})
    assert await status(folder, {"zone": "Asia/Tokyo"}, rules=rules) == 403
    assert str((await told(folder, {"zone": "Asia/Tokyo"})).zone) == "Asia/Tokyo"


async def _body(folder: Path) -> None:
    async with world(folder, settings={"limits": {"body": "10B"}}) as here:
        answer = await here.ask("/Patient/_search", here.token(), "POST", data={"name": "x" * 20})
        assert answer.status == 413


async def _limit_answer(folder: Path) -> None:
    assert await status(folder, {"limits": {"answer": "100B"}}) == 502


async def _entries(folder: Path) -> None:
    assert await status(folder, {"limits": {"entries": 3}}, "/Patient?_count=3") == 200
    assert await status(folder / "b", {"limits": {"entries": 3}}, "/Patient?_count=4") == 502


async def _depth(folder: Path) -> None:
    deep = b'{"resourceType":"Patient","id":"pat-1","extension":[' + b'{"extension":[' * 10 + b"]}" * 10 + b"]}"
    assert await status(folder, {"limits": {"depth": 30}}, upstream=upstream_saying(200, deep)) == 200
    assert await status(folder / "b", {"limits": {"depth": 20}}, upstream=upstream_saying(200, deep)) == 502


async def _concurrency(folder: Path) -> None:
    slow = upstream_saying(200, b"{}", delay=0.3)
    async with world(folder, upstream=slow, settings={"limits": {"concurrency": 1}}) as here:
        answers = await asyncio.gather(*(here.ask("/Patient/pat-1", here.token()) for _ in range(3)))
        assert sorted(a.status for a in answers) == [502, 503, 503]


def _introspection(**row: Any) -> Effect:
    """The key's effect is shown in tests/authenticate/test_introspection.py; here: it is read, and a wrong place is 503."""

    async def effect(folder: Path) -> None:
        (folder / "secret").write_text("s")
        plain = {"url": "http://127.0.0.1:9/i", "client_id": "c", "client_secret_file": "secret", "revocation": True}
        assert await status(folder, {"issuers": {"demo": {"introspection": {**plain, **row}}}}) == 503
        found = (await told(folder, {"issuers": {"demo": {"introspection": {**plain, **row}}}})).issuers["demo"].introspection
        for name, value in row.items():
            assert getattr(found, name) in {value, folder / str(value), 7.0}

    return effect


async def _introspector(folder: Path) -> None:
    (folder / "secret").write_text("s")
    row = {"url": "http://127.0.0.1:9/i", "client_id": "c", "client_secret_file": "secret"}
    settings: dict[str, Any] = {"issuers": {"demo": {"introspection": row}}}
    for introspector, wanted in (({}, 401), ({"introspector": "demo"}, 503)):
        async with world(folder, settings={**settings, "upstreams": [introspector]}) as here:
            assert (await here.ask("/Patient/pat-1", "opaque-token-0123456789")).status == wanted
    with pytest.raises(OperatorError, match="cannot be asked here"):
        await told(folder, {"upstreams": [{"introspector": "demo"}]})


async def _state(folder: Path) -> None:
    """Away is 503 for what rests on it: the effect of a Redis that is there stands in tests/state."""
    for settings, wanted in (({}, 401), ({"state": "redis://127.0.0.1:9/0"}, 503)):
        async with world(folder, settings=settings) as here:
            token = here.token(cnf={"jkt": KEY.thumbprint()})
            shown = proof(here, token)
            await here.ask("/Patient/pat-1", headers={"Authorization": f"DPoP {token}", "DPoP": shown})
            answer = await here.ask("/Patient/pat-1", headers={"Authorization": f"DPoP {token}", "DPoP": shown})
            assert answer.status == wanted


async def _state_redis(folder: Path) -> None:
    assert (await told(folder, {"state": {"redis": "redis://127.0.0.1:9/0"}})).state.redis == "redis://127.0.0.1:9/0"


async def _password_file(folder: Path) -> None:
    found = await told(folder, {"state": {"redis": "redis://127.0.0.1:9/0", "password_file": "p"}})
    assert found.state.password_file == folder / "p"


async def _trusted_proxies(folder: Path) -> None:
    for trusted, found in ((["10.0.0.0/8"], "127.0.0.1"), (["127.0.0.0/8"], "203.0.113.7")):
        async with world(folder, settings={"trusted_proxies": trusted}) as here:
            await here.ask("/Patient/pat-1", here.token(), headers={"X-Forwarded-For": "203.0.113.7"})
            assert here.records()[-1]["address"] == found
    with pytest.raises(OperatorError, match="not an address"):
        await told(folder, {"trusted_proxies": ["proxy.example"]})


async def _certificate_header(folder: Path) -> None:
    content = base64.b64encode(CERTIFICATE).decode()
    for name, wanted in (("Client-Cert", 200), ("Other-Cert", 401)):
        async with world(folder, settings={"trusted_proxies": ["127.0.0.1"], "client_certificate_header": name}) as here:
            token = here.token(cnf={"x5t#S256": THUMBPRINT})
            assert (await here.ask("/Patient/pat-1", token, headers={"Client-Cert": f":{content}:"})).status == wanted
    with pytest.raises(OperatorError, match="believed of nobody"):
        await told(folder, {"client_certificate_header": "Client-Cert"})


async def _admin(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with world(folder, settings={"admin": f"127.0.0.1:{port}"}) as here:
        async with here.session.get(f"http://127.0.0.1:{port}/health/ready") as answer:
            assert answer.status == 200


async def _sink(folder: Path) -> None:
    """What arrives there is shown in tests/audit/test_stream.py."""
    row = {"redis": "redis://127.0.0.1:9/0", "stream": "s", "password_file": "p"}
    (sink,) = (await told(folder, {"audit": {"sinks": [row]}})).audit.sinks
    assert (sink.redis, sink.stream, sink.password_file) == (row["redis"], "s", folder / "p")
    async with world(folder, settings={"audit": {"sinks": [{"redis": row["redis"]}]}}) as here:
        assert (await here.ask("/Patient/pat-1", here.token())).status == 200 and here.parts.streams


# --- Consents ---------------------------------------------------------------------------------------------------------------


def _asked(folder: Path, settings: Any, wanted: int, consents: Any = (), **claims: Any) -> Any:
    """The status of a read of a patient with these Consents."""

    async def ask() -> None:
        folder.mkdir(exist_ok=True)
        async with world(folder, settings={"consent": settings}, make=Simulator) as here:
            for one in consents:
                here.store.save(one)
            claims.setdefault("purpose_of_use", "TREAT")
            assert (await here.ask("/Patient/pat-1", here.token(**claims))).status == wanted

    return ask()


def _consent(changes: Any, without: int, wanted: int, consents: Any = (), **claims: Any) -> Effect:
    async def effect(folder: Path) -> None:
        await _asked(folder, {}, without, consents, **claims)
        await _asked(folder / "b", changes, wanted, consents, **claims)

    return effect


def _source(**credential: Any) -> Effect:
    """Where Consents are asked for, and what is shown there; how a credential is fetched is shown for upstreams."""

    async def effect(folder: Path) -> None:
        (folder / "secret").write_text("s3cret")
        (folder / "other").mkdir()
        async with world(folder / "other", make=Simulator) as other:
            other.store.save(consent("c", "pat-1", provision("permit"), policy=[{"uri": PCF_PERMIT}]))
            shown = {"credential": {"bearer_file": "secret"}} if credential else {}
            await _asked(folder, {"source": {"url": other.upstream, **shown}}, 200)
            asked = [headers for _, target, headers in other.seen if b"/Consent?patient=" in target]
            assert [headers.get("authorization") for headers in asked] == (["Bearer s3cret"] if credential else [None])
        if credential and "bearer_file" not in credential:
            row = {"token_url": "https://idp.example/token", "client_id": "c", "key_file": "secret", **credential}
            found = (await told(folder, {"consent": {"source": {"url": "https://c.example", "credential": row}}})).consent
            assert all(str(getattr(found.source.credential, name)).endswith(str(row[name])) for name in row)

    return effect


async def _source_answer(folder: Path) -> None:
    async with world(folder, upstream=upstream_saying(200, b"{}", delay=0.4)) as slow:
        (folder / "b").mkdir()
        await _asked(folder / "b", {"source": {"url": slow.upstream, "timeout": {"answer": "50ms"}}}, 503)


async def _source_connect(folder: Path) -> None:
    source = {"url": "https://c.example", "timeout": {"connect": "1500ms"}}
    assert (await told(folder, {"consent": {"source": source}})).consent.source.connect_timeout == 1.5


async def _search_lag(folder: Path) -> None:
    assert (await told(folder, {"consent": {"search_lag": "200ms"}})).consent.lag == 0.2
    assert [one.kind for one in advise_settings(await told(folder, {"consent": {"search_lag": "eventual"}}))] == ["consent"]
    with pytest.raises(OperatorError, match="may miss a Consent"):
        await told(folder, {"consent": {"search_lag": "5s"}})


async def _max_age(folder: Path) -> None:
    async with world(folder, settings={"consent": {"max_age": "100ms"}}, make=Simulator) as here:
        for asked in (1, 2):
            await here.ask("/Patient/pat-1", here.token())
            await asyncio.sleep(0.15)
            assert sum(b"/Consent?patient=" in target for _, target, _ in here.seen) == asked


async def _country(folder: Path) -> None:
    rules = merged(OPEN, {"rules": [{"who": {"when": "principal.country == env.country"}}]})
    for callers, data, wanted in (("DE", "DE", 200), ("DE", "FR", 403), ("FR", "DE", 403)):
        settings = {"issuers": {"demo": {"country": callers}}, "upstreams": [{"country": data}]}
        assert await status(folder / f"{callers}-{data}", settings, rules=rules) == wanted


async def _organization(folder: Path) -> None:
    meant = [consent("c", "pat-1", provision("permit", actor="Organization/o"), policy=[{"uri": PCF_DENY}])]
    for name, wanted in (("employer", 200), ("other", 404)):
        (folder / name).mkdir()
        settings = {"consent": {}, "issuers": {"demo": {"organization": name}}}
        async with world(folder / name, settings=settings, make=Simulator) as here:
            here.store.save(meant[0])
            assert (await here.ask("/Patient/pat-1", here.token(employer="Organization/o"))).status == wanted


PCF_PERMIT, PCF_DENY = (f"https://profiles.ihe.net/ITI/PCF/Policy-{name}" for name in ("all-normal", "deny"))
_PERMITTED = consent("c", "pat-1", provision("permit"), policy=[{"uri": PCF_PERMIT}], dateTime="2026-02-02")
_OLDER_DENY = consent("d", "pat-1", provision("deny"), policy=[{"uri": PCF_DENY}], dateTime="2026-01-01")
_OF_OURS = consent("c", "pat-1", provision("permit"), policy=[{"uri": "urn:ours"}])

EFFECTS: dict[str, Effect] = {
    "consent.source.url": _source(),
    "consent.source.credential.bearer_file": _source(bearer_file="secret"),
    "consent.source.credential.token_url": _source(token_url="https://idp.example/other"),
    "consent.source.credential.client_id": _source(client_id="other"),
    "consent.source.credential.key_file": _source(key_file="secret"),
    "consent.source.credential.key_id": _source(key_id="k"),
    "consent.source.credential.algorithm": _source(algorithm="ES384"),
    "consent.source.credential.scope": _source(scope="system/Consent.rs"),
    "consent.source.timeout.connect": _source_connect,
    "consent.source.timeout.answer": _source_answer,
    "consent.default": _consent({"default": "treatment"}, 404, 200),
    "consent.max_age": _max_age,
    "consent.search_lag": _search_lag,
    "consent.conflicts": _consent({"conflicts": "most-recent-wins"}, 404, 200, [_PERMITTED, _OLDER_DENY]),
    "consent.own_record": _consent(
        {"own_record": "consent"}, 200, 404, scope="patient/*.rs", patient="pat-1", fhirUser="Patient/pat-1"
    ),
    "consent.exempt_roles": _consent({"exempt_roles": ["registrar"]}, 404, 200, roles=["registrar"]),
    "consent.policies.*": _consent({"policies": {"urn:ours": "ignore"}}, 404, 200, [_OF_OURS]),
    "issuers.*.organization": _organization,
    "issuers.*.country": _country,
    "upstreams.[].country": _country,
    "issuers.*.roles.exchange": _role({"exchange": True}, extensions={"hl7-b2b": {"subject_role": "wanted"}}),
    "audit.sinks.[].redis": _sink,
    "audit.sinks.[].stream": _sink,
    "audit.sinks.[].password_file": _sink,
    "admin": _admin,
    "issuers.*.introspection.url": _introspection(url="http://127.0.0.1:9/other"),
    "issuers.*.introspection.client_id": _introspection(client_id="other"),
    "issuers.*.introspection.client_secret_file": _introspection(client_secret_file="absent"),
    "issuers.*.introspection.keep": _introspection(keep="7s"),
    "issuers.*.introspection.revocation": _introspection(revocation=True),
    "issuers.*.introspection.sole_audience": _introspection(sole_audience=True),
    "upstreams.[].introspector": _introspector,
    "state": _state,
    "state.redis": _state_redis,
    "state.password_file": _password_file,
    "trusted_proxies": _trusted_proxies,
    "client_certificate_header": _certificate_header,
    "listen": _listen,
    "public_url": _public_url,
    "tls.certificate_file": _tls,
    "tls.key_file": _tls,
    "tls.client_ca_file": _tls,
    "issuers.*.issuer": _issuer,
    "issuers.*.jwks_url": _jwks_url,
    "issuers.*.jwks_file": _jwks_file,
    "issuers.*.algorithms": _algorithms,
    "issuers.*.profile": _profile,
    "issuers.*.claims.*": _claims,
    "issuers.*.roles.from": _role({"from": "groups"}, groups=["wanted"]),
    "issuers.*.roles.clients.*": _role({"clients": {"demo-app": ["wanted"]}}),
    "issuers.*.roles.fhir_user.*": _role({"fhir_user": {"Practitioner": ["wanted"]}}),
    "issuers.*.roles.scopes.*": _role({"scopes": {"user/*.rs": ["wanted"]}}),
    "issuers.*.default_purpose.*": _default_purpose,
    "upstreams.[].path": _path,
    "upstreams.[].url": _url,
    "upstreams.[].issuers": _issuers,
    "upstreams.[].identities": _identities,
    "upstreams.[].credential.bearer_file": _bearer_file,
    "upstreams.[].credential.token_url": _client_credentials(),
    "upstreams.[].credential.client_id": _client_credentials(),
    "upstreams.[].credential.key_file": _client_credentials(),
    "upstreams.[].credential.key_id": _client_credentials(key_id="k1"),
    "upstreams.[].credential.algorithm": _client_credentials(),
    "upstreams.[].credential.scope": _client_credentials(scope="system/*.rs"),
    "upstreams.[].credential.forward": _forward,
    "upstreams.[].timeout.connect": _connect,
    "upstreams.[].timeout.answer": _answer,
    "upstreams.[].audience": _audience,
    "upstreams.[].origins": _origins,
    "upstreams.[].id_length": _id_length,
    "upstreams.[].delete_if_match": _delete_if_match,
    "upstreams.[].hidden_narrative": _hidden_narrative,
    "rules": _rules,
    "audit.journal": _written({"audit": {"journal": "other"}}, "other/journal-00000001.log"),
    "audit.key_file": _written({"audit": {"key_file": "other.key"}}, "other.key"),
    "audit.witness": _written({"audit": {"witness": "seen/heads"}}, "seen/heads"),
    "keys.file": _written({"keys": {"file": "other.ring"}}, "other.ring"),
    "zone": _zone,
    "limits.body": _body,
    "limits.answer": _limit_answer,
    "limits.depth": _depth,
    "limits.entries": _entries,
    "limits.concurrency": _concurrency,
}


def test_every_accepted_key_has_an_effect_here() -> None:
    schema = schema_of("settings")
    assert set(leaves(schema, schema)) == set(EFFECTS)


@pytest.mark.promise
@pytest.mark.parametrize("key", sorted(EFFECTS))
async def test_each_key_changes_a_decision_or_an_output(tmp_path: Path, key: str) -> None:
    await EFFECTS[key](tmp_path)


# --- faults ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"nope": 1}, "unknown key `nope`"),
        ({"public_url": "https://x.example/"}, "public_url"),
        ({"public_url": "shield"}, "public_url"),
        ({"listen": "8080"}, "address:port"),
        ({"issuers": {"demo": {"profile": "okta"}}}, "one of `smart`, `keycloak`, `azure`"),
        ({"issuers": {"demo": {"jwks_file": "x"}}}, "issuers.demo"),
        ({"issuers": {"demo": {"algorithms": ["HS256"]}}}, "one of"),
        ({"issuers": {"demo": {"algorithms": ["none"]}}}, "one of"),
        ({"upstreams": [{"issuers": ["other"]}]}, "no issuer `other`"),
        ({"upstreams": [{"identities": ["other"]}]}, "no issuer `other`"),
        ({"upstreams": [{"url": "ftp://x"}]}, "http or https"),
        ({"upstreams": [{"path": "fhir/"}]}, "path"),
        ({"upstreams": [{"credential": {"bearer": "secret"}}]}, "unknown key `bearer`"),
        ({"upstreams": [{"timeout": {"answer": "fast"}}]}, "duration"),
        ({"zone": "Mars/Olympus"}, "not a time zone"),
        ({"consent": {}, "upstreams": [{"credential": {"forward": True}}]}, "would be read as the caller"),
        ({"consent": {"source": {"url": "http://c.example", "credential": {"forward": True}}}}, "unknown key `forward`"),
        ({"limits": {"body": "16 MB"}}, "size"),
        ({"rules": None}, "missing `rules`"),
        ({"audit": None}, "missing `audit`"),
    ],
)
def test_faults(tmp_path: Path, changes: Any, word: str) -> None:
    with pytest.raises(OperatorError) as caught:
        load(write(tmp_path, changes))
    assert word in str(caught.value)
    assert re.match(r".*fhirshield\.yaml:\d+", str(caught.value))


WAITING: dict[tuple[str, ...], Any] = {
    ("audit", "sinks", "*", "fhir"): {"audit": {"sinks": [{"redis": "redis://r/0", "fhir": "http://x"}]}},
    ("audit", "sinks", "*", "kafka"): {"audit": {"sinks": [{"redis": "redis://r/0", "kafka": "x"}]}},
}


@pytest.mark.promise
@pytest.mark.parametrize("key", sorted(NOT_YET))
def test_keys_whose_engine_is_not_here_say_so(tmp_path: Path, key: tuple[str, ...]) -> None:
    with pytest.raises(OperatorError) as caught:
        load(write(tmp_path, WAITING[key]))
    (fault,) = caught.value.faults
    assert "not in this version" in fault.message and NOT_YET[key] in fault.message


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as caught:
        load(write(tmp_path, {"zone": 5, "listen": "x", "nope": 1, "limits": {"body": 3}}))
    assert len(caught.value.faults) == 4


def test_secrets_are_only_files() -> None:
    assert not re.search(r'"(password|secret|bearer|token)"', json.dumps(schema_of("settings")))


async def test_two_upstreams_keep_their_audiences_apart(tmp_path: Path) -> None:
    async with world(tmp_path, NURSE) as first:
        again = {"path": "/other", "url": first.upstream, "issuers": ["demo"]}
        inner = tmp_path / "b"
        inner.mkdir()
        plain: list[Any] = [{}, again]
        async with world(inner, NURSE, {"upstreams": plain}) as here:
            await _apart(here)


async def _apart(here: World) -> None:
    token = here.token(roles=["nurse"])
    assert (await here.ask("/Patient/pat-1", token)).status == 200
    assert (await here.ask(f"{here.url}/other/Patient/pat-1", token)).status == 401
    other = here.token(aud=f"{here.url}/other", roles=["nurse"])
    assert (await here.ask(f"{here.url}/other/Patient/pat-1", other)).status == 200
