"""The searchset that leaves: a page of our own, filled from as many of the upstream's as it takes.

Where matches may be withheld, neither the number of a page's entries nor its link to the next may tell of them: a page is
full, or the last one, and there is a next page exactly where one more match is visible. Otherwise the upstream's pages are ours.
"""

from __future__ import annotations

from typing import Any

import msgspec

from fhirshield.fhir.json import encode
from fhirshield.model import Answer, Permit, Plan, Reason, Tally, View
from fhirshield.redact.body import JSON, Redactor, Work, add
from fhirshield.redact.links import Target


class Searchset:
    """Gathers the entries of one page. ``plan`` is where its first upstream page came from."""

    def __init__(self, redactor: Redactor, plan: Plan) -> None:
        self._redactor = redactor
        self._linker = redactor.linker
        self._permit: Permit = plan.permit
        self._here: tuple[Target, bool] = ((plan.segments, plan.query), plan.form)
        """Where the upstream page is that is being read."""
        page = plan.permit.interaction.page
        self._skip = page.skip if page else 0
        self._size = page.size if page else _asked(plan.permit)
        self._entries: list[dict[str, Any]] = []
        self._links: list[dict[str, str]] = []
        self._full = False
        self.tally = Tally()

    def add(self, answer: Answer) -> Target | None:
        """Take an upstream page; where the next one is, if it has to be read before this page is whole."""
        entries = answer.resource.get("entry", [])
        permit = self._permit
        if not permit.thins:
            work = self._work(answer, self.tally)
            self._entries = [made for entry in entries if (made := self._made(entry, _mode(entry), work)) is not None]
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

    def _take(self, answer: Answer, entries: list[dict[str, Any]], matches: list[int]) -> None:
        shown = self._work(answer, self.tally)
        ahead = self._work(answer, Tally())
        for number, place in enumerate(matches):
            if number < self._skip:
                continue
            if self._size and self._count == self._size:
                if self._made(entries[place], "match", ahead) is not None:
                    self._stop(number)
                    return
                continue
            made = self._made(entries[place], "match", shown)
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
        """The budget of upstream pages is spent: the next page begins where this one ends, whatever it holds."""
        self._stop(0)

    def view(self) -> View:
        """The page."""
        permit = self._permit
        links = self._links if not permit.thins else [self._linker.own(permit), *self._links]
        bundle: dict[str, Any] = {"resourceType": "Bundle", "type": "searchset", "link": links}
        if self._entries:
            bundle["entry"] = self._entries
        return View(200, (JSON,), encode(bundle), Reason.PERMITTED, self.tally)

    # --- entries --------------------------------------------------------------------------------------------------

    def _work(self, answer: Answer, tally: Tally) -> Work:
        return Work(self._permit, tally, self._redactor.tools(self._permit), answer.careful, answer.deep, answer.named)

    def _made(self, entry: dict[str, Any], mode: str, work: Work) -> dict[str, Any] | None:
        resource = entry.get("resource")
        if type(resource) is not dict or mode not in {"match", "include"}:
            return None
        permit = self._permit
        if mode == "match" and resource.get("resourceType") != permit.interaction.type:
            add(work.tally.withheld, Reason.UPSTREAM_MALFORMED)
            return None
        verdict = permit.judge(resource, "s" if mode == "match" else "r", work.careful)
        body = self._redactor.body(resource, verdict, work, permit.rejudge if mode == "match" else None)
        if body is None:
            return None
        url = self._linker.full_url(permit, resource)
        made: dict[str, Any] = {"resource": msgspec.Raw(body[0]), "search": {"mode": mode}}
        return {"fullUrl": url, **made} if url else made


def _asked(permit: Permit) -> int:
    """The ``_count`` of the search; 0 without one."""
    return next((int(p.value[:9]) for p in permit.interaction.parameters if p.name == "_count"), 0)


def _mode(entry: dict[str, Any]) -> str:
    search = entry.get("search")
    mode = search.get("mode", "match") if type(search) is dict else "match"
    return mode if isinstance(mode, str) else ""
