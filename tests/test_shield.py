"""The sentence, end to end on loopback: a real issuer, a real upstream, a real journal."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from fhirshield.audit.journal import verify
from fhirshield.redact.program import Program
from tests.world import OPEN, World, world

NURSE = {
    "rules": [
        {
            "id": "nurse",
            "who": {"roles": ["nurse"]},
            "allow": {"interactions": ["read", "vread", "search"], "resources": ["Patient", "Observation", "Practitioner"]},
            "redact": [
                {
                    "resources": ["Patient"],
                    "path": "$.identifier[?@.system=='http://hl7.org/fhir/sid/us-ssn'].value",
                    "with": "remove",
                },
                {"resources": ["Patient"], "path": "$.birthDate", "with": "generalize", "to": "year"},
            ],
        },
        {"id": "vip", "who": {"roles": ["*"]}, "deny": {"interactions": ["*"], "resources": ["Patient?_security=VIP"]}},
    ]
}


async def test_a_read_is_redacted_marked_and_recorded(tmp_path: Path) -> None:
    async with world(tmp_path, NURSE) as here:
        before = await here.direct("/Patient/pat-1")
        answer = await here.ask("/Patient/pat-1", here.token(roles=["nurse"]))
        assert answer.status == 200
        patient = answer.json
        assert patient["birthDate"] == before["birthDate"][:4]
        assert [i.get("value") for i in patient["identifier"]] == [before["identifier"][0]["value"], None]
        assert "text" not in patient and "lastUpdated" not in patient["meta"]
        assert [c["code"] for c in patient["meta"]["security"]] == ["REDACTED"]
        assert answer.headers["etag"] == f'W/"{patient["meta"]["versionId"]}"'
        assert "last-modified" not in answer.headers and "x-powered-by" not in answer.headers
        assert answer.headers["content-location"] == f"{here.base}/Patient/pat-1"
        (row,) = here.records()
        assert row["decision"] == answer.headers["x-request-id"]
        assert (row["outcome"], row["rule"], row["patients"]) == ("released", "nurse", ["pat-1"])
        assert row["redacted"]["nurse"] == 2
        assert before["identifier"][1]["value"] not in json.dumps(here.records())


async def test_an_unrestricted_view_is_the_upstreams_own(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        token = here.token("system/*.cruds")
        for path in ("/Patient/pat-1", "/Observation/pat-1-obs-0"):
            answer = await here.ask(path, token)
            assert answer.json == await here.direct(path)
            assert answer.headers["etag"] == 'W/"1"'
        version = await here.ask("/Patient/pat-1/_history/1", token)
        assert version.json == await here.direct("/Patient/pat-1")


@pytest.mark.promise
async def test_only_what_is_needed_travels_upstream(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        headers = {"X-Evil": "1", "Cookie": "a=b", "Forwarded": "for=1", "Accept": "*/*"}
        await here.ask("/Patient/pat-1?_pretty=true", here.token(), headers=headers)
        method, target, sent = here.seen[-1]
        assert (method, target) == ("GET", b"/fhir/Patient/pat-1?")
        assert set(sent) == {"host", "accept", "accept-encoding"}


@pytest.mark.promise
@pytest.mark.parametrize(
    ("path", "method", "status", "reason"),
    [
        ("/Patient/pat-1", "DELETE", 403, "no-rule"),
        ("/Patient", "POST", 415, "malformed-request"),
        ("/Patient/pat-1/$graphql", "GET", 405, "not-served"),
        ("/Patient/pat-1/_history", "GET", 403, "no-rule"),
        ("/Patient/pat-1/Observation", "GET", 405, "not-served"),
        ("?_type=Patient", "GET", 405, "not-served"),
        ("", "POST", 415, "malformed-request"),
        ("/Patient/pat-1/_history/1", "GET", 404, "not-found"),
        ("/Condition/pat-1-con-0", "GET", 403, "no-rule"),
        ("/Patient?birthdate=1980", "GET", 403, "revealing-parameter"),
        ("/Patient?birthdate:missing=true", "GET", 403, "revealing-parameter"),
        ("/Patient?_sort=-birthdate", "GET", 403, "revealing-parameter"),
        ("/Patient?identifier=x", "GET", 403, "revealing-parameter"),
        ("/Patient?identifier=http://hl7.org/fhir/sid/us-ssn%7C9", "GET", 403, "revealing-parameter"),
        ("/Patient?identifier=%7C9", "GET", 403, "revealing-parameter"),
        ("/Patient?_lastUpdated=ge2020", "GET", 403, "revealing-parameter"),
        ("/Patient?_sort=_lastUpdated", "GET", 403, "revealing-parameter"),
        ("/Patient?_source=x", "GET", 403, "revealing-parameter"),
        ("/Patient?general-practitioner.name=x", "GET", 400, "unknown-parameter"),
        ("/Patient?_has:Observation:nothing:code=x", "GET", 400, "unknown-parameter"),
        ("/Patient?_text=x", "GET", 403, "revealing-parameter"),
        ("/Patient?_filter=x", "GET", 403, "revealing-parameter"),
        ("/Patient?_include=Patient:name", "GET", 400, "unknown-parameter"),
        ("/Patient?_include=Nobody:link", "GET", 400, "unknown-parameter"),
        ("/Patient?_revinclude=*", "GET", 400, "unknown-parameter"),
        ("/Patient?_summary=counted", "GET", 400, "unknown-parameter"),
        ("/Patient?_elements=nothing", "GET", 400, "unknown-parameter"),
        ("/Patient?_total=exact", "GET", 400, "unknown-parameter"),
        ("/Patient?name:text=x", "GET", 400, "unknown-parameter"),
        ("/Patient?foo=x", "GET", 400, "unknown-parameter"),
        ("/Patient/nobody", "GET", 404, "not-found"),
        ("/patient/1", "GET", 400, "malformed-request"),
        ("/Patient/1?_format=xml", "GET", 406, "not-acceptable"),
    ],
)
async def test_refusals_say_so_and_are_recorded(tmp_path: Path, path: str, method: str, status: int, reason: str) -> None:
    async with world(tmp_path, NURSE) as here:
        answer = await here.ask(path, here.token("user/*.cruds", roles=["nurse"]), method)
        assert answer.status == status
        assert answer.json["resourceType"] == "OperationOutcome"
        assert here.records()[-1]["reason"] == reason
        upstream = [target for _, target, _ in here.seen if b"metadata" not in target]
        assert bool(upstream) is (reason == "not-found")


@pytest.mark.promise
async def test_withheld_and_absent_are_one_answer(tmp_path: Path) -> None:
    async with world(tmp_path, NURSE) as here:
        here.store.put('{"resourceType":"Patient","id":"vip","meta":{"security":[{"code":"VIP"}]},"birthDate":"1970"}')
        token = here.token(roles=["nurse"])
        withheld, absent = await here.ask("/Patient/vip", token), await here.ask("/Patient/nobody", token)
        assert (withheld.status, withheld.body) == (absent.status, absent.body)
        assert {k: v for k, v in withheld.headers.items() if k not in {"x-request-id", "date"}} == {
            k: v for k, v in absent.headers.items() if k not in {"x-request-id", "date"}
        }
        assert [row["reason"] for row in here.records()] == ["denied-by-rule", "not-found"]


async def test_no_token_means_401_with_the_right_challenge(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        none, bad = await here.ask("/Patient/pat-1"), await here.ask("/Patient/pat-1", "x.y.z")
        assert none.headers["www-authenticate"] == "Bearer"
        assert bad.headers["www-authenticate"] == 'Bearer error="invalid_token"'
        other = await here.ask("/Patient/pat-1", here.token(aud="https://elsewhere.example/fhir"))
        assert (none.status, bad.status, other.status) == (401, 401, 401)
        narrow = await here.ask("/Patient/pat-1", here.token("user/Observation.rs"))
        assert narrow.status == 403 and 'insufficient_scope"' in narrow.headers["www-authenticate"]
        assert here.seen == []


@pytest.mark.promise
async def test_a_patients_app_sees_the_patients_own_and_nothing_else(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        token = here.token("patient/*.rs", patient="pat-1", fhirUser="Patient/pat-1")
        own = (await here.ask("/Observation?_count=50", token)).json
        assert {e["resource"]["subject"]["reference"] for e in own["entry"]} == {"Patient/pat-1"}
        assert b"patient=Patient%2Fpat-1" in here.seen[-1][1]
        overridden = (await here.ask("/Observation?patient=Patient/pat-2", token)).json
        assert "entry" not in overridden
        assert [e["resource"]["id"] for e in (await here.ask("/Patient", token)).json["entry"]] == ["pat-1"]
        assert (await here.ask("/Patient/pat-2", token)).status == 404
        before = len(here.seen)
        assert "entry" not in (await here.ask("/Device", token)).json
        assert len(here.seen) == before
        here.store.put(
            '{"resourceType":"Observation","id":"other","status":"final","code":{"text":"x"},'
            '"subject":{"reference":"Patient/pat-2"},"performer":[{"reference":"Patient/pat-1"}]}'
        )
        assert (await here.ask("/Observation/other", token)).status == 404


@pytest.mark.promise
async def test_searches_are_filtered_one_by_one_and_never_counted(tmp_path: Path) -> None:
    async with world(tmp_path, NURSE) as here:
        here.store.put('{"resourceType":"Patient","id":"vip","meta":{"security":[{"code":"VIP"}]},"birthDate":"1970"}')
        bundle = (await here.ask("/Patient?_count=50", here.token(roles=["nurse"]))).json
        ids = [e["resource"]["id"] for e in bundle["entry"]]
        assert "vip" not in ids and "total" not in bundle and "id" not in bundle
        assert all(e["fullUrl"] == f"{here.base}/Patient/{e['resource']['id']}" for e in bundle["entry"])
        assert here.upstream not in json.dumps(bundle)
        assert all(len(e["resource"]["birthDate"]) == 4 for e in bundle["entry"])


async def test_a_system_search_stays_open_where_the_filter_excludes_the_system(tmp_path: Path) -> None:
    async with world(tmp_path, NURSE) as here:
        mrn = (await here.direct("/Patient/pat-1"))["identifier"][0]
        token = here.token(roles=["nurse"])
        found = (await here.ask(f"/Patient?identifier={mrn['system']}%7C{mrn['value']}", token)).json
        assert [e["resource"]["id"] for e in found["entry"]] == ["pat-1"]


async def page_through(here: World, path: str, token: str) -> list[list[str]]:
    pages = []
    while path:
        bundle = (await here.ask(path, token)).json
        pages.append([e["resource"]["id"] for e in bundle.get("entry", [])])
        links = {link["relation"]: link["url"] for link in bundle["link"]}
        assert all(url.startswith(here.base) for url in links.values())
        path = links.get("next", "")
    return pages


async def test_pages_lead_on_and_back_by_links_of_ours(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        token = here.token()
        pages = await page_through(here, "/Observation?_count=7", token)
        ids = [i for page in pages for i in page]
        assert len(ids) == len(set(ids)) == 60 and [len(p) for p in pages[:-1]] == [7] * 8
        second = (await here.ask((await here.ask("/Observation?_count=7", token)).json["link"][1]["url"], token)).json
        back = {link["relation"]: link["url"] for link in second["link"]}["previous"]
        assert [e["resource"]["id"] for e in (await here.ask(back, token)).json["entry"]] == pages[0]


@pytest.mark.promise
async def test_a_page_link_is_its_callers_alone(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        url = (await here.ask("/Observation?_count=7", here.token(sub="a"))).json["link"][1]["url"]
        assert (await here.ask(url, here.token(sub="a"))).status == 200
        for token in (here.token(sub="b"), here.token("user/Observation.rs", sub="a"), here.token(sub="a", client_id="other")):
            assert (await here.ask(url, token)).status == 404
        broken = url[:-3] + ("AAA" if not url.endswith("AAA") else "BBB")
        assert (await here.ask(broken, here.token(sub="a"))).status == 404
        moved = url.replace("/Observation?", "/Patient?")
        assert (await here.ask(moved, here.token(sub="a"))).status == 404
        token = urlsplit(url).query.removeprefix("_page=")
        assert b"_offset" not in token.encode() and len(token) > 100


async def test_meta_is_revealed_where_a_rule_says_so(tmp_path: Path) -> None:
    reveal = {"resources": ["Patient"], "meta": ["lastUpdated", "versionId"]}
    open_to = {"interactions": ["*"], "resources": ["*"]}
    rules = {
        "rules": [
            *NURSE["rules"],
            {"id": "open", "who": {"roles": ["open"]}, "allow": open_to},
            {"id": "when", "who": {"roles": ["chief"]}, "reveal": reveal},
        ]
    }
    async with world(tmp_path, rules) as here:
        plain = await here.ask("/Patient/pat-1", here.token(roles=["nurse"]))
        chief = await here.ask("/Patient/pat-1", here.token(roles=["nurse", "chief"]))
        stored = (await here.ask("/Patient/pat-1", here.token(roles=["open"]))).json
        assert "lastUpdated" not in plain.json["meta"] and "last-modified" not in plain.headers
        assert chief.json["meta"]["lastUpdated"] == stored["meta"]["lastUpdated"]
        assert chief.json["meta"]["versionId"] == stored["meta"]["versionId"] == chief.headers["etag"][3:-1]
        assert chief.headers["last-modified"] and chief.json["meta"]["tag"][-1]["code"] == "SUBSETTED"
        asked = [await here.ask("/Patient?_lastUpdated=ge2020", here.token(roles=r)) for r in (["nurse"], ["nurse", "chief"])]
        assert [answer.status for answer in asked] == [403, 200]
        assert (await here.ask("/Patient?_source=x", here.token(roles=["nurse", "chief"]))).status == 403


async def test_head_is_get_without_a_body(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        token = here.token()
        head, get = await here.ask("/Patient/pat-1", token, "HEAD"), await here.ask("/Patient/pat-1", token)
        assert head.body == b"" and head.headers["content-length"] == get.headers["content-length"]
        assert head.headers["etag"] == get.headers["etag"]


async def test_search_by_post(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        answer = await here.ask("/Patient/_search", here.token(), "POST", data={"gender": "female", "_count": "50"})
        assert {e["resource"]["gender"] for e in answer.json["entry"]} == {"female"}
        method, target, _ = here.seen[-1]
        assert (method, target) == ("POST", b"/fhir/Patient/_search?")


async def test_metadata_and_smart_configuration_are_public_and_ours(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        statement = await here.ask("/metadata")
        assert statement.status == 200 and here.upstream.encode() not in statement.body
        document = statement.json
        assert document["implementation"]["url"] == here.base
        rows = {row["type"]: row for row in document["rest"][0]["resource"]}
        assert {i["code"] for i in rows["Patient"]["interaction"]} == {
            "read",
            "vread",
            "search-type",
            "create",
            "update",
            "patch",
            "delete",
        }
        uris = document["rest"][0]["security"]["extension"][0]["extension"]
        assert {"url": "token", "valueUri": f"{here.issuer.url}/token"} in uris
        smart = (await here.ask("/.well-known/smart-configuration")).json
        assert smart["token_endpoint"] == f"{here.issuer.url}/token" and "permission-v2" in smart["capabilities"]
        assert [row["interaction"] for row in here.records()] == ["capabilities", "smart-configuration"]


async def test_browser_apps_of_listed_origins(tmp_path: Path) -> None:
    origin = "https://app.example"
    async with world(tmp_path, settings={"upstreams": [{"origins": [origin]}]}) as here:
        ask = {"Origin": origin, "Access-Control-Request-Method": "GET"}
        allowed = await here.ask("/Patient/pat-1", method="OPTIONS", headers=ask)
        assert allowed.status == 204 and allowed.headers["access-control-allow-origin"] == origin
        other = await here.ask("/Patient/pat-1", method="OPTIONS", headers={**ask, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        answer = await here.ask("/Patient/pat-1", here.token(), headers={"Origin": origin})
        assert "ETag" in answer.headers["access-control-expose-headers"]


# --- failing dependencies ---------------------------------------------------------------------------------------------


def upstream_saying(status: int, body: bytes, content_type: bytes = b"application/fhir+json", *extra: Any, delay: float = 0) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await asyncio.sleep(delay)
        headers = [(b"content-type", content_type), *extra]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


SECRET = b"SSN 078-05-1120"


@pytest.mark.promise
@pytest.mark.parametrize(
    ("status", "body", "kind", "ours"),
    [
        (200, b"{", b"application/fhir+json", 502),
        (200, b"", b"application/fhir+json", 502),
        (200, b'"x"', b"application/fhir+json", 502),
        (200, b"[]", b"application/fhir+json", 502),
        (200, b'{"resourceType":"Patient"}', b"application/fhir+json", 502),
        (200, b'{"resourceType":"Patient","id":"other"}', b"application/fhir+json", 502),
        (200, b'{"resourceType":"Observation","id":"pat-1"}', b"application/fhir+json", 502),
        (200, b'{"resourceType":"Patient","id":"pat-1"}', b"text/html", 502),
        (200, b'{"resourceType":"Patient","id":"pat-1","x":"\xff"}', b"application/fhir+json", 502),
        (200, b'{"resourceType":"Patient","id":"pat-1","x":NaN}', b"application/fhir+json", 502),
        (200, b"[" * 5000 + b"]" * 5000, b"application/fhir+json", 502),
        (200, b"<Patient/>", b"application/fhir+xml", 502),
        (201, b'{"resourceType":"Patient","id":"pat-1"}', b"application/fhir+json", 502),
        (302, SECRET, b"text/html", 502),
        (400, SECRET, b"text/html", 400),
        (401, SECRET, b"text/html", 502),
        (403, SECRET, b"text/html", 502),
        (404, SECRET, b"text/html", 404),
        (410, SECRET, b"text/html", 404),
        (422, SECRET, b"text/html", 422),
        (429, SECRET, b"text/html", 429),
        (500, SECRET, b"text/html", 502),
        (503, SECRET, b"text/html", 502),
    ],
)
async def test_what_the_upstream_says_wrong_never_leaves(tmp_path: Path, status: int, body: bytes, kind: bytes, ours: int) -> None:
    app = upstream_saying(status, body, kind, (b"retry-after", b"7"), (b"set-cookie", b"a=b"))
    async with world(tmp_path, upstream=app) as here:
        answer = await here.ask("/Patient/pat-1", here.token())
        assert answer.status == ours and answer.json["resourceType"] == "OperationOutcome"
        assert SECRET not in answer.body and "set-cookie" not in answer.headers
        assert answer.headers.get("retry-after") == ("7" if status in {400, 422, 429} else None)


async def test_a_slow_upstream_is_504_and_one_that_is_away_502(tmp_path: Path) -> None:
    app = upstream_saying(200, b"{}", delay=0.5)
    async with world(tmp_path, upstream=app, settings={"upstreams": [{"timeout": {"answer": "100ms"}}]}) as here:
        assert (await here.ask("/Patient/pat-1", here.token())).status == 504
    other = tmp_path / "other"
    other.mkdir()
    async with world(other, upstream="http://127.0.0.1:9/fhir") as here:
        assert (await here.ask("/Patient/pat-1", here.token())).status == 502


async def test_compressed_and_oversized_answers_are_refused(tmp_path: Path) -> None:
    app = upstream_saying(200, b"\x1f\x8b", b"application/fhir+json", (b"content-encoding", b"gzip"))
    async with world(tmp_path, upstream=app) as here:
        assert (await here.ask("/Patient/pat-1", here.token())).status == 502
    other = tmp_path / "other"
    other.mkdir()
    async with world(other, settings={"limits": {"answer": "1KiB"}}) as here:
        assert (await here.ask("/Patient/pat-1", here.token())).status == 502


@pytest.mark.promise
async def test_a_journal_that_cannot_write_means_503_and_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path) as here:
        token = here.token()
        assert (await here.ask("/Patient/pat-1", token)).status == 200
        original = os.fdatasync

        def fail(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fdatasync", fail)
        answer = await here.ask("/Patient/pat-1", token)
        assert answer.status == 503 and b"pat-1" not in answer.body
        monkeypatch.setattr(os, "fdatasync", original)
        assert (await here.ask("/Patient/pat-1", token)).status == 200


@pytest.mark.promise
async def test_every_exchange_leaves_one_record(tmp_path: Path) -> None:
    async with world(tmp_path, NURSE) as here:
        token = here.token(roles=["nurse"])
        paths = [
            "/Patient/pat-1",
            "/Patient",
            "/Condition",
            "/Patient/nobody",
            "/Patient?birthdate=1",
            "/x",
            "/Observation?_count=3",
        ]
        answers = await asyncio.gather(*(here.ask(path, token) for path in paths * 10))
        ids = [answer.headers["x-request-id"] for answer in answers]
        assert sorted(row["decision"] for row in here.records()) == sorted(ids)
    assert verify(tmp_path / "audit", (tmp_path / "journal.key").read_bytes(), tmp_path / "witness.ndjson").faults == ()


@pytest.mark.promise
async def test_nothing_of_a_resource_stands_in_a_record_or_a_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with world(tmp_path, NURSE) as here:
        patient = await here.direct("/Patient/pat-1")
        await here.ask("/Patient/pat-1", here.token(roles=["nurse"]))
        await here.ask("/Patient?name=" + patient["name"][0]["family"], here.token(roles=["nurse"]))
        journal = b"".join(path.read_bytes() for path in (tmp_path / "audit").iterdir()).decode()
        values = [
            patient["birthDate"],
            patient["identifier"][1]["value"],
            patient["name"][0]["family"],
            patient["telecom"][0]["value"],
        ]
        assert not [value for value in values if value in journal or value in caplog.text]


@pytest.mark.promise
async def test_unforeseen_errors_deny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:

    def explode(*arguments: Any) -> None:
        raise RuntimeError("078-05-1120")

    async with world(tmp_path, NURSE) as here:
        monkeypatch.setattr(Program, "follow", explode)
        answer = await here.ask("/Patient/pat-1", here.token(roles=["nurse"]))
        assert answer.status == 500 and answer.json["issue"][0]["code"] == "exception"
        assert "078-05-1120" not in answer.body.decode() + caplog.text
        assert here.records()[-1]["reason"] == "internal"


async def test_too_much_at_once_is_refused(tmp_path: Path) -> None:
    slow = upstream_saying(200, b"{}", delay=0.3)
    async with world(tmp_path, OPEN, {"limits": {"concurrency": 2}}, upstream=slow) as here:
        token = here.token()
        await here.ask("/Patient/pat-1", token)
        answers = await asyncio.gather(*(here.ask("/Patient/pat-1", token) for _ in range(6)))
        assert sorted(answer.status for answer in answers) == [502, 502, 503, 503, 503, 503]
