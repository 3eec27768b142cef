"""Breaking the glass: whom a request in an emergency is about, which must be one patient, and the grant for that."""

from __future__ import annotations

from dataclasses import replace

from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.fhir.reference import literal
from fhirshield.fhir.search_parameters import subject_parameter
from fhirshield.fhir.subjects import people_of
from fhirshield.forward import not_found
from fhirshield.gather import Gatherer
from fhirshield.gather.grants import Grants
from fhirshield.inquiry.search import Gathered
from fhirshield.model import Denial, Permit, Reason, Refused


async def break_glass(permit: Permit, gather: Gatherer, grants: Grants, gathered: Gathered) -> None:
    """Note in the exchange's facts what the emergency replaces, and for whom. Raises Refused."""
    emergency, situation = permit.emergency, permit.situation
    if emergency is None or situation.facts.grant is not None:
        return
    patient = await _whom(permit, gather, gathered)
    reason = situation.emergency or permit.principal.emergency
    situation.facts.grant = await grants.open(emergency, permit.principal, patient, reason)


async def _whom(permit: Permit, gather: Gatherer, gathered: Gathered) -> str:
    """The one patient whom the request names. Raises Refused."""
    asked = permit.interaction
    if not asked.id:
        return _searched(asked, permit)
    if asked.type == "Patient":
        return asked.id
    read = replace(permit, interaction=replace(asked, kind=Kind.READ, version="", operation="", parameters=()))
    resource = (await gather.stored(read, gathered)).resource
    if resource is None:
        raise Refused(not_found())
    patients = people_of(resource, permit.situation.bases, permit.situation.facts.subjects.get) or frozenset()
    if len(patients) != 1:
        raise Refused(not_found())
    return next(iter(patients))


def _searched(asked: Interaction, permit: Permit) -> str:
    names = {"_id"} if asked.type == "Patient" else {subject_parameter(asked.type), "patient", "subject"}
    found = set()
    for parameter in asked.parameters:
        if parameter.name in names and parameter.modifier in {"", "Patient"}:
            named = literal(parameter.value, permit.situation.bases)
            plain = parameter.value if parameter.name in {"_id", "patient"} and "," not in parameter.value else ""
            found.add(named.id if named is not None and named.type == "Patient" else plain)
    if len(found) != 1 or not (patient := next(iter(found))) or "/" in patient:
        text = "in an emergency one patient is asked about at a time: name the patient in the search"
        raise Refused(Denial(403, Reason.BREAK_GLASS, "business-rule", text))
    return patient
