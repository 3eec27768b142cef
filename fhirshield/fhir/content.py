"""A resource as R4's model has it: is every element one that it knows, and what does it name?

For what callers write: what the model does not know could not be judged, so it is not forwarded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from fhirshield.fhir.definitions import Element, resource_types, type_of
from fhirshield.fhir.reference import Literal, literal

Primitive = tuple[str, str, str, Any]
"""(element path without indices, FHIRPath with them, datatype, value)"""


class Misfit(Exception):
    """Something stands where R4 has nothing like it; carries its FHIRPath."""


def primitives(resource: Any) -> Iterator[Primitive]:
    """Every primitive value of a resource, those of embedded resources included. Raises Misfit."""
    name = resource.get("resourceType") if type(resource) is dict else None
    if type(name) is not str or name not in resource_types():
        raise Misfit("Resource")
    yield from _object(resource, name, name, name)


def _object(node: dict[str, Any], kind: str, plain: str, place: str) -> Iterator[Primitive]:
    known = type_of(kind)
    assert known is not None
    if not node:  # nothing is ever empty (FHIR R4 §2.6.2.1)
        raise Misfit(place)
    chosen: dict[str, str] = {}
    for name, value in node.items():
        element = known.elements.get(name.removeprefix("_"))
        if name == "resourceType" and known.kind == "resource":
            continue
        here = f"{place}.{name.removeprefix('_')}"
        if element is None or (name.startswith("_") and not element.primitive):
            raise Misfit(here)
        if element.choice and chosen.setdefault(element.choice, element.name) != element.name:
            raise Misfit(here)
        yield from _values(value, element, f"{plain}.{element.name}", here, sibling=name.startswith("_"))


def _values(value: Any, element: Element, plain: str, place: str, *, sibling: bool) -> Iterator[Primitive]:
    if element.many is not (type(value) is list) or value == []:
        raise Misfit(place)
    for index, one in enumerate(value) if element.many else ((None, value),):
        here = place if index is None else f"{place}[{index}]"
        if one is None and element.many and element.primitive:
            continue
        if sibling:
            if type(one) is not dict:
                raise Misfit(here)
            yield from _object(one, "Element", plain, here)
        elif element.primitive:
            if type(one) is dict or type(one) is list or one is None:
                raise Misfit(here)
            yield plain, here, element.type, one
        elif type(one) is not dict:
            raise Misfit(here)
        elif element.type == "Resource":
            name = one.get("resourceType")
            if type(name) is not str or name not in resource_types():
                raise Misfit(here)
            yield from _object(one, name, plain, here)
        else:
            yield from _object(one, element.type, plain, here)


# --- what it names ------------------------------------------------------------------------------------------------------

_ELSEWHERE = re.compile(r"#|urn:[a-z0-9][a-z0-9-]*:", re.IGNORECASE)
_URLS = {"uri", "url", "canonical"}

Naming = tuple[str, str, Literal | str]
"""(element path, FHIRPath, what is named; the text of a reference that cannot be read one way)"""


def named(resource: Any, bases: tuple[str, ...]) -> Iterator[Naming]:
    """What of the server known as ``bases`` a resource names: references, and URLs that are literal ones. Raises Misfit."""
    hosts = {urlsplit(base).netloc.lower() for base in bases}
    for plain, place, kind, value in primitives(resource):
        if type(value) is not str:
            continue
        if plain.endswith(".reference") and kind == "string":
            found = literal(value, bases)
            if found is not None or not _is_elsewhere(value, hosts):
                yield plain, place, found or value
        elif kind in _URLS:
            found = literal(value, bases)
            if found is not None:
                yield plain, place, found


def _is_elsewhere(text: str, hosts: set[str]) -> bool:
    """Whether a reference certainly names nothing of this server: contained, a URN, or at another host."""
    if _ELSEWHERE.match(text):
        return True
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and parts.netloc != "" and parts.netloc.lower() not in hosts
