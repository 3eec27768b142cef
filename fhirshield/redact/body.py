"""One resource that leaves, serialised from the value that was judged: what is read, what was written, an entry of a search."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from fhirshield.fhir.absent import marker
from fhirshield.fhir.glance import Code, Page
from fhirshield.fhir.interaction import Interaction, Kind, Return
from fhirshield.fhir.json import decode, encode
from fhirshield.fhir.outcome import outcome
from fhirshield.fhir.subjects import has_subject, patients_of
from fhirshield.fhir.v3 import ACT_CODE, CONFIDENTIALITY, NOTICES, is_sensitivity, system_of
from fhirshield.model import Answer, Denial, Permit, Reason, Refused, Tally, TypeView, Verdict, View
from fhirshield.redact.links import Linker
from fhirshield.redact.mend import ResourceDropped, carry_out
from fhirshield.redact.names import Names
from fhirshield.redact.operations import Tools
from fhirshield.redact.place import Change
from fhirshield.redact.program import Program
from fhirshield.redact.raw import raw
from fhirshield.ring import Ring

JSON = ("Content-Type", "application/fhir+json; charset=utf-8")
MOST_PROGRAMS = 4096
"""Compiled programs that are kept: one for each view of a type and each set of criteria that hold."""
_LABELS = "http://terminology.hl7.org/CodeSystem/v3-ObservationValue"
REDACTED = {"system": _LABELS, "code": "REDACTED", "display": "redacted"}
SUBSETTED = {"system": _LABELS, "code": "SUBSETTED", "display": "subsetted"}
COMPUTED = "computed"
"""The display of labels that are not stored; they are stripped from every write."""
PLACE = secrets.token_hex(16)
"""Stands for the version while a view is digested; nobody can know it in advance."""
Again = Callable[[Any], bool | None] | None
_NOT_FOUND = "no such resource for this caller"


@dataclass(slots=True)
class Work:
    """What one answer is worked with."""

    permit: Permit
    tally: Tally
    tools: Tools
    careful: bool
    deep: bool
    named: bool
    """The upstream's own URL may stand in the text."""
    page: Page | None = None
    """What the resources came on."""

    def judged(self, resource: Any, letter: str) -> Verdict:
        """What the judge says of a resource as it came."""
        return self.permit.judge(resource, letter, self.careful, self.page)


class Redactor:
    """Makes views; holds the compiled programs, shared by all callers whose views are the same."""

    def __init__(self, ring: Ring, *, page_lifetime: float = 3600.0) -> None:
        self._ring = ring
        self.linker = Linker(ring, page_lifetime)
        self._programs: dict[tuple[TypeView, int], Program] = {}
        self._names: dict[tuple[TypeView, bool], Names] = {}

    def __call__(self, answer: Answer) -> View:
        """The view of a read or a write (for searches see ``searchset``). Raises Refused (404) where what is read is withheld."""
        permit = answer.plan.permit
        work = Work(permit, Tally(), self.tools(permit), answer.careful, answer.deep, answer.named)
        if permit.interaction.kind in {Kind.READ, Kind.VREAD}:
            return self._one(answer, work)
        return self._written(answer, work)

    def tools(self, permit: Permit) -> Tools:
        """What operations may use in this exchange."""
        return Tools(permit.situation.now.date(), lambda value: self._ring.digest("hashes", value))

    # --- one resource -------------------------------------------------------------------------------------------

    def _one(self, answer: Answer, work: Work) -> View:
        permit = work.permit
        verdict = permit.judge(answer.resource, "r", work.careful)
        body = self.body(answer.resource, verdict, work)
        if body is None:
            rule = "" if verdict.shown else verdict.rule
            reason = Reason.NOT_FOUND if verdict.shown else verdict.reason
            denial = Denial(404, Reason.NOT_FOUND, "not-found", _NOT_FOUND, rule=rule)
            raise Withheld(denial, work.tally, reason)
        content, version = body
        headers = [JSON, ("Content-Location", self.linker.location(permit, answer.resource))]
        closed = permit.view(permit.interaction.type).closed
        for name, shown_as, part in (("etag", "ETag", "versionId"), ("last-modified", "Last-Modified", "lastUpdated")):
            if part not in closed and name in answer.headers:
                headers.append((shown_as, answer.headers[name]))
        if version:
            headers.append(("ETag", f'W/"{version}"'))
        view = View(200, tuple(headers), content, Reason.PERMITTED, work.tally, verdict.rule)
        return raw(view, permit) if permit.interaction.raw else view

    def view_of(self, resource: Any, permit: Permit, letter: str = "r") -> bytes | None:
        """What a read of a resource would show, without touching it; None where it is withheld."""
        work = Work(permit, Tally(), self.tools(permit), careful=True, deep=True, named=False)
        found = self.body(decode(encode(resource)), permit.judge(resource, letter, True), work)
        return found[0] if found else None

    def body(self, resource: Any, verdict: Verdict, work: Work, again: Again = None) -> tuple[bytes, str] | None:
        """The bytes of one resource as this caller may see it, with its view token; None where it is withheld.

        ``again`` judges whether the redacted view still is what was searched for.
        """
        if not verdict.shown:
            add(work.tally.withheld, verdict.reason)
            return None
        patients = self._patients(resource, work)
        try:
            label, closed = self.redact(resource, verdict.applies, work, mark=PLACE)
        except (ResourceDropped, Unseen) as error:
            add(work.tally.withheld, error.args[0] if isinstance(error, Unseen) else Reason.DENIED_BY_RULE)
            return None
        tally = work.tally
        if again is not None and again(resource) is not True:
            add(tally.withheld, Reason.NOT_MATCHED)
            return None
        if verdict.labels:
            self._label(resource, verdict.labels, work)
        tally.shown += 1
        add(tally.granted, verdict.rule)
        tally.patients.update(patients)
        return self.finish(resource, label, closed, work)

    def _label(self, resource: dict[str, Any], labels: tuple[Code, ...], work: Work) -> None:
        """Say how sensitive it is, unless something of its type is hidden, of which that could tell."""
        work.tally.notices.update(code for _, code in labels if code in NOTICES)
        if work.permit.view(resource["resourceType"]).marked:
            labels = tuple(one for one in labels if one[1] in NOTICES)
        meta = resource.get("meta")
        meta = meta if type(meta) is dict else {}
        stored = meta.get("security")
        stored = stored if type(stored) is list else []
        there = {one.get("code") for one in stored if type(one) is dict}
        added = [{"system": system, "code": code, "display": COMPUTED} for system, code in labels if code not in there]
        if added:
            resource["meta"] = {**meta, "security": [*stored, *added]}

    def finish(self, resource: Any, label: bytes, closed: frozenset[str], work: Work) -> tuple[bytes, str]:
        """The bytes of a redacted resource, and the token that is its version there; empty where the server's own stays."""
        content = encode(resource)
        if work.named:
            content = self.linker.ours(work.permit, content)
        if "versionId" not in closed:
            return content, ""
        head, _, tail = content.partition(PLACE.encode())
        token = self._ring.digest("view tokens", b"".join((label, head, tail)))
        return b"".join((head, token.encode(), tail)), token

    def _patients(self, resource: Any, work: Work) -> Iterable[str]:
        """Whom a resource is about, for the record."""
        return patients_of(resource, work.permit.situation.bases) or () if has_subject(resource["resourceType"]) else ()

    def redact(self, resource: dict[str, Any], applies: int, work: Work, *, mark: str | None) -> tuple[bytes, frozenset[str]]:
        """Redact in place what one resource and those within it may not show. Raises ResourceDropped, Unseen.

        ``mark`` is the version that the marked resource gets; contained ones (None) carry no marks (dom-4, dom-5). Returns what
        names the views that went into it, and what of its ``meta`` is closed. What holds a marked resource is marked itself.
        """
        view = work.permit.view(resource["resourceType"])
        inner = self._within(resource, work)
        silent = view.silent or any(one.silent for one in inner)
        marked = view.marked or any(one.marked for one in inner)
        label = b"".join(one.label for one in (view, *inner) if one.marked)
        closed = view.closed.union(*(one.closed for one in inner))
        changes: list[Change] = []
        counts = work.tally.redacted
        if applies:
            self._program(view, applies).follow(resource, work.tools, changes, counts)
        if not view.naming.all_open:
            self.names_of(view, mark is None).clean(resource, work.deep, changes, counts)
        if changes:
            carry_out(changes, work.tools, counts)
        if silent:
            silence(resource)
        if not work.permit.sees_everything and "meta" in resource:
            _plain_tags(resource["meta"])
        if marked and work.permit.labelled:
            _unlabel(resource)
        if marked and mark is not None:
            _mark(resource, mark, closed)
        return label, closed

    def _program(self, view: TypeView, applies: int) -> Program:
        key = (view, applies)
        found = self._programs.get(key)
        if found is None:
            if len(self._programs) >= MOST_PROGRAMS:
                self._programs.clear()
            bound = tuple(o for i, o in enumerate(view.obligations) if applies >> i & 1)
            found = self._programs[key] = Program(view.type, bound)
        return found

    def names_of(self, view: TypeView, within: bool) -> Names:
        """What references of this type may not tell this caller."""
        found = self._names.get((view, within))
        if found is None:
            if len(self._names) >= MOST_PROGRAMS:
                self._names.clear()
            found = self._names[view, within] = Names(view.type, view.naming, within=within)
        return found

    # --- what a write came to -----------------------------------------------------------------------------------------

    def _written(self, answer: Answer, work: Work) -> View:
        """What a writer is told: where it is, which version, and, if it may be read and is wanted, the resource."""
        permit, interaction, writing = work.permit, work.permit.interaction, work.permit.writing
        assert writing is not None
        work.tally.patients.update(writing.patients)
        if interaction.kind is Kind.DELETE:
            return self._told(interaction, 204, [], "deleted", work)
        made = writing.creates and answer.status != 200
        status = 201 if made else 200
        identity = answer.id or interaction.id
        verdict = permit.judge(answer.resource, "r", work.careful) if answer.resource is not None else None
        content = self.body(answer.resource, verdict, work) if verdict is not None else None
        closed = permit.view(interaction.type).closed
        version = (content[1] if content else "") or ("" if "versionId" in closed else answer.version)
        headers = []
        if made:
            headers.append(("Location", self.linker.created(permit, identity, version)))
        if version:
            headers.append(("ETag", f'W/"{version}"'))
        if "lastUpdated" not in closed and "last-modified" in answer.headers and verdict is not None and verdict.shown:
            headers.append(("Last-Modified", answer.headers["last-modified"]))
        created = identity if made else ""
        if content is None or interaction.answer is not Return.REPRESENTATION:
            return replace(self._told(interaction, status, headers, "created" if made else "updated", work), created=created)
        rule = verdict.rule if verdict else ""
        return View(status, (JSON, *headers), content[0], Reason.PERMITTED, work.tally, rule, created)

    def _told(self, interaction: Interaction, status: int, headers: list[tuple[str, str]], what: str, work: Work) -> View:
        """An answer without the resource."""
        if interaction.answer is Return.OUTCOME:
            body = encode(outcome("informational", what, severity="information"))
            return View(200 if status == 204 else status, (JSON, *headers), body, Reason.PERMITTED, work.tally)
        return View(status, tuple(headers), b"", Reason.PERMITTED, work.tally)

    # --- resources within resources -------------------------------------------------------------------------------

    def _within(self, resource: dict[str, Any], work: Work) -> list[TypeView]:
        """Judge and redact embedded resources; the views of those that stay."""
        found: list[TypeView] = []
        contained = resource.get("contained")
        if contained is not None:
            for inner in contained if type(contained) is list else [contained]:
                verdict = work.permit.judge(inner, "c", work.careful)
                if not verdict.shown:
                    raise Unseen(verdict.reason)
                if inner["resourceType"] != "Patient":  # its id is of this resource alone
                    work.tally.patients.update(self._patients(inner, work))
                self.redact(inner, verdict.applies, work, mark=None)
                found.append(work.permit.view(inner["resourceType"]))
        kind = resource["resourceType"]
        name = {"Bundle": "entry", "Parameters": "parameter"}.get(kind)
        if name in resource:
            resource[name] = self._nested(resource[name], work, found)
            if not resource[name]:
                del resource[name]
        if kind == "Bundle" and not work.permit.sees_everything:
            _quiet(resource)
        return found

    def _nested(self, entries: Any, work: Work, found: list[TypeView]) -> list[Any]:
        """Entries of a Bundle or parameters of Parameters without those whose resource is withheld."""
        kept = []
        for entry in entries if type(entries) is list else []:
            if type(entry) is not dict:
                raise Unseen(Reason.UPSTREAM_MALFORMED)
            response = entry.get("response")
            if type(response) is dict:
                response.pop("outcome", None)
            inner = entry.get("resource")
            if inner is not None:
                verdict = work.permit.judge(inner, "r", work.careful)
                if not verdict.shown:
                    add(work.tally.withheld, verdict.reason)
                    continue
                patients = self._patients(inner, work)
                self.redact(inner, verdict.applies, work, mark="")
                found.append(work.permit.view(inner["resourceType"]))
                work.tally.patients.update(patients)
                work.tally.shown += 1
                add(work.tally.granted, verdict.rule)
            if "part" in entry:
                entry["part"] = self._nested(entry["part"], work, found)
                if not entry["part"]:
                    continue
            kept.append(entry)
        return kept


class Withheld(Refused):
    """A 404 whose record must still say what was judged."""

    def __init__(self, denial: Denial, tally: Tally, reason: Reason) -> None:
        super().__init__(denial)
        self.tally = tally
        self.reason = reason


class Unseen(Exception):
    """Something within a resource withholds the whole; carries the reason."""


def _quiet(bundle: dict[str, Any]) -> None:
    """What a stored Bundle says around its entries tells of what was withheld, or where it came from."""
    for name in ("total", "_total", "link"):
        bundle.pop(name, None)
    for entry in bundle.get("entry", ()):
        entry.pop("link", None)
        if "resource" not in entry:
            entry.pop("fullUrl", None)
        request, response = entry.get("request"), entry.get("response")
        if type(request) is dict:
            method = request.get("method")
            entry["request"] = {"method": method, "_url": marker()} if isinstance(method, str) else {"_url": marker()}
        if type(response) is dict:
            status = response.get("status")
            entry["response"] = {"status": status} if isinstance(status, str) else {"_status": marker()}


def _mark(resource: dict[str, Any], version: str, closed: frozenset[str]) -> None:
    """The same marks on every resource of a redacted type, whether or not there was anything to hide."""
    meta = resource.get("meta")
    meta = meta if type(meta) is dict else {}
    for name in closed:
        meta.pop(name, None)
        meta.pop("_" + name, None)
    if version and "versionId" in closed:
        meta["versionId"] = version
    for name, mark in (("security", REDACTED), ("tag", SUBSETTED)):
        codings = meta.get(name)
        codings = [c for c in codings if not is_mark(c, mark)] if type(codings) is list else []
        meta[name] = [*codings, mark]
    resource["meta"] = meta


def _unlabel(resource: dict[str, Any]) -> None:
    """Labels of sensitivity go where something is hidden of which they could tell."""
    meta = resource.get("meta")
    labels = meta.get("security") if type(meta) is dict else None
    if type(meta) is dict and type(labels) is list:
        kept = [one for one in labels if not _tells(one)]
        resource["meta"] = {**meta, "security": kept} if kept else {k: v for k, v in meta.items() if k != "security"}


def _tells(coding: Any) -> bool:
    system, code = (coding.get("system"), coding.get("code")) if type(coding) is dict else (None, None)
    system = system_of(system) if type(system) is str else ""
    return system == CONFIDENTIALITY or (system == ACT_CODE and type(code) is str and is_sensitivity(code))


def is_computed(coding: Any) -> bool:
    """Whether a label is one that was added when the resource left."""
    return type(coding) is dict and coding.get("display") == COMPUTED


def _plain_tags(meta: Any) -> None:
    """Tags without their texts: servers such as HAPI keep one text for each, whoever wrote it first and on whatever resource."""
    tags = meta.get("tag") if type(meta) is dict else None
    for tag in tags if type(tags) is list else ():
        if type(tag) is dict and not is_mark(tag, SUBSETTED):
            for name in ("display", "_display", "version", "_version", "userSelected", "_userSelected"):
                tag.pop(name, None)


def is_mark(coding: Any, mark: dict[str, str]) -> bool:
    return type(coding) is dict and coding.get("system") == mark["system"] and coding.get("code") == mark["code"]


def silence(resource: dict[str, Any]) -> None:
    """Remove narrative."""
    resource.pop("text", None)
    if resource["resourceType"] == "Composition":
        _silence_sections(resource)


def _silence_sections(node: dict[str, Any]) -> None:
    """Remove ``section.text`` at every depth; a section that holds nothing else goes (cmp-1)."""
    sections = node.get("section")
    if type(sections) is not list:
        node.pop("section", None)
        return
    kept = []
    for section in sections:
        if type(section) is dict:
            section.pop("text", None)
            _silence_sections(section)
            if section.get("entry") or section.get("section"):
                kept.append(section)
    if kept:
        node["section"] = kept
    else:
        node.pop("section", None)


def add(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1
