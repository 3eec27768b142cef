"""HL7 v3 vocabulary that decisions read: purposes of use, kinds of sensitive information, ranks of confidentiality.

Source: HL7's v3 code systems as published with FHIR R4 (``tables/r4.json``, section ``above``); the order of confidentiality is
that of HL7's DS4P guide.
"""

from __future__ import annotations

from functools import cache

from fhirshield.fhir.definitions import tables

TERMINOLOGY = "http://terminology.hl7.org/CodeSystem/"
ACT_REASON = TERMINOLOGY + "v3-ActReason"
ACT_CODE = TERMINOLOGY + "v3-ActCode"
CONFIDENTIALITY = TERMINOLOGY + "v3-Confidentiality"
RANKS = ("U", "L", "M", "N", "R", "V")
"""Confidentiality from unrestricted to very restricted."""
NOTICES = {
    "42CFRPart2": "42 CFR part 2 prohibits unauthorized use or disclosure of these records.",
}
"""What has to be said with data under a privacy law, by its ActCode (42 CFR §2.32)."""
_ALIASES = {
    "http://hl7.org/fhir/v3/ActReason": ACT_REASON,
    "urn:oid:2.16.840.1.113883.5.8": ACT_REASON,
    "2.16.840.1.113883.5.8": ACT_REASON,
    "http://hl7.org/fhir/v3/ActCode": ACT_CODE,
    "urn:oid:2.16.840.1.113883.5.4": ACT_CODE,
    "2.16.840.1.113883.5.4": ACT_CODE,
    "http://hl7.org/fhir/v3/Confidentiality": CONFIDENTIALITY,
    "urn:oid:2.16.840.1.113883.5.25": CONFIDENTIALITY,
    "2.16.840.1.113883.5.25": CONFIDENTIALITY,
    "http://hl7.org/fhir/v3/ParticipationType": TERMINOLOGY + "v3-ParticipationType",
    "urn:oid:2.16.840.1.113883.5.90": TERMINOLOGY + "v3-ParticipationType",
    "2.16.840.1.113883.5.90": TERMINOLOGY + "v3-ParticipationType",
    "http://hl7.org/fhir/resource-types": "http://hl7.org/fhir/fhir-types",
    TERMINOLOGY + "v3-ActUSPrivacyLaw": ACT_CODE,
}
"""Other names of these systems; 42CFRPart2 stands in ActCode and in a system of its own."""
_BY_LOWER = {**{one.lower(): one for one in _ALIASES.values()}, **{name.lower(): one for name, one in _ALIASES.items()}}


def system_of(url: str) -> str:
    """A code system by its first name."""
    plain = url.strip()
    return _ALIASES.get(plain) or _BY_LOWER.get(plain.lower(), plain)


@cache
def above(system: str, code: str) -> frozenset[str] | None:
    """The codes that a code is a kind of, itself included; None for a code that is not in the part that is known."""
    rows = tables()["above"].get(system, {})
    return frozenset((code, *rows[code])) if code in rows else None


def is_a(system: str, code: str, ancestor: str) -> bool:
    """Whether a code is another, or a kind of it."""
    return code == ancestor or ancestor in (above(system, code) or ())


def rank(code: str) -> int | None:
    """The rank of a confidentiality code; None for what is none."""
    return RANKS.index(code) if code in RANKS else None


def is_sensitivity(code: str) -> bool:
    """Whether an ActCode is a kind of sensitive information."""
    return above(ACT_CODE, code) is not None


def purpose_code(text: str) -> str:
    """A purpose of use as tokens write it (``TREAT``, ``system|TREAT``, ``urn:oid:…#TREAT``) as the plain code of ActReason.

    What is of another system stays whole, so that it equals nothing of ActReason.
    """
    for mark in ("|", "#"):
        system, found, code = text.rpartition(mark)
        if found:
            return code if system_of(system) == ACT_REASON else text
    return text
