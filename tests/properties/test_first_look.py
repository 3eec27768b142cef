"""The quick ways say what the long ones say: labels from the text of a page, patients by one element."""

from __future__ import annotations

import datetime as dt
from typing import Any

from fhirshield.authorize.labels import labels_of, unlabelled
from fhirshield.fhir.definitions import resource_types
from fhirshield.fhir.glance import Page, glance
from fhirshield.fhir.json import decoded, encode
from fhirshield.fhir.subjects import has_subject, patients_of
from fhirshield.model import Facts
from fhirshield.policy.sensitivity import compiled
from tests.generate import Generator
from tests.parts import count

LISTS = compiled(
    [("PSY", "http://snomed.info/sct", "code", "35489007"), ("ETH", "http://hl7.org/fhir/sid/icd-10-cm", "prefix", "F10")],
    {},
    {},
    "N",
)
CODES = ("F10.20", "f1020", "35489007", "35489007:1=2", 'F10"', "a\\F10", "F1\u00e9", "harmless", "resource")
ODD: tuple[Any, ...] = (
    {"link": []}, {"resource": None}, {"resource": "x"}, {"resource": {"resourceType": ["x"]}}, {"response": {"outcome": {"resourceType": "OperationOutcome"}}},
    {"resource": {"resourceType": "Parameters", "parameter": [{"resource": {"resourceType": "Patient", "id": "x"}}]}},
)  # fmt: skip
TODAY = dt.date(2026, 2, 2)


def odd(made: Generator, resource: dict[str, Any]) -> dict[str, Any]:
    """Now and then something that tells, or that looks as if the text were elsewhere."""
    chance = made.random
    if chance.random() < 0.4:
        resource["code"] = {
            "coding": [{"system": chance.choice(("", "http://snomed.info/sct", "icd-10")), "code": chance.choice(CODES)}]
        }
    if chance.random() < 0.2:
        resource["extension"] = [{"url": "urn:x", "valueCode": chance.choice(CODES)}]
    if chance.random() < 0.1:
        resource["meta"] = {"security": [{"code": "PSY"}]}
    if chance.random() < 0.1:
        resource["contained"] = [{"resourceType": "Condition", "code": {"coding": [{"code": chance.choice(CODES)}]}}]
    if chance.random() < 0.1:
        resource["resource"] = {"code": chance.choice(CODES)}
    if chance.random() < 0.1:
        resource["note"] = [{"text": '"resource":{"code":"F10"'}]
    return resource


def test_what_the_text_of_a_page_tells_is_what_a_look_at_each_resource_tells() -> None:
    quick = told = 0
    for seed in range(count(2000, 200)):
        made = Generator(seed, density=0.2, depth=3)
        names = made.random.choices(sorted(resource_types()), k=5)
        entries: list[Any] = [
            {"fullUrl": "http://u/x", "resource": odd(made, made.resource(name)), "search": {"mode": "match"}} for name in names
        ]
        if made.random.random() < 0.2:
            entries.insert(made.random.randrange(5), made.random.choice(ODD))
        page, text = decoded(encode({"resourceType": "Bundle", "type": "searchset", "entry": entries}))
        resources = [one for entry in page["entry"] if type(one := entry.get("resource")) is dict]
        whole = Page(text, resources)
        for resource in (one for one in resources if isinstance(one["resourceType"], str)):
            long = labels_of(resource, glance(resource), LISTS, Facts(), (), TODAY)
            short = unlabelled(resource, LISTS, whole)
            assert short is None or short == long, (seed, resource)
            assert unlabelled(resource, LISTS) in {None, long}, seed
            quick += short is not None
            told += long is not None and bool(long.kinds)
    assert quick > count(2000, 200) and told > count(2000, 200) / 2, (quick, told)


def test_one_element_says_whom_a_resource_is_about_as_all_of_its_type_do() -> None:
    """One value stands for a list of one, which goes the long way."""
    found = 0
    references: tuple[Any, ...] = (
        "Patient/1",
        "Group/1",
        "http://u/Patient/2",
        "http://other/Patient/3",
        "#p",
        "Patient/1/_history/2",
        "",
        None,
        7,
    )
    for name in sorted(filter(has_subject, resource_types())):
        for element in ("subject", "patient", "beneficiary", "individual", "for"):
            for reference in references:
                one = {"resourceType": name, "id": "x", element: {"reference": reference}}
                several = {**one, element: [one[element]]}
                assert patients_of(one, ("http://u",)) == patients_of(several, ("http://u",)), (name, element, reference)
                found += patients_of(one, ("http://u",)) is not None
        nothing = {"resourceType": name, "id": "x", "": {"reference": "Patient/1"}}
        assert patients_of(nothing, ()) is None or name == "Patient"
    assert found > 100
