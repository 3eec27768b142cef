"""What patients and circumstances decide of one resource: Consents and labels, once scopes and rules have let it through."""

from __future__ import annotations

from typing import Any, NamedTuple

from fhirshield.authorize.about import About
from fhirshield.authorize.asking import Asking
from fhirshield.authorize.consent import decide, denied, forbidden
from fhirshield.fhir.glance import Code, Page
from fhirshield.fhir.reference import Literal, literal
from fhirshield.fhir.subjects import Patients, has_subject, patients_of, people_of
from fhirshield.model import Facts, Labels, Principal, Reason, Situation
from fhirshield.policy.compile import Applied, RuleSet
from fhirshield.policy.consent import Decision
from fhirshield.policy.rule import cleared

Refusal = tuple[Reason, str]
"""Why a resource is withheld, and what says so: a Consent with the path of its provision, or a rule."""


class Ruling(NamedTuple):
    """What they say of one resource."""

    refused: Refusal | None = None
    labels: tuple[Code, ...] = ()
    """What it leaves with besides what is stored."""
    elements: frozenset[Code | str] | None = None
    """What of ``ConsentElement.names`` its patients deny; None where that is not known, which hides all of them."""


OPEN = Ruling()
NO_ELEMENTS: frozenset[Code | str] = frozenset()


class Circumstances:
    """The circumstances of one exchange. ``action`` is what is done with resources: ``read``, ``create`` or ``change``."""

    def __init__(self, rules: RuleSet, applied: Applied, principal: Principal, situation: Situation, action: str = "read") -> None:
        self._consent = rules.consent if applied.consents else None
        self._elements = bool(applied.elements)
        self._sensitivity = rules.sensitivity
        self._facts: Facts = situation.facts
        self._bases = situation.bases
        self._residuals = principal.residuals
        user = literal(principal.fhir_user)
        own = self._consent is not None and self._consent.own_record and user is not None and user.type == "Patient"
        self._own = frozenset((user.id,)) if own and user is not None else None
        """The very person who asks, where that may read what is about nobody else."""
        self._asking = Asking.of(principal, situation, action)
        self._clearance = applied.clearance
        self._cleared: Labels | None = None
        """The labels that were last found to be within clearance."""
        self._today = situation.now.date()

    def refuse(self, resource: Any, letter: str = "") -> Refusal | None:
        """Why this resource is withheld, if it is."""
        return self.judged(resource, letter).refused

    def judged(self, resource: Any, letter: str = "", page: Page | None = None) -> Ruling:
        """All that they say. Of what is contained (``c``) only whom it is about besides is asked."""
        about = About(resource, self._sensitivity, self._bases, self._facts, self._today, page)
        refused = self._refused(about, letter)
        if refused is not None:
            return Ruling(refused)
        labels = about.labels if self._clearance is not None and letter not in {"b", "c"} else None
        elements = self._denied(about, letter) if self._elements else NO_ELEMENTS
        return Ruling(None, labels.own if labels is not None else (), elements)

    def _denied(self, about: About, letter: str) -> frozenset[Code | str] | None:
        """The elements that a resource's patients deny this caller."""
        patients = self._about(about, letter) if letter != "b" else None
        if self._consent is None or not patients:
            return None
        if patients == self._own or self._facts.replaces("consent", patients):
            return NO_ELEMENTS
        known = [self._facts.consents.get(patient) for patient in patients]
        if None in known:
            return None
        found = [
            denied(one, self._consent, self._asking, about) for of in known if of is not None for one in (of.consents, of.linked)
        ]
        return NO_ELEMENTS.union(*found)

    def _refused(self, about: About, letter: str) -> Refusal | None:
        if self._clearance is not None and letter not in {"b", "c"} and not self._replaced("clearance", about):
            labels = about.labels
            if labels is None:
                return Reason.FACTS_UNAVAILABLE, "labels"
            if labels is not self._cleared and not cleared(self._clearance, labels):
                return Reason.BEYOND_CLEARANCE, "clearance"
            self._cleared = labels
        if self._residuals and letter != "b" and (path := forbidden(self._residuals, self._asking, about)):
            return Reason.NO_CONSENT, path
        if self._consent is None or letter == "b":
            return None
        return self._consents(about, letter)

    def _consents(self, about: About, letter: str) -> Refusal | None:
        assert self._consent is not None
        patients = self._about(about, letter)
        if patients is None:
            return Reason.NO_PATIENT, ""
        if patients == self._own or (self._facts.grant is not None and self._facts.replaces("consent", patients)):
            return None
        for patient in sorted(patients) if len(patients) > 1 else patients:
            known = self._facts.consents.get(patient)
            if known is None:
                return Reason.FACTS_UNAVAILABLE, "Consent"
            if known.faults:
                return Reason.CONSENT_UNSUPPORTED, known.faults[0]
            said = decide(known.consents, self._consent, self._asking, about)
            if said.decision is Decision.PERMIT and known.linked:
                linked = decide(known.linked, self._consent, self._asking, about, implicit=False)
                said = linked if linked.decision is Decision.DENY else said
            if said.decision is not Decision.PERMIT:
                return Reason.CONSENT_UNSUPPORTED if said.unsupported else Reason.NO_CONSENT, said.why
        return None

    def _about(self, about: About, letter: str) -> Patients | None:
        return self._contained(about) if letter == "c" else people_of(about.resource, self._bases, self._subjects)

    def _replaced(self, conjunct: str, about: About) -> bool:
        """Whether an emergency replaces a conjunct for all whom a resource is about."""
        if self._facts.grant is None:
            return False
        patients = people_of(about.resource, self._bases, self._subjects)
        return patients is not None and self._facts.replaces(conjunct, patients)

    def _contained(self, about: About) -> Patients:
        found = patients_of(about.resource, self._bases) if has_subject(about.type) and about.type != "Patient" else None
        return found or frozenset()

    def _subjects(self, named: Literal) -> Patients | None:
        return self._facts.subjects.get(named)
