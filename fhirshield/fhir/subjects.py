"""Whom a resource is about: the patients that its subject parameters name (see ``docs/architecture.md``, the patient's set)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

from fhirshield.fhir.glance import HOLDING, glance
from fhirshield.fhir.reference import Literal, literal, named_in
from fhirshield.fhir.reference_places import ways
from fhirshield.fhir.search_parameters import reader, subject_ways

Patients = frozenset[str]


@cache
def has_subject(resource_type: str) -> bool:
    """Whether resources of this type are about a patient: the Patient itself, and the types of the subject table."""
    return resource_type == "Patient" or bool(subject_ways(resource_type))


_OF_ANYBODY = frozenset(
    {"Binary", "Bundle", "DeviceMetric", "EnrollmentResponse", "OperationOutcome", "Parameters", "Subscription", "TestReport"}
)
"""Types that name no patient by a reference of their own and yet may be about one."""


@cache
def is_about_nobody(resource_type: str) -> bool:
    """Whether no element of the type can name a patient, nor hold content of any kind: Practitioner, not Group or Binary."""
    waiting, seen = [resource_type], {resource_type}
    while waiting:
        for _, element in ways(waiting.pop()):
            if element.type == "Reference" and (not element.targets or {"Patient", "Resource"} & set(element.targets)):
                return False
            if element.type not in seen and element.type != "Reference":
                seen.add(element.type)
                waiting.append(element.type)
    return not has_subject(resource_type) and resource_type not in _OF_ANYBODY


@cache
def _readers(resource_type: str) -> tuple[Callable[[Any], list[tuple[str, Any]]], Callable[[Any], list[tuple[str, Any]]]]:
    ways = subject_ways(resource_type)
    return reader(tuple(w for w in ways if not w.target)), reader(tuple(w for w in ways if w.target))


@cache
def _only(resource_type: str) -> str:
    """The element of the resource itself that alone says whom one of this type is about; empty where more do."""
    ways = subject_ways(resource_type)
    steps = {way.steps for way in ways}
    whole = len(steps) == 1 and any(not way.target for way in ways)
    (name, field, _), *more = next(iter(steps)) if whole else (("", "", ""),)
    return "" if more or field else name


@lru_cache(maxsize=16384)
def _patient(text: str, bases: tuple[str, ...]) -> Patients | None:
    """The patient whom a reference names."""
    named = literal(text, bases)
    return frozenset((named.id,)) if named is not None and named.type == "Patient" else None


def patients_of(resource: Any, bases: tuple[str, ...]) -> Patients | None:
    """The ids of the patients that a resource is about; None where it also names, or only names, something else.

    A Patient is about itself. A subject that is a Group, a Device, contained, logical or elsewhere makes the answer
    None: unknown is nobody's.
    """
    resource_type = resource.get("resourceType")
    if resource_type == "Patient":
        own = resource.get("id")
        return frozenset({own}) if isinstance(own, str) else None
    if not isinstance(resource_type, str) or not has_subject(resource_type):
        return None
    name = _only(resource_type)
    only = resource.get(name) if name else None
    if type(only) is dict and type(text := only.get("reference")) is str:  # the common case, which the rest comes to as well
        return _patient(text, bases)
    plain, filtered = _readers(resource_type)
    found: set[str] = set()
    for _, value in plain(resource):
        named = literal(value.get("reference"), bases) if isinstance(value, dict) else None
        if named is None or named.type != "Patient":
            return None
        found.add(named.id)
    for _, value in filtered(resource):
        named = literal(value.get("reference"), bases) if isinstance(value, dict) else None
        if named is None:
            return None
        if named.type == "Patient":
            found.add(named.id)
    return frozenset(found) if found else None


def people_of(resource: Any, bases: tuple[str, ...], look: Callable[[Literal], Patients | None]) -> Patients | None:
    """All whose data a resource is, so that each of them has to permit; None where that cannot be known.

    Unlike ``patients_of`` this answers for types without a subject, too: nobody for Practitioner and the like, unless they name or
    contain a patient all the same; the owner of a Device, whoever the targets of a Provenance are about (``look`` tells), all
    whom a Bundle's resources are about, all whom anything else names.
    """
    kind = resource.get("resourceType")
    if "contained" in resource and kind != "Patient" and kind not in HOLDING and _contains_patient(resource):
        return None
    if has_subject(kind):
        return patients_of(resource, bases)
    if kind == "OperationOutcome":
        return frozenset()
    named = _patients_named(resource, bases)
    if kind in HOLDING:
        return _held(resource, bases, look, named)
    if is_about_nobody(kind) or (kind == "Device" and "patient" not in resource and "_patient" not in resource):
        return named
    if kind == "Provenance":
        targets = [named_in(one, bases) for one in resource.get("target") or ()]
        people = [None if one is None else frozenset((one.id,)) if one.type == "Patient" else look(one) for one in targets]
        return named.union(*(one or () for one in people)) if people and None not in people else None
    if kind == "Group" and any(named_in(row.get("entity"), bases) is None for row in _rows(resource, "member")):
        return None
    return named or None


def _patients_named(resource: Any, bases: tuple[str, ...]) -> Patients:
    texts = glance(resource).references
    return frozenset(one.id for text in texts if (one := literal(text, bases)) is not None and one.type == "Patient")


def _contains_patient(resource: Any) -> bool:
    return any(one.get("resourceType") == "Patient" for one in _rows(resource, "contained"))


def _rows(resource: Any, name: str) -> list[Any]:
    value = resource.get(name)
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _held(resource: Any, bases: tuple[str, ...], look: Callable[[Literal], Patients | None], named: Patients) -> Patients | None:
    """All whom what is held is about; None where nothing is, or where any of it is not known."""
    waiting, found, known = _rows(resource, HOLDING[resource["resourceType"]]), set(named), bool(named)
    while waiting:
        row = waiting.pop()
        waiting += _rows(row, "part")
        inner = row.get("resource")
        if isinstance(inner, dict):
            people = people_of(inner, bases, look)
            if people is None:
                return None
            found |= people
            known = True
    return frozenset(found) if known else None


def targets_of(resource: Any, bases: tuple[str, ...]) -> list[Literal]:
    """What a Provenance is about, patients aside."""
    found = [named_in(one, bases) for one in resource.get("target") or ()] if resource.get("resourceType") == "Provenance" else []
    return [one for one in found if one is not None and one.type != "Patient"]


def linked(patient: Any, bases: tuple[str, ...]) -> Patients:
    """The patients whom a Patient's own ``link`` names, one step far."""
    rows = patient.get("link") if type(patient) is dict else None
    named = [named_in(row.get("other"), bases) for row in rows if type(row) is dict] if type(rows) is list else []
    return frozenset(one.id for one in named if one is not None and one.type == "Patient")
