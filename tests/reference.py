"""The reference interpreter: what obligations mean, written slowly and obviously, without the product's walk or mend.

It shares the parser of paths and the tables with the product; everything that is done with them it does in its own way:
locations are tuples, a resource is rebuilt from the leaves up, nothing is changed in place.
"""

from __future__ import annotations

import operator
from decimal import Decimal
from typing import Any

from fhirshield.fhir.definitions import Element, type_of
from fhirshield.fhir.invariants import ANY_OF, REQUIRES
from fhirshield.fhir.path import AllOf, AnyOf, Compare, Each, Exists, Name, Query
from fhirshield.model import Generalize, Hash, Mask, Obligation, Remove, Replace
from fhirshield.redact.operations import REMOVED, Tools, apply

GONE = object()
Location = tuple[str | int, ...]
MARK = {"extension": [{"url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason", "valueCode": "masked"}]}
OPERATORS = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


class Dropped(Exception):
    """The whole resource goes."""


def interpret(resource: dict[str, Any], obligations: list[Obligation], tools: Tools) -> dict[str, Any]:
    """The redacted resource. Raises Dropped."""
    kind = resource["resourceType"]
    found: dict[Location, Any] = {}
    for obligation in obligations:
        for location in locations(resource, obligation.path.segments, resource, ()):
            known = found.get(location)
            found[location] = obligation.operation if known is None else combine(known, obligation.operation)
    found = dict(_dropped(location, op, kind) for location, op in found.items())
    built: dict[str, Any] = _object(resource, kind, (), found, tools, top=True)
    return built


def _dropped(location: Location, operation: Any, kind: str) -> tuple[Location, Any]:
    if not (isinstance(operation, Remove) and operation.drop):
        return location, operation
    place = _owner_location(location)
    while place:
        element = _element_at(place, kind)
        if not element.modifier and (element.min == 0 or _can_be_absent(element)):
            return place, Remove()
        place = _owner_location(place)
    raise Dropped


def _owner_location(location: Location) -> Location:
    """The location of the object that holds this element."""
    return location[:-1] if isinstance(location[-1], str) else location[:-2]


def _element_at(location: Location, kind: str) -> Element:
    element = None
    for part in location:
        if isinstance(part, str):
            owner = type_of(kind)
            assert owner is not None
            element = owner.elements[part]
            kind = element.type
    assert element is not None
    return element


def _can_be_absent(element: Element) -> bool:
    if element.type in {"xhtml", "Resource", "code"}:
        return False
    owner = type_of(element.type)
    assert owner is not None
    required = [c for c in owner.elements.values() if c.min > 0 and not element.primitive]
    options: dict[str, list[Element]] = {}
    for child in required:
        options.setdefault(child.choice or child.name, []).append(child)
    return all(_can_be_absent(children[0]) for children in options.values())


# --- where a path leads ---------------------------------------------------------------------------------------------


def locations(node: Any, segments: Any, root: Any, here: Location) -> list[Location]:
    """All locations that a path selects; an absent primitive with a sibling counts as there."""
    if not segments:
        return [here]
    step, rest = segments[0], segments[1:]
    if isinstance(step, Name):
        if not isinstance(node, dict):
            return []
        return [
            place
            for name in step.names
            if name in node or "_" + name in node
            for place in locations(_aligned(node, name), rest, root, (*here, name))
        ]
    if not isinstance(node, list):
        return []
    chosen = [i for i, entry in enumerate(node) if isinstance(step, Each) or holds(step.expression, entry, root)]
    return [place for i in chosen for place in locations(node[i], rest, root, (*here, i))]


def _aligned(node: dict[str, Any], name: str) -> Any:
    value, sibling = node.get(name), node.get("_" + name)
    if isinstance(value, list) or isinstance(sibling, list):
        value, length = list(value or []), max(len(value or []), len(sibling or []))
        return value + [None] * (length - len(value))
    return value


def holds(expression: Any, node: Any, root: Any) -> bool:
    """Whether a filter holds; comparisons with a missing or ill-typed operand do."""
    if isinstance(expression, AnyOf):
        return any(holds(item, node, root) for item in expression.items)
    if isinstance(expression, AllOf):
        return all(holds(item, node, root) for item in expression.items)
    if isinstance(expression, Exists):
        return bool(values(expression.query, node, root)) is not expression.negated
    assert isinstance(expression, Compare)
    left = values(expression.left, node, root)
    right = values(expression.right, node, root) if isinstance(expression.right, Query) else [expression.right]
    if not left or not right or _sort(left[0]) is None or _sort(left[0]) != _sort(right[0]):
        return True
    return bool(OPERATORS[expression.operator](left[0], right[0]))


def _sort(value: Any) -> str | None:
    if isinstance(value, bool):
        return "boolean"
    return "string" if isinstance(value, str) else "number" if isinstance(value, int | Decimal) else None


def values(query: Query, node: Any, root: Any) -> list[Any]:
    """The values that a query in a filter finds."""
    nodes = [node if query.relative else root]
    for step in query.segments:
        if isinstance(step, Name):
            nodes = [n[name] for n in nodes if isinstance(n, dict) for name in step.names if name in n]
        elif isinstance(step, Each):
            nodes = [entry for n in nodes if isinstance(n, list) for entry in n]
        else:
            nodes = [e for n in nodes if isinstance(n, list) for e in n if holds(step.expression, e, root)]
    return nodes


# --- what meets what ----------------------------------------------------------------------------------------------------


def combine(one: Any, other: Any) -> Any:
    """The table of meetings, read aloud."""
    pair = {type(one), type(other)}
    if Remove in pair:
        return Remove(any(isinstance(o, Remove) and o.drop for o in (one, other)))
    if one == other:
        return one
    if pair == {Mask}:
        return Mask(
            min(one.first, other.first), min(one.last, other.last),
            one.keep_length and other.keep_length, max(one.least, other.least),
        )  # fmt: skip
    if pair == {Generalize}:
        order = ["age", "month", "year"]
        if one.to in order and other.to in order:
            to = order[max(order.index(one.to), order.index(other.to))]
            caps = sorted(c for c in (one.cap, other.cap) if c)
            return Generalize(to, caps[0] if caps else 0)
        if one.to == other.to == "band":
            low, high = sorted((one.width, other.width))
            return Generalize("band", 0, high) if high % low == 0 else Remove()
        return Remove()
    if Generalize in pair or pair == {Replace} or pair == {Hash}:
        return Remove()
    for kind in (Replace, Hash):
        for operation in (one, other):
            if isinstance(operation, kind):
                return operation
    raise AssertionError(pair)


# --- rebuilding -------------------------------------------------------------------------------------------------------


def _object(node: dict[str, Any], kind: str, here: Location, found: dict[Location, Any], tools: Tools, *, top: bool) -> Any:
    owner = type_of(kind)
    assert owner is not None
    built: dict[str, Any] = {}
    gone: set[str] = set()
    touched = False
    for key, unchanged in node.items():
        name = key.removeprefix("_") if key.startswith("_") else key
        element = owner.elements.get(name)
        if element is None:
            built[key] = unchanged
            continue
        if name in built or "_" + name in built or name in gone:
            continue
        new, sibling, changed = _member(node, element, (*here, name), found, tools)
        if new is not GONE:
            built[name] = new
        if sibling is not GONE:
            built["_" + name] = sibling
        if changed and new is GONE and sibling is GONE:
            gone.add(name)
        touched |= changed
    if not touched:
        return built
    _requires(built, kind, gone)
    whole = _groups(built, kind, gone, top=top)
    for name in gone:
        element = owner.elements[name]
        if element.min > 0:
            form: Any = MARK if element.primitive else _absent(element)
            built[("_" if element.primitive else "") + name] = [form] if element.many else form
    if not top and (not whole or set(built) <= {"id"}):
        return GONE
    return built


def _member(node: dict[str, Any], element: Element, here: Location, found: dict[Location, Any], tools: Tools) -> Any:
    """(value or GONE, sibling or GONE, whether a removal happened)"""
    name = str(here[-1])
    value, sibling = node.get(name, GONE), node.get("_" + name, GONE)
    if here in found:
        new = REMOVED if value is GONE or isinstance(value, dict | list) else apply(found[here], value, tools)
        return (GONE, GONE, True) if new is REMOVED else (new, GONE, False)
    if isinstance(value, list) or isinstance(sibling, list):
        return _entries(value, sibling, element, here, found, tools)
    if isinstance(value, dict):
        new = _object(value, element.type, here, found, tools, top=False)
        return new, sibling, new is GONE
    return value, sibling, False


def _entries(value: Any, sibling: Any, element: Element, here: Location, found: dict[Location, Any], tools: Tools) -> Any:
    values = value if isinstance(value, list) else []
    siblings = sibling if isinstance(sibling, list) else []
    kept, changed = [], False
    for i in range(max(len(values), len(siblings))):
        one = values[i] if i < len(values) else None
        beside = siblings[i] if i < len(siblings) else None
        place = (*here, i)
        if place in found:
            changed = True
            one = REMOVED if one is None or isinstance(one, dict | list) else apply(found[place], one, tools)
            beside = None
        elif isinstance(one, dict):
            one = _object(one, element.type, place, found, tools, top=False)
            changed |= one is GONE
        if one is not REMOVED and one is not GONE:
            kept.append((one, beside))
    if not changed:
        return [v for v, _ in kept][: len(values)] if isinstance(value, list) else value, sibling, False
    first, second = [v for v, _ in kept], [s for _, s in kept]
    return (
        first if any(v is not None for v in first) else GONE,
        second if any(s is not None for s in second) else GONE,
        True,
    )


def _names(built: dict[str, Any], kind: str, name: str) -> list[str]:
    owner = type_of(kind)
    assert owner is not None
    bare = {key.removeprefix("_") for key in built}
    return [key for key in bare if key in owner.elements and name in {key, owner.elements[key].choice}]


def _requires(built: dict[str, Any], kind: str, gone: set[str]) -> None:
    owner = type_of(kind)
    assert owner is not None
    for _ in range(10):
        for dependent, needed in REQUIRES.get(kind, ()):
            lost = any(needed in {name, owner.elements[name].choice} for name in gone)
            if lost and not _names(built, kind, needed):
                for name in _names(built, kind, dependent):
                    built.pop(name, None)
                    built.pop("_" + name, None)
                    gone.add(name)


def _groups(built: dict[str, Any], kind: str, gone: set[str], *, top: bool) -> bool:
    owner = type_of(kind)
    assert owner is not None
    for group in ANY_OF.get(kind, ()):
        lost = {name for name in gone for one in group if one in {name, owner.elements[name].choice}}
        if lost and not any(_names(built, kind, name) for name in group):
            if not top:
                return False
            element = owner.elements[group[0]]
            form: Any = MARK if element.primitive else _absent(element)
            built[("_" if element.primitive else "") + element.name] = [form] if element.many else form
    return True


def _absent(element: Element) -> dict[str, Any]:
    made: dict[str, Any] = dict(MARK)
    owner = type_of(element.type)
    assert owner is not None
    seen: set[str] = set()
    for child in owner.elements.values():
        if child.min > 0 and (child.choice or child.name) not in seen:
            seen.add(child.choice or child.name)
            form: Any = MARK if child.primitive else _absent(child)
            made[("_" if child.primitive else "") + child.name] = [form] if child.many else form
    for group in ANY_OF.get(element.type, ()):
        if "extension" not in group and not seen & set(group):
            child = next(c for c in owner.elements.values() if group[0] in {c.name, c.choice})
            form = MARK if child.primitive else _absent(child)
            made[("_" if child.primitive else "") + child.name] = [form] if child.many else form
    return made
