"""Synthetic patients: names, addresses, identifiers, notes, results, medication, sensitive conditions. All invented."""

from __future__ import annotations

import random
from typing import Any

Resource = dict[str, Any]

GIVEN = ("Ada", "Basil", "Carla", "Dmitri", "Elin", "Farid", "Greta", "Hugo", "Imani", "Jonas", "Keiko", "Lior", "Mara",
         "Nils", "Oona", "Pavel", "Quin", "Rosa", "Sami", "Tilda", "Umar", "Vera", "Wim", "Xenia", "Yusuf", "Zoe")  # fmt: skip
FAMILY = ("Quill", "Ashby", "Bramble", "Coombe", "Dunmore", "Elder", "Fenwick", "Garnet", "Hollis", "Iver", "Jessop",
          "Kettle", "Larkin", "Merrow", "Nettle", "Orchard", "Penn", "Quarry", "Rook", "Sorrel")  # fmt: skip
STREETS = ("Inkwell Lane", "Harbour Street", "Mill Road", "Juniper Close", "Chapel Hill", "Orchard Way")
CITIES = (("Quillham", "VT", "05401"), ("Port Elder", "ME", "04101"), ("Larkfield", "NH", "03601"), ("Merrowton", "MA", "01201"))
CONDITIONS = (
    ("http://snomed.info/sct", "195967001", "Asthma"),
    ("http://snomed.info/sct", "44054006", "Type 2 diabetes mellitus"),
    ("http://snomed.info/sct", "38341003", "Hypertensive disorder"),
    ("http://snomed.info/sct", "35489007", "Depressive disorder"),
    ("http://snomed.info/sct", "86406008", "Human immunodeficiency virus infection"),
    ("http://snomed.info/sct", "7200002", "Alcoholism"),
)
LABS = (
    ("4548-4", "Hemoglobin A1c", "%", 48, 92, 10),
    ("2093-3", "Cholesterol", "mg/dL", 1400, 2600, 10),
    ("718-7", "Hemoglobin", "g/dL", 110, 170, 10),
)
VITALS = (("8867-4", "Heart rate", "/min", 55, 105, 1), ("8310-5", "Body temperature", "Cel", 360, 391, 10))
DRUGS = ("Salbutamol 100 microgram inhaler", "Metformin 500 mg tablet", "Lisinopril 10 mg tablet", "Sertraline 50 mg tablet")
NOTES = (
    "{name} says the neighbours on {street} are loud and sleeps badly.",
    "Spoke with {name} on the phone ({phone}); will come with a relative.",
    "{name} asks not to be called at work.",
)
SSN = "http://hl7.org/fhir/sid/us-ssn"
MRN = "http://hospital.example/mrn"


def generate(count: int = 36, seed: int = 7) -> list[Resource]:
    """Staff and ``count`` patients with all that is recorded of them; the same for the same seed."""
    chance = random.Random(seed)
    resources = _staff()
    for number in range(1, count + 1):
        resources += _patient(f"pat-{number}", chance)
    return resources


def _staff() -> list[Resource]:
    return [
        {"resourceType": "Organization", "id": "hospital", "active": True, "name": "Quillham General"},
        {
            "resourceType": "Practitioner",
            "id": "dr-reed",
            "name": [{"family": "Reed", "given": ["Nora"]}],
            "telecom": [{"system": "phone", "value": "555-0199"}],
        },
        {"resourceType": "Practitioner", "id": "nurse-vale", "name": [{"family": "Vale", "given": ["Tom"]}]},
    ]


def _patient(identity: str, chance: random.Random) -> list[Resource]:
    given, family = chance.choice(GIVEN), chance.choice(FAMILY)
    street = f"{chance.randint(1, 99)} {chance.choice(STREETS)}"
    city, state, zip_code = chance.choice(CITIES)
    phone = f"555-01{chance.randint(0, 99):02d}-{chance.randint(0, 9999):04d}"
    name = f"{given} {family}"
    patient: Resource = {
        "resourceType": "Patient",
        "id": identity,
        "text": {
            "status": "generated",
            "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{name}, {street}, {city}</div>',
        },
        "identifier": [
            {"system": MRN, "value": f"MRN-{chance.randint(10000, 99999)}"},
            {
                "type": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "SS"}]},
                "system": SSN,
                "value": f"9{chance.randint(0, 99):02d}-{chance.randint(10, 99)}-{chance.randint(1000, 9999)}",
            },
        ],
        "active": True,
        "name": [{"use": "official", "family": family, "given": [given, chance.choice(GIVEN)]}],
        "telecom": [
            {"system": "phone", "value": phone, "use": "home"},
            {"system": "email", "value": f"{given}.{family}@mail.example".lower()},
        ],
        "gender": chance.choice(("female", "male")),
        "birthDate": f"{chance.randint(1932, 2015)}-{chance.randint(1, 12):02d}-{chance.randint(1, 28):02d}",
        "address": [{"line": [street], "city": city, "state": state, "postalCode": zip_code, "country": "US"}],
        "contact": [
            {"name": {"family": family, "given": [chance.choice(GIVEN)]}, "telecom": [{"system": "phone", "value": phone}]}
        ],
        "generalPractitioner": [{"reference": "Practitioner/dr-reed", "display": "Nora Reed"}],
    }
    if chance.random() < 0.06 and identity != "pat-1":
        patient["meta"] = {"security": [{"system": "http://hospital.example/labels", "code": "VIP"}]}
    subject = {"reference": f"Patient/{identity}", "display": name}
    note = chance.choice(NOTES).format(name=name, street=street, phone=phone)
    return [patient, *_record(identity, subject, note, chance)]


def _record(identity: str, subject: Resource, note: str, chance: random.Random) -> list[Resource]:
    day = f"2025-{chance.randint(1, 12):02d}-{chance.randint(1, 28):02d}"
    found: list[Resource] = [
        {
            "resourceType": "Encounter",
            "id": f"{identity}-enc",
            "status": "finished",
            "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"},
            "subject": subject,
            "period": {"start": day, "end": day},
            "serviceProvider": {"reference": "Organization/hospital", "display": "Quillham General"},
        }
    ]
    for index, (system, code, text) in enumerate(chance.sample(CONDITIONS, 2)):
        found.append(
            {
                "resourceType": "Condition",
                "id": f"{identity}-con-{index}",
                "clinicalStatus": {
                    "coding": [{"system": "http://terminology.hl7.org/CodeSystem/condition-clinical", "code": "active"}]
                },
                "code": {"coding": [{"system": system, "code": code, "display": text}], "text": text},
                "subject": subject,
                "onsetDateTime": f"{chance.randint(2001, 2024)}-05-01",
                "note": [{"text": note}],
            }
        )
    for index, row in enumerate((*LABS, *VITALS)):
        found.append(
            _observation(f"{identity}-obs-{index}", row, "laboratory" if index < len(LABS) else "vital-signs", subject, day, chance)
        )
    found.append(
        {
            "resourceType": "MedicationRequest",
            "id": f"{identity}-med",
            "status": "active",
            "intent": "order",
            "medicationCodeableConcept": {"text": chance.choice(DRUGS)},
            "subject": subject,
            "authoredOn": day,
            "requester": {"reference": "Practitioner/dr-reed", "display": "Nora Reed"},
            "dosageInstruction": [{"text": "one each morning"}],
        }
    )
    found.append(
        {
            "resourceType": "Coverage",
            "id": f"{identity}-cov",
            "status": "active",
            "subscriberId": f"W{chance.randint(100000000, 999999999)}",
            "beneficiary": subject,
            "payor": [{"reference": "Organization/hospital"}],
        }
    )
    return found


def _observation(identity: str, row: Any, category: str, subject: Resource, day: str, chance: random.Random) -> Resource:
    code, text, unit, low, high, scale = row
    amount = chance.randint(low, high)
    return {
        "resourceType": "Observation",
        "id": identity,
        "status": "final",
        "category": [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": category}]}],
        "code": {"coding": [{"system": "http://loinc.org", "code": code, "display": text}], "text": text},
        "subject": subject,
        "effectiveDateTime": day,
        "performer": [{"reference": "Practitioner/nurse-vale", "display": "Tom Vale"}],
        "valueQuantity": {
            "value": amount / scale if scale > 1 else amount,
            "unit": unit,
            "system": "http://unitsofmeasure.org",
            "code": unit,
        },
    }
