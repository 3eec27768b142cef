"""Callers from whom patients and circumstances hide: by Consent, by labels, by relationship. As ``pairs``, written down by hand."""

from __future__ import annotations

import copy
import random
from typing import Any

from tests.consent.material import consent, provision
from tests.properties.pairs import ALL, GHOSTS, WORDS, Caller, Event, Resource, resource, unnamed

LIST = "category,system,kind,code\nPSY,urn:s,code,psy\nSEX,urn:s,prefix,sex\n"
SETTINGS: dict[str, Any] = {
    "upstreams": [{"hidden_narrative": "drop"}],
    "consent": {"policies": {"urn:policy:base": "ignore"}, "exempt_roles": ["cleared", "treating"]},
}
RULES: Any = {
    "sensitivity": {"lists": ["list.csv"], "inherit": ["Condition.evidence.detail"]},
    "consent_elements": [
        {
            "id": "notes",
            "codes": ["urn:elements|notes"],
            "redact": [{"resources": ["Observation"], "path": "$.note", "with": "remove"}],
        }
    ],
    "relationships": {"treating": {"patients_of": ["Encounter?participant={fhirUser}&status=in-progress"]}},
    "rules": [
        {"id": "consented", "who": {"roles": ["consented", "cleared"]}, "allow": {**ALL, "delete_unseen": True}},
        {"id": "treating", "who": {"roles": ["treating"]}, "allow": {**ALL, "delete_unseen": True, "related": "treating"}},
        {"id": "sees-all", "who": {"roles": ["consented", "treating"]}, "clearance": {"confidentiality": "V", "categories": ["*"]}},
    ],
}
HIDDEN_CLASS = provision("permit", provision("deny", cls="Condition"), purpose="TREAT")
HIDDEN_NOTES = provision(
    "permit", provision("deny", cls="Condition"), provision("deny", code="urn:elements|notes"), purpose="TREAT"
)
BASE: list[Event] = [
    *(("save", consent(f"k{name}", name, HIDDEN_NOTES if name == "p1" else HIDDEN_CLASS), 1) for name in ("p1", "p2", "p3")),
    ("save", consent("kg1", "g1", provision("deny")), 1),
    ("save", consent("kg2", "g2", provision("permit"), policy=[{"uri": "urn:unheard-of"}]), 1),
    ("save", {"resourceType": "Encounter", "id": "ward", "status": "in-progress", "class": {"code": "IMP"}, "subject": {"reference": "Patient/p1"},
              "participant": [{"individual": {"reference": "Practitioner/dr-reed"}}]}, 1),
]  # fmt: skip
"""What stands on both servers before anything else."""


def denied(rng: random.Random, identity: str) -> Resource:
    """About nobody's patient who permits: one who denies, one of whom nothing is known, or of a kind that is denied."""
    kind = rng.choice(("Patient", "Observation", "Encounter", "Condition", "Observation", "Provenance", "Group"))
    if kind == "Provenance":
        return {"resourceType": kind, "id": identity, "target": [{"reference": f"Patient/{rng.choice(GHOSTS)}"}], "recorded": "2020-01-01T00:00:00Z",
                "agent": [{"who": {"reference": "Practitioner/d1"}}]}  # fmt: skip
    if kind == "Group":
        return {
            "resourceType": kind,
            "id": identity,
            "type": "person",
            "actual": True,
            "member": [{"entity": {"reference": f"Patient/{rng.choice(GHOSTS)}"}}],
        }
    found = resource(rng, kind, identity)
    if kind in {"Observation", "Encounter"}:
        found["subject"] = rng.choice(
            ({"reference": f"Patient/{rng.choice(GHOSTS)}"}, {"identifier": {"value": "7"}}, {"reference": "Group/g1"})
        )
    return found


def sensitive(rng: random.Random, identity: str) -> Resource:
    """Labelled, or with a code of the list, or leading to what has one."""
    found = resource(rng, rng.choice(("Patient", "Observation", "Practitioner", "Encounter", "Condition")), identity)
    how = rng.randrange(3)
    if how == 0:
        return {
            **found,
            "meta": {
                "security": [{"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": rng.choice("RV")}]
            },
        }
    if how == 1:
        return {**found, "extension": [{"url": "urn:x", "valueCoding": {"system": "urn:s", "code": rng.choice(("psy", "sex-1"))}}]}
    made = resource(rng, "Condition", identity)
    return {**made, "evidence": [{"detail": [{"reference": f"Observation/{rng.choice(('gone', *GHOSTS))}"}]}]}


def unrelated(rng: random.Random, identity: str) -> Resource:
    """About other patients than the one on the ward."""
    found = resource(rng, rng.choice(("Patient", "Observation", "Encounter", "Condition")), identity)
    return found if found["resourceType"] == "Patient" else {**found, "subject": {"reference": "Patient/p2"}}


def untold(rng: random.Random, found: Resource) -> Resource:
    """Narrative may name a patient, so it is hidden; names of practitioners are not, for nobody withholds them."""
    made = copy.deepcopy(found)
    if made["resourceType"] == "Observation":
        made["text"] = {"status": "generated", "div": f"<div xmlns='http://www.w3.org/1999/xhtml'>{rng.choice(WORDS)}</div>"}
        made["subject"].pop("display", None)
        if rng.random() < 0.7:
            made["subject"]["display"] = rng.choice(WORDS)
        if made["subject"]["reference"] == "Patient/p1" and rng.random() < 0.7:  # who denies notes
            made["note"] = [{"text": rng.choice(WORDS)}]
    return made


CALLERS = (
    Caller("consented", "user/*.cruds", denied, untold, frozenset({"Observation"})),
    Caller("cleared", "user/*.cruds", sensitive, unnamed),
    Caller("treating", "user/*.cruds", unrelated, unnamed),
)
