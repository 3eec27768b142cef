"""What a search's answer looks like: includes, parts of resources, counts; each shows only what a read would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.world import OPEN, World, world

ALL = {"interactions": ["*"], "resources": ["*"]}
STORED = [
    {"resourceType": "Patient", "id": "a", "managingOrganization": {"reference": "Organization/o1"}, "generalPractitioner": [{"reference": "Practitioner/d1"}]},
    {"resourceType": "Patient", "id": "b", "managingOrganization": {"reference": "Organization/o2"}},
    {"resourceType": "Organization", "id": "o1", "name": "One", "partOf": {"reference": "Organization/o3"}},
    {"resourceType": "Organization", "id": "o2", "name": "Two"},
    {"resourceType": "Organization", "id": "o3", "name": "Three"},
    {"resourceType": "Practitioner", "id": "d1", "name": [{"family": "Doctor"}]},
    {"resourceType": "Practitioner", "id": "d2", "name": [{"family": "Other"}]},
    {"resourceType": "Device", "id": "scale"},
    {"resourceType": "Device", "id": "pump-of-b", "patient": {"reference": "Patient/b"}},
    *(
        {"resourceType": "Observation", "id": f"a{n}", "status": "final", "code": {"text": "x"}, "subject": {"reference": "Patient/a"},
         "performer": [{"reference": "Practitioner/d1"}], "device": {"reference": "Device/scale"}, "text": {"status": "generated", "div": "<div/>"},
         "note": [{"text": "seen"}], "component": [{"code": {"text": "y"}, "referenceRange": [{"text": "z"}]}]}
        for n in range(3)
    ),
    {"resourceType": "Observation", "id": "secret", "status": "final", "code": {"text": "x"}, "subject": {"reference": "Patient/a"},
     "performer": [{"reference": "Practitioner/d2"}], "device": {"reference": "Device/pump-of-b"}, "meta": {"security": [{"code": "VIP"}]}},
    {"resourceType": "Observation", "id": "b0", "status": "final", "code": {"text": "x"}, "subject": {"reference": "Patient/b"}, "focus": [{"reference": "Patient/a"}]},
    {"resourceType": "Provenance", "id": "pa", "recorded": "2020-01-01T00:00:00Z", "target": [{"reference": "Observation/a0"}], "agent": [{"who": {"display": "x"}}]},
    {"resourceType": "Provenance", "id": "pab", "recorded": "2020-01-01T00:00:00Z", "target": [{"reference": "Observation/a0"}, {"reference": "Observation/b0"}], "agent": [{"who": {"display": "x"}}]},
]  # fmt: skip
VIP = {
    "id": "vip",
    "who": {"roles": ["*"]},
    "deny": {"interactions": ["*"], "resources": ["*?_security=VIP&status:missing=false", "Device?_security=VIP"]},
}
RULES = {
    "rules": [
        {"id": "app", "who": {"roles": ["app"]}, "allow": ALL},
        {"id": "staff", "who": {"roles": ["staff"]}, "allow": ALL, "redact": [{"resources": ["Observation"], "path": "$.note", "with": "remove"}]},
        {"id": "hid", "who": {"roles": ["hid"]}, "allow": ALL, "redact": [{"resources": ["Observation"], "path": "$.performer", "with": "remove"}]},
        {"id": "some", "who": {"roles": ["some"]}, "allow": {"interactions": ["*"], "resources": ["Observation", "Patient"]}},
        {"id": "vip", "who": {"roles": ["*"], "unless": "'root' in principal.roles"}, "deny": {"interactions": ["*"], "resources": ["Observation?_security=VIP&status=final"]}},
        {"id": "root", "who": {"roles": ["root"]}, "allow": ALL},
    ]
}  # fmt: skip


def token(here: World, role: str) -> str:
    if role == "app":
        return here.token("patient/*.rs", roles=["app"], patient="a", fhirUser="Patient/a")
    return here.token("user/*.rs", roles=[role])


async def seen(here: World, role: str, path: str) -> list[str]:
    """``type/id`` of the entries, included ones behind a bar."""
    answer = await here.ask(path, token(here, role))
    assert answer.status == 200, answer.body
    entries = answer.json.get("entry", [])
    named = [(e["search"]["mode"], f"{e['resource']['resourceType']}/{e['resource']['id']}") for e in entries]
    return [name for mode, name in named if mode == "match"] + ["|"] + sorted(name for mode, name in named if mode == "include")


@pytest.mark.promise
async def test_included_resources_are_judged_and_lead_from_what_is_shown(tmp_path: Path) -> None:
    async with world(tmp_path, RULES) as here:
        here.store.clear()
        here.store.load(STORED)
        mine = ["Observation/a0", "Observation/a1", "Observation/a2"]
        assert await seen(here, "root", "/Observation?_include=Observation:performer") == [
            *mine,
            "Observation/b0",
            "Observation/secret",
            "|",
            "Practitioner/d1",
            "Practitioner/d2",
        ]
        assert await seen(here, "staff", "/Observation?_include=Observation:performer") == [
            *mine,
            "Observation/b0",
            "|",
            "Practitioner/d1",
        ]
        assert await seen(here, "app", "/Observation?_include=Observation:performer") == [*mine, "|", "Practitioner/d1"]
        assert await seen(here, "app", "/Observation?_include=Observation:device") == [*mine, "|", "Device/scale"]
        assert await seen(here, "some", "/Observation?_include=Observation:performer") == [*mine, "Observation/b0", "|"]
        assert await seen(here, "app", "/Observation?_include=*") == [*mine, "|", "Device/scale", "Patient/a", "Practitioner/d1"]
        assert await seen(here, "hid", "/Observation?_include=*") == [
            *mine,
            "Observation/b0",
            "|",
            "Device/scale",
            "Patient/a",
            "Patient/b",
        ]
        assert (await here.ask("/Observation?_include=Observation:performer", token(here, "hid"))).status == 403
        assert await seen(here, "app", "/Patient?_revinclude=Observation:subject") == ["Patient/a", "|", *mine]
        assert await seen(here, "app", "/Patient?_revinclude=Observation:focus") == ["Patient/a", "|"]
        assert await seen(here, "staff", "/Patient?_revinclude=Observation:subject") == [
            "Patient/a",
            "Patient/b",
            "|",
            *mine,
            "Observation/b0",
        ]
        iterated = "/Patient?_include=Patient:organization&_include:iterate=Organization:partof"
        assert await seen(here, "app", iterated) == ["Patient/a", "|", "Organization/o1", "Organization/o3"]
        assert await seen(here, "staff", iterated) == [
            "Patient/a",
            "Patient/b",
            "|",
            "Organization/o1",
            "Organization/o2",
            "Organization/o3",
        ]
        assert await seen(here, "app", "/Observation?_revinclude=Provenance:target") == [*mine, "|", "Provenance/pa"]


@pytest.mark.parametrize("kind", ["Group", "Binary", "Schedule", "Linkage", "MessageHeader", "Person"])
async def test_what_may_be_about_others_does_not_stand_beside(tmp_path: Path, kind: str) -> None:
    """Even where a rule of all types allows them: an app may refer to such a one no more than include it."""
    other = {"resourceType": kind, "id": "other", "securityContext": {"reference": "Patient/b"}}
    led = {"resourceType": "Observation", "id": "led", "status": "final", "subject": {"reference": "Patient/a"}}
    async with world(tmp_path, RULES) as here:
        here.store.clear()
        here.store.load([*STORED, other, {**led, "focus": [{"reference": f"{kind}/other"}]}])
        assert "other" not in str(await seen(here, "app", "/Observation?_include=Observation:focus"))
        assert f"{kind}/other" in await seen(here, "root", "/Observation?_include=Observation:focus")
        writer = here.token("patient/*.cruds", roles=["app"], patient="a", fhirUser="Patient/a")
        for name, status in (("other", 422), ("nobody", 422)):
            body = {**led, "code": {"text": "x"}, "focus": [{"reference": f"{kind}/{name}"}]}
            body.pop("id")
            reply = await here.ask(
                "/Observation", writer, "POST", data=json.dumps(body), headers={"Content-Type": "application/fhir+json"}
            )
            assert reply.status == status, reply.body


async def test_includes_take_no_place_in_a_page(tmp_path: Path) -> None:
    async with world(tmp_path, RULES) as here:
        here.store.clear()
        here.store.load(STORED)
        url, found = "/Observation?_count=2&_include=Observation:performer", []
        while url:
            bundle = (await here.ask(url, token(here, "staff"))).json
            found.append([e["resource"]["id"] for e in bundle["entry"]])
            url = next((link["url"] for link in bundle["link"] if link["relation"] == "next"), "")
        assert found == [["a0", "a1", "d1"], ["a2", "b0", "d1"]]


@pytest.mark.parametrize(
    ("query", "there", "gone"),
    [
        ("_elements=code", {"id", "meta", "status", "code"}, {"subject", "note", "text", "component"}),
        ("_elements=code,subject", {"id", "meta", "status", "code", "subject"}, {"note", "text"}),
        ("_summary=true", {"id", "meta", "status", "code", "subject", "performer", "component"}, {"note", "text"}),
        ("_summary=text", {"id", "meta", "status", "code", "text"}, {"subject", "note", "performer"}),
        ("_summary=data", {"id", "meta", "status", "code", "note", "subject"}, {"text"}),
        ("_summary=false", {"text", "note"}, set()),
    ],
)
async def test_parts_of_resources_are_of_what_may_be_seen(tmp_path: Path, query: str, there: set[str], gone: set[str]) -> None:
    async with world(tmp_path, RULES) as here:
        here.store.clear()
        here.store.load(STORED)
        for role, hidden in (("root", set[str]()), ("staff", {"note", "text"})):
            answer = await here.ask(f"/Observation?{query}", token(here, role))
            assert answer.status == 200, answer.body
            for entry in answer.json["entry"]:
                if entry["resource"]["id"] in {"secret", "b0"}:
                    continue
                names = set(entry["resource"])
                assert there - hidden <= names and not names & (gone | hidden), (role, names)
                marked = any(tag["code"] == "SUBSETTED" for tag in entry["resource"]["meta"].get("tag", []))
                assert marked is (query != "_summary=false" or role == "staff")
        assert b"_elements" not in b"".join(target for _, target, _ in here.seen)
        if "true" in query:
            assert "referenceRange" not in answer.json["entry"][0]["resource"]["component"][0]
        whole = (await here.ask("/Observation/a0", token(here, "staff"))).json
        part = next(e["resource"] for e in answer.json["entry"] if e["resource"]["id"] == "a0")
        assert part["meta"]["versionId"] == whole["meta"]["versionId"]
        assert (await here.ask("/Observation?_elements=note", token(here, "staff"))).status == 403


@pytest.mark.promise
async def test_counts_are_of_what_this_caller_may_see(tmp_path: Path) -> None:
    async with world(tmp_path, RULES, page=2) as here:
        here.store.clear()
        here.store.load(STORED)
        for role, number in (("root", 5), ("staff", 4), ("app", 3)):
            answer: Any = (await here.ask("/Observation?_summary=count", token(here, role))).json
            assert answer["total"] == number and "entry" not in answer
            answer = (await here.ask("/Observation?_total=accurate&_count=2", token(here, role))).json
            assert answer["total"] == number and len(answer["entry"]) == 2
            ids, url = [], next((link["url"] for link in answer["link"] if link["relation"] == "next"), "")
            ids += [e["resource"]["id"] for e in answer["entry"]]
            while url:
                page = (await here.ask(url, token(here, role))).json
                ids += [e["resource"]["id"] for e in page["entry"]]
                assert "total" not in page
                url = next((link["url"] for link in page["link"] if link["relation"] == "next"), "")
            assert len(ids) == len(set(ids)) == number
            assert "total" not in (await here.ask("/Observation?_total=none", token(here, role))).json


async def test_what_cannot_be_counted_within_the_budget_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fhirshield.rewrite.plan.MOST_AT_ONCE", 2)
    async with world(tmp_path, OPEN) as here:
        answer = await here.ask("/Observation?_summary=count", here.token())
        assert answer.status == 403 and answer.json["issue"][0]["code"] == "too-costly"


async def test_unknown_parameters_are_refused_or_left_out_as_preferred(tmp_path: Path) -> None:
    async with world(tmp_path, RULES) as here:
        staff = token(here, "staff")
        assert (await here.ask("/Observation?flavour=sweet", staff)).status == 400
        assert (await here.ask("/Observation?flavour=sweet", staff, headers={"Prefer": "handling=strict"})).status == 400
        here.seen.clear()
        answer = await here.ask("/Observation?flavour=sweet&status=final", staff, headers={"Prefer": "handling=lenient"})
        assert answer.status == 200 and "flavour" not in answer.json["link"][0]["url"]
        assert all(b"flavour" not in target for _, target, _ in here.seen)
        hidden = await here.ask("/Observation?performer=x", token(here, "hid"), headers={"Prefer": "handling=lenient"})
        assert hidden.status == 403
