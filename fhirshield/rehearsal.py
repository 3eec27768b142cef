"""A request against resources at hand, by the production engine, without a network: for ``test`` and ``explain``.

The same ``receive``, ``authorize``, ``rewrite`` and ``redact`` that serve decide here; only the upstream is a list, and a
search returns every stored resource of the type, since what leaves is judged in any case.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from fhirshield.authorize import authorize, belonging, draft, endorse, may_change, related_only
from fhirshield.fhir import json as fhir_json
from fhirshield.fhir import scopes as smart
from fhirshield.fhir.history import Version
from fhirshield.fhir.interaction import RULE_NAMES, Interaction, Kind
from fhirshield.fhir.reference import Literal, literal
from fhirshield.fhir.reference_places import extensions
from fhirshield.fhir.subjects import people_of
from fhirshield.forward import not_found
from fhirshield.inquiry.emergency import searched
from fhirshield.model import Answer, Denial, Grant, Permit, Principal, Reason, Refused, Situation, Stored, Tally, View
from fhirshield.policy.compile import RuleSet
from fhirshield.receive import Receiver, Request
from fhirshield.redact import History, Past, Redactor, Searchset
from fhirshield.redact.body import Withheld
from fhirshield.redact.written import Written
from fhirshield.rewrite import rewrite
from fhirshield.ring import Ring
from fhirshield.settings import Credential, Upstream, duration
from fhirshield.shelf import about, driven

BASE = "https://shield.example"
PATH = "/fhir"
_UPSTREAM = Upstream(
    PATH, "https://upstream.example/fhir", ("rehearsal",), ("rehearsal",), Credential(), 1.0, 1.0, (BASE + PATH,), (), 64
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What would have left, and why."""

    status: int
    reason: Reason
    rule: str
    body: Any
    """The parsed resource of a 200, else None."""
    tally: Tally
    interaction: Interaction | None = None
    situation: Situation | None = None
    permit: Permit | None = None
    expression: tuple[str, ...] = ()
    """FHIRPaths of a refusal."""


class Stage:
    """Everything that stays the same over many rehearsals of one rule set."""

    def __init__(self, rules: RuleSet, *, hidden_narrative: str = "refuse", country: str = "") -> None:
        ring = Ring(b"rehearsal".ljust(32, b"."))
        self.rules = rules
        self._redact = Redactor(ring)
        self._written = Written(self._redact, 64)
        self._receive = Receiver(replace(_UPSTREAM, hidden_narrative=hidden_narrative, country=country), BASE, ring)

    def rehearse(
        self, principal: Principal, request: str, stored: list[Any], at: dt.datetime, body: Any = None, *, emergency: str = ""
    ) -> Outcome:  # fmt: skip
        """``request`` is method and target, below the upstream's path: ``GET /Patient/1``; ``body`` what a write brings.

        ``emergency`` is the reason that is stated to break the glass.
        """
        situation: Situation | None = None
        interaction: Interaction | None = None
        try:
            asked = _request(request, at, body, emergency)
            situation = self._receive.situation(asked)
            interaction = self._receive.interaction(asked)
            interaction = self._receive.content(interaction, asked)
            permit = authorize(principal, interaction, situation, self.rules)
            if isinstance(permit, Denial):
                return _refused(permit, interaction, situation)
            _in_emergency(permit, stored)
            permit = self._informed(permit, stored)
            if interaction.kind not in RULE_NAMES or (interaction.recalls and not interaction.id):
                text = f"`{interaction.operation or interaction.kind.value}` cannot be rehearsed on resources at hand"
                raise Refused(Denial(405, Reason.NOT_SERVED, "not-supported", text))
            if interaction.writes:
                permit = self._weighed(permit, stored)
            if interaction.kind is Kind.READ and permit.thins:
                permit = self._belonging(permit, stored)
            answer = _answer(permit, stored)
            if interaction.kind is Kind.VREAD and permit.thins:
                view = Past(self._redact, permit, [_version(answer.resource, interaction)]).view(interaction.version)
            elif interaction.recalls:
                view = self._recalled(answer, permit)
            elif interaction.searches:
                page = Searchset(self._redact, answer.plan)
                page.add(answer)
                view = page.view()
            else:
                view = self._redact(answer)
            told = fhir_json.decode(view.body) if view.body else None
            return Outcome(view.status, view.reason, view.rule, told, view.tally, interaction, situation, permit)
        except Withheld as refused:
            denial = refused.denial
            return Outcome(denial.status, refused.reason, denial.rule, None, refused.tally, interaction, situation)
        except Refused as refused:
            return _refused(refused.denial, interaction, situation)

    def _informed(self, permit: Permit, stored: list[Any]) -> Permit:
        """What ``gather`` does, from the resources at hand."""
        if not (self.rules.consent or self.rules.sensitivity or permit.relations):
            return permit
        gather = about(self.rules, stored, permit.situation.bases)

        async def all_of_it() -> None:
            await gather.ready(permit, {})
            await gather(permit, [*stored, permit.interaction.content], {})

        driven(all_of_it())
        permit.situation.facts.epochs.clear()
        return related_only(permit, self.rules)

    def _recalled(self, answer: Answer, permit: Permit) -> View:
        """The history of a resource that has one version. Raises Refused."""
        version = _version(answer.resource, permit.interaction)
        page = History(self._redact, answer.plan)
        page.know(version.name, [replace(version, resource=_again(version.resource))])
        if permit.thins and page.empty:
            raise Refused(not_found())
        response = {"status": version.status, "etag": f'W/"{version.version}"'}
        entry = {"resource": version.resource, "request": {"method": "PUT", "url": str(version.name)}, "response": response}
        page.add(replace(answer, resource={"resourceType": "Bundle", "type": "history", "entry": [entry]}))
        return page.view()

    def _belonging(self, permit: Permit, stored: list[Any]) -> Permit:
        """What ``inquiry`` does for a Binary. Raises Refused."""
        found = {Literal(r.get("resourceType", ""), r.get("id", "")): r for r in stored}
        context = found.get(Literal("Binary", permit.interaction.id), {}).get("securityContext")
        named = literal(context.get("reference"), permit.situation.bases) if isinstance(context, dict) else None
        owner = found.get(named) if named else None
        if owner is None or named is None:
            raise Refused(not_found())
        read = Interaction(Kind.READ, type=named.type, id=named.id)
        reading = authorize(permit.principal, read, permit.situation, self.rules)
        if not isinstance(reading, Permit) or not reading.judge(owner, "r", True).shown:
            raise Refused(not_found())
        return belonging(permit, context)

    def _weighed(self, permit: Permit, stored: list[Any]) -> Permit:
        """What ``shield`` does before a write, on resources at hand. Raises Refused."""
        interaction = permit.interaction
        found = {Literal(r.get("resourceType", ""), r.get("id", "")): r for r in stored}
        there = found.get(Literal(interaction.type, interaction.id)) if interaction.id else None
        current = Stored(_again(there) if there is not None else None, "1" if there is not None else "")
        if interaction.kind is not Kind.CREATE and (denial := may_change(permit, current, self.rules)):
            raise Refused(denial)
        image = self._written.image(permit, current, self._written.edit(permit, current))
        drafted = draft(permit, current, image, self.rules)
        if isinstance(drafted, Denial):
            raise Refused(drafted)
        decided = endorse(permit, drafted, found, self.rules)
        if isinstance(decided, Denial):
            raise Refused(decided)
        return decided


def _in_emergency(permit: Permit, stored: list[Any]) -> None:
    """What ``inquiry`` does in an emergency, the glass being broken for whom a resource is about. Raises Refused."""
    asked, facts = permit.interaction, permit.situation.facts
    if permit.emergency is None:
        return
    patients: frozenset[str] | None
    if asked.id and asked.type != "Patient":
        there = next((one for one in stored if (one.get("resourceType"), one.get("id")) == (asked.type, asked.id)), None)
        patients = people_of(there, permit.situation.bases, facts.subjects.get) if there is not None else None
    else:
        patients = frozenset((asked.id or searched(asked, permit),))
    if patients is not None and len(patients) == 1:
        facts.grant = Grant("rehearsal", permit.emergency, next(iter(patients)), permit.situation.emergency, new=False)


def _version(resource: Any, interaction: Interaction) -> Version:
    """A resource at hand as the one version that there is, by the name under which it is asked for."""
    meta = resource.get("meta")
    number = meta.get("versionId") if isinstance(meta, dict) else None
    return Version(Literal(interaction.type, interaction.id), number or interaction.version, resource, "PUT", "200", "")


def _again(resource: Any) -> Any:
    return fhir_json.decode(fhir_json.encode(resource))


def _refused(denial: Denial, interaction: Interaction | None, situation: Situation | None) -> Outcome:
    return Outcome(denial.status, denial.reason, denial.rule, None, Tally(), interaction, situation, None, denial.expression)


def _request(text: str, at: dt.datetime, body: Any, emergency: str = "") -> Request:
    method, _, target = text.partition(" ")
    path, _, query = target.partition("?")
    content = b"" if body is None else fhir_json.encode(body)
    kind = b"application/json-patch+json" if method == "PATCH" else b"application/fhir+json"
    headers = [(b"content-type", kind)] if content else []
    headers += [(b"break-glass-reason", emergency.encode())] if emergency else []
    return Request(method, (PATH + path).encode(), query.encode(), headers, content, "127.0.0.1", at, "rehearsal")


def _answer(permit: Permit, stored: list[Any]) -> Answer:
    interaction = permit.interaction
    plan = rewrite(interaction, permit)
    if permit.writing is not None:
        image = permit.writing.image
        identity = interaction.id or "new"
        resource: Any = None if image is None else _again({**image, "id": identity})
        status = 201 if permit.writing.creates else 200
        return Answer(plan, status, {}, resource, careful=True, deep=True, named=True, id=identity)
    if interaction.kind is Kind.SEARCH_TYPE:
        matches = [r for r in stored if r.get("resourceType") == interaction.type] if not permit.nothing else []
        resource = {
            "resourceType": "Bundle",
            "type": "searchset",
            "entry": [{"resource": r, "search": {"mode": "match"}} for r in matches],
        }
    else:
        wanted = (interaction.type, interaction.id)
        resource = next((r for r in stored if (r.get("resourceType"), r.get("id")) == wanted), None)
        if resource is None:
            raise Refused(not_found())
    body = fhir_json.encode(resource)
    return Answer(plan, 200, {}, fhir_json.decode(body), careful=True, deep=extensions(body)[1])


def principal_from(row: dict[str, Any], at: dt.datetime | None = None) -> Principal:
    """A principal as tests and ``explain`` describe one (``schemas/tests.json``); ``auth_age`` is counted from ``at``."""
    age = row.get("auth_age")
    began = (at or dt.datetime.now(dt.UTC)).timestamp() - duration(age) if age is not None else 0.0
    scopes = smart.parse(row.get("scopes", "user/*.rs"))
    attributes = tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in row.get("attributes", {}).items()))
    return Principal(
        issuer=row.get("issuer", "rehearsal"),
        subject=row.get("subject", "somebody"),
        client=row.get("client", "app"),
        roles=frozenset(row.get("roles", ())),
        purposes=frozenset(row.get("purposes", ())),
        scopes=scopes,
        patient=row.get("patient", ""),
        fhir_user=row.get("fhir_user", "" if row.get("patient") else "Practitioner/rehearsal"),
        attributes=attributes,
        organizations=frozenset(row.get("organizations", ())),
        acr=row.get("acr", ""),
        amr=frozenset(row.get("amr", ())),
        auth_time=began,
        expires=float("inf"),
        fingerprint=hashlib.sha256(msgspec.json.encode(row, order="deterministic")).hexdigest(),
    )
