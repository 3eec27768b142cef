"""What the benchmark serves and asks: distinct Patients and Bundles, rules, tokens. All synthetic."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from fhirshield.demo.issuer import Issuer

PATIENTS, BUNDLES, ENTRIES, TOKENS = 2000, 200, 100, 500
SSN = "http://hl7.org/fhir/sid/us-ssn"


def patient(number: int, chance: random.Random) -> dict[str, Any]:
    """A Patient of 2 to 4 KB."""
    words = [f"w{chance.randint(0, 99999)}" for _ in range(40)]
    return {
        "resourceType": "Patient",
        "id": f"p{number}",
        "meta": {"versionId": "3", "lastUpdated": "2026-01-01T00:00:00Z", "profile": ["http://hl7.org/fhir/us/core/StructureDefinition/us-core-patient"]},
        "text": {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{" ".join(words[:30])}</div>'},
        "extension": [
            {
                "url": "http://hl7.org/fhir/us/core/StructureDefinition/us-core-race",
                "extension": [
                    {"url": "ombCategory", "valueCoding": {"system": "urn:oid:2.16.840.1.113883.6.238", "code": "2106-3", "display": "White"}},
                    {"url": "text", "valueString": "White"},
                ],
            },
            {"url": "http://hl7.org/fhir/us/core/StructureDefinition/us-core-birthsex", "valueCode": "F"},
        ],
        "identifier": [
            {"system": "http://hospital.example/mrn", "value": f"MRN-{number}"},
            {"type": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "SS"}]}, "system": SSN, "value": f"900-10-{number:04d}"},
            {"type": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "DL"}]}, "system": "urn:oid:2.16.840.1.113883.4.3.25", "value": f"S{number}"},
        ],
        "active": True,
        "name": [{"use": "official", "family": words[0], "given": [words[1], words[2]]}, {"use": "old", "family": words[3], "given": [words[4]]}],
        "telecom": [{"system": "phone", "value": f"555-010-{number:04d}", "use": "home"}, {"system": "email", "value": f"{words[0]}@mail.example"}],
        "gender": "female",
        "birthDate": f"{chance.randint(1940, 2015)}-03-04",
        "address": [
            {
                "extension": [
                    {
                        "url": "http://hl7.org/fhir/StructureDefinition/geolocation",
                        "extension": [{"url": "latitude", "valueDecimal": 42.125}, {"url": "longitude", "valueDecimal": -72.5}],
                    }
                ],
                "line": [f"{number} Mill Road"],
                "city": "Quillham",
                "state": "VT",
                "postalCode": "05401",
            }
        ],
        "maritalStatus": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-MaritalStatus", "code": "M", "display": "Married"}]},
        "contact": [{"name": {"family": words[5]}, "telecom": [{"system": "phone", "value": "555-0199"}]}],
        "communication": [{"language": {"coding": [{"system": "urn:ietf:bcp:47", "code": "en-US"}], "text": "English"}}],
        "generalPractitioner": [{"reference": "Practitioner/7", "display": words[6]}],
        "managingOrganization": {"reference": "Organization/1", "display": words[7]},
    }  # fmt: skip


def observation(bundle: int, number: int, chance: random.Random) -> dict[str, Any]:
    """A laboratory Observation of about 3 KB, with decimals that need their digits."""
    note = " ".join(f"w{chance.randint(0, 99999)}" for _ in range(60))
    value = f"{chance.randint(1, 300)}.{chance.randint(0, 9)}0"
    reference = {"reference": f"Patient/p{bundle}", "display": "somebody"}
    coding = [{"system": "http://loinc.org", "code": "4548-4", "display": "Hemoglobin A1c/Hemoglobin.total in Blood"}]
    quantity = {"value": f"@@{value}@@", "unit": "mg/dL", "system": "http://unitsofmeasure.org", "code": "mg/dL"}
    return {
        "resourceType": "Observation",
        "id": f"o{bundle}-{number}",
        "meta": {"versionId": "1", "lastUpdated": "2026-01-01T00:00:00Z"},
        "text": {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{note}</div>'},
        "identifier": [{"system": "http://hospital.example/obs", "value": f"{bundle}-{number}"}],
        "status": "final",
        "category": [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "laboratory"}]}],
        "code": {"coding": coding, "text": "Hemoglobin A1c"},
        "subject": reference,
        "encounter": {"reference": f"Encounter/e{number}", "display": "visit"},
        "effectiveDateTime": "2025-03-04T10:00:00Z",
        "issued": "2025-03-04T10:00:00.000Z",
        "performer": [{"reference": "Practitioner/7", "display": "Nora Reed"}, {"reference": "Organization/1"}],
        "valueQuantity": quantity,
        "interpretation": [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation", "code": "N"}]}],
        "note": [{"text": note}],
        "referenceRange": [{"low": quantity, "high": quantity, "text": "normal"}],
        "component": [{"code": {"coding": coding}, "valueQuantity": quantity} for _ in range(3)],
    }  # fmt: skip


def write(folder: Path) -> None:
    """The upstream's files: ``patients/pN`` and ``bundles/N``."""
    chance = random.Random(1)
    (folder / "patients").mkdir(parents=True)
    (folder / "bundles").mkdir()
    for number in range(PATIENTS):
        (folder / "patients" / f"p{number}").write_text(json.dumps(patient(number, chance), separators=(",", ":")))
    for number in range(BUNDLES):
        entries = [
            {"fullUrl": f"http://upstream/fhir/Observation/o{number}-{i}", "resource": observation(number, i, chance), "search": {"mode": "match"}}
            for i in range(ENTRIES)
        ]  # fmt: skip
        bundle = {"resourceType": "Bundle", "type": "searchset", "total": ENTRIES, "link": [], "entry": entries}
        text = json.dumps(bundle, separators=(",", ":")).replace('"@@', "").replace('@@"', "")
        (folder / "bundles" / str(number)).write_text(text)


def rules(count: int) -> dict[str, Any]:
    """``count`` rules: half touch elements that are there; ten selectors, five conditions, a VIP deny among the first 40."""
    grant = {"interactions": ["read", "search"], "resources": ["Patient", "Observation?category=laboratory,vital-signs"]}
    found: list[dict[str, Any]] = [
        {"id": "allow", "who": {"roles": ["clinician"]}, "allow": grant},
        {"id": "vip", "who": {"roles": ["*"], "unless": "principal.vip_cleared"}, "deny": {"interactions": ["*"], "resources": ["*?_security=VIP"]}},
    ]  # fmt: skip
    present: list[tuple[str, str, dict[str, Any]]] = [
        ("Patient", f"$.identifier[?@.system=='{SSN}' || @.type.coding[?@.code=='SS']].value", {"with": "mask", "show": {"last": 4}}),
        ("Patient", "$.telecom[*].value", {"with": "mask", "show": {"last": 4}}),
        ("Patient", "$.birthDate", {"with": "generalize", "to": "year"}),
        ("Patient", "$.address[*].line", {"with": "remove"}),
        ("Patient", "$.address[*].postalCode", {"with": "generalize", "to": "zip3"}),
        ("Patient", "$.contact", {"with": "remove"}),
        ("Patient", "$.name[?@.use=='old']", {"with": "remove"}),
        ("Patient", "$.maritalStatus", {"with": "remove"}),
        ("Patient", "$.identifier[?@.type.coding[?@.code=='DL']].value", {"with": "hash"}),
        ("Observation", "$.note[*].text", {"with": "remove"}),
        ("Observation", "$.identifier[*].value", {"with": "hash"}),
        ("Observation", "$.issued", {"with": "remove"}),
        ("Observation", "$.effectiveDateTime", {"with": "generalize", "to": "month"}),
        ("Observation", "$.interpretation", {"with": "remove"}),
        ("Observation", "$.referenceRange[*].text", {"with": "remove"}),
        ("Observation", "$.performer[?@.reference=='Organization/1']", {"with": "remove"}),
        ("Observation", "$.component[*].code.text", {"with": "remove"}),
        ("Observation", "$.code.text", {"with": "remove"}),
        ("Observation?status=final", "$.encounter", {"with": "remove"}),
    ]  # fmt: skip
    absent: list[tuple[str, str, dict[str, Any]]] = [
        ("Observation?status=amended", "$.bodySite", {"with": "remove"}),
        ("Observation?category=social-history", "$.method", {"with": "remove"}),
        ("Observation?code=11557-6", "$.device", {"with": "remove"}),
        ("Patient?gender=male", "$.photo", {"with": "remove"}),
        ("Patient?active=false", "$.multipleBirthInteger", {"with": "remove"}),
        ("Patient?address-city=Nowhere", "$.deceasedDateTime", {"with": "generalize", "to": "year"}),
        ("Condition?category=problem-list-item", "$.note", {"with": "remove"}),
        ("Observation", "$.valueString", {"with": "remove"}),
        ("Observation", "$.specimen.display", {"with": "remove"}),
        ("Encounter", "$.location", {"with": "remove"}),
    ]  # fmt: skip
    for index, (resource, path, how) in enumerate(present + absent):
        who: dict[str, Any] = {"roles": ["clinician"]}
        if index % 6 == 0:
            who["when"] = f"env.hour >= 0 && principal.client != 'x{index}'"
        found.append({"id": f"r{index}", "who": who, "redact": [{"resources": [resource], "path": path, **how}]})
    number = 0
    while len(found) < count:
        role = "clinician" if number % 2 else f"role{number}"
        path = ["$.extension[?@.url=='http://x.example/%d'].valueString" % number, "$.link", "$.photo"][number % 3]
        resource = "Patient" if number % 3 != 1 else "Encounter"
        if path == "$.link":
            path = "$.length"
        found.append(
            {"id": f"f{number}", "who": {"roles": [role]}, "redact": [{"resources": [resource], "path": path, "with": "remove"}]}
        )
        number += 1
    return {"rules": found}


def tokens(issuer: Issuer, audience: str) -> list[str]:
    """Distinct callers with one granular scope among theirs."""
    scope = "user/Patient.rs user/Observation.rs?category=http://terminology.hl7.org/CodeSystem/observation-category|laboratory"
    return [
        issuer.token(audience, scope, sub=f"s{n}", fhirUser=f"Practitioner/{n}", roles=["clinician"], vip=n % 2 == 0)
        for n in range(TOKENS)
    ]
