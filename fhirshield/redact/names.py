"""References tell names: ``Reference.display`` and ``Reference.identifier`` stay only where the caller may read them.

Where references stand is known from the model, so only those places are visited; extensions, where a reference may stand
anywhere, are walked only when the answer has any that could hold one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from fhirshield.fhir.definitions import Element, resource_types, type_of
from fhirshield.fhir.reference_places import Way, ways
from fhirshield.fhir.search_parameters import subject_ways
from fhirshield.model import Naming, Remove
from fhirshield.redact.program import Change, Spot, element_of

RULE = "names in references"
"""What the record counts these under."""
How = tuple[Naming, bool, list[Change], Callable[[str], None]]
"""(naming, extensions too, changes to be made later, counts by rule)"""
_LAST = re.compile(r"(?:^|/)([A-Z][A-Za-z]+)/[A-Za-z0-9\-.]+(?:/_history/[A-Za-z0-9\-.]+)?\Z")


@cache
def _subject_names(resource_type: str) -> frozenset[tuple[str, ...]]:
    return frozenset(way.names for way in subject_ways(resource_type))


def clean(root: Spot, naming: Naming, deep: bool, changes: list[Change], count: Callable[[str], None]) -> None:
    """Take away the displays and identifiers that must go; where that may leave nothing, add a change instead.

    Comes after every path was followed, so that no filter sees its work.
    """
    _visit(root, (), _subject_names(root.type), (naming, deep, changes, count))


def _visit(spot: Spot, path: tuple[str, ...], subjects: frozenset[tuple[str, ...]], how: How) -> None:
    owner = spot.object
    deep = how[1]
    if spot.type == "Reference":
        _reference(spot, path in subjects, how)
    for name, element in _everything(spot) if deep else ways(spot.type):
        value = owner.get(name)
        if value is None:
            continue
        for index, entry in enumerate(value) if type(value) is list else ((None, value),):
            if type(entry) is dict and (deep or _holds(element.type, entry)):
                one = Spot(entry, element.type, spot.depth + 1, spot, element, index)
                _visit(one, (*path, name), subjects, how)


def _holds(name: str, value: dict[str, Any]) -> bool:
    """Whether an object of this type has anything that names another, at the first glance."""
    if name == "Reference":
        return "display" in value or "identifier" in value or "_display" in value
    return any(way[0] in value for way in ways(name))


def _everything(spot: Spot) -> list[Way]:
    """All complex elements that this object has, extensions and siblings included; embedded resources are not."""
    kind = type_of(spot.type)
    assert kind is not None
    found = []
    for name, value in spot.object.items():
        if type(value) is not dict and type(value) is not list:
            continue
        element = kind.elements.get(name)
        if element is None and name.startswith("_") and name[1:] in kind.elements:
            element = element_of(spot.type, name)
        if element is not None and element.type != "Resource" and not element.primitive:
            found.append((name, element))
    return found


def _reference(spot: Spot, own_subject: bool, how: How) -> None:
    owner = spot.object
    assert spot.element is not None
    naming, _, changes, count = how
    named = _types_named(owner, spot.element)
    of_subject = own_subject and named == {"Patient"}
    for name, open_types, open_subject in (
        ("display", naming.display, naming.subject_display),
        ("identifier", naming.identifier, naming.subject_identifier),
    ):
        if (name not in owner and "_" + name not in owner) or named <= open_types or (of_subject and open_subject):
            continue
        if "reference" in owner:
            owner.pop(name, None)
            owner.pop("_" + name, None)
            count(RULE)
        else:
            changes.append((spot, element_of("Reference", name), None, Remove(), RULE))


@cache
def _alone(name: str) -> frozenset[str]:
    return frozenset((name,)) if name in resource_types() else resource_types()


def _types_named(owner: dict[str, Any], element: Element) -> frozenset[str] | set[str]:
    """The types that a reference may refer to: what it says, else what the element allows, else any."""
    said: set[str] = set()
    literal = owner.get("reference")
    found = _LAST.search(literal) if isinstance(literal, str) else None
    if found and "type" not in owner:
        return _alone(found[1])
    if found:
        said.add(found[1])
    if "type" in owner and (found or "reference" not in owner):
        said.add(str(owner["type"]))
    if said:
        return said
    targets = frozenset(element.targets) - {"Resource"}
    return targets or resource_types()
