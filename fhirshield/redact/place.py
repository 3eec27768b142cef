"""Where something stands in a resource, and what is to be done there: the words that finding and changing share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from fhirshield.fhir.definitions import Element, type_of
from fhirshield.fhir.invariants import ANY_OF, REQUIRES
from fhirshield.model import Operation

MISSHAPEN = "misshapen"
"""Counted as the rule where an element has not the shape that R4 gives it and so cannot be looked into: it goes."""


@dataclass(slots=True)
class Spot:
    """An object within a resource: where it stands, so that it can be removed if nothing of it remains."""

    object: dict[str, Any]
    type: str
    depth: int
    parent: Spot | None
    element: Element | None
    """The element of the parent that holds it."""
    index: int | None
    """Its place where that element repeats."""

    @property
    def delicate(self) -> bool:
        """Whether this type's invariants speak of what stands beside what."""
        return self.type in REQUIRES or self.type in ANY_OF


Change = tuple[Spot, Element, int | None, Operation, str]
"""(object, element of it, index where it repeats, operation, rule)"""


Chain = tuple[Any, ...]
"""A Spot not yet made: (object, type, depth, chain of the parent or None, element, index)."""


def spot_of(chain: Chain) -> Spot:
    """The Spot that a chain describes."""
    owner, kind, depth, parent, element, index = chain
    return Spot(owner, kind, depth, spot_of(parent) if parent is not None else None, element, index)


@cache
def element_of(owner: str, name: str) -> Element:
    """The element of that JSON name, a primitive's ``_sibling`` included."""
    kind = type_of(owner)
    assert kind is not None
    found = kind.elements.get(name)
    if found is not None:
        return found
    base = kind.elements[name[1:]]
    return Element(name, "Element", 0, base.many, False, base.summary, base.choice, (), "")
