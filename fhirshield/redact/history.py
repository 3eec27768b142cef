"""What was, as this caller may see it: the versions of a resource, and pages of histories.

A version is shown where both its own content, under the labels that the resource has now, and what the resource is now may be
seen: a label that was set today hides the past, and what is hidden of the resource now is hidden of what it was. Of versions
whose views are equal, neighbours once what is hidden is left out, the oldest stands for all, so that a hidden edit shows
neither in number nor in order. A deletion is shown to those who could see what was deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from fhirshield.fhir.glance import Page, within
from fhirshield.fhir.history import Version, version_of
from fhirshield.fhir.json import encode
from fhirshield.fhir.reference import Literal
from fhirshield.model import Answer, Denial, Judge, Permit, Plan, Reason, Refused, Tally, Verdict, View
from fhirshield.redact.body import JSON, Redactor, Work
from fhirshield.redact.searchset import Searchset, join


@dataclass(frozen=True, slots=True)
class Seen:
    """A version as it is shown; ``content`` is None for a deletion."""

    version: Version
    content: bytes | None
    token: str
    tally: Tally
    rule: str = ""


class Past:
    """The versions of one resource that one caller may see. ``versions`` are all there are, the newest first."""

    def __init__(self, redactor: Redactor, permit: Permit, versions: list[Version]) -> None:
        self._redactor = redactor
        self._permit = permit
        self.seen: list[Seen] = []
        """The oldest first."""
        newest = next((version for version in versions if version.resource is not None), None)
        if newest is None or redactor.view_of(newest.resource, permit, permit.interaction.letter) is None:
            return
        self._permit = replace(permit, judge=_hiding_as_now(permit, newest.resource))
        labels = _labels(newest.resource)
        for version in reversed(versions):
            found = self._shown(version, labels) if version.resource is not None else self._deleted(version)
            if found is not None:
                self.seen.append(found)

    def _shown(self, version: Version, labels: list[Any]) -> Seen | None:
        permit = self._permit
        verdict = permit.judge(_labelled(version.resource, labels), permit.interaction.letter, True)
        work = Work(permit, Tally(), self._redactor.tools(permit), True, True, True)
        body = self._redactor.body(version.resource, verdict, work)
        if body is None:
            return None
        content, token = body
        before = self.seen[-1] if self.seen else None
        if token and before is not None and before.token == token:
            return None
        return Seen(version, content, token, work.tally, verdict.rule)

    def _deleted(self, version: Version) -> Seen | None:
        if not self.seen or self.seen[-1].content is None:
            return None
        return Seen(version, None, "", Tally())

    def named(self, version: str) -> Seen | None:
        """The version that this caller knows by a name: its token, or the server's own where that is not hidden."""
        there = [one for one in self.seen if one.content is not None]
        return next((one for one in there if (one.token or one.version.version) == version), None)

    def view(self, version: str) -> View:
        """One version. Raises Refused."""
        found = self.named(version)
        if found is None or found.content is None:
            raise Refused(Denial(404, Reason.NOT_FOUND, "not-found", "no such resource for this caller"))
        place = f"{self._permit.situation.base}/{found.version.name}/_history/{version}"
        headers = (JSON, ("Content-Location", place), ("ETag", f'W/"{version}"'))
        return View(200, headers, found.content, Reason.PERMITTED, found.tally, found.rule)


class History(Searchset):
    """Gathers the entries of one page of a history. Where anything may be withheld, ``know`` gives it the pasts of resources."""

    def __init__(self, redactor: Redactor, plan: Plan) -> None:
        super().__init__(redactor, plan)
        self._known: dict[Literal, Mapping[tuple[str, bool], tuple[Seen, bool]]] = {}

    def unknown(self, answer: Answer) -> list[Literal]:
        """The resources of an upstream page whose pasts decide what of it is shown."""
        found = (version_of(entry) for entry in answer.resource.get("entry", ()))
        permit = self._permit
        names = dict.fromkeys(version.name for version in found if version is not None and self._is_of(version))
        return [name for name in names if name not in self._known] if permit.thins else []

    def know(self, name: Literal, versions: list[Version]) -> None:
        """Take the past of a resource."""
        seen = Past(self._redactor, self._permit, versions).seen
        first = next((one for one in seen if one.content is not None), None)
        self._known[name] = {(one.version.version, one.content is None): (one, one is first) for one in seen}

    @property
    def empty(self) -> bool:
        """Whether nothing of what is known can be seen."""
        return not any(self._known.values())

    def _is_of(self, version: Version) -> bool:
        asked = self._permit.interaction
        return asked.type in {"", version.name.type} and asked.id in {"", version.name.id}

    def _made(self, entry: dict[str, Any], work: Work, *, keep: bool = True) -> dict[str, Any] | None:
        version = version_of(entry)
        if version is None or not self._is_of(version):
            return None
        return self._judged(version, work) if self._permit.thins else self._open(version, work)

    def _judged(self, version: Version, work: Work) -> dict[str, Any] | None:
        key = (version.version, version.resource is None)
        found, first = self._known.get(version.name, {}).get(key, (None, False))
        if found is None:
            return None
        join(work.tally, found.tally)
        closed = self._permit.view(version.name.type).closed
        if "versionId" in closed:
            method, status = ("DELETE", "204") if found.content is None else ("POST", "201") if first else ("PUT", "200")
        else:
            method, status = version.method, version.status
        etag = found.token or ("" if "versionId" in closed else version.version)
        return self._told(version, found.content, method, status, etag, "" if "lastUpdated" in closed else version.modified)

    def _open(self, version: Version, work: Work) -> dict[str, Any] | None:
        content: bytes | None = None
        if version.resource is not None:
            permit = self._permit
            body = self._redactor.body(version.resource, permit.judge(version.resource, permit.interaction.letter, True), work)
            if body is None:
                return None
            content = body[0]
        return self._told(version, content, version.method, version.status, version.version, version.modified)

    def _told(self, version: Version, content: bytes | None, method: str, status: str, etag: str, modified: str) -> dict[str, Any]:
        """An entry, written anew (FHIR R4 §3.1.0.9)."""
        url = version.name.type if method == "POST" else str(version.name)
        response = {"status": status if status[:3].isdigit() else "200"}
        response |= {"etag": f'W/"{etag}"'} if etag else {}
        response |= {"lastModified": modified} if modified else {}
        entry: dict[str, Any] = {"fullUrl": f"{self._permit.situation.base}/{version.name}"}
        if content is not None:
            entry["resource"] = msgspec.Raw(content)
        return entry | {"request": {"method": method if method in _METHODS else "PUT", "url": url}, "response": response}

    def view(self) -> View:
        """The page."""
        own = [] if any(link["relation"] == "self" for link in self._links) else [self._linker.own(self._permit)]
        bundle: dict[str, Any] = {"resourceType": "Bundle", "type": "history", "link": [*own, *self._links]}
        if self._entries:
            bundle["entry"] = self._entries
        return View(200, (JSON,), encode(bundle), Reason.PERMITTED, self.tally)


_METHODS = {"POST", "PUT", "PATCH", "DELETE"}


def _hiding_as_now(permit: Permit, now: Any) -> Judge:
    """A judge that hides of what was, besides, what it hides of what is: by type, for what is held too."""
    binding: dict[str, int] = {}
    withheld: dict[str, set[str]] = {}
    everything = list(within(now))
    contained = {id(one) for holder in everything for one in _listed(holder.get("contained"))}
    for resource in everything:
        kind, name = resource["resourceType"], resource.get("id")
        letter = permit.interaction.letter if resource is now else "c" if id(resource) in contained else "r"
        if type(kind) is str:
            verdict = permit.judge(resource, letter, True)
            binding[kind] = binding.get(kind, 0) | verdict.applies
            if not verdict.shown and resource is not now:
                withheld.setdefault(kind, set()).add(name if type(name) is str else "")

    def judged(resource: Any, letter: str, careful: bool, page: Page | None = None) -> Verdict:
        verdict = permit.judge(resource, letter, careful, page)
        if not verdict.shown:
            return verdict
        hidden = withheld.get(resource["resourceType"], ())
        if hidden and letter in {"c", "r"} and (resource.get("id") in hidden or "" in hidden or "id" not in resource):
            return Verdict(False, Reason.DENIED_BY_RULE)
        more = binding.get(resource["resourceType"], 0)
        return replace(verdict, applies=verdict.applies | more) if more else verdict

    return judged


def _listed(value: Any) -> list[Any]:
    return value if type(value) is list else []


def _labels(resource: Any) -> list[Any]:
    meta = resource.get("meta")
    labels = meta.get("security") if type(meta) is dict else None
    return labels if type(labels) is list else []


def _labelled(resource: dict[str, Any], labels: list[Any]) -> dict[str, Any]:
    """A shallow copy that has these labels besides its own."""
    if not labels:
        return resource
    meta = resource.get("meta")
    meta = meta if type(meta) is dict else {}
    return {**resource, "meta": {**meta, "security": [*_labels(resource), *labels]}}
