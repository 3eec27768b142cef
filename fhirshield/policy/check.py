"""Advice on rules that load: shadowed, contradictory and dead ones, one role reducing another, disclosures.

Nothing here changes a decision; every line is something that an operator may not have meant.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fhirshield.model import Obligation
from fhirshield.policy.rule import READING, Grant, Rule, Rules, Who
from fhirshield.settings import Settings


@dataclass(frozen=True, slots=True)
class Advice:
    """``kind`` is one of ``shadowed contradictory dead partial reduces conflict disclosure attribute consent``."""

    kind: str
    where: str
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}: {self.rule}: {self.message}"


def advise(rules: Rules, attributes: frozenset[str] | None = None) -> list[Advice]:
    """All advice, in the order of the rules. ``attributes`` are the mapped claims of the settings, where known."""
    found: list[Advice] = []
    for index, rule in enumerate(rules.rules):
        others = [other for place, other in enumerate(rules.rules) if place != index]
        found += _grants(rule, others, rules.rules[:index])
        found += _partial(rule)
        found += _redactions(rule, others)
        found += [Advice("disclosure", rule.where, rule.id, text) for text in rule.disclosures]
        found += _conditions(rule, attributes)
    for element in rules.elements:
        found += [Advice("disclosure", element.where, element.id, text) for text in element.disclosures]
    return found


def advise_settings(settings: Settings) -> list[Advice]:
    """Advice on what settings say of Consents."""
    consent, found = settings.consent, list[Advice]()
    if consent is None:
        return []
    where = settings.file
    if consent.eventual:
        text = (
            "the source of Consents is eventually consistent: a revocation binds some time after it was made, nobody can say when"
        )
        found.append(Advice("consent", where, "consent.search_lag", text))
    if consent.default in {"permit", "treatment"}:
        text = f"a patient of whom no Consent applies is treated as if there were one: {consent.default}"
        found.append(Advice("disclosure", where, "consent.default", text))
    for role in sorted(consent.exempt_roles):
        found.append(Advice("disclosure", where, "consent.exempt_roles", f"no Consent is asked of a caller who is {role}"))
    return found


def _partial(rule: Rule) -> Iterable[Advice]:
    left = sorted(set(READING) - rule.deny.interactions) if rule.deny else []
    if left:
        yield Advice("partial", rule.where, rule.id, f"denies not all interactions: {', '.join(left)} may show what it withholds")


def _grants(rule: Rule, others: list[Rule], before: tuple[Rule, ...]) -> Iterable[Advice]:
    if rule.allow is None:
        return
    for other in others:
        if other.deny and _covers_who(other.who, rule.who) and _covers(other.deny, rule.allow):
            yield Advice("contradictory", rule.where, rule.id, f"`{other.id}` denies all that it allows")
        if other.allow and _covers_who(other.who, rule.who) and _covers(other.allow, rule.allow):
            equal = _covers_who(rule.who, other.who) and _covers(rule.allow, other.allow)
            if not rule.redact and (not equal or other in before):
                yield Advice("shadowed", rule.where, rule.id, f"`{other.id}` already allows all of it")


def _redactions(rule: Rule, others: list[Rule]) -> Iterable[Advice]:
    types = {obligation.type for obligation in rule.redact}
    allowing = [other for other in [rule, *others] if other.allow and _overlap(other.who, rule.who)]
    reached = {t for t in types for other in allowing if other.allow and other.allow.of(t)}
    for unreached in sorted(types - reached) if len(types) < 100 else []:
        yield Advice("dead", rule.where, rule.id, f"redacts {unreached}, which no rule lets these callers see")
    if rule.redact and rule.who.roles is not None:
        more = sorted(other.id for other in others if _shows_more(other, rule, types))
        if more:
            roles = "/".join(sorted(rule.who.roles))
            message = f"a caller who is {roles} sees what it redacts redacted, even where these show it: {', '.join(more)}"
            yield Advice("reduces", rule.where, rule.id, message)
    seen: dict[tuple[str, str], Obligation] = {}
    for obligation in [*rule.redact, *(o for other in others for o in other.redact if _overlap(other.who, rule.who))]:
        key = (obligation.type, obligation.path.text)
        first = seen.setdefault(key, obligation)
        clash = type(first.operation) is type(obligation.operation) and first.operation != obligation.operation
        if clash and first.rule == rule.id and rule.id < obligation.rule:
            yield Advice("conflict", rule.where, rule.id, f"`{key[1]}` is also changed by `{obligation.rule}`, otherwise")


def _shows_more(other: Rule, rule: Rule, types: set[str]) -> bool:
    """Whether another rule, for other roles and a purpose in common, shows a type that this one redacts."""
    if other.allow is None or other.who.roles is None or (rule.who.roles or frozenset()) & other.who.roles:
        return False
    mine, theirs = rule.who.purposes, other.who.purposes
    if mine is not None and theirs is not None and not mine & theirs:
        return False
    return any(other.allow.of(name) for name in types)


def _conditions(rule: Rule, attributes: frozenset[str] | None) -> Iterable[Advice]:
    for condition in (rule.who.when, rule.who.unless):
        for name in condition.attributes if condition and attributes is not None else ():
            if attributes is not None and name not in attributes:
                message = f"`principal.{name}` is no mapped claim of any issuer: the condition is never known"
                yield Advice("attribute", rule.where, rule.id, message)


def _covers_who(wide: Who, narrow: Who) -> bool:
    if wide.when is not None and wide.when != narrow.when:
        return False
    if wide.unless is not None and wide.unless != narrow.unless:
        return False
    roles = wide.roles is None or (narrow.roles is not None and narrow.roles <= wide.roles)
    purposes = wide.purposes is None or (narrow.purposes is not None and narrow.purposes <= wide.purposes)
    return roles and purposes


def _overlap(one: Who, other: Who) -> bool:
    roles = one.roles is None or other.roles is None or bool(one.roles & other.roles)
    return roles and (one.purposes is None or other.purposes is None or bool(one.purposes & other.purposes))


def _covers(wide: Grant, narrow: Grant) -> bool:
    if not narrow.interactions <= wide.interactions or (wide.related and wide.related != narrow.related):
        return False
    open_types = {s.type for s in wide.selectors if not s.items}
    exact = set(wide.selectors)
    return all(s in exact or s.type in open_types or "*" in open_types for s in narrow.selectors)
