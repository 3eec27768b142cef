"""The search parameters of R4: what each is called, which elements it reads, and how to read them from a resource."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from fhirshield.fhir.definitions import tables, type_of

RESULT_PARAMETERS = frozenset({"_sort", "_count", "_include", "_revinclude", "_summary", "_total", "_elements",
                               "_contained", "_containedType"})  # fmt: skip
"""Parameters that shape the answer and select nothing (FHIR R4 §3.1.1.5)."""

Typed = tuple[str, Any]
"""A datatype name and a value of it."""


@dataclass(frozen=True, slots=True)
class Way:
    """One path of a parameter's expression: ``(name, field, value)`` a step; ``target`` limits a Reference's type."""

    steps: tuple[tuple[str, str, str], ...]
    target: str
    datatype: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(step[0] for step in self.steps)


@dataclass(frozen=True, slots=True)
class SearchParameter:
    """A parameter as one resource type knows it."""

    code: str
    type: str
    """``token string reference date quantity number uri composite special``"""
    ways: tuple[Way, ...]
    targets: tuple[str, ...]
    components: tuple[str, ...]


@cache
def search_parameter(resource_type: str, code: str) -> SearchParameter | None:
    """The R4 parameter of that name on that type (or on every type), or None."""
    table = tables()["search"]
    for base in (resource_type, "DomainResource", "Resource"):
        row = table.get(base, {}).get(code)
        if row is not None:
            ways = tuple(_way(steps, resource_type) for steps in row[1])
            return SearchParameter(code, row[0], ways, tuple(row[2]), tuple(row[3] if len(row) > 3 else ()))
    return None


@cache
def search_parameters(resource_type: str) -> tuple[str, ...]:
    """The names of all parameters of a type, those of every type included."""
    table = tables()["search"]
    names = {*table.get(resource_type, {}), *table["DomainResource"], *table["Resource"]}
    return tuple(sorted(names))


def subject_ways(resource_type: str) -> tuple[Way, ...]:
    """The paths that say whom a resource of this type is about; empty for types without a patient."""
    row = tables()["subjects"].get(resource_type)
    return tuple(_way(steps, resource_type) for steps in row[1]) if row else ()


def subject_parameter(resource_type: str) -> str:
    """The search parameter that narrows this type to a patient, or empty."""
    row = tables()["subjects"].get(resource_type)
    return str(row[0]) if row else ""


_STEP = re.compile(r"(\w+)(?:\[(\w+)=([^\]]*)\])?\Z")


def _way(steps: list[str], resource_type: str) -> Way:
    target = ""
    if steps and steps[-1].startswith("~"):
        target, steps = steps[-1][1:], steps[:-1]
    parsed = []
    current = resource_type
    for step in steps:
        found = _STEP.match(step)
        assert found is not None, step
        parsed.append((found[1], found[2] or "", found[3] or ""))
        owner = type_of(current)
        assert owner is not None
        current = owner.elements[found[1]].type
    return Way(tuple(parsed), target, current)


Reader = Callable[[Any], list[Typed]]


def reader(ways: tuple[Way, ...]) -> Reader:
    """A function from a resource to the values at these paths, each with its datatype; absent values yield nothing."""
    if len(ways) == 1 and len(ways[0].steps) == 1 and not ways[0].steps[0][1]:
        return _single(ways[0].steps[0][0], ways[0].datatype)
    compiled = [(way.steps, way.datatype) for way in ways]

    def read(resource: Any) -> list[Typed]:
        found: list[Typed] = []
        for steps, datatype in compiled:
            nodes = [resource]
            for name, field, value in steps:
                nodes = _step(nodes, name, field, value)
                if not nodes:
                    break
            else:
                for node in nodes:
                    found.append((datatype, node))
        return found

    return read


def _single(name: str, datatype: str) -> Reader:
    """The common case: one element of the resource itself."""
    sibling = "_" + name

    def read(resource: Any) -> list[Typed]:
        value = resource.get(name)
        if value is None:
            return [(datatype, None)] if sibling in resource else []
        return [(datatype, one) for one in value] if type(value) is list else [(datatype, value)]

    return read


def _step(nodes: list[Any], name: str, field: str, value: str) -> list[Any]:
    result: list[Any] = []
    for node in nodes:
        if type(node) is not dict:
            continue
        child = node.get(name)
        if child is None:
            if "_" + name in node:
                result.append(None)
        elif type(child) is list:
            result += child
        else:
            result.append(child)
    if field:
        return [node for node in result if type(node) is not dict or node.get(field, value) == value]
    return result
