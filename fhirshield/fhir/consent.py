"""Consent of R4, R4B and R5 as one tree: what it says, not what it means (that is ``authorize/consent.py``).

A resource is validated by fhir.resources (R4 by its model of R4B, in which Consent is the same), once. What the tree has no
place for makes it Unsupported: it is never left out in silence.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import Any

from fhirshield.errors import ShieldError
from fhirshield.fhir.ordered import EARLIEST, LATEST, date_span
from fhirshield.fhir.reference import Literal, literal
from fhirshield.fhir.v3 import system_of

Code = tuple[str, str]
"""(system, code); the system is empty where none is given."""
R4, R5 = "R4", "R5"
MOST_PROVISIONS = 500
"""Provisions of one Consent."""


class Unsupported(ShieldError):
    """A Consent that cannot be enforced; says why, without its data."""


@dataclass(frozen=True, slots=True)
class Span:
    """A period, both ends included. ``known`` is False where an end cannot be read."""

    low: dt.datetime = EARLIEST
    high: dt.datetime = LATEST
    known: bool = True

    def holds(self, moment: dt.datetime) -> bool | None:
        """Whether a moment lies within."""
        return self.low <= moment <= self.high if self.known else None


@dataclass(frozen=True, slots=True)
class Actor:
    """Whom a provision speaks of; a reference that names nothing here is ``elsewhere``."""

    roles: tuple[Code, ...]
    reference: Literal | None
    identifier: Code | None
    elsewhere: bool


@dataclass(frozen=True, slots=True)
class Data:
    """Which resources: ``meaning`` is ``instance related dependents authoredby``; a reference that names nothing here is None."""

    meaning: str
    reference: Literal | None


@dataclass(frozen=True, slots=True, eq=False)
class Provision:
    """One rule of a Consent. Empty lists and None ask nothing; attributes AND, their values OR."""

    path: str
    """Its FHIRPath."""
    permits: bool | None
    """``type`` of R4, ``decision`` of R5; None where it says none: then it is an exception of what it stands in."""
    period: Span | None = None
    actors: tuple[Actor, ...] = ()
    actions: tuple[Code, ...] = ()
    labels: tuple[Code, ...] = ()
    purposes: tuple[Code, ...] = ()
    classes: tuple[Code, ...] = ()
    """``class`` of R4, ``resourceType`` and ``documentType`` of R5."""
    codes: tuple[Code, ...] = ()
    data_period: Span | None = None
    data: tuple[Data, ...] = ()
    beyond: bool = False
    """It asks for something that cannot be known here (R5 ``expression``, a concept in words alone)."""
    inner: tuple[Provision, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Consent:
    """One Consent. Compared by identity: what is compiled of it is kept with it."""

    id: str
    version: str
    release: str
    patient: str
    active: bool
    private: bool
    """It is about privacy: scope and category say so, or say nothing else."""
    research: bool
    """It is about research alone."""
    when: dt.datetime | None
    period: Span | None
    """When it holds: its own period in R5, that of its first provision in R4."""
    policies: tuple[str, ...]
    """URIs of policies, and codes of a policy rule (``system|code``)."""
    root: Provision | None

    @property
    def name(self) -> str:
        """``Consent/id`` with its version."""
        return f"Consent/{self.id}" + (f"/_history/{self.version}" if self.version else "")

    def provisions(self) -> Iterator[Provision]:
        """All provisions, the outer first."""
        waiting = [self.root] if self.root else []
        while waiting:
            provision = waiting.pop()
            yield provision
            waiting.extend(reversed(provision.inner))


_OF_R5 = {"subject", "decision", "regulatoryBasis", "policyBasis", "grantor", "grantee", "controller", "manager", "date"}


def release_of(resource: Any) -> str:
    """Which release's Consent this is, by the elements that only one of them has."""
    return R5 if type(resource.get("provision")) is list or resource.keys() & _OF_R5 else R4


def patient_of(resource: Any, bases: tuple[str, ...]) -> str:
    """The id of the patient that a Consent names, valid or not; empty where it names none here."""
    for name in ("patient", "subject"):
        value = resource.get(name)
        found = literal(value.get("reference"), bases) if type(value) is dict else None
        if found is not None and found.type == "Patient":
            return found.id
    return ""


def parse(resource: Any, bases: tuple[str, ...]) -> Consent:
    """A Consent as a tree. ``bases`` are the URLs under which references name what is known here. Raises Unsupported."""
    release = release_of(resource)
    _validate(resource, release)
    if _anywhere(resource, "modifierExtension") or resource.get("implicitRules"):
        raise Unsupported("a modifier extension or implicit rules change what it means")
    reader = _Reader(bases)
    root = _root_r5(reader, resource) if release == R5 else _root_r4(reader, resource)
    period = _span((resource if release == R5 else resource.get("provision", {})).get("period"))
    moment = date_span(str(resource.get("date" if release == R5 else "dateTime", "")))
    scopes = {code for _, code in _concept_codes([resource["scope"]])} if release == R4 else set()
    categories = {code for _, code in _concept_codes(resource.get("category", []))}
    return Consent(
        id=str(resource.get("id", "")),
        version=str(resource.get("meta", {}).get("versionId", "")),
        release=release,
        patient=patient_of(resource, bases),
        active=resource.get("status") == "active",
        private=not (scopes & _OTHER_SCOPES) and not (categories and categories <= _DIRECTIVES),
        research=bool(scopes) and scopes <= {"research"},
        when=moment[0] if moment else None,
        period=period,
        policies=tuple(_policies(resource)),
        root=root,
    )


_OTHER_SCOPES = {"adr", "treatment"}
"""Advance directives and consents to a treatment (code system consentscope) say nothing of who may see what."""
_DIRECTIVES = {"acd", "dnr", "emrgonly", "hcd", "polst"}
"""Categories (code system consentcategorycodes) of directives about care."""


def _validate(resource: Any, release: str) -> None:
    try:
        _model(release).model_validate(resource)
    except (ValueError, TypeError, RecursionError, AttributeError, OverflowError) as error:
        raise Unsupported(f"is no valid Consent of {release} ({type(error).__name__})") from None


@cache  # models are read when the first Consent is
def _model(release: str) -> Any:
    return import_module("fhir.resources.consent" if release == R5 else "fhir.resources.R4B.consent").Consent


def _anywhere(node: Any, name: str) -> bool:
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if type(current) is dict:
            if name in current:
                return True
            waiting.extend(current.values())
        elif type(current) is list:
            waiting.extend(current)
    return False


def _policies(resource: Any) -> Iterator[str]:
    for policy in resource.get("policy", []):
        yield str(policy.get("uri") or policy.get("authority") or "")
    if "policyRule" in resource:
        yield from _named([resource["policyRule"]])
    yield from _named(resource.get("regulatoryBasis", []))
    basis = resource.get("policyBasis")
    if basis is not None:
        yield str(basis.get("url") or (basis.get("reference") or {}).get("reference") or "")


def _named(concepts: list[Any]) -> Iterator[str]:
    """Codes as ``system|code``; of a concept in words alone, its words."""
    for concept in concepts:
        codes = _concept_codes([concept])
        yield from (f"{system}|{code}" if system else code for system, code in codes)
        if not codes:
            yield str(concept.get("text", ""))


def _concept_codes(concepts: list[Any]) -> list[Code]:
    return [code for concept in concepts for code in _codes(concept.get("coding", []))]


def _codes(codings: list[Any]) -> list[Code]:
    return [(system_of(str(c.get("system", ""))), str(c["code"])) for c in codings if c.get("code")]


def _span(period: Any) -> Span | None:
    if period is None:
        return None
    low = date_span(str(period["start"])) if "start" in period else (EARLIEST, EARLIEST)
    high = date_span(str(period["end"])) if "end" in period else (LATEST, LATEST)
    if "_start" in period or "_end" in period or low is None or high is None:
        return Span(known=False)
    return Span(low[0], high[1])


def _root_r4(reader: _Reader, resource: Any) -> Provision | None:
    row = resource.get("provision")
    return reader.provision(row, "Consent.provision", nested=False) if row is not None else None


def _root_r5(reader: _Reader, resource: Any) -> Provision:
    """In R5 the decision is the Consent's own, and its provisions are what it makes exceptions of."""
    decision = resource.get("decision")
    rows = resource.get("provision", [])
    inner = tuple(reader.provision(row, f"Consent.provision[{place}]", nested=True) for place, row in enumerate(rows))
    return Provision("Consent.decision", None if decision is None else decision == "permit", inner=inner)


class _Reader:
    """Reads provisions, of both releases."""

    def __init__(self, bases: tuple[str, ...]) -> None:
        self._bases = bases
        self._count = 0

    def provision(self, row: Any, path: str, *, nested: bool) -> Provision:
        self._count += 1
        if self._count > MOST_PROVISIONS:
            raise Unsupported(f"more than {MOST_PROVISIONS} provisions")
        kind = row.get("type")
        actions, codes = row.get("action", []), row.get("code", [])
        worded = any(not _concept_codes([concept]) for concept in (*actions, *codes))
        lists = {name: row.get(name, []) for name in ("securityLabel", "purpose", "class", "resourceType", "documentType")}
        bare = any(len(_codes(codings)) < len(codings) for codings in lists.values())
        if kind not in {None, "permit", "deny"}:
            raise Unsupported(f"`{path}.type` is neither permit nor deny")
        return Provision(
            path=path,
            permits=None if kind is None else kind == "permit",
            period=_span(row.get("period")) if nested else None,
            actors=tuple(self._actor(one) for one in row.get("actor", [])),
            actions=tuple(_concept_codes(actions)),
            labels=tuple(_codes(lists["securityLabel"])),
            purposes=tuple(_codes(lists["purpose"])),
            classes=tuple(code for name in ("class", "resourceType", "documentType") for code in _codes(lists[name])),
            codes=tuple(_concept_codes(codes)),
            data_period=_span(row.get("dataPeriod")),
            data=tuple(self._data(one) for one in row.get("data", [])),
            beyond="expression" in row or worded or bare,
            inner=tuple(
                self.provision(one, f"{path}.provision[{place}]", nested=True) for place, one in enumerate(row.get("provision", []))
            ),
        )

    def _actor(self, row: Any) -> Actor:
        reference = row.get("reference")
        identifier = reference.get("identifier") if reference else None
        named = literal(reference.get("reference"), self._bases) if reference else None
        known = (str(identifier.get("system", "")), str(identifier["value"])) if identifier and "value" in identifier else None
        elsewhere = reference is not None and named is None and known is None
        return Actor(tuple(_concept_codes([row["role"]])) if "role" in row else (), named, known, elsewhere)

    def _data(self, row: Any) -> Data:
        return Data(str(row["meaning"]), literal(row["reference"].get("reference"), self._bases))


# --- in tokens ------------------------------------------------------------------------------------------------------------

_RESIDUAL = {"type", "securityLabel", "dataPeriod", "data"}


def residuals(rows: Any, bases: tuple[str, ...]) -> tuple[Provision, ...]:
    """The residual rules of a token (IHE PCF): what cannot be read forbids, whatever it was meant to."""
    reader = _Reader(bases)
    return tuple(_residual(reader, row, place) for place, row in enumerate(rows if type(rows) is list else [rows]))


def _residual(reader: _Reader, row: Any, place: int) -> Provision:
    path = f"ihe_pcf.residual[{place}]"
    if type(row) is not dict or row.get("type") not in {"permit", "forbid"}:
        return Provision(path, permits=False)
    spans = row.get("dataPeriod")
    said = {name: value for name, value in row.items() if name in {"securityLabel"} and type(value) is list}
    said |= {"dataPeriod": spans[0] if type(spans) is list and len(spans) == 1 else spans} if spans is not None else {}
    said |= {"data": [_plain(one) for one in row["data"]]} if type(row.get("data")) is list else {}
    try:
        made = reader.provision({**said, "type": "permit" if row["type"] == "permit" else "deny"}, path, nested=True)
    except (AttributeError, KeyError, TypeError, ValueError):
        return Provision(path, permits=False)
    if row.keys() & _RESIDUAL != said.keys() | {"type"}:
        return Provision(path, permits=False)
    return replace(made, beyond=made.beyond or bool(row.keys() - _RESIDUAL))


def _plain(row: Any) -> Any:
    """References come as text, too (the examples of IHE PCF)."""
    reference = row["reference"]
    return {"meaning": row["meaning"], "reference": {"reference": reference} if type(reference) is str else reference}
