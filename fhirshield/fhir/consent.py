"""Consent of R4, R4B and R5 as one tree: what it says, not what it means (that is ``authorize/consent.py``).

A resource is validated by fhir.resources (R4 by its model of R4B, in which Consent is the same), once. What the tree has no
place for makes it Unsupported: it is never left out in silence.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import Any

from fhirshield.errors import ShieldError
from fhirshield.fhir.ordered import EARLIEST, LATEST, date_span
from fhirshield.fhir.reference import Literal, literal
from fhirshield.fhir.v3 import TERMINOLOGY, system_of

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
    """It asks for something that cannot be known here (R5 ``expression``)."""
    expression: str = ""
    """The FHIRPath of that."""
    vague: frozenset[str] = frozenset()
    """Attributes of which some value is in words alone: what their codes do not match may be meant all the same."""
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
    when: tuple[dt.datetime, dt.datetime] | None
    """The span that its date names."""
    period: Span | None
    """When it holds: its own period in R5, that of its first provision in R4."""
    policies: tuple[str, ...]
    """URIs of policies, and codes of a policy rule (``system|code``)."""
    root: Provision | None
    verified: bool = True
    """Not where it says that it was not verified."""
    grantees: tuple[Actor, ...] = ()
    """To whom it grants what it permits (R5)."""

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
    if _holds_null(resource):
        raise Unsupported("holds null where a value should be")
    _validate(resource, release)
    if _anywhere(resource, "modifierExtension") or resource.get("implicitRules"):
        raise Unsupported("a modifier extension or implicit rules change what it means")
    reader = _Reader(bases)
    root = _root_r5(reader, resource) if release == R5 else _root_r4(reader, resource)
    period = _span((resource if release == R5 else resource.get("provision", {})).get("period"))
    moment = date_span(str(resource.get("date" if release == R5 else "dateTime", "")))
    scopes = _concept_codes([resource["scope"]]) if release == R4 else []
    categories = [_concept_codes([concept]) for concept in resource.get("category", [])]
    verifications = resource.get("verification", [])
    return Consent(
        id=str(resource.get("id", "")),
        version=str(resource.get("meta", {}).get("versionId", "")),
        release=release,
        patient=patient_of(resource, bases),
        active=resource.get("status") == "active",
        private=not _all_of(scopes, _OTHER_SCOPES) and not (categories and all(_all_of(one, _DIRECTIVES) for one in categories)),
        research=_all_of(scopes, _RESEARCH),
        when=moment,
        period=period,
        policies=tuple(_policies(resource)),
        root=root,
        verified=all(row.get("verified") is not False for row in verifications),
        grantees=tuple(reader.actor({"reference": one}) for one in resource.get("grantee", [])) if release == R5 else (),
    )


_SCOPES, _CATEGORIES = TERMINOLOGY + "consentscope", TERMINOLOGY + "consentcategorycodes"
_OTHER_SCOPES = {(_SCOPES, "adr"), (_SCOPES, "treatment")}
"""Advance directives and consents to a treatment say nothing of who may see what."""
_RESEARCH = {(_SCOPES, "research")}
_DIRECTIVES = {(_CATEGORIES, code) for code in ("acd", "dnr", "hcd", "polst")}
"""Categories of directives about care."""


def _all_of(codes: list[Code], known: set[Code]) -> bool:
    return bool(codes) and set(codes) <= known


def _holds_null(node: Any) -> bool:
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current is None:
            return True
        if type(current) is dict:
            waiting.extend(current.values())
        elif type(current) is list:
            waiting.extend(current)
    return False


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
    if "_start" in period or "_end" in period or low is None or high is None or low[0] > high[1]:
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


_ATTRIBUTES = {
    "securityLabel": "labels",
    "purpose": "purposes",
    "class": "classes",
    "resourceType": "classes",
    "documentType": "classes",
}


def _fhirpath(expression: Any) -> str:
    """The text of an Expression in FHIRPath."""
    told = type(expression) is dict and expression.get("language") in {"text/fhirpath", None}
    return str(expression.get("expression", "")) if told else ""


def _is_worded(concept: Any) -> bool:
    """Whether a concept, or a coding of it, has no code."""
    codings = concept.get("coding", [])
    return not codings or len(_codes(codings)) < len(codings)


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
        lists = {name: row.get(name, []) for name in ("securityLabel", "purpose", "class", "resourceType", "documentType")}
        vague = {_ATTRIBUTES[name] for name, codings in lists.items() if len(_codes(codings)) < len(codings)}
        vague |= {name for name, concepts in (("actions", actions), ("codes", codes)) if any(map(_is_worded, concepts))}
        if kind not in {None, "permit", "deny"}:
            raise Unsupported(f"`{path}.type` is neither permit nor deny")
        return Provision(
            path=path,
            permits=None if kind is None else kind == "permit",
            period=_span(row.get("period")) if nested else None,
            actors=tuple(self.actor(one) for one in row.get("actor", [])),
            actions=tuple(_concept_codes(actions)),
            labels=tuple(_codes(lists["securityLabel"])),
            purposes=tuple(_codes(lists["purpose"])),
            classes=tuple(code for name in ("class", "resourceType", "documentType") for code in _codes(lists[name])),
            codes=tuple(_concept_codes(codes)),
            data_period=_span(row.get("dataPeriod")),
            data=tuple(self._data(one) for one in row.get("data", [])),
            beyond="expression" in row,
            expression=_fhirpath(row.get("expression")),
            vague=frozenset(vague),
            inner=tuple(
                self.provision(one, f"{path}.provision[{place}]", nested=True) for place, one in enumerate(row.get("provision", []))
            ),
        )

    def actor(self, row: Any) -> Actor:
        """Whom a row means."""
        reference = row.get("reference")
        identifier = reference.get("identifier") if reference else None
        named = literal(reference.get("reference"), self._bases) if reference else None
        known = (str(identifier.get("system", "")), str(identifier["value"])) if identifier and "value" in identifier else None
        elsewhere = reference is not None and named is None and known is None
        roles = tuple(_concept_codes([row["role"]])) or (("", ""),) if "role" in row else ()
        return Actor(roles, named, known, elsewhere)

    def _data(self, row: Any) -> Data:
        return Data(str(row["meaning"]), literal(row["reference"].get("reference"), self._bases))


# --- in tokens ------------------------------------------------------------------------------------------------------------

_RESIDUAL = {"type", "securityLabel", "dataPeriod", "data"}
_MEANINGS = {"instance", "related", "dependents", "authoredby"}


def residuals(said: Any, bases: tuple[str, ...]) -> tuple[Provision, ...]:
    """The residual rules of a token's ``ihe_pcf`` (IHE PCF): what cannot be read forbids, whatever it was meant to."""
    everything = (Provision("ihe_pcf", permits=False),)
    if type(said) is not dict or said.keys() - {"patient_id", "doc_id", "acp", "residual"}:
        return everything
    rows = said.get("residual", [])
    if type(rows) is not list:
        return everything
    reader = _Reader(bases)
    return tuple(_residual(reader, row, place) for place, row in enumerate(rows))


def _residual(reader: _Reader, row: Any, place: int) -> Provision:
    path = f"ihe_pcf.residual[{place}]"
    if type(row) is not dict or row.get("type") not in {"permit", "forbid"}:
        return Provision(path, permits=False)
    made: dict[str, Any] = {"type": "permit" if row["type"] == "permit" else "deny"}
    for name in row.keys() & (_RESIDUAL - {"type"}):
        value = _READ[name](row[name])
        if value is None:
            return Provision(path, permits=False)
        made[name] = value
    provision = reader.provision(made, path, nested=True)
    return replace(provision, beyond=provision.beyond or bool(row.keys() - _RESIDUAL))


def _read_labels(value: Any) -> Any:
    whole = type(value) is list and value and all(type(one) is dict and _text(one.get("code")) for one in value)
    return [{"system": str(one.get("system", "")), "code": one["code"]} for one in value] if whole else None


def _read_period(value: Any) -> Any:
    value = value[0] if type(value) is list and len(value) == 1 else value
    whole = type(value) is dict and value and value.keys() <= {"start", "end"} and all(map(_text, value.values()))
    return value if whole and (span := _span(value)) is not None and span.known else None


def _read_data(value: Any) -> Any:
    """References come as text, too (the examples of IHE PCF)."""
    rows = value if type(value) is list else []
    found = []
    for row in rows:
        reference = row.get("reference") if type(row) is dict else None
        text = reference.get("reference") if type(reference) is dict else reference
        if type(row) is not dict or row.get("meaning") not in _MEANINGS or not _text(text):
            return None
        found.append({"meaning": row["meaning"], "reference": {"reference": text}})
    return found or None


def _text(value: Any) -> bool:
    return type(value) is str and bool(value)


_READ: dict[str, Callable[[Any], Any]] = {"securityLabel": _read_labels, "dataPeriod": _read_period, "data": _read_data}
