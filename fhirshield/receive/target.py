"""The request target -> one FHIR interaction: the whole RESTful API of R4 (§3.1.0), one grammar, nothing else.

Works on raw bytes. Percent-encoding in the path is refused but for ``%24`` (the ``$`` of operations): no name or id of FHIR
needs it, and what one server decodes another compares.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import unquote_to_bytes

from fhirshield.fhir.definitions import resource_types
from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.fhir.operations import JOB
from fhirshield.fhir.page import Parameter
from fhirshield.receive.headers import malformed

MOST_PARAMETERS = 100
_PATH = re.compile(rb"(/[A-Za-z0-9\-._$*]+)*\Z")
_NAME = re.compile(r"(_?[A-Za-z][A-Za-z0-9\-.]{0,99})(?::([A-Za-z][A-Za-z0-9\-.:_]{0,99}))?\Z")
_OPERATION = re.compile(r"\$[a-z][A-Za-z0-9\-]*\Z")

Ids = Callable[[str], bool]


def segments_of(path: bytes) -> tuple[str, ...]:
    """The path below the upstream's own, as segments. Raises Refused."""
    plain = b"" if path == b"/" else path.replace(b"%24", b"$")
    if not _PATH.match(plain):
        raise malformed("the path is not a FHIR path")
    segments = tuple(plain.decode("ascii").split("/")[1:])
    if any(segment.strip(".") == "" for segment in segments):
        raise malformed("the path is not a FHIR path")
    return segments


def parameters_of(query: bytes) -> list[Parameter]:
    """Query or form body -> parameters, in order. Raises Refused."""
    if not query:
        return []
    parts = query.split(b"&")
    if len(parts) > MOST_PARAMETERS:
        raise malformed(f"more than {MOST_PARAMETERS} parameters")
    return [_parameter(part) for part in parts if part]


def _parameter(part: bytes) -> Parameter:
    raw_name, _, raw_value = part.partition(b"=")
    try:
        name = unquote_to_bytes(raw_name.replace(b"+", b" ")).decode("utf-8")
        value = unquote_to_bytes(raw_value.replace(b"+", b" ")).decode("utf-8")
    except UnicodeDecodeError:
        raise malformed("a parameter is not UTF-8") from None
    if any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise malformed("a parameter holds a control character")
    found = _NAME.match(name)
    if not found:
        raise malformed("a parameter's name is not one of FHIR's")
    return Parameter(found[1], found[2] or "", value)


def interaction_of(method: str, segments: tuple[str, ...], parameters: list[Parameter], is_id: Ids) -> Interaction:
    """The one interaction that method, path and parameters name. Raises Refused."""
    head = method == "HEAD"
    verb = "GET" if head else method
    for shape in (_base, _type, _instance):
        found = shape(verb, segments, is_id)
        if found:
            kind, place = found
            return Interaction(
                kind,
                type=place.get("type", ""),
                id=place.get("id", ""),
                version=place.get("version", ""),
                operation=place.get("operation", ""),
                compartment=place.get("compartment", ""),
                parameters=tuple(parameters),
                head=head,
                by_post=verb == "POST" and ("search" in kind or kind is Kind.OPERATION),
            )
    raise malformed("no FHIR interaction has this method and path")


Found = tuple[Kind, dict[str, str]] | None


def _base(verb: str, segments: tuple[str, ...], is_id: Ids) -> Found:
    if segments == (".well-known", "smart-configuration"):
        return (Kind.SMART_CONFIGURATION, {}) if verb == "GET" else None
    if not segments:
        whole = {"GET": Kind.SEARCH_SYSTEM, "POST": Kind.BATCH}.get(verb)
        return (whole, {}) if whole else None
    if len(segments) == 1:
        only = segments[0]
        if only == JOB and verb in {"GET", "DELETE"}:
            return Kind.OPERATION, {"operation": only}
        if _OPERATION.match(only) and verb in {"GET", "POST"}:
            return Kind.OPERATION, {"operation": only}
        table: dict[tuple[str, str], Kind] = {
            ("GET", "metadata"): Kind.CAPABILITIES,
            ("GET", "_history"): Kind.HISTORY_SYSTEM,
            ("POST", "_search"): Kind.SEARCH_SYSTEM,
        }
        kind = table.get((verb, only))
        return (kind, {}) if kind else None
    return None


def _type(verb: str, segments: tuple[str, ...], is_id: Ids) -> Found:
    if len(segments) not in {1, 2}:
        return None
    name = segments[0]
    if name not in resource_types():
        raise malformed("the path names no resource type of R4")
    if len(segments) == 1:
        table = {
            "GET": Kind.SEARCH_TYPE,
            "POST": Kind.CREATE,
            "PUT": Kind.UPDATE,
            "PATCH": Kind.PATCH,
            "DELETE": Kind.DELETE,
        }
        kind = table.get(verb)
        return (kind, {"type": name}) if kind else None
    tail = segments[1]
    if _OPERATION.match(tail) and verb in {"GET", "POST"}:
        return Kind.OPERATION, {"type": name, "operation": tail}
    if tail == "_search":
        return (Kind.SEARCH_TYPE, {"type": name}) if verb == "POST" else None
    if tail == "_history":
        return (Kind.HISTORY_TYPE, {"type": name}) if verb == "GET" else None
    if not is_id(tail):
        raise malformed("the id is not one that this server can have")
    table = {"GET": Kind.READ, "PUT": Kind.UPDATE, "PATCH": Kind.PATCH, "DELETE": Kind.DELETE}
    kind = table.get(verb)
    return (kind, {"type": name, "id": tail}) if kind else None


def _instance(verb: str, segments: tuple[str, ...], is_id: Ids) -> Found:
    if len(segments) not in {3, 4}:
        return None
    name, key, tail = segments[:3]
    if name not in resource_types() or not is_id(key):
        raise malformed("the path names no resource of R4")
    place = {"type": name, "id": key}
    if len(segments) == 4:
        if verb == "GET" and tail == "_history" and is_id(segments[3]):
            return Kind.VREAD, {**place, "version": segments[3]}
        if verb == "POST" and segments[3] == "_search" and tail in resource_types():
            return Kind.SEARCH_COMPARTMENT, {"type": tail, "compartment": f"{name}/{key}"}
        return None
    if _OPERATION.match(tail) and verb in {"GET", "POST"}:
        return Kind.OPERATION, {**place, "operation": tail}
    if tail == "_history":
        return (Kind.HISTORY_INSTANCE, place) if verb == "GET" else None
    if verb == "GET" and (tail == "*" or tail in resource_types()):
        return Kind.SEARCH_COMPARTMENT, {"type": tail, "compartment": f"{name}/{key}"}
    return None
