"""Before and after, per pack: what each role sees of one patient's record. ``make golden`` writes; the diff is read."""

from __future__ import annotations

import copy
import datetime as dt
import json
import os
from typing import Any

import pytest

from fhirshield.demo.patients import generate
from fhirshield.fhir import json as fhir_json
from fhirshield.policy.compile import RuleSet
from fhirshield.policy.load import load
from fhirshield.rehearsal import Stage, principal_from
from tests.parts import ROOT

NOW = dt.datetime(2026, 1, 5, 10, 0, tzinfo=dt.UTC)
PRINCIPALS: dict[str, dict[str, Any]] = {
    "billing": {"roles": ["billing"], "purposes": ["HPAYMT"]},
    "clinician": {"roles": ["clinician"], "purposes": ["TREAT"]},
    "front-desk": {"roles": ["front-desk"]},
    "nurse": {"roles": ["nurse"], "purposes": ["TREAT"]},
    "patient-app": {"roles": ["patient"], "scopes": "patient/*.rs", "patient": "pat-1", "fhir_user": "Patient/pat-1"},
    "researcher": {"roles": ["researcher"], "purposes": ["HRESCH"]},
}
RECORD = [r for r in generate(12) if f"{r['id']}-".startswith("pat-1-") or r["resourceType"] == "Practitioner"]


def bundle(entries: list[Any]) -> str:
    whole = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": entry} for entry in entries]}
    plain = json.loads(fhir_json.encode(whole), parse_float=float)
    return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"


def check(name: str, text: str) -> None:
    path = ROOT / "tests/golden" / f"{name}.json"
    if os.environ.get("FHIRSHIELD_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text, f"{name} differs: run `make golden` and read the diff"


def test_before() -> None:
    check("before", bundle(RECORD))


@pytest.mark.parametrize("pack", sorted(PRINCIPALS))
def test_after(pack: str) -> None:
    stage = Stage(RuleSet(load(ROOT / "rules" / f"{pack}.yaml")))
    principal = principal_from(PRINCIPALS[pack])
    seen = []
    for resource in copy.deepcopy(RECORD):
        outcome = stage.rehearse(principal, f"GET /{resource['resourceType']}/{resource['id']}", [resource], NOW)
        if outcome.status == 200:
            seen.append(outcome.body)
    check(f"after-{pack}", bundle(seen))


def test_every_pack_has_a_golden_view() -> None:
    assert {path.stem for path in (ROOT / "rules").glob("*.yaml")} == set(PRINCIPALS)
