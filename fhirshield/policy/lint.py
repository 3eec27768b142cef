"""Advice on Consents: what is contradictory, dead, unsupported or expired in them. Nothing here changes a decision."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fhirshield.errors import printable
from fhirshield.fhir.consent import Code, Consent, Provision, Unsupported, parse
from fhirshield.fhir.v3 import ACT_CODE, CONFIDENTIALITY, is_sensitivity, rank
from fhirshield.policy.consent import ConsentPolicy, plain


@dataclass(frozen=True, slots=True)
class Finding:
    """``kind`` is one of ``unsupported expired inactive contradictory dead``."""

    kind: str
    consent: str
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.consent}: {self.path}: {self.kind}: {self.message}"


def lint(resource: Any, policy: ConsentPolicy, now: dt.datetime, bases: tuple[str, ...] = ()) -> list[Finding]:
    """All findings on one Consent, valid or not."""
    name = f"Consent/{printable(resource.get('id', ''))}" if isinstance(resource, dict) else "?"
    if not isinstance(resource, dict) or resource.get("resourceType") != "Consent":
        return [Finding("unsupported", name, "Consent", "is no Consent")]
    try:
        consent = parse(resource, bases)
    except Unsupported as error:
        return [Finding("unsupported", name, "Consent", printable(error))]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return [Finding("unsupported", name, "Consent", "has another shape, or is nested too deeply")]
    return [Finding(kind, name, path, printable(text)) for kind, path, text in _findings(consent, policy, now)]


def _findings(consent: Consent, policy: ConsentPolicy, now: dt.datetime) -> Iterator[tuple[str, str, str]]:
    unmapped = [named for named in consent.policies if policy.meaning(named) is None]
    for named in unmapped:
        yield "unsupported", "Consent.policy", f"`{named}` stands nowhere in `consent.policies`: the patient's data is denied"
    if not consent.patient:
        yield "unsupported", "Consent.patient", "names no patient here"
    if not consent.active:
        yield "inactive", "Consent.status", "decides nothing while it is not `active`"
    if not consent.private:
        yield "dead", "Consent.scope", "is about care, not about who may see what"
    if consent.period is not None and consent.period.holds(now) is False:
        yield "expired", "Consent.period", "is not in force now"
    decides = consent.root is not None or any(policy.meaning(named) not in {None, "ignore"} for named in consent.policies)
    if not decides:
        yield "unsupported", "Consent", "has neither a provision nor a policy that decides"
    if consent.root is not None:
        yield from _within(consent.root, now, policy.elements)


def _within(provision: Provision, now: dt.datetime, elements: frozenset[Code | str]) -> Iterator[tuple[str, str, str]]:
    named = {plain(one[1]) for one in elements if type(one) is tuple}
    for system, code in provision.codes if not provision.permits else ():
        if (system, code) not in elements and plain(code) in named:
            text = f"`{printable(code)}` is nearly a name of elements: these are hidden, and all that has such a code"
            yield "contradictory", provision.path, text
    if provision.permits and any(one in elements for one in provision.codes):
        yield "dead", provision.path, "permits elements, which only a deny may name: permit all, and deny the others"
    if provision.beyond and (provision.permits or provision.expression not in elements):
        yield "dead" if provision.permits else "unsupported", provision.path, "asks for what cannot be known here"
    if provision.period is not None and provision.period.holds(now) is False:
        yield "expired", provision.path, "its period is over, or to come"
    yield from _labels(provision)
    inner = provision.inner
    for place, one in enumerate(inner):
        if one.permits is not None and one.permits is provision.permits and not _says(one):
            yield "dead", one.path, "says what the provision around it says already"
        for other in inner[:place]:
            if _same(one, other):
                if one.permits is other.permits:
                    yield "dead", one.path, f"is said at `{other.path}` already"
                else:
                    yield "contradictory", one.path, f"`{other.path}` says the opposite of the same: the deny goes before"
        yield from _within(one, now, elements)


def _labels(provision: Provision) -> Iterator[tuple[str, str, str]]:
    ranks = [one for system, code in provision.labels if system == CONFIDENTIALITY and (one := rank(code)) is not None]
    kinds = [code for system, code in provision.labels if system == ACT_CODE and is_sensitivity(code)]
    if provision.permits and kinds and ranks and max(ranks) < 4:  # below R, which kinds of sensitivity commonly are
        text = f"permits {', '.join(kinds)}, and nothing so confidential: what carries such a label is commonly R"
        yield "contradictory", provision.path, text


_ASKED = ("period", "actors", "actions", "labels", "purposes", "classes", "codes", "data_period", "data")


def _says(provision: Provision) -> bool:
    return any(getattr(provision, name) for name in _ASKED) or provision.beyond


def _same(one: Provision, other: Provision) -> bool:
    return not one.beyond and not other.beyond and all(getattr(one, name) == getattr(other, name) for name in _ASKED)
