"""The operations that are served by name (FHIR R4 §3.2), with what each may be asked. No privacy here."""

from __future__ import annotations

from dataclasses import dataclass

TERMINOLOGY = frozenset({"ValueSet", "CodeSystem", "ConceptMap"})


@dataclass(frozen=True, slots=True)
class Operation:
    """Where an operation can be invoked, and its parameters; ``output``: what its answer may be."""

    name: str
    types: frozenset[str]
    levels: frozenset[str]
    """``type`` ``instance``"""
    parameters: frozenset[str]
    output: frozenset[str]
    resource: bool = False
    """It takes a resource, by POST."""


def _operation(
    name: str, types: str, levels: str, parameters: str, output: str = "Bundle", *, resource: bool = False
) -> tuple[str, Operation]:
    of, at, given, answers = (frozenset(text.split()) for text in (types, levels, parameters, output))
    return name, Operation(name, of, at, given, answers, resource)


OPERATIONS: dict[str, Operation] = dict(
    (
        _operation("$everything", "Patient Encounter", "instance", "start end _since _type _count"),
        _operation("$lastn", "Observation", "type", ""),
        _operation("$docref", "DocumentReference", "type", "patient start end type on-demand _count"),
        _operation("$meta", "", "instance", "", "Parameters"),
        _operation("$validate", "", "type instance", "mode profile", "OperationOutcome", resource=True),
        _operation("$match", "Patient", "type", "count onlyCertainMatches", resource=True),
        _operation(
            "$expand", "ValueSet", "type instance",
            "url valueSetVersion context filter offset count date includeDesignations designation activeOnly displayLanguage",
            "ValueSet",
        ),
        _operation("$validate-code", "ValueSet CodeSystem", "type instance",
                   "url valueSetVersion version system code display abstract displayLanguage date", "Parameters"),
        _operation("$lookup", "CodeSystem", "type instance", "code system version date displayLanguage property", "Parameters"),
        _operation("$subsumes", "CodeSystem", "type instance", "codeA codeB system version", "Parameters"),
        _operation("$translate", "ConceptMap", "type instance",
                   "url conceptMapVersion code system version source target targetsystem reverse", "Parameters"),
    )
)  # fmt: skip
"""By name; no types: every type. ``$lastn`` takes the search parameters of its type besides ``max``."""

JOB = "$job"
"""Where a job is asked about, at this shield."""
NEVER = frozenset({"$graphql", "$meta-add", "$meta-delete", JOB})
"""What no rule can open: its answers, or effects, are not ones that can be judged."""


def known(name: str, resource_type: str, identity: str) -> Operation | None:
    """The operation of that name, if it can be invoked there."""
    found = OPERATIONS.get(name)
    level = "instance" if identity else "type"
    if found is None or not resource_type or level not in found.levels or (found.types and resource_type not in found.types):
        return None
    return found
