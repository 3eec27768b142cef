"""The short way: an obligation that meets no other is carried out where it is found, with no change noted first.

What makes that equal to find, change, mend: the element stands under a top-level element that no other obligation of the
program reaches, or only others whose targets neither contain it nor lie within it and none of which filters; its own
filter reads nothing outside. Wherever a removal may break more than the element itself (an emptied owner, a type with
invariants) or a shape is not R4's, the work is handed to the long way, which knows all of that.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from fhirshield.fhir.absent import absent, marker
from fhirshield.fhir.definitions import Element, kind_of, type_of
from fhirshield.fhir.invariants import ANY_OF, REQUIRES
from fhirshield.fhir.path import AllOf, Any_Expression, AnyOf, Exists, Name, Query, Segment, Where, predicate
from fhirshield.model import Obligation, Operation, Remove
from fhirshield.redact.operations import REMOVED, Tools, apply
from fhirshield.redact.place import MISSHAPEN, Chain, Change, element_of, spot_of

Counts = dict[str, int]
Step = Callable[[dict[str, Any], Chain, Tools, list[Change], Counts], None]
"""(object, where it stands, tools, changes left to the long way, counts by rule)"""
LongWay = Callable[[str, tuple[Segment, ...]], Callable[[dict[str, Any], Chain, list[Change]], None]]
"""(type, rest of the path) -> follow it the long way, from an object on"""


def stand_alone(resource_type: str, obligations: tuple[Obligation, ...]) -> frozenset[int]:
    """The places in ``obligations`` of those that can go the short way."""
    groups: dict[str, list[int]] = {}
    for place, obligation in enumerate(obligations):
        for name in obligation.path.segments[0].names if isinstance(obligation.path.segments[0], Name) else ():
            groups.setdefault(name.removeprefix("_"), []).append(place)
    found: set[int] = set()
    for members in groups.values():
        paths = [obligations[place].path.segments for place in members]
        if all(_fits(resource_type, obligations[place]) for place in members) and (
            len(members) == 1 or (not any(_filters(path) for path in paths) and not _overlap(paths))
        ):
            found.update(members)
    return frozenset(found)


def _fits(resource_type: str, obligation: Obligation) -> bool:
    owner, segments, operation = resource_type, obligation.path.segments, obligation.operation
    for index, segment in enumerate(segments):
        last = index == len(segments) - 1
        if isinstance(segment, Name):
            if len(segment.names) > 1 or segment.names[0].startswith("_") or owner == "Reference":
                return False
            owner = element_of(owner, segment.names[0]).type
        elif (last and (kind_of(owner) == "primitive" or not isinstance(operation, Remove))) or (
            isinstance(segment, Where) and not _inward(segment.expression)
        ):
            return False
    return not (isinstance(operation, Remove) and operation.drop)


def _inward(expression: Any_Expression) -> bool:
    """Whether a filter reads only below the entry that it tests."""
    if isinstance(expression, AnyOf | AllOf):
        return all(_inward(item) for item in expression.items)
    queries = (expression.query,) if isinstance(expression, Exists) else (expression.left, expression.right)
    return all(
        query.relative and all(_inward(s.expression) for s in query.segments if isinstance(s, Where))
        for query in queries
        if isinstance(query, Query)
    )


def _filters(path: tuple[Segment, ...]) -> bool:
    return any(isinstance(segment, Where) for segment in path)


def _overlap(paths: list[tuple[Segment, ...]]) -> bool:
    """Whether one of these targets is another, or contains it."""
    chains = sorted(tuple(s.names[0] for s in path if isinstance(s, Name)) for path in paths)
    return any(second[: len(first)] == first for first, second in pairwise(chains))


# --- steps ------------------------------------------------------------------------------------------------------------


def direct(owner: str, segments: tuple[Segment, ...], operation: Operation, rule: str, long_way: LongWay) -> Step:
    """The steps of one obligation, from an object of type ``owner`` on."""
    name = segments[0]
    assert isinstance(name, Name)
    element = element_of(owner, name.names[0])
    rest = segments[1:]
    if not rest:
        return _value(owner, element, operation, rule)
    around = long_way(owner, segments)
    if isinstance(rest[0], Name):
        return _into(element, direct(element.type, rest, operation, rule, long_way), around)
    test = predicate(rest[0].expression) if isinstance(rest[0], Where) else None
    if rest[1:]:
        return _entries(element, test, direct(element.type, rest[1:], operation, rule, long_way), around)
    return _without(owner, element, test, rule, around)


def _settle(owner: str, element: Element, rule: str) -> Callable[[dict[str, Any], Chain, list[Change], Counts], None]:
    """What follows the removal of an element: its absent form, or word to the long way where an invariant may break."""
    required = element.min > 0
    name = ("_" if element.primitive else "") + element.name
    dependents, others = _dependents(owner, element), _others(owner, element)
    gone = Remove()

    def settle(value: dict[str, Any], chain: Chain, changes: list[Change], counts: Counts) -> None:
        if (
            (dependents and not dependents.isdisjoint(value))
            or (others and any(group.isdisjoint(value) for group in others))
            or (not required and (not value or (len(value) == 1 and "id" in value)))
        ):
            changes.append((spot_of(chain), element, None, gone, rule))
            return
        if required:
            form: Any = marker() if element.primitive else absent(element)
            value[name] = [form] if element.many else form
        counts[rule] = counts.get(rule, 0) + 1

    return settle


def _dependents(owner: str, element: Element) -> frozenset[str]:
    """The JSON names of what may not stand without this element."""
    needing = [first for first, second in REQUIRES.get(owner, ()) if second in {element.name, element.choice}]
    return frozenset(form for one in needing for form in _forms(owner, one))


def _others(owner: str, element: Element) -> list[frozenset[str]]:
    """For each group of which one must stand and this element is: the JSON names of the rest."""
    groups = [group for group in ANY_OF.get(owner, ()) if element.name in group or element.choice in group]
    return [frozenset(form for one in group for form in _forms(owner, one)) for group in groups]


def _forms(owner: str, name: str) -> list[str]:
    kind = type_of(owner)
    assert kind is not None
    found = [e.name for e in kind.elements.values() if name in {e.name, e.choice}]
    return [*found, *("_" + one for one in found)]


def _value(owner: str, element: Element, operation: Operation, rule: str) -> Step:
    name, sibling = element.name, "_" + element.name
    settle = _settle(owner, element, rule)
    lasting = kind_of(owner) == "resource" and not element.min and not _dependents(owner, element) and not _others(owner, element)

    def remove_from_root(owner: dict[str, Any], chain: Chain, tools: Tools, changes: list[Change], counts: Counts) -> None:
        if owner.pop(name, None) is not None or sibling in owner:
            owner.pop(sibling, None)
            counts[rule] = counts.get(rule, 0) + 1

    def remove(owner: dict[str, Any], chain: Chain, tools: Tools, changes: list[Change], counts: Counts) -> None:
        if owner.pop(name, None) is not None or sibling in owner:
            owner.pop(sibling, None)
            settle(owner, chain, changes, counts)

    def change(owner: dict[str, Any], chain: Chain, tools: Tools, changes: list[Change], counts: Counts) -> None:
        found = owner.get(name)
        if found is None and sibling not in owner:
            return
        if found is not None and type(found) is not dict and type(found) is not list:
            shown = apply(operation, found, tools)
            if shown is not REMOVED:
                owner[name] = shown
                owner.pop(sibling, None)
                counts[rule] = counts.get(rule, 0) + 1
                return
        owner.pop(name, None)
        owner.pop(sibling, None)
        settle(owner, chain, changes, counts)

    if not isinstance(operation, Remove):
        return change
    return remove_from_root if lasting else remove


def _into(element: Element, below: Step, around: Any) -> Step:
    name, kind = element.name, element.type

    def into(owner: dict[str, Any], chain: Chain, tools: Tools, changes: list[Change], counts: Counts) -> None:
        found = owner.get(name)
        if type(found) is dict:
            below(found, (found, kind, chain[2] + 1, chain, element, None), tools, changes, counts)
        elif found is not None:
            around(owner, chain, changes)

    return into


def _entries(element: Element, test: Any, below: Step, around: Any) -> Step:
    name, kind = element.name, element.type

    def entries(owner: dict[str, Any], chain: Chain, tools: Tools, changes: list[Change], counts: Counts) -> None:
        found = owner.get(name)
        if type(found) is list:
            depth = chain[2] + 1
            for index, entry in enumerate(found):
                if test is not None and not test(entry, None):
                    continue
                if type(entry) is dict:
                    below(entry, (entry, kind, depth, chain, element, index), tools, changes, counts)
                elif entry is not None:
                    changes.append((spot_of(chain), element, index, Remove(), MISSHAPEN))
        elif found is not None:
            around(owner, chain, changes)

    return entries


def _without(owner: str, element: Element, test: Any, rule: str, around: Any) -> Step:
    name, sibling = element.name, "_" + element.name
    settle = _settle(owner, element, rule)

    def without(owner: dict[str, Any], chain: Chain, tools: Tools, changes: list[Change], counts: Counts) -> None:
        found = owner.get(name)
        if type(found) is not list or sibling in owner:
            if found is not None or sibling in owner:
                around(owner, chain, changes)
            return
        kept = [] if test is None else [entry for entry in found if not test(entry, None)]
        if len(kept) == len(found):
            return
        if any(entry is not None for entry in kept):
            owner[name] = kept
            counts[rule] = counts.get(rule, 0) + len(found) - len(kept)
        else:
            del owner[name]
            counts[rule] = counts.get(rule, 0) + len(found) - 1
            settle(owner, chain, changes, counts)

    return without
