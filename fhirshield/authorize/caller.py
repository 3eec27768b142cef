"""May this be asked? Token scopes, allow and deny rules, search parameters: one conjunction, written here.

A request is permitted iff a scope grants the interaction, an allow rule grants it, no deny without criteria matches, and
every parameter may be asked. Each check can only take away.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from fhirshield.authorize import parameters as asked
from fhirshield.authorize.circumstances import Circumstances
from fhirshield.authorize.lifting import emergency_of, lifts, step_up
from fhirshield.authorize.operation import may_invoke, only
from fhirshield.authorize.resource import judge_for
from fhirshield.authorize.standing import ACTIVE_TYPES, RULE_LETTERS, Bound, Standing, TypeStanding, standing
from fhirshield.fhir import criteria as fhir_criteria
from fhirshield.fhir.criteria import PINNED, Criteria, Criterion
from fhirshield.fhir.definitions import resource_types
from fhirshield.fhir.glance import Page
from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.fhir.json import same
from fhirshield.fhir.operations import known
from fhirshield.fhir.search_parameters import search_parameter, subject_parameter
from fhirshield.fhir.subjects import has_subject
from fhirshield.model import Denial, Permit, Principal, Reason, Situation, Verdict
from fhirshield.policy.compile import Applied, RuleSet


def notes(rules: RuleSet, applied: Applied | None = None) -> tuple[str, ...]:
    """Conjuncts that are not asked, by configuration or of this caller; every record says so."""
    consent = "consent not configured" if rules.consent is None else "consent not asked"
    asked = rules.consent is not None and (applied is None or applied.consents)
    return tuple(note for note in ("" if asked else consent, "" if rules.sensitivity else "labels not configured") if note)


def authorize(principal: Principal, interaction: Interaction, situation: Situation, rules: RuleSet) -> Permit | Denial:
    """Leave to forward this interaction for this caller, or the reason why not; or what would open it to a stronger login."""
    decision = _authorize(principal, interaction, situation, rules)
    if isinstance(decision, Denial):
        weak = decision.reason in {Reason.NO_RULE, Reason.BREAK_GLASS}
        return (step_up(rules.applied(principal, situation), interaction, situation) if weak else None) or decision
    return decision


def _authorize(principal: Principal, interaction: Interaction, situation: Situation, rules: RuleSet) -> Permit | Denial:
    if not interaction.letter and interaction.kind is not Kind.OPERATION:
        return _not_served(interaction)
    stand = standing_of(principal, situation, rules)
    emergency = emergency_of(stand.applied, interaction, situation, principal)
    if isinstance(emergency, Denial):
        return emergency
    if interaction.kind is Kind.OPERATION:
        return _operation(stand, principal, interaction, situation, rules)
    if interaction.recalls:
        return _past(stand, principal, interaction, situation, rules)
    found = stand.of(interaction.type)
    if found is None:
        return Denial(404, Reason.UNKNOWN_TYPE, "not-supported", f"`{interaction.type}` is not a resource type of R4")
    denial = _of_type(found, interaction, situation)
    if denial:
        return denial
    if not interaction.searches:
        permit = _permit(stand, found, principal, interaction, situation, rules, "")
        if interaction.kind is Kind.VREAD:
            return replace(permit, thins=not _open(found, interaction))
        return _binary(stand, permit) if interaction.type == "Binary" and interaction.kind is Kind.READ else permit
    binding = _binding(principal, situation, rules)
    if denial := _others(interaction, binding):
        return denial
    whole = stand.naming.all_open and not stand.applied.hides and not stand.applied.deny and not stand.applied.guarded
    shaped = asked.check(
        interaction.parameters, found, stand.of, lenient=interaction.lenient,
        open_to=lambda name: whole and _all_found(_known(stand, name)),
    )  # fmt: skip
    if isinstance(shaped, Denial):
        return shaped
    if len(shaped.kept) < len(interaction.parameters):
        interaction = replace(interaction, parameters=tuple(shaped.kept))
    narrow, nothing = _narrow(found, interaction, principal)
    criteria = asked.rejudge(interaction.type, shaped.again)
    return replace(
        _permit(stand, found, principal, interaction, situation, rules, binding),
        narrow=narrow,
        nothing=nothing,
        rejudge=fhir_criteria.judge(criteria, situation.bases) if criteria else None,
        sent=tuple(shaped.sent),
        joins=tuple(shaped.joins) if interaction.page is None else (),
        shape=shaped.shape(counted=interaction.page is None),
        thins=criteria is not None or not _all_found(found) or _is_ours(interaction),
    )


def _operation(
    stand: Standing, principal: Principal, interaction: Interaction, situation: Situation, rules: RuleSet
) -> Permit | Denial:
    """Leave to invoke an operation, whose answer is judged resource by resource."""
    if interaction.type and stand.of(interaction.type) is None:
        return Denial(404, Reason.UNKNOWN_TYPE, "not-supported", f"`{interaction.type}` is not a resource type of R4")
    opened, denial = may_invoke(stand, interaction, lambda found, asked: _of_type(found, asked, situation))
    binding = _binding(principal, situation, rules)
    denial = denial or _others(interaction, binding)
    if denial:
        return denial
    found = _known(stand, interaction.type or "Parameters")
    permit = _permit(stand, found, principal, interaction, situation, rules, binding)
    named = known(interaction.operation, interaction.type, interaction.id) is not None
    judge = permit.judge if named else only(permit.judge, opened.output)
    job = interaction.asynchronous and not named and not opened.affects
    if interaction.page is not None and not named and not job:
        return _not_served(interaction)
    permit = replace(permit, judge=judge, thins=True, sent=interaction.parameters, asynchronous=job)
    return replace(permit, output=opened.output, affects=opened.affects)


def _past(stand: Standing, principal: Principal, interaction: Interaction, situation: Situation, rules: RuleSet) -> Permit | Denial:
    """Leave to ask for a history: of one type, or of all that this caller may ask."""
    types = [interaction.type] if interaction.type else sorted(resource_types())
    denials = [_of_type(_known(stand, name), replace(interaction, type=name), situation) for name in types]
    if all(denials):
        return denials[0] if interaction.type and denials[0] else _nowhere(interaction)
    binding = _binding(principal, situation, rules)
    denial = _others(interaction, binding) or asked.check_past(interaction, [_known(stand, name).view for name in types])
    if denial:
        return denial
    permit = _permit(stand, _known(stand, types[0]), principal, interaction, situation, rules, binding)
    thins = any(denials) or not all(_open(_known(stand, name), interaction) for name in types)
    return replace(permit, sent=interaction.parameters, thins=thins or _is_ours(interaction))


def _open(found: TypeStanding, interaction: Interaction) -> bool:
    """Whether every version of this type is shown to this caller as it is stored."""
    verb = RULE_LETTERS[interaction.rule_name]
    rows = [row for row in found.allows if row.judge is None and verb in row.letters]
    scopes = [row for row in found.scopes if row.judge is None and not row.limited and interaction.letter in row.letters]
    return found.whole and not found.view.marked and bool(rows and scopes)


def _binary(stand: Standing, permit: Permit) -> Permit | Denial:
    """A Binary is judged by what it belongs to, unless nothing is hidden from this caller; its own bytes need a rule."""
    opaque = stand.opaque("Binary")
    if permit.interaction.raw and opaque is None:
        text = "a Binary's own bytes are served only under a rule that allows opaque content"
        return Denial(403, Reason.HIDDEN_PART, "forbidden", text)
    return replace(permit, thins=not stand.naming.all_open, opaque=opaque)


def belonging(permit: Permit, context: object) -> Permit:
    """The permit for a Binary once what it belongs to was found to be visible: for the version that says so."""
    judge = permit.judge

    def judged(resource: Any, letter: str, careful: bool, page: Page | None = None) -> Verdict:
        if type(resource) is not dict or not same(resource.get("securityContext"), context):
            return Verdict(False, Reason.NOT_FOUND)
        return judge(resource, "b" if letter == "r" else letter, careful, page)

    return replace(permit, judge=judged)


def _others(interaction: Interaction, binding: str) -> Denial | None:
    """A page link that was given to somebody else."""
    if interaction.page is None or interaction.page.binding == binding:
        return None
    return Denial(404, Reason.BAD_PAGE, "not-found", "this page link is not, or no longer, valid for this caller")


def _nowhere(interaction: Interaction) -> Denial:
    text = f"no scope and rule allow {interaction.rule_name} of any type to this caller"
    return Denial(403, Reason.NO_RULE, "forbidden", text)


def _permit(
    stand: Standing, found: TypeStanding, principal: Principal, interaction: Interaction, situation: Situation, rules: RuleSet,
    binding: str,
) -> Permit:  # fmt: skip
    found_emergency = emergency_of(stand.applied, interaction, situation, principal)
    return Permit(
        principal=principal,
        interaction=interaction,
        situation=situation,
        judge=judge_for(
            stand,
            principal.patient,
            rules.modifier_extensions,
            _reading_letter(interaction),
            Circumstances(rules, stand.applied, principal, situation),
        ),
        view=lambda name: _known(stand, name).view,
        sees_everything=stand.naming.all_open and not stand.applied.hides and not stand.applied.guarded,
        narrow=(),
        nothing=False,
        rejudge=None,
        binding=binding,
        rules=rules.digest,
        notes=notes(rules, stand.applied),
        labelled=rules.sensitivity is not None,
        emergency=found_emergency if not isinstance(found_emergency, Denial) else None,
        lifts=lifts(stand.applied, interaction, situation, principal),
        relations=tuple(rules.relationships[name] for name in sorted(stand.applied.related)),
        overwrites=interaction.writes and _overwrites(stand, found),
    )


def _of_type(found: TypeStanding, interaction: Interaction, situation: Situation) -> Denial | None:
    """What scopes and rules say of the interaction with the type, whatever is asked in particular."""
    if interaction.kind is Kind.READ and "r" in found.reads:
        return None
    return (
        _active(found, interaction)
        or _scope(found, interaction)
        or _denied(found, interaction)
        or _allowed(found, interaction)
        or _unseen(found, interaction, situation)
    )


def narrowed(permit: Permit, criteria: list[Criterion | None]) -> Permit:
    """The permit once its joins were resolved: their criteria ANDed, nothing to find where one found nothing."""
    found = [criterion for criterion in criteria if criterion is not None]
    return replace(permit, narrow=(*permit.narrow, *found), nothing=permit.nothing or len(found) < len(criteria))


MOST_RELATED = 200
"""Patients by whom a search is narrowed; of more all are asked for, and judged."""


def related_only(permit: Permit, rules: RuleSet) -> Permit:
    """A search once it is known to whom its caller stands in the relationships that all its rules ask for: narrowed to those."""
    interaction = permit.interaction
    if interaction.kind is not Kind.SEARCH_TYPE or not permit.relations:
        return permit
    stand = standing_of(permit.principal, permit.situation, rules)
    found = _known(stand, interaction.type)
    rows = [row for row in found.allows if RULE_LETTERS[interaction.rule_name] in row.letters]
    if not all(row.related for row in rows) or not has_subject(interaction.type):
        return permit
    facts = permit.situation.facts
    lifted = frozenset((facts.grant.patient,)) if facts.grant and "relationship" in facts.grant.emergency.replaces else frozenset()
    patients = sorted(lifted.union(*(facts.related.get(row.related, frozenset()) for row in rows)))
    if len(patients) > MOST_RELATED:
        return permit
    if not patients:
        return narrowed(permit, [None])
    if interaction.type == "Patient":
        return narrowed(permit, [Criterion("_id", "", tuple(patients))])
    return narrowed(permit, [Criterion(subject_parameter(interaction.type), "", tuple(f"Patient/{one}" for one in patients))])


def _reading_letter(interaction: Interaction) -> str:
    """What rules call the way in which an answer is seen: what a write gives back is seen as a read would show it."""
    if interaction.operation == "$match":
        return "s"
    return "r" if interaction.writes or interaction.kind is Kind.OPERATION else RULE_LETTERS[interaction.rule_name]


def _is_ours(interaction: Interaction) -> bool:
    """Whether a page is one of our own making."""
    return interaction.page is not None and interaction.page.size > 0


def _all_found(found: TypeStanding) -> bool:
    """Whether no match of a search can be withheld from this caller."""
    scopes = [row for row in found.scopes if "s" in row.letters and row.judge is None and not row.limited]
    rows = [row for row in found.allows if "s" in row.letters and row.judge is None]
    belonging = found.type == "Binary" and not found.whole
    return bool(scopes and rows) and not found.denies and not found.withheld_by and not belonging and not found.guarded


def _overwrites(stand: Standing, found: TypeStanding) -> bool:
    """Whether there is no view to merge an update with: the caller sees everything, or was given no way to see the type."""
    if stand.applied.hides:
        return False
    if stand.naming.all_open and not found.view.silent:
        return True
    granted = any("r" in row.letters or "s" in row.letters for row in found.scopes)
    return not (granted and any(set(row.letters) & set("rvsh") for row in found.allows))


def _binding(principal: Principal, situation: Situation, rules: RuleSet) -> str:
    """What a page link is bound to: issuer, subject, client, scopes, patient, rules, upstream; a refreshed token has the same."""
    who = (principal.issuer, principal.subject, principal.client, principal.scopes.text, principal.patient)
    return hashlib.sha256("\x00".join((*who, situation.upstream, rules.digest)).encode()).hexdigest()


def could_lift(principal: Principal, interaction: Interaction, situation: Situation, rules: RuleSet) -> tuple[str, ...]:
    """What could lift a refusal of this kind."""
    return lifts(rules.applied(principal, situation), interaction, situation, principal)


def standing_of(principal: Principal, situation: Situation, rules: RuleSet) -> Standing:
    """What this caller's scopes and the rules that apply to it come to, type by type."""
    applied = rules.applied(principal, situation)
    shared = standing(applied, principal.scopes.text, bool(principal.patient), bool(principal.fhir_user), situation.bases)
    return Bound(shared, situation.facts) if applied.related else shared


def _known(stand: Standing, name: str) -> TypeStanding:
    found = stand.of(name)
    if found is None:
        raise KeyError(name)
    return found


def _not_served(interaction: Interaction) -> Denial:
    what = interaction.operation or interaction.kind.value
    return Denial(405, Reason.NOT_SERVED, "not-supported", f"`{what}` is not served here")


def _scope(found: TypeStanding, interaction: Interaction) -> Denial | None:
    if any(interaction.letter in row.letters for row in found.scopes):
        return None
    text = f"no scope of the token grants {interaction.rule_name} of {interaction.type}"
    challenge = ("WWW-Authenticate", 'Bearer error="insufficient_scope"')
    return Denial(403, Reason.NO_SCOPE, "forbidden", text, (challenge,))


def _denied(found: TypeStanding, interaction: Interaction) -> Denial | None:
    letter = RULE_LETTERS[interaction.rule_name]
    by = found.withheld_by or next((r.rule.id for r in found.denies if r.judge is None and letter in r.letters), "")
    text = f"{interaction.rule_name} of {interaction.type} is denied to this caller"
    return Denial(403, Reason.DENIED_BY_RULE, "forbidden", text, rule=by) if by else None


def _allowed(found: TypeStanding, interaction: Interaction) -> Denial | None:
    letter = RULE_LETTERS[interaction.rule_name]
    if any(letter in row.letters for row in found.allows):
        return None
    text = f"no rule allows {interaction.rule_name} of {interaction.type} to this caller"
    return Denial(403, Reason.NO_RULE, "forbidden", text)


def _active(found: TypeStanding, interaction: Interaction) -> Denial | None:
    if not interaction.writes or found.type not in ACTIVE_TYPES:
        return None
    letter, verb = interaction.letter, RULE_LETTERS[interaction.rule_name]
    named = any(letter in row.letters for row in found.scopes) and any(verb in row.letters for row in found.allows)
    if found.type == "Subscription" or not named:
        text = f"{found.type} makes the server act"
        how = "is not written here" if found.type == "Subscription" else "is written only under a scope and a rule that name it"
        return Denial(403, Reason.ACTIVE_TYPE, "forbidden", f"{text}: it {how}")
    return None


def _unseen(found: TypeStanding, interaction: Interaction, situation: Situation) -> Denial | None:
    """A delete that may hit what the caller did not see needs a rule that says so."""
    if interaction.kind is not Kind.DELETE or (situation.habits.delete_if_match and not found.view.marked):
        return None
    if any("d" in row.letters and row.rule.allow and row.rule.allow.delete_unseen for row in found.allows):
        return None
    text = f"no rule allows this caller to delete {found.type} without having seen all of the version that is deleted"
    return Denial(403, Reason.HIDDEN_PART, "forbidden", text)


def _negated(selector: Criteria, resource_type: str) -> list[Criterion]:
    """A deny of one token as ``:not``, so that the upstream leaves out what would be withheld and pages stay whole."""
    if len(selector.items) != 1 or selector.items[0].modifier:
        return []
    item = selector.items[0]
    known = search_parameter(resource_type, item.name)
    return [Criterion(item.name, "not", item.values)] if known and known.type == "token" else []


def _narrow(found: TypeStanding, interaction: Interaction, principal: Principal) -> tuple[tuple[Criterion, ...], bool]:
    """What to AND to a search so that less of what may not be seen is fetched, and whether nothing can match at all.

    This only saves work: each resource that comes back is judged again.
    """
    scopes = [row for row in found.scopes if "s" in row.letters]
    letter = RULE_LETTERS[interaction.rule_name]
    rows = [row for row in found.allows if letter in row.letters]
    narrow: list[Criterion] = []
    if all(row.limited for row in scopes) and not found.open_to_all:
        name = "_id" if interaction.type == "Patient" else subject_parameter(interaction.type)
        if not name:
            return (), True
        value = principal.patient if name == "_id" else f"Patient/{principal.patient}"
        narrow.append(Criterion(name, "", (value,)))
    if len(scopes) == 1 and scopes[0].scope.criteria:
        narrow += scopes[0].scope.criteria.items
    if len(rows) == 1:
        narrow += rows[0].selector.items
    narrow += [
        item
        for row in found.denies
        if letter in row.letters and not row.related
        for item in _negated(row.selector, interaction.type)
    ]
    return tuple(dict.fromkeys(item for item in narrow if item.modifier not in PINNED)), False
