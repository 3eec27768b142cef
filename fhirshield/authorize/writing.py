"""May this be written? The stored version, the new image, what decisions read of it, and what it names.

Hidden equals absent here too: what the caller may not see answers like what is not there, before anything else is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from fhirshield.authorize.caller import standing_of
from fhirshield.authorize.circumstances import Circumstances
from fhirshield.authorize.operation import may_invoke_on
from fhirshield.authorize.resource import allows, denies, scope_grants, stands_beside, unknown_modifier
from fhirshield.authorize.standing import RULE_LETTERS, RuleRow, Standing, TypeStanding
from fhirshield.fhir.content import Misfit, named
from fhirshield.fhir.definitions import resource_types
from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.fhir.json import same
from fhirshield.fhir.reference import Literal, literal
from fhirshield.fhir.subjects import has_subject, patients_of
from fhirshield.model import Denial, Draft, Permit, Reason, Stored, Verdict, Writing, misfit
from fhirshield.policy.compile import RuleSet
from fhirshield.policy.rule import LINK, PART, SECURITY

_READING = "rs"
_HOLDING = frozenset({"contained", "resource", "outcome"})
"""The elements of R4 that are of type Resource."""


class _Writer:
    """One write's standing."""

    def __init__(self, permit: Permit, rules: RuleSet) -> None:
        self.permit = permit
        self.interaction: Interaction = permit.interaction
        self.stand: Standing = standing_of(permit.principal, permit.situation, rules)
        found = self.stand.of(self.interaction.type)
        assert found is not None
        self.found: TypeStanding = found
        self.verb = RULE_LETTERS[self.interaction.rule_name]
        self.patient = permit.principal.patient
        self.extensions = rules.modifier_extensions
        self.read_types = rules.read_types
        self.read_elements = rules.read_elements
        self.asks_consents = rules.consent is not None
        action = "create" if self.interaction.kind is Kind.CREATE else "change"
        self.written, self.seen = (
            Circumstances(rules, self.stand.applied, permit.principal, permit.situation, how) for how in (action, "read")
        )

    def judge(self, resource: Any, letter: str, verb: str) -> Verdict:
        """Whether this caller may write a resource like this one: by scope ``letter``, by rule ``verb``."""
        if unknown_modifier(resource, self.extensions):
            return Verdict(False, Reason.UNKNOWN_MODIFIER)
        for row in self.found.denies:
            if denies(row, verb, resource):
                return Verdict(False, Reason.DENIED_BY_RULE, row.rule.id)
        strict = replace(self.found, open_to_all=False)
        if not any(scope_grants(row, letter, resource, strict, self.patient, self.stand.bases) for row in self.found.scopes):
            outside = any(letter in row.letters and row.limited for row in self.found.scopes)
            return Verdict(False, Reason.OUTSIDE_PATIENT if outside else Reason.NO_SCOPE)
        for row in self.found.allows:
            if allows(row, verb, resource):
                return Verdict(True, Reason.PERMITTED, row.rule.id)
        return Verdict(False, Reason.NO_RULE)

    def rows(self, images: list[Any]) -> Iterator[RuleRow]:
        """The allow rows that grant this write on every one of these."""
        for row in self.found.allows:
            if all(allows(row, self.verb, image) for image in images):
                yield row

    def is_named(self, stored: Any) -> bool:
        """Whether its patients' Consents speak of whatever a stored resource refers to (``related``)."""
        name = Literal(stored["resourceType"], stored["id"]) if type(stored.get("id")) is str else None
        known = (consent for of in self.permit.situation.facts.consents.values() for consent in (*of.consents, *of.linked))
        data = (one for consent in known for provision in consent.provisions() for one in provision.data)
        return name is not None and any(one.meaning == "related" and one.reference == name for one in data)

    def may_create_by_update(self) -> bool:
        """Whether nothing of this type may be withheld from this caller, by reading or writing, so that no id can be hidden."""
        found = self.found
        if not found.whole or found.denies:
            return False
        scopes = [row for row in found.scopes if row.judge is None and not row.limited]
        letters = {letter for row in scopes for letter in row.letters}
        verbs = {letter for row in found.allows if row.judge is None for letter in row.letters}
        return {"c", "u"} <= letters and {"c", "u"} <= verbs


# --- the stored version -------------------------------------------------------------------------------------------------


def may_change(permit: Permit, stored: Stored, rules: RuleSet) -> Denial | None:
    """Why this caller may not change what is stored, if so: one answer for absent, deleted and hidden."""
    writer = _Writer(permit, rules)
    kind = permit.interaction.kind
    if stored.resource is None:
        if kind is Kind.UPDATE and writer.may_create_by_update():
            return None
        return _not_found(Reason.NOT_FOUND)
    verdict = writer.judge(stored.resource, permit.interaction.letter, writer.verb)
    if verdict.shown and (kind is Kind.PATCH or (kind is Kind.UPDATE and not permit.overwrites)):
        verdict = permit.judge(stored.resource, "r", stored.careful)
    if not verdict.shown:
        return _not_found(verdict.reason, verdict.rule)
    refused = writer.written.refuse(stored.resource) if writer.found.guarded and kind is not Kind.PATCH else None
    if refused is not None and not permit.judge(stored.resource, "r", stored.careful).shown:
        return _not_found(*refused)  # who may not see it is answered as if it were not there
    return None


def _not_found(reason: Reason, rule: str = "") -> Denial:
    return Denial(404, reason, "not-found", "no such resource for this caller", rule=rule)


# --- the new image ------------------------------------------------------------------------------------------------------


def draft(permit: Permit, stored: Stored, image: Any, rules: RuleSet) -> Draft | Denial:
    """The write as it would go upstream, judged but for what it refers to. ``image`` is None for a delete."""
    writer = _Writer(permit, rules)
    before = stored.resource
    creates = before is None
    try:
        refers = _added(image, before, writer.stand.bases, exactly=creates or permit.overwrites) if image is not None else {}
    except Misfit as error:
        return misfit(str(error.args[0]))
    except _Odd as error:
        return _not_visible(str(error.args[0]))
    images = [one for one in (before, image) if one is not None]
    denial = _outside(writer, image, creates=creates) if image is not None else None
    denial = denial or _inputs(writer, before, image, images) or _seen_whole(writer, images) or _whose(writer, image)
    if denial is not None:
        return denial
    patients: set[str] = set()
    for one in images:
        if has_subject(one["resourceType"]):
            patients.update(patients_of(one, writer.stand.bases) or ())
    guarded = permit.interaction.kind is not Kind.DELETE or permit.situation.habits.delete_if_match
    return Draft(Writing(image, stored.version, guarded and stored.version != "", creates, frozenset(patients), before), refers)


def _outside(writer: _Writer, image: Any, *, creates: bool) -> Denial | None:
    """The image itself must be one that this caller may write; what stands within it must not be denied."""
    asked = [(writer.interaction.letter, writer.verb)]
    if creates and writer.interaction.kind is Kind.UPDATE:
        asked.append(("c", "c"))
    for letter, verb in asked:
        verdict = writer.judge(image, letter, verb)
        if not verdict.shown:
            return _forbidden(writer, verdict)
    for inner in _within(image):
        found = writer.stand.of(inner["resourceType"])
        assert found is not None
        denied = next((row for row in found.denies if denies(row, writer.verb, inner)), None)
        if found.withheld_by or denied is not None:
            rule = found.withheld_by or (denied.rule.id if denied else "")
            return _forbidden(writer, Verdict(False, Reason.DENIED_BY_RULE, rule))
    return None


def _whose(writer: _Writer, image: Any) -> Denial | None:
    """A Consent that is to be enforced names its patient by a reference that is known here: else it would bind nobody."""
    if image is None or image["resourceType"] != "Consent" or not writer.asks_consents:
        return None
    patient = image.get("patient")
    reference = patient.get("reference") if type(patient) is dict else None
    named = literal(reference, writer.stand.bases)
    known = named is not None and named.type == "Patient" and "/_history/" not in str(reference)
    if image.get("status") != "active" or known:
        return None
    text = "an active Consent names its patient by a reference without a version: `Patient/id`"
    return Denial(422, Reason.MALFORMED_REQUEST, "business-rule", text, expression=("Consent.patient",))


def _forbidden(writer: _Writer, verdict: Verdict) -> Denial:
    text = f"what would be stored is not {writer.interaction.type} that this caller may {writer.interaction.rule_name}"
    return Denial(403, verdict.reason, "forbidden", text, rule=verdict.rule)


def _within(node: Any) -> Iterator[dict[str, Any]]:
    """The resources that stand within a resource, at any depth."""
    for name, value in node.items():
        for one in value if type(value) is list else [value]:
            if type(one) is dict:
                if name in _HOLDING and one.get("resourceType") in resource_types():
                    yield one
                yield from _within(one)


# --- what decisions read ------------------------------------------------------------------------------------------------


def _inputs(writer: _Writer, before: Any, image: Any, images: list[Any]) -> Denial | None:
    """Elements that decisions read are written only under a rule that names them; what stays as stored is not written."""
    for name in sorted(_touched(writer, before, image)):
        if not any(row.rule.allow and name in row.rule.allow.policy_inputs for row in writer.rows(images)):
            text = f"decisions read `{name}`: it is written only under a rule that names it"
            return Denial(403, Reason.POLICY_INPUT, "forbidden", text)
    return None


def _touched(writer: _Writer, before: Any, image: Any) -> set[str]:
    name = writer.found.type
    if name in writer.read_types:
        return {name}
    old: Any = before if before is not None else {}
    new: Any = image if image is not None else {}
    own = [(whole, whole.removeprefix(f"{name}.")) for whole in writer.read_elements if whole.startswith(f"{name}.")]
    touched = {whole for whole, element in own if not all(same(old.get(key), new.get(key)) for key in (element, f"_{element}"))}
    if before is None:  # nobody rests on what is not there yet
        touched.clear()
    if before is not None and writer.is_named(before):
        touched.add("Consent")
    if image is None:
        return (touched & {PART, "Consent"}) | ({LINK} if _links(old) else set())
    if not same(_links(old), _links(image)):
        touched.add(LINK)
    if not same(_labels(old), _labels(image)):
        touched.add(SECURITY)
    return touched


def _links(resource: Any) -> list[Any]:
    """The links of a Patient, and of each Patient within a resource."""
    patients = [one for one in (resource, *_within(resource)) if one.get("resourceType") == "Patient"]
    return [one["link"] for one in patients if "link" in one]


def _labels(node: Any) -> list[Any]:
    """The labels of a resource, and of each resource within it by its place and type."""
    own = node.get("meta") if type(node) is dict else None
    found = [own.get("security") if type(own) is dict else None]
    for inner in _within(node):
        meta = inner.get("meta")
        if type(meta) is dict and "security" in meta:
            found.append([inner["resourceType"], inner.get("id"), meta["security"]])
    return found


def _seen_whole(writer: _Writer, images: list[Any]) -> Denial | None:
    """The rule that grants a delete must be one that grants it unseen, where it may hit more than was seen."""
    if writer.interaction.kind is not Kind.DELETE:
        return None
    if writer.permit.situation.habits.delete_if_match and not writer.found.view.marked:
        return None
    if any(row.rule.allow and row.rule.allow.delete_unseen for row in writer.rows(images)):
        return None
    text = f"no rule allows this caller to delete this {writer.found.type} without having seen all of it"
    return Denial(403, Reason.HIDDEN_PART, "forbidden", text)


# --- what it refers to --------------------------------------------------------------------------------------------------


class _Odd(Exception):
    """A reference that cannot be read one way; carries its place."""


def _added(image: Any, before: Any, bases: tuple[str, ...], *, exactly: bool) -> Mapping[Literal, str]:
    """What a write adds or changes references to, with the first place of each. Raises Misfit, _Odd.

    Places are told by index only where the image is the caller's own body: elsewhere indices would count what is hidden.
    """
    known = set()
    if before is not None:
        try:
            known = {(plain, found) for plain, _, found in named(before, bases)}
        except Misfit:
            known = set()
    added: dict[Literal, str] = {}
    for plain, full, found in named(image, bases):
        if (plain, found) in known:
            continue
        place = full if exactly else plain
        if isinstance(found, str):
            raise _Odd(place)
        added.setdefault(found, place)
    if before is not None:
        added.pop(Literal(image["resourceType"], image.get("id", "")), None)
    return added


def endorse(permit: Permit, drafted: Draft, seen: Mapping[Literal, Any], rules: RuleSet) -> Permit | Denial:
    """Leave to send a draft, once everything that it adds a reference to was found to be visible to this caller."""
    writer = _Writer(permit, rules)
    for name, place in drafted.refers.items():
        resource = seen.get(name)
        if resource is None or not _may_refer(writer, resource):
            return _not_visible(place)
    images = [one for one in (drafted.writing.stored, drafted.writing.image) if one is not None]
    refused = next((no for one in images if (no := writer.written.refuse(one))), None) if writer.found.guarded else None
    if refused is not None:  # last: what is named and hidden answers like what is absent
        return _forbidden(writer, Verdict(False, *refused))
    return replace(permit, writing=drafted.writing)


def invoked(permit: Permit, refers: Mapping[Literal, str], seen: Mapping[Literal, Any], rules: RuleSet) -> Permit | Denial:
    """Leave to invoke an operation, once everything that its body refers to was found to be visible to this caller."""
    asked = permit.interaction
    kind = asked.type or "Parameters"
    writer = _Writer(replace(permit, interaction=replace(asked, kind=Kind.UPDATE, type=kind)), rules)
    for name, place in refers.items():
        resource = seen.get(name)
        if resource is None or not _may_refer(writer, resource):
            return _not_visible(place)
    if not permit.affects:
        return permit
    return replace(permit, writing=Writing(asked.content, "", guarded=False, creates=False, patients=frozenset()))


def on_this(permit: Permit, resource: Any, rules: RuleSet) -> bool:
    """Whether a rule opens an operation on this very resource."""
    return may_invoke_on(standing_of(permit.principal, permit.situation, rules), permit.interaction, resource)


def _not_visible(place: str) -> Denial:
    """One refusal for what is absent and what is hidden."""
    text = f"`{place}` refers to nothing that this caller can see"
    return Denial(422, Reason.REFERENCE_NOT_VISIBLE, "not-found", text, expression=(place,))


def _may_refer(writer: _Writer, resource: Any) -> bool:
    """Whether set, criteria and denies let the caller see a resource; scope ``r`` and a read grant aside."""
    found = writer.stand.of(resource["resourceType"])
    if found is None or found.withheld_by or unknown_modifier(resource, writer.extensions):
        return False
    if any(denies(row, letter, resource) for row in found.denies for letter in "rvsh"):
        return False
    if found.guarded and found.type != "Binary" and writer.seen.refuse(resource) is not None:
        return False
    reading = [row for row in found.scopes if set(row.letters) & set(_READING)]
    scopes = reading or list(found.scopes) or [row for row in writer.found.scopes if writer.interaction.letter in row.letters]
    in_set = patients_of(resource, writer.stand.bases) == frozenset((writer.patient,))
    if not has_subject(found.type):  # it stands beside what refers to it, where a rule speaks of it
        beside = found.type != "Provenance" and stands_beside(resource, found, writer.patient, writer.stand.bases)
        belongs = found.type == "Binary"  # one that belongs to nothing that this caller sees was not found
        in_set = bool(found.allows) and (found.open_to_all or beside or belongs)
    own = bool(found.scopes)
    if not any((not row.limited or in_set) and (not own or row.judge is None or row.judge(resource) is True) for row in scopes):
        return False
    rows = [row for row in found.allows if set(row.letters) & set(_READING)] or list(found.allows)
    return not rows or any(row.judge is None or row.judge(resource) is True for row in rows)
