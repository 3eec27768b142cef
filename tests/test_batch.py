"""Batches: each entry is the request that it is, decided, answered and recorded by itself."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.test_shield import NURSE
from tests.test_writes import FHIR
from tests.world import OPEN, Reply, World, world


def entry(method: str, url: str, resource: Any = None, **request: str) -> dict[str, Any]:
    made: dict[str, Any] = {"request": {"method": method, "url": url, **request}}
    return made | ({"resource": resource} if resource is not None else {})


async def batch(here: World, token: str, *entries: Any, kind: str = "batch") -> Reply:
    body = {"resourceType": "Bundle", "type": kind, "entry": list(entries)}
    return await here.ask("", token, "POST", data=json.dumps(body), headers=FHIR)


OBSERVATION = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}, "subject": {"reference": "Patient/pat-1"}}


@pytest.mark.promise
async def test_each_entry_is_decided_and_recorded_as_the_request_that_it_is(tmp_path: Path) -> None:
    async with world(tmp_path, NURSE) as here:
        here.store.put('{"resourceType":"Patient","id":"vip","meta":{"security":[{"code":"VIP"}]},"birthDate":"1970"}')
        token = here.token("user/*.cruds", roles=["nurse"])
        asked = ["Patient/pat-1", "Patient/vip", "Patient/nobody", "Patient?birthdate=1980", "Patient?_count=1", "Condition/x", "metadata",
                 "Patient/pat-1/../pat-2", "Patient/pat-1/$graphql"]  # fmt: skip
        reply = await batch(here, token, *(entry("GET", url) for url in asked), entry("POST", "Observation", OBSERVATION))
        assert reply.status == 200 and reply.json["type"] == "batch-response" and here.upstream not in reply.body.decode()
        rows = reply.json["entry"]
        assert [row["response"]["status"][:3] for row in rows] == [
            "200",
            "404",
            "404",
            "403",
            "200",
            "403",
            "405",
            "400",
            "405",
            "403",
        ]
        alone = await here.ask("/Patient/pat-1", token)
        assert rows[0]["resource"] == alone.json and rows[0]["response"]["etag"] == alone.headers["etag"]
        assert rows[1]["response"] == rows[2]["response"] and len(rows[4]["resource"]["entry"]) == 1
        records = here.records()
        whole = next(row for row in records if row.get("interaction") == "batch")
        inner = {row["decision"]: row for row in records if row["decision"] in whole["entries"]}
        assert len(inner) == len(rows) == len(whole["entries"]) and whole["decision"] == reply.headers["x-request-id"]
        assert [inner[d]["reason"] for d in whole["entries"]][:4] == [
            "permitted",
            "denied-by-rule",
            "not-found",
            "revealing-parameter",
        ]


async def test_writes_in_a_batch_are_writes(tmp_path: Path) -> None:
    async with world(tmp_path, OPEN) as here:
        token = here.token("user/*.cruds")
        patch = base64.b64encode(json.dumps([{"op": "replace", "path": "/active", "value": False}]).encode()).decode()
        binary = {"resourceType": "Binary", "contentType": "application/json-patch+json", "data": patch}
        reply = await batch(
            here,
            token,
            entry("POST", "Observation", OBSERVATION),
            entry("PUT", "Observation/mine", {**OBSERVATION, "id": "mine"}),
            entry("PUT", "Observation/mine", {**OBSERVATION, "id": "mine", "status": "amended"}, ifMatch='W/"7"'),
            entry("PATCH", "Patient/pat-1", binary),
            entry("DELETE", "Observation/mine"),
            entry("POST", "Observation", {**OBSERVATION, "subject": {"reference": "Patient/nobody"}}),
            entry("POST", "Subscription", {"resourceType": "Subscription"}),
            entry("GET", "Observation/mine"),
        )
        statuses = [row["response"]["status"][:3] for row in reply.json["entry"]]
        assert statuses == ["201", "201", "412", "200", "403", "422", "403", "200"]
        assert reply.json["entry"][0]["response"]["location"].startswith(f"{here.base}/Observation/made-")
        assert (await here.direct("/Patient/pat-1"))["active"] is False
        assert not here.parts.journal.intents.open


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"resourceType": "Bundle", "type": "transaction", "entry": []}, 200),
        ({"resourceType": "Bundle", "type": "collection"}, 400),
        ({"resourceType": "Patient"}, 400),
        ({"resourceType": "Bundle", "type": "batch", "entry": {}}, 400),
        ({"resourceType": "Bundle", "type": "batch", "entry": [{}] * 1001}, 413),
        ({"resourceType": "Bundle", "type": "batch"}, 200),
    ],
)
async def test_what_is_no_batch_is_refused_whole(tmp_path: Path, body: Any, status: int) -> None:
    async with world(tmp_path, OPEN) as here:
        reply = await here.ask("", here.token(), "POST", data=json.dumps(body), headers=FHIR)
        assert reply.status == status


@pytest.mark.parametrize(
    "request_",
    [
        {}, {"method": "GET"}, {"url": "Patient/pat-1"}, {"method": "TRACE", "url": "Patient/pat-1"}, {"method": "GET", "url": ""},
        {"method": "GET", "url": "/Patient/pat-1"}, {"method": "GET", "url": "http://127.0.0.1/fhir/Patient/pat-1"},
        {"method": "GET", "url": "Patient/pat 1"}, {"method": "GET", "url": "Patient/pat-1#x"}, {"method": "GET", "url": "Patient/\u00e9"},
        {"method": "POST", "url": "?x=y"}, {"method": "GET", "url": ["Patient/pat-1"]}, None, 5,
    ],
)  # fmt: skip
async def test_an_entry_that_cannot_be_read_one_way_is_refused_alone(tmp_path: Path, request_: Any) -> None:
    async with world(tmp_path, OPEN) as here:
        reply = await batch(here, here.token(), {"request": request_}, entry("GET", "Patient/pat-1"))
        assert [row["response"]["status"][:3] for row in reply.json["entry"]] == ["400", "200"]


async def test_without_the_journal_no_entry_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path, OPEN) as here:

        def full(group: list[bytes]) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(here.parts.journal, "_commit", full)
        reply = await batch(here, here.token(), entry("GET", "Patient/pat-1"))
        assert reply.status == 503 and b"pat-1" not in reply.body


async def test_a_stored_bundle_is_within_the_limits_too(tmp_path: Path) -> None:
    async with world(tmp_path, OPEN, {"limits": {"entries": 3}}) as here:
        token = here.token("user/*.cruds")
        for number, status in ((3, 201), (4, 413)):
            body = {"resourceType": "Bundle", "type": "collection", "entry": [{"fullUrl": "urn:x"}] * number}
            assert (await here.ask("/Bundle", token, "POST", data=json.dumps(body), headers=FHIR)).status == status
