"""Operations: what they answer is what reads and searches would show; any other is opened by a rule alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.simulators.server import Simulator
from tests.test_batch import batch, entry
from tests.test_writes import FHIR
from tests.world import OPEN, Reply, World, world

STORED: list[dict[str, Any]] = [
    {"resourceType": "Patient", "id": "a", "name": [{"family": "Ash"}], "birthDate": "1970-01-02", "telecom": [{"value": "1"}],
     "generalPractitioner": [{"reference": "Practitioner/gp"}]},
    {"resourceType": "Patient", "id": "b", "name": [{"family": "Birch"}], "birthDate": "1970-01-02"},
    {"resourceType": "Patient", "id": "vip", "name": [{"family": "Ash"}], "birthDate": "1970-01-02", "meta": {"security": [{"code": "VIP"}]}},
    {"resourceType": "Practitioner", "id": "gp", "name": [{"family": "Oak"}]},
    {"resourceType": "Practitioner", "id": "other", "name": [{"family": "Elm"}]},
    *({"resourceType": "Observation", "id": f"o{i}", "status": "final", "code": {"coding": [{"system": "urn:c", "code": f"c{i % 2}"}]},
       "subject": {"reference": "Patient/a"}, "effectiveDateTime": f"2020-01-0{9 - i}"} for i in range(6)),
    {"resourceType": "Observation", "id": "hid", "status": "final", "code": {"coding": [{"system": "urn:c", "code": "c0"}]},
     "subject": {"reference": "Patient/a"}, "effectiveDateTime": "2020-02-01", "performer": [{"reference": "Practitioner/other"}],
     "meta": {"security": [{"code": "VIP"}]}},
    {"resourceType": "Observation", "id": "bs", "status": "final", "code": {"text": "x"}, "subject": {"reference": "Patient/b"},
     "focus": [{"reference": "Patient/a"}]},
    {"resourceType": "Encounter", "id": "e", "status": "finished", "class": {"code": "AMB"}, "subject": {"reference": "Patient/a"}},
    {"resourceType": "Condition", "id": "c", "subject": {"reference": "Patient/a"}, "encounter": {"reference": "Encounter/e"}},
    {"resourceType": "DocumentReference", "id": "ccd", "status": "current", "subject": {"reference": "Patient/a"},
     "type": {"coding": [{"system": "http://loinc.org", "code": "34133-9"}]}, "content": [{"attachment": {"title": "t"}}]},
    {"resourceType": "DocumentReference", "id": "note", "status": "current", "subject": {"reference": "Patient/a"},
     "type": {"coding": [{"system": "http://loinc.org", "code": "1"}]}, "content": [{"attachment": {"title": "t"}}]},
    {"resourceType": "ValueSet", "id": "vs", "url": "http://example.org/vs", "status": "active"},
]  # fmt: skip
READING = {"interactions": ["read", "search"], "resources": ["*"]}
RULES: Any = {
    "rules": [
        *({**OPEN["rules"][0], "id": f"open-{role}", "who": {"roles": [role]}} for role in ("all", "app")),
        {"id": "staff", "who": {"roles": ["staff", "nurse"]}, "allow": READING},
        {"id": "vip", "who": {"roles": ["staff"]}, "deny": {"interactions": ["*"], "resources": ["*?_security=VIP"]}},
        {"id": "hide", "who": {"roles": ["nurse"]}, "redact": [
            {"resources": ["Patient"], "path": "$.birthDate", "with": "remove"},
            {"resources": ["Observation"], "path": "$.effectiveDateTime", "with": "generalize", "to": "year"}]},
        {"id": "process", "who": {"roles": ["clerk"]}, "allow": {**READING, "resources": ["Patient?family=Ash", "Observation"], "operations": [
            {"name": "$process", "input": ["Parameters", "Observation"], "output": ["Parameters", "Observation", "Patient"]}]}},
        {"id": "no-vip", "who": {"roles": ["clerk"]}, "deny": {"interactions": ["*"], "resources": ["*?_security=VIP"]}},
        {"id": "changes", "who": {"roles": ["admin"]}, "allow": {"interactions": ["*"], "resources": ["*"], "operations": [
            {"name": "$process", "input": ["Observation"], "output": ["Parameters"], "affects": ["Observation"]}]}},
    ]
}  # fmt: skip


async def asked(here: World, role: str, path: str, body: Any = None, scope: str = "user/*.cruds", **claims: Any) -> Reply:
    how: Any = {"method": "POST", "data": json.dumps(body), "headers": FHIR} if body is not None else {}
    reply = await here.ask(path, here.token(scope, roles=[role], **claims), **how)
    assert here.upstream not in reply.body.decode()
    return reply


def ids(reply: Reply) -> list[str]:
    assert reply.status == 200, reply.body
    return [e["resource"]["id"] for e in reply.json.get("entry", [])]


async def ready(here: World) -> None:
    here.store.clear()
    here.store.load(STORED)


@pytest.mark.promise
async def test_everything_is_what_reads_would_show(tmp_path: Path) -> None:
    async with world(tmp_path, RULES, make=Simulator) as here:
        await ready(here)
        path = "/Patient/a/$everything"
        mine = ["a", "c", "ccd", "note", "e", *(f"o{i}" for i in range(6))]
        assert set(ids(await asked(here, "all", path))) == {*mine, "hid", "bs", "gp", "other"}
        assert ids(await asked(here, "app", path, scope="patient/*.rs", patient="a")) == [
            *mine[:5],
            "hid",
            *mine[5:],
            "gp",
            "other",
        ]
        staff = ids(await asked(here, "staff", path))
        assert set(staff) == {*mine, "bs", "gp"} and staff[0] == "a" and staff[-1] == "gp"
        pages, url = [], f"{here.base}{path}?_count=5"
        token = here.token("user/*.rs", roles=["staff"])
        while url:
            reply = await here.ask(url, token)
            assert len(reply.json["entry"]) <= 5 and "total" not in reply.json
            pages += ids(reply)
            url = next((link["url"] for link in reply.json["link"] if link["relation"] == "next"), "")
        assert pages == staff
        assert set(ids(await asked(here, "staff", path + "?_type=Patient,Condition"))) == {"a", "c"}
        assert ids(await asked(here, "staff", "/Encounter/e/$everything"))[0] == "e"
        hidden = await asked(here, "staff", "/Patient/vip/$everything")
        assert hidden.status == 404 and hidden.body == (await asked(here, "staff", "/Patient/nobody/$everything")).body
        other = await asked(here, "app", "/Patient/b/$everything", scope="patient/*.rs", patient="a")
        assert other.status == 404 and other.body == hidden.body
        for bad, status in (
            ("?start=2020", 403),
            ("?_since=2020", 403),
            ("?_type=Nothing", 400),
            ("?_count=0", 400),
            ("?x=y", 400),
        ):
            assert (await asked(here, "nurse", path + bad)).status == status
        assert (await asked(here, "staff", "/Patient/$everything")).status == 405
        nurse = await asked(here, "nurse", path)
        assert b"1970-01-02" not in nurse.body and b"2020-0" not in nurse.body


async def test_the_newest_of_each_code(tmp_path: Path) -> None:
    async with world(tmp_path, RULES, make=Simulator) as here:
        await ready(here)
        path = "/Observation/$lastn?patient=Patient/a"
        assert ids(await asked(here, "all", path)) == ["hid", "o1"]
        assert ids(await asked(here, "staff", path)) == ["o0", "o1"]
        assert ids(await asked(here, "staff", path + "&max=2")) == ["o0", "o1", "o2", "o3"]
        assert ids(await asked(here, "staff", path + "&code=urn:c|c1")) == ["o1"]
        assert ids(await asked(here, "nurse", path + "&max=100")) == ["hid", *(f"o{i}" for i in range(6))]
        assert ids(await asked(here, "app", "/Observation/$lastn?patient=Patient/b", scope="patient/*.rs", patient="a")) == []
        for bad, status in (("&max=0", 400), ("&max=x", 400), ("&_count=1", 400), ("&date=2020-01-01", 403)):
            assert (await asked(here, "nurse", path + bad)).status == status
        assert (await asked(here, "staff", "/Observation/$lastn?code=x")).status == 400
        body = {
            "resourceType": "Parameters",
            "parameter": [{"name": "patient", "valueString": "Patient/a"}, {"name": "max", "valuePositiveInt": 1}],
        }
        assert ids(await asked(here, "staff", "/Observation/$lastn", body)) == ["o0", "o1"]


async def test_documents_are_found_and_none_is_made(tmp_path: Path) -> None:
    async with world(tmp_path, RULES, make=Simulator) as here:
        await ready(here)
        path = "/DocumentReference/$docref?patient=Patient/a"
        assert ids(await asked(here, "staff", path)) == ["ccd"]
        assert ids(await asked(here, "staff", path + "&type=http://loinc.org|1")) == ["note"]
        assert (await asked(here, "staff", path + "&on-demand=true")).status == 400
        assert (await asked(here, "staff", "/DocumentReference/$docref")).status == 400
        assert ids(await asked(here, "app", path, scope="patient/*.rs", patient="b")) == []


async def test_meta_is_that_of_the_view(tmp_path: Path) -> None:
    async with world(tmp_path, RULES, make=Simulator) as here:
        await ready(here)
        reply = await asked(here, "nurse", "/Patient/a/$meta")
        seen = await asked(here, "nurse", "/Patient/a")
        assert reply.json["parameter"] == [{"name": "return", "valueMeta": seen.json["meta"]}]
        assert (await asked(here, "staff", "/Patient/vip/$meta")).status == 404
        for path in (
            "/Patient/$meta",
            "/$meta",
            "/Patient/a/$meta-add",
            "/Patient/a/$meta-delete",
            "/$graphql",
            "/Patient/a/$graphql",
        ):
            assert (await asked(here, "all", path)).status == 405


async def test_validation_tells_of_the_callers_own_body(tmp_path: Path) -> None:
    async with world(tmp_path, RULES, make=Simulator) as here:
        await ready(here)
        body = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}, "subject": {"reference": "Patient/a"}}
        reply = await asked(here, "all", "/Observation/$validate", body)
        assert reply.json["issue"][0]["diagnostics"] == "all fine"
        wrapped = {
            "resourceType": "Parameters",
            "parameter": [{"name": "mode", "valueCode": "create"}, {"name": "resource", "resource": body}],
        }
        assert (await asked(here, "all", "/Observation/$validate", wrapped)).status == 200
        app = await asked(here, "app", "/Observation/$validate", body, scope="patient/*.cruds", patient="a")
        assert app.status == 200 and "diagnostics" not in app.json["issue"][0]
        assert (await asked(here, "staff", "/Observation/$validate", body)).status == 403
        for name in ("b", "nobody"):
            other = {**body, "subject": {"reference": f"Patient/{name}"}}
            answer = await asked(here, "app", "/Observation/$validate", other, scope="patient/*.cruds", patient="a")
            assert answer.status == 422
        assert (await asked(here, "all", "/Patient/$validate", body)).status == 400
        assert (await asked(here, "all", "/Observation/$validate")).status == 400
        assert (await asked(here, "all", "/Subscription/$validate", {"resourceType": "Subscription"})).status == 403


async def test_matching_asks_about_nothing_hidden(tmp_path: Path) -> None:
    async with world(tmp_path, RULES, make=Simulator) as here:
        await ready(here)

        def wanted(**fields: Any) -> Any:
            return {
                "resourceType": "Parameters",
                "parameter": [{"name": "resource", "resource": {"resourceType": "Patient", **fields}}],
            }

        by_name = wanted(name=[{"family": "Ash"}], birthDate="1970-01-02")
        full = await asked(here, "all", "/Patient/$match", by_name)
        assert ids(full) == ["a", "vip", "b"] and full.json["entry"][0]["search"] == {"mode": "match", "score": 0.4}
        staff = await asked(here, "staff", "/Patient/$match", by_name)
        assert ids(staff) == ["a", "b"] and staff.json["entry"][0]["search"] == {"mode": "match"}
        one = {**by_name, "parameter": [*by_name["parameter"], {"name": "count", "valueInteger": 1}]}
        assert ids(await asked(here, "staff", "/Patient/$match", one)) == ["a"]
        assert (await asked(here, "nurse", "/Patient/$match", by_name)).status == 403
        assert ids(await asked(here, "nurse", "/Patient/$match", wanted(name=[{"family": "Ash"}]))) == ["a", "vip"]
        sure = {**by_name, "parameter": [*by_name["parameter"], {"name": "onlyCertainMatches", "valueBoolean": True}]}
        assert (await asked(here, "staff", "/Patient/$match", sure)).status == 403
        assert ids(await asked(here, "app", "/Patient/$match", by_name, scope="patient/*.rs", patient="a")) == ["a"]


async def test_terminology_is_for_whoever_sees_all_of_it(tmp_path: Path) -> None:
    async with world(tmp_path, RULES, make=Simulator) as here:
        await ready(here)
        for path in ("/ValueSet/$expand?url=http://example.org/vs", "/ValueSet/vs/$expand"):
            assert len((await asked(here, "all", path)).json["expansion"]["contains"]) == 2
            assert (await asked(here, "staff", path)).status == 403
        body = {"resourceType": "Parameters", "parameter": [{"name": "url", "valueUri": "http://example.org/vs"}]}
        assert (await asked(here, "all", "/ValueSet/$expand", body)).status == 200
        assert (await asked(here, "all", "/CodeSystem/$lookup?system=x&code=y")).json["parameter"][0]["valueString"] == "a code"
        assert (await asked(here, "all", "/ConceptMap/$translate?system=x&code=y")).status == 200
        assert (await asked(here, "all", "/CodeSystem/$lookup?nonsense=x")).status == 400
        assert (await asked(here, "all", "/Patient/$expand?url=x")).status == 405
        odd = {"resourceType": "Parameters", "parameter": [{"name": "coding", "valueCoding": {"code": "x"}}]}
        assert (await asked(here, "all", "/CodeSystem/$lookup", odd)).status == 400


@pytest.mark.promise
async def test_any_other_operation_is_opened_by_a_rule_alone(tmp_path: Path) -> None:
    async with world(tmp_path, RULES, make=Simulator) as here:
        await ready(here)
        assert (await asked(here, "all", "/Patient/a/$process")).status == 405
        assert (await asked(here, "all", "/$process")).status == 405
        reply = await asked(here, "clerk", "/Patient/a/$process")
        assert reply.status == 200
        held = {p["resource"]["id"] for p in reply.json["parameter"]}
        assert held == {"a", "bs", *(f"o{i}" for i in range(6))}, (
            "types that the rule does not name, and what it denies, are withheld"
        )
        for name in ("vip", "b", "nobody"):  # denied, outside the rule's criteria, absent
            assert (await asked(here, "clerk", f"/Patient/{name}/$process")).status == 404
        observation = {
            "resourceType": "Observation",
            "status": "final",
            "code": {"text": "x"},
            "subject": {"reference": "Patient/a"},
        }
        assert (await asked(here, "clerk", "/Observation/$process", observation)).status == 200
        assert (
            await asked(here, "clerk", "/Observation/$process", {**observation, "subject": {"reference": "Patient/vip"}})
        ).status == 422
        assert (await asked(here, "clerk", "/Observation/$process", {**observation, "x": 1})).status == 422
        assert (await asked(here, "clerk", "/Observation/$process", {"resourceType": "Patient"})).status == 403
        assert (await asked(here, "clerk", "/Patient/a/$process", scope="user/Observation.rs")).status == 403
        assert (await asked(here, "clerk", "/Patient/$process")).status == 405, "criteria can be judged on a resource alone"
        assert not [row for row in here.records() if row["outcome"] == "intended"]
        assert (await asked(here, "admin", "/Observation/$process")).status == 405, "what changes something is invoked by POST"
        assert (await asked(here, "admin", "/Observation/$process", observation, scope="user/*.rs")).status == 403
        assert (await asked(here, "admin", "/Observation/$process", observation)).status == 200
        rows = [row for row in here.records() if row.get("operation") == "$process" and "admin" in row["roles"]]
        assert [row["outcome"] for row in rows][-2:] == ["intended", "released"] and not here.parts.journal.intents.open


async def test_operations_in_a_batch(tmp_path: Path) -> None:
    async with world(tmp_path, RULES, make=Simulator) as here:
        await ready(here)
        token = here.token("user/*.rs", roles=["staff"])
        reply = await batch(
            here,
            token,
            entry("GET", "Patient/a/$meta"),
            entry("GET", "Patient/vip/$everything"),
            entry("GET", "Patient/a/$everything"),
        )
        assert [row["response"]["status"][:3] for row in reply.json["entry"]] == ["200", "404", "200"]


@pytest.mark.promise
async def test_a_job_is_its_owners_alone(tmp_path: Path) -> None:
    async with world(tmp_path, RULES, make=Simulator) as here:
        await ready(here)
        later = {"Prefer": "respond-async"}
        token = here.token("user/*.cruds", roles=["clerk"])
        begun = await here.ask("/Patient/a/$process", token, headers=later)
        where = begun.headers["content-location"]
        assert begun.status == 202 and where.startswith(f"{here.base}/$job?_page=") and not begun.body
        assert here.upstream not in where and "x-progress" not in begun.headers
        for other in (here.token("user/*.cruds", roles=["clerk"], sub="other"), here.token("user/*.rs", roles=["clerk"])):
            for method in ("GET", "DELETE"):
                assert (await here.ask(where, other, method)).status == 404
        assert here.store.jobs["1"][0] == 0, "nobody else asked about it"
        assert (await here.ask(where, here.token("user/*.cruds", roles=["all"]))).status == 405, "rights are judged anew"
        assert (await here.ask(where)).status == 401
        going = await here.ask(where, token)
        assert going.status == 202 and going.headers["retry-after"] == "3" and "content-location" not in going.headers
        done = await here.ask(where, token)
        assert done.json == (await here.ask("/Patient/a/$process", token)).json and b"vip" not in done.body
        for place in (
            where.replace("$job?", "Patient?"),
            where.replace("$job?", "Patient/a/$process?"),
            f"{here.base}/$job",
            f"{here.base}/$job?_page=x",
        ):
            assert (await here.ask(place, token)).status in {400, 404}
        here.seen.clear()
        gone = await here.ask(where, token, "DELETE")
        assert gone.status == 202 and not here.store.jobs, [(m, t) for m, t, _ in here.seen]
        assert (await here.ask(where, token)).status == 404
        assert (await asked(here, "all", "/Patient/a/$everything")).status == 200
        admin = here.token("user/*.cruds", roles=["admin"])
        body = json.dumps({"resourceType": "Observation", "status": "final", "code": {"text": "x"}})
        assert (await here.ask("/Observation/$process", admin, "POST", data=body, headers={**FHIR, **later})).status == 200, (
            "no job of what changes"
        )
        assert not here.store.jobs


@pytest.mark.parametrize(
    "where",
    ["http://evil.example/job", "/fhir/$job-status", "{upstream}/../admin?x=y", "{upstream}/a%2fb", "{upstream}", "nonsense", ""],
)
async def test_a_job_elsewhere_is_no_job(tmp_path: Path, where: str) -> None:
    class Odd(Simulator):
        def _later(self, *rest: Any) -> Any:
            found = super()._later(*rest)
            return (202, "", [(b"content-location", where.replace("{upstream}", self.base).encode())]) if found else None

    async with world(tmp_path, RULES, make=Odd) as here:
        await ready(here)
        reply = await here.ask("/Patient/a/$process", here.token("user/*.rs", roles=["clerk"]), headers={"Prefer": "respond-async"})
        assert reply.status == 502 and "content-location" not in reply.headers
