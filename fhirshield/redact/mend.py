"""Changes -> a resource that is redacted and valid again.

Operations that meet on one element are merged and carried out; then, from the deepest change upward, emptied elements go,
required ones are marked as masked, aligned arrays stay aligned, and invariants hold again.
"""

from __future__ import annotations

from typing import Any

from fhirshield.fhir.absent import absent, has_absent_form, marker
from fhirshield.fhir.definitions import Element, type_of
from fhirshield.fhir.invariants import ANY_OF, REQUIRES
from fhirshield.model import Operation, Remove
from fhirshield.redact.operations import REMOVED, Tools, apply, merge
from fhirshield.redact.place import Change, Spot, element_of


class ResourceDropped(Exception):
    """A redaction with ``drop`` leaves nothing of the resource. Carries the rule."""


def carry_out(changes: list[Change], tools: Tools, counts: dict[str, int]) -> None:
    """Change and mend; ``counts`` by rule. Raises ResourceDropped."""
    merged: dict[tuple[int, str, int | None], Change] = {}
    for change in changes:
        key = (id(change[0].object), change[1].name, change[2])
        known = merged.setdefault(key, change)
        if known is not change:
            merged[key] = (*known[:3], merge(known[3], change[3]), known[4])
    mend = Mend()
    for spot, element, index, operation, rule in merged.values():
        counts[rule] = counts.get(rule, 0) + 1
        if isinstance(operation, Remove) and operation.drop:
            spot, element, index = _droppable(spot, element, index, rule)
            operation = Remove()
        _change(spot, element, index, operation, tools, mend)
    mend.run()


def _droppable(spot: Spot, element: Element, index: int | None, rule: str) -> tuple[Spot, Element, int | None]:
    """The closest ancestor that may go: no modifier, and optional or with an absent form."""
    here: Spot | None = spot
    while here is not None and here.element is not None and here.parent is not None:
        if not here.element.modifier and (here.element.min == 0 or has_absent_form(here.element)):
            return here.parent, here.element, here.index
        here = here.parent
    raise ResourceDropped(rule)


def _change(spot: Spot, element: Element, index: int | None, operation: Operation, tools: Tools, mend: Mend) -> None:
    owner, name = spot.object, element.name
    value = owner.get(name)
    if index is None or (index == 0 and type(value) is not list and value is not None):
        if "_" + name in owner:
            del owner["_" + name]
        if type(operation) is not Remove and value is not None and type(value) is not dict and type(value) is not list:
            shown = apply(operation, value, tools)
            if shown is not REMOVED:
                owner[name] = shown
                return
        owner.pop(name, None)
        if not owner or element.min or spot.delicate or (len(owner) == 1 and "id" in owner):
            mend.touch(spot, name)
        return
    values: list[Any] = value if type(value) is list else []
    one = values[index] if index < len(values) else None
    shown = REMOVED if one is None or type(one) in (dict, list) else apply(operation, one, tools)
    if index < len(values):
        values[index] = shown
    sibling = owner.get("_" + name)
    if type(sibling) is list and index < len(sibling):
        sibling[index] = REMOVED if shown is REMOVED else None
        mend.touch(spot, name)
    elif shown is REMOVED:
        mend.touch(spot, name)


# --- mend -------------------------------------------------------------------------------------------------------------


class Mend:
    """Makes what was touched valid again, deepest first."""

    def __init__(self) -> None:
        self._touched: dict[int, dict[int, tuple[Spot, set[str]]]] = {}

    def touch(self, spot: Spot, name: str) -> None:
        """Note that something of this element was taken away."""
        level = self._touched.setdefault(spot.depth, {})
        level.setdefault(id(spot.object), (spot, set()))[1].add(name)

    def run(self) -> None:
        """Mend everything touched, and what that touches in turn."""
        while self._touched:
            for spot, names in self._touched.pop(max(self._touched)).values():
                self._mend(spot, names)

    def _mend(self, spot: Spot, names: set[str]) -> None:
        owner = spot.object
        for name in names:
            _compact(owner, name)
        gone = {name for name in names if name not in owner and "_" + name not in owner}
        self._required_beside(spot, gone)
        whole = self._any_left(spot, gone)
        for name in gone:
            _mark_required(owner, spot.type, name)
        if spot.parent is not None and (not whole or not owner or owner.keys() == {"id"}):
            self._remove(spot)

    def _required_beside(self, spot: Spot, gone: set[str]) -> None:
        """Take away what may not stand without something that is gone."""
        more = True
        while more:
            more = False
            for dependent, needed in REQUIRES.get(spot.type, ()):
                if any(_is(name, needed, spot.type) for name in gone) and not _present(spot, needed):
                    for name in _forms(spot, dependent):
                        spot.object.pop(name, None)
                        spot.object.pop("_" + name, None)
                        gone.add(name)
                        more = True

    def _any_left(self, spot: Spot, gone: set[str]) -> bool:
        """Whether the object kept one of what it must have, where it had one; a resource is given a marked one instead."""
        for group in ANY_OF.get(spot.type, ()):
            lost = any(_is(name, one, spot.type) for name in gone for one in group)
            if not lost or any(_present(spot, name) for name in group):
                continue
            if spot.parent is not None:
                return False
            element = element_of(spot.type, group[0])
            form: Any = marker() if element.primitive else absent(element)
            spot.object[("_" if element.primitive else "") + element.name] = [form] if element.many else form
        return True

    def _remove(self, spot: Spot) -> None:
        parent, element = spot.parent, spot.element
        assert parent is not None and element is not None
        values = parent.object.get(element.name)
        if spot.index is None:
            parent.object.pop(element.name, None)
        elif type(values) is list and spot.index < len(values) and values[spot.index] is spot.object:
            values[spot.index] = REMOVED
        self.touch(parent, element.name)


def _compact(owner: dict[str, Any], name: str) -> None:
    """Drop removed entries of a repeating element and its sibling together; drop either when it holds nothing."""
    values, sibling = owner.get(name), owner.get("_" + name)
    if name.startswith("_") and type(values) is list:
        return _compact_siblings(owner, name, values)
    if type(values) is list or type(sibling) is list:
        first = values if type(values) is list else []
        second = sibling if type(sibling) is list else []
        length = max(len(first), len(second))
        pairs = [(first[i] if i < len(first) else None, second[i] if i < len(second) else None) for i in range(length)]
        kept = [(v, s) for v, s in pairs if v is not REMOVED and s is not REMOVED]
        _keep(owner, name, [v for v, _ in kept])
        _keep(owner, "_" + name, [s for _, s in kept])


def _compact_siblings(owner: dict[str, Any], name: str, siblings: list[Any]) -> None:
    """The same where entries of the siblings were removed: what they stood beside stays in its place."""
    values = owner.get(name[1:])
    first = values if type(values) is list else []
    length = max(len(first), len(siblings))
    pairs = [(first[i] if i < len(first) else None, siblings[i] if i < len(siblings) else None) for i in range(length)]
    kept = [(v, None if s is REMOVED else s) for v, s in pairs if v is not None or s is not REMOVED]
    if type(values) is list:
        _keep(owner, name[1:], [v for v, _ in kept])
    _keep(owner, name, [s for _, s in kept])


def _keep(owner: dict[str, Any], name: str, values: list[Any]) -> None:
    if any(value is not None for value in values):
        owner[name] = values
    else:
        owner.pop(name, None)


def _mark_required(owner: dict[str, Any], kind: str, name: str) -> None:
    element = element_of(kind, name)
    if element.min == 0:
        return
    form: Any = marker() if element.primitive else absent(element)
    owner[("_" if element.primitive else "") + name] = [form] if element.many else form


def _forms(spot: Spot, name: str) -> list[str]:
    """The JSON names in this object of an element that may be a choice."""
    kind = type_of(spot.type)
    assert kind is not None
    found = []
    for key in spot.object:
        element = kind.elements.get(key.removeprefix("_"))
        if element is not None and name in {element.name, element.choice}:
            found.append(element.name)
    return list(dict.fromkeys(found))


def _present(spot: Spot, name: str) -> bool:
    return bool(_forms(spot, name))


def _is(json_name: str, name: str, kind: str) -> bool:
    return name in {json_name, element_of(kind, json_name).choice}
