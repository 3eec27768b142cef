"""One look over a resource: every coding and every reference in it, whatever element they stand in."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from fhirshield.fhir.definitions import concept_elements
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
    """Some concept is in words alone; notes, names and narrative are none."""


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


def codes_of(resource: Any) -> Codes | None:
    """All codes in a resource, whatever their system, at the first glance; None where a closer look is needed.

    Taken from its text, which is many times as fast as walking it; what carries labels or holds other resources needs the look.
    """
    return None if _is_more(resource) else tuple(_CODE.findall(encode(resource)))


def _is_more(resource: Any) -> bool:
    """Whether a resource carries labels, or holds others (FHIR R4: contained, in a Bundle's entries, in Parameters)."""
    kind = resource.get("resourceType")
    if "contained" in resource or type(kind) is not str or kind in HOLDING:
        return True
    meta = resource.get("meta")
    return type(meta) is dict and "security" in meta


HOLDING = {"Bundle": "entry", "Parameters": "parameter"}
"""Types that hold others, and in which element."""


class Page:
    """A Bundle's resources with the text that they came in, as ``encode`` writes it. Nothing that stands between them is a code."""

    def __init__(self, text: bytes, resources: list[Any]) -> None:
        self._text = text
        self._held = resources
        self._places = {id(one): place for place, one in enumerate(resources)}
        self._closer: Collection[int] | None = None

    def needs_a_look(self, resource: Any, telling: Callable[[Codes], Codes]) -> bool:
        """Whether a resource carries labels, holds others, or names a code that may tell; True for one that is none of the page's.

        ``telling`` gives those of some codes that may; it is asked once, of all codes of the page.
        """
        if self._closer is None:
            more = {place for place, one in enumerate(self._held) if _is_more(one)}
            self._closer = {-1, *more, *self._naming(telling(tuple(set(_CODE.findall(self._text)))))}
        return self._places.get(id(resource), -1) in self._closer

    def _naming(self, codes: Codes) -> Collection[int]:
        """The places of those that name any of these codes; all where they cannot be told apart in the text."""
        starts = list(_places(self._text, b'"resource":{')) if codes else []
        if codes and len(starts) != len(self._held):
            return range(len(self._held))
        return {bisect_right(starts, at) - 1 for code in codes for at in _places(self._text, b'ode":"%b"' % code)}


def _places(text: bytes, part: bytes) -> Iterator[int]:
    """Where a text has a part."""
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)


def glance(resource: Any) -> Glance:
    """Look over a resource."""
    codings: set[Code] = set()
    references: set[str] = set()
    security: set[Code] = set()
    worded = False
    concepts = concept_elements()
    waiting: list[Any] = [resource]
    for node in waiting:  # which grows
        for name, value in node.items():
            kind = type(value)
            if kind is str:
                if name == "code":
                    system = node.get("system")
                    codings.add((system if type(system) is str else "", value))
                elif name == "reference":
                    references.add(value)
                elif name == "valueCode":
                    codings.add(("", value))
            elif kind is dict:
                if name == "meta":
                    security |= _labels(value.get("security"))
                    value = {key: one for key, one in value.items() if key != "security"}
                elif not worded and name in concepts:
                    worded = _is_worded(value)
                waiting.append(value)
            elif kind is list:
                if not worded and name in concepts:
                    worded = any(_is_worded(one) for one in value if type(one) is dict)
                waiting += [one if type(one) is dict else {"": one} for one in value if type(one) is dict or type(one) is list]
    return Glance(frozenset(codings), frozenset(references), frozenset(security), worded)


def _is_worded(node: Any) -> bool:
    """Whether a concept is in words alone, or a coding without its code."""
    if type(node.get("text")) is str and not node.get("coding"):
        return True
    return "code" not in node and "value" not in node and "display" in node and "reference" not in node and "identifier" not in node


def _labels(codings: Any) -> set[Code]:
    rows = codings if type(codings) is list else []
    found = ((row.get("system"), row.get("code")) for row in rows if type(row) is dict)
    return {(system_of(system) if type(system) is str else "", code) for system, code in found if type(code) is str}
