"""What stands where a required value is withheld: the extension data-absent-reason ``masked`` (FHIR R4 §2.4.1.3.2)."""

from __future__ import annotations

from functools import cache
from typing import Any

from fhirshield.fhir.definitions import Element, type_of
from fhirshield.fhir.invariants import ANY_OF

URL = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"


def marker() -> dict[str, Any]:
    """A fresh element that says its value is masked."""
    return {"extension": [{"url": URL, "valueCode": "masked"}]}


@cache
def has_absent_form(element: Element) -> bool:
    """Whether an instance of this element can say that it is absent and still be valid."""
    if element.type in {"xhtml", "Resource"} or element.name in {"id", "div"}:
        return False
    if element.type == "code":  # its binding is required, so it must be one of the codes (FHIR R4 §4.1.5.1)
        return False
    owner = type_of(element.type)
    if owner is None or "extension" not in owner.elements:
        return False
    return all(has_absent_form(child) for child in _required(element))


def absent(element: Element) -> dict[str, Any]:
    """The absent form of a complex element: marked, and so is each required element of it, and one of any of which one must be."""
    result = marker()
    for child in _required(element):
        form = marker() if child.primitive else absent(child)
        name = "_" + child.name if child.primitive else child.name
        result[name] = [form] if child.many else form
    return result


def _required(element: Element) -> list[Element]:
    owner = type_of(element.type)
    if owner is None or element.primitive:
        return []
    chosen: dict[str, Element] = {}
    for child in owner.elements.values():
        if child.min > 0:
            chosen.setdefault(child.choice or child.name, child)
    for group in ANY_OF.get(element.type, ()):
        if "extension" not in group and chosen.keys().isdisjoint(group):
            first = next(child for child in owner.elements.values() if group[0] in {child.name, child.choice})
            chosen[group[0]] = first
    return list(chosen.values())
