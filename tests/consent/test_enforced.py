"""Consents decide what leaves, on a running shield: from their source, fresh, by the patients of each resource."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.consent.material import consent, consent5, provision
from tests.simulators.server import Simulator
from tests.world import OPEN, World, world

ON: dict[str, Any] = {"consent": {"policies": {"urn:policy:base": "ignore"}, "exempt_roles": ["registrar"]}}
INPUTS = ["Consent", "CareTeam", "Group", "PractitionerRole", "RelatedPerson", "Patient.link", "meta.security"]
RULES: Any = {"rules": [
    {**OPEN["rules"][0], "allow": {"interactions": ["*"], "resources": ["*"]}},
    {"id": "registry", "who": {"roles": ["registrar"]}, "allow": {"interactions": ["*"], "resources": ["*"], "policy_inputs": INPUTS, "delete_unseen": True}},
]}  # fmt: skip
PERMIT, DENY = provision("permit"), provision("deny")


def fill(here: World, *consents: dict[str, Any]) -> None:
    """Patients a, b and c, an observation each, and Consents."""
    here.store.clear()
    for name in ("a", "b", "c"):
        subject = {"reference": f"Patient/{name}"}
        here.store.save({"resourceType": "Patient", "id": name, "name": [{"family": name}]})
        here.store.save(
            {"resourceType": "Observation", "id": f"o-{name}", "status": "final", "code": {"text": "x"}, "subject": subject}
        )
    here.store.save({"resourceType": "Practitioner", "id": "dr-reed", "name": [{"family": "Reed"}]})
    for one in consents:
        here.store.save(one)


@contextlib.asynccontextmanager
async def ward(folder: Path, *consents: dict[str, Any], settings: Any = ON, rules: Any = RULES) -> AsyncIterator[tuple[World, str]]:
    """A world with these Consents, and a doctor's token."""
    async with world(folder, rules, settings, make=Simulator) as here:
        fill(here, *consents)
        yield here, here.token("user/*.cruds", purpose_of_use="TREAT")


def registrar(here: World) -> str:
    return here.token("user/*.cruds", roles=["registrar"], fhirUser="Practitioner/registrar")


def asked_of(here: World, name: str) -> int:
    """How often the upstream was asked for a type with the shield's own questions aside."""
    return sum(1 for _, target, _ in here.seen if target.startswith(f"/fhir/{name}".encode()) and b"_id=fhirshield" not in target)


async def ids(here: World, token: str, query: str) -> list[str]:
    answer = await here.ask(query, token)
    assert answer.status == 200, answer.body
    return sorted(entry["resource"]["id"] for entry in answer.json.get("entry", ()) if entry["search"]["mode"] != "outcome")


@pytest.mark.promise
async def test_what_is_shown_is_what_the_patient_permits(tmp_path: Path) -> None:
    async with ward(tmp_path, consent("c1", "a", PERMIT), consent("c2", "b", DENY)) as (here, token):
        assert await ids(here, token, "/Patient") == ["a"]
        assert await ids(here, token, "/Observation") == ["o-a"]
        assert (await here.ask("/Patient/a", token)).status == 200
        hidden, absent = [await here.ask(f"/Patient/{name}", token) for name in ("b", "nobody")]
        assert hidden.status == absent.status == 404 and hidden.body == absent.body
        assert (here.records()[-2]["reason"], here.records()[-2]["rule"]) == (
            "no-consent",
            "Consent/c2/_history/1 Consent.provision",
        )
        everything = await here.ask("/Patient/b/$everything", token)
        assert everything.status == 404
        found = await here.ask("/Observation?_include=Observation:subject&_has=x", token)
        assert found.status == 400
        assert await ids(here, token, "/Observation?patient:Patient.name=b") == []
        assert (await here.ask("/Observation?_summary=count", token)).json["total"] == 1
        assert (await here.ask("/Practitioner/dr-reed", token)).status == 200


@pytest.mark.promise
async def test_a_search_over_many_patients_makes_one_consent_query(tmp_path: Path) -> None:
    async with ward(tmp_path) as (here, token):
        for number in range(30):
            here.store.save({"resourceType": "Patient", "id": f"p{number}"})
            here.store.save(consent(f"k{number}", f"p{number}", PERMIT))
        found = await here.ask("/Patient?_count=50", token)
        assert len(found.json["entry"]) == 30 and asked_of(here, "Consent") == 1
        await here.ask("/Patient?_count=50", token)
        assert asked_of(here, "Consent") == 1  # warm: nobody is asked


@pytest.mark.promise
async def test_a_consent_written_through_the_shield_rules_the_next_request(tmp_path: Path) -> None:
    async with ward(tmp_path, consent("c1", "a", PERMIT)) as (here, token):
        assert (await here.ask("/Patient/a", token)).status == 200
        clerk = registrar(here)
        revoked = await here.ask("/Consent/c1", clerk, "PUT", json=consent("c1", "a", DENY))
        assert revoked.status == 200, revoked.body
        assert (await here.ask("/Patient/a", token)).status == 404
        given = await here.ask("/Consent", clerk, "POST", json={k: v for k, v in consent("x", "b", PERMIT).items() if k != "id"})
        assert given.status == 201, given.body
        assert (await here.ask("/Patient/b", token)).status == 200
        patch = [{"op": "replace", "path": "/status", "value": "inactive"}]
        kind = {"Content-Type": "application/json-patch+json"}
        assert (
            await here.ask(given.headers["location"].split("/_history")[0], clerk, "PATCH", json=patch, headers=kind)
        ).status == 200
        assert (await here.ask("/Patient/b", token)).status == 404
        entry = {"resource": consent("c1", "a", PERMIT), "request": {"method": "PUT", "url": "Consent/c1"}}
        bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [entry]}
        assert (await here.ask("", clerk, "POST", json=bundle)).status == 200
        assert (await here.ask("/Patient/a", token)).status == 200
        assert (await here.ask("/Consent/c1", clerk, "DELETE")).status == 204
        assert (await here.ask("/Patient/a", token)).status == 404


@pytest.mark.promise
async def test_a_consent_written_behind_our_back_binds_within_its_age(tmp_path: Path) -> None:
    settings = {"consent": {**ON["consent"], "max_age": "300ms"}}
    async with ward(tmp_path, consent("c1", "a", PERMIT), settings=settings) as (here, token):
        assert (await here.ask("/Patient/a", token)).status == 200
        here.store.save(consent("c1", "a", DENY))
        await asyncio.sleep(0.35)
        assert (await here.ask("/Patient/a", token)).status == 404


@pytest.mark.promise
async def test_a_source_that_is_away_is_503_for_what_is_absent_too(tmp_path: Path) -> None:
    settings = {"consent": {**ON["consent"], "source": {"url": "http://127.0.0.1:9/fhir"}}}
    async with ward(tmp_path, consent("c1", "a", PERMIT), settings=settings) as (here, token):
        for path in (
            "/Patient/a",
            "/Patient/nobody",
            "/Patient",
            "/Patient?name=nobody",
            "/Practitioner/dr-reed",
            "/Patient/a/_history",
        ):
            answer = await here.ask(path, token)
            assert answer.status == 503 and answer.headers["retry-after"], path
        assert (await here.ask("/Patient/a", registrar(here))).status == 503


async def test_a_source_that_goes_away_is_noticed_and_never_yesterdays_answer(tmp_path: Path) -> None:
    settings = {"consent": {**ON["consent"], "max_age": "300ms"}}
    async with ward(tmp_path, consent("c1", "a", PERMIT), settings=settings) as (here, token):
        assert (await here.ask("/Patient/a", token)).status == 200
        serve = here.store.serve

        def broken(method: str, segments: list[str], *rest: Any) -> Any:
            return (500, "{}", []) if segments[:1] == ["Consent"] else serve(method, segments, *rest)

        here.store.serve = broken
        await asyncio.sleep(0.35)
        assert [(await here.ask(path, token)).status for path in ("/Patient/a", "/Patient/nobody")] == [503, 503]
        here.store.serve = serve
        assert (await here.ask("/Patient/a", token)).status == 200


async def test_consents_are_kept_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with world(tmp_path / "other", RULES, make=Simulator) as other:
        settings = {"consent": {**ON["consent"], "source": {"url": other.upstream}}}
        async with ward(tmp_path, settings=settings) as (here, token):
            other.store.clear()
            made = consent5("c1", "a", "permit")
            made["subject"] = {"reference": f"{here.upstream}/Patient/a"}
            other.store.save(made)
            other.store.save(consent("c2", "b", PERMIT))
            assert await ids(here, token, "/Patient") == ["a", "b"]


async def test_what_cannot_be_enforced_denies_that_patient_alone(tmp_path: Path) -> None:
    odd = [
        consent("c1", "a", PERMIT, policy=[{"uri": "urn:unheard-of"}]),
        consent("c2", "b", PERMIT) | {"modifierExtension": [{"url": "urn:x", "valueBoolean": True}]},
        consent("c3", "c", PERMIT),
    ]
    async with ward(tmp_path, *odd) as (here, token):
        assert await ids(here, token, "/Patient") == ["c"]
        assert here.records()[-1]["withheld"] == {"consent-unsupported": 2}


@pytest.mark.promise
async def test_a_link_joins_records_only_when_both_say_so_and_then_only_tightens(tmp_path: Path) -> None:
    async with ward(tmp_path, consent("c1", "a", PERMIT), consent("c2", "b", DENY)) as (here, token):
        links = [{"other": {"reference": "Patient/b"}, "type": "seealso"}]
        here.store.save({"resourceType": "Patient", "id": "a", "link": links})
        assert (await here.ask("/Patient/a", token)).status == 200  # b says nothing of it
        back = [{"other": {"reference": "Patient/a"}, "type": "seealso"}]
        here.store.save({"resourceType": "Patient", "id": "c", "link": back})
        assert (await here.ask("/Patient/c", token)).status == 404  # a's permit is not c's
        clerk = registrar(here)
        joined = await here.ask("/Patient/b", clerk, "PUT", json={"resourceType": "Patient", "id": "b", "link": back})
        assert joined.status == 200, joined.body
        assert (await here.ask("/Patient/a", token)).status == 404  # b's deny tightens
        forged = {"resourceType": "Patient", "id": "a", "link": []}
        assert (await here.ask("/Patient/a", token, "PUT", json=forged)).status == 404


async def test_a_patient_reads_the_own_record_unless_settings_ask(tmp_path: Path) -> None:
    for own, wanted in (("open", 200), ("consent", 404)):
        folder = tmp_path / own
        folder.mkdir()
        async with ward(folder, settings={"consent": {**ON["consent"], "own_record": own}}) as (here, _):
            token = here.token("patient/*.rs", patient="a", fhirUser="Patient/a")
            assert (await here.ask("/Patient/a", token)).status == wanted
            assert (await here.ask("/Observation/o-a", token)).status == wanted
            assert (await here.ask("/Observation/o-b", token)).status == 404
            launched = here.token("patient/*.rs", patient="a", fhirUser="Practitioner/1")
            assert (await here.ask("/Patient/a", launched)).status == 404


async def test_several_patients_must_all_permit_and_unknown_ones_deny(tmp_path: Path) -> None:
    async with ward(tmp_path, consent("c1", "a", PERMIT), consent("c2", "b", DENY)) as (here, token):
        actors = [{"actor": {"reference": f"Patient/{name}"}, "status": "accepted"} for name in ("a", "b")]
        here.store.save({"resourceType": "Appointment", "id": "both", "status": "booked", "participant": actors})
        here.store.save({"resourceType": "Appointment", "id": "one", "status": "booked", "participant": actors[:1]})
        for name, subject in (("group", {"reference": "Group/g"}), ("logical", {"identifier": {"value": "7"}}), ("none", None)):
            made = {"resourceType": "Observation", "id": name, "status": "final", "code": {"text": "x"}}
            here.store.save(made | ({"subject": subject} if subject else {}))
        here.store.save({"resourceType": "Device", "id": "mine", "patient": {"reference": "Patient/b"}})
        here.store.save({"resourceType": "Device", "id": "loose"})
        here.store.save(
            {
                "resourceType": "Provenance",
                "id": "pa",
                "target": [{"reference": "Observation/o-a"}],
                "recorded": "2026-01-01T00:00:00Z",
                "agent": [],
            }
        )
        here.store.save(
            {
                "resourceType": "Provenance",
                "id": "pb",
                "target": [{"reference": "Observation/o-b"}],
                "recorded": "2026-01-01T00:00:00Z",
                "agent": [],
            }
        )
        here.store.save(
            {
                "resourceType": "Group",
                "id": "g",
                "type": "person",
                "actual": True,
                "member": [{"entity": {"reference": "Patient/b"}}],
            }
        )
        wanted = {"Appointment/both": 404, "Appointment/one": 200, "Observation/group": 404, "Observation/logical": 404, "Observation/none": 404,
                  "Device/mine": 404, "Device/loose": 200, "Provenance/pa": 200, "Provenance/pb": 404, "Group/g": 404}  # fmt: skip
        assert {name: (await here.ask(f"/{name}", token)).status for name in wanted} == wanted


async def test_what_is_contained_about_somebody_else_asks_that_patient_too(tmp_path: Path) -> None:
    async with ward(tmp_path, consent("c1", "a", PERMIT), consent("c2", "b", DENY)) as (here, token):
        inner = {
            "resourceType": "Observation",
            "id": "x",
            "status": "final",
            "code": {"text": "x"},
            "subject": {"reference": "Patient/b"},
        }
        for name, held in (("bad", inner), ("good", {**inner, "subject": {"reference": "Patient/a"}})):
            here.store.save({"resourceType": "Condition", "id": name, "subject": {"reference": "Patient/a"}, "contained": [held]})
        assert [(await here.ask(f"/Condition/{name}", token)).status for name in ("bad", "good")] == [404, 200]


async def test_members_of_teams_are_looked_up_and_changes_bind(tmp_path: Path) -> None:
    team = provision("permit", actor="CareTeam/t")
    group = provision("deny", actor="Group/g")
    of = {
        "resourceType": "PractitionerRole",
        "id": "r",
        "practitioner": {"reference": "Practitioner/dr-reed"},
        "organization": {"reference": "Organization/o"},
    }
    async with ward(tmp_path, consent("c1", "a", team), consent("c2", "b", PERMIT), consent("c3", "b", group), consent("c4", "c", provision("permit", actor="Organization/o"))) as (here, token):  # fmt: skip
        clerk = registrar(here)
        assert await ids(here, token, "/Patient") == []  # nobody knows who is in team, group or organization
        me = {"reference": "Practitioner/dr-reed"}
        here.store.save({"resourceType": "CareTeam", "id": "t", "status": "active", "participant": []})
        here.store.save(
            {
                "resourceType": "Group",
                "id": "g",
                "type": "practitioner",
                "actual": True,
                "member": [{"entity": {"reference": "Practitioner/other"}}],
            }
        )
        here.store.save({"resourceType": "Organization", "id": "o"})
        made = {"resourceType": "CareTeam", "id": "t", "status": "active", "participant": [{"member": me}]}
        assert (await here.ask("/CareTeam/t", clerk, "PUT", json=made)).status == 200
        assert await ids(here, token, "/Patient") == ["a"]  # of the group it is known by now that nobody knows
        assert (await here.ask("/PractitionerRole", clerk, "POST", json={k: v for k, v in of.items() if k != "id"})).status == 201
        assert await ids(here, token, "/Patient") == ["a", "c"]
        joined: Any = {
            "resourceType": "Group",
            "id": "g",
            "type": "practitioner",
            "actual": True,
            "member": [{"entity": {"reference": "Practitioner/dr-reed"}, "inactive": True}],
        }
        assert (await here.ask("/Group/g", clerk, "PUT", json=joined)).status == 200
        assert await ids(here, token, "/Patient") == ["a", "b", "c"]
        joined["member"][0].pop("inactive")
        assert (await here.ask("/Group/g", clerk, "PUT", json=joined)).status == 200
        assert await ids(here, token, "/Patient") == ["a", "c"]


async def test_residual_rules_of_a_token_hold(tmp_path: Path) -> None:
    conf = "http://terminology.hl7.org/CodeSystem/v3-Confidentiality"
    async with ward(tmp_path, settings={}) as (here, _):
        for name, code in (("n", "N"), ("r", "R")):
            here.store.save(
                {
                    "resourceType": "Condition",
                    "id": name,
                    "subject": {"reference": "Patient/a"},
                    "meta": {"security": [{"system": conf, "code": code}]},
                }
            )

        async def statuses(residual: Any) -> list[int]:
            token = here.token("user/*.rs", extensions={"ihe_pcf": {"patient_id": "a", "doc_id": ["c"], "residual": residual}})
            return [(await here.ask(f"/Condition/{name}", token)).status for name in ("n", "r")]

        normal = {"type": "permit", "securityLabel": [{"system": conf, "code": "N"}]}
        assert await statuses([]) == [200, 200]
        assert await statuses([{"type": "forbid"}]) == [404, 404]
        assert await statuses([{"type": "forbid"}, normal]) == [200, 404]
        assert await statuses([{"type": "forbid", "securityLabel": [{"system": conf, "code": "R"}]}]) == [200, 404]
        assert await statuses([{"type": "forbid", "data": [{"meaning": "instance", "reference": "Condition/n"}]}]) == [404, 200]
        for odd in (
            "permit",
            {"type": "permit", "securityLabel": "N"},
            [{"type": "forbid", "unheard": 1}],
            [{"type": "forbid"}, {**normal, "unheard": 1}],
            [7],
        ):
            assert await statuses(odd) == [404, 404], odd


async def test_purpose_and_organization_of_iua_and_udap_are_known(tmp_path: Path) -> None:
    meant = provision("permit", purpose="TREAT", actor="#urn:ietf:rfc:3986|https://o1.example")
    async with ward(tmp_path, consent("c1", "a", meant)) as (here, _):
        reason = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
        for said, wanted in (
            ({"ihe_iua": {"purpose_of_use": [{"system": reason, "code": "TREAT"}], "subject_organization_id": "https://o1.example"}}, 200),
            ({"ihe_iua": {"purpose_of_use": {"system": "2.16.840.1.113883.5.8", "code": "TREAT"}, "subject_organization_id": "https://o1.example"}}, 200),
            ({"ihe_iua": {"purpose_of_use": [{"system": reason, "code": "HMARKT"}], "subject_organization_id": "https://o1.example"}}, 404),
            ({"hl7-b2b": {"purpose_of_use": ["urn:oid:2.16.840.1.113883.5.8#TREAT"], "organization_id": "https://o1.example", "consent_reference": ["http://127.0.0.1:9/Consent/1"]}}, 200),
            ({"hl7-b2b": {"purpose_of_use": ["urn:oid:2.16.840.1.113883.5.8#TREAT"], "organization_id": "https://o2.example"}}, 404),
        ):  # fmt: skip
            assert (await here.ask("/Patient/a", here.token("user/*.rs", extensions=said))).status == wanted, said


@pytest.mark.promise
async def test_nobody_writes_a_consent_into_being_for_oneself(tmp_path: Path) -> None:
    async with ward(tmp_path, consent("c1", "a", PERMIT)) as (here, token):
        mine = {k: v for k, v in consent("x", "a", provision("permit", actor="Practitioner/dr-reed")).items() if k != "id"}
        assert (await here.ask("/Consent", token, "POST", json=mine)).status == 403
        assert (await here.ask("/Consent", token, "POST", json={**mine, "patient": {"reference": "Patient/b"}})).status in {
            403,
            422,
        }
        assert (await here.ask("/Consent/c1", token, "DELETE")).status in {403, 404}
        about_b = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}, "subject": {"reference": "Patient/b"}}
        assert (await here.ask("/Observation", token, "POST", json=about_b)).status == 422
        about_a = {**about_b, "subject": {"reference": "Patient/a"}}
        assert (await here.ask("/Observation", token, "POST", json=about_a)).status == 201
