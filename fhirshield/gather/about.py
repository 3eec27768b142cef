"""Whom an answer is about, and what they and circumstances say: Consents, those whom Consents name, what labels lead to.

One batched query a kind, under the shield's own name. What is kept of it is kept under marks (``kept.py``), which are looked at
again before the first byte leaves. Whoever cannot be asked is a 503, for what is absent too.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from fhirshield.errors import Unavailable, printable
from fhirshield.fhir import json as fhir_json
from fhirshield.fhir.consent import Actor, Consent, Unsupported, parse, patient_of
from fhirshield.fhir.glance import HOLDING, glance
from fhirshield.fhir.ordered import date_span, period_holds
from fhirshield.fhir.reference import Literal, literal, named_in
from fhirshield.fhir.subjects import has_subject, linked, people_of, targets_of
from fhirshield.gather.kept import EVERYTHING, Changed, Kept, unchanged
from fhirshield.gather.marks import MEMBERS, Marks
from fhirshield.gather.reading import TOGETHER, Counts, Reading, away, by_id
from fhirshield.gather.relations import Relations
from fhirshield.model import Denial, OfPatient, Permit, Reason, Refused, Relationship, Situation
from fhirshield.state.epochs import Epochs

_log = logging.getLogger("fhirshield")
AT_ONCE = 500
"""Consents of a page."""
MOST_TREES = 4096
"""Consents that are kept parsed."""
MOST_PARTS = 5
"""Levels of organizations that are parts of others."""
MOST_SOURCES = 500
"""Resources that one answer's labels may rest on."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked about answers: nothing where all of it is off."""

    consents: bool = False
    max_age: float = 5.0
    """Seconds."""
    lag: float = 0.0
    """Seconds for which searches of the source may miss what was written."""
    inherit: Callable[[Any], Iterable[str]] | None = None
    """The references from which a resource takes labels; None where labels are not computed."""
    births: bool = False
    """Labels ask how old patients are."""
    relationships: tuple[Relationship, ...] = ()
    """Those that rules speak of."""


@dataclass(frozen=True, slots=True)
class _Record:
    """What is kept of a patient."""

    consents: tuple[Consent, ...]
    faults: tuple[str, ...]
    links: frozenset[str]
    """The patients whom its record says to be linked."""
    born: dt.date | None


class Stale(Refused):
    """What was decided by is no longer so: the exchange is decided again."""

    def __init__(self) -> None:
        text = "what this decision rests on changes too fast at the moment"
        super().__init__(Denial(503, Reason.FACTS_UNAVAILABLE, "transient", text, (("Retry-After", "1"),)))


class AboutAnswer:
    """Gathers what has to be known about resources before they are judged. ``digest`` hides whom marks speak of."""

    def __init__(
        self, asked: Asked, upstream: Reading, source: Reading | None, epochs: Epochs, digest: Callable[[str], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._asked = asked
        self._upstream = upstream
        self._source = source or upstream
        self._epochs = epochs
        self._clock = clock
        self._heard = float("-inf")
        """When the source last answered."""
        relating = frozenset[str]().union(*(one.types for one in asked.relationships))
        self.marks = Marks(
            self._source.server.url, epochs, digest, consents=asked.consents, relating=relating, births=asked.births, lag=asked.lag
        )
        fresh = asked.max_age - asked.lag
        self._records: Kept[_Record] = Kept(epochs, self.marks.of, max_age=fresh, clock=clock)
        self._members: Kept[Any] = Kept(epochs, self.marks.of, max_age=fresh, clock=clock)
        self._roles: Kept[tuple[Any, ...]] = Kept(epochs, self.marks.of, max_age=fresh, clock=clock)
        ages = {one.name: one.max_age for one in asked.relationships}
        kept: dict[str, Kept[frozenset[str]]] = {
            name: Kept(epochs, self.marks.of_parties, max_age=age, clock=clock) for name, age in ages.items()
        }
        self._relations = Relations(upstream, kept)
        self._trees: dict[bytes, Consent] = {}
        self._troubles: dict[str, str] = {}
        """Consents that cannot be enforced, by name: why. The log says it once."""

    # --- an exchange ----------------------------------------------------------------------------------------------

    async def ready(self, permit: Permit, counts: Counts) -> None:
        """Whether all whom decisions rest on can be asked, before anything is known of the outcome. Raises Refused.

        To whom the caller stands in which relationship is known after that.
        """
        facts = permit.situation.facts
        replaced = facts.grant.emergency.replaces if facts.grant is not None else frozenset()
        if facts.grant is not None:  # in an emergency whatever can be asked is asked, and the rest is replaced or denied
            await self._in_emergency(permit, counts, replaced)
        else:
            await self._standing(permit, counts)
        if not self._asked.consents or "consent" in replaced:
            return
        try:
            facts.epochs.setdefault(EVERYTHING, (await self._epochs.read([EVERYTHING]))[EVERYTHING].text)
        except Unavailable:
            raise Refused(away()) from None
        if self._clock() >= self._heard + self._asked.max_age:
            await self._search(permit, "Consent", (("_id", "fhirshield-is-asking"), ("_count", "1")), counts)

    async def _standing(self, permit: Permit, counts: Counts) -> None:
        try:
            await self._relations.gather(permit, counts)
        except Changed:
            raise Stale from None
        except Unavailable:
            raise Refused(away()) from None

    async def _in_emergency(self, permit: Permit, counts: Counts, replaced: frozenset[str]) -> None:
        try:
            await self._relations.gather(permit, counts, anyhow=True)
        except (Refused, Unavailable):
            if "relationship" not in replaced:
                raise Refused(away()) from None

    async def __call__(self, permit: Permit, resources: Iterable[Any], counts: Counts) -> None:
        """Gather what these resources need to be judged, whatever else may be said of them. Raises Refused."""
        if not self._asked.consents and self._asked.inherit is None:
            return
        found = [one for resource in resources for one in _all_within(resource)]
        try:
            await self._sources(permit, found, counts)
            if self._asked.consents or self._asked.births:
                await self._patients(permit, found, counts)
        except Changed:
            raise Stale from None
        except Unavailable:
            raise Refused(away()) from None

    async def still(self, situation: Situation) -> bool:
        """Whether what an exchange rests on is as it was when it was gathered. Raises Refused."""
        try:
            return await unchanged(self._epochs, situation.facts)
        except Unavailable:
            raise Refused(away()) from None

    # --- what resources lead to -----------------------------------------------------------------------------------

    async def _sources(self, permit: Permit, resources: list[Any], counts: Counts) -> None:
        """Looks at what labels are taken from, and at targets of Provenance: in the answer itself, else by one query a type."""
        facts, bases = permit.situation.facts, permit.situation.bases
        inherit = self._asked.inherit
        wanted: set[Literal] = set()
        for resource in resources:
            if inherit is not None:
                wanted.update([one for text in inherit(resource) if (one := literal(text, bases)) is not None])
            if self._asked.consents and resource["resourceType"] == "Provenance":
                wanted.update(targets_of(resource, bases))
        wanted -= facts.glances.keys()
        if not wanted:
            return
        if len(wanted) > MOST_SOURCES:
            text = "more resources than can be looked at in order to decide; ask for fewer"
            raise Refused(Denial(403, Reason.NOT_SERVED, "too-costly", text))
        here = {Literal(r["resourceType"], r["id"]): r for r in resources if type(r.get("id")) is str and not _is_past(permit)}
        absent = wanted - here.keys()
        here |= await self._named(permit, absent, counts)
        for name in wanted:
            resource = here.get(name)
            facts.glances[name] = glance(resource) if resource is not None else None
            facts.subjects[name] = people_of(resource, bases, lambda _: None) if resource is not None else None

    async def _named(self, permit: Permit, wanted: Iterable[Literal], counts: Counts) -> dict[Literal, Any]:
        by_type: dict[str, list[str]] = {}
        for one in wanted:
            by_type.setdefault(one.type, []).append(one.id)
        found: dict[Literal, Any] = {}
        for name, ids in sorted(by_type.items()):
            for start in range(0, len(ids), TOGETHER):
                for resource in await self._upstream.search(permit, name, by_id(ids[start : start + TOGETHER]), counts):
                    if resource.get("resourceType") == name and resource.get("id") in ids:
                        found[Literal(name, resource["id"])] = resource
        return found

    # --- patients -------------------------------------------------------------------------------------------------

    async def _patients(self, permit: Permit, resources: list[Any], counts: Counts) -> None:
        facts = permit.situation.facts
        people = self._people(permit, resources) - facts.births.keys()
        if facts.grant is not None and "consent" in facts.grant.emergency.replaces:
            people = set()  # the one patient's Consents are replaced; whose else are not known deny
        wanted = sorted(people)
        if not wanted:
            return
        records = await self._records_of(permit, wanted, counts)
        facts.births.update({patient: record.born for patient, record in records.items()})
        if not self._asked.consents:
            return
        others = {other for record in records.values() for other in record.links} - records.keys()
        records |= await self._records_of(permit, sorted(others), counts)
        consents = [consent for record in records.values() for consent in record.consents]
        await self._actors(permit, consents, counts)
        await self._related(permit, consents, counts)
        for patient in wanted:
            own = records[patient]
            linked = [records[other] for other in sorted(own.links) if other != patient and patient in records[other].links]
            faults = (*own.faults, *(fault for record in linked for fault in record.faults))
            facts.consents[patient] = OfPatient(own.consents, faults, tuple(c for record in linked for c in record.consents))

    def _people(self, permit: Permit, resources: list[Any]) -> set[str]:
        """All whose Consents these resources need."""
        facts, bases = permit.situation.facts, permit.situation.bases
        found: set[str] = set()
        for resource in resources:
            found |= people_of(resource, bases, facts.subjects.get) or frozenset()
        return found

    async def _records_of(self, permit: Permit, patients: Sequence[str], counts: Counts) -> dict[str, _Record]:
        """What is kept of these patients: all Consents in one query, and which records are linked in another."""

        async def fetch(keys: Sequence[str]) -> Mapping[str, _Record]:
            ids = [key.removeprefix("Patient/") for key in keys]
            named = [Literal("Patient", one) for one in ids]
            (consents, faults), found = await asyncio.gather(
                self._consents_of(permit, ids, counts), self._named(permit, named, counts)
            )
            bases = permit.situation.bases
            return {
                str(one): _Record(
                    tuple(consents[one.id]), tuple(faults[one.id]), linked(found.get(one), bases), _born(found.get(one))
                )
                for one in named
            }

        kept = await self._records.of([f"Patient/{one}" for one in patients], permit.situation.facts, fetch)
        return {key.removeprefix("Patient/"): record for key, record in kept.items()}

    async def _consents_of(
        self, permit: Permit, patients: Sequence[str], counts: Counts
    ) -> tuple[dict[str, list[Consent]], dict[str, list[str]]]:
        """All Consents of these patients, and what cannot be read of them, by patient."""
        bases = (*permit.situation.bases, self._source.server.url)
        named = [f"{base}Patient/{one}" for base in ("", *(f"{url}/" for url in dict.fromkeys(bases))) for one in patients]
        query = (("patient", ",".join(named)), ("status", "active"), ("_count", str(AT_ONCE)))
        known: dict[str, list[Consent]] = {one: [] for one in patients}
        faults: dict[str, list[str]] = {one: [] for one in patients}
        if not self._asked.consents:
            return known, faults
        for resource in await self._search(permit, "Consent", query, counts):
            if resource.get("resourceType") != "Consent":
                continue
            patient = patient_of(resource, bases)
            if patient and patient not in known:
                continue  # the source took the parameter more widely than it is meant
            try:
                known[patient].append(self._parsed(resource, bases))
            except (Unsupported, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
                name = f"Consent/{printable(resource.get('id', ''))}"
                why = str(error) if isinstance(error, Unsupported) else "it names no patient here, or has another shape"
                self._tell(name, why)
                for one in [patient] if patient else patients:
                    faults[one].append(f"{name}: {why}")
        return known, faults

    def _tell(self, name: str, why: str) -> None:
        """Say once to the operator that a Consent cannot be enforced; ``fhirshield check --consents`` says it of all."""
        if self._troubles.get(name) != why:
            if len(self._troubles) >= MOST_TREES:
                self._troubles.clear()
            self._troubles[name] = why
            _log.warning("%s cannot be enforced, so that nothing of its patient is shown: %s", name, why)

    def _parsed(self, resource: Any, bases: tuple[str, ...]) -> Consent:
        """A Consent as a tree: the same one while it says the same, so that what is compiled of it stays. Raises Unsupported."""
        key = hashlib.sha256(fhir_json.encode([resource, bases])).digest()
        found = self._trees.get(key)
        if found is None:
            found = parse(resource, bases)
            if len(self._trees) >= MOST_TREES:
                self._trees.clear()
            self._trees[key] = found
        return found

    async def _search(self, permit: Permit, name: str, query: tuple[tuple[str, str], ...], counts: Counts) -> list[Any]:
        """Ask the source; one that does not answer is asked again by everybody before anything is decided."""
        begun = self._clock()
        try:
            found = await self._source.search(permit, name, query, counts)
        except Refused:
            self._heard = float("-inf")
            raise
        self._heard = max(self._heard, begun)
        return found

    # --- those whom Consents name ---------------------------------------------------------------------------------

    async def _actors(self, permit: Permit, consents: list[Consent], counts: Counts) -> None:
        """The members of teams and groups that Consents name, and the roles that the caller has."""
        facts = permit.situation.facts
        actors = frozenset[Actor]().union(*(_named_by(consent).actors for consent in consents))
        if not actors:
            return
        named = {actor.reference for actor in actors if actor.reference is not None and actor.reference.type in MEMBERS}
        user = literal(permit.principal.fhir_user)
        roles = any(actor.reference is None or actor.reference.type in MEMBERS | {"Organization"} for actor in actors)
        if user is not None and user.type == "PractitionerRole":
            named.add(user)
        wanted = sorted((one for one in named - facts.resources.keys() if one.type != "PractitionerRole" or one == user), key=str)
        if wanted:
            facts.resources.update(await self._gathered(permit, wanted, counts))
        if any(actor.reference is not None and actor.reference.type == "Organization" for actor in actors):
            await self._parts(permit, counts)
        if roles and facts.roles is None and user is not None and user.type == "Practitioner":
            facts.roles = await self._own_roles(permit, user, counts)

    async def _parts(self, permit: Permit, counts: Counts) -> None:
        """The organizations for which the caller acts, and those of which they are parts."""
        facts, bases = permit.situation.facts, permit.situation.bases
        if facts.roles is None and (user := literal(permit.principal.fhir_user)) is not None and user.type == "Practitioner":
            facts.roles = await self._own_roles(permit, user, counts)
        waiting = {one for text in permit.principal.organizations if (one := literal(text)) is not None}
        waiting |= {one for role in facts.roles or () if (one := named_in(role.get("organization"), bases)) is not None}
        for _ in range(MOST_PARTS):
            waiting -= facts.resources.keys()
            if not waiting:
                return
            found = await self._gathered(permit, sorted(waiting, key=str), counts)
            facts.resources.update(found)
            waiting = {
                one for part in found.values() if part is not None and (one := named_in(part.get("partOf"), bases)) is not None
            }

    async def _gathered(self, permit: Permit, wanted: list[Literal], counts: Counts) -> dict[Literal, Any]:
        """Those of these that are there, None for the others; kept while they are fresh."""

        async def fetch(keys: Sequence[str]) -> Mapping[str, Any]:
            found = await self._named(permit, [one for one in wanted if str(one) in keys], counts)
            return {key: found.get(one) for one in wanted if (key := str(one)) in keys}

        kept = await self._members.of([str(one) for one in wanted], permit.situation.facts, fetch)
        return {one: kept[str(one)] for one in wanted}

    async def _own_roles(self, permit: Permit, user: Literal, counts: Counts) -> tuple[Any, ...]:
        situation = permit.situation

        async def fetch(keys: Sequence[str]) -> Mapping[str, tuple[Any, ...]]:
            query = (("practitioner", str(user)), ("_count", str(AT_ONCE)))
            found = await self._upstream.search(permit, "PractitionerRole", query, counts)
            return {keys[0]: tuple(role for role in found if role.get("resourceType") == "PractitionerRole")}

        key = f"roles of {user}"
        roles = (await self._roles.of([key], situation.facts, fetch))[key]
        mine = [role for role in roles if named_in(role.get("practitioner"), situation.bases) == user]
        return tuple(
            role for role in mine if role.get("active") is not False and period_holds(role.get("period"), situation.now) is True
        )

    async def _related(self, permit: Permit, consents: list[Consent], counts: Counts) -> None:
        """What ``related`` of a provision's data leads to."""
        facts = permit.situation.facts
        wanted = frozenset[Literal]().union(*(_named_by(consent).related for consent in consents)) - facts.glances.keys()
        found = await self._named(permit, wanted, counts) if wanted else {}
        for one in wanted:
            facts.glances[one] = glance(found[one]) if one in found else None


class _Named(NamedTuple):
    """Whom and what a Consent names that has to be looked up."""

    actors: frozenset[Actor]
    related: frozenset[Literal]


@lru_cache(maxsize=65_536)
def _named_by(consent: Consent) -> _Named:
    provisions = list(consent.provisions())
    related = (one.reference for provision in provisions for one in provision.data if one.meaning == "related")
    return _Named(
        frozenset(actor for provision in provisions for actor in provision.actors),
        frozenset(one for one in related if one is not None),
    )


def _is_past(permit: Permit) -> bool:
    """Whether an answer holds old versions, from which no label is taken."""
    return permit.interaction.recalls or permit.interaction.version != ""


def _all_within(resource: Any) -> Iterable[Any]:
    """A resource and those within it that are judged by themselves."""
    kind = resource.get("resourceType") if type(resource) is dict else None
    if type(kind) is not str:
        return []
    return _each_within(resource) if "contained" in resource or kind in HOLDING else [resource]


def _each_within(resource: Any) -> Iterable[Any]:
    waiting = [resource]
    while waiting:
        node = waiting.pop()
        if type(node) is not dict or type(node.get("resourceType")) is not str:
            continue
        yield node
        contained = node.get("contained")
        if type(contained) is list:
            waiting.extend(one for one in contained if _is_of_somebody(one))
        kind = node["resourceType"]
        if kind in HOLDING:
            waiting.extend(_held(node.get(HOLDING[kind])))


def _is_of_somebody(node: Any) -> bool:
    kind = node.get("resourceType") if type(node) is dict else None
    return type(kind) is str and has_subject(kind) and kind != "Patient"


def _held(rows: Any) -> Iterable[Any]:
    for row in rows if type(rows) is list else ():
        if type(row) is dict:
            yield row.get("resource")
            yield from _held(row.get("part"))


def _born(patient: Any) -> dt.date | None:
    """The last day on which a patient may have been born; None where none is said."""
    said = date_span(patient["birthDate"]) if type(patient) is dict and type(patient.get("birthDate")) is str else None
    return said[1].date() if said else None
