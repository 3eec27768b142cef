"""Claims -> who is asking: roles, purposes, Patient in context, ``fhirUser``. One profile an identity product.

A ``patient`` claim or a relative ``fhirUser`` names a person only where the upstream lists the issuer under
``identities``; from any other issuer both are left out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

import msgspec

from fhirshield.fhir import scopes as smart
from fhirshield.fhir.consent import Provision, residuals
from fhirshield.fhir.reference import literal
from fhirshield.model import Principal, Situation
from fhirshield.settings import Issuer, Upstream

DERIVED_ROLES = {
    "Patient": "patient",
    "RelatedPerson": "representative",
    "Practitioner": "practitioner",
    "PractitionerRole": "practitioner",
}
"""The role that a ``fhirUser`` of each type gives; a token with system scopes and no person gives ``system``."""

_ID = re.compile(r"[A-Za-z0-9\-.]{1,256}\Z")
_NOT_ACCESS = ("ID", "Refresh", "Offline", "Logout")


class ClaimError(ValueError):
    """Claims that are not those of an access token of this profile."""


def principal_of(claims: dict[str, Any], issuer: Issuer, upstream: Upstream, situation: Situation) -> Principal:
    """The principal that verified claims describe. Raises ClaimError."""
    claims = PROFILES[issuer.profile](claims)
    scope = _text(claims, "scope")
    parsed = smart.parse(scope)
    client = _text(claims, "client_id") or _text(claims, "azp")
    exchanges = _exchanges(claims)
    known_here = issuer.name in upstream.identities
    user = _fhir_user(claims, situation) if known_here else ""
    patient = _text(claims, "patient") if known_here else ""
    if patient and not _ID.match(patient):
        raise ClaimError("`patient` is no id")
    roles = _roles(claims, issuer, client, user, patient, parsed)
    purposes = _coded(claims.get("purpose_of_use")).union(*(_coded(one.get("purpose_of_use")) for one in exchanges))
    if not purposes:
        default = issuer.default_purpose.get(client) or issuer.default_purpose.get("*")
        purposes = {default} if default else set()
    organizations = _organizations(claims, exchanges, issuer, situation if known_here else None)
    identifiers = _identifiers(exchanges)
    known = {name: _attribute(claims, path) for name, path in issuer.claims.items() if _has(claims, path)}
    if issuer.country:
        known.setdefault("country", issuer.country)
    attributes = tuple(sorted(known.items()))
    facts: list[Any] = [
        issuer.name,
        _text(claims, "sub"),
        client,
        sorted(roles),
        sorted(purposes),
        scope,
        patient,
        user,
        attributes,
    ]
    facts += [
        sorted(organizations),
        sorted(identifiers),
        claims.get("extensions"),
        sorted(name for name in claims if "ihe_pcf" in name),
    ]
    facts += [claims.get(name) for name in ("acr", "amr", "auth_time", "break_glass_reason")]
    return Principal(
        issuer=issuer.name,
        subject=_text(claims, "sub"),
        client=client,
        roles=frozenset(roles),
        purposes=frozenset(purposes),
        scopes=parsed,
        patient=patient,
        fhir_user=user,
        attributes=attributes,
        expires=float(claims["exp"]),
        fingerprint=hashlib.sha256(msgspec.json.encode(facts)).hexdigest(),
        organizations=frozenset(organizations),
        identifiers=frozenset(identifiers),
        acr=_text(claims, "acr"),
        amr=frozenset(_texts(claims.get("amr"))),
        auth_time=_moment(claims.get("auth_time")),
        emergency=_reason(claims),
        residuals=_residuals(claims, situation.bases),
    )


def _smart(claims: dict[str, Any]) -> dict[str, Any]:
    """SMART App Launch: plain claims ``scope``, ``patient``, ``fhirUser``; what OpenID Connect says of ID tokens."""
    if claims.get("typ") in _NOT_ACCESS or "nonce" in claims or "at_hash" in claims or "c_hash" in claims:
        raise ClaimError("not an access token")
    if not isinstance(claims.get("scope"), str):
        raise ClaimError("no `scope`")
    return claims


def _keycloak(claims: dict[str, Any]) -> dict[str, Any]:
    """Keycloak: every token says what it is in the claim ``typ``; access tokens say ``Bearer``."""
    if claims.get("typ") != "Bearer":
        raise ClaimError("not an access token")
    return _smart(claims)


_AZURE_SCOPE = re.compile(r"(patient|user|system)[./](all|\*|[A-Z][A-Za-z]+)\.([a-z]+)\Z")


def _azure(claims: dict[str, Any]) -> dict[str, Any]:
    """Microsoft Entra ID, tokens 1.0 and 2.0: scopes in ``scp`` (users) or ``roles`` (apps), client in ``azp`` or ``appid``.

    Source: Microsoft, *Access token claims reference* (entra-docs), and *SMART on FHIR* of Azure Health Data Services, whose scopes
    are written with dots and ``all``, since names there may not hold ``/`` and ``*``.
    """
    client = _text(claims, "azp") or _text(claims, "appid")
    if _text(claims, "ver") not in {"1.0", "2.0"} or not client:  # ID tokens name no client
        raise ClaimError("not an access token of Entra ID")
    said = claims.get("scp")
    texts = said.split(" ") if isinstance(said, str) else sorted(_texts(claims.get("roles"))) if said is None else []
    found = [_AZURE_SCOPE.match(text) for text in texts]
    scopes = [f"{m[1]}/{'*' if m[2] == 'all' else m[2]}.{m[3]}" for m in found if m]
    if not texts:
        raise ClaimError("no `scp` and no `roles`")
    return _smart({**claims, "scope": " ".join(scopes), "client_id": client})


PROFILES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"smart": _smart, "keycloak": _keycloak, "azure": _azure}


def _roles(claims: dict[str, Any], issuer: Issuer, client: str, user: str, patient: str, parsed: smart.Scopes) -> set[str]:
    source = issuer.roles
    roles = set(_texts(_walk(claims, source.claim))) if source.claim else set()
    if source.exchange:
        roles = roles.union(*(_coded(one.get("subject_role")) for one in _exchanges(claims)))
    roles.update(source.clients.get(client, ()))
    kind = user.partition("/")[0]
    roles.update(source.fhir_user.get(kind, ()))
    for scope in _text(claims, "scope").split(" "):
        roles.update(source.scopes.get(scope, ()))
    if kind in DERIVED_ROLES:
        roles.add(DERIVED_ROLES[kind])
    elif not user and not patient and parsed.granted and all(scope.context == "system" for scope in parsed.granted):
        roles.add("system")
    return roles


def _fhir_user(claims: dict[str, Any], situation: Situation) -> str:
    named = literal(claims.get("fhirUser"), situation.bases)
    return str(named) if named and named.type in {*DERIVED_ROLES, "Person"} else ""


# --- between institutions -------------------------------------------------------------------------------------------------


def _exchanges(claims: dict[str, Any]) -> list[dict[str, Any]]:
    """What an exchange of institutions says of the requester: IHE IUA (``extensions.ihe_iua``) and UDAP B2B (``hl7-b2b``).

    ``consent_reference`` is never followed: Consents come from the one source that settings name. What is no object says that it
    cannot be read.
    """
    extensions = claims.get("extensions", {})
    if not isinstance(extensions, dict):
        return [_ODD]
    said = [extensions[name] for name in ("hl7-b2b", "ihe_iua") if name in extensions]
    return [one if isinstance(one, dict) else _ODD for one in said]


UNREADABLE = "urn:fhirshield:unreadable"
"""Stands for a purpose or role that a token states and that cannot be read: no permit names it."""
_ODD: dict[str, Any] = {"purpose_of_use": UNREADABLE}


def _residuals(claims: dict[str, Any], bases: tuple[str, ...]) -> tuple[Provision, ...]:
    """What the authorization server leaves to be enforced (``ihe_pcf``, IHE PCF, additions to ITI-71)."""
    extensions = claims.get("extensions", {})
    known = extensions if isinstance(extensions, dict) else {"ihe_pcf": None}
    if any("ihe_pcf" in name for name in (*claims, *(known.keys() - {"ihe_pcf"}))):
        known = {"ihe_pcf": None}  # rules somewhere else than where they are read
    return residuals(known["ihe_pcf"], bases) if "ihe_pcf" in known else ()


def _coded(value: Any) -> set[str]:
    """Codes as tokens write them: text, a Coding, a CodeableConcept, or a list of these (IHE IUA, UDAP B2B)."""
    if value is None:
        return set()
    if isinstance(value, str):
        return _texts(value)
    return {code for item in (value if isinstance(value, list) else [value]) for code in _codes(item)}


def _codes(item: Any) -> set[str]:
    if isinstance(item, str) and item and " " not in item:
        return {item}
    if isinstance(item, dict) and isinstance(item.get("coding"), list) and item["coding"]:
        return {code for one in item["coding"] for code in _codes(one)}
    if isinstance(item, dict) and isinstance(item.get("code"), str) and item["code"]:
        system = item.get("system", "")
        return {f"{system}|{item['code']}" if system else item["code"]} if isinstance(system, str) else {UNREADABLE}
    return {UNREADABLE}


def _organizations(claims: dict[str, Any], exchanges: list[dict[str, Any]], issuer: Issuer, here: Situation | None) -> set[str]:
    """For whom the caller acts: a mapped claim, and what an exchange says. ``Organization/1`` only from who names people here."""
    found = _texts(_walk(claims, issuer.organization)) if issuer.organization else set()
    names = ("organization_id", "subject_organization_id")
    found |= {one[name] for one in exchanges for name in names if isinstance(one.get(name), str)}
    named = {one: literal(one, here.bases if here else ()) for one in found}
    mine = {str(one) for one in named.values() if one is not None and one.type == "Organization"} if here is not None else set()
    return mine | {text for text, one in named.items() if one is None}


_NPI = "http://hl7.org/fhir/sid/us-npi"


def _identifiers(exchanges: list[dict[str, Any]]) -> set[str]:
    """Of the person, as ``system|value``: the National Provider Identifier of an exchange."""
    values = [one.get("national_provider_identifier") for one in exchanges]
    return {f"{_NPI}|{value}" for value in values if isinstance(value, str) and value}


def _moment(value: Any) -> float:
    """A NumericDate; 0 for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1 << 53 else 0.0


def _text(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name)
    return value if isinstance(value, str) else ""


def _reason(claims: dict[str, Any]) -> str:
    """The reason for emergency access that a token states; empty for one that is none, as in the header."""
    text = _text(claims, "break_glass_reason").strip()
    return text if 10 <= len(text) <= 300 and text.isprintable() else ""


def _texts(value: Any) -> set[str]:
    """A string (space-separated) or a list of strings."""
    items = value.split(" ") if isinstance(value, str) else value if isinstance(value, list) else []
    return {item for item in items if isinstance(item, str) and item}


def _walk(claims: dict[str, Any], path: str) -> Any:
    """A claim by its own name, or by dots through objects."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _has(claims: dict[str, Any], path: str) -> bool:
    return isinstance(_walk(claims, path), str | bool | int | list)


def _attribute(claims: dict[str, Any], path: str) -> Any:
    value = _walk(claims, path)
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else value
