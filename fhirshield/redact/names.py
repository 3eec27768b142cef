"""References tell names: ``Reference.display`` and ``Reference.identifier`` stay only where the caller may read them.

Where references stand is known from the model, so only those places are visited, by steps compiled once for a view;
extensions, where a reference may stand anywhere, are walked only when the answer has any that could hold one.
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
from fhirshield.redact.place import Chain, Change, element_of, spot_of

RULE = "names in references"
"""What the record counts these under."""
Look = Callable[[dict[str, Any], Chain, list[Change], dict[str, int]], None]
"""(object, where it stands, changes to be made later, counts by rule)"""
_TELLING = ("display", "identifier", "_display", "_identifier")
_RELATIVE = re.compile(r"([A-Z][A-Za-z]+)/[A-Za-z0-9\-.]+\Z")
_LAST = re.compile(r"(?:^|/)([A-Z][A-Za-z]+)/[A-Za-z0-9\-.]+(?:/_history/[A-Za-z0-9\-.]+)?\Z")


@cache
def _subject_names(resource_type: str) -> frozenset[tuple[str, ...]]:
    return frozenset(way.names for way in subject_ways(resource_type))


class Names:
    """What one view may not be told by references, for one resource type.

    ``within``: of contained resources, whose subject nobody held against the patient in context.
    Comes after every path was followed, so that no filter sees its work.
    """

    def __init__(self, resource_type: str, naming: Naming, *, within: bool) -> None:
        self._type = resource_type
        self._kept = (
            ("display", naming.display, naming.subject_display),
            ("identifier", naming.identifier, naming.subject_identifier),
        )
        self._subjects = frozenset() if within else _subject_names(resource_type)
        self._looks: dict[tuple[str, tuple[str, ...] | None], Look] = {}

    def clean(self, resource: dict[str, Any], deep: bool, changes: list[Change], counts: dict[str, int]) -> None:
        """Take away the displays and identifiers that must go; where that may leave nothing, add a change instead."""
        root: Chain = (resource, self._type, 0, None, None, None)
        if deep:
            self._everywhere(root, (), changes, counts)
        else:
            self._look(self._type, ())(resource, root, changes, counts)

    # --- the known places -------------------------------------------------------------------------------------------

    def _look(self, kind: str, path: tuple[str, ...] | None) -> Look:
        """A look at an object of that type and at what is below it; ``path`` is None where no subject can stand below.

        Types recurse (an identifier's assigner has an identifier), so looks are made when first needed, one a type and path.
        """
        found = self._looks.get((kind, path))
        if found is None:
            found = self._looks[kind, path] = self._compile(kind, path)
        return found

    def _compile(self, kind: str, path: tuple[str, ...] | None) -> Look:
        places = []
        for name, element in ways(kind):
            below = None if path is None else (*path, name)
            if below is not None and not any(subject[: len(below)] == below for subject in self._subjects):
                below = None
            places.append((name, element, element.type == "Reference", below))

        def look(owner: dict[str, Any], chain: Chain, changes: list[Change], counts: dict[str, int]) -> None:
            for name, element, reference, below in places:
                value = owner.get(name)
                if value is None:
                    continue
                for index, entry in enumerate(value) if type(value) is list else ((None, value),):
                    if type(entry) is not dict:
                        continue
                    if reference:
                        if "display" in entry or "identifier" in entry or "_display" in entry:
                            here: Chain = (entry, "Reference", chain[2] + 1, chain, element, index)
                            self._reference(here, below, changes, counts)
                            if "identifier" in entry:
                                self._look("Reference", below)(entry, here, changes, counts)
                    elif _holds(element.type, entry):
                        here = (entry, element.type, chain[2] + 1, chain, element, index)
                        self._look(element.type, below)(entry, here, changes, counts)

        return look

    # --- everywhere -------------------------------------------------------------------------------------------------

    def _everywhere(self, chain: Chain, path: tuple[str, ...], changes: list[Change], counts: dict[str, int]) -> None:
        owner, kind = chain[0], chain[1]
        if kind == "Reference":
            self._reference(chain, path, changes, counts)
        for name, element in _complex(owner, kind):
            value = owner.get(name)
            for index, entry in enumerate(value) if type(value) is list else ((None, value),):
                if type(entry) is dict:
                    self._everywhere((entry, element.type, chain[2] + 1, chain, element, index), (*path, name), changes, counts)

    # --- one reference ----------------------------------------------------------------------------------------------

    def _reference(self, chain: Chain, path: tuple[str, ...] | None, changes: list[Change], counts: dict[str, int]) -> None:
        owner = chain[0]
        named = _types_named(owner, chain[4])
        of_subject = path in self._subjects and named == {"Patient"}
        for name, open_types, open_subject in self._kept:
            if (name not in owner and "_" + name not in owner) or named <= open_types or (of_subject and open_subject):
                continue
            if "reference" in owner:
                owner.pop(name, None)
                owner.pop("_" + name, None)
                counts[RULE] = counts.get(RULE, 0) + 1
            else:
                changes.append((spot_of(chain), element_of("Reference", name), None, Remove(), RULE))


def _holds(name: str, value: dict[str, Any]) -> bool:
    """Whether an object of this type has anything that names another, at the first glance."""
    return any(way[0] in value for way in ways(name))


def _complex(owner: dict[str, Any], kind: str) -> list[Way]:
    """All complex elements that this object has, extensions and siblings included; embedded resources are not."""
    known = type_of(kind)
    assert known is not None
    found = []
    for name, value in owner.items():
        if type(value) is not dict and type(value) is not list:
            continue
        element = known.elements.get(name)
        if element is None and name.startswith("_") and name[1:] in known.elements:
            element = element_of(kind, name)
        if element is not None and element.type != "Resource" and not element.primitive:
            found.append((name, element))
    return found


@cache
def _alone(name: str) -> frozenset[str]:
    return frozenset((name,)) if name in resource_types() else resource_types()


def _types_named(owner: dict[str, Any], element: Element) -> frozenset[str] | set[str]:
    """The types that a reference may refer to: what it says, else what the element allows, else any."""
    said: set[str] = set()
    literal = owner.get("reference")
    found = (_RELATIVE.match(literal) or _LAST.search(literal)) if isinstance(literal, str) else None
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
