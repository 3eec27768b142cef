"""Chains and ``_has``: each joined search is one that the caller could make, and leads only through what it could see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.test_shapes import ALL, token
from tests.world import World, world

STORED = [
    {"resourceType": "Patient", "id": "a", "name": [{"family": "Ash"}], "gender": "male", "generalPractitioner": [{"reference": "Practitioner/d1"}]},
    {"resourceType": "Patient", "id": "b", "name": [{"family": "Birch"}], "gender": "female"},
    {"resourceType": "Patient", "id": "vip", "name": [{"family": "Birch"}], "gender": "female", "meta": {"security": [{"code": "VIP"}]}},
    {"resourceType": "Practitioner", "id": "d1", "name": [{"family": "Doctor"}]},
    *({"resourceType": "Observation", "id": f"o-{p}-{n}", "status": "final", "code": {"coding": [{"code": c}]}, "subject": {"reference": f"Patient/{p}"}}
      for p in ("a", "b", "vip") for n, c in enumerate(("pulse", "hiv" if p != "a" else "flu"))),
]  # fmt: skip
RULES = {
    "rules": [
        {"id": "app", "who": {"roles": ["app"]}, "allow": ALL},
        {"id": "staff", "who": {"roles": ["staff"]}, "allow": ALL},
        {"id": "vip", "who": {"roles": ["staff", "app"]}, "deny": {"interactions": ["*"], "resources": ["Patient?_security=VIP"]}},
        {"id": "blind", "who": {"roles": ["blind"]}, "allow": ALL, "redact": [
            {"resources": ["Patient"], "path": "$.name", "with": "remove"}, {"resources": ["Observation"], "path": "$.code", "with": "remove"}]},
        {"id": "some", "who": {"roles": ["some"]}, "allow": {"interactions": ["*"], "resources": ["Observation"]}},
    ]
}  # fmt: skip


async def ids(here: World, role: str, path: str) -> Any:
    answer = await here.ask(path, token(here, role))
    if answer.status != 200:
        return answer.status
    return [entry["resource"]["id"] for entry in answer.json.get("entry", [])]


@pytest.mark.promise
async def test_a_join_leads_only_through_what_the_caller_could_see(tmp_path: Path) -> None:
    async with world(tmp_path, RULES) as here:
        here.store.clear()
        here.store.load(STORED)
        assert await ids(here, "staff", "/Observation?subject:Patient.name=Ash") == ["o-a-0", "o-a-1"]
        assert await ids(here, "staff", "/Observation?patient.name=Ash&code=flu") == ["o-a-1"]
        # the VIP is of that name too, and its observations are not denied themselves: the join does not reach them
        assert await ids(here, "staff", "/Observation?subject:Patient.name=Birch") == ["o-b-0", "o-b-1"]
        assert await ids(here, "staff", "/Observation?subject:Patient.name=Nobody") == []
        assert await ids(here, "staff", "/Patient?_has:Observation:subject:code=hiv") == ["b"]
        assert await ids(here, "staff", "/Patient?_has:Observation:patient:code=flu&gender=male") == ["a"]
        assert await ids(here, "staff", "/Patient?_has:Observation:subject:code=nothing") == []
        assert await ids(here, "staff", "/Observation?subject:Patient.general-practitioner:Practitioner.name=Doctor") == [
            "o-a-0",
            "o-a-1",
        ]
        assert await ids(here, "staff", "/Patient?_has:Observation:subject:_has:X:y:z=1") == 400
        assert await ids(here, "app", "/Observation?subject:Patient.name=Ash") == ["o-a-0", "o-a-1"]
        assert await ids(here, "app", "/Observation?subject:Patient.name=Birch") == []
        assert await ids(here, "app", "/Patient?_has:Observation:subject:code=hiv") == []
        assert await ids(here, "app", "/Patient?_has:Observation:subject:code=flu") == ["a"]
        assert not [t for _, t, _ in here.seen if b"Patient.name" in t or b"_has" in t]
        gathered = [row["gathered"]["requests"] for row in here.records() if row.get("gathered")]
        assert {"Patient": 1} in gathered and {"Observation": 1} in gathered


@pytest.mark.promise
@pytest.mark.parametrize(
    ("role", "path", "status", "word"),
    [
        ("blind", "/Observation?subject:Patient.name=Ash", 403, "name"),
        ("blind", "/Observation?subject:Patient.name:exact=Ash", 403, "name"),
        ("blind", "/Patient?_has:Observation:subject:code=hiv", 403, "code"),
        ("some", "/Observation?subject:Patient.name=Ash", 403, "Patient"),
        ("staff", "/Observation?subject.name=Ash", 400, "several types"),
        ("staff", "/Observation?subject:Practitioner.name=Ash", 400, "several types"),
        ("staff", "/Observation?subject:Patient.flavour=Ash", 400, "flavour"),
        ("staff", "/Observation?code:Patient.name=Ash", 400, "code"),
        ("staff", "/Patient?_has:Observation:code:code=x", 400, "_has"),
        ("staff", "/Patient?_has:Nobody:subject:code=x", 400, "_has"),
        ("staff", "/Patient?_has:Observation:subject=x", 400, "_has"),
    ],
)
async def test_what_a_join_may_not_ask(tmp_path: Path, role: str, path: str, status: int, word: str) -> None:
    async with world(tmp_path, RULES) as here:
        here.store.clear()
        here.store.load(STORED)
        here.seen.clear()
        answer = await here.ask(path, token(here, role))
        assert answer.status == status and word in answer.json["issue"][0]["diagnostics"]
        assert not here.seen or all(b"jwks" in target for _, target, _ in here.seen)


async def test_a_condition_is_not_answered_through_what_is_hidden(tmp_path: Path) -> None:
    """An ``If-None-Exist`` with a chain would be joined by the upstream, through the VIP that this caller may not see."""
    async with world(tmp_path, RULES) as here:
        here.store.clear()
        here.store.load(STORED)
        headers = {"Content-Type": "application/fhir+json"}
        body = '{"resourceType":"Observation","status":"final","code":{"text":"x"}}'
        bearer = here.token("user/*.cruds", roles=["staff"])
        for name in ("Birch", "Nobody"):
            here.seen.clear()
            asked = {**headers, "If-None-Exist": f"subject:Patient.name={name}"}
            answer = await here.ask("/Observation", bearer, "POST", data=body, headers=asked)
            assert answer.status == 403 and not [t for m, t, _ in here.seen if b"fhir" in t]
        kept: list[bytes] = []
        for asked_by in ("code=a%7Cb?c&status=final", "?code=a%7Cb?c&status=final", "Observation?code=a%7Cb?c&status=final"):
            here.seen.clear()
            await here.ask("/Observation", bearer, "POST", data=body, headers={**headers, "If-None-Exist": asked_by})
            kept += [t for m, t, _ in here.seen if m == "GET" and b"code" in t]
        assert len(kept) == 3 and len(set(kept)) == 1 and b"status=final" in kept[0] and b"c%3F" not in kept[0]


async def test_a_join_through_too_many_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path, RULES) as here:
        here.store.clear()
        here.store.load([{"resourceType": "Patient", "id": f"p{n}", "gender": "male"} for n in range(250)])
        assert await ids(here, "staff", "/Observation?subject:Patient.gender=male") == 403


async def test_a_long_list_goes_by_post(tmp_path: Path) -> None:
    async with world(tmp_path, RULES, page=500) as here:
        here.store.clear()
        here.store.load([{"resourceType": "Patient", "id": f"patient-number-{n}", "gender": "male"} for n in range(150)])
        here.store.load(
            [{"resourceType": "Observation", "id": "o", "status": "final", "subject": {"reference": "Patient/patient-number-149"}}]
        )
        assert await ids(here, "staff", "/Observation?subject:Patient.gender=male") == ["o"]
        assert here.seen[-1][:2] == ("POST", b"/fhir/Observation/_search?")
