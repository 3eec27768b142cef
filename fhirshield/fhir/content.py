"""A resource as R4's model has it: is every element one that it knows, and what does it name?

For what callers write: what the model does not know could not be judged, so it is not forwarded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from fhirshield.fhir.definitions import Element, resource_types, type_of
from fhirshield.fhir.reference import Literal, literal

Primitive = tuple[str, str, str, Any]
"""(element path without indices, FHIRPath with them, datatype, value)"""


MOST_CONTAINED = 500


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
            if not _is_a(one, element.type):
                raise Misfit(here)
            yield plain, here, element.type, one
        elif type(one) is not dict:
            raise Misfit(here)
        elif element.type == "Resource":
            name = one.get("resourceType")
            if type(name) is not str or name not in resource_types():
                raise Misfit(here)
            if element.name == "contained":
                _check_contained(one, value, here)
            yield from _object(one, name, plain, here)
        else:
            yield from _object(one, element.type, plain, here)


_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}\Z")


def _check_contained(inner: dict[str, Any], beside: list[Any], place: str) -> None:
    """A contained resource has an id of its own that can be read one way, and contains none (dom-2)."""
    name = inner.get("id")
    twins = sum(type(one) is dict and one.get("id") == name for one in beside) if len(beside) <= MOST_CONTAINED else 2
    if not isinstance(name, str) or not _ID.match(name) or twins > 1 or "contained" in inner:
        raise Misfit(place)


_LEAST = {"integer": -(1 << 31), "positiveInt": 1, "unsignedInt": 0}
MOST_DIGITS = 100
"""Of a decimal written out: servers choke on more (FHIR R4 asks for 18)."""


def _is_plain(value: Decimal) -> bool:
    _, digits, exponent = value.as_tuple()
    return isinstance(exponent, int) and len(digits) <= MOST_DIGITS and abs(exponent) <= MOST_DIGITS


def _is_a(value: Any, kind: str) -> bool:
    """Whether a JSON value is one that a primitive type can have (FHIR R4 §2.6.2.2)."""
    if kind == "boolean":
        return type(value) is bool
    if kind in _LEAST:
        return type(value) is int and _LEAST[kind] <= value < 1 << 31
    if kind == "decimal":
        return (type(value) is int and abs(value) < 10**MOST_DIGITS) or (isinstance(value, Decimal) and _is_plain(value))
    return type(value) is str and value != ""


# --- what it names ------------------------------------------------------------------------------------------------------

_ELSEWHERE = re.compile(r"#(?:[A-Za-z0-9\-.]{1,64})?\Z|urn:uuid:[0-9a-f-]{36}\Z|urn:oid:[0-2](?:\.[0-9]+)+\Z")
_ABSOLUTE = re.compile(r"https?://([A-Za-z0-9.\-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~%\-]+)*\Z")
"""Plain: no user, no query, no fragment, which servers make searches of."""
_URLS = {"uri", "url", "canonical"}

Naming = tuple[str, str, Literal | str]
"""(element path, FHIRPath, what is named; the text of a reference that cannot be read one way)"""


def named(resource: Any, bases: tuple[str, ...]) -> Iterator[Naming]:
    """What of the server known as ``bases`` a resource names: references, and URLs that are literal ones. Raises Misfit."""
    hosts = {_host(base) for base in bases}
    for plain, place, kind, value in primitives(resource):
        if type(value) is not str:
            continue
        if plain.endswith(".reference") and kind == "string":
            found = literal(value, bases)
            if found is not None or not _is_elsewhere(value, hosts):
                yield plain, place, found or value
        elif kind in _URLS:
            found = literal(re.split(r"[|#]", value)[0], bases)
            if found is not None or _is_below(value, bases):
                yield plain, place, found or value


def _is_below(text: str, bases: tuple[str, ...]) -> bool:
    """Whether a URL leads to something of this server that is no plain resource: a search, an operation."""
    for base in bases:
        if text.startswith((base + "/", base + "?")):
            return True
    return re.split(r"[/?$]", text)[0] in resource_types() and ("/" in text or "?" in text)


def _is_elsewhere(text: str, hosts: set[str]) -> bool:
    """Whether a reference certainly names nothing of this server: contained, a URN, or at another host."""
    if _ELSEWHERE.match(text):
        return True
    return _ABSOLUTE.match(text) is not None and _host(text) not in hosts


def _host(url: str) -> str:
    """Host and port, the default one said."""
    parts = urlsplit(url)
    return f"{(parts.hostname or '').lower()}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
