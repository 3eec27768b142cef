"""Relationships: whom a caller treats decides what is seen; they end when care ends, and nobody writes oneself into one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fhirshield.errors import OperatorError
from fhirshield.policy.load import loads
from tests.simulators.server import Simulator
from tests.world import World, world

RULES: dict[str, Any] = {
    "relationships": {
        "treating": {"patients_of": ["Encounter?participant={fhirUser}&status=in-progress", "CareTeam?participant={fhirUser}&status=active"], "max_age": "400ms"},
        "own": {"patients_of": ["Encounter?participant={fhirUser}&class=self"]},
        "house": {"patients_of": ["Encounter?service-provider={organization}"]},
        "guardian": {"patients_of": ["RelatedPerson?_id={fhirUser.id}&active=true"]},
        "unit": {"patients_of": ["Encounter?class={unit}"], "max_age": "10m"},
    },
    "rules": [
        {"id": "nurse", "who": {"roles": ["nurse"]}, "allow": {"interactions": ["read", "search", "history", "create", "update"], "resources": ["*"], "related": "treating"}},
        {"id": "house", "who": {"roles": ["house"]}, "allow": {"interactions": ["read", "search"], "resources": ["*"], "related": "house"}},
        {"id": "guardian", "who": {"roles": ["guardian"]}, "allow": {"interactions": ["read", "search"], "resources": ["*"], "related": "guardian"}},
        {"id": "unit", "who": {"roles": ["unit"]}, "allow": {"interactions": ["read", "search"], "resources": ["*"], "related": "unit"}},
        {"id": "doctor", "who": {"roles": ["doctor"]}, "allow": {"interactions": ["*"], "resources": ["*"]}},
        {"id": "not-own", "who": {"roles": ["doctor"]}, "deny": {"interactions": ["*"], "resources": ["*"], "related": "own"}},
        {"id": "desk", "who": {"roles": ["desk"]}, "allow": {"interactions": ["*"], "resources": ["*"], "policy_inputs": ["Encounter", "CareTeam"]}},
    ],
}  # fmt: skip
ME = {"reference": "Practitioner/me"}


def encounter(identity: str, patient: str, status: str = "in-progress", **over: Any) -> dict[str, Any]:
    return {
        "resourceType": "Encounter", "id": identity, "status": status, "class": {"code": "IMP"}, "subject": {"reference": f"Patient/{patient}"},
        "participant": [{"individual": ME}],
    } | over  # fmt: skip


@contextlib.asynccontextmanager
async def ward(folder: Path, rules: Any = RULES, **settings: Any) -> AsyncIterator[World]:
    settings = {
        "issuers": {"demo": {"organization": "org", "claims": {"unit": "unit"}}},
        "upstreams": [{"hidden_narrative": "drop"}],
    } | settings
    async with world(folder, rules, settings, make=Simulator) as here:
        here.store.clear()
        for name in ("a", "b", "c"):
            here.store.save({"resourceType": "Patient", "id": name})
            here.store.save({"resourceType": "Observation", "id": f"o-{name}", "status": "final", "code": {"text": "x"}, "subject": {"reference": f"Patient/{name}"},
                             "performer": [ME]})  # fmt: skip
        here.store.save({"resourceType": "Practitioner", "id": "me"})
        here.store.save(encounter("e-a", "a"))
        here.store.save(encounter("e-b", "b", "finished"))
        here.store.save(
            encounter(
                "e-c",
                "c",
                participant=[{"individual": {"reference": "Practitioner/other"}}],
                serviceProvider={"reference": "Organization/o"},
            )
        )
        yield here


def nurse(here: World, **claims: Any) -> str:
    return here.token("user/*.cruds", **({"roles": ["nurse"], "fhirUser": "Practitioner/me"} | claims))


async def seen(here: World, token: str) -> list[str]:
    found = []
    for kind in ("Patient", "Observation", "Encounter"):
        answer = await here.ask(f"/{kind}", token)
        assert answer.status == 200, answer.body
        found += [entry["resource"]["id"] for entry in answer.json.get("entry", ())]
    return sorted(found)


@pytest.mark.promise
async def test_a_grant_is_limited_to_the_patients_of_the_relationship(tmp_path: Path) -> None:
    async with ward(tmp_path) as here:
        token = nurse(here)
        assert await seen(here, token) == ["a", "e-a", "o-a"]
        assert [(await here.ask(f"/Patient/{name}", token)).status for name in ("a", "b", "c", "nobody")] == [200, 404, 404, 404]
        assert (await here.ask("/Practitioner/me", token)).status == 404  # about nobody: only beside what refers to it
        beside = await here.ask("/Observation?_include=Observation:performer", token)
        assert [entry["resource"]["id"] for entry in beside.json["entry"]] == ["o-a", "me"]
        assert await seen(here, nurse(here, fhirUser="Practitioner/nobody")) == []
        assert await seen(here, here.token("user/*.cruds", roles=["house"], org="Organization/o")) == ["c", "e-c", "o-c"]
        assert await seen(here, here.token("user/*.cruds", roles=["house"], org="https://elsewhere.example")) == []
        assert await seen(here, here.token("user/*.cruds", roles=["unit"], unit="IMP")) == [
            "a",
            "b",
            "c",
            "e-a",
            "e-b",
            "e-c",
            "o-a",
            "o-b",
            "o-c",
        ]
        for odd in ("IMP&status=x", "IM*", "", "a,IMP|", "%49MP"):
            assert await seen(here, here.token("user/*.cruds", roles=["unit"], unit=odd)) == [], odd


@pytest.mark.promise
async def test_a_deny_holds_within_a_relationship(tmp_path: Path) -> None:
    async with ward(tmp_path) as here:
        here.store.save(encounter("self", "b") | {"class": {"code": "self"}})
        token = here.token("user/*.cruds", roles=["doctor"], fhirUser="Practitioner/me")
        assert await seen(here, token) == ["a", "c", "e-a", "e-c", "o-a", "o-c"]
        here.store.save(
            {
                "resourceType": "Observation",
                "id": "of-whom",
                "status": "final",
                "code": {"text": "x"},
                "subject": {"reference": "Group/g"},
            }
        )
        assert (await here.ask("/Observation/of-whom", token)).status == 404


@pytest.mark.promise
async def test_a_transfer_ends_access(tmp_path: Path) -> None:
    async with ward(tmp_path) as here:
        token, desk = nurse(here), here.token("user/*.cruds", roles=["desk"], fhirUser="Practitioner/desk")
        assert (await here.ask("/Patient/a", token)).status == 200
        done = await here.ask("/Encounter/e-a", desk, "PUT", json=encounter("e-a", "a", "finished"))
        assert done.status == 200, done.body
        assert (await here.ask("/Patient/a", token)).status == 404  # through the shield: at once
        assert (
            await here.ask("/Encounter", desk, "POST", json={k: v for k, v in encounter("x", "b").items() if k != "id"})
        ).status == 201
        assert (await here.ask("/Patient/b", token)).status == 200
        here.store.save(encounter("e-c2", "c"))
        await asyncio.sleep(0.45)
        assert (await here.ask("/Patient/c", token)).status == 200
        here.store.save(encounter("e-c2", "c", "finished"))
        await asyncio.sleep(0.45)
        assert (await here.ask("/Patient/c", token)).status == 404  # behind its back: within the bound


async def test_what_is_known_of_a_caller_is_kept_and_asked_for_together(tmp_path: Path) -> None:
    async with ward(tmp_path) as here:
        for _ in range(5):
            await here.ask("/Patient/a", nurse(here))
        asked = [target for _, target, headers in here.seen if b"/Encounter" in target or b"/CareTeam" in target]
        assert len(asked) == 2


@pytest.mark.promise
async def test_nobody_writes_oneself_into_a_relationship(tmp_path: Path) -> None:
    async with ward(tmp_path) as here:
        token = nurse(here)
        into = {k: v for k, v in encounter("x", "b").items() if k != "id"}
        team = {
            "resourceType": "CareTeam",
            "status": "active",
            "subject": {"reference": "Patient/b"},
            "participant": [{"member": ME}],
        }
        for kind, body in (("Encounter", into), ("CareTeam", team), ("Encounter", {**into, "subject": {"reference": "Patient/a"}})):
            assert (await here.ask(f"/{kind}", token, "POST", json=body)).status == 403
        moved = encounter("e-a", "b")
        assert (await here.ask("/Encounter/e-a", token, "PUT", json=moved)).status == 403
        doctor = here.token("user/*.cruds", roles=["doctor"], fhirUser="Practitioner/me")
        assert (await here.ask("/Encounter", doctor, "POST", json=into)).status == 403
        about_a = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}, "subject": {"reference": "Patient/a"}}
        assert (await here.ask("/Observation", token, "POST", json=about_a)).status == 201
        refused = [
            await here.ask("/Observation", token, "POST", json={**about_a, "subject": {"reference": f"Patient/{one}"}})
            for one in ("b", "nobody")
        ]
        assert [one.status for one in refused] == [403, 403] and refused[0].body == refused[1].body


async def test_a_guardian_is_one_while_it_is_so(tmp_path: Path) -> None:
    async with ward(tmp_path) as here:
        here.store.save({"resourceType": "RelatedPerson", "id": "mum", "active": True, "patient": {"reference": "Patient/b"}})
        here.store.save({"resourceType": "RelatedPerson", "id": "was", "active": False, "patient": {"reference": "Patient/b"}})
        for who, wanted in (("RelatedPerson/mum", 200), ("RelatedPerson/was", 404), ("Patient/mum", 404)):
            token = here.token("user/*.rs", roles=["guardian"], fhirUser=who)
            assert (await here.ask("/Patient/b", token)).status == wanted, who


async def test_relationships_that_cannot_be_read_are_503_for_what_is_absent_too(tmp_path: Path) -> None:
    async with ward(tmp_path) as here:
        serve = here.store.serve
        here.store.serve = lambda method, segments, *rest: (
            (500, "{}", []) if segments[:1] == ["CareTeam"] else serve(method, segments, *rest)
        )
        for path in ("/Patient/a", "/Patient/b", "/Patient/nobody", "/Patient", "/Patient/a/_history"):
            assert (await here.ask(path, nurse(here))).status == 503, path


@pytest.mark.parametrize(
    ("relationships", "related", "word"),
    [
        ({"r": {"patients_of": ["Encounter?status=in-progress"]}}, "r", "does not speak of the caller"),
        ({"r": {"patients_of": ["Practitioner?_id={fhirUser.id}"]}}, "r", "leads from the caller to no patients"),
        ({"r": {"patients_of": ["Patient?general-practitioner={fhirUser}"]}}, "r", "leads from the caller to no patients"),
        ({"r": {"patients_of": ["Encounter?participant={fhirUser"]}}, "r", "does not speak|leads from"),
        (
            {"r": {"patients_of": ["Encounter?_has:Observation:encounter:performer={fhirUser}"]}},
            "r",
            "cannot be decided|not a search parameter",
        ),
        ({"r": {"patients_of": ["Encounter?participant={fhirUser}"]}}, "other", "no relationship `other`"),
    ],
)
def test_faults(relationships: Any, related: str, word: str) -> None:
    import yaml

    rule = {"id": "a", "who": {"roles": ["x"]}, "allow": {"interactions": ["read"], "resources": ["*"], "related": related}}
    with pytest.raises(OperatorError, match=word):
        loads(yaml.safe_dump({"relationships": relationships, "rules": [rule]}))
