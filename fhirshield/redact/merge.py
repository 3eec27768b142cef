"""What a redacted view writes back, merged with what it could not see (law 5).

Three values stand side by side: what is *stored*, the *view* of it that this caller has, and the *new* one that came back. What
equals the view means unchanged and keeps all that is stored there, hidden parts included; what differs is the caller's edit.
An edit that would touch, uncover or orphan something that may be hidden is refused, by where it is and never by whether
anything hidden was there. Whatever comes out is redacted once more by the caller of this module: it must read as what came in.

Arrays whose entries may hide something align by element id, or by entries that came back unchanged, in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fhirshield.fhir.absent import URL as ABSENT
from fhirshield.fhir.json import same
from fhirshield.fhir.path import Each, Name, Segment, Where, predicate, reads
from fhirshield.model import Obligation

MISSING: Any = object()
Live = tuple[tuple[Segment, ...], ...]
"""Paths of obligations from here on; an empty one ends here."""


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
    """One merge. ``origins`` leads from objects of the view to those stored; ``contained`` are obligations by inner type."""

    def __init__(self, view: Any, new: Any, origins: dict[int, Any], contained: dict[str, tuple[Obligation, ...]]) -> None:
        self._view = view
        self._new = new
        self._origins = origins
        self._contained = contained
        self._roots: frozenset[str] = frozenset()
        """The elements of the resource that an obligation touches."""

    def __call__(self, stored: Any, obligations: tuple[Obligation, ...]) -> Any:
        """The new image. Raises NotMergeable."""
        self._roots = frozenset(name for obligation in obligations for name in _first(obligation.path.segments))
        return self._object(stored, self._view, self._new, _paths(obligations))

    # --- objects ----------------------------------------------------------------------------------------------------

    def _object(self, stored: Any, view: Any, new: Any, live: Live) -> Any:
        result: dict[str, Any] = {}
        for name in [*stored, *(name for name in new if name not in stored)]:
            value = self._member(name, stored, view, new, live)
            if value is not MISSING:
                result[name] = value
        for name in view:
            if name not in stored and name not in new and not _only_markers(view[name]):
                raise NotMergeable
        return result

    def _member(self, name: str, stored: Any, view: Any, new: Any, live: Live) -> Any:
        was, seen, now = stored.get(name, MISSING), view.get(name, MISSING), new.get(name, MISSING)
        if (seen is MISSING and now is MISSING) or (seen is not MISSING and now is not MISSING and same(seen, now)):
            return was
        here = _on(live, name)
        if now is MISSING:
            if _only_markers(seen):
                return was
            if here:
                raise NotMergeable
            return MISSING
        if () in here:
            raise NotMergeable
        if name == "contained":
            return self._contents(was, seen, now)
        if type(now) is dict and type(was) in (dict, type(MISSING)) and type(seen) in (dict, type(MISSING)):
            return self._object(_or(was, {}), _or(seen, {}), now, here)
        if type(now) is list and not name.startswith("_") and any(type(one) is dict for one in [*_or(was, []), *now]):
            return self._entries(_or(was, []), _or(seen, []), now, here)
        if was is not MISSING and not same(was, seen):
            raise NotMergeable
        return now

    # --- arrays -----------------------------------------------------------------------------------------------------

    def _entries(self, stored: Any, view: Any, new: Any, live: Live) -> list[Any]:
        if type(stored) is not list or type(view) is not list:
            raise NotMergeable
        pairs = self._aligned(view, new, live)
        result: list[Any] = []
        made: dict[int, int] = {}
        for index, entry in enumerate(new):
            seen = pairs.get(index)
            origin = self._origins.get(id(view[seen])) if seen is not None else None
            if seen is None or origin is None:
                result.append(entry)
                continue
            within = self._within(view[seen], live)
            self._filters_stay(view[seen], entry, live)
            made[id(origin)] = len(result)
            result.append(self._object(origin, view[seen], entry, within))
        return _with_hidden(stored, {id(self._origins.get(id(one))) for one in view}, made, result)

    def _aligned(self, view: list[Any], new: list[Any], live: Live) -> dict[int, int]:
        """Entry of the new list -> entry of the view, in order. Raises NotMergeable where one that may hide something is lost."""
        pairs: dict[int, int] = {}
        begin = 0
        for index, seen in enumerate(view):
            found = next((i for i in range(begin, len(new)) if _is_same_entry(seen, new[i], view)), None)
            if found is not None:
                pairs[found] = index
                begin = found + 1
            elif self._within(seen, live):
                raise NotMergeable
        if len(view) == len(new) and not any(self._within(seen, live) for seen in view):
            taken = set(pairs.values())
            for index in range(len(view)):
                if index not in pairs and index not in taken and type(new[index]) is dict:
                    pairs[index] = index
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
        was, seen = _or(stored, []), _or(view, [])
        if not all(type(part) is list for part in (was, seen, new)):
            raise NotMergeable
        kept = {one.get("id"): one for one in seen if type(one) is dict}
        if len(kept) != len(seen):
            raise NotMergeable
        result = []
        for entry in new:
            before = kept.pop(entry.get("id"), None) if type(entry) is dict else None
            origin = self._origins.get(id(before)) if before is not None else None
            if before is None or origin is None or before.get("resourceType") != entry.get("resourceType"):
                if before is not None and self._contained.get(before["resourceType"]):
                    raise NotMergeable
                result.append(entry)
                continue
            live = _paths(self._contained.get(before["resourceType"], ()))
            result.append(self._object(origin, before, entry, live))
        if any(self._contained.get(str(one.get("resourceType"))) for one in kept.values()):
            raise NotMergeable
        return result


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


def _get(node: Any, name: str) -> Any:
    """An element with its sibling."""
    return [node.get(name), node.get("_" + name)] if type(node) is dict else None


def _is_same_entry(seen: Any, now: Any, view: list[Any]) -> bool:
    """Whether an entry that came back is one that was shown: unchanged, or by an id that one entry alone has."""
    if same(seen, now):
        return True
    identity = seen.get("id") if type(seen) is dict else None
    if not isinstance(identity, str) or type(now) is not dict or now.get("id") != identity:
        return False
    return len([one for one in view if type(one) is dict and one.get("id") == identity]) == 1


def _only_markers(value: Any) -> bool:
    """Whether nothing stands here but data-absent-reason ``masked``: then its absence in what comes back means nothing."""
    if type(value) is list:
        return bool(value) and all(one is None or _only_markers(one) for one in value)
    if type(value) is not dict or not value:
        return False
    extensions = value.get("extension")
    if type(extensions) is list and any(
        type(one) is dict and one.get("url") == ABSENT and one.get("valueCode") == "masked" for one in extensions
    ):
        return len(extensions) == 1 and all(name == "extension" or _only_markers(one) for name, one in value.items())
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


# --- names in references --------------------------------------------------------------------------------------------------

Told = dict[tuple[str, str], list[dict[str, Any]]]
"""Names that this caller may not see, by where a reference stands and what it refers to, in order."""
_TELLING = ("display", "identifier", "_display", "_identifier")


def told(pairs: list[tuple[Any, Any]], resource: Any) -> Told:
    """What cleaning took from the references of a resource: ``pairs`` are cleaned objects with the original ones."""
    cleaned = {id(original): made for made, original in pairs}
    found: Told = {}
    for where, reference in _references(resource, ""):
        taken = {n: reference[n] for n in _TELLING if n in reference and n not in cleaned[id(reference)]}
        found.setdefault((where, reference["reference"]), []).append(taken)
    return found


def name_again(image: Any, stored: Told, new: Told) -> None:
    """Give references the names that this caller may not see: as stored where they still refer to the same, else as written.

    What something is called belongs to what is referred to: with another target it goes.
    """
    for where, reference in _references(image, ""):
        key = (where, reference["reference"])
        written = new[key].pop(0) if new.get(key) else {}
        taken = stored[key].pop(0) if stored.get(key) else written
        for name, value in taken.items():
            reference.setdefault(name, value)


def _references(node: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Literal references with the path of elements to each, extensions included."""
    if type(node) is dict:
        if type(node.get("reference")) is str:
            yield where, node
        for name, value in node.items():
            if type(value) is dict or type(value) is list:
                yield from _references(value, f"{where}.{name}")
    elif type(node) is list:
        for value in node:
            yield from _references(value, where)
