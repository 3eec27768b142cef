"""May this be seen? One resource in, one Verdict out. Deny beats permit; what cannot be known denies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fhirshield.authorize.circumstances import OPEN, Circumstances, Ruling
from fhirshield.authorize.standing import RuleRow, ScopeRow, Standing, TypeStanding
from fhirshield.fhir.glance import Page
from fhirshield.fhir.reference import Literal, literal
from fhirshield.fhir.subjects import is_about_nobody, patients_of
from fhirshield.model import Judge, Reason, Verdict

_UNKNOWN_TYPE = Verdict(False, Reason.UNKNOWN_TYPE)
_LOOSE_BINARY = Verdict(False, Reason.NO_RULE)
"""A Binary of which it is not known what it belongs to."""
_UNKNOWN_MODIFIER = Verdict(False, Reason.UNKNOWN_MODIFIER)


def judge_for(
    standing: Standing, patient: str, modifier_extensions: frozenset[str], rule_letter: str, circumstances: Circumstances
) -> Judge:
    """The judge of one caller. ``rule_letter`` is what rules call the interaction: ``r``, ``v`` or ``s``."""
    guarded = standing.applied.guarded
    bases = standing.bases
    also = rule_letter in "vh"  # what was is shown to nobody who may not see what is

    def judge(resource: Any, letter: str, careful: bool, page: Page | None = None) -> Verdict:
        name = resource.get("resourceType") if type(resource) is dict else None
        found = standing.of(name) if type(name) is str else None
        if found is None:
            return _UNKNOWN_TYPE
        if careful and unknown_modifier(resource, modifier_extensions):
            return _UNKNOWN_MODIFIER
        if found.withheld_by:
            return Verdict(False, Reason.DENIED_BY_RULE, found.withheld_by)
        if name == "Binary" and letter not in {"b", "c"} and not standing.naming.all_open:
            return _LOOSE_BINARY
        verb = "r" if letter == "i" else rule_letter
        for row in found.denies:
            if denies(row, rule_letter, resource) or (also and denies(row, "r", resource)) or denies(row, verb, resource):
                return Verdict(False, Reason.DENIED_BY_RULE, row.rule.id)
        if letter == "c":
            said = circumstances.judged(resource, "c") if guarded else OPEN
            return (
                Verdict(False, *said.refused) if said.refused else Verdict(True, Reason.PERMITTED, "", bound(found, resource, said))
            )
        beside = letter == "b" or (letter == "i" and stands_beside(resource, found, patient, bases))
        came, letter = letter, "r" if letter in {"b", "i"} else letter
        if not any(scope_grants(row, letter, resource, found, patient, bases, beside=beside) for row in found.scopes):
            outside = any(letter in row.letters and row.limited for row in found.scopes)
            return Verdict(False, Reason.OUTSIDE_PATIENT if outside else Reason.NO_SCOPE)
        for row in found.allows:
            if allows(row, verb, resource) or (beside and allows_beside(row, verb, resource)):
                said = circumstances.judged(resource, came, page) if guarded else OPEN
                if said.refused is not None:
                    return Verdict(False, *said.refused)
                return Verdict(True, Reason.PERMITTED, row.rule.id, bound(found, resource, said), said.labels)
        return Verdict(False, Reason.NO_RULE)

    return judge


def denies(row: RuleRow, letter: str, resource: Any) -> bool:
    """Whether a deny of this interaction holds; unknown holds."""
    return letter in row.letters and (row.judge is None or row.judge(resource) is not False)


def allows(row: RuleRow, letter: str, resource: Any) -> bool:
    """Whether an allow certainly holds."""
    return letter in row.letters and (row.judge is None or row.judge(resource) is True)


def allows_beside(row: RuleRow, letter: str, resource: Any) -> bool:
    """Whether an allow that is limited to a relationship holds for what is about nobody, beside what refers to it."""
    if not row.related or letter not in row.letters or not is_about_nobody(resource["resourceType"]):
        return False
    return row.criteria is None or row.criteria(resource) is True


def scope_grants(
    row: ScopeRow, letter: str, resource: Any, found: TypeStanding, patient: str, bases: tuple[str, ...], *, beside: bool = False
) -> bool:
    """Whether a scope grants the letter, its criteria certainly hold, and the resource is in the patient's set."""
    if letter not in row.letters or (row.judge is not None and row.judge(resource) is not True):
        return False
    return not row.limited or beside or in_patients_set(resource, found, patient, bases)


def stands_beside(resource: Any, found: TypeStanding, patient: str, bases: tuple[str, ...]) -> bool:
    """Whether a resource without a patient may be shown beside what refers to it.

    A Device not where it is another's; Provenance by its targets, which whoever shows it looks at; else what is about nobody.
    """
    if found.type not in {"Device", "Provenance"}:
        return is_about_nobody(found.type)
    owner = resource.get("patient") if found.type == "Device" else None
    named = literal(owner.get("reference"), bases) if isinstance(owner, dict) else None
    return owner is None or named == Literal("Patient", patient)


def in_patients_set(resource: Any, found: TypeStanding, patient: str, bases: tuple[str, ...]) -> bool:
    """Whether a resource is about the patient in context and nobody else, or is of a type opened by name."""
    return found.open_to_all or patients_of(resource, bases) == frozenset((patient,))


def bound(found: TypeStanding, resource: Any, said: Ruling) -> int:
    """The obligations that are not certainly idle here, as bits: by their criteria, and by what Consents say of elements."""
    bits = found.always
    for bit, judge in found.obligations:
        if judge(resource) is not False:
            bits |= bit
    for bit, names in found.consented if said.elements is not None else ():
        if names.isdisjoint(said.elements or ()):
            bits &= ~bit
    return bits


def unknown_modifier(node: Any, known: frozenset[str]) -> bool:
    """Whether a modifier extension that the rules do not list stands anywhere in the resource."""
    urls = (extension.get("url") if type(extension) is dict else None for extension in _modifier_extensions(node))
    return any(type(url) is not str or url not in known for url in urls)


def _modifier_extensions(node: Any) -> Iterator[Any]:
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if type(current) is dict:
            found = current.get("modifierExtension")
            if found is not None:
                yield from found if type(found) is list else [found]
            waiting.extend(v for v in current.values() if type(v) is dict or type(v) is list)
        elif type(current) is list:
            waiting.extend(v for v in current if type(v) is dict or type(v) is list)
