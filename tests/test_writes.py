"""Writes on the whole stack: intents before, outcomes after, and what becomes of those that nobody knows the end of."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fhirshield.audit.intents import intents_of
from fhirshield.audit.journal import segments_of
from fhirshield.cli import main
from fhirshield.demo.store import Store
from fhirshield.recovery import Recovery
from tests.audit import records
from tests.audit.test_durability import around, shield, up
from tests.world import Reply, World, world

FHIR = {"Content-Type": "application/fhir+json"}
PATCH = {"Content-Type": "application/json-patch+json"}
OBSERVATION = {
    "resourceType": "Observation",
    "id": "o1",
    "status": "final",
    "code": {"text": "x"},
    "subject": {"reference": "Patient/pat-1"},
}


async def put(here: World, body: Any, **headers: str) -> Reply:
    path = f"/{body['resourceType']}/{body['id']}"
    return await here.ask(path, here.token("user/*.cruds"), "PUT", data=json.dumps(body), headers={**FHIR, **headers})


def outcomes(here: World) -> list[str]:
    return [row["outcome"] for row in here.records()]


async def settled(here: World) -> list[dict[str, Any]]:
    """What a round of recovery records."""
    parts = here.parts
    before = len(here.records())
    await Recovery(parts.journal, lambda: parts.servers, parts.ring.digest, lambda: dt.datetime.now(dt.UTC), 0).round()
    return here.records()[before:]


class Upstream:
    """The demo's store with something going wrong around its writes."""

    def __init__(
        self, before: Callable[[], Awaitable[None]] | None = None, after: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self.store = Store("http://upstream.invalid/fhir")
        self.store.load([OBSERVATION, {"resourceType": "Patient", "id": "pat-1"}])
        self.before, self.after = before, after
        self.asked: list[dict[str, str]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        writes = scope["type"] == "http" and scope["method"] in {"PUT", "POST", "DELETE"}
        if writes:
            self.asked.append({name.decode(): value.decode() for name, value in scope["headers"]})
        if writes and self.before:
            await self.before()
        kept: list[Any] = []

        async def hold(message: Any) -> None:
            kept.append(message)

        await self.store(scope, receive, hold)
        if writes and self.after:
            await self.after()
        for message in kept:
            await send(message)


async def broken() -> None:
    raise ConnectionResetError


@pytest.mark.promise
async def test_no_write_reaches_the_upstream_before_its_intent_is_durable(tmp_path: Path) -> None:
    found: list[Any] = []

    async def look() -> None:
        rows = await asyncio.to_thread(records, tmp_path / "audit")
        found.append([row for row in rows if row["decision"] == upstream.asked[-1]["x-request-id"]])

    upstream = Upstream(before=look)
    async with world(tmp_path, upstream=upstream) as here:
        assert (await put(here, {**OBSERVATION, "status": "amended"})).status == 200
        ((intent,),) = found
        assert intent["outcome"] == "intended" and intent["over"] == "1" and intent["patients"] == ["pat-1"]
        assert "amended" not in json.dumps(intent)
        assert outcomes(here) == ["intended", "released"]
        assert {row["decision"] for row in here.records()} == {intent["decision"]}
        assert not here.parts.journal.intents.open


@pytest.mark.promise
async def test_a_write_that_cannot_be_recorded_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = Upstream()
    async with world(tmp_path, upstream=upstream) as here:
        with monkeypatch.context() as patch:
            patch.setattr(here.parts.journal, "_commit", _no_space)
            answer = await put(here, {**OBSERVATION, "status": "amended"})
        assert answer.status == 503 and "retry-after" in answer.headers and not upstream.asked
        assert (await put(here, {**OBSERVATION, "status": "amended"})).status == 200


def _no_space(group: list[bytes]) -> int:
    raise OSError(28, "No space left on device")


@pytest.mark.promise
async def test_a_write_whose_outcome_cannot_be_recorded_is_said_to_be_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fill() -> None:
        monkeypatch.setattr(here.parts.journal, "_commit", _no_space)

    upstream = Upstream(after=fill)
    async with world(tmp_path, upstream=upstream) as here:
        answer = await put(here, {**OBSERVATION, "status": "amended"})
        assert answer.status == 500 and "retry-after" not in answer.headers and b"not known" in answer.body
        monkeypatch.undo()
        assert len(here.parts.journal.intents.open) == 1
        (row,) = [row for row in await settled(here) if row["outcome"] == "recovered"]
        assert row["result"] == "carried out" and row["version"] == "2"
        assert not here.parts.journal.intents.open


@pytest.mark.promise
@pytest.mark.parametrize(("acts", "result"), [(True, "carried out"), (False, "not carried out")])
async def test_the_upstreams_history_tells_what_became_of_a_write(tmp_path: Path, acts: bool, result: str) -> None:
    upstream = Upstream(after=broken) if acts else Upstream(before=broken)
    async with world(tmp_path, upstream=upstream) as here:
        answer = await put(here, {**OBSERVATION, "status": "amended"})
        assert answer.status == 502 and "retry-after" not in answer.headers and b"not known" in answer.body
        assert here.records()[-1]["reason"] == "outcome-unknown"
        (row,) = await settled(here)
        assert (row["outcome"], row["result"]) == ("recovered", result)
        assert row["decision"] == here.records()[0]["decision"]


@pytest.mark.parametrize(
    ("method", "path", "body", "acts", "result"),
    [
        ("POST", "/Observation", {"resourceType": "Observation", "status": "final", "code": {"text": "new"}}, True, "carried out"),
        ("POST", "/Observation", {"resourceType": "Observation", "status": "final", "code": {"text": "new"}}, False, None),
        ("PUT", "/Observation/o2", {**OBSERVATION, "id": "o2"}, True, "carried out"),
        ("PUT", "/Observation/o2", {**OBSERVATION, "id": "o2"}, False, "not carried out"),
        ("PATCH", "/Observation/o1", [{"op": "replace", "path": "/status", "value": "amended"}], True, "carried out"),
        ("DELETE", "/Observation/o1", None, True, "carried out"),
        ("DELETE", "/Observation/o1", None, False, "not carried out"),
    ],
)
async def test_every_kind_of_write_is_settled(
    tmp_path: Path, method: str, path: str, body: Any, acts: bool, result: str | None
) -> None:
    upstream = Upstream(after=broken) if acts else Upstream(before=broken)
    async with world(tmp_path, settings={"upstreams": [{"delete_if_match": True}]}, upstream=upstream) as here:
        data = json.dumps(body) if body is not None else None
        headers = (PATCH if method == "PATCH" else FHIR) if data else {}
        assert (await here.ask(path, here.token("user/*.cruds"), method, data=data, headers=headers)).status == 502
        found = await settled(here)
        assert [row["result"] for row in found] == ([result] if result else [])
        assert len(here.parts.journal.intents.open) == (result is None)


async def test_somebody_elses_version_settles_nothing(tmp_path: Path) -> None:
    """The next version is not what was written: whether ours was carried out and written over, no history tells."""

    async def other() -> None:
        upstream.store.write("PUT", ["Observation", "o1"], json.dumps({**OBSERVATION, "status": "cancelled"}), {})
        raise ConnectionResetError

    upstream = Upstream(before=other)
    async with world(tmp_path, upstream=upstream) as here:
        assert (await put(here, {**OBSERVATION, "status": "amended"})).status == 502
        assert await settled(here) == [] and len(here.parts.journal.intents.open) == 1


@pytest.mark.parametrize(
    "odd",
    [
        {"entry": 5, "link": "x"}, {"entry": [5, None, {"resource": 7, "request": "x", "response": []}], "link": [3, {"relation": "next"}]},
        {"entry": [{"resource": {"resourceType": "Observation", "meta": 5}}]}, {"link": [{"relation": "next", "url": 5}]},
    ],
)  # fmt: skip
async def test_an_odd_history_ends_no_recovery(tmp_path: Path, odd: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].endswith("_history"):
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/fhir+json")]})
            body = {"resourceType": "Bundle", "type": "history", **odd}
            await send({"type": "http.response.body", "body": json.dumps(body).encode()})
        else:
            await upstream(scope, receive, send)

    upstream = Upstream(before=broken)
    async with world(tmp_path, upstream=app) as here:
        assert (await put(here, {**OBSERVATION, "status": "amended"})).status == 502
        assert await settled(here) == [] and len(here.parts.journal.intents.open) == 1


async def test_an_upstream_that_was_not_reached_did_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, upstream="http://127.0.0.1:9/fhir") as here:
        body = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}}
        answer = await here.ask("/Observation", here.token("user/*.cruds"), "POST", data=json.dumps(body), headers=FHIR)
        assert answer.status == 502 and b"nothing was written" in answer.body
        assert outcomes(here) == ["intended", "denied"] and not here.parts.journal.intents.open
        assert (await put(here, OBSERVATION)).status == 503


async def test_an_upstream_that_is_slow_leaves_the_outcome_open(tmp_path: Path) -> None:
    async def slow() -> None:
        await asyncio.sleep(1)

    settings = {"upstreams": [{"timeout": {"answer": "300ms"}}]}
    async with world(tmp_path, settings=settings, upstream=Upstream(after=slow)) as here:
        answer = await put(here, {**OBSERVATION, "status": "amended"})
        assert answer.status == 504 and here.records()[-1]["reason"] == "outcome-unknown"
        await asyncio.sleep(1)
        assert [row["result"] for row in await settled(here)] == ["carried out"]


@pytest.mark.promise
async def test_a_change_between_judging_and_writing_is_412(tmp_path: Path) -> None:
    async def other() -> None:
        upstream.before = None
        upstream.store.write("PUT", ["Observation", "o1"], json.dumps({**OBSERVATION, "status": "cancelled"}), {})

    upstream = Upstream(before=other)
    async with world(tmp_path, upstream=upstream) as here:
        answer = await put(here, {**OBSERVATION, "status": "amended"})
        assert answer.status == 412 and here.records()[-1]["reason"] == "stale-version"
        assert (await here.direct("/Observation/o1"))["status"] == "cancelled"
        assert not here.parts.journal.intents.open


def saying(status: int, body: Any, **headers: str) -> Any:
    """An upstream that reads well and answers every write the same."""
    store = Store("http://upstream.invalid/fhir")
    store.load([OBSERVATION, {"resourceType": "Patient", "id": "pat-1"}])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] == "GET":
            return await store(scope, receive, send)
        fields = [(b"content-type", b"application/fhir+json"), *((k.lower().encode(), v.encode()) for k, v in headers.items())]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        content = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        await send({"type": "http.response.body", "body": content})

    return app


@pytest.mark.parametrize(
    ("status", "body", "headers", "told", "reason"),
    [
        (401, None, {}, 502, "upstream-failed"),
        (403, None, {}, 502, "upstream-failed"),
        (405, None, {}, 405, "upstream-refused"),
        (409, None, {}, 409, "upstream-refused"),
        (412, None, {}, 412, "upstream-refused"),
        (422, None, {}, 422, "upstream-refused"),
        (429, None, {"Retry-After": "7"}, 429, "upstream-refused"),
        (302, None, {"Location": "http://elsewhere.invalid"}, 502, "upstream-failed"),
        (500, {"resourceType": "OperationOutcome"}, {}, 502, "outcome-unknown"),
        (200, b"{", {}, 502, "outcome-unknown"),
        (200, {"resourceType": "Observation", "id": "another"}, {}, 502, "outcome-unknown"),
        (200, None, {"ETag": 'W/"9"'}, 200, "permitted"),
        (204, None, {}, 200, "permitted"),
        (200, {"resourceType": "OperationOutcome", "issue": [{"diagnostics": "Secret Name"}]}, {}, 200, "permitted"),
        (200, {"resourceType": "Patient", "id": "o1", "name": [{"family": "Secret"}]}, {}, 200, "permitted"),
    ],
)
async def test_what_an_upstream_may_say_of_a_write(
    tmp_path: Path, status: int, body: Any, headers: dict[str, str], told: int, reason: str
) -> None:
    async with world(tmp_path, upstream=saying(status, body, **headers)) as here:
        answer = await put(here, {**OBSERVATION, "status": "amended"})
        assert answer.status == told and here.records()[-1]["reason"] == reason
        assert b"Secret" not in answer.body and b"invalid" not in answer.body.replace(b'"code":"invalid"', b"")
        assert answer.headers.get("retry-after") == headers.get("Retry-After")
        assert answer.headers.get("etag") == (headers.get("ETag") if told == 200 else None)


async def test_what_the_upstream_finds_wrong_is_told_in_our_words(tmp_path: Path) -> None:
    issue = {
        "severity": "error", "code": "invariant", "diagnostics": "Jane Doe (pat-77) is not allowed",
        "expression": ["Observation.code", "Observation.component[3].code", "Patient.name", "Observation.subject.resolve()", "x'y"],
    }  # fmt: skip
    outcome = {"resourceType": "OperationOutcome", "issue": [issue]}
    async with world(tmp_path, upstream=saying(422, outcome)) as here:
        answer = await put(here, {**OBSERVATION, "status": "amended"})
        assert answer.status == 422
        assert answer.json["issue"] == [
            {"severity": "error", "code": "invariant", "diagnostics": "the server does not accept this request",
             "expression": ["Observation.code"]}
        ]  # fmt: skip


async def test_a_create_is_told_where_it_is(tmp_path: Path) -> None:
    body = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}, "valueQuantity": {"value": 1.10}}
    text = json.dumps(body).replace("1.1", "1.10")
    async with world(tmp_path) as here:
        token = here.token("user/*.cruds")
        answer = await here.ask("/Observation", token, "POST", data=text, headers=FHIR)
        assert answer.status == 201 and answer.headers["location"] == f"{here.base}/Observation/made-1/_history/1"
        assert answer.headers["etag"] == 'W/"1"' and b'"value":1.10}' in answer.body
        assert here.records()[-1]["id"] == "made-1" and here.records()[-1]["status"] == 201
        minimal = await here.ask("/Observation", token, "POST", data=text, headers={**FHIR, "Prefer": "return=minimal"})
        assert (minimal.status, minimal.body) == (201, b"") and minimal.headers["location"].endswith("made-2/_history/1")
        said = await here.ask("/Observation", token, "POST", data=text, headers={**FHIR, "Prefer": "return=OperationOutcome"})
        assert said.json["issue"][0]["severity"] == "information"
        assert b"1.10" in (await here.ask("/Observation/made-1", token)).body
        assert [t for m, t, _ in here.seen if m == "POST"] == [b"/fhir/Observation?"] * 3


async def test_what_a_writer_may_not_read_it_is_not_shown(tmp_path: Path) -> None:
    rules = {
        "rules": [{"id": "feed", "who": {"roles": ["*"]}, "allow": {"interactions": ["create"], "resources": ["Observation"]}}]
    }
    async with world(tmp_path, rules) as here:
        body = json.dumps({"resourceType": "Observation", "status": "final", "code": {"text": "x"}})
        answer = await here.ask("/Observation", here.token("system/Observation.c"), "POST", data=body, headers=FHIR)
        assert (answer.status, answer.body) == (201, b"") and answer.headers["location"].startswith(
            f"{here.base}/Observation/made-1"
        )


async def test_a_redacted_writer_is_told_its_own_view(tmp_path: Path) -> None:
    rules = {
        "rules": [
            {"id": "clerk", "who": {"roles": ["*"]}, "allow": {"interactions": ["*"], "resources": ["*"]},
             "redact": [{"resources": ["Patient"], "path": "$.birthDate", "with": "generalize", "to": "year"}]}
        ]
    }  # fmt: skip
    async with world(tmp_path, rules, {"upstreams": [{"hidden_narrative": "drop"}]}) as here:
        token = here.token("user/*.cruds")
        before = await here.direct("/Patient/pat-1")
        seen = await here.ask("/Patient/pat-1", token)
        new = {**seen.json, "active": False}
        headers = {**FHIR, "If-Match": seen.headers["etag"]}
        answer = await here.ask("/Patient/pat-1", token, "PUT", data=json.dumps(new), headers=headers)
        assert answer.status == 200 and answer.json["birthDate"] == before["birthDate"][:4]
        after = await here.direct("/Patient/pat-1")
        assert after["birthDate"] == before["birthDate"] and after["active"] is False
        assert "REDACTED" not in json.dumps(after) and after["meta"]["versionId"] == "2"
        assert answer.headers["etag"] == (await here.ask("/Patient/pat-1", token)).headers["etag"] != seen.headers["etag"]
        assert (await here.ask("/Patient/pat-1", token, "PUT", data=json.dumps(new), headers=headers)).status == 412


async def test_our_urls_become_the_upstreams_and_back(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        token = here.token("user/*.cruds")
        body = {**OBSERVATION, "id": "url", "subject": {"reference": f"{here.base}/Patient/pat-1"}}
        answer = await put(here, body)
        assert answer.status == 201 and answer.json["subject"]["reference"] == f"{here.base}/Patient/pat-1"
        assert (await here.direct("/Observation/url"))["subject"]["reference"] == f"{here.upstream}/Patient/pat-1"
        again = (await here.ask("/Observation/url", token)).json
        assert (await put(here, again)).status == 200


@pytest.mark.promise
async def test_killed_in_the_middle_of_a_write_the_next_life_learns_its_end(tmp_path: Path) -> None:
    """kill -9 while the upstream has acted and not answered: the intent is found again, and the history tells."""
    acted = asyncio.Event()

    async def wait() -> None:
        acted.set()
        await asyncio.sleep(30)

    upstream = Upstream(after=wait)
    async with around(tmp_path, upstream, answer="2s") as (issuer, port):
        token = issuer.token("https://shield.example/fhir", "user/*.cruds", fhirUser="Practitioner/dr-reed")
        process = await asyncio.to_thread(shield, tmp_path)
        await up(port)
        asking = asyncio.create_task(ask_raw(port, token))
        await asyncio.wait_for(acted.wait(), 10)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert await asking == b""
        (left,) = intents_of(segments_of(tmp_path / "audit")).open.values()
        assert left["interaction"] == "update" and left["over"] == "1"
        upstream.after = None
        process = await asyncio.to_thread(shield, tmp_path)
        try:
            await up(port)
            async with asyncio.timeout(20):
                while intents_of(segments_of(tmp_path / "audit")).open:
                    await asyncio.sleep(0.2)
        finally:
            process.terminate()
            process.wait()
    (row,) = [row for row in records(tmp_path / "audit") if row["outcome"] == "recovered"]
    assert row["decision"] == left["decision"] and row["result"] == "carried out"


async def ask_raw(port: int, token: str) -> bytes:
    """One PUT on a connection of its own; what comes back before it ends."""
    content = json.dumps({**OBSERVATION, "status": "amended"}).encode()
    head = f"PUT /fhir/Observation/o1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
    head += f"Content-Type: application/fhir+json\r\nContent-Length: {len(content)}\r\n\r\n"
    reader, stream = await asyncio.open_connection("127.0.0.1", port)
    stream.write(head.encode() + content)
    found = b""
    with contextlib.suppress(ConnectionError):
        found = await reader.read()
    stream.close()
    return found


async def test_open_intents_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with world(tmp_path, upstream=Upstream(before=broken)) as here:
        await put(here, {**OBSERVATION, "status": "amended"})
        assert "fhirshield_open_intents 1.0" in here.parts.metrics.text().decode()
    assert await asyncio.to_thread(main, ["audit", "intents", str(tmp_path / "audit")]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["type"] == "Observation"
