"""Whether a provision's attributes hold: narrowly for a permit, widely for a deny; None where it cannot be known."""

from __future__ import annotations

from fhirshield.authorize.about import About
from fhirshield.authorize.asking import Answer, all_of, any_of
from fhirshield.fhir.consent import Data, Provision
from fhirshield.fhir.definitions import resource_types
from fhirshield.fhir.ordered import LATEST
from fhirshield.fhir.reference import Literal, literal
from fhirshield.fhir.v3 import ACT_CODE, CONFIDENTIALITY, is_a, is_sensitivity, rank

_TYPES = "http://hl7.org/fhir/fhir-types"
_BARE = frozenset({"Bundle", "Binary", "Parameters"})
"""Types that are no DomainResource."""
_GOING_ON = frozenset(
    ("AllergyIntolerance", "CarePlan", "CareTeam", "Condition", "Coverage", "EpisodeOfCare", "FamilyMemberHistory", "Flag", "Goal")
)
"""Types that tell of what may go on after the time that they name."""


def matches_resource(provision: Provision, permits: bool, about: About) -> Answer:
    """What it asks of the resource."""
    answers: list[Answer] = []
    vague = provision.vague
    if provision.classes or "classes" in vague:
        answers.append(_is_of_class(provision, about))
    if provision.labels or "labels" in vague:
        answers.append(_permitted_labels(provision, about) if permits else _denied_labels(provision, about))
    if provision.codes or "codes" in vague:
        answers.append(_permitted_codes(provision, about) if permits else _denied_codes(provision, about))
    if provision.data_period is not None:
        answers.append(_in_period(provision, permits, about))
    if provision.data:
        answers.append(any_of(_is_data(one, permits, about) for one in provision.data))
    return all_of(*answers)


def _is_of_class(provision: Provision, about: About) -> Answer:
    """By resource type; by the type of a document where a code of one is named; other classes of content are not known here."""
    found: Answer = None if "classes" in provision.vague else False
    for system, code in provision.classes:
        if system == _TYPES or (not system and code[:1].isupper()):
            if code in {about.type, "Resource"} or (code == "DomainResource" and about.type not in _BARE):
                return True
            found = found if code in resource_types() else None
        elif about.type in {"DocumentReference", "Composition", "DocumentManifest"} and about.codes is not None:
            if (system, code) in about.codes:
                return True
            found = found if system == "http://loinc.org" else None
        else:
            found = None
    return found


# --- labels ---------------------------------------------------------------------------------------------------------------


def _ranks(provision: Provision) -> list[int]:
    found = (rank(code) for system, code in provision.labels if system in {CONFIDENTIALITY, ""})
    return [one for one in found if one is not None]


def _kinds(provision: Provision) -> set[str]:
    return {code for system, code in provision.labels if system in {ACT_CODE, ""} and is_sensitivity(code)}


def _others(provision: Provision) -> set[tuple[str, str]]:
    known = {(system, code) for system in (CONFIDENTIALITY, "") for code in "ULMNRV"}
    known |= {(system, code) for system in (ACT_CODE, "") for code in _kinds(provision)}
    return set(provision.labels) - known


def _permitted_labels(provision: Provision, about: About) -> Answer:
    """A permit covers no more than the highest rank that it names, and must name every kind of sensitivity."""
    labels, ranks, kinds = about.labels, _ranks(provision), _kinds(provision)
    if labels is None:
        return None
    answers: list[Answer] = []
    if ranks:
        answers.append(labels.rank <= max(ranks) if labels.rank is not None else None)
    if kinds:
        answers.append(labels.kinds <= kinds)
    if not labels.whole and kinds:
        answers.append(None)
    named = bool(ranks) or bool(labels.kinds & kinds) or bool(_others(provision) & labels.stored)
    return all_of(named, *answers)


def _denied_labels(provision: Provision, about: About) -> Answer:
    """A deny covers what is at least as confidential as it names, and every kind of what it names."""
    labels, ranks = about.labels, _ranks(provision)
    if labels is None:
        return None
    answers: list[Answer] = [any(is_a(ACT_CODE, kind, one) for kind in labels.kinds for one in _kinds(provision))]
    if ranks:
        answers.append(labels.rank >= min(ranks) if labels.rank is not None else None)
    if not labels.whole and _kinds(provision):
        answers.append(None)
    answers.append(_is_labelled(_others(provision), labels.stored))
    answers.append(None if "labels" in provision.vague else False)
    return any_of(answers)


def _is_labelled(wanted: set[tuple[str, str]], stored: frozenset[tuple[str, str]]) -> Answer:
    """Whether a resource carries one of these labels; one that stands without a system on either side may be it."""
    if wanted & stored:
        return True
    if any(system in {CONFIDENTIALITY, ACT_CODE} and not (is_sensitivity(code) or rank(code)) for system, code in wanted):
        return None  # a code of these systems that is not known here
    same = {(a, b) for a, one in wanted for b, other in stored if one.casefold() == other.casefold() and "" in {a, b}}
    return None if same else False


# --- codes, times, instances ----------------------------------------------------------------------------------------------


def _permitted_codes(provision: Provision, about: About) -> Answer:
    """What it is of must be named, system and all."""
    if about.codes is None:
        return None
    return bool(set(provision.codes) & about.codes)


def _denied_codes(provision: Provision, about: About) -> Answer:
    """A code that is named anywhere in it, whatever it says of the system; in words alone, who knows."""
    codes = {code.casefold() for _, code in provision.codes}
    if any(code.casefold() in codes for _, code in about.seen.codings):
        return True
    return None if about.seen.worded or about.is_uncoded or "codes" in provision.vague else False


def _in_period(provision: Provision, permits: bool, about: About) -> Answer:
    """A permit takes what happened wholly within; a deny what may have happened within at all."""
    span = provision.data_period
    if span is None or not span.known or not about.times or None in about.times:
        return None
    times = [time for time in about.times if time is not None]
    if about.type in _GOING_ON and not permits:
        times = [(low, LATEST) for low, _ in times]
    if permits:
        return all(span.low <= low and high <= span.high for low, high in times)
    return any(low <= span.high and span.low <= high for low, high in times)


def _is_data(data: Data, permits: bool, about: About) -> Answer:
    named = data.reference
    if named is None:
        return None
    if data.meaning == "authoredby":
        return _is_from(named, permits, about)
    if about.name == named:
        return True
    if data.meaning == "dependents":
        return named in about.names
    if data.meaning == "related":
        seen = about.facts.glances.get(named)
        if seen is None or about.name is None:
            return None
        return any(literal(text, about.bases) == about.name for text in seen.references)
    return False if about.name is not None else None


def _is_from(named: Literal, permits: bool, about: About) -> Answer:
    """Whether a resource comes from somebody: for a deny, anybody who may be the same counts."""
    if named in about.authors:
        return True
    if not permits and named in about.names:
        return True
    if not about.authors:
        return None if about.has_authors else False
    return any_of(None if one is None or _may_be(one.type, named.type) else False for one in about.authors)


def _may_be(one: str, other: str) -> bool:
    """Whether two names of different types may stand for one party."""
    if one == other:
        return False
    acting = {"Practitioner", "PractitionerRole", "Organization", "CareTeam", "Group"}
    return bool({one, other} & {"Organization", "CareTeam", "Group", "PractitionerRole"}) and {one, other} <= acting
