"""Tokens as real issuers made them (Keycloak 26, oidc-provider 9), with the keys of that day, at the hour of their making."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from typing import Any

import pytest

from fhirshield.authenticate import Authenticator
from fhirshield.authenticate.keys import Keys
from fhirshield.model import Principal, Refused
from fhirshield.settings import Issuer, RoleSource
from tests.authenticate.test_token import UPSTREAM, Source, situation
from tests.parts import ROOT

AT = 1_795_373_200.0
"""A moment at which all of them were valid."""


def captured(name: str) -> Any:
    return json.loads((ROOT / f"tests/authenticate/captured/{name}.json").read_text(encoding="utf-8"))


async def authenticate(name: str, which: str, audience: str = "https://shield.example/fhir") -> Principal:
    file = captured(name)
    roles = RoleSource("realm_access.roles" if name == "keycloak" else "roles", {}, {}, {})
    algorithms = ("RS256", "RS384", "ES256", "ES384")
    issuer = Issuer("hospital", file["issuer"], "", None, algorithms, file["profile"], {}, roles, {})
    upstream = replace(UPSTREAM, audience=(audience,))
    keys = Keys(Source(*file["jwks"]["keys"]), clock=lambda: 0.0)
    check = Authenticator(upstream, {"hospital": issuer}, {"hospital": keys}, clock=lambda: AT)
    asked = replace(situation(file["tokens"][which]), now=dt.datetime.fromtimestamp(AT, dt.UTC))
    return await check(asked)


async def test_a_nurse_of_keycloak() -> None:
    principal = await authenticate("keycloak", "nurse")
    assert principal.roles == {"nurse", "practitioner"} and principal.fhir_user == "Practitioner/nurse-vale"
    assert principal.client == "app" and [s.text for s in principal.scopes.granted] == ["user/*.rs"]


async def test_a_patient_of_keycloak() -> None:
    principal = await authenticate("keycloak", "patient")
    assert principal.patient == "pat-1" and "patient" in principal.roles


@pytest.mark.parametrize("which", ["id", "refresh"])
async def test_other_tokens_of_keycloak_are_refused(which: str) -> None:
    with pytest.raises(Refused):
        await authenticate("keycloak", which)


async def test_a_patient_of_oidc_provider() -> None:
    principal = await authenticate("oidc-provider", "patient")
    assert (principal.patient, principal.fhir_user, principal.client) == ("pat-1", "Patient/pat-1", "smart-app")


async def test_a_backend_of_oidc_provider() -> None:
    principal = await authenticate("oidc-provider", "backend", "https://shield.example/fhir-es384")
    assert principal.roles == {"system"} and principal.fhir_user == ""
    with pytest.raises(Refused):
        await authenticate("oidc-provider", "backend")
