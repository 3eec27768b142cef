"""What a caller writes back -> the new image: its edit on what is stored, with all that it could not see kept (law 5).

The caller edits its *view*. So the view is made again as a read would make it, the edit is taken as what differs from it,
and what comes out must read, through the same redaction, as what came in. Where the caller sees all of the type there is
nothing to merge, and the body is the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fhirshield.fhir.content import Misfit, primitives
from fhirshield.fhir.definitions import resource_types
from fhirshield.fhir.interaction import Kind
from fhirshield.fhir.json import same
from fhirshield.fhir.patch import PatchError, apply
from fhirshield.fhir.reference import rebased
from fhirshield.model import Denial, Obligation, Permit, Reason, Refused, Stored, Tally, TypeView, misfit
from fhirshield.redact.body import PLACE, REDACTED, SUBSETTED, Redactor, Unseen, Work, is_computed, is_mark, silence
from fhirshield.redact.mend import ResourceDropped
from fhirshield.redact.merge import Merge, NotMergeable, agrees, roots_stay, twin

_SERVERS = ("versionId", "lastUpdated")
"""What of ``meta`` the server alone says (FHIR R4 §3.1.0.4)."""
_NESTING = frozenset({"Bundle", "Parameters"})
Pairs = list[tuple[Any, Any]]


@dataclass(slots=True)
class _Seen:
    """The view that the caller edits."""

    view: Any
    version: str
    applies: int
    pairs: Pairs
    """Objects of the view with those stored."""


@dataclass(frozen=True, slots=True)
class Edit:
    """What a caller wants to be stored, beside the view that it edits."""

    new: Any
    seen: _Seen | None


class Written:
    """Makes the images of writes, by the redaction that serves reads."""

    def __init__(self, redactor: Redactor, depth: int) -> None:
        self._redactor = redactor
        self._depth = depth

    def image(self, permit: Permit, stored: Stored, edit: Edit) -> Any:
        """The whole resource that a create, an update or a patch would store; None for a delete. Raises Refused.

        What the edit is about must have been gathered before, for what it comes to is judged, and may uncover nothing.
        """
        if edit.seen is None or permit.overwrites:
            return edit.new
        return self._merged(permit, stored, edit.seen, edit.new, permit.view(permit.interaction.type))

    def edit(self, permit: Permit, stored: Stored) -> Edit:
        """What the caller wants to be stored: its body, or its patch of what it sees. Raises Refused."""
        interaction = permit.interaction
        if stored.resource is None:
            if interaction.if_match:
                raise Refused(_stale())
            return Edit(_created(interaction.content, keep_id=interaction.kind is not Kind.CREATE), None)
        whole = permit.overwrites
        seen = _Seen(stored.resource, stored.version, 0, []) if whole else self._seen(permit, stored)
        if interaction.if_match and interaction.if_match != seen.version:
            raise Refused(_stale())
        if interaction.kind is Kind.DELETE:
            return Edit(None, None)
        new = self._patched(interaction.content, seen.view) if interaction.kind is Kind.PATCH else interaction.content
        if type(new) is not dict or new.get("resourceType") != interaction.type or new.get("id") != interaction.id:
            raise Refused(Denial(422, Reason.MALFORMED_REQUEST, "invalid", "a write changes neither type nor id"))
        _check_shape(new)
        new = _unmarked(new, stored.resource, whole=whole)
        if interaction.kind is Kind.UPDATE:
            _carry_labels(new, _unmarked(seen.view, stored.resource, whole=whole))
        return Edit(new, seen)

    def _patched(self, operations: Any, view: Any) -> Any:
        try:
            return apply(operations, view, max(8, self._depth - 8))
        except PatchError as error:
            where = f"operation {error.place}" if error.place >= 0 else "the patch"
            if error.malformed:
                denial = Denial(400, Reason.MALFORMED_REQUEST, "invalid", f"{where} is not JSON Patch (RFC 6902)")
            else:
                denial = Denial(422, Reason.MALFORMED_REQUEST, "processing", f"{where} does not apply to what this caller sees")
            raise Refused(denial) from None

    # --- the view -------------------------------------------------------------------------------------------------

    def _seen(self, permit: Permit, stored: Stored) -> _Seen:
        verdict = permit.judge(stored.resource, "r", stored.careful)
        if not verdict.shown:
            raise Refused(_hidden(verdict.reason))
        work = Work(permit, Tally(), self._redactor.tools(permit), stored.careful, stored.deep, stored.named)
        pairs: Pairs = []
        copy = twin(stored.resource, pairs)
        try:
            label, closed = self._redactor.redact(copy, verdict.applies, work, mark=PLACE)
        except (ResourceDropped, Unseen):
            raise Refused(_hidden(Reason.DENIED_BY_RULE)) from None
        token = self._redactor.finish(copy, label, closed, work)[1]
        if token:
            copy["meta"]["versionId"] = token
        _in_upstreams_terms(copy, permit)
        return _Seen(copy, token or stored.version, verdict.applies, pairs)

    # --- the merge ------------------------------------------------------------------------------------------------

    def _merged(self, permit: Permit, stored: Stored, seen: _Seen, new: Any, view: TypeView) -> Any:
        retyped = view.type == "Binary" and seen.applies and not same(new.get("contentType"), stored.resource.get("contentType"))
        if view.type in _NESTING or retyped:
            raise Refused(_part())
        if "meta" not in new and "meta" in (shown := _unmarked(seen.view, stored.resource, whole=False)):
            new["meta"] = shown["meta"]
        silent = view.silent or any(permit.view(inner["resourceType"]).silent for inner in _contained(stored.resource))
        if silent and not permit.situation.habits.drop_narrative:
            text = f"narrative of {view.type} is hidden from this caller, so this server refuses its updates"
            raise Refused(Denial(403, Reason.HIDDEN_PART, "forbidden", text))
        shown = _unmarked(seen.view, stored.resource, whole=False)
        if agrees(shown, new):
            return _unmarked(stored.resource, stored.resource, whole=True)
        after, written = self._nameless(new, permit)
        before = dict(stored.resource)
        if silent:
            silence(before)
            silence(after)
        bound = tuple(o for i, o in enumerate(view.obligations) if seen.applies >> i & 1)
        merge = Merge(
            shown, after, origins={id(made): original for made, original in seen.pairs}, written=written,
            contained=self._contained(permit, stored.resource), names=not view.naming.all_open,
        )  # fmt: skip
        try:
            roots_stay(shown, after, bound)
            image = merge(before, bound)
            meta = {name: value for name, value in image.get("meta", {}).items() if name.removeprefix("_") not in _SERVERS}
            image = {name: meta if name == "meta" else value for name, value in image.items() if name != "meta" or meta}
            self._reads_as(permit, stored, image, after, seen.applies)
        except NotMergeable:
            raise Refused(_part()) from None
        return image

    def _nameless(self, resource: Any, permit: Permit) -> tuple[Any, dict[int, Any]]:
        """A copy without the names that this caller may not read in references; and from its objects to those with them."""
        pairs: Pairs = []
        copy = twin(resource, pairs)
        view = permit.view(resource["resourceType"])
        if not view.naming.all_open:
            self._redactor.names_of(view, False).clean(copy, True, [], {})
            for inner in _contained(copy):
                self._redactor.names_of(permit.view(inner["resourceType"]), True).clean(inner, True, [], {})
        return copy, {id(made): original for made, original in pairs}

    def _contained(self, permit: Permit, resource: Any) -> dict[str, tuple[Obligation, ...]]:
        return {inner["resourceType"]: permit.view(inner["resourceType"]).obligations for inner in _contained(resource)}

    def _reads_as(self, permit: Permit, stored: Stored, image: Any, new: Any, applies: int) -> None:
        """What would be stored must read, for this caller, as what came in. Raises NotMergeable.

        What it may not read at all any more shows nothing; whether it may be written is judged next.
        """
        copy = twin(image, [])
        verdict = permit.judge(copy, "r", True)
        if not verdict.shown:
            return
        if verdict.applies != applies or not _binds_alike(permit, stored.resource, copy):
            raise NotMergeable
        work = Work(permit, Tally(), self._redactor.tools(permit), True, True, stored.named)
        try:
            self._redactor.redact(copy, applies, work, mark=PLACE)
        except (ResourceDropped, Unseen):
            raise NotMergeable from None
        again = _unmarked(copy, image, whole=False)
        _in_upstreams_terms(again, permit)
        if not agrees(again, new):
            raise NotMergeable


def _binds_alike(permit: Permit, stored: Any, image: Any) -> bool:
    """Whether what is hidden of each contained resource that stays is what was, whatever stands there."""
    was, will = (
        {str(one.get("id")): permit.judge(one, "c", True).applies for one in _contained(whole)} for whole in (stored, image)
    )
    return all(was[name] == will[name] for name in was.keys() & will.keys())


def _check_shape(new: Any) -> None:
    """What came back must be R4 before it is merged: else what is hidden could show in how it fails. Raises Refused."""
    try:
        for _ in primitives(new):
            pass
    except Misfit as error:
        raise Refused(misfit(str(error.args[0]))) from None


def _contained(resource: Any) -> list[dict[str, Any]]:
    """The contained resources that are of a type of R4."""
    found = resource.get("contained")
    return (
        [one for one in found if type(one) is dict and one.get("resourceType") in resource_types()] if type(found) is list else []
    )


def _in_upstreams_terms(node: Any, permit: Permit) -> None:
    """Our own URLs as the upstream's, as in what comes in: texts that hold one are the same to the caller."""
    ours, *others = permit.situation.bases
    if not others or ours == others[0]:
        return
    for key, value in node.items() if type(node) is dict else enumerate(node):
        if type(value) is str:
            if ours[8:] in value:
                node[key] = rebased(value.encode(), ours, others[0]).decode()
        elif type(value) is dict or type(value) is list:
            _in_upstreams_terms(value, permit)


# --- marks and labels -----------------------------------------------------------------------------------------------------


def _created(content: Any, *, keep_id: bool) -> Any:
    image = _unmarked(content, {}, whole=True)
    if not keep_id:
        image.pop("id", None)
    return image


def _unmarked(resource: Any, stored: Any, *, whole: bool) -> Any:
    """A shallow copy without what the server alone says of versions, and without marks but those that are stored as such."""
    meta = resource.get("meta")
    if type(meta) is not dict:
        return dict(resource)
    kept = {name: value for name, value in meta.items() if name.removeprefix("_") not in _SERVERS}
    own = stored.get("meta")
    for name, mark in (("security", REDACTED), ("tag", SUBSETTED)):
        if type(kept.get(name)) is list:
            before = own.get(name) if type(own) is dict else None
            known = [c for c in before if is_mark(c, mark)] if whole and type(before) is list else []
            kept[name] = [c for c in kept[name] if not is_mark(c, mark) and not is_computed(c)] + known
            if not kept[name]:
                del kept[name]
    return {name: kept if name == "meta" else value for name, value in resource.items() if name != "meta" or kept}


def _carry_labels(new: Any, view: Any) -> None:
    """An update that says nothing of labels leaves them as they are."""
    shown = view.get("meta")
    if type(shown) is dict and "security" in shown:
        meta = new.get("meta")
        if type(meta) is not dict:
            meta = {} if meta is None else meta
        if type(meta) is dict and "security" not in meta:
            new["meta"] = {**meta, "security": shown["security"]}


# --- refusals -------------------------------------------------------------------------------------------------------------


def _hidden(reason: Reason) -> Denial:
    return Denial(404, reason, "not-found", "no such resource for this caller")


def _stale() -> Denial:
    return Denial(412, Reason.STALE_VERSION, "conflict", "`If-Match` names another version than the current one")


def _part() -> Denial:
    """One text for every edit that cannot be merged, so that it tells nothing of what is hidden."""
    text = "what was changed is, stands beside or may hold something that this caller may not see; nothing was written"
    return Denial(403, Reason.HIDDEN_PART, "forbidden", text)
