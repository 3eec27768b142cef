"""Obligations on one type -> one pass over a resource, in place.

The pass has three parts, and the order is what makes them commute. *Find*: every path is followed on the untouched
resource, so that no filter sees another redaction's work. *Change* and *mend* (``mend.py``): what meets on one element is
merged and carried out, then made valid again. Obligations that meet no other take a short way (``direct.py``).

The tree of a program is data (closures over constants), not generated code: no text of a rule is ever executed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fhirshield.fhir.definitions import Element
from fhirshield.fhir.path import Each, Name, Predicate, Segment, Where, predicate
from fhirshield.model import Obligation, Operation, Remove
from fhirshield.redact.direct import Counts, direct, stand_alone
from fhirshield.redact.operations import Tools
from fhirshield.redact.place import MISSHAPEN, Chain, Change, Spot, element_of, spot_of


class Node:
    """What to do at an element: operations on its value or its entries, and where to go on."""

    __slots__ = ("children", "element", "entries", "sibling", "whole")

    def __init__(self, element: Element) -> None:
        self.element = element
        self.sibling = "_" + element.name
        self.whole: list[tuple[Operation, str]] = []
        """On the element as it stands (for a repeating one, all of it)."""
        self.entries: list[Step] = []
        """For a repeating element: which entries, what on each, and where to go on below them."""
        self.children: dict[str, Node] = {}


Step = tuple[Predicate | None, list[tuple[Operation, str]], dict[str, Node]]


class Program:
    """All obligations of one type that bind on a resource, ready to run."""

    def __init__(self, resource_type: str, obligations: tuple[Obligation, ...]) -> None:
        self._type = resource_type
        self._children: dict[str, Node] = {}
        alone = stand_alone(resource_type, obligations)
        steps = []
        for place, obligation in enumerate(obligations):
            path, operation, rule = obligation.path.segments, obligation.operation, obligation.rule
            if place in alone:
                steps.append(direct(resource_type, path, operation, rule, _long_way(operation, rule)))
            else:
                _add(self._children, resource_type, path, operation, rule)
        self._steps = tuple(steps)

    def follow(self, resource: dict[str, Any], tools: Tools, changes: list[Change], counts: Counts) -> None:
        """Follow every path: add what is to be changed, and change at once what meets nothing else."""
        if self._children:
            _visit(Spot(resource, self._type, 0, None, None, None), self._children, resource, changes)
        chain = (resource, self._type, 0, None, None, None)
        for step in self._steps:
            step(resource, chain, tools, changes, counts)


def _add(children: dict[str, Node], owner: str, segments: tuple[Segment, ...], operation: Operation, rule: str) -> None:
    step, rest = segments[0], segments[1:]
    assert isinstance(step, Name)
    for name in step.names:
        element = element_of(owner, name)
        node = children.setdefault(name, Node(element))
        if not rest:
            node.whole.append((operation, rule))
            continue
        if isinstance(rest[0], Name):
            _add(node.children, element.type, rest, operation, rule)
            continue
        test = predicate(rest[0].expression) if isinstance(rest[0], Where) else None
        operations = [] if rest[1:] else [(operation, rule)]
        below: dict[str, Node] = {}
        if rest[1:]:
            _add(below, element.type, rest[1:], operation, rule)
        node.entries.append((test, operations, below))
        assert isinstance(rest[0], Each | Where)


def _long_way(operation: Operation, rule: str) -> Any:
    """For an obligation that goes the short way: how to go on the long way from an object where that ends."""

    def from_here(owner: str, segments: tuple[Segment, ...]) -> Callable[[dict[str, Any], Chain, list[Change]], None]:
        children: dict[str, Node] = {}
        _add(children, owner, segments, operation, rule)

        def go_on(value: dict[str, Any], chain: Chain, changes: list[Change]) -> None:
            _visit(spot_of(chain), children, value, changes)

        return go_on

    return from_here


def _visit(spot: Spot, children: dict[str, Node], root: dict[str, Any], changes: list[Change]) -> None:
    owner = spot.object
    for name, node in children.items():
        value = owner.get(name)
        if value is None and node.sibling not in owner:
            continue
        element = node.element
        for operation, rule in node.whole:
            changes.append((spot, element, None, operation, rule))
        if node.children and value is not None:
            if type(value) is dict:
                below = Spot(value, element.type, spot.depth + 1, spot, element, None)
                _visit(below, node.children, root, changes)
            else:
                changes.append((spot, element, None, Remove(), MISSHAPEN))
        for step in node.entries:
            _entries(spot, node, value, step, root, changes)


def _entries(spot: Spot, node: Node, value: Any, step: Step, root: dict[str, Any], changes: list[Change]) -> None:
    test, operations, deeper = step
    element = node.element
    entries = value if type(value) is list else [value] if value is not None else []
    sibling = spot.object.get(node.sibling)
    if type(sibling) is list and len(sibling) > len(entries):
        entries = entries + [None] * (len(sibling) - len(entries))
    for index, entry in enumerate(entries):
        if test is not None and not test(entry, root):
            continue
        for operation, rule in operations:
            changes.append((spot, element, index, operation, rule))
        if not deeper:
            continue
        if type(entry) is dict:
            _visit(Spot(entry, element.type, spot.depth + 1, spot, element, index), deeper, root, changes)
        elif entry is not None:
            changes.append((spot, element, index, Remove(), MISSHAPEN))
