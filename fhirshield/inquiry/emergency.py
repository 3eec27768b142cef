"""Breaking the glass: whom a request in an emergency is about, which must be one patient, and the grant for that.

A grant is opened by naming the patient, in a search or by reading the Patient. What is read by its own id is shown under a grant
that is open already; it opens none, since whether it did would tell that it is there.
"""

from __future__ import annotations

import re
from dataclasses import replace

from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.fhir.reference import Literal, literal
from fhirshield.fhir.search_parameters import subject_parameter
from fhirshield.fhir.subjects import people_of
from fhirshield.gather import Gatherer
from fhirshield.gather.grants import Grants, Tell
from fhirshield.inquiry.search import Gathered
from fhirshield.model import Denial, Emergency, Permit, Reason, Refused
from fhirshield.redact import Redactor

_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}\Z")


async def break_glass(
    permit: Permit, gather: Gatherer, grants: Grants, redact: Redactor, gathered: Gathered, tell: Tell
) -> None:  # fmt: skip
    """Note in the exchange's facts what the emergency replaces, and for whom. Raises Refused."""
    emergency, situation, asked = permit.emergency, permit.situation, permit.interaction
    if emergency is None or situation.facts.joint or situation.facts.grant is not None:
        return
    if asked.id and asked.type != "Patient":
        await _under_open(emergency, permit, gather, grants, redact, gathered)
        return
    patient = asked.id or searched(asked, permit)
    situation.facts.grant = await grants.open(emergency, permit.principal, situation.upstream, patient, _reason(permit), tell)


async def _under_open(
    emergency: Emergency, permit: Permit, gather: Gatherer, grants: Grants, redact: Redactor, gathered: Gathered
) -> None:  # fmt: skip
    """Take a grant that is open for whom a resource is about, where it shows under that; else nothing is replaced.

    Whether all who are asked can be is found out first: what stays hidden is refused as what is absent is. Raises Refused.
    """
    facts = permit.situation.facts
    away: Refused | None = None
    try:
        await gather.about.ready(permit, gathered)
    except Refused as refused:
        away = refused
    read = replace(permit, interaction=replace(permit.interaction, kind=Kind.READ, version="", operation="", parameters=()))
    resource = await gather.bare(read, Literal(read.interaction.type, read.interaction.id), gathered)
    patients = people_of(resource, permit.situation.bases, facts.subjects.get) if resource is not None else None
    if patients is not None and len(patients) == 1:
        facts.grant = await grants.known(
            emergency, permit.principal, permit.situation.upstream, next(iter(patients)), _reason(permit)
        )
    if facts.grant is not None:
        await gather.about.ready(permit, gathered)
        await gather.about(read, [resource], gathered)
        if redact.view_of(resource, read) is not None:
            return
        facts.grant = None
    if away is not None:
        raise away


def _reason(permit: Permit) -> str:
    return permit.situation.emergency or permit.principal.emergency


def searched(asked: Interaction, permit: Permit) -> str:
    """The one patient whom a search names. Raises Refused."""
    names = {"_id"} if asked.type == "Patient" else {subject_parameter(asked.type), "patient", "subject"}
    found = set()
    for parameter in asked.parameters:
        if parameter.name in names and parameter.modifier in {"", "Patient"}:
            named = literal(parameter.value, permit.situation.bases)
            plain = parameter.value if parameter.name in {"_id", "patient"} and "," not in parameter.value else ""
            found.add(named.id if named is not None and named.type == "Patient" else plain)
    if len(found) != 1 or not (patient := next(iter(found))) or not _ID.match(patient):
        text = "in an emergency one patient is asked about at a time: name the patient in the search"
        raise Refused(Denial(403, Reason.BREAK_GLASS, "business-rule", text))
    return patient
