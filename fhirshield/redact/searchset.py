"""The searchset that leaves: a page of our own, filled from as many of the upstream's as it takes.

Where matches may be withheld, neither the number of a page's entries nor its link to the next may tell of them: a page is
full, or the last one, and there is a next page exactly where one more match is visible. Otherwise the upstream's pages are ours.
What is included is shown where the includes lead to it from the matches that are shown, as they are shown. Counts are our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from fhirshield.fhir.glance import Page
from fhirshield.fhir.including import reached
from fhirshield.fhir.interaction import Kind
from fhirshield.fhir.json import encode
from fhirshield.fhir.outcome import lifting
from fhirshield.fhir.page import Target
from fhirshield.fhir.reference import Literal, literal
from fhirshield.fhir.search_parameters import RESULT_PARAMETERS
from fhirshield.model import Answer, Denial, Permit, Plan, Reason, Refused, Tally, Total, View
from fhirshield.redact.body import JSON, PLACE, Redactor, Work, add
from fhirshield.redact.subset import subset


class Searchset:
    """Gathers the entries of one page. ``plan`` is where its first upstream page came from."""

    def __init__(self, redactor: Redactor, plan: Plan, *, whole: bool = False) -> None:
        """``whole``: not a page, but all matches, for ``shown``."""
        self._whole = whole
        self._redactor = redactor
        self._linker = redactor.linker
        self._permit: Permit = plan.permit
        self._here: tuple[Target, bool] = ((plan.segments, plan.query), plan.form)
        """Where the upstream page is that is being read."""
        page = plan.permit.interaction.page
        self._skip = page.skip if page else 0
        self._size = page.size if page else _asked(plan.permit)
        self._entries: list[dict[str, Any]] = []
        self._shown: dict[Literal, Any] = {}
        """Matches as they are shown, where includes start from them."""
        self.entries: dict[Literal, dict[str, Any]] = {}
        """Of a whole, the entries of its matches."""
        self._candidates: dict[Literal, tuple[Any, dict[str, Any], Tally]] = {}
        """What the upstream included, as it may be shown."""
        self._total = 0
        self._links: list[dict[str, str]] = []
        self._full = False
        self._understood = False
        self._page: Page | None = None
        self.tally = Tally()

    def add(self, answer: Answer) -> Target | None:
        """Take an upstream page; where the next one is, if it has to be read before this page is whole."""
        entries = answer.resource.get("entry", [])
        self._page = _page(answer)
        self._check_understood(answer)
        permit = self._permit
        for entry in entries if permit.shape.includes else ():
            if _mode(entry) == "include":
                self._consider(entry, answer)
        if self._whole:
            work = self._work(answer, self.tally)
            for entry in entries:
                made = self._made(entry, work) if _mode(entry) == "match" else None
                if made is not None and isinstance(entry["resource"].get("id"), str):
                    self.entries[Literal(permit.interaction.type, entry["resource"]["id"])] = made
            return self._linker.next_of(permit, answer.resource.get("link"))
        if permit.shape.total is not Total.NONE:
            return self._counted(answer, entries)
        if not permit.thins:
            work = self._work(answer, self.tally)
            found = (self._made(entry, work) for entry in entries if _mode(entry) == "match")
            self._entries = [made for made in found if made is not None]
            self._links = self._linker.links(permit, answer.resource.get("link"))
            return None
        onward = self._linker.next_of(permit, answer.resource.get("link"))
        matches = [place for place, entry in enumerate(entries) if _mode(entry) == "match"]
        if onward is not None and not self._size:
            self._size = max(1, len(matches))
        self._take(answer, entries, matches)
        if self._full or onward is None:
            return None
        self._here, self._skip = (onward, False), 0
        return onward

    def _check_understood(self, answer: Answer) -> None:
        """A criterion that the upstream left out is refused, or, to a lenient caller, not in ``self``. Raises Refused."""
        asked = self._permit.interaction
        if asked.kind is not Kind.SEARCH_TYPE or self._understood:
            return
        self._understood = True
        echoed = self._linker.echoed(self._permit, answer.resource.get("link"))
        own = {p.name for p in self._permit.sent} - RESULT_PARAMETERS
        ignored = sorted(own - echoed) if echoed is not None else []
        if ignored and not asked.lenient:
            text = f"the server does not know search parameter `{ignored[0]}` of {asked.type}"
            raise Refused(Denial(400, Reason.UNKNOWN_PARAMETER, "not-supported", text))
        if ignored:
            kept = tuple(p for p in asked.parameters if p.name not in ignored)
            self._permit = replace(self._permit, interaction=replace(asked, parameters=kept))

    def _take(self, answer: Answer, entries: list[dict[str, Any]], matches: list[int]) -> None:
        shown = self._work(answer, self.tally)
        ahead = self._work(answer, Tally())
        for number, place in enumerate(matches):
            if number < self._skip:
                continue
            if self._size and self._count == self._size:
                if self._made(entries[place], ahead) is not None:
                    self._stop(number)
                    return
                continue
            made = self._made(entries[place], shown)
            if made is not None:
                self._entries.append(made)

    @property
    def _count(self) -> int:
        return len(self._entries)

    def _stop(self, number: int) -> None:
        """There is one more match to see: the next page begins with it."""
        self._full = True
        ((segments, query), form) = self._here
        link = self._linker.page(self._permit, "next", segments, query, skip=number, size=self._size, form=form)
        self._links.append(link)

    def give_up(self) -> None:
        """The budget of upstream pages is spent: the next page begins where this one ends, whatever it holds. Raises Refused."""
        if self._permit.shape.total is not Total.NONE:
            text = "more matches than can be counted for this caller; ask more narrowly"
            raise Refused(Denial(403, Reason.NOT_SERVED, "too-costly", text))
        self._stop(0)

    def _counted(self, answer: Answer, entries: list[dict[str, Any]]) -> Target | None:
        """Count all that is visible, page by page; keep what belongs on the first of ours."""
        shown, counted = self._work(answer, self.tally), self._work(answer, Tally())
        most = self._size or DEFAULT_SIZE
        alone = self._permit.shape.total is Total.ALONE
        matches = (entry for entry in entries if _mode(entry) == "match")
        for number, entry in enumerate(matches):
            room = not alone and len(self._entries) < most
            made = self._made(entry, shown if room else counted, keep=room)
            if made is None:
                continue
            self._total += 1
            if room:
                self._entries.append(made)
            elif not alone and not self._full:
                self._size = most
                self._stop(number)
        onward = self._linker.next_of(self._permit, answer.resource.get("link"))
        if onward is not None:
            self._here = (onward, False)
        return onward

    @property
    def shown(self) -> Mapping[Literal, Any]:
        """The matches as they are shown, by name."""
        return self._shown

    def view(self) -> View:
        """The page."""
        permit = self._permit
        passed_on = not permit.thins and permit.shape.total is Total.NONE
        links = self._links if passed_on else [self._linker.own(permit), *self._links]
        bundle: dict[str, Any] = {"resourceType": "Bundle", "type": "searchset"}
        if permit.shape.total is not Total.NONE:
            bundle["total"] = self._total
        bundle["link"] = links
        entries = [*self._entries, *self._included()]
        if not entries and permit.lifts and permit.shape.total is not Total.ALONE:
            issues = {"resourceType": "OperationOutcome", "issue": [lifting(code) for code in permit.lifts]}
            entries = [{"resource": issues, "search": {"mode": "outcome"}}]
        if entries:
            bundle["entry"] = entries
        return View(200, (JSON,), encode(bundle), Reason.PERMITTED, self.tally)

    # --- entries --------------------------------------------------------------------------------------------------

    def _work(self, answer: Answer, tally: Tally) -> Work:
        permit = self._permit
        return Work(permit, tally, self._redactor.tools(permit), answer.careful, answer.deep, answer.named, self._page)

    def _made(self, entry: dict[str, Any], work: Work, *, keep: bool = True) -> dict[str, Any] | None:
        """The entry of a match, None where it is withheld; ``keep`` it for includes to start from."""
        resource = entry.get("resource")
        if type(resource) is not dict:
            return None
        permit = self._permit
        if resource.get("resourceType") != permit.interaction.type:
            add(work.tally.withheld, Reason.UPSTREAM_MALFORMED)
            return None
        body = self._redactor.body(resource, work.judged(resource, "s"), work, permit.rejudge)
        if body is None:
            return None
        identity = resource.get("id")
        if keep and (permit.shape.includes or self._whole) and work.tally is self.tally and isinstance(identity, str):
            self._shown[Literal(permit.interaction.type, identity)] = resource
        return self._entry(resource, body, "match", work)

    def _entry(self, resource: Any, body: tuple[bytes, str], mode: str, work: Work) -> dict[str, Any]:
        content, version = body
        if self._permit.shape.partial:
            content = self._part(resource, version, work)
        url = self._linker.full_url(self._permit, resource)
        made: dict[str, Any] = {"resource": msgspec.Raw(content), "search": {"mode": mode}}
        return {"fullUrl": url, **made} if url else made

    def _part(self, resource: Any, version: str, work: Work) -> bytes:
        part = subset(resource, self._permit.shape)
        if part["meta"].get("versionId") == PLACE:
            part["meta"]["versionId"] = version
        content = encode(part)
        return self._linker.ours(self._permit, content) if work.named else content

    # --- includes -------------------------------------------------------------------------------------------------

    def _consider(self, entry: dict[str, Any], answer: Answer) -> None:
        """Judge what the upstream included; whether it is shown depends on what refers to it."""
        resource = entry.get("resource")
        if type(resource) is not dict:
            return
        work = self._work(answer, Tally())
        body = self._redactor.body(resource, work.judged(resource, "i"), work)
        identity = resource.get("id")
        if body is not None and isinstance(identity, str):
            key = Literal(resource["resourceType"], identity)
            self._candidates[key] = (resource, self._entry(resource, body, "include", work), work.tally)

    def _included(self) -> list[dict[str, Any]]:
        """The entries that the includes lead to from what is shown, as it is shown."""
        if not self._candidates:
            return []
        resources = {key: candidate[0] for key, candidate in self._candidates.items() if key not in self._shown}
        permit = self._permit
        keys = reached(permit.shape.includes, self._shown, resources, permit.situation.bases)
        if not permit.sees_everything:
            seen = {*self._shown, *keys}
            keys = [key for key in keys if key.type != "Provenance" or _targets(resources[key], permit) <= seen]
            keys.sort(key=str)  # the server's order may tell by way of what it found them
        for key in keys:
            join(self.tally, self._candidates[key][2])
        return [self._candidates[key][1] for key in keys]


DEFAULT_SIZE = 50
"""Matches of a counted page where the caller says none."""


def _targets(provenance: Any, permit: Permit) -> set[Literal]:
    """What a Provenance is about (FHIR R4 Provenance.target)."""
    targets = provenance.get("target")
    found = [target.get("reference") if type(target) is dict else None for target in targets] if type(targets) is list else []
    named = {literal(text, permit.situation.bases) for text in found}
    return {one if one is not None else Literal("", "") for one in named}


def join(tally: Tally, other: Tally) -> None:
    """Add the counts of another."""
    tally.shown += other.shown
    tally.patients |= other.patients
    tally.notices |= other.notices
    for mine, theirs in ((tally.redacted, other.redacted), (tally.granted, other.granted), (tally.withheld, other.withheld)):
        for name, number in theirs.items():
            mine[name] = mine.get(name, 0) + number


def _asked(permit: Permit) -> int:
    """The ``_count`` of the search; 0 without one."""
    return next((int(p.value[:9]) for p in permit.interaction.parameters if p.name == "_count"), 0)


def _page(answer: Answer) -> Page | None:
    """The resources of a page with its text, where labels are computed."""
    if not answer.text or not answer.plan.permit.labelled:
        return None
    entries = answer.resource.get("entry", ())
    return Page(answer.text, [one for entry in entries if type(one := entry.get("resource")) is dict])


def _mode(entry: dict[str, Any]) -> str:
    search = entry.get("search")
    mode = search.get("mode", "match") if type(search) is dict else "match"
    return mode if isinstance(mode, str) else ""
