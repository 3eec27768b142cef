"""What one kind of caller may do, by resource type: scopes and rules brought together once, read for every resource.

A standing depends on the rules that apply and on the scopes, not on who exactly asks, so callers share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from fhirshield.authorize.naming import NAMING, touches_identifier, touches_name
from fhirshield.fhir import criteria
from fhirshield.fhir.attachments import PARTS, attachments, bytes_of
from fhirshield.fhir.criteria import Criteria, Judge
from fhirshield.fhir.definitions import resource_types
from fhirshield.fhir.glance import Code
from fhirshield.fhir.path import parse as parse_path
from fhirshield.fhir.scopes import Scope, Scopes, parse
from fhirshield.fhir.subjects import has_subject, is_about_nobody, people_of
from fhirshield.model import Facts, Naming, Obligation, Opaque, Remove, TypeView
from fhirshield.policy.compile import Applied
from fhirshield.policy.rule import RESERVED, Rule

ACTIVE_TYPES = frozenset(
    {
        "ActivityDefinition", "CapabilityStatement", "CodeSystem", "CompartmentDefinition", "ConceptMap", "Endpoint",
        "EventDefinition", "GraphDefinition", "ImplementationGuide", "Library", "Measure", "MessageDefinition", "MessageHeader",
        "NamingSystem", "OperationDefinition", "PlanDefinition", "SearchParameter", "StructureDefinition", "StructureMap",
        "Subscription", "TerminologyCapabilities", "ValueSet",
    }
)  # fmt: skip
"""Types that make a server act, or change what its searches and validations mean; never written through a wildcard."""


@dataclass(frozen=True, slots=True)
class ScopeRow:
    """A scope as it bears on one type."""

    scope: Scope
    letters: str
    limited: bool
    """To resources about the patient in context."""
    judge: Judge | None


@dataclass(frozen=True, slots=True)
class RuleRow:
    """One selector of an allow or a deny, as it bears on one type."""

    rule: Rule
    letters: str
    """``r`` read, ``v`` vread, ``h`` history, ``s`` search, ``c`` create, ``u`` update, ``p`` patch, ``d`` delete."""
    selector: Criteria
    judge: Judge | None
    related: str = ""
    """The relationship that it asks for; then ``judge`` knows of it only once it is bound to an exchange's facts."""
    criteria: Judge | None = None
    """What the selector says, the relationship aside."""


@dataclass(frozen=True, slots=True)
class TypeStanding:
    """Everything that bears on one type."""

    type: str
    scopes: tuple[ScopeRow, ...]
    allows: tuple[RuleRow, ...]
    denies: tuple[RuleRow, ...]
    obligations: tuple[tuple[int, Judge], ...]
    """Those with criteria, each with its bit; the rest are in ``always``."""
    always: int
    consented: tuple[tuple[int, frozenset[Code | str]], ...]
    """Those that hold only where a Consent denies one of these, each with its bit."""
    withheld_by: str
    """The rule that withholds the type whole, or empty."""
    open_to_all: bool
    """A type without a patient that an allow rule names: readable under a patient scope too."""
    whole: bool
    """Nothing of this type can be withheld from this caller."""
    view: TypeView
    guarded: bool = False
    """Patients or circumstances may withhold what rules let through."""
    reads: str = ""
    """``r`` where a read is granted by scope and rule and no deny is without criteria: known once, asked for every read."""


class Standing:
    """The standing of one kind of caller at one upstream."""

    def __init__(self, applied: Applied, scopes: Scopes, patient: bool, user: bool, bases: tuple[str, ...]) -> None:
        self.applied = applied
        self.bases = bases
        self.scopes = tuple(
            s
            for s in scopes.granted
            if s.context == "system" or (s.context == "patient" and patient) or (s.context == "user" and user)
        )
        self._types: dict[str, TypeStanding] = {}
        self._naming: Naming | None = None

    def of(self, resource_type: str) -> TypeStanding | None:
        """What bears on a type; None for a type that R4 does not have."""
        found = self._types.get(resource_type)
        if found is None and resource_type in resource_types():
            found = self._types[resource_type] = self._type(resource_type)
        return found

    def _type(self, name: str) -> TypeStanding:
        obligations = self._obligations(name)
        allows = self._rows(name, allow=True)
        return TypeStanding(
            type=name,
            scopes=self._scope_rows(name),
            allows=allows,
            denies=self._rows(name, allow=False),
            obligations=tuple((1 << i, judge) for i, o in enumerate(obligations) if (judge := self._where(o))),
            always=sum(1 << i for i, o in enumerate(obligations) if not self._where(o)),
            consented=tuple((1 << i, o.consent) for i, o in enumerate(obligations) if o.consent),
            withheld_by=self._withheld_by(name),
            open_to_all=not has_subject(name)
            and name not in _OF_SOMEBODY
            and any(row.selector.type == name and row.judge is None for row in allows),
            whole=self._never_withheld(name, subject=False) and (name != "Binary" or self.naming.all_open),
            guarded=self._guarded(name),
            reads=self._reads(name, allows),
            view=TypeView(
                name,
                obligations,
                self.naming,
                marked=bool(obligations),
                closed=self._closed(name) if obligations else frozenset(),
                silent=bool(obligations) or self.names_are_hidden,
                label=hashlib.sha256("\n".join(f"{o.rule} {o.path.text} {o.operation}" for o in obligations).encode()).digest(),
            ),
        )

    def _guarded(self, name: str) -> bool:
        """Labels may stand on anything; Consents are asked about whatever may be about somebody."""
        if self.applied.clearance is not None or self.applied.residual:
            return True
        return self.applied.consents and not is_about_nobody(name)

    def _reads(self, name: str, allows: tuple[RuleRow, ...]) -> str:
        scoped = any("r" in row.letters for row in self._scope_rows(name))
        denied = self._withheld_by(name) or any(r.judge is None and "r" in r.letters for r in self._rows(name, allow=False))
        return "r" if scoped and not denied and any("r" in row.letters for row in allows) else ""

    def _obligations(self, name: str) -> tuple[Obligation, ...]:
        return (*self._ruled(name), *self._opaque(name))

    def _ruled(self, name: str) -> tuple[Obligation, ...]:
        rules = tuple(o for rule in self.applied.redact for o in rule.redact if o.type == name)
        return (*rules, *(o for o in self.applied.elements if o.type == name)) if self.applied.elements else rules

    # --- content that no redaction looks into ---------------------------------------------------------------------

    def opaque(self, name: str) -> Opaque | None:
        """What of such content rules let through on a type."""
        rows = [rule.allow for rule in self.applied.allow if rule.allow and rule.allow.opaque and rule.allow.of(name)]
        granted = [grant.opaque for grant in rows if grant.opaque]
        return (
            Opaque(
                frozenset().union(*(o.types for o in granted)),
                0 if any(o.most == 0 for o in granted) else max(o.most for o in granted),
            )
            if granted
            else None
        )

    def _where(self, obligation: Obligation) -> Judge | None:
        """Where an obligation applies; None for everywhere."""
        granted = self.opaque("Binary") if obligation.rule == OPAQUE and obligation.type == "Binary" else None
        if granted is not None:
            return lambda binary: not granted.lets(binary)
        return self._judge(obligation.criteria) if obligation.criteria else None

    def _opaque(self, name: str) -> Iterator[Obligation]:
        """Attachments go where they could tell what may be hidden, a Binary's data anywhere, unless a rule lets them pass."""
        granted = self.opaque(name)
        passed = granted.types if granted else frozenset()
        if name == "Binary":
            if granted is None or not granted.everything:
                yield Obligation(OPAQUE, name, parse_path("$.data"), Remove())
            return
        ruled = bool(self._ruled(name))
        if "*" in passed or not (ruled or (self.names_are_hidden and (name not in ACTIVE_TYPES or name == "Library"))):
            return
        for place in attachments(name):
            if ruled or not place.startswith("$.photo"):
                for part in PARTS:
                    yield Obligation(OPAQUE, name, parse_path(f"{_but(place, passed)}.{part}"), Remove())
        for place in bytes_of(name):
            yield Obligation(OPAQUE, name, parse_path(place), Remove())

    def _closed(self, name: str) -> frozenset[str]:
        revealed = (rule.reveal.of(name) for rule in self.applied.reveal if rule.reveal)
        return frozenset({"versionId", "lastUpdated", "source"}).difference(*revealed)

    def _withheld_by(self, name: str) -> str:
        return next((rule.id for rule in self.applied.redact if name in rule.withheld or "*" in rule.withheld), "")

    def _scope_rows(self, name: str) -> tuple[ScopeRow, ...]:
        return tuple(
            ScopeRow(
                s,
                s.permissions.translate(_WRITING) if s.type == "*" and name in ACTIVE_TYPES else s.permissions,
                s.context == "patient",
                self._judge(s.criteria, name) if s.criteria else None,
            )
            for s in self.scopes
            if s.covers(name)
        )

    def _rows(self, name: str, *, allow: bool) -> tuple[RuleRow, ...]:
        rows = []
        for rule in self.applied.allow if allow else self.applied.deny:
            grant = rule.allow if allow else rule.deny
            assert grant is not None
            letters = "".join(letter for verb, letter in RULE_LETTERS.items() if verb in grant.interactions)
            for selector in grant.of(name):
                judge = self._judge(selector, name) if selector.items else None
                related = _unbound if grant.related else judge
                wild = allow and selector.type == "*" and name in ACTIVE_TYPES
                own = letters.translate(_WRITING) if wild else letters
                rows.append(RuleRow(rule, own, selector, related, grant.related, judge))
        return tuple(rows)

    def _judge(self, selector: Criteria, name: str = "") -> Judge:
        known = Criteria("*" if selector.type == "*" else name or selector.type, selector.items)
        return criteria.judge(known, self.bases, typed=True)

    # --- names in references ------------------------------------------------------------------------------------

    @property
    def naming(self) -> Naming:
        """Where displays and identifiers of references may stay."""
        if self._naming is None:
            self._naming = self._name()
        return self._naming

    @cached_property
    def names_are_hidden(self) -> bool:
        """Whether a name may be hidden from this caller that narrative of any type could tell: by a rule, or the subject's."""
        naming = self.naming
        if not (naming.subject_display and naming.subject_identifier) or self._ruled("Patient") or self.applied.deny:
            return True
        if self.applied.guarded:
            return True
        if any(rule.withheld for rule in self.applied.redact):
            return True
        types = {o.type for rule in self.applied.redact for o in rule.redact} | {o.type for o in self.applied.elements}
        return any(touches_name(self._ruled(t), t) or touches_identifier(self._ruled(t)) for t in types & NAMING.keys())

    def _name(self) -> Naming:
        visible = {t for t in resource_types() if self._never_withheld(t, subject=False)}
        display = frozenset(t for t in visible if not touches_name(self._ruled(t), t))
        identifier = frozenset(t for t in visible if not touches_identifier(self._ruled(t)))
        of_subject = self._never_withheld("Patient", subject=True)
        patient = self._ruled("Patient")
        return Naming(
            display,
            identifier,
            of_subject and not touches_name(patient, "Patient"),
            of_subject and not touches_identifier(patient),
            len(display) == len(identifier) == len(resource_types()),
        )

    def _never_withheld(self, name: str, *, subject: bool) -> bool:
        """Whether every resource of a type can be read by this caller (``subject``: the subject of what it sees)."""
        if self._withheld_by(name) or self._rows(name, allow=False) or self._guarded(name):
            return False
        allows = self._rows(name, allow=True)
        open_to_all = not has_subject(name) and name not in _OF_SOMEBODY and any(row.selector.type == name for row in allows)
        scoped = any(
            row.judge is None and "r" in row.letters and (not row.limited or subject or open_to_all)
            for row in self._scope_rows(name)
        )
        return scoped and any(row.judge is None and "r" in row.letters for row in allows)


def _unbound(resource: object) -> None:
    """Of a relationship nobody knows before it is gathered: an allow does not hold, a deny does."""


class Bound(Standing):
    """A standing with what is known of the caller's relationships in one exchange."""

    def __init__(self, shared: Standing, facts: Facts) -> None:
        self.applied, self.bases, self.scopes = shared.applied, shared.bases, shared.scopes
        self._shared = shared
        self._facts = facts
        self._types = {}
        self._naming = shared.naming

    def _type(self, name: str) -> TypeStanding:
        found = self._shared.of(name)
        assert found is not None
        allows = tuple(self._bind(row, every=True) if row.related else row for row in found.allows)
        denies = tuple(self._bind(row, every=False) if row.related else row for row in found.denies)
        return replace(found, allows=allows, denies=denies)

    def _bind(self, row: RuleRow, *, every: bool) -> RuleRow:
        """An allow is for resources all of whose patients stand in the relationship, a deny for those any of whose may."""
        hard = not every and row.rule.deny is not None and row.rule.deny.hard

        def judge(resource: Any) -> bool | None:
            selected = row.criteria(resource) if row.criteria is not None else True
            if selected is False:
                return False
            known = self._facts.related.get(row.related)
            patients = people_of(resource, self.bases, self._facts.subjects.get)
            if patients and not hard and self._facts.replaces("relationship", patients):
                return selected if every else False
            if known is None or patients is None:
                return None
            within = bool(patients) and (patients <= known if every else not patients.isdisjoint(known))
            return selected if within else False

        return replace(row, judge=judge)


def _but(place: str, passed: frozenset[str]) -> str:
    """The attachments at a place that are not of these media types; all of them where they cannot be told apart by a filter."""
    head, many, tail = place.rpartition("[*]")
    if not passed or not many:
        return place
    tests = " && ".join(f"@{tail}.contentType!='{kind}'" for kind in sorted(passed))
    return f"{head}[?{tests}]{tail}"


_OF_SOMEBODY = frozenset({"Binary", "Device", "Provenance"})
"""Types without a subject of which one may be somebody's all the same: they are shown by what they belong to."""
OPAQUE = RESERVED
"""Stands for a rule where content goes because no rule lets it through."""
RULE_LETTERS = {"read": "r", "vread": "v", "search": "s", "history": "h", "create": "c", "update": "u", "patch": "p", "delete": "d"}
_WRITING = str.maketrans("", "", "cupd")


@lru_cache(maxsize=1024)
def standing(applied: Applied, scopes: str, patient: bool, user: bool, bases: tuple[str, ...]) -> Standing:
    """The shared standing of all callers with these rules and scopes, the latter as the token has them."""
    return Standing(applied, parse(scopes), patient, user, bases)
