"""An operation's request (FHIR R4 §3.2.0.1) -> what is asked: simple parameters as such, a resource as content.

Some are other interactions by another name, and go on as these: ``$meta`` is a read, ``$docref`` and ``$lastn`` are searches.
"""

from __future__ import annotations

import re
from dataclasses import replace
from decimal import Decimal
from typing import Any

from fhirshield.errors import MalformedFhir
from fhirshield.fhir import json as fhir_json
from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.fhir.operations import known
from fhirshield.fhir.page import Parameter
from fhirshield.fhir.reference import rebased
from fhirshield.model import Denial, Reason, Refused
from fhirshield.receive.content import MARGIN
from fhirshield.receive.headers import JSON_TYPES, Headers, malformed, media_type
from fhirshield.settings import Limits

_NAME = re.compile(r"_?[A-Za-z][A-Za-z0-9\-]{0,99}\Z")
MOST_EACH = 100
"""Of ``$lastn``."""
SUMMARY_OF_EPISODES = "http://loinc.org|34133-9"
"""What ``$docref`` is for where no type is asked (US Core 7.0 ``$docref``)."""


def operation_of(interaction: Interaction, body: bytes, headers: Headers, bases: tuple[str, str], limits: Limits) -> Interaction:
    """The operation with its parameters and content. Raises Refused."""
    for parameter in interaction.parameters:
        if parameter.modifier:
            raise malformed("a parameter of an operation has no modifier")
    if body:
        interaction = _with_body(interaction, body, headers, bases, limits)
    found = known(interaction.operation, interaction.type, interaction.id)
    if found is None:
        return interaction
    if found.resource is not (interaction.content is not None):
        text = "takes a resource, by POST" if found.resource else "takes no resource"
        raise malformed(f"`{found.name}` {text}")
    name = found.name
    if name == "$meta" and not interaction.parameters:
        return replace(interaction, kind=Kind.READ)
    if name == "$lastn":
        return _last(interaction)
    for parameter in interaction.parameters:
        if parameter.name not in found.parameters:
            text = f"parameter `{parameter.name}` of `{name}` is unknown or not served"
            raise Refused(Denial(400, Reason.UNKNOWN_PARAMETER, "not-supported", text))
    return _documents(interaction) if name == "$docref" else interaction


# --- bodies -------------------------------------------------------------------------------------------------------------


def _with_body(interaction: Interaction, body: bytes, headers: Headers, bases: tuple[str, str], limits: Limits) -> Interaction:
    if media_type(headers) not in JSON_TYPES:
        raise Refused(Denial(415, Reason.MALFORMED_REQUEST, "not-supported", "operations take FHIR JSON: application/fhir+json"))
    try:
        value = fhir_json.decode_strictly(body, max(8, limits.depth - MARGIN))
        again = fhir_json.encode(value)
        moved = rebased(again, *bases)
        value = value if moved == again else fhir_json.decode(moved, limits.depth)
    except MalformedFhir as error:
        raise malformed(f"the body is {error}") from None
    if type(value) is not dict or type(value.get("resourceType")) is not str:
        raise malformed("the body is no resource")
    if value["resourceType"] != "Parameters" or (known(interaction.operation, interaction.type, interaction.id) is None):
        return replace(interaction, content=value)
    parameters, resource = _taken_apart(value)
    return replace(interaction, parameters=(*interaction.parameters, *parameters), content=resource)


def _taken_apart(body: dict[str, Any]) -> tuple[list[Parameter], Any]:
    """The simple parameters of a Parameters resource, and the one resource that it may hold."""
    rows = body.get("parameter", [])
    if type(rows) is not list or set(body) - {"resourceType", "id", "meta", "parameter"}:
        raise malformed("the body is not Parameters as R4 has them")
    parameters, resources = [], []
    for row in rows:
        name = row.get("name") if type(row) is dict else None
        rest = {key: value for key, value in row.items() if key != "name"} if type(row) is dict else {}
        if type(name) is not str or not _NAME.match(name) or len(rest) != 1:
            raise malformed("a parameter has a name and one value")
        ((key, value),) = rest.items()
        if key == "resource" and name == "resource" and type(value) is dict:
            resources.append(value)
        elif key.startswith("value") and isinstance(value, (str, bool, int, Decimal)):
            text = str(value).lower() if isinstance(value, bool) else str(value)
            if any(ord(char) < 32 or ord(char) == 127 for char in text):
                raise malformed("a parameter holds a control character")
            parameters.append(Parameter(name, "", text))
        else:
            raise malformed(f"parameter `{name}` is not one that can be judged")
    if len(resources) > 1:
        raise malformed("more than one resource")
    return parameters, resources[0] if resources else None


# --- other interactions by another name -----------------------------------------------------------------------------------


def _last(interaction: Interaction) -> Interaction:
    """``$lastn`` (FHIR R4 Observation §10.1.18.2): a search, of whose matches the newest of each code count."""
    rest = tuple(p for p in interaction.parameters if p.name != "max")
    most = [p.value for p in interaction.parameters if p.name == "max"] or ["1"]
    if len(most) > 1 or not re.fullmatch(r"[0-9]{1,3}", most[0]) or not 0 < int(most[0]) <= MOST_EACH:
        raise malformed(f"`max` is a number from 1 to {MOST_EACH}")
    if not any(p.name in {"patient", "subject"} for p in rest):
        raise malformed("`$lastn` takes `patient` or `subject`")
    if shaping := [
        p.name for p in rest if p.name in {"_count", "_sort", "_total", "_summary", "_elements", "_include", "_revinclude", "_page"}
    ]:
        raise malformed(f"`{shaping[0]}` does not go with `$lastn`")
    return replace(interaction, kind=Kind.SEARCH_TYPE, parameters=rest, most=int(most[0]), by_post=False)


def _documents(interaction: Interaction) -> Interaction:
    """``$docref`` (US Core): a search for documents that exist; none is made on demand."""
    given = {p.name: p.value for p in interaction.parameters}
    if "patient" not in given or len(given) < len(interaction.parameters):
        raise malformed("`$docref` takes one `patient`, and each other parameter once")
    if given.get("on-demand", "false") != "false":
        raise Refused(Denial(400, Reason.NOT_SERVED, "not-supported", "`on-demand` documents are not made here"))
    asked = [("patient", given["patient"]), ("type", given.get("type", SUMMARY_OF_EPISODES))]
    asked += [("period", f"{prefix}{given[name]}") for name, prefix in (("start", "ge"), ("end", "le")) if name in given]
    asked += [("_count", given["_count"])] if "_count" in given else []
    parameters = tuple(Parameter(name, "", value) for name, value in asked)
    return replace(interaction, kind=Kind.SEARCH_TYPE, parameters=parameters, by_post=False)
