"""What a redacted view writes back, merged with what it could not see (law 5).

Three values stand side by side: what is *stored*, the *view* of it that this caller has, and the *new* one that came back. What
equals the view means unchanged and keeps all that is stored there, hidden parts included; what differs is the caller's edit.
An edit that would touch, uncover or orphan something that may be hidden is refused, by where it is and never by whether
anything hidden was there. Whatever comes out is redacted once more by the caller of this module: it must read as what came in.

Entries of arrays that may hide something align by element id, or unchanged and in order. Two things go with what they belong
to: names in a reference with what it refers to, and what stands beside a primitive value with that value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from fhirshield.fhir.absent import URL as ABSENT
from fhirshield.fhir.definitions import Element, type_of
from fhirshield.fhir.json import canonical, same
from fhirshield.fhir.path import Each, Name, Segment, Where, predicate, reads
from fhirshield.fhir.reference_places import ways
from fhirshield.model import Obligation

MISSING: Any = object()
Live = tuple[tuple[Segment, ...], ...]
"""Paths of obligations from here on; an empty one ends here."""
_NAMES = ("display", "_display", "identifier", "_identifier")


class NotMergeable(Exception):
    """An edit that cannot be brought together with what is hidden."""


def twin(node: Any, pairs: list[tuple[Any, Any]]) -> Any:
    """A copy of a JSON value; ``pairs`` takes each object of the copy with its original."""
    if type(node) is dict:
        made: Any = {name: twin(value, pairs) for name, value in node.items()}
        pairs.append((made, node))
        return made
    if type(node) is list:
        return [twin(value, pairs) for value in node]
    return node


class Merge:
    """One merge.

    ``new`` comes without the names in references that its writer may not see; ``written`` leads from its objects to those with
    them. ``origins`` leads from objects of the view to those stored, ``contained`` are obligations by inner type, ``names`` says
    whether any name in a reference may be hidden from this caller.
    """

    def __init__(
        self, view: Any, new: Any, *, origins: dict[int, Any], written: dict[int, Any],
        contained: dict[str, tuple[Obligation, ...]], names: bool,
    ) -> None:  # fmt: skip
        self._view = view
        self._new = new
        self._origins = origins
        self._written = written
        self._contained = contained
        self._names = names
        self._roots: frozenset[str] = frozenset()
        """The elements of the resource that an obligation touches."""
        self._swapped = _kinds(view).items() ^ _kinds(new).items()
        """Contained resources that are not of the same type any more, or not there."""

    def __call__(self, stored: Any, obligations: tuple[Obligation, ...]) -> Any:
        """The new image. Raises NotMergeable."""
        self._roots = frozenset(name for obligation in obligations for name in _first(obligation.path.segments))
        return self._object(stored, self._view, self._new, _paths(obligations), self._view["resourceType"])

    # --- objects ----------------------------------------------------------------------------------------------------

    def _object(self, stored: Any, view: Any, new: Any, live: Live, kind: str) -> Any:
        known = type_of(kind)
        assert known is not None
        if kind == "Reference" and not self._refers_as_before(view, new):
            stored = {name: value for name, value in stored.items() if name not in _NAMES or name in view}
        chosen = {known.elements[name.removeprefix("_")].choice for name in new if name.removeprefix("_") in known.elements}
        result: dict[str, Any] = {}
        for name in [*stored, *(name for name in new if name not in stored)]:
            element = known.elements.get(name.removeprefix("_"))
            if element is not None and element.choice in chosen and element.choice and not self._stays(element, view, new, live):
                continue
            value = self._member(name, stored, view, new, live, element)
            if value is not MISSING:
                result[name] = value
        for name in view:
            if name not in stored and name not in new and not _only_markers(view[name]):
                raise NotMergeable
        return result

    def _refers_as_before(self, view: Any, new: Any) -> bool:
        text = new.get("reference")
        if not same(view.get("reference"), text) or not same(view.get("type"), new.get("type")):
            return False
        return not (isinstance(text, str) and text.startswith("#") and any(text[1:] == name for name, _ in self._swapped))

    def _stays(self, element: Element, view: Any, new: Any, live: Live) -> bool:
        """Whether a form of a choice stays beside what the caller chose: only the chosen one does, and none may hide another."""
        names = (element.name, "_" + element.name)
        if any(name in new for name in names):
            return True
        if _on(live, element.name):
            raise NotMergeable
        return False

    def _member(self, name: str, stored: Any, view: Any, new: Any, live: Live, element: Element | None) -> Any:
        was, seen, now = stored.get(name, MISSING), view.get(name, MISSING), new.get(name, MISSING)
        primitive = element is not None and element.primitive
        if primitive and not _on(live, name) and not self._unchanged(element, view, new):
            return self._beside(name, stored, view, new)
        if (seen is MISSING and now is MISSING) or (seen is not MISSING and now is not MISSING and same(seen, now)):
            return was
        here = _on(live, name)
        if now is MISSING and _only_markers(seen):
            return was
        if name == "contained" and () not in here:
            return self._contents(was, seen, now) or MISSING
        if now is MISSING:
            if here or self._may_name(element):
                raise NotMergeable
            return MISSING
        if () in here:
            raise NotMergeable
        kind = element.type if element is not None else ""
        if type(now) is dict and type(was) in (dict, type(MISSING)) and type(seen) in (dict, type(MISSING)) and not primitive:
            return self._object(_or(was, {}), _or(seen, {}), now, here, kind)
        if type(now) is list and not primitive:
            return self._entries(_or(was, []), _or(seen, []), now, here, kind)
        if was is not MISSING and not same(was, seen):
            raise NotMergeable
        return self._as_written(now)

    def _may_name(self, element: Element | None) -> bool:
        """Whether an element may hold references whose names are hidden, other than being one itself."""
        return self._names and element is not None and element.type != "Reference" and bool(ways(element.type))

    def _as_written(self, value: Any) -> Any:
        """A value of the new resource with the names that its writer gave."""
        if type(value) is dict:
            return self._written.get(id(value), value)
        return [self._as_written(one) for one in value] if type(value) is list else value

    # --- primitives -------------------------------------------------------------------------------------------------

    def _unchanged(self, element: Element | None, view: Any, new: Any) -> bool:
        """Whether value and sibling came back as they were shown; a missing mark of absence is no change."""
        assert element is not None
        for name in (element.name, "_" + element.name):
            seen, now = view.get(name, MISSING), new.get(name, MISSING)
            if now is MISSING and seen is not MISSING and _only_markers(seen):
                continue
            if (seen is MISSING) is not (now is MISSING) or (seen is not MISSING and not same(seen, now)):
                return False
        return True

    def _beside(self, name: str, stored: Any, view: Any, new: Any) -> Any:
        """A changed primitive, or what stands beside it, which belongs to its value: where a value stays, so does that."""
        now = new.get(name, MISSING)
        if not name.startswith("_"):
            return now
        plain = name[1:]
        values = [_listed(part.get(plain, MISSING)) for part in (view, new)]
        was, seen, new_ones = (_listed(part.get(name, MISSING)) for part in (stored, view, new))
        result, taken = [], 0
        length = max(len(values[1]), len(new_ones))
        for index in range(length):
            value = _at(values[1], index)
            place = next((i for i in range(taken, len(values[0])) if value is not None and same(values[0][i], value)), None)
            if place is None:
                result.append(_at(new_ones, index))
                continue
            taken = place + 1
            result.append(self._sibling(_at(was, place), _at(seen, place), _at(new_ones, index)))
        if not any(one is not None for one in result):
            return MISSING
        return result if type(now) is list or type(stored.get(name)) is list else result[0]

    def _sibling(self, was: Any, seen: Any, now: Any) -> Any:
        if same(seen, now) or (now is None and _only_markers(seen)):
            return was
        if type(now) is dict and type(was) in (dict, type(None)) and type(seen) in (dict, type(None)):
            return self._object(was or {}, seen or {}, now, (), "Element")
        if self._names and seen is not None:
            raise NotMergeable
        return self._as_written(now)

    # --- arrays -----------------------------------------------------------------------------------------------------

    def _entries(self, stored: Any, view: Any, new: Any, live: Live, kind: str) -> list[Any]:
        if type(stored) is not list or type(view) is not list:
            raise NotMergeable
        pairs = self._aligned(view, new, live, kind)
        result: list[Any] = []
        made: dict[int, int] = {}
        for index, entry in enumerate(new):
            seen = pairs.get(index)
            origin = self._origins.get(id(view[seen])) if seen is not None else None
            if seen is None or origin is None:
                result.append(self._as_written(entry))
                continue
            self._filters_stay(view[seen], entry, live)
            made[id(origin)] = len(result)
            result.append(self._object(origin, view[seen], entry, self._within(view[seen], live), kind))
        return _with_hidden(stored, {id(self._origins.get(id(one))) for one in view}, made, result)

    def _aligned(self, view: list[Any], new: list[Any], live: Live, kind: str) -> dict[int, int]:
        """Entry of the new list -> entry of the view. Raises NotMergeable where one that may hide something is lost.

        Entries that may hide something must come back in order. References are told apart by what they refer to.
        """
        plain = kind == "Reference" and not any(self._within(seen, live) for seen in view)
        places: dict[bytes, list[int]] = {}
        for index, entry in enumerate(new):
            places.setdefault(canonical(entry), []).append(index)
        ids = _ids(view, new)
        pairs: dict[int, int] = {}
        begin = 0
        for index, seen in enumerate(view):
            named = ids.get(seen["id"]) if type(seen) is dict and isinstance(seen.get("id"), str) else None
            equal = places.get(canonical(seen), [])
            found = named if named is not None else next((i for i in equal if i not in pairs and (plain or i >= begin)), None)
            if found is not None and found not in pairs and (plain or found >= begin):
                pairs[found] = index
                begin = found + 1
            elif self._within(seen, live) or (self._names and not plain and bool(ways(kind))):
                raise NotMergeable
        if plain:
            _by_target(view, new, pairs)
        elif len(view) == len(new):  # what is left may hide nothing but what goes with its values
            known = set(pairs.values())
            pairs |= {index: index for index in range(len(view)) if index not in pairs and index not in known}
        return pairs

    def _within(self, entry: Any, live: Live) -> Live:
        """The obligations that may bind in an entry, as far as this caller can tell.

        A filter that reads what is hidden itself may have chosen any entry.
        """
        hidden = {name for path in live for name in _first(path[1:])}
        found = []
        for path in live:
            step = path[0] if path else None
            if step is None:
                found.append(path)
            elif isinstance(step, Each):
                found.append(path[1:])
            elif isinstance(step, Where):
                of_entry, of_root = reads(step.expression)
                unsure = _plain(of_entry) & hidden or _plain(of_root) & self._roots
                if unsure or predicate(step.expression)(entry, self._view):
                    found.append(path[1:])
        return tuple(found)

    def _filters_stay(self, seen: Any, now: Any, live: Live) -> None:
        """An edit may not change whether a filter chooses the entry, or what another chooses by."""
        for path in live:
            if path and isinstance(path[0], Where):
                entry, _ = reads(path[0].expression)
                for name in entry:
                    if not same(_get(seen, name), _get(now, name)):
                        raise NotMergeable

    # --- contained resources ------------------------------------------------------------------------------------------

    def _contents(self, stored: Any, view: Any, new: Any) -> list[Any]:
        was, seen, now = _or(stored, []), _or(view, []), _or(new, [])
        if not all(type(part) is list for part in (was, seen, now)):
            raise NotMergeable
        kept = {one.get("id"): one for one in seen if type(one) is dict}
        if len(kept) != len(seen) or len({one.get("id") for one in now if type(one) is dict}) != len(now):
            raise NotMergeable
        result = []
        for entry in now:
            before = kept.pop(entry.get("id"), None)
            origin = self._origins.get(id(before)) if before is not None else None
            if before is None or origin is None or before.get("resourceType") != entry.get("resourceType"):
                if before is not None and self._may_hide(before):
                    raise NotMergeable
                result.append(self._as_written(entry))
                continue
            live = _paths(self._contained.get(before["resourceType"], ()))
            result.append(self._object(origin, before, entry, live, before["resourceType"]))
        if any(self._may_hide(one) for one in kept.values()):
            raise NotMergeable
        return result

    def _may_hide(self, contained: Any) -> bool:
        """Whether a contained resource may hold something that this caller does not see: what goes with it is lost."""
        return self._names or bool(self._contained.get(str(contained.get("resourceType"))))


def roots_stay(view: Any, new: Any, obligations: tuple[Obligation, ...]) -> None:
    """An edit may not change what filters read of the whole resource. Raises NotMergeable."""
    for obligation in obligations:
        for segment in obligation.path.segments:
            for name in reads(segment.expression)[1] if isinstance(segment, Where) else ():
                if not same(_get(view, name), _get(new, name)):
                    raise NotMergeable


# --- paths --------------------------------------------------------------------------------------------------------------


def _paths(obligations: tuple[Obligation, ...]) -> Live:
    return tuple(dict.fromkeys(obligation.path.segments for obligation in obligations))


def _on(live: Live, name: str) -> Live:
    """The paths that go on at an element; a primitive's sibling is the primitive, for both."""
    plain = name.removeprefix("_")
    found = []
    for path in live:
        step = path[0] if path else None
        if isinstance(step, Name) and any(one.removeprefix("_") == plain for one in step.names):
            below = path[1:]
            # a path to the sibling alone, or into it, speaks of the primitive as a whole
            found.append(() if any(one.startswith("_") for one in step.names) or name.startswith("_") else below)
    return tuple(dict.fromkeys(found))


def _first(segments: tuple[Segment, ...]) -> frozenset[str]:
    """The elements that a path goes on with."""
    return _plain(segments[0].names) if segments and isinstance(segments[0], Name) else frozenset()


def _plain(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name.removeprefix("_") for name in names)


# --- values -------------------------------------------------------------------------------------------------------------


def _or(value: Any, other: Any) -> Any:
    return other if value is MISSING else value


def _listed(value: Any) -> list[Any]:
    if value is MISSING:
        return []
    return value if type(value) is list else [value]


def _at(values: list[Any], index: int) -> Any:
    return values[index] if index < len(values) else None


def _get(node: Any, name: str) -> Any:
    """An element with its sibling."""
    return [node.get(name), node.get("_" + name)] if type(node) is dict else None


def _kinds(resource: Any) -> dict[Any, Any]:
    """The types of contained resources by their ids."""
    found = resource.get("contained")
    rows = [one for one in found if type(one) is dict] if type(found) is list else []
    return {str(one.get("id")): str(one.get("resourceType")) for one in rows}


def _ids(view: list[Any], new: list[Any]) -> dict[str, int]:
    """Where entries of the view that have an id of their own came back under it. Raises NotMergeable for an id given twice."""
    shown = Counter(one["id"] for one in view if type(one) is dict and isinstance(one.get("id"), str))
    found: dict[str, int] = {}
    for index, one in enumerate(new):
        name = one.get("id") if type(one) is dict else None
        if isinstance(name, str) and shown.get(name) == 1:
            if name in found:
                raise NotMergeable
            found[name] = index
    return found


def _by_target(view: list[Any], new: list[Any], pairs: dict[int, int]) -> None:
    """Pair references that are left by what they refer to, in order."""
    known = set(pairs.values())
    left: dict[str, list[int]] = {}
    for index, seen in enumerate(view):
        if index not in known and type(seen) is dict and isinstance(seen.get("reference"), str):
            left.setdefault(seen["reference"], []).append(index)
    for index, entry in enumerate(new):
        if index not in pairs and type(entry) is dict and left.get(str(entry.get("reference"))):
            pairs[index] = left[entry["reference"]].pop(0)


def _only_markers(value: Any) -> bool:
    """Whether nothing stands here but data-absent-reason ``masked``: then its absence in what comes back means nothing."""
    if type(value) is list:
        return bool(value) and all(one is None or _only_markers(one) for one in value)
    if type(value) is not dict or not value:
        return False
    extensions = value.get("extension")
    if type(extensions) is list and len(extensions) == 1 and type(extensions[0]) is dict:
        masked = extensions[0].get("url") == ABSENT and extensions[0].get("valueCode") == "masked"
        return masked and all(name == "extension" or _only_markers(one) for name, one in value.items())
    return False


def _with_hidden(stored: list[Any], shown: set[int], made: dict[int, int], result: list[Any]) -> list[Any]:
    """The entries that this caller could not see, each behind the one that it stood behind."""
    behind: dict[int, list[Any]] = {}
    place = -1
    for one in stored:
        place = made.get(id(one), place)
        if id(one) not in shown:
            behind.setdefault(place, []).append(one)
    merged = list(behind.get(-1, ()))
    for index, entry in enumerate(result):
        merged.append(entry)
        merged += behind.get(index, ())
    return merged


# --- what came out --------------------------------------------------------------------------------------------------------


def agrees(seen: Any, new: Any) -> bool:
    """Whether the view of what would be stored is what came in, missing marks of absence aside."""
    if type(seen) is dict and type(new) is dict:
        names = seen.keys() | new.keys()
        return all(_agrees_on(seen.get(name, MISSING), new.get(name, MISSING)) for name in names)
    if type(seen) is list and type(new) is list:
        return len(seen) == len(new) and all(map(agrees, seen, new))
    return same(seen, new)


def _agrees_on(seen: Any, new: Any) -> bool:
    if new is MISSING:
        return _only_markers(seen)
    return seen is not MISSING and agrees(seen, new)
