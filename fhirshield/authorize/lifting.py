"""What could lift a refusal, and who may break the glass: by caller, type, purpose and rules alone, never by what was found."""

from __future__ import annotations

from fhirshield.fhir.interaction import Interaction
from fhirshield.fhir.subjects import is_about_nobody
from fhirshield.model import Denial, Emergency, Principal, Reason, Situation
from fhirshield.policy.compile import Applied
from fhirshield.policy.rule import Rule

CONSENT, ETHICS, AUTHENTICATION, EMERGENCY = "consent", "ethics-approval", "stronger-authentication", "emergency-declaration"
"""What may be said: closed, in this order."""


def lifts(applied: Applied, interaction: Interaction, situation: Situation, principal: Principal) -> tuple[str, ...]:
    """What could show this caller more of a type."""
    kind, name = interaction.type, interaction.rule_name or "read"
    found = []
    if applied.consents and (not kind or not is_about_nobody(kind)):
        found.append(CONSENT)
    found += (
        [ETHICS] if any(rule.lift and rule not in applied.allow and _grants(rule, kind, name) for rule in applied.waiting) else []
    )
    found += [AUTHENTICATION] if any(_grants(rule, kind, name) for rule in applied.weak) else []
    stated = situation.emergency or principal.emergency
    if not stated and any(one.covers(kind, name) for one in applied.emergencies):
        found.append(EMERGENCY)
    return tuple(found)


def _grants(rule: Rule, kind: str, name: str) -> bool:
    """Whether a rule, once it applied, would speak for such a request."""
    if rule.allow is not None and name in rule.allow.interactions and rule.allow.of(kind):
        return True
    return rule.clearance is not None or (rule.emergency is not None and rule.emergency.covers(kind, name))


def emergency_of(
    applied: Applied, interaction: Interaction, situation: Situation, principal: Principal
) -> Emergency | Denial | None:
    """What a stated reason opens; None where none is stated."""
    if not (situation.emergency or principal.emergency):
        return None
    name = interaction.rule_name or "read"
    found = next((one for one in applied.emergencies if not interaction.writes and one.covers(interaction.type, name)), None)
    if found is None and situation.emergency:
        text = f"no rule lets this caller break the glass for {name} of {interaction.type or 'everything'}"
        return Denial(403, Reason.BREAK_GLASS, "forbidden", text)
    return found


def step_up(applied: Applied, interaction: Interaction, situation: Situation) -> Denial | None:
    """The challenge to a caller whom stronger or more recent authentication would let ask this (RFC 9470 §3)."""
    name = interaction.rule_name or "read"
    waiting = [rule for rule in applied.weak if _grants(rule, interaction.type, name)]
    authentication = next((rule.who.authentication for rule in waiting), None)
    if authentication is None:
        return None
    scheme = "DPoP" if situation.scheme == "dpop" else "Bearer"
    header = ("WWW-Authenticate", f"{scheme} {authentication.challenge()}")
    text = "stronger or more recent authentication is needed"
    return Denial(401, Reason.WEAK_AUTHENTICATION, "login", text, (header,))
