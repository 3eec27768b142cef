"""Tokens of a certified OpenID provider: opaque ones, which only it can explain, and ``at+jwt``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from tests.parts import ROOT, need
from tests.world import World, world

AUDIENCE = "https://shield.example/fhir"
BACKEND = {"Authorization": aiohttp.encode_basic_auth("backend", "test-only")}
START = ROOT / "tools/servers/oidc-provider/start"


@contextlib.asynccontextmanager
async def provider() -> AsyncIterator[str]:
    for program in ("bash", "node", "npm"):
        need(program, "oidc-provider is a package of npm")
    process = await asyncio.create_subprocess_exec(START, AUDIENCE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 180)
        yield json.loads(line)["issuer"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def grant(here: World, issuer: str, resource: str) -> str:
    form = {"grant_type": "client_credentials", "scope": "system/*.rs", "resource": f"https://r.example/{resource}"}
    async with here.session.post(f"{issuer}/token", data=form, headers=BACKEND) as answer:
        found = await answer.json()
        assert answer.status == 200, found
        return str(found["access_token"])


async def test_opaque_and_jwt_tokens_and_revocation(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("test-only")
    async with provider() as issuer:
        row: dict[str, Any] = {
            "issuer": issuer,
            "jwks_url": f"{issuer}/jwks",
            "introspection": {
                "url": f"{issuer}/token/introspection",
                "client_id": "shield",
                "client_secret_file": "secret",
                "keep": "0s",
            },
        }
        settings = {"issuers": {"demo": row}, "upstreams": [{"audience": [AUDIENCE], "introspector": "demo"}]}
        async with world(tmp_path, settings=settings) as here:
            opaque, signed = await grant(here, issuer, "opaque"), await grant(here, issuer, "jwt")
            assert opaque.count(".") == 0 and signed.count(".") == 2
            for token in (opaque, signed):
                assert (await here.ask("/Patient/pat-1", token)).status == 200
                assert here.records()[-1]["client"] == "backend"
            assert (await here.ask("/Patient/pat-1", opaque[:-1] + "x")).status == 401
            form = {"token": opaque}
            async with here.session.post(f"{issuer}/token/revocation", data=form, headers=BACKEND) as answer:
                assert answer.status == 200
            assert (await here.ask("/Patient/pat-1", opaque)).status == 401
            assert (await here.ask("/Patient/pat-1", signed)).status == 200
        async with world(tmp_path, settings={**settings, "upstreams": [{"introspector": "demo"}]}) as here:
            assert (await here.ask("/Patient/pat-1", await grant(here, issuer, "opaque"))).status == 401
