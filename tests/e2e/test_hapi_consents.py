"""Consents before HAPI, on two shield processes that share a Redis: one query a search, and no late permit under load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from yarl import URL

from fhirshield.cli.serve import server_options
from fhirshield.demo.issuer import Issuer
from fhirshield.serving import serving
from fhirshield.settings import load as load_settings
from tests.audit import records
from tests.consent.material import consent, provision
from tests.consent.test_enforced import RULES
from tests.e2e.conftest import load
from tests.parts import count
from tests.state.test_state import redis_server
from tests.world import listener

pytestmark = pytest.mark.hapi
AT_ONCE = 50
ROUNDS = count(12, 4)


def free() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def people() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number in range(30):
        name = f"cp{number}"
        found.append({"resourceType": "Patient", "id": name, "active": True, "name": [{"family": "Consenting"}]})
        found.append(consent(f"ck{number}", name, provision("permit")))
    return found


class Two:
    """Two shields, and a registrar's and a doctor's way to them."""

    def __init__(self, urls: list[str], issuer: Issuer, session: aiohttp.ClientSession, folders: list[Path]) -> None:
        self.urls, self.session, self.folders = urls, session, folders
        self.doctor = [issuer.token(f"{url}/fhir", "user/*.rs", fhirUser="Practitioner/1", purpose_of_use="TREAT") for url in urls]
        self.clerk = [issuer.token(f"{url}/fhir", "user/*.cruds", fhirUser="Practitioner/2", roles=["registrar"]) for url in urls]

    async def ask(self, place: int, path: str, token: str, method: str = "GET", **how: Any) -> tuple[int, Any]:
        url = URL(f"{self.urls[place]}/fhir{path}", encoded=True)
        async with self.session.request(method, url, headers={"Authorization": f"Bearer {token}"}, **how) as answer:
            return answer.status, json.loads(await answer.read() or b"null")


@contextlib.asynccontextmanager
async def two(folder: Path, hapi: str, redis: str) -> AsyncIterator[Two]:
    """Two processes of ``fhirshield serve`` before one HAPI, with one Redis and one key ring."""
    bound = listener()
    issuer = Issuer(f"http://127.0.0.1:{bound.getsockname()[1]}")
    (folder / "ring").write_bytes(os.urandom(32))
    urls, folders, running = [], [], []
    async with contextlib.AsyncExitStack() as stack:
        for name in ("one", "two"):
            place = folder / name
            place.mkdir()
            port = free()
            urls.append(f"http://127.0.0.1:{port}")
            folders.append(place)
            (place / "rules.yaml").write_text(yaml.safe_dump(RULES))
            (place / "fhirshield.yaml").write_text(yaml.safe_dump({
                "listen": f"127.0.0.1:{port}", "public_url": urls[-1], "rules": "rules.yaml", "audit": {"journal": "audit"},
                "issuers": {"demo": {"issuer": issuer.url, "jwks_url": f"{issuer.url}/jwks", "profile": "smart", "roles": {"from": "roles"}}},
                "upstreams": [{"path": "/fhir", "url": hapi, "issuers": ["demo"]}], "state": redis, "keys": {"file": "../ring"},
                "consent": {"policies": {"urn:policy:base": "ignore"}, "exempt_roles": ["registrar"]},
            }))  # fmt: skip
        await stack.enter_async_context(serving(issuer, bound, server_options(load_settings(folders[0] / "fhirshield.yaml"))))
        for place in folders:
            command = [sys.executable, "-m", "fhirshield", "serve", str(place / "fhirshield.yaml")]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            running.append(process)
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)))
        for url in urls:
            for _ in range(200):
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    async with session.get(f"{url}/fhir/metadata"):
                        break
                await asyncio.sleep(0.1)
        yield Two(urls, issuer, session, folders)


@pytest.mark.promise
async def test_one_query_for_thirty_patients_and_no_late_permit_on_two_processes(hapi: str, tmp_path: Path) -> None:
    load(hapi, people())
    with redis_server(tmp_path) as redis:
        async with two(tmp_path, hapi, redis) as here:
            status, found = await here.ask(0, "/Patient?family=Consenting&_count=50", here.doctor[0])
            assert status == 200 and len(found["entry"]) == 30, found
            (entry,) = [
                row for row in records(here.folders[0] / "audit") if row.get("type") == "Patient" and row["outcome"] == "released"
            ]
            assert entry["gathered"]["requests"]["Consent"] == 2  # the one query, and the question whether the source answers

            revoked: dict[str, float] = {}
            """When the answer to a revocation came."""
            late: list[str] = []
            seen, done = 0, asyncio.Event()

            async def look(place: int) -> None:
                nonlocal seen
                while not done.is_set():
                    began = time.monotonic()
                    status, found = await here.ask(place, "/Patient?family=Consenting&_count=50", here.doctor[place])
                    assert status in {200, 503}, found
                    shown = (
                        {one["resource"]["id"] for one in found.get("entry", ()) if one["search"]["mode"] == "match"}
                        if status == 200
                        else set()
                    )
                    seen += status == 200
                    late.extend(name for name, at in revoked.items() if at < began and name in shown)

            async def revoke() -> None:
                for number in range(ROUNDS):
                    name = f"cp{number}"
                    status, found = await here.ask(number % 2, f"/Consent/ck{number}", here.clerk[number % 2], "PUT",
                                                   json=consent(f"ck{number}", name, provision("deny")))  # fmt: skip
                    assert status == 200, found
                    revoked[name] = time.monotonic()
                    other = 1 - number % 2
                    assert (await here.ask(other, f"/Patient/{name}", here.doctor[other]))[0] in {404, 503}
                    await asyncio.sleep(0.3)
                done.set()

            await asyncio.gather(revoke(), *(look(number % 2) for number in range(AT_ONCE)))
            assert not late and seen > AT_ONCE
            for place in (0, 1):
                status, found = await here.ask(place, "/Patient?family=Consenting&_count=50", here.doctor[place])
                assert status == 200 and len(found["entry"]) == 30 - ROUNDS
