"""Criteria: what each parameter type decides, three-valued, and what is refused."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from fhirshield.errors import CriteriaError
from fhirshield.fhir.criteria import judge, parse

OBSERVATION: dict[str, Any] = {
    "resourceType": "Observation",
    "id": "o1",
    "meta": {"security": [{"system": "http://l", "code": "VIP"}], "lastUpdated": "2026-01-01T00:00:00Z"},
    "status": "final",
    "category": [{"coding": [{"system": "http://c", "code": "laboratory"}]}],
    "code": {"text": "no coding"},
    "subject": {"reference": "Patient/p1"},
    "encounter": {"reference": "#e"},
    "effectiveDateTime": "2020-05",
    "identifier": [{"system": "http://i", "value": "A,1"}],
    "valueQuantity": {"value": Decimal("5.4"), "unit": "mg", "system": "http://u", "code": "mg"},
    "_issued": {"extension": []},
}
PATIENT: dict[str, Any] = {
    "resourceType": "Patient",
    "id": "p1",
    "name": [{"family": "Müller", "given": ["Änne"]}],
    "active": True,
    "birthDate": "1980-02-03",
}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Observation", True),
        ("Patient", False),
        ("Observation?category=laboratory", True),
        ("Observation?category=http://c|laboratory", True),
        ("Observation?category=http://d|laboratory", False),
        ("Observation?category=|laboratory", False),
        ("Observation?category=http://c|", True),
        ("Observation?category=Laboratory", None),
        ("Observation?category=x,laboratory", True),
        ("Observation?category:not=laboratory", False),
        ("Observation?category:not=x", True),
        ("Observation?code=x", None),
        ("Observation?code:not=x", None),
        ("Observation?identifier=http://i|A\\,1", True),
        ("Observation?status=final&category=laboratory", True),
        ("Observation?status=final&code=x", None),
        ("Observation?status=amended&code=x", False),
        ("Observation?subject=Patient/p1", True),
        ("Observation?subject=http://s/fhir/Patient/p1", True),
        ("Observation?subject=http://other/Patient/p1", False),
        ("Observation?subject=p1", True),
        ("Observation?subject:Patient=p1", True),
        ("Observation?subject:Group=p1", False),
        ("Observation?patient=p2", False),
        ("Observation?encounter=e", None),
        ("Observation?date=2020", True),
        ("Observation?date=2020-05-03", None),
        ("Observation?date=2021", False),
        ("Observation?date=ge2020-05", True),
        ("Observation?date=ge2020-05-10", None),
        ("Observation?date=lt2020-05", False),
        ("Observation?date=gt2019", True),
        ("Observation?date=sa2020-04", True),
        ("Observation?date=eb2020-06", True),
        ("Observation?date=sa2020-05-10", None),
        ("Observation?date=eb2020-05-10", None),
        ("Observation?date=sa2020-06", False),
        ("Observation?date=eb2020-04", False),
        ("Observation?date=ne2021", True),
        ("Observation?value-quantity=5.4", True),
        ("Observation?value-quantity=5.4|http://u|mg", True),
        ("Observation?value-quantity=5.4|http://u|kg", None),
        ("Observation?value-quantity=5", True),
        ("Observation?value-quantity=gt5.4", False),
        ("Observation?value-quantity=le5.4", True),
        ("Observation?_security=VIP", True),
        ("Observation?_security=http://m|VIP", False),
        ("*?_security=VIP", True),
        ("Observation?_id=o1", True),
        ("Observation?_lastUpdated=2026", True),
        ("Observation?performer:missing=true", True),
        ("Observation?status:missing=true", False),
    ],
)
def test_observation(text: str, answer: bool | None) -> None:
    assert judge(parse(text), ("http://s/fhir",))(OBSERVATION) is answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Patient?name=mull", True),
        ("Patient?name=anne", True),
        ("Patient?family:exact=Müller", True),
        ("Patient?family:exact=Muller", False),
        ("Patient?family:contains=LLE", True),
        ("Patient?family=x", False),
        ("Patient?active=true", True),
        ("Patient?active=false", False),
        ("Patient?birthdate=1980-02-03", True),
    ],
)
def test_patient(text: str, answer: bool | None) -> None:
    assert judge(parse(text))(PATIENT) is answer


@pytest.mark.parametrize(
    "text",
    [
        "Observations", "Observation?", "Observation?foo=x", "Observation?status", "Observation?status=",
        "Observation?code-value-quantity=x$5", "Observation?subject.name=x", "Observation?_has:x=1", "Observation?code:in=x",
        "Observation?code:text=x", "Observation?_text=x", "Observation?_content=x", "Observation?date=ap2020",
        "Observation?date=yesterday", "Observation?value-quantity=5|mg", "Observation?value-quantity=NaN",
        "Observation?status:missing=maybe", "Observation?category=a|b|c", "Patient?deceased=true", "*?status=final",
        "Observation?subject:Patient=Group/1",
    ],
)  # fmt: skip
def test_what_cannot_be_decided_is_refused(text: str) -> None:
    with pytest.raises(CriteriaError):
        parse(text)


@pytest.mark.parametrize("shape", [None, 5, "x", [], {}, [[]], {"coding": "x"}, [{"coding": [5]}]])
def test_misshapen_values_are_unknown_not_wrong(shape: Any) -> None:
    resource = {"resourceType": "Observation", "category": shape}
    assert judge(parse("Observation?category=laboratory"))(resource) is not True


def test_criteria_render_as_they_were_written() -> None:
    for text in ("Observation?category=http://c|x,y&status:not=final", "*?_security=VIP", "Patient"):
        assert str(parse(text)) == text
