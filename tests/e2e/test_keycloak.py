"""Tokens of a real Keycloak, before the demo's store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.test_shield import NURSE
from tests.world import World, world

pytestmark = pytest.mark.keycloak
AUDIENCE = "https://shield.example/fhir"


def settings(realm: str) -> dict[str, Any]:
    issuer = {
        "issuer": realm,
        "jwks_url": f"{realm}/protocol/openid-connect/certs",
        "profile": "keycloak",
        "roles": {"from": "realm_access.roles"},
    }
    return {"issuers": {"demo": issuer}, "upstreams": [{"audience": [AUDIENCE]}]}


async def grant(here: World, realm: str, **form: str) -> dict[str, Any]:
    url = f"{realm}/protocol/openid-connect/token"
    async with here.session.post(url, data=form) as answer:
        assert answer.status == 200, await answer.read()
        found: dict[str, Any] = await answer.json()
        return found


def person(name: str, scope: str) -> dict[str, str]:
    return {"grant_type": "password", "client_id": "app", "username": name, "password": "test-only", "scope": scope}


async def test_a_nurse_and_a_patient_of_keycloak(tmp_path: Path, keycloak: str) -> None:
    async with world(tmp_path, NURSE, settings(keycloak)) as here:
        nurse = await grant(here, keycloak, **person("vale", "openid user/*.rs"))
        answer = await here.ask("/Patient/pat-1", nurse["access_token"])
        assert answer.status == 200 and len(answer.json["birthDate"]) == 4
        assert here.records()[-1]["fhir_user"] == "Practitioner/nurse-vale"
        for other in ("id_token", "refresh_token"):
            assert (await here.ask("/Patient/pat-1", nurse[other])).status == 401
        own = await grant(here, keycloak, **person("ada", "openid patient/*.rs"))
        assert (await here.ask("/Patient/pat-1", own["access_token"])).status == 403
        assert here.records()[-1]["reason"] == "no-rule" and "patient" in here.records()[-1]["roles"]


async def test_a_backend_of_keycloak(tmp_path: Path, keycloak: str) -> None:
    async with world(tmp_path, None, settings(keycloak)) as here:
        form = {"grant_type": "client_credentials", "client_id": "backend", "client_secret": "test-only", "scope": "system/*.rs"}
        token = (await grant(here, keycloak, **form))["access_token"]
        assert (await here.ask("/Patient/pat-2", token)).status == 200
        assert (await here.ask("/.well-known/smart-configuration")).json["token_endpoint"].startswith(keycloak)


async def test_what_keycloak_revokes_is_refused_at_once(tmp_path: Path, keycloak: str) -> None:
    (tmp_path / "secret").write_text("test-only")
    row = {
        "url": f"{keycloak}/protocol/openid-connect/token/introspect",
        "client_id": "backend",
        "client_secret_file": "secret",
        "revocation": True,
        "keep": "0s",
    }
    changed = settings(keycloak)
    changed["issuers"]["demo"]["introspection"] = row
    async with world(tmp_path, NURSE, changed) as here:
        nurse = await grant(here, keycloak, **person("vale", "openid user/*.rs"))
        token = nurse["access_token"]
        assert (await here.ask("/Patient/pat-1", token)).status == 200
        form = {"token": token, "client_id": "app", "token_type_hint": "access_token"}
        async with here.session.post(f"{keycloak}/protocol/openid-connect/revoke", data=form) as answer:
            assert answer.status == 200
        assert (await here.ask("/Patient/pat-1", token)).status == 401
        assert here.records()[-1]["reason"] == "bad-token"
