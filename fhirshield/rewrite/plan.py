"""The upstream request of a permit. What the client asked and what the permit narrows to are ANDed, never merged."""

from __future__ import annotations

from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.model import Permit, Plan


def rewrite(interaction: Interaction, permit: Permit) -> Plan:
    """The plan for one permitted interaction."""
    if interaction.kind is Kind.READ:
        return Plan(permit, "GET", (interaction.type, interaction.id), (), form=False)
    if interaction.kind is Kind.VREAD:
        segments = (interaction.type, interaction.id, "_history", interaction.version)
        return Plan(permit, "GET", segments, (), form=False)
    if interaction.page is not None:
        return Plan(permit, "GET", interaction.page.segments, interaction.page.query, form=False)
    return _search(interaction, permit)


def _search(interaction: Interaction, permit: Permit) -> Plan:
    asked = [(f"{p.name}:{p.modifier}" if p.modifier else p.name, p.value) for p in interaction.parameters]
    query = (*asked, *(criterion.query() for criterion in permit.narrow))
    if interaction.by_post:
        return Plan(permit, "POST", (interaction.type, "_search"), query, form=True)
    return Plan(permit, "GET", (interaction.type,), query, form=False)
