"""Histories and old versions: judged by what they say and by what the resource is now; hidden edits leave no trace."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.simulators.server import Simulator
from tests.world import OPEN, World, world

VIP = {"meta": {"security": [{"code": "VIP"}]}}
RULES: Any = {
    "rules": [
        {"id": "open", "who": {"roles": ["all"]}, "allow": {"interactions": ["*"], "resources": ["*"], "delete_unseen": True}},
        {
            "id": "staff",
            "who": {"roles": ["staff", "nurse"]},
            "allow": {"interactions": ["read", "vread", "history"], "resources": ["*"]},
        },
        {"id": "vip", "who": {"roles": ["staff"]}, "deny": {"interactions": ["read", "search"], "resources": ["*?_security=VIP"]}},
        {"id": "hide", "who": {"roles": ["nurse"]}, "redact": [{"resources": ["Patient"], "path": "$.telecom", "with": "remove"}]},
    ]
}


def patient(identity: str, **more: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": identity, **more}


async def shown(here: World, role: str, path: str) -> list[str]:
    """``method Type/id what`` of each entry, newest first; ``what`` is the version where it is the server's, else the birth date."""
    reply = await here.ask(path, here.token("user/*.rs", roles=[role]))
    assert reply.status == 200, reply.body
    assert here.upstream not in reply.body.decode() and "total" not in reply.json
    rows = []
    for entry in reply.json.get("entry", []):
        resource = entry.get("resource", {})
        assert entry["fullUrl"].startswith(here.base) and entry["response"]["status"]
        version = resource.get("meta", {}).get("versionId", "")
        rows.append(
            f"{entry['request']['method']} {entry['request']['url']} {version if len(version) < 3 else resource.get('birthDate')}"
        )
    return rows


async def test_a_history_for_whoever_sees_all_is_the_servers(tmp_path: Path) -> None:
    async with world(tmp_path, RULES, make=Simulator) as here:
        here.store.clear()
        for birth in ("1970", "1971"):
            here.store.save(patient("a", birthDate=birth))
        here.store.save({"resourceType": "Practitioner", "id": "p"})
        here.store.remove("Patient/a")
        assert await shown(here, "all", "/Patient/a/_history") == ["DELETE Patient/a ", "PUT Patient/a 2", "POST Patient 1"]
        assert await shown(here, "all", "/_history?_count=2") == ["DELETE Patient/a ", "POST Practitioner 1"]
        assert await shown(here, "all", "/Patient/_history?_since=2020-01-01") == await shown(here, "all", "/Patient/_history")
        token = here.token("user/*.rs", roles=["all"])
        first = await here.ask("/_history?_count=3", token)
        following = next(link["url"] for link in first.json["link"] if link["relation"] == "next")
        assert following.startswith(f"{here.base}/_history?_page=")
        assert [e["request"]["url"] for e in (await here.ask(following, token)).json["entry"]] == ["Patient"]
        assert (await here.ask(following, here.token("user/*.rs", roles=["all"], sub="other"))).status == 404
        assert (await here.ask(following.replace("/_history", "/Patient/_history"), token)).status == 404
        assert (await here.ask(following.replace("/_history", "/Patient"), token)).status == 404
        old = await here.ask("/Patient/a/_history/1", token)
        assert old.json["birthDate"] == "1970" and (await here.ask("/Patient/a/_history/9", token)).status == 404


@pytest.mark.promise
async def test_a_label_that_was_set_hides_the_past(tmp_path: Path) -> None:
    async with world(tmp_path, RULES, make=Simulator) as here:
        here.store.clear()
        for body in ({"birthDate": "1970"}, VIP, {"birthDate": "1972"}):
            here.store.save(patient("once", **body))
        for body in ({"birthDate": "1970"}, VIP):
            here.store.save(patient("now", **body))
        here.store.save(patient("gone", birthDate="1970"))
        here.store.save(patient("gone", **VIP))
        here.store.remove("Patient/gone")
        here.store.save(patient("left", birthDate="1970"))
        here.store.remove("Patient/left")
        token = here.token("user/*.rs", roles=["staff"])
        assert await shown(here, "staff", "/Patient/once/_history") == ["PUT Patient/once 3", "POST Patient 1"]
        assert (await here.ask("/Patient/once/_history/1", token)).json["birthDate"] == "1970"
        assert (await here.ask("/Patient/once/_history/2", token)).status == 404
        nothing = (await here.ask("/Patient/nobody/_history", token)).body
        for name in ("now", "gone"):
            assert (await here.ask(f"/Patient/{name}/_history", token)).body == nothing
            for version in (1, 2, 3):
                assert (await here.ask(f"/Patient/{name}/_history/{version}", token)).body == nothing
        assert await shown(here, "staff", "/Patient/_history") == [
            "DELETE Patient/left ", "POST Patient 1", "PUT Patient/once 3", "POST Patient 1",
        ]  # fmt: skip
        assert await shown(here, "staff", "/_history") == await shown(here, "staff", "/Patient/_history")


@pytest.mark.promise
async def test_hidden_edits_leave_no_trace_in_a_history(tmp_path: Path) -> None:
    """Two servers that differ only in how often, and when, the hidden part changed."""
    answers = []
    for busy in (False, True):
        async with world(tmp_path, RULES, make=Simulator) as here:
            here.store.clear()
            for number, birth in enumerate(("1970", "1970", "1971", "1970")):
                here.store.save(patient("a", birthDate=birth, telecom=[{"value": f"n-{number}"}]))
                if busy:
                    here.store.save(patient("a", birthDate=birth, telecom=[{"value": f"n-{number}-again"}]))
                here.store.save(patient("b", birthDate=birth))
            if busy:
                here.store.save(patient("a", birthDate="1970", telecom=[{"value": "last"}]))
            token = here.token("user/*.rs", roles=["nurse"])
            texts = []
            for path in (
                "/Patient/a/_history",
                "/Patient/_history",
                "/_history",
                "/Patient/_history?_count=2",
                "/Patient/a/_history?_count=1",
            ):
                reply = await here.ask(path, token)
                for entry in reply.json["entry"]:
                    version = entry["resource"]["meta"]["versionId"]
                    old = await here.ask(f"/Patient/{entry['resource']['id']}/_history/{version}", token)
                    assert old.json == entry["resource"] and old.headers["etag"] == entry["response"]["etag"] == f'W/"{version}"'
                    assert "telecom" not in entry["resource"] and "lastModified" not in entry["response"]
                links = [link["relation"] for link in reply.json["link"]]
                texts.append(
                    (path, links, [(e["request"], e["resource"]["id"], e["resource"]["birthDate"]) for e in reply.json["entry"]])
                )
            for path in ("/Patient/_history?_since=2020", "/Patient/a/_history?_at=2020", "/_history?_since=2020"):
                assert (await here.ask(path, token)).status == 403
            assert (await here.ask("/Patient/a/_history/1", token)).status == 404
            now = (await here.ask("/Patient/a", token)).headers["etag"]
            assert now == (await here.ask("/Patient/a/_history", token)).json["entry"][0]["response"]["etag"]
            answers.append(texts)
    assert answers[0] == answers[1]
    assert [row[2] for row in answers[0][0][2]] == ["1970", "1971", "1970"]


async def test_a_patients_app_sees_the_past_of_its_patient_alone(tmp_path: Path) -> None:
    async with world(tmp_path, OPEN, make=Simulator) as here:
        here.store.clear()
        body: Any = {"resourceType": "Observation", "id": "o", "status": "final", "code": {"text": "x"}}
        here.store.load([patient("a"), patient("b")])
        here.store.save({**body, "subject": {"reference": "Patient/a"}})
        here.store.save({**body, "subject": {"reference": "Patient/b"}})
        here.store.save({**body, "id": "p", "subject": {"reference": "Patient/a"}})
        for who, mine in (("a", ["p 1"]), ("b", ["o 2"])):
            token = here.token("patient/*.rs", patient=who)
            for path in ("/Observation/_history", "/_history"):
                rows = (await here.ask(path, token)).json["entry"]
                found = [
                    f"{e['resource']['id']} {e['resource']['meta']['versionId']}"
                    for e in rows
                    if e["resource"]["resourceType"] == "Observation"
                ]
                assert found == mine
        assert (await here.ask("/Observation/o/_history", here.token("patient/*.rs", patient="a"))).status == 404


@pytest.mark.parametrize(
    ("path", "scope", "status"),
    [
        ("/Patient/a/_history", "user/Patient.s", 403), ("/Patient/_history", "user/Patient.r", 403), ("/_history", "user/Patient.r", 403),
        ("/Patient/_history?_since=soon", "user/*.rs", 400), ("/Patient/_history?_list=x", "user/*.rs", 400),
        ("/Patient/_history?_count=0", "user/*.rs", 400), ("/Patient/_history?name=x", "user/*.rs", 400),
        ("/Patient/a/_history?_since:not=2020", "user/*.rs", 400), ("/Patient/_history?_page=x", "user/*.rs", 404),
    ],
)  # fmt: skip
async def test_what_may_not_be_asked_of_a_history(tmp_path: Path, path: str, scope: str, status: int) -> None:
    async with world(tmp_path, OPEN, make=Simulator) as here:
        assert (await here.ask(path, here.token(scope))).status == status
        assert not [target for _, target, _ in here.seen if b"_history" in target]


async def test_what_a_history_may_hold_and_should_not(tmp_path: Path) -> None:
    class Odd(Simulator):
        entries = ""

        def _past(self, place: list[str], query: dict[str, str]) -> Any:
            status, text, fields = super()._past(place, query)
            return status, text.replace('"entry":[', f'"entry":[{self.entries},') if self.entries else text, fields

    async with world(tmp_path, RULES, make=Odd) as here:
        here.store.clear()
        here.store.save(patient("a"))
        plain = copy.deepcopy(await shown(here, "nurse", "/Patient/a/_history"))
        for odd in ('{"resource":{"resourceType":"Observation","id":"x"}}', '{"request":5}', '{"resource":{"resourceType":"Patient","id":"other"}}',
                    '{"request":{"method":"DELETE","url":"Patient/other"}}', '{"request":{"method":"DELETE","url":5},"response":[]}'):  # fmt: skip
            here.store.entries = odd
            assert await shown(here, "nurse", "/Patient/a/_history") == plain
