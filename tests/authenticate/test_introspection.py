"""Opaque tokens, and JWTs that may be revoked: asked of their issuer (RFC 7662), kept never past their end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from fhirshield.serving import serving
from tests.world import World, listener, world

TOKEN = "opaque-token-0123456789"
SECRET = "secret of the shield/+"


class Server:
    """An authorization server's introspection endpoint, under the test's control."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[tuple[str, str]] = []
        self.status = 200
        self.raw: bytes | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = (await receive())["body"].decode()
        credential = dict(scope["headers"]).get(b"authorization", b"").decode()
        token = parse_qs(body)["token"][0]
        self.asked.append((credential, token))
        content = self.raw if self.raw is not None else json.dumps(self.answers.get(token, {"active": False})).encode()
        await send({"type": "http.response.start", "status": self.status, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": content})


@asynccontextmanager
async def introspecting(folder: Path, **how: Any) -> AsyncIterator[tuple[World, Server]]:
    server, socket = Server(), listener()
    (folder / "secret").write_text(SECRET + "\n")
    url = f"http://127.0.0.1:{socket.getsockname()[1]}/introspect"
    row = {"url": url, "client_id": "shield", "client_secret_file": "secret", **how.pop("introspection", {})}
    settings = {"issuers": {"demo": {"introspection": row}}, "upstreams": [{"introspector": "demo"}], **how}
    async with serving(server, socket, {"log_config": None, "lifespan": "off"}), world(folder, settings=settings) as here:
        yield here, server


def active(here: World, **claims: Any) -> dict[str, Any]:
    found = {
        "active": True, "token_type": "Bearer", "scope": "user/*.rs", "client_id": "app", "sub": "s", "aud": here.base,
        "exp": here.now() + 300, "iss": here.issuer.url, "fhirUser": "Practitioner/dr-reed", **claims,
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not ...}


async def status(here: World, token: str = TOKEN) -> int:
    return (await here.ask("/Patient/pat-1", token)).status


@pytest.mark.promise
async def test_an_opaque_token_is_what_its_issuer_says(tmp_path: Path) -> None:
    async with introspecting(tmp_path) as (here, server):
        assert await status(here) == 401
        server.answers["another-token-0123456789"] = active(here)
        answer = await here.ask("/Patient/pat-1", "another-token-0123456789")
        assert answer.status == 200
        assert server.asked[-1] == ("Basic c2hpZWxkOnNlY3JldCUyMG9mJTIwdGhlJTIwc2hpZWxkJTJGJTJC", "another-token-0123456789")
        record = here.records()[-1]
        assert (record["client"], record["subject"], record["fhir_user"]) == ("app", "s", "Practitioner/dr-reed")
        assert "another-token" not in json.dumps(here.records())


@pytest.mark.parametrize(
    "claims",
    [
        {"active": False}, {"exp": 1}, {"exp": "soon"}, {"nbf": 1 << 40}, {"aud": "https://other.example/fhir"}, {"aud": ...},
        {"iss": "https://other.example"}, {"token_type": "refresh_token"}, {"token_type": ...}, {"typ": "Refresh"}, {"scope": ...},
        {"exp": ...},
    ],
)  # fmt: skip
async def test_what_is_not_a_good_access_token_for_us_is_refused(tmp_path: Path, claims: dict[str, Any]) -> None:
    async with introspecting(tmp_path) as (here, server):
        server.answers[TOKEN] = active(here, **claims)
        assert await status(here) == 401


async def test_an_issuer_for_this_server_alone_need_not_say_the_audience(tmp_path: Path) -> None:
    async with introspecting(tmp_path, introspection={"sole_audience": True}) as (here, server):
        server.answers[TOKEN] = active(here, aud=...)
        assert await status(here) == 200
        server.answers["other-token-0123456789"] = active(here, aud="https://other.example/fhir")
        assert await status(here, "other-token-0123456789") == 401


@pytest.mark.promise
async def test_answers_are_kept_for_a_while_never_past_their_end(tmp_path: Path) -> None:
    async with introspecting(tmp_path, introspection={"keep": "60s"}) as (here, server):
        server.answers[TOKEN] = active(here)
        assert [await status(here) for _ in range(3)] == [200] * 3 and len(server.asked) == 1
        short = "short-token-0123456789"
        server.answers[short] = active(here, exp=here.now() + 2)
        assert await status(here, short) == 200
        assert here.parts.state._entries
        assert all(b"Practitioner" not in value for _, value in here.parts.state._entries.values())
        await here.until(here.now() + 3)
        assert await status(here, short) == 401
    other = tmp_path / "b"
    other.mkdir()
    async with introspecting(other, introspection={"keep": "0s"}) as (here, server):
        server.answers[TOKEN] = active(here)
        assert [await status(here) for _ in range(3)] == [200] * 3 and len(server.asked) == 3


@pytest.mark.promise
async def test_without_the_introspector_nobody_enters(tmp_path: Path) -> None:
    async with introspecting(tmp_path) as (here, server):
        server.answers[TOKEN] = active(here)
        for code, raw in (
            (500, b"{}"),
            (200, b"<html>"),
            (200, b"[]"),
            (200, b'{"active":"true"}'),
            (200, b'{"active":true,"active":false}'),
        ):
            server.status, server.raw = code, raw
            assert await status(here) == 503
        server.status, server.raw = 302, b""
        assert await status(here) == 503
        (tmp_path / "secret").unlink()
        assert await status(here) == 503
        assert here.records()[-1]["reason"] == "keys-unavailable"


async def test_a_revoked_jwt_is_refused(tmp_path: Path) -> None:
    async with introspecting(tmp_path, introspection={"revocation": True, "keep": "0s"}) as (here, server):
        token = here.token()
        assert await status(here, token) == 401
        server.answers[token] = active(here)
        assert await status(here, token) == 200
        server.answers[token] = {"active": False}
        assert await status(here, token) == 401


async def test_tokens_of_strangers_are_not_sent_to_the_introspector(tmp_path: Path) -> None:
    async with introspecting(tmp_path) as (here, server):
        for token in (
            "short",
            "a" * 5000,
            "with space 0123456789",
            "a.b.c",
            here.token(iss="https://other.example"),
            'quote"0123456789abcdef',
        ):
            assert await status(here, token) == 401
        assert server.asked == []
