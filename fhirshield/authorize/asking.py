"""The request's side of a decision: who asks, for what, when, and what was gathered of those whom rules of others name.

Made once for an exchange; what it was asked is kept, so that a hundred resources of one patient cost one look.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

from fhirshield.fhir.consent import Actor, Provision
from fhirshield.fhir.ordered import period_holds
from fhirshield.fhir.reference import Literal, literal
from fhirshield.fhir.v3 import TERMINOLOGY, above, is_a, purpose_code
from fhirshield.model import Facts, Principal, Situation

Answer = bool | None
ACTIONS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "read": (frozenset({"access"}), frozenset({"access", "use", "disclose"})),
    "create": (frozenset({"collect"}), frozenset({"collect", "use"})),
    "change": (frozenset({"correct"}), frozenset({"correct", "use"})),
}
"""What each way of asking certainly is, and what it may be (code system consentaction)."""
_PARTICIPATION = TERMINOLOGY + "v3-ParticipationType"
_ROLES = frozenset(
    (
        _PARTICIPATION,
        TERMINOLOGY + "v3-RoleClass",
        TERMINOLOGY + "v3-RoleCode",
        TERMINOLOGY + "contractsignertypecodes",
        TERMINOLOGY + "extra-security-role-type",
        "http://dicom.nema.org/resources/ontology/DCM",
    )
)
"""Code systems of ways to take part (value set security-role-type of R4)."""
_PERSONS = frozenset({"Practitioner", "RelatedPerson", "Patient", "Person"})


@dataclass(slots=True)
class Asking:
    """One caller's request, as Consents see it."""

    principal: Principal
    now: dt.datetime
    bases: tuple[str, ...]
    facts: Facts
    action: str
    """A key of ACTIONS."""
    purposes: frozenset[str] = frozenset()
    """Plain codes of ActReason; what is of another system stays whole."""
    said: dict[Any, Any] = field(default_factory=dict)
    """What the terms of Consents said, by what they ask of a resource."""
    applied: dict[Any, Any] = field(default_factory=dict)
    """Whether Consents are in force."""
    _matched: dict[tuple[Provision, bool], Answer] = field(default_factory=dict)

    @staticmethod
    def of(principal: Principal, situation: Situation, action: str) -> Asking:
        """The asking of one exchange."""
        purposes = frozenset(map(purpose_code, principal.purposes))
        return Asking(principal, situation.now, situation.bases, situation.facts, action, purposes)

    @property
    def user(self) -> Literal | None:
        """The person who asks."""
        return literal(self.principal.fhir_user)

    def matches(self, provision: Provision, permits: bool) -> Answer:
        """Whether all that a provision asks of the request holds: narrowly for a permit, widely for a deny."""
        key = (provision, permits)
        if key not in self._matched:
            self._matched[key] = all_of(
                self._in_period(provision),
                self._acts(provision, permits),
                self._for_purpose(provision, permits),
                self._is_meant(provision, permits),
                None if provision.beyond else True,
            )
        return self._matched[key]

    def _in_period(self, provision: Provision) -> Answer:
        return provision.period.holds(self.now) if provision.period is not None else True

    def _acts(self, provision: Provision, permits: bool) -> Answer:
        if not provision.actions:
            return None if "actions" in provision.vague else True
        certain, possible = ACTIONS[self.action]
        codes = {code for _, code in provision.actions}
        if codes & (certain if permits else possible):
            return True
        unheard = bool(codes - _KNOWN_ACTIONS) or any(system not in {"", _ACTIONS} for system, _ in provision.actions)
        return None if unheard or "actions" in provision.vague else False

    def _for_purpose(self, provision: Provision, permits: bool) -> Answer:
        """A permit must name each stated purpose itself; a deny covers what is a kind of what it names."""
        if not provision.purposes:
            return None if "purposes" in provision.vague else True
        if not self.purposes:
            return None
        named = {purpose_code(f"{system}|{code}" if system else code) for system, code in provision.purposes}
        if permits:
            return self.purposes <= named
        if any(is_a(_REASON, mine, one) for mine in self.purposes for one in named):
            return True
        unheard = any(above(_REASON, one) is None for one in named | self.purposes)
        return None if unheard or "purposes" in provision.vague else False

    # --- actors ---------------------------------------------------------------------------------------------------

    def _is_meant(self, provision: Provision, permits: bool) -> Answer:
        if not provision.actors:
            return True
        return any_of(self.is_actor(actor, permits) for actor in provision.actors)

    def is_actor(self, actor: Actor, permits: bool) -> Answer:
        """Whether the caller is an actor, as a recipient; one who takes part otherwise is not known to be meant."""
        ways = [code for system, code in actor.roles if _is_way(system, code)]
        functions = [(system, code) for system, code in actor.roles if not _is_way(system, code)]
        if ways and not any(is_recipient(code) for code in ways):
            return None
        answers: list[Answer] = []
        if functions:
            answers.append(self._has_role(functions))
        if actor.reference is not None:
            answers.append(self._is_one(actor.reference, permits))
        elif actor.identifier is not None:
            answers.append(self._is_identified(actor.identifier))
        elif actor.elsewhere or not functions:
            answers.append(None)
        return all_of(*answers)

    def _has_role(self, functions: list[tuple[str, str]]) -> Answer:
        roles = self.principal.roles
        if any(code in roles or f"{system}|{code}" in roles for system, code in functions):
            return True
        codes = {code for role in self.facts.roles or () for code in _role_codes(role)}
        return True if any(one in codes for one in functions) else None

    def _is_one(self, named: Literal, permits: bool = True) -> Answer:
        user = self.user
        if named.type == "Organization":
            return self._is_of(named, permits)
        if named.type in {"CareTeam", "Group"}:
            return self._is_member(named)
        if user is None:
            return None
        if user == named:
            return True
        if named.type == "PractitionerRole":
            return self._plays(named)
        if named.type == "Practitioner" and user.type == "PractitionerRole":
            role = self.facts.resources.get(user)
            return _names(role, "practitioner", self.bases) == named if role is not None else None
        return None if "Person" in {named.type, user.type} or named.type not in _PERSONS else False

    def _plays(self, named: Literal) -> Answer:
        """Whether the caller has a PractitionerRole."""
        if self.user is None or self.user.type != "Practitioner":
            return None if self.user is None or self.user.type == "Person" else False
        if self.facts.roles is None:
            return None
        return any(role.get("id") == named.id for role in self.facts.roles)

    def _organizations(self) -> frozenset[str]:
        """Those for which the caller acts, by name and by identifier."""
        found = set(self.principal.organizations)
        user = self.user
        own = [self.facts.resources.get(user)] if user is not None and user.type == "PractitionerRole" else []
        for role in [*(self.facts.roles or ()), *own]:
            named = _names(role, "organization", self.bases) if role is not None else None
            if named is not None:
                found.add(str(named))
        return frozenset(found)

    def _is_of(self, named: Literal, permits: bool) -> Answer:
        """Whether the caller acts for an organization; a deny holds for those who act for a part of it, too."""
        organizations = self._organizations()
        if str(named) in organizations:
            return True
        if not permits and (part := self._is_part(organizations, named)) is not False:
            return part
        if self.user is not None and self.user.type in {"Patient", "RelatedPerson"}:
            return False
        known = [one for one in organizations if literal(one) is not None]
        return False if known else None

    def _is_part(self, organizations: frozenset[str], whole: Literal) -> Answer:
        """Whether any of these is a part of an organization (``partOf``), as far as that was gathered."""
        waiting = [one for text in organizations if (one := literal(text, self.bases)) is not None]
        seen: set[Literal] = set()
        found: Answer = False
        while waiting:
            current = waiting.pop()
            seen.add(current)
            if current not in self.facts.resources:
                found = None
                continue
            part = self.facts.resources[current]
            if part is None or "partOf" not in part:
                continue
            above_it = _names(part, "partOf", self.bases)
            if above_it == whole:
                return True
            if above_it is None:
                found = None
            elif above_it not in seen:
                waiting.append(above_it)
        return found

    def _is_identified(self, identifier: tuple[str, str]) -> Answer:
        """Whether the caller, or its organization, is the one with an identifier; certain only with its system."""
        system, value = identifier
        known = self.principal.identifiers | self.principal.organizations
        if f"{system}|{value}" in known or (system in {"", "urn:ietf:rfc:3986"} and ":" in value and value in known):
            return True
        return None

    def _is_member(self, named: Literal) -> Answer:
        """Whether the caller stands in a CareTeam or Group that is in force now."""
        group = self.facts.resources.get(named)
        if group is None:
            return None
        if named.type == "CareTeam":
            if group.get("status", "active") not in {"active"}:
                return False
            rows, key = group.get("participant"), "member"
        else:
            if group.get("active") is False:
                return False
            if group.get("actual") is not True:
                return None
            rows, key = group.get("member"), "entity"
        return any_of(self._stands(row, key) for row in rows if type(row) is dict) if type(rows) is list else False

    def _stands(self, row: dict[str, Any], key: str) -> Answer:
        if row.get("inactive") is True:
            return False
        named = _names(row, key, self.bases)
        if named is None or named.type in {"CareTeam", "Group"}:
            return None
        return all_of(self._is_one(named), period_holds(row.get("period"), self.now))


_REASON = TERMINOLOGY + "v3-ActReason"
_ACTIONS = TERMINOLOGY + "consentaction"
_KNOWN_ACTIONS = frozenset({"access", "collect", "correct", "disclose", "use"})
_RECIPIENTS = frozenset(
    {"IRCP", "NOT", "PRCP", "REFB", "REFT", "TRC", "GRANTEE", "DELEGATEE", "irecip", "datacollector", "dataprocessor"}
)


def _is_way(system: str, code: str) -> bool:
    """Whether a role says in which way one takes part."""
    return system in _ROLES or (not system and is_recipient(code))


def is_recipient(code: str) -> bool:
    """Whether a way to take part is to receive information: IRCP and its kinds, and those to whom something is granted."""
    return code in _RECIPIENTS


def all_of(*answers: Answer) -> Answer:
    """Three-valued AND."""
    return False if False in answers else None if None in answers else True


def any_of(answers: Any) -> Answer:
    """Three-valued OR."""
    found: Answer = False
    for answer in answers:
        if answer is True:
            return True
        if answer is None:
            found = None
    return found


def _names(resource: Any, element: str, bases: tuple[str, ...]) -> Literal | None:
    value = resource.get(element) if type(resource) is dict else None
    return literal(value.get("reference"), bases) if type(value) is dict else None


def _role_codes(role: Any) -> list[tuple[str, str]]:
    concepts = role.get("code")
    codings = [c for one in concepts if type(one) is dict for c in one.get("coding", [])] if type(concepts) is list else []
    return [(str(c.get("system", "")), str(c.get("code", ""))) for c in codings if type(c) is dict]
