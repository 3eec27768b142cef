"""A history Bundle's entries, taken apart (FHIR R4 §3.1.0.9). What an upstream may send besides is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fhirshield.fhir.reference import Literal, literal


@dataclass(frozen=True, slots=True)
class Version:
    """One entry of a history; ``resource`` is None for a deletion."""

    name: Literal
    version: str
    resource: Any
    method: str
    status: str
    modified: str


def versions_of(entries: Any) -> list[Version]:
    """Those of the entries that can be read."""
    found = [version_of(entry) for entry in entries if type(entry) is dict] if type(entries) is list else []
    return [version for version in found if version is not None]


def version_of(entry: dict[str, Any]) -> Version | None:
    """One entry; None where it names no resource."""
    request, response, resource = _object(entry.get("request")), _object(entry.get("response")), entry.get("resource")
    method, status, modified = _text(request, "method"), _text(response, "status"), _text(response, "lastModified")
    etag = _text(response, "etag").removeprefix("W/").strip('"')
    if type(resource) is not dict or method == "DELETE":
        place, _, number = _text(request, "url").partition("/_history/")
        name = literal("/".join(place.split("/")[-2:]))
        return Version(name, etag or number, None, "DELETE", status, modified) if name else None
    meta = _object(resource.get("meta"))
    name = literal(f"{resource.get('resourceType')}/{resource.get('id')}")
    return Version(name, _text(meta, "versionId") or etag, resource, method, status, modified) if name else None


def _object(value: Any) -> dict[str, Any]:
    return value if type(value) is dict else {}


def _text(node: dict[str, Any], name: str) -> str:
    value = node.get(name)
    return value if type(value) is str else ""
