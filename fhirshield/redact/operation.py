"""What operations answer, as this caller may see it: a record of everything, matches, the newest of each code, outcomes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from fhirshield.fhir import json as fhir_json
from fhirshield.fhir.definitions import codes_of
from fhirshield.fhir.including import Include, names_by
from fhirshield.fhir.json import encode
from fhirshield.fhir.page import Target
from fhirshield.fhir.reference import Literal
from fhirshield.model import Answer, Denial, Plan, Reason, Refused, Shape, Tally, View
from fhirshield.redact.body import JSON, Redactor, Work
from fhirshield.redact.searchset import Searchset, join

_BESIDE = (Include(False, True, "*", "*", ""), Include(True, False, "Provenance", "target", ""))
"""What stands beside a patient's resources: what they refer to, and where they came from."""


class Everything(Searchset):
    """The answer to ``$everything``: all that refers to the one asked about, then what that refers to; in an order of our own.

    What the server found by way of something hidden alone is not there.
    """

    def __init__(self, redactor: Redactor, plan: Plan) -> None:
        shaped = replace(plan, permit=replace(plan.permit, shape=Shape(includes=_BESIDE)))
        super().__init__(redactor, shaped)
        self._centre = Literal(plan.permit.interaction.type, plan.permit.interaction.id)

    def add(self, answer: Answer) -> Target | None:
        """Take an upstream page; where the next one is."""
        for entry in answer.resource.get("entry", ()):
            self._consider(entry, answer)
        return self._linker.next_of(self._permit, answer.resource.get("link"))

    def view(self) -> View:
        """The page that is asked: all of it where no ``_count`` is."""
        bases = self._permit.situation.bases
        for name, (resource, _, tally) in self._candidates.items():
            if name == self._centre or self._centre in names_by(_BESIDE[0], resource, bases):
                self._shown[name] = resource
                join(self.tally, tally)
        names = sorted(self._shown, key=lambda name: (name != self._centre, name.type, name.id))
        entries = [*(self._candidates[name][1] for name in names), *self._included()]
        first = self._skip
        size = self._size or len(entries)
        if first + size < len(entries):
            self._stop(first + size)
        links = [self._linker.own(self._permit), *self._links]
        bundle: dict[str, Any] = {"resourceType": "Bundle", "type": "searchset", "link": links}
        if entries[first : first + size]:
            bundle["entry"] = entries[first : first + size]
        return View(200, (JSON,), encode(bundle), Reason.PERMITTED, self.tally)


class Matches(Searchset):
    """The answer to ``$match``. Where anything of patients is hidden, scores and order tell nothing either."""

    def add(self, answer: Answer) -> Target | None:
        """Take the one page that there is."""
        permit = self._permit
        work = self._work(answer, self.tally)
        told = permit.sees_everything
        rows = []
        for entry in answer.resource.get("entry", ()):
            made = self._made(entry, work)
            if made is None:
                continue
            search = entry.get("search")
            score = search.get("score") if told and type(search) is dict else None
            if score is not None:
                made["search"] = {**made["search"], "score": score}
            rows.append((str(entry["resource"].get("id")), made))
        rows = rows if told else sorted(rows, key=lambda row: row[0])
        most = next((int(p.value) for p in permit.sent if p.name == "count" and p.value.isdigit()), len(rows))
        self._entries = [made for _, made in rows[:most]]
        return None

    def view(self) -> View:
        """The matches."""
        bundle: dict[str, Any] = {"resourceType": "Bundle", "type": "searchset"}
        if self._entries:
            bundle["entry"] = self._entries
        return View(200, (JSON,), encode(bundle), Reason.PERMITTED, self.tally)


# --- $lastn ---------------------------------------------------------------------------------------------------------------


def newest(found: Searchset, most: int) -> View:
    """The newest observations of each code among all that were found, as they are shown (FHIR R4 Observation ``$lastn``)."""
    groups: list[tuple[set[tuple[str, str]], list[Literal]]] = []
    names = sorted(found.shown, key=str)
    for name in sorted(names, key=lambda name: _when(found.shown[name]), reverse=True):
        codes = _codes(found.shown[name])
        mine = [group for group in groups if group[0] & codes]
        merged = (codes.union(*(group[0] for group in mine)), [*(one for group in mine for one in group[1]), name])
        groups = [group for group in groups if group not in mine] + [merged]
    kept = {name for _, members in groups for name in sorted(members, key=lambda n: _when(found.shown[n]), reverse=True)[:most]}
    entries = [entry for name, entry in found.entries.items() if name in kept]
    bundle: dict[str, Any] = {"resourceType": "Bundle", "type": "searchset"} | ({"entry": entries} if entries else {})
    return View(200, (JSON,), encode(bundle), Reason.PERMITTED, found.tally)


def _codes(observation: Any) -> set[tuple[str, str]]:
    """What an observation is of: its codings, else its text; without either it is of a kind by itself."""
    code = observation.get("code")
    code = code if type(code) is dict else {}
    codings = code.get("coding")
    found = (
        {(str(c.get("system", "")), str(c.get("code", ""))) for c in codings if type(c) is dict} if type(codings) is list else set()
    )
    if found:
        return found
    return {("text", code["text"])} if type(code.get("text")) is str else {("id", str(observation.get("id")))}


def _when(observation: Any) -> str:
    """When it was true, as text that sorts; what has no time is the oldest."""
    period = observation.get("effectivePeriod")
    period = period if type(period) is dict else {}
    values = (observation.get("effectiveDateTime"), observation.get("effectiveInstant"), period.get("end"), period.get("start"))
    return next((value for value in values if type(value) is str), "")


# --- one answer -----------------------------------------------------------------------------------------------------------


def as_meta(view: View) -> View:
    """The ``meta`` of a resource as it is shown (``$meta``, FHIR R4 §3.2.0.3)."""
    meta = fhir_json.decode(view.body).get("meta", {})
    body = encode({"resourceType": "Parameters", "parameter": [{"name": "return", "valueMeta": meta}]})
    return replace(view, headers=(JSON,), body=body)


def operated(redactor: Redactor, answer: Answer) -> View:
    """One resource that an operation answered with. Raises Refused where it is withheld."""
    permit = answer.plan.permit
    work = Work(permit, Tally(), redactor.tools(permit), answer.careful, answer.deep, answer.named)
    if permit.writing is not None:
        work.tally.patients.update(permit.writing.patients)
    if answer.resource is None and permit.asynchronous:
        return View(202, _job(redactor, answer), b"", Reason.PERMITTED, work.tally)
    if answer.resource is None:
        return View(answer.status, (), b"", Reason.PERMITTED, work.tally)
    if answer.resource["resourceType"] == "OperationOutcome":
        return View(200, (JSON,), encode(_outcome(answer)), Reason.PERMITTED, work.tally)
    verdict = permit.judge(answer.resource, "r", work.careful)
    body = redactor.body(answer.resource, verdict, work)
    if body is None and permit.affects:  # it was done; what it answered is not for this caller
        return View(204, (), b"", Reason.PERMITTED, work.tally)
    if body is None:
        raise Refused(Denial(404, Reason.NOT_FOUND, "not-found", "no such resource for this caller", rule=verdict.rule))
    return View(200, (JSON,), body[0], Reason.PERMITTED, work.tally, verdict.rule)


def _job(redactor: Redactor, answer: Answer) -> tuple[tuple[str, str], ...]:
    """The headers of a job that goes on: where it is asked about, by its owner alone. Raises Refused."""
    permit, retry = answer.plan.permit, answer.headers.get("retry-after", "")
    headers = (("Retry-After", retry),) if re.fullmatch(r"[0-9]{1,6}", retry) else ()
    if permit.interaction.page is not None:
        return headers
    where = redactor.linker.job(permit, answer.headers.get("content-location"))
    if not where:
        raise Refused(Denial(502, Reason.UPSTREAM_MALFORMED, "transient", "the server named no job that can be asked about"))
    return (("Content-Location", where), *headers)


_PLACE = re.compile(r"[A-Z][A-Za-z]{1,60}(?:\.[a-z][A-Za-z0-9]{0,60}(?:\[[0-9]{1,4}\])?){0,20}\Z")
"""A path, and nothing that could be a value."""
_SEVERITIES = {"fatal", "error", "warning", "information"}


def _outcome(answer: Answer) -> dict[str, Any]:
    """Severity, code and place of each issue; its words only to a caller from whom nothing is hidden."""
    permit = answer.plan.permit
    told = permit.sees_everything
    issues = []
    for issue in _objects(answer.resource.get("issue")):
        code = issue.get("code")
        row: dict[str, Any] = {
            "severity": issue["severity"] if issue.get("severity") in _SEVERITIES else "error",
            "code": code if type(code) is str and code in codes_of("http://hl7.org/fhir/ValueSet/issue-type") else "processing",
        }
        for name in ("details", "diagnostics") if told else ():
            if name in issue:
                row[name] = issue[name]
        for name in ("location", "expression"):
            places = issue.get(name)
            if type(places) is list and all(type(place) is str and (told or _PLACE.match(place)) for place in places):
                row[name] = places
        issues.append(row)
    return {"resourceType": "OperationOutcome", "issue": issues or [{"severity": "information", "code": "informational"}]}


def _objects(value: Any) -> Iterable[dict[str, Any]]:
    return [one for one in value if type(one) is dict] if type(value) is list else []
