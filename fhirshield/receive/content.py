"""What a write brings: the body as a value, in the upstream's terms, or a refusal that says what is wrong with it."""

from __future__ import annotations

from typing import Any

from fhirshield.errors import MalformedFhir
from fhirshield.fhir import json as fhir_json
from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.fhir.reference import rebased
from fhirshield.model import Denial, Reason, Refused
from fhirshield.receive.headers import JSON_TYPES, Headers, malformed, media_type
from fhirshield.settings import Limits

PATCH = "application/json-patch+json"
MARGIN = 8
"""Levels by which a body must be flatter than an answer: what is stored comes back within Bundles."""


def content_of(interaction: Interaction, body: bytes, headers: Headers, bases: tuple[str, str], limits: Limits) -> Any:
    """The body of a create, an update or a patch. ``bases`` are our URL and the upstream's. Raises Refused."""
    kind = media_type(headers)
    if interaction.kind is Kind.PATCH:
        if kind != PATCH:
            raise _unsupported(f"a patch is JSON Patch: {PATCH}")
    elif kind not in JSON_TYPES:
        raise _unsupported("resources are taken as FHIR JSON: application/fhir+json")
    try:
        value = fhir_json.decode_strictly(body, max(8, limits.depth - MARGIN))
        ours, theirs = bases
        again = fhir_json.encode(value)
        moved = rebased(again, ours, theirs)
        value = value if moved == again else fhir_json.decode(moved, limits.depth)
    except MalformedFhir as error:
        raise malformed(f"the body is {error}") from None
    if interaction.kind is not Kind.PATCH:
        _check_resource(value, interaction)
        entries = value.get("entry") if interaction.type == "Bundle" else None
        if type(entries) is list and len(entries) > limits.entries:
            raise Refused(Denial(413, Reason.TOO_LARGE, "too-long", f"more than {limits.entries} entries"))
    return value


def _check_resource(value: Any, interaction: Interaction) -> None:
    name = value.get("resourceType") if type(value) is dict else None
    if name != interaction.type:
        raise malformed(f"the body is no {interaction.type}")
    if interaction.kind is Kind.UPDATE and interaction.id and value.get("id") != interaction.id:
        raise malformed("the id in the body is not the one in the path")


def _unsupported(text: str) -> Refused:
    return Refused(Denial(415, Reason.MALFORMED_REQUEST, "not-supported", text))
