"""A provision that denies elements hides these, where the rule set says which they are; the resource it leaves alone."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fhirshield.cli import main
from fhirshield.errors import OperatorError
from fhirshield.policy.load import loads
from tests.consent.material import consent, consent5, provision
from tests.consent.test_command import SETTINGS
from tests.consent.test_enforced import ON, RULES, registrar, ward
from tests.consent.test_properties import attributes
from tests.parts import count
from tests.world import Reply, World

CONTACT, JOB = "urn:elements|contact", "urn:elements|job"
ELEMENTS: list[dict[str, Any]] = [
    {"id": "contact", "codes": [CONTACT], "expressions": ["Patient.telecom | Patient.address"],
     "redact": [{"resources": ["Patient"], "path": path, "with": "remove"} for path in ("$.telecom", "$.address")]},
    {"id": "job", "codes": [JOB], "redact": [{"resources": ["Account"], "path": "$.description", "with": "remove"}]},
]  # fmt: skip
WITH: Any = {**RULES, "consent_elements": ELEMENTS}


def denying(code: str = CONTACT, *within: Any, **said: Any) -> dict[str, Any]:
    """A permit, but for elements."""
    return provision("permit", provision("deny", *within, code=code, **said))


async def shown(here: World, token: str, name: str) -> Reply:
    """A patient with a telephone, as it is shown."""
    here.store.save(
        {"resourceType": "Patient", "id": name, "telecom": [{"system": "phone", "value": "five-five-five"}], "gender": "female"}
    )
    return await here.ask(f"/Patient/{name}", token)


async def case(folder: Path, *consents: dict[str, Any], settings: Any = ON, rules: Any = WITH) -> bool | None:
    """Whether the doctor sees the telephone; None where not even the patient."""
    async with ward(folder, *consents, settings=settings, rules=rules) as (here, token):
        answer = await shown(here, token, "a")
        assert answer.status in {200, 404}, answer.body
        return b"five-five-five" in answer.body if answer.status == 200 else None


async def test_an_element_is_hidden_where_a_consent_denies_it_and_marks_are_alike(tmp_path: Path) -> None:
    async with ward(tmp_path, consent("c1", "a", denying()), consent("c2", "b", provision("permit")), rules=WITH) as (here, token):
        first, second = [(await shown(here, token, name)).json for name in ("a", "b")]
        assert "telecom" not in first and first["gender"] == "female"
        assert second["telecom"] == [{"system": "phone", "value": "five-five-five"}]
        assert first["meta"]["security"] == second["meta"]["security"]
        assert first["meta"]["security"][0]["code"] == "REDACTED"
        assert (await here.ask("/Patient?telecom=555", token)).status == 403
        found = (await here.ask("/Patient", token)).json
        assert [len(entry["resource"].get("telecom", [])) for entry in found["entry"]] == [0, 1]
        record = next(one for one in reversed(here.records()) if one["interaction"] == "search-type")
        assert record["redacted"] == {"contact": 1}
        assert b"five-five-five" in (await here.ask("/Patient/a", registrar(here))).body  # no Consent is asked of a registrar


DOCTOR = "Practitioner/dr-reed"
CASES: list[tuple[str, bool | None, list[dict[str, Any]]]] = [
    ("of another purpose", True, [consent("c", "a", denying(purpose="HMARKT"))]),
    ("of this purpose", False, [consent("c", "a", denying(purpose="TREAT"))]),
    ("of another type", True, [consent("c", "a", denying(cls="Observation"))]),
    ("of somebody else", True, [consent("c", "a", denying(actor="Practitioner/x"))]),
    ("who may be meant", False, [consent("c", "a", denying(actor="Group/unknown"))]),
    ("with an exception for her", True, [consent("c", "a", denying(CONTACT, provision("permit", actor=DOCTOR)))]),
    ("with an exception for another", False, [consent("c", "a", denying(CONTACT, provision("permit", actor="Practitioner/x")))]),
    ("with an exception of the exception", False, [consent("c", "a", denying(CONTACT, provision("permit", provision("deny", code=CONTACT), actor=DOCTOR)))]),
    ("an exception who may be meant", False, [consent("c", "a", denying(CONTACT, provision("permit", actor="Group/unknown")))]),
    ("of an element of another type", True, [consent("c", "a", denying(JOB))]),
    ("beside a code of content", False, [consent("c", "a", provision("permit", provision("deny", code=[CONTACT, "urn:c|1"])))]),
    ("a code that the rules do not name", True, [consent("c", "a", denying("urn:elements|other"))]),
    ("at the root, by a policy that permits", False, [consent("c", "a", provision("deny", code=CONTACT), policy=[{"uri": "urn:policy:open"}])]),
    ("under a permit that is not for her", True, [consent("c", "a", provision("permit", provision("deny", code=CONTACT), actor="Practitioner/x")), consent("d", "a", provision("permit"))]),
    ("among several Consents", False, [consent("c", "a", provision("permit")), consent("d", "a", denying())]),
    ("no longer in force", True, [consent("c", "a", {**denying(), "period": {"end": "2020-01-01"}}), consent("d", "a", provision("permit"))]),
    ("inactive", True, [consent("c", "a", denying(), status="inactive"), consent("d", "a", provision("permit"))]),
    ("a deny of all beside it", None, [consent("c", "a", denying()), consent("d", "a", provision("deny"))]),
    ("a permit of the element alone", None, [consent("c", "a", provision("deny", provision("permit", code=CONTACT)))]),
    ("in R5 by its code", False, [consent5("c", "a", "permit", provision(None, release="R5", code=CONTACT))]),
    ("in R5 by an expression", False, [consent5("c", "a", "permit", provision(None, release="R5", expression={"language": "text/fhirpath", "expression": "Patient.telecom | Patient.address"}))]),
    ("in R5 by another expression", None, [consent5("c", "a", "permit", provision(None, release="R5", expression={"language": "text/fhirpath", "expression": "Patient.telecom"}))]),
    ("in R5 by words of another language", None, [consent5("c", "a", "permit", provision(None, release="R5", expression={"language": "application/x", "expression": "Patient.telecom | Patient.address"}))]),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "consents"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
async def test_a_deny_of_elements_matches_as_any_deny_does(tmp_path: Path, answer: bool | None, consents: list[Any]) -> None:
    on = {"consent": {**ON["consent"], "policies": {"urn:policy:base": "ignore", "urn:policy:open": "permit"}}}
    assert await case(tmp_path, *consents, settings=on) is answer


async def test_without_such_rules_it_is_a_code_of_content(tmp_path: Path) -> None:
    assert await case(tmp_path, consent("c", "a", denying()), rules=RULES) is True


async def test_of_several_patients_any_hides_it(tmp_path: Path) -> None:
    async with ward(tmp_path, consent("c1", "a", denying(JOB)), consent("c2", "b", provision("permit")), rules=WITH) as (
        here,
        token,
    ):
        for number, subjects in enumerate((["a", "b"], ["b"])):
            here.store.save({"resourceType": "Account", "id": f"x{number}", "status": "active", "description": "secret",
                             "subject": [{"reference": f"Patient/{one}"} for one in subjects]})  # fmt: skip
        assert [b"secret" in (await here.ask(f"/Account/x{n}", token)).body for n in (0, 1)] == [False, True]


async def test_most_recent_wins_for_elements_too(tmp_path: Path) -> None:
    on = {"consent": {**ON["consent"], "conflicts": "most-recent-wins"}}
    older, newer = (consent("c", "a", denying(), dateTime=when) for when in ("2025-01-01", "2026-02-01"))
    permit = consent("d", "a", provision("permit"), dateTime="2026-01-01")
    for number, (first, answer) in enumerate(((older, True), (newer, False))):
        (tmp_path / str(number)).mkdir()
        assert await case(tmp_path / str(number), first, permit, settings=on) is answer


async def test_what_is_denied_survives_an_update_and_is_not_uncovered_by_one(tmp_path: Path) -> None:
    on = {**ON, "upstreams": [{"hidden_narrative": "drop"}]}
    async with ward(tmp_path, consent("c1", "a", denying()), settings=on, rules=WITH) as (here, token):
        seen = await shown(here, token, "a")
        edited = {**seen.json, "gender": "male"}
        answer = await here.ask("/Patient/a", token, "PUT", data=json.dumps(edited).encode(), headers={
            "If-Match": seen.headers["etag"], "Content-Type": "application/fhir+json"})  # fmt: skip
        assert answer.status == 200 and b"five-five-five" not in answer.body, answer.body
        stored = json.loads(here.store.serve("GET", ["Patient", "a"], [], "", {})[1])
        assert stored["telecom"] == [{"system": "phone", "value": "five-five-five"}] and stored["gender"] == "male"


async def test_what_is_contained_hides_it_always_unless_it_names_its_patient(tmp_path: Path) -> None:
    """A contained Patient is nobody whom Consents know."""
    rules = {**WITH, "consent_elements": [{"id": "ward", "codes": [CONTACT], "redact": [
        {"resources": ["Practitioner"], "path": "$.telecom", "with": "remove"}]}]}  # fmt: skip
    async with ward(tmp_path, consent("c1", "a", provision("permit")), rules=rules) as (here, token):
        held = {"resourceType": "Practitioner", "id": "p", "telecom": [{"value": "five-five-five"}]}
        here.store.save({"resourceType": "Observation", "id": "with", "status": "final", "code": {"text": "x"}, "contained": [held],
                         "subject": {"reference": "Patient/a"}, "performer": [{"reference": "#p"}]})  # fmt: skip
        answer = await here.ask("/Observation/with", token)
        assert answer.status == 200 and b"five-five-five" not in answer.body


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"codes": ["no-system"]}, "codes"),
        ({"redact": [{"resources": ["Patient"], "path": "$.photograph", "with": "remove"}]}, "photograph"),
        ({"redact": [{"resources": ["Patient"], "path": "$.telecom", "with": "remove", "withhold_type": True}]}, "withhold_type"),
        ({"id": "job"}, "taken"),
        ({"codes": None}, "no provision"),
        ({"codes": [JOB]}, "stands for"),
        ({"codes": ["urn:x|c\0"]}, "codes"),
        ({"codes": None, "expressions": [" "]}, "expressions"),
        ({"id": "opaque"}, "taken"),
    ],
)
def test_faults_are_told_with_their_place(change: dict[str, Any], said: str) -> None:
    first = {name: value for name, value in ({**ELEMENTS[0], "expressions": None} | change).items() if value is not None}
    with pytest.raises(OperatorError) as found:
        loads(yaml.safe_dump({**RULES, "consent_elements": [first, ELEMENTS[1]]}))
    (fault, *_) = [one for one in found.value.faults if said in str(one)]
    assert said in str(fault) and ":" in fault.where, found.value.faults


ROWS = st.fixed_dictionaries(
    {"user": st.sampled_from(("Practitioner/1", "Practitioner/2", "")), "purposes": st.sampled_from((["TREAT"], ["BTG"], []))}
)


@given(attributes(), attributes(), ROWS)
@settings(max_examples=count(1000, 100), deadline=None)
@pytest.mark.promise
def test_a_deny_of_elements_matches_where_one_of_resources_would(said: Any, within: Any, row: Any) -> None:
    """The same provision without its element denies the resource, or may, exactly where with it the element is hidden."""
    from dataclasses import replace

    from fhirshield.authorize.consent import decide, denied
    from fhirshield.fhir.consent import parse
    from fhirshield.policy.consent import Decision
    from tests.consent.test_tables import POLICY, asked

    said.pop("code", None)
    deny = provision("deny", provision("permit", **within), **said)
    of_element = copy.deepcopy(deny)
    of_element["code"] = [{"coding": [{"system": "urn:elements", "code": "contact"}]}]
    policy = replace(POLICY, elements=frozenset((("urn:elements", "contact"),)))
    whole, part = (parse(consent("c", "p", provision("permit", one)), ()) for one in (deny, of_element))
    hidden = denied((part,), policy, *asked(row))
    assert (hidden == {("urn:elements", "contact")}) == (decide([whole], policy, *asked(row)).decision is Decision.DENY)
    assert decide([part], policy, *asked(row)).decision is Decision.PERMIT


async def test_an_edit_that_makes_it_another_patients_uncovers_nothing_and_tells_nothing(tmp_path: Path) -> None:
    """Found by pairs of servers: whose it would be was not yet known when the edit was held against what it uncovers."""
    rules = {**RULES, "consent_elements": [{"id": "notes", "codes": [CONTACT], "redact": [
        {"resources": ["Observation"], "path": "$.note", "with": "remove"}]}]}  # fmt: skip
    on = {**ON, "upstreams": [{"hidden_narrative": "drop"}]}
    async with ward(tmp_path, consent("c1", "a", denying()), consent("c2", "b", provision("permit")), settings=on, rules=rules) as (
        here,
        token,
    ):
        answers = []
        for name, more in (("with", {"note": [{"text": "five-five-five"}]}), ("without", {})):
            one = {
                "resourceType": "Observation",
                "id": name,
                "status": "final",
                "code": {"text": "x"},
                "subject": {"reference": "Patient/a"},
            }
            here.store.save({**one, **more})
            for change in ({"subject": {"reference": "Patient/b"}}, {"status": "amended"}):
                body = json.dumps({**one, **change}).encode()
                answers.append(await here.ask(f"/Observation/{name}", token, "PUT", data=body, headers={"Content-Type": "application/fhir+json"}))  # fmt: skip
        assert [answer.status for answer in answers] == [403, 200, 403, 200] and answers[0].body == answers[2].body
        assert not any(b"five-five-five" in answer.body for answer in answers)


def test_check_names_what_is_let_out_on_purpose_and_what_nothing_denies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = {"resources": ["Patient"], "path": "$.telecom[*].value", "with": "mask", "length": "kept"}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({**RULES, "consent_elements": [{**ELEMENTS[0], "redact": [mask]}]}))
    (tmp_path / "fhirshield.yaml").write_text(
        yaml.safe_dump({name: value for name, value in SETTINGS.items() if name != "consent"})
    )
    assert main(["check", str(tmp_path / "fhirshield.yaml")]) == 0
    told = capsys.readouterr().out
    assert (
        "dead: contact: no Consent is asked" in told
        and "disclosure: contact: `$.telecom[*].value` masked with its length kept" in told
    )
