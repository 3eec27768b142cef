"""What attacks on writes by redacted callers found: hidden parts that were lost, moved or told of. Each stays closed."""

from __future__ import annotations

import copy
import datetime as dt
import json
import time
from typing import Any

import pytest
import yaml

from fhirshield.fhir import json as fhir_json
from fhirshield.policy.compile import RuleSet
from fhirshield.policy.load import loads
from fhirshield.rehearsal import Outcome, Stage, principal_from

NOW = dt.datetime(2026, 1, 5, 10, 0, tzinfo=dt.UTC)
SSN = "http://hl7.org/fhir/sid/us-ssn"
RULES = {
    "rules": [
        {
            "id": "nurse", "who": {"roles": ["*"]},
            "allow": {"interactions": ["*"], "resources": ["*"]},
            "redact": [
                {"resources": ["Patient"], "path": f"$.identifier[?@.system=='{SSN}'].value", "with": "remove"},
                {"resources": ["Patient"], "path": "$.telecom[*].value", "with": "mask", "show": {"last": 4}},
                {"resources": ["Patient"], "path": "$.address[*].line", "with": "remove"},
                {"resources": ["Patient", "Practitioner", "Organization"], "path": "$.name", "with": "remove"},
                {"resources": ["Observation"], "path": "$.note", "with": "remove"},
            ],
        }
    ]
}  # fmt: skip
STAGE = Stage(RuleSet(loads(yaml.safe_dump(RULES))), hidden_narrative="drop")
NURSE = principal_from({"roles": ["nurse"], "scopes": "user/*.cruds"})
OTHERS = [{"resourceType": kind, "id": "p1"} for kind in ("Patient", "Practitioner", "Organization")]
LAB: dict[str, Any] = {"resourceType": "Observation", "id": "o", "status": "final", "code": {"text": "x"}}


def view(stored: Any) -> Any:
    return STAGE.rehearse(NURSE, f"GET /{stored['resourceType']}/{stored['id']}", [stored], NOW).body


def put(stored: Any, new: Any) -> Outcome:
    return STAGE.rehearse(NURSE, f"PUT /{stored['resourceType']}/{stored['id']}", [stored, *OTHERS], NOW, new)


def patch(stored: Any, *operations: Any) -> Outcome:
    return STAGE.rehearse(NURSE, f"PATCH /{stored['resourceType']}/{stored['id']}", [stored, *OTHERS], NOW, list(operations))


def image(outcome: Outcome) -> Any:
    assert outcome.permit is not None and outcome.permit.writing is not None, (outcome.status, outcome.reason)
    return outcome.permit.writing.image


CONTAINED = {
    **LAB,
    "contained": [
        {"resourceType": "Patient", "id": "p1", "identifier": [{"system": SSN, "value": "HID"}], "active": True},
        {"resourceType": "Observation", "id": "o2", "status": "final", "code": {"text": "y"}, "note": [{"text": "HID"}]},
    ],
    "subject": {"reference": "#p1"},
    "hasMember": [{"reference": "#o2"}],
}


def test_contained_resources_with_hidden_parts_are_not_removed_nor_replaced() -> None:
    assert patch(CONTAINED, {"op": "remove", "path": "/contained"}).status == 403
    assert patch(CONTAINED, {"op": "remove", "path": "/contained/0"}).status == 403
    seen = view(CONTAINED)
    without = {name: value for name, value in seen.items() if name != "contained"}
    assert put(CONTAINED, without).status == 403
    for twin in (
        {"resourceType": "Patient", "id": "#p1"},
        {"resourceType": "Patient", "id": "Patient/p1"},
        {**seen["contained"][0]},
    ):
        new = copy.deepcopy(seen)
        new["contained"].insert(0, twin)
        assert put(CONTAINED, new).status in {403, 422}
    swapped = copy.deepcopy(seen)
    swapped["contained"][0] = {"resourceType": "Practitioner", "id": "p1"}
    assert put(CONTAINED, swapped).status == 403


@pytest.mark.parametrize(
    "stored",
    [
        {"telecom": [{"id": "t1", "system": "phone", "value": "555-0100-4567", "use": "home"}]},
        {"address": [{"id": "a1", "city": "Paris", "line": ["1 HID street"], "use": "home"}]},
        {"identifier": [{"id": "i1", "system": SSN, "value": "HID", "use": "official"}]},
    ],
)
def test_a_clone_of_an_entry_with_an_id_does_not_take_its_hidden_part(stored: dict[str, Any]) -> None:
    patient = {"resourceType": "Patient", "id": "p", **stored}
    (name,) = stored
    new = view(patient)
    new[name].insert(0, {**new[name][0], "use": "old"})
    assert put(patient, new).status == 403


@pytest.mark.parametrize(
    ("stored", "path", "value"),
    [
        (
            {**LAB, "subject": {"type": "Patient", "identifier": {"system": SSN, "value": "HID"}, "display": "HID"}},
            "/subject",
            {"reference": "Patient/p1"},
        ),
        ({**LAB, "subject": {"display": "HID"}}, "/subject", {"reference": "Patient/p1"}),
        (
            {"resourceType": "Patient", "id": "p", "managingOrganization": {"display": "HID"}},
            "/managingOrganization",
            {"reference": "Organization/p1"},
        ),
        ({**LAB, "subject": {"reference": "Patient/p2", "display": "HID"}}, "/subject", {"reference": "Patient/p1"}),
    ],
)
def test_a_hidden_name_does_not_stick_to_another_target(stored: dict[str, Any], path: str, value: Any) -> None:
    made = image(patch(stored, {"op": "add", "path": path, "value": value}))
    assert made[path[1:]] == value and "HID" not in json.dumps(made)


def test_a_hidden_name_stays_while_the_reference_does_and_the_writers_own_is_kept_for_a_new_one() -> None:
    stored = {**LAB, "subject": {"reference": "Patient/p1", "display": "HID"}}
    made = image(put(stored, {**LAB, "status": "amended", "subject": {"reference": "Patient/p1", "display": "mine"}}))
    assert made["subject"] == {"reference": "Patient/p1", "display": "HID"} and made["status"] == "amended"
    performer = [{"reference": "Practitioner/p1", "display": "as I call her"}]
    made = image(put(stored, {**LAB, "subject": {"reference": "Patient/p1"}, "performer": performer}))
    assert made["performer"] == performer and made["subject"]["display"] == "HID"


ENCOUNTER: dict[str, Any] = {
    "resourceType": "Encounter", "id": "e", "status": "finished", "class": {"code": "AMB"},
    "participant": [
        {"type": [{"text": "X"}], "individual": {"display": "HID A"}},
        {"type": [{"text": "Y"}], "individual": {"display": "HID B"}},
    ],
    "hospitalization": {"origin": {"display": "HID"}, "dischargeDisposition": {"text": "home"}},
}  # fmt: skip


def test_entries_that_may_hide_names_are_neither_reordered_nor_removed() -> None:
    seen = view(ENCOUNTER)
    assert "HID" not in json.dumps(seen)
    reversed_, replaced, shortened, without = (copy.deepcopy(seen) for _ in range(4))
    reversed_["participant"].reverse()
    replaced["participant"][0] = {"type": [{"text": "Z"}], "individual": {"reference": "Practitioner/p1"}}
    del shortened["participant"][0]
    del without["participant"]
    for new in (reversed_, replaced, shortened, without, {**seen, "hospitalization": {"dischargeDisposition": {"text": "ward"}}}):
        answer = put(ENCOUNTER, new)
        assert answer.status == 403 or "HID" in json.dumps(image(answer))
    gone = {name: value for name, value in seen.items() if name != "hospitalization"}
    assert put(ENCOUNTER, gone).status == 403
    added = copy.deepcopy(seen)
    added["participant"].append({"individual": {"reference": "Practitioner/p1"}})
    assert [p.get("individual") for p in image(put(ENCOUNTER, added))["participant"]] == [
        {"display": "HID A"}, {"display": "HID B"}, {"reference": "Practitioner/p1"}
    ]  # fmt: skip


def beside(text: str) -> dict[str, Any]:
    return {"extension": [{"url": "http://a.example/by", "valueReference": {"display": text}}]}


def test_what_stands_beside_a_value_goes_with_it() -> None:
    stored = {"resourceType": "Practitioner", "id": "d", "qualification": [{"code": {"text": "MD"}}], "birthDate": "1970-01-01",
              "_birthDate": beside("HID")}  # fmt: skip
    assert image(patch(stored, {"op": "add", "path": "/active", "value": True}))["_birthDate"] == beside("HID")
    assert "_birthDate" not in image(patch(stored, {"op": "replace", "path": "/birthDate", "value": "1971-01-01"}))
    listed = {"resourceType": "Person", "id": "r", "name": [{"given": ["Ann", "Bea"], "_given": [None, beside("HID")]}]}  # fmt: skip
    edit = copy.deepcopy(view(listed))
    edit["name"][0]["given"] = ["Cleo", "Bea"]
    made = image(put(listed, edit))["name"][0]
    assert made["given"] == ["Cleo", "Bea"] and made["_given"] == [None, beside("HID")]
    if edit["name"][0].pop("_given", None):  # what is seen of it is removed, and more may be there
        assert put(listed, edit).status == 403


@pytest.mark.parametrize(
    ("hidden", "operation"),
    [
        ({"reportedReference": {"display": "HID"}}, {"op": "add", "path": "/reportedBoolean", "value": True}),
        ({}, {"op": "add", "path": "/reportedBoolean", "value": True}),
    ],
)
def test_a_hidden_form_of_a_choice_tells_nothing_of_itself(hidden: dict[str, Any], operation: Any) -> None:
    stored = {"resourceType": "MedicationRequest", "id": "m", "status": "active", "intent": "order", "subject": {"reference": "Patient/p1"},
              "medicationCodeableConcept": {"text": "x"}, **hidden}  # fmt: skip
    made = image(patch(stored, operation))
    assert made["reportedBoolean"] is True and "reportedReference" not in made


def test_a_sibling_is_written_whether_or_not_one_is_hidden_there() -> None:
    for hidden in ({}, {"_given": [None, beside("HID")]}):
        stored = {
            "resourceType": "Person",
            "id": "r",
            "name": [{"given": ["Ann", "Bea"], **hidden}],
        }
        answer = patch(stored, {"op": "add", "path": "/name/0/_given", "value": [{"id": "x"}, None]})
        assert answer.status == 200, answer.reason
        assert image(answer)["name"][0]["_given"][0] == {"id": "x"}


@pytest.mark.parametrize("hidden", [0, 1, 3])
def test_the_place_of_a_refused_reference_counts_nothing(hidden: int) -> None:
    stored = {"resourceType": "Patient", "id": "p", "generalPractitioner": [{"display": f"HID {n}"} for n in range(hidden)]}
    stored = stored if hidden else {"resourceType": "Patient", "id": "p"}
    answer = put(stored, {"resourceType": "Patient", "id": "p", "generalPractitioner": [{"reference": "Practitioner/nobody"}]})
    assert answer.status == 422 and answer.expression == ("Patient.generalPractitioner.reference",)


def test_an_update_without_an_edit_changes_nothing_narrative_included() -> None:
    for text in ({}, {"text": {"status": "generated", "div": '<div xmlns="http://www.w3.org/1999/xhtml">HID</div>'}}):
        stored = {**LAB, **text}
        assert fhir_json.same(image(put(stored, view(stored))), stored)


def test_texts_with_the_shields_own_url_stay_as_they_are() -> None:
    stored = {"resourceType": "Patient", "id": "p", "maritalStatus": {"text": "see https://shield.example/fhir/x"}}
    assert fhir_json.same(image(put(stored, view(stored))), stored)
    made = image(patch(stored, {"op": "add", "path": "/active", "value": True}))
    assert made["maritalStatus"] == stored["maritalStatus"]


def test_no_small_body_costs_seconds() -> None:
    names = [{"id": "a", "text": f"n{n}"} for n in range(3000)]
    stored = {"resourceType": "Person", "id": "r", "name": names}
    begin = time.process_time()
    put(stored, {**view(stored), "name": [{"id": "a", "text": f"m{n}"} for n in range(3000)]})
    photos = [{"url": f"http://a.example/{n}"} for n in range(8000)]
    patient = {"resourceType": "Patient", "id": "p", "photo": photos}
    patch(patient, *({"op": "test", "path": "/photo/0/url", "value": "http://a.example/0"} for _ in range(400)))
    assert time.process_time() - begin < 5  # it took minutes; half a second is usual
    values = [{"system": "a", "code": str(n)} for n in range(30_000)]
    assert put(LAB, {**LAB, "code": {"coding": values}}).status == 400


@pytest.mark.parametrize("hidden", [{}, {"display": "HID"}, {"identifier": {"value": "HID"}}])
def test_an_edit_of_a_reference_tells_nothing_of_a_hidden_name_and_keeps_it(hidden: dict[str, Any]) -> None:
    stored = {**LAB, "performer": [{"reference": "Patient/p1", **hidden}]}
    edited = patch(stored, {"op": "add", "path": "/performer/0/id", "value": "b"})
    assert edited.status == 200 and image(edited)["performer"] == [{"reference": "Patient/p1", **hidden, "id": "b"}]
    twice = {**view(stored), "performer": [{"reference": "Patient/p1", "id": "b"}, {"reference": "Patient/p1"}]}
    assert put(stored, twice).status == 200
    more = patch(stored, {"op": "add", "path": "/performer/-", "value": {"reference": "Practitioner/p1"}})
    assert image(more)["performer"][0] == {"reference": "Patient/p1", **hidden}


OWN = {
    "id": "own",
    "who": {"roles": ["*"]},
    "allow": {"interactions": ["*"], "resources": ["Patient", "Observation", "Practitioner"]},
}
APP_STAGE = Stage(RuleSet(loads(yaml.safe_dump({"rules": [OWN]}))), hidden_narrative="drop")
APP = principal_from({"roles": ["patient"], "scopes": "patient/*.cruds", "patient": "a", "fhir_user": "Patient/a"})


@pytest.mark.parametrize("kind", ["Binary", "Provenance", "Device", "Group", "Bundle", "Schedule", "MessageHeader", "Linkage"])
def test_a_patients_app_learns_nothing_of_types_that_no_rule_speaks_of(kind: str) -> None:
    body = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}, "subject": {"reference": "Patient/a"}}
    stored = [
        {"resourceType": "Patient", "id": "a"},
        {"resourceType": "Practitioner", "id": "d"},
        {"resourceType": kind, "id": "there"},
    ]
    answers = [
        APP_STAGE.rehearse(APP, "POST /Observation", stored, NOW, {**body, "focus": [{"reference": f"{kind}/{name}"}]})
        for name in ("there", "nobody")
    ]
    assert [answer.status for answer in answers] == [422, 422]
    doctor = {**body, "performer": [{"reference": "Practitioner/d"}]}
    assert APP_STAGE.rehearse(APP, "POST /Observation", stored, NOW, doctor).status == 201


@pytest.mark.parametrize("name", ["_id:not=a", "_id:not=", "_id:missing=false", "_id:exact=a"])
def test_what_narrowing_rests_on_takes_no_modifier(name: str) -> None:
    assert APP_STAGE.rehearse(APP, f"GET /Patient?{name}", [{"resourceType": "Patient", "id": "a"}], NOW).status == 400


def test_tags_come_without_the_texts_that_others_gave_them() -> None:
    tag = {"system": "http://t.example", "code": "c1", "display": "of somebody else", "version": "v9", "userSelected": True}
    stored = {**LAB, "meta": {"tag": [tag]}}
    assert view(stored)["meta"]["tag"][0] == {"system": "http://t.example", "code": "c1"}
    assert image(put(stored, {**view(stored), "status": "amended"}))["meta"]["tag"] == [tag]


def deep(levels: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"url": "http://e.example", "valueString": "x"}
    for _ in range(levels):
        inner = {"url": "http://e.example", "extension": [inner]}
    return {"resourceType": "Person", "extension": [inner]}


def test_what_could_not_be_served_again_is_not_stored() -> None:
    def post(body: Any) -> int:
        return STAGE.rehearse(NURSE, f"POST /{body['resourceType']}", [], NOW, body).status

    assert post(deep(10)) == 201 and post(deep(30)) == 400
    for number in ("1e1000", "1e400", "1e-400", "1" * 101, "1." + "1" * 101):
        value = fhir_json.decode(f'{{"v":{number}}}'.encode())["v"]
        assert post({**LAB, "valueQuantity": {"value": value}}) == 422, number
    assert post({**LAB, "valueInteger": 1 << 31}) == post({**LAB, "valueInteger": 1.0}) == 422
    assert post({**LAB, "valueQuantity": {"value": fhir_json.decode(b"[1e10]")[0]}}) == 201
