"""Rules to a RuleSet: which rules apply to this principal now. What they then mean is ``authorize``'s business.

Matching is three-valued and never opens a door: an ``allow`` applies only where its ``who`` is certainly met, a ``deny``
or a ``redact`` wherever it is not certainly unmet.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from fhirshield.fhir.glance import Code
from fhirshield.model import Emergency, Obligation, Principal, Situation
from fhirshield.policy.consent import ConsentPolicy
from fhirshield.policy.rule import BIRTH, NORMAL, PART, POLICY_TYPES, Clearance, Rule, Rules, Who

CACHE = 8192
"""Principals whose applicable rules are remembered."""


@dataclass(frozen=True, slots=True, eq=False)
class Applied:
    """The rules that speak to one caller at one time. One object for all callers with equal rules, compared as such."""

    allow: tuple[Rule, ...]
    deny: tuple[Rule, ...]
    redact: tuple[Rule, ...]
    reveal: tuple[Rule, ...]
    clearance: frozenset[Clearance] | None = None
    """How sensitive what the caller sees may be; None where rules say nothing of sensitivity."""
    consents: bool = False
    """Patients' Consents are asked."""
    elements: tuple[Obligation, ...] = ()
    """What these may hide of what they let through."""
    residual: bool = False
    """The token leaves something to be enforced."""
    emergencies: tuple[Emergency, ...] = ()
    weak: tuple[Rule, ...] = ()
    """Those that wait for stronger authentication alone."""
    waiting: tuple[Rule, ...] = ()
    """Those that say what their conditions wait for."""

    @property
    def hides(self) -> bool:
        """Whether any element may be hidden, by a rule or by what Consents say."""
        return bool(self.redact or self.elements)

    @property
    def related(self) -> frozenset[str]:
        """The relationships that these rules speak of."""
        grants = [*(rule.allow for rule in self.allow), *(rule.deny for rule in self.deny)]
        return frozenset(grant.related for grant in grants if grant is not None and grant.related)

    @property
    def guarded(self) -> bool:
        """Whether patients or circumstances may withhold what scopes and rules let through."""
        return self.consents or self.residual or self.clearance is not None


class RuleSet:
    """A compiled set of rules; immutable but for its cache."""

    def __init__(self, rules: Rules, consent: ConsentPolicy | None = None) -> None:
        self.rules = rules.rules
        self.elements = rules.elements
        names = frozenset[Code | str]().union(*(one.names for one in rules.elements))
        self.consent = replace(consent, elements=names) if consent is not None and names else consent
        self.sensitivity = rules.sensitivity
        self.relationships = {one.name: one for one in rules.relationships}
        self.read_types = POLICY_TYPES.union(*(one.types for one in rules.relationships))
        """The types that decisions read."""
        minors = rules.sensitivity is not None and rules.sensitivity.minors is not None
        self.read_elements = frozenset(name for name, read in ((PART, consent is not None), (BIRTH, minors)) if read)
        """Single elements of other types that they read, besides those that they always do."""
        self.digest = rules.digest if consent is None else hashlib.sha256(f"{rules.digest} {consent.text}".encode()).hexdigest()
        self.modifier_extensions = rules.modifier_extensions
        self._conditions = [c for rule in rules.rules for c in (rule.who.when, rule.who.unless) if c]
        self._reads = sorted({name for condition in self._conditions for name in condition.environment})
        self._authentications = [rule.who.authentication for rule in rules.rules if rule.who.authentication]
        self._cache: OrderedDict[tuple[Any, ...], Applied] = OrderedDict()
        self._shared: dict[tuple[Any, ...], Applied] = {}

    def applied(self, principal: Principal, situation: Situation) -> Applied:
        """The rules whose ``who`` this principal meets in this situation."""
        env = environment(principal, situation)
        strong = tuple(one.holds(principal, situation.now.timestamp()) for one in self._authentications)
        key = (principal.fingerprint, *(env.get(name) for name in self._reads), strong)
        found = self._cache.get(key)
        if found is None:
            found = self._match(principal, env, situation.now.timestamp())
            ids = tuple(tuple(r.id for r in part) for part in (found.allow, found.deny, found.redact, found.reveal))
            waits = tuple(tuple(r.id for r in part) for part in (found.weak, found.waiting))
            same = (ids, waits, found.clearance, found.consents, found.residual, found.emergencies)
            found = self._shared.setdefault(same, found)
            self._cache[key] = found
            if len(self._cache) > CACHE:
                self._cache.popitem(last=False)
        return found

    def _match(self, principal: Principal, env: dict[str, Any], now: float) -> Applied:
        facts = facts_of(principal)
        before = [(rule, meets(rule.who, principal, facts, env)) for rule in self.rules]
        answers = [(rule, answer if _strong(rule.who, principal, now) else False) for rule, answer in before]
        return Applied(
            tuple(rule for rule, answer in answers if rule.allow and answer is True),
            tuple(rule for rule, answer in answers if rule.deny and answer is not False),
            tuple(rule for rule, answer in answers if (rule.redact or rule.withheld) and answer is not False),
            tuple(rule for rule, answer in answers if rule.reveal and answer is True),
            self._clearance(rule.clearance for rule, answer in answers if rule.clearance and answer is True),
            (asked := self.consent is not None and not principal.roles & self.consent.exempt_roles),
            tuple(obligation for one in self.elements for obligation in one.redact) if asked else (),
            bool(principal.residuals),
            tuple(rule.emergency for rule, answer in answers if rule.emergency and answer is True),
            tuple(rule for rule, answer in before if answer is True and not _strong(rule.who, principal, now)),
            tuple(rule for rule in self.rules if rule.lift and rule.who.roles is not None and rule.who.roles & principal.roles),
        )

    def _clearance(self, granted: Iterable[Clearance | None]) -> frozenset[Clearance] | None:
        """The clearances of a caller; everybody is cleared for what is normal."""
        if self.sensitivity is None:
            return None
        return frozenset((Clearance(NORMAL, frozenset()), *(one for one in granted if one)))


def meets(who: Who, principal: Principal, facts: dict[str, Any], env: dict[str, Any]) -> bool | None:
    """Whether the caller is one whom the rule speaks of: True, False, or None where a condition cannot tell."""
    if who.roles is not None and not who.roles & principal.roles:
        return False
    if who.purposes is not None and not who.purposes & principal.purposes:
        return False
    result: bool | None = True
    for condition, wanted in ((who.when, True), (who.unless, False)):
        if condition is not None:
            answer = condition.holds(facts, env)
            if answer is (not wanted):
                return False
            if answer is None:
                result = None
    return result


def _strong(who: Who, principal: Principal, now: float) -> bool:
    return who.authentication is None or who.authentication.holds(principal, now)


def facts_of(principal: Principal) -> dict[str, Any]:
    """What conditions know as ``principal``."""
    return {
        **dict(principal.attributes),
        "roles": sorted(principal.roles),
        "purposes": sorted(principal.purposes),
        "client": principal.client,
        "issuer": principal.issuer,
        "organizations": sorted(principal.organizations),
        "acr": principal.acr,
        "amr": sorted(principal.amr),
    }


def environment(principal: Principal, situation: Situation) -> dict[str, Any]:
    """What conditions know as ``env``."""
    now = situation.now
    known = {
        "hour": now.hour,
        "minute": now.minute,
        "weekday": now.isoweekday(),
        "date": now.date().isoformat(),
        "address": situation.address,
        "country": situation.country,
    }
    return known | ({"auth_age": int(now.timestamp() - principal.auth_time)} if principal.auth_time else {})
