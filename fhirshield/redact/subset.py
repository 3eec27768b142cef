"""``_elements`` and ``_summary`` (FHIR R4 §3.1.1.5.8, §3.1.1.5.9), of what a caller may see; what leaves in part is marked so."""

from __future__ import annotations

from functools import cache
from typing import Any

from fhirshield.fhir.definitions import kind_of, type_of
from fhirshield.model import Shape
from fhirshield.redact.body import SUBSETTED, is_mark

_ALWAYS = frozenset({"resourceType", "id", "meta", "implicitRules"})


def subset(resource: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """The part of a redacted resource that was asked for, marked SUBSETTED."""
    kind = resource["resourceType"]
    if shape.summary == "data":
        part = {name: value for name, value in resource.items() if name != "text"}
    elif shape.summary == "text":
        part = _kept(resource, _ALWAYS | {"text"} | _needed(kind))
    elif shape.summary == "true":
        part = _summary(resource, kind)
    else:
        part = _kept(resource, _ALWAYS | shape.elements | _needed(kind))
    meta = dict(part.get("meta", {}))
    tags = meta.get("tag")
    meta["tag"] = [*(tag for tag in tags if not is_mark(tag, SUBSETTED)), SUBSETTED] if type(tags) is list else [SUBSETTED]
    return {**part, "meta": meta}


def _kept(resource: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in resource.items() if name.removeprefix("_") in names}


@cache
def _needed(kind: str) -> frozenset[str]:
    """Elements that may not miss, and those that change what others mean."""
    known = type_of(kind)
    assert known is not None
    return frozenset(e.name for e in known.elements.values() if e.min or (e.modifier and e.name != "implicitRules"))


def _summary(node: dict[str, Any], kind: str) -> dict[str, Any]:
    known = type_of(kind)
    assert known is not None
    part: dict[str, Any] = {}
    for name, value in node.items():
        element = known.elements.get(name.removeprefix("_"))
        if name == "resourceType" or name == "id" or (element is not None and (element.summary or element.min)):
            below = element is not None and kind_of(element.type) == "backbone" and not name.startswith("_")
            part[name] = _below(value, element.type) if below and element is not None else value
    return part


def _below(value: Any, kind: str) -> Any:
    if type(value) is list:
        return [_below(one, kind) for one in value]
    return _summary(value, kind) if type(value) is dict else value
