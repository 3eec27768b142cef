"""A whole world on loopback: the demo's store and issuer, the shield between, settings and rules as a test wants them."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import datetime as dt
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from yarl import URL

from fhirshield.app import build
from fhirshield.cli.serve import server_options
from fhirshield.demo.issuer import Issuer
from fhirshield.demo.patients import generate
from fhirshield.demo.store import Store
from fhirshield.entrance import Entrance
from fhirshield.serving import serving
from fhirshield.settings import load
from tests.audit import records

OPEN = {"rules": [{"id": "open", "who": {"roles": ["*"]}, "allow": {"interactions": ["*"], "resources": ["*"]}}]}


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, read whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class World:
    """What a test holds in its hands."""

    url: str
    upstream: str
    issuer: Issuer
    store: Any
    folder: Path
    session: aiohttp.ClientSession
    seen: list[tuple[str, bytes, dict[str, str]]]
    """What the upstream was asked: method, target, headers."""
    entrance: Entrance

    @property
    def base(self) -> str:
        return f"{self.url}/fhir"

    def token(self, scope: str = "user/*.rs", **claims: Any) -> str:
        claims.setdefault("fhirUser", "Practitioner/dr-reed")
        return self.issuer.token(claims.pop("aud", self.base), scope, **claims)

    async def ask(self, path: str, token: str | None = None, method: str = "GET", **how: Any) -> Reply:
        """One request below the shield's base; ``path`` goes as it is."""
        headers = dict(how.pop("headers", {}))
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        target = URL(path if path.startswith("http") else f"{self.base}{path}", encoded=True)
        async with self.session.request(method, target, headers=headers, allow_redirects=False, **how) as answer:
            return Reply(answer.status, {k.lower(): v for k, v in answer.headers.items()}, await answer.read())

    async def direct(self, path: str) -> Any:
        """The upstream's own answer."""
        async with self.session.get(URL(f"{self.upstream}{path}", encoded=True)) as answer:
            return json.loads(await answer.read())

    @property
    def parts(self) -> Any:
        """What the shield runs on."""
        return self.entrance.parts

    def now(self) -> int:
        """Seconds since the epoch."""
        return int(time.time())

    async def until(self, moment: float) -> None:
        """Sleep until then."""
        await asyncio.sleep(max(0.0, moment - time.time()))

    def records(self) -> list[dict[str, Any]]:
        """The journal so far, the lazy second records aside."""
        return [row for row in records(self.folder / "audit") if row["outcome"] != "sent"]


@contextlib.asynccontextmanager
async def world(
    folder: Path, rules: Any = None, settings: dict[str, Any] | None = None, upstream: Any = None, page: int = 20,
    make: Callable[[str, int], Any] = Store,
) -> AsyncIterator[World]:  # fmt: skip
    """A running world. ``settings`` are merged over the plain ones; ``upstream`` replaces the store (an ASGI app or a URL).

    ``make`` makes another store than the demo's.
    """
    sockets = [listener() for _ in range(3)]
    store_url, issuer_url, url = (f"http://127.0.0.1:{s.getsockname()[1]}" for s in sockets)
    url = url.replace("http:", "https:") if settings and "tls" in settings else url
    issuer, store = Issuer(issuer_url), make(f"{store_url}/fhir", page)
    store.load(generate(12))
    seen: list[tuple[str, bytes, dict[str, str]]] = []
    app = upstream if callable(upstream) else store

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = {k.decode(): v.decode() for k, v in scope["headers"]}
            seen.append((scope["method"], scope["raw_path"] + b"?" + scope["query_string"], headers))
        await app(scope, receive, send)

    upstream_url = upstream if isinstance(upstream, str) else f"{store_url}/fhir"
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules or OPEN))
    plain = {
        "public_url": url,
        "zone": midday(),
        "issuers": {
            "demo": {"issuer": issuer_url, "jwks_url": f"{issuer_url}/jwks", "profile": "smart", "roles": {"from": "roles"}}
        },
        "upstreams": [{"path": "/fhir", "url": upstream_url, "issuers": ["demo"]}],
        "rules": "rules.yaml",
        "audit": {"journal": "audit"},
    }
    (folder / "fhirshield.yaml").write_text(yaml.safe_dump(merged(plain, settings or {})))
    loaded = load(folder / "fhirshield.yaml")
    async with contextlib.AsyncExitStack() as stack:
        entrance = build(loaded)
        for application, bound in ((watched, sockets[0]), (issuer, sockets[1])):
            await stack.enter_async_context(serving(application, bound, server_options(loaded)))
        await stack.enter_async_context(serving(entrance, sockets[2], server_options(loaded, entrance.tls)))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"), auto_decompress=False)
        )
        yield World(url, upstream_url, issuer, store, folder, session, seen, entrance)


def merged(plain: Any, over: Any) -> Any:
    """``over`` merged into ``plain``: objects by key, lists by place, the rest replaced; None removes."""
    if isinstance(plain, dict) and isinstance(over, dict):
        result = copy.deepcopy(plain)
        for key, value in over.items():
            if value is None:
                result.pop(key, None)
            else:
                result[key] = merged(result.get(key), value)
        return result
    if isinstance(plain, list) and isinstance(over, list) and plain and isinstance(over[0], dict):
        return [merged(p, o) for p, o in zip(plain, over, strict=False)] + over[len(plain) :]
    return over


def listener() -> socket.socket:
    """A socket on a free port of the loopback."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.bind(("127.0.0.1", 0))
    return bound


def midday() -> str:
    """A zone in which it is about noon now, so that no test depends on the hour at which it runs."""
    ahead = 12 - dt.datetime.now(dt.UTC).hour
    return f"Etc/GMT{-ahead:+d}" if ahead else "UTC"
