"""One look over a resource: every coding and every reference in it, whatever element they stand in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fhirshield.fhir.json import encode
from fhirshield.fhir.v3 import system_of

Code = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Glance:
    """What a resource, with all that it contains, names."""

    codings: frozenset[Code]
    """(system as written, code); the system is empty where none is given. Security labels are not among them."""
    references: frozenset[str]
    """The texts of all literal references."""
    security: frozenset[Code]
    """``meta.security`` of the resource and of those within it; v3 systems by their first name."""
    worded: bool
    """Some concept is in words alone."""


Codes = tuple[bytes, ...]
"""Codes of whatever systems, as JSON writes them between the quotes; one with escapes ends early, in a backslash."""
_CODE = re.compile(rb'ode":"([^"]*)"')
"""A ``code`` or a ``valueCode``; whatever else ends so may be taken for one, which costs no more than a closer look."""


def within(resource: Any) -> Iterator[Any]:
    """A resource and those in it: contained, in Bundles, in Parameters."""
    waiting: list[Any] = [resource]
    while waiting:
        node = waiting.pop()
        if type(node) is dict:
            if "resourceType" in node:
                yield node
            waiting += [one for one in node.values() if type(one) is dict or type(one) is list]
        else:
            waiting += [one for one in node if type(one) is dict or type(one) is list]


def codes_of(resource: Any, text: bytes | None = None) -> Codes | None:
    """All codes in a resource, whatever their system, at the first glance; None where a closer look is needed.

    Taken from its ``text`` as ``encode`` writes it, which is many times as fast as walking it; what carries labels or holds other
    resources needs the look.
    """
    text = text or encode(resource)
    return None if b'"security"' in text or text.count(b'"resourceType"') != 1 else tuple(_CODE.findall(text))


def texts_within(text: bytes, resources: list[Any]) -> list[bytes] | None:
    """The text of each resource of a Bundle's, in their order, with what follows it there; None where they cannot be told apart.

    Nothing that stands between two resources is a code.
    """
    parts = text.split(b'"resource":{')
    return parts[1:] if len(parts) == len(resources) + 1 else None


def glance(resource: Any) -> Glance:
    """Look over a resource."""
    codings: set[Code] = set()
    references: set[str] = set()
    security: set[Code] = set()
    worded = False
    waiting: list[Any] = [resource]
    while waiting:
        node = waiting.pop()
        if type(node) is list:
            waiting += [one for one in node if type(one) is dict or type(one) is list]
            continue
        code = node.get("code")
        if type(code) is str:
            system = node.get("system")
            codings.add((system if type(system) is str else "", code))
        text = node.get("reference")
        if type(text) is str:
            references.add(text)
        if not worded:
            worded = _is_worded(node)
        for name, value in node.items():
            if name == "meta" and type(value) is dict:
                security |= _labels(value.get("security"))
                waiting += [one for key, one in value.items() if key != "security" and (type(one) is dict or type(one) is list)]
            elif type(value) is dict or type(value) is list:
                waiting.append(value)
            elif name == "valueCode" and type(value) is str:
                codings.add(("", value))
    return Glance(frozenset(codings), frozenset(references), frozenset(security), worded)


def _is_worded(node: Any) -> bool:
    """Whether an object is a concept in words alone, or a coding without its code."""
    if type(node.get("text")) is str and not node.get("coding"):
        return True
    return "code" not in node and "value" not in node and "display" in node and "reference" not in node and "identifier" not in node


def _labels(codings: Any) -> set[Code]:
    rows = codings if type(codings) is list else []
    found = ((row.get("system"), row.get("code")) for row in rows if type(row) is dict)
    return {(system_of(system) if type(system) is str else "", code) for system, code in found if type(code) is str}
