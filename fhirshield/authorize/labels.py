"""How sensitive a resource is: the labels that are stored with it, made no less by what its codes say, and by what it names.

Stored labels are never loosened. What leaves carries what its own codes and source say (HL7 DS4P); what it has from where it
leads to is not said with it, since that would tell of what may be hidden.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from fhirshield.fhir.glance import Code, Glance, Page, codes_of
from fhirshield.fhir.reference import literal
from fhirshield.fhir.subjects import people_of
from fhirshield.fhir.v3 import ACT_CODE, CONFIDENTIALITY, NOTICES, RANKS, is_sensitivity, rank
from fhirshield.model import Facts, Labels
from fhirshield.policy.sensitivity import Sensitivity

_RESTRICTED = RANKS.index("R")
MINOR = "ADOL"
"""The ActCode of what is sensitive about adolescents."""
NO_REDISCLOSURE = (ACT_CODE, "NORDSCLCD")
"""The refrain policy: no redisclosure without the patient's directive."""


def labels_of(
    resource: Any, seen: Glance, sensitivity: Sensitivity | None, facts: Facts, bases: tuple[str, ...], today: dt.date
) -> Labels | None:  # fmt: skip
    """The labels of a resource; None where what they rest on was not gathered."""
    stored = seen.security
    kinds, ranks = set(_kinds(stored)), _ranks(stored)
    if sensitivity is None:
        return Labels(max(ranks, default=None), frozenset(kinds), stored, whole=False)
    kinds |= sensitivity.kinds_of(seen.codings)
    if (
        sensitivity.minors is not None
        and kinds & sensitivity.minors[1]
        and _is_of_minor(resource, sensitivity, facts, bases, today)
    ):
        kinds.add(MINOR)
    own = set(kinds)
    own_ranks = [*ranks, *(sensitivity.rank_of(kind) for kind in own)]
    for text in sensitivity.inherited(resource):
        named = literal(text, bases)
        source = facts.glances.get(named) if named is not None else None
        if source is None:
            return None
        kinds |= sensitivity.kinds_of(source.codings) | _kinds(source.security)
        ranks += _ranks(source.security)
    ranks += [sensitivity.rank_of(kind) for kind in kinds]
    references = _named(seen, bases) if sensitivity.sources else frozenset()
    laws = [(ACT_CODE, source.label) for source in sensitivity.sources if source.made(resource, references)]
    laws += [one for one in sorted(stored) if one[0] == ACT_CODE and one[1] in NOTICES and one not in laws]
    said = _said(own, max(own_ranks, default=None), laws, stored)
    return Labels(max(ranks, default=sensitivity.least), frozenset(kinds), stored, whole=True, own=said)


def unlabelled(resource: Any, sensitivity: Sensitivity | None, page: Page | None = None) -> Labels | None:
    """The labels of what, at the first glance, has none and leads to nothing; None for what needs a closer look.

    ``page`` is what it came on, where that is at hand: mostly one look at all of it is enough.
    """
    if sensitivity is None or sensitivity.sources or resource["resourceType"] in sensitivity.inherit:
        return None
    if page is not None and not page.needs_a_look(resource, sensitivity.telling):
        return sensitivity.nothing
    codes = codes_of(resource)
    return None if codes is None or sensitivity.telling(codes) else sensitivity.nothing


def _kinds(security: frozenset[Code]) -> set[str]:
    """Sensitivities; what names no system may be one."""
    return {kind for system, code in security if system in {ACT_CODE, ""} and is_sensitivity(kind := _plain(code))}


def _plain(code: str) -> str:
    code = code.strip()
    return code if code in NOTICES or is_sensitivity(code) else code.upper()


def _ranks(security: frozenset[Code]) -> list[int]:
    return [one for system, code in security if system in {CONFIDENTIALITY, ""} and (one := rank(_plain(code))) is not None]


def _named(seen: Glance, bases: tuple[str, ...]) -> frozenset[str]:
    """The references of a resource, as they stand and by type and id."""
    return seen.references | {str(one) for text in seen.references if (one := literal(text, bases)) is not None}


def _said(kinds: set[str], highest: int | None, laws: list[Code], stored: frozenset[Code]) -> tuple[Code, ...]:
    """The labels to add; one confidentiality, and no second one beside a stored one that is as high."""
    found: list[Code] = [(ACT_CODE, kind) for kind in sorted(kinds)] + laws
    if highest is not None and highest > max(_ranks(stored), default=-1):
        found.append((CONFIDENTIALITY, RANKS[highest]))
    if laws or kinds or (highest is not None and highest >= _RESTRICTED):
        found.append(NO_REDISCLOSURE)
    return tuple(one for one in found if one not in stored or one[1] in NOTICES)


def _is_of_minor(resource: Any, sensitivity: Sensitivity, facts: Facts, bases: tuple[str, ...], today: dt.date) -> bool:
    """Whether a resource may be about somebody younger than so many years."""
    assert sensitivity.minors is not None
    patients = people_of(resource, bases, facts.subjects.get)
    born = [facts.births.get(patient) for patient in patients or ()]
    return not born or any(one is None or _age(one, today) < sensitivity.minors[0] for one in born)


def _age(born: dt.date, today: dt.date) -> int:
    return today.year - born.year - ((today.month, today.day) < (born.month, born.day))
