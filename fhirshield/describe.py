"""What the shield and its upstream together serve: CapabilityStatement and smart-configuration, both public.

Both are built anew from the few facts that are taken over; nothing of the upstream's or the issuer's documents passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from fhirshield import __version__
from fhirshield.errors import MalformedFhir, Unavailable
from fhirshield.fhir import json as fhir_json
from fhirshield.fhir.definitions import resource_types
from fhirshield.fhir.including import parse as parse_include
from fhirshield.fhir.operations import OPERATIONS
from fhirshield.fhir.search_parameters import search_parameter
from fhirshield.model import Denial, Reason, Refused, Situation, Tally, View
from fhirshield.outbound.fhir_server import FhirServer
from fhirshield.outbound.http import Client
from fhirshield.outbound.issuer import get_json

KEEP = 300.0
"""Seconds for which a document is kept."""
SERVED = ("read", "vread", "history-instance", "history-type", "search-type", "create", "update", "patch", "delete")
WHOLE = ("batch", "transaction", "history-system")
"""Interactions with the server as a whole; a batch needs nothing of the upstream."""
_OAUTH = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"
_ENDPOINTS = {
    "authorization_endpoint": "authorize",
    "token_endpoint": "token",
    "introspection_endpoint": "introspect",
    "revocation_endpoint": "revoke",
    "registration_endpoint": "register",
}
"""Discovery member -> name in the oauth-uris extension (SMART App Launch 1.0)."""
_COPIED = (
    *_ENDPOINTS, "issuer", "jwks_uri", "scopes_supported", "response_types_supported", "grant_types_supported",
    "code_challenge_methods_supported", "token_endpoint_auth_methods_supported",
    "token_endpoint_auth_signing_alg_values_supported",
)  # fmt: skip
CAPABILITIES = (
    "launch-ehr", "launch-standalone", "client-public", "client-confidential-symmetric",
    "client-confidential-asymmetric", "context-ehr-patient", "context-standalone-patient", "permission-patient",
    "permission-user", "permission-v1", "permission-v2",
)  # fmt: skip
"""SMART 2.2 §8.1: what the shield honours in tokens; whether an issuer grants it is the issuer's affair."""


class Describer:
    """Describes one upstream; ``issuer`` is the URL of the first of its issuers."""

    def __init__(self, server: FhirServer, client: Client, issuer: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._client = client
        self._issuer = issuer
        self._clock = clock
        self._kept: dict[str, tuple[float, Any]] = {}

    async def capabilities(self, situation: Situation) -> View:
        """The CapabilityStatement (FHIR R4 §5.1). Raises Refused."""
        rest = await self._fresh("metadata", self._metadata)
        try:
            discovery = await self._fresh("discovery", self._discover)
        except Refused:
            discovery = {}
        body = fhir_json.encode(_statement(rest, situation.base, discovery))
        return _view(body, "application/fhir+json; charset=utf-8")

    async def smart_configuration(self, situation: Situation) -> View:
        """``.well-known/smart-configuration`` (SMART 2.2 §8). Raises Refused."""
        discovery = await self._fresh("discovery", self._discover)
        copied = {name: discovery[name] for name in _COPIED if _is_plain(discovery.get(name))}
        document = {**copied, "capabilities": list(CAPABILITIES)}
        return _view(fhir_json.encode(document), "application/json")

    async def _fresh(self, name: str, fetch: Callable[[], Any]) -> Any:
        kept = self._kept.get(name)
        if kept is None or self._clock() - kept[0] > KEEP:
            try:
                kept = (self._clock(), await fetch())
            except (Unavailable, MalformedFhir):
                text = "a server that this description needs is not answering"
                denial = Denial(503, Reason.UPSTREAM_FAILED, "transient", text, (("Retry-After", "5"),))
                raise Refused(denial) from None
            self._kept[name] = kept
        return kept[1]

    async def _metadata(self) -> dict[str, Any]:
        answer = await self._server.send("GET", ("metadata",), ())
        statement = fhir_json.decode(answer.body) if answer.status == 200 else None
        if not isinstance(statement, dict) or statement.get("resourceType") != "CapabilityStatement":
            raise Unavailable("no CapabilityStatement")
        rests = statement.get("rest")
        rest = rests[0] if isinstance(rests, list) and rests and isinstance(rests[0], dict) else {}
        everywhere = _named(rest.get("operation"), "name")
        rows = [row for raw in _list(rest.get("resource")) if (row := _resource(raw, everywhere)) is not None]
        whole = [code for code in WHOLE if code == "batch" or code in _named(rest.get("interaction"), "code")]
        return {"interaction": [{"code": code} for code in whole], "resource": rows}

    async def _discover(self) -> dict[str, Any]:
        document = await get_json(self._issuer.rstrip("/") + "/.well-known/openid-configuration", self._client)
        if not isinstance(document, dict):
            raise Unavailable("no discovery document")
        return document


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _resource(raw: Any, everywhere: set[str]) -> dict[str, Any] | None:
    """What is served of a type, of what an upstream offers."""
    name = raw.get("type") if isinstance(raw, dict) else None
    if not isinstance(name, str) or name not in resource_types():
        return None
    offered = _named(raw.get("interaction"), "code")
    if "update" in offered:
        offered.add("patch")  # a patch goes upstream as the update that it comes to
    row: dict[str, Any] = {"type": name, "interaction": [{"code": code} for code in SERVED if code in offered]}
    if "vread" in offered:
        row["versioning"] = "versioned-update" if raw.get("versioning") == "versioned-update" else "versioned"
    if "search-type" in offered and "update" in offered:
        row |= {"conditionalCreate": raw.get("conditionalCreate") is True, "conditionalUpdate": True}
        row |= {"conditionalDelete": "single"} if "delete" in offered else {}
    included = [text for text in _strings(raw.get("searchInclude")) if parse_include("_include", "", text)]
    reverse = [text for text in _strings(raw.get("searchRevInclude")) if parse_include("_revinclude", "", text)]
    row |= ({"searchInclude": included} if included else {}) | ({"searchRevInclude": reverse} if reverse else {})
    asked = [(p, search_parameter(name, p)) for p in sorted(_named(raw.get("searchParam"), "name"))]
    listed = [{"name": p, "type": known.type} for p, known in asked if known and known.ways]
    operations = _operations(name, {*everywhere, *_named(raw.get("operation"), "name")}, offered)
    return row | ({"searchParam": listed} if listed else {}) | ({"operation": operations} if operations else {})


_HERE = {"$meta": "read", "$lastn": "search-type", "$docref": "search-type"}
"""Operations that are worked out here, and what of the upstream they need."""
_DEFINITIONS = {
    "$docref": "http://hl7.org/fhir/us/core/OperationDefinition/docref",
    "$meta": "http://hl7.org/fhir/OperationDefinition/Resource-meta",
    "$validate": "http://hl7.org/fhir/OperationDefinition/Resource-validate",
}


def _operations(name: str, theirs: set[str], offered: set[str]) -> list[dict[str, str]]:
    """The operations on a type: those that are worked out here, and those of the upstream's that are judged."""
    theirs = {text.removeprefix("$") for text in theirs}
    found = []
    for operation in OPERATIONS.values():
        plain = operation.name.removeprefix("$")
        there = _HERE[operation.name] in offered if operation.name in _HERE else plain in theirs
        if there and (not operation.types or name in operation.types):
            definition = _DEFINITIONS.get(operation.name, f"http://hl7.org/fhir/OperationDefinition/{name}-{plain}")
            found.append({"name": plain, "definition": definition})
    return found


def _strings(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _named(rows: Any, member: str) -> set[str]:
    """The strings that stand under a member in a list of objects."""
    found = [row.get(member) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return {value for value in found if isinstance(value, str)}


def _statement(rest: dict[str, Any], base: str, discovery: dict[str, Any]) -> dict[str, Any]:
    security: dict[str, Any] = {
        "cors": True,
        "service": [
            {
                "coding": [
                    {
                        "system": "http://terminology.hl7.org/CodeSystem/restful-security-service",
                        "code": "SMART-on-FHIR",
                    }
                ]
            }
        ],
    }
    uris = [
        {"url": short, "valueUri": discovery[name]} for name, short in _ENDPOINTS.items() if isinstance(discovery.get(name), str)
    ]
    if uris:
        security = {"extension": [{"url": _OAUTH, "extension": uris}], **security}
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": "2026-01-01",
        "kind": "instance",
        "software": {"name": "FHIRShield", "version": __version__},
        "implementation": {"description": "A FHIR server behind FHIRShield", "url": base},
        "fhirVersion": "4.0.1",
        "format": ["application/fhir+json", "json"],
        "patchFormat": ["application/json-patch+json"],
        "rest": [{"mode": "server", "security": security, **rest}],
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return not value.startswith("http") or bool(urlsplit(value).netloc)
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _view(body: bytes, content_type: str) -> View:
    return View(200, (("Content-Type", content_type),), body, Reason.PERMITTED, Tally())
