"""``_include`` and ``_revinclude`` (FHIR R4 §3.1.1.5.4): what is asked, and whether an included resource is reached by it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from fhirshield.fhir.definitions import resource_types
from fhirshield.fhir.reference import Literal, literal
from fhirshield.fhir.search_parameters import Reader, reader, search_parameter, search_parameters

_VALUE = re.compile(r"([A-Z][A-Za-z]+):([A-Za-z_][A-Za-z0-9\-]*|\*)(?::([A-Z][A-Za-z]+))?\Z")


@dataclass(frozen=True, slots=True)
class Include:
    """One of them: references of ``source`` by ``parameter`` (``*``: any) to ``target`` (empty: any type)."""

    reverse: bool
    iterate: bool
    source: str
    """A type; ``*`` for any."""
    parameter: str
    target: str


def parse(name: str, modifier: str, value: str) -> Include | None:
    """What a parameter asks for; None where it is not one of R4's."""
    if modifier not in {"", "iterate", "recurse"}:
        return None
    reverse, iterate = name == "_revinclude", modifier != ""
    if value == "*" and not reverse:
        return Include(reverse, iterate, "*", "*", "")
    found = _VALUE.match(value)
    if found is None or found[1] not in resource_types() or (found[3] and found[3] not in resource_types()):
        return None
    if found[2] != "*":
        known = search_parameter(found[1], found[2])
        if known is None or known.type != "reference" or not known.ways:
            return None
    return Include(reverse, iterate, found[1], found[2], found[3] or "")


@cache
def _reader(source: str, parameter: str) -> Reader:
    names = search_parameters(source) if parameter == "*" else (parameter,)
    known = [found for name in names if (found := search_parameter(source, name)) and found.type == "reference"]
    return reader(tuple(dict.fromkeys(way for one in known for way in one.ways if way.datatype == "Reference")))


def names_by(include: Include, resource: Any, bases: tuple[str, ...]) -> set[Literal]:
    """What a resource names by an include's parameter; nothing where it is not of its source."""
    kind = resource.get("resourceType")
    if include.source not in {"*", kind}:
        return set()
    found = set()
    for _, value in _reader(kind, include.parameter)(resource):
        named = literal(value.get("reference"), bases) if isinstance(value, dict) else None
        if named is not None and include.target in {"", named.type}:
            found.add(named)
    return found


def reached(
    includes: Iterable[Include], matches: dict[Literal, Any], candidates: dict[Literal, Any], bases: tuple[str, ...]
) -> list[Literal]:
    """The candidates that the includes lead to from the matches, as both are shown; in the order of the candidates."""
    found: dict[Literal, Any] = {}
    first = True
    while True:
        from_here = matches if first else {**matches, **found}
        rows = [include for include in includes if first or include.iterate]
        wanted = {named for row in rows if not row.reverse for r in from_here.values() for named in names_by(row, r, bases)}
        more = {
            key: resource
            for key, resource in candidates.items()
            if key not in found
            and (key in wanted or any(names_by(row, resource, bases) & from_here.keys() for row in rows if row.reverse))
        }
        if not more:
            return [key for key in candidates if key in found]
        found |= more
        first = False
