"""Transactions: all of it or nothing, each entry decided as the request that it is before the upstream sees any."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.simulators.server import Simulator
from tests.test_batch import OBSERVATION, batch, entry
from tests.test_shield import NURSE
from tests.test_writes import FHIR, broken
from tests.world import OPEN, Reply, World, world

NEW = "urn:uuid:61ebe359-bfdc-4613-8bf2-c5e300945f0a"
PATIENT = {"resourceType": "Patient", "identifier": [{"system": "urn:mrn", "value": "n-1"}], "birthDate": "1999"}
MINE = {**OBSERVATION, "subject": {"reference": NEW}}
DELETING: Any = copy.deepcopy(OPEN)
DELETING["rules"][0]["allow"] |= {
    "delete_unseen": True, "operations": [{"name": "$process", "input": ["Observation"], "output": ["Observation"], "affects": ["Encounter"]}],
}  # fmt: skip
DENYING: Any = {
    "rules": [
        *OPEN["rules"],
        {
            "id": "vip",
            "who": {"roles": ["*"]},
            "deny": {"interactions": ["*"], "resources": ["Patient?_security=VIP", "Condition"]},
        },
    ]
}


async def transact(here: World, token: str, *entries: Any) -> Reply:
    return await batch(here, token, *entries, kind="transaction")


def statuses(reply: Reply) -> list[str]:
    return [row["response"]["status"][:3] for row in reply.json["entry"]]


def sent(here: World) -> list[str]:
    """The writes that the upstream saw."""
    return [target.decode() for method, target, _ in here.seen if method != "GET"]


@pytest.mark.promise
async def test_a_transaction_is_all_or_nothing_and_refers_within_itself(tmp_path: Path) -> None:
    async with world(tmp_path, DELETING, make=Simulator) as here:
        token = here.token("user/*.cruds")
        reply = await transact(
            here, token, entry("GET", "Patient?birthdate=1999"), {**entry("POST", "Patient", PATIENT), "fullUrl": NEW},
            entry("POST", "Observation", MINE), entry("PUT", "Observation/own", {**MINE, "id": "own"}),
            entry("PUT", "Patient/pat-2", {"resourceType": "Patient", "id": "pat-2", "active": True}), entry("DELETE", "Patient/pat-3"),
        )  # fmt: skip
        assert reply.status == 200, reply.body
        assert statuses(reply) == ["200", "201", "201", "201", "200", "204"], reply.body
        assert reply.json["type"] == "transaction-response" and here.upstream not in reply.body.decode()
        rows = reply.json["entry"]
        patient = rows[1]["response"]["location"].split("/_history")[0].removeprefix(f"{here.base}/")
        assert [e["resource"]["id"] for e in rows[0]["resource"]["entry"]] == [patient.split("/")[1]]
        assert (
            rows[2]["resource"]["subject"]["reference"]
            == patient
            == (await here.direct("/Observation/own"))["subject"]["reference"]
        )
        assert sent(here) == ["/fhir?"] and not here.parts.journal.intents.open
        records = here.records()
        whole = next(row for row in records if row.get("interaction") == "transaction")
        assert whole["decision"] == reply.headers["x-request-id"] and len(whole["entries"]) == 6
        intents = [row for row in records if row["outcome"] == "intended"]
        assert len(intents) == 5 and {row["request"] for row in intents} == {whole["decision"]}
        assert {row["decision"] for row in records if row["outcome"] == "released"} == {whole["decision"], *whole["entries"]}


GOOD = entry("POST", "Observation", OBSERVATION)
BAD: list[tuple[Any, int, str]] = [
    (entry("GET", "Condition/x"), 403, "denied"),
    (entry("GET", "Patient/pat-1/../pat-2"), 400, "path"),
    (entry("GET", "http://127.0.0.1/fhir/Patient/pat-1"), 400, "relative"),
    (entry("GET", "Patient/pat-1/$meta-add"), 405, "not served"),
    (entry("POST", "Condition", {"resourceType": "Condition", "subject": {"reference": "Patient/pat-1"}}), 403, "denied"),
    (entry("POST", "Subscription", {"resourceType": "Subscription"}), 403, "act"),
    (entry("PUT", "Patient/vip", {"resourceType": "Patient", "id": "vip"}), 404, "no such"),
    (entry("PUT", "Patient/absent", {"resourceType": "Patient", "id": "absent"}), 404, "no such"),
    (entry("DELETE", "Patient/vip"), 404, "no such"),
    (entry("PUT", "Observation/obs", {**OBSERVATION, "id": "obs"}, ifMatch='W/"9"'), 412, "If-Match"),
    (entry("POST", "Observation", {**OBSERVATION, "subject": {"reference": "Patient/vip"}}), 422, "refers"),
    (entry("POST", "Observation", {**OBSERVATION, "subject": {"reference": "Patient/absent"}}), 422, "refers"),
    (entry("POST", "Observation", {**OBSERVATION, "subject": {"reference": "Patient?identifier=vip"}}), 403, "conditions"),
    (entry("PUT", "Patient?identifier=vip", PATIENT), 403, "conditions"),
    (entry("POST", "Patient", PATIENT, ifNoneExist="identifier=vip"), 403, "conditions"),
    (entry("POST", "Observation", {**OBSERVATION, "nonsense": 1}), 422, "R4"),
    (entry("PATCH", "Observation/obs", {"resourceType": "Binary", "contentType": "text/plain", "data": ""}), 400, "JSON Patch"),
    ({"request": None}, 400, "method"),
    (entry("POST", "Observation/$process", OBSERVATION), 400, "could not be undone"),
]


@pytest.mark.parametrize(("bad", "status", "text"), BAD)
async def test_one_denial_refuses_it_all_before_the_upstream_sees_any(tmp_path: Path, bad: Any, status: int, text: str) -> None:
    rules = {"rules": [*DELETING["rules"], DENYING["rules"][1]]}
    async with world(tmp_path, rules, make=Simulator) as here:
        here.store.load(
            [{"resourceType": "Patient", "id": "vip", "meta": {"security": [{"code": "VIP"}]}}, {**OBSERVATION, "id": "obs"}]
        )
        reply = await transact(here, here.token("user/*.cruds"), GOOD, bad, GOOD)
        assert reply.status == status and text in reply.json["issue"][0]["diagnostics"], reply.body
        assert "entry 1" in reply.json["issue"][0]["diagnostics"] and reply.json["issue"][0]["expression"][0].startswith(
            "Bundle.entry[1]"
        )
        assert not sent(here) and not [row for row in here.records() if row["outcome"] == "intended"]


async def test_hidden_and_absent_are_one_answer_in_a_transaction(tmp_path: Path) -> None:
    async with world(tmp_path, DENYING, make=Simulator) as here:
        here.store.put('{"resourceType":"Patient","id":"vip","meta":{"security":[{"code":"VIP"}]}}')
        token = here.token("user/*.cruds")
        for asked in ("GET {}", "PUT {}", "POST Observation"):
            answers = []
            for name in ("Patient/vip", "Patient/not"):
                method, _, url = asked.format(name).partition(" ")
                body = (
                    {**OBSERVATION, "subject": {"reference": name}}
                    if method == "POST"
                    else {"resourceType": "Patient", "id": name[8:]}
                )
                one = entry(method, url, body if method != "GET" else None)
                answers.append((await transact(here, token, one)).body.replace(b"vip", b"not"))
            assert answers[0] == answers[1]


async def test_what_is_there_already_is_named_by_its_id(tmp_path: Path) -> None:
    """A conditional create that matches, and a conditional reference, come to literal references before anything is judged."""
    async with world(tmp_path, OPEN, make=Simulator) as here:
        here.store.load([{**PATIENT, "id": "there"}])
        create = {**entry("POST", "Patient", PATIENT, ifNoneExist="identifier=urn:mrn|n-1"), "fullUrl": NEW}
        by_query = entry("POST", "Observation", {**OBSERVATION, "subject": {"reference": "Patient?identifier=urn:mrn|n-1"}})
        reply = await transact(here, here.token("user/*.cruds"), create, entry("POST", "Observation", MINE), by_query)
        assert statuses(reply) == ["200", "201", "201"], reply.body
        assert [row["resource"]["subject"]["reference"] for row in reply.json["entry"][1:]] == ["Patient/there"] * 2
        for reference, status in (
            ("Patient?identifier=urn:mrn|nobody", 412),
            ("Patient?gender=female", 412),
            ("Patient?nonsense=1", 400),
        ):
            bad = entry("POST", "Observation", {**OBSERVATION, "subject": {"reference": reference}})
            assert (await transact(here, here.token("user/*.cruds"), bad)).status == status


async def test_a_patients_app_cannot_smuggle_by_names(tmp_path: Path) -> None:
    async with world(tmp_path, OPEN, make=Simulator) as here:
        token = here.token("patient/*.cruds", patient="pat-1")
        for bad in (
            [{**entry("POST", "Patient", PATIENT), "fullUrl": NEW}, entry("POST", "Observation", MINE)],
            [{**entry("PUT", "Patient/pat-1", {"resourceType": "Patient", "id": "pat-1"}), "fullUrl": NEW},
             entry("POST", "Observation", {**MINE, "subject": {"reference": "Patient/pat-2"}})],
            [{**entry("POST", "Observation", OBSERVATION), "fullUrl": f"{here.base}/Patient/pat-2"},
             entry("POST", "Observation", {**OBSERVATION, "subject": {"reference": "Patient/pat-2"}})],
        ):  # fmt: skip
            assert (await transact(here, token, *bad)).status in {403, 422}
        twice = [
            entry("PUT", "Patient/pat-1", {"resourceType": "Patient", "id": "pat-1", "active": value}) for value in (True, False)
        ]
        assert (await transact(here, token, *twice)).status == 400
        named = [{**GOOD, "fullUrl": NEW}, {**GOOD, "fullUrl": NEW}]
        assert (await transact(here, token, *named)).status == 400
        assert not sent(here)
        own = {**entry("PUT", "Patient/pat-1", (await here.ask("/Patient/pat-1", token)).json), "fullUrl": NEW}
        assert (await transact(here, token, own, entry("POST", "Observation", MINE))).status == 200


async def test_a_redacted_callers_transaction_is_merged_and_answers_are_redacted(tmp_path: Path) -> None:
    rules: Any = NURSE["rules"][0]
    rules = {"rules": [{**rules, "allow": {"interactions": ["*"], "resources": ["Patient", "Observation"]}}]}
    async with world(tmp_path, rules, {"upstreams": [{"hidden_narrative": "drop"}]}, make=Simulator) as here:
        token = here.token("user/*.cruds", roles=["nurse"])
        before = await here.direct("/Patient/pat-1")
        seen = (await here.ask("/Patient/pat-1", token)).json
        assert seen != before
        reply = await transact(
            here, token, entry("PUT", "Patient/pat-1", {**seen, "active": False}, ifMatch=f'W/"{seen["meta"]["versionId"]}"')
        )
        assert statuses(reply) == ["200"], reply.body
        after = await here.direct("/Patient/pat-1")
        assert after["active"] is False and after["identifier"] == before["identifier"] and after["telecom"] == before["telecom"]
        shown = reply.json["entry"][0]
        assert shown["resource"] == (await here.ask("/Patient/pat-1", token)).json
        assert shown["response"]["etag"] == f'W/"{shown["resource"]["meta"]["versionId"]}"'


async def test_what_the_upstream_refuses_or_leaves_open_is_recorded_entry_by_entry(tmp_path: Path) -> None:
    class Odd(Simulator):
        odd: Any = None

        def serve(self, method: str, *rest: Any) -> Any:
            if method == "POST" and not rest[0] and self.odd:
                return self.odd
            return super().serve(method, *rest)

    async with world(tmp_path, OPEN, make=Odd) as here:
        token = here.token("user/*.cruds")
        outcome = json.dumps(
            {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "processing", "diagnostics": "S3CRET"}]}
        )
        short = json.dumps({"resourceType": "Bundle", "type": "transaction-response", "entry": []})
        half = json.dumps(
            {"resourceType": "Bundle", "type": "transaction-response", "entry": [{"response": {"status": "400 Bad"}}]}
        )
        odd: Any
        for odd, status, left in (((422, outcome, []), 422, 0), ((409, outcome, []), 409, 0), ((500, outcome, []), 502, 1), ((200, short, []), 502, 2), ((200, half, []), 502, 3)):  # fmt: skip
            here.store.odd = odd
            reply = await transact(here, token, GOOD)
            assert reply.status == status and b"S3CRET" not in reply.body
            assert len(here.parts.journal.intents.open) == left
        rows = [row for row in here.records() if row.get("interaction") == "create" and row["outcome"] == "denied"]
        assert [row["reason"] for row in rows] == ["upstream-refused"] * 2 + ["outcome-unknown"] * 3


async def test_a_transaction_whose_answer_never_came_is_open(tmp_path: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            await broken()
        await store(scope, receive, send)

    store = Simulator("http://upstream.invalid/fhir")
    store.load([{"resourceType": "Patient", "id": "pat-1"}])
    async with world(tmp_path, OPEN, upstream=app) as here:
        reply = await transact(here, here.token("user/*.cruds"), GOOD, GOOD)
        assert reply.status == 502 and reply.json["issue"][0]["code"] == "incomplete"
        assert len(here.parts.journal.intents.open) == 2


async def test_without_the_journal_nothing_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path, OPEN, make=Simulator) as here:

        def full(group: list[bytes]) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(here.parts.journal, "_commit", full)
        reply = await here.ask("", here.token("user/*.cruds"), "POST", headers=FHIR,
                               data=json.dumps({"resourceType": "Bundle", "type": "transaction", "entry": [GOOD]}))  # fmt: skip
        assert reply.status == 503 and not sent(here)
