"""Which types' names a caller may read in references: ``Reference.display`` and ``Reference.identifier`` tell names.

The decision is by type, never by look-up: a name stays only where nothing of the type referred to could be withheld
from this caller and no obligation touches what names it.
"""

from __future__ import annotations

from fhirshield.model import Obligation

NAMING = {
    "Patient": ("name",),
    "Practitioner": ("name",),
    "RelatedPerson": ("name",),
    "Person": ("name",),
    "Organization": ("name", "alias"),
    "Location": ("name", "alias"),
    "HealthcareService": ("name",),
    "Group": ("name",),
    "Device": ("deviceName", "distinctIdentifier", "udiCarrier"),
    "CareTeam": ("name",),
    "Endpoint": ("name", "address"),
    "Questionnaire": ("name", "title"),
    "PlanDefinition": ("name", "title"),
    "ActivityDefinition": ("name", "title"),
    "Library": ("name", "title"),
    "ResearchStudy": ("title",),
}
"""The elements that name a resource of the type. A type that is not listed is named by all that it holds."""


def touches_name(obligations: tuple[Obligation, ...], resource_type: str) -> bool:
    """Whether an obligation on the type touches what a display of it would say."""
    naming = NAMING.get(resource_type)
    return any(naming is None or _touches(obligation, naming) for obligation in obligations)


def touches_identifier(obligations: tuple[Obligation, ...]) -> bool:
    """Whether an obligation touches the type's ``identifier``."""
    return any(_touches(obligation, ("identifier", "distinctIdentifier", "udiCarrier")) for obligation in obligations)


def _touches(obligation: Obligation, names: tuple[str, ...]) -> bool:
    first = obligation.path.segments[0]
    return any(name.removeprefix("_") in names for name in getattr(first, "names", ()))
