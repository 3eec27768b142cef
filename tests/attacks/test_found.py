"""What attacks on the running shield found, each as a case that must hold."""

from __future__ import annotations

import asyncio
import copy
import datetime as dt
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from fhirshield.errors import OperatorError
from fhirshield.fhir import json as fhir_json
from fhirshield.policy.check import advise
from fhirshield.policy.compile import RuleSet
from fhirshield.policy.load import loads
from fhirshield.rehearsal import Outcome, Stage, principal_from
from tests.test_shield import NURSE, upstream_saying
from tests.world import OPEN, world

NOW = dt.datetime(2026, 1, 5, 10, 0, tzinfo=dt.UTC)
ALLOW = OPEN["rules"][0]
SSN = "http://hl7.org/fhir/sid/us-ssn"


def decide(rows: list[Any], request: str, *stored: Any, **principal: Any) -> Outcome:
    stage = Stage(RuleSet(loads(yaml.safe_dump({"rules": [ALLOW, *rows], "modifier_extensions": ["http://ok"]}))))
    caller = principal_from({"roles": ["nurse"], "scopes": "system/*.cruds", **principal})
    return stage.rehearse(caller, request, copy.deepcopy(list(stored)), NOW)


def deny(selector: str) -> dict[str, Any]:
    return {"id": "deny", "who": {"roles": ["*"]}, "deny": {"interactions": ["*"], "resources": [selector]}}


def hide(path: str, how: dict[str, Any] | None = None, resource: str = "Patient") -> dict[str, Any]:
    redact = [{"resources": [resource], "path": path, **(how or {"with": "remove"})}]
    return {"id": "hide", "who": {"roles": ["*"]}, "redact": redact}


# --- searches that ask about what is withheld ---------------------------------------------------------------------------


@pytest.mark.promise
async def test_a_deny_by_label_leaves_pages_whole(tmp_path: Path) -> None:
    """What the upstream can leave out itself neither thins a page nor makes a next link."""
    async with world(tmp_path, NURSE) as here:
        here.store.put('{"resourceType":"Patient","id":"vip","meta":{"security":[{"code":"VIP"}]},"gender":"male"}')
        token = here.token(roles=["nurse"])
        for ask in ("_id={},pat-1&_count=1", "_id={}&_count=1", "_id={}&gender=male"):
            replies = [await here.ask("/Patient?" + ask.format(one), token) for one in ("vip", "nobody")]
            assert [len(r.json["link"]) for r in replies] == [1, 1]
            assert replies[0].json.get("entry") == replies[1].json.get("entry")
        assert b"_security%3Anot=VIP" in here.seen[-1][1]


@pytest.mark.parametrize("value", ["0", "-1", "", "x", "1.5", "\u0661"])
def test_a_count_of_nothing_is_refused(value: str) -> None:
    assert decide([], f"GET /Patient?_count={quote(value)}").status == 400


@pytest.mark.promise
@pytest.mark.parametrize("value", ["http://dmv|1,http://mrn|2", "http://x\\,y|1", "http://mrn|1$2", f"{SSN}|1", "|1", "1"])
def test_alternatives_and_escapes_close_the_identifier_search(value: str) -> None:
    rows = [hide(f"$.identifier[?@.system=='{SSN}' || @.type.coding[?@.code=='SS']].value")]
    assert decide(rows, f"GET /Patient?identifier={value}").status == 403
    assert decide(rows, "GET /Patient?identifier=http://mrn|1").status == 200


async def test_pages_of_an_identifier_search_that_is_judged_again_tell_nothing(tmp_path: Path) -> None:
    deny = {"interactions": ["*"], "resources": ["Patient?gender=other&active:missing=true"]}
    rules = {"rules": [*NURSE["rules"], {"id": "others", "who": {"roles": ["*"]}, "deny": deny}]}
    async with world(tmp_path, rules) as here:
        for number, gender in enumerate(("female", "other", "other"), 1):
            twin = {"resourceType": "Patient", "id": f"twin-{number}", "gender": gender}
            here.store.put(json.dumps({**twin, "identifier": [{"system": "http://mrn", "value": "7"}]}))
        answer = await here.ask("/Patient?identifier=http://mrn%7C7&_count=1", here.token(roles=["nurse"]))
        assert [entry["resource"]["id"] for entry in answer.json["entry"]] == ["twin-1"]
        assert [link["relation"] for link in answer.json["link"]] == ["self"]


# --- names, narrative, URLs -----------------------------------------------------------------------------------------------


def test_references_in_modifier_extensions_are_cleaned() -> None:
    reference = {"reference": "Patient/p1", "display": "Keiko Dunmore", "identifier": {"value": "MRN-1"}}
    observation = {
        "resourceType": "Observation",
        "id": "o",
        "modifierExtension": [{"url": "http://ok", "valueReference": reference}],
    }
    body = json.dumps(decide([hide("$.name")], "GET /Observation/o", observation).body)
    assert "Patient/p1" in body and "Dunmore" not in body
    assert decide([], "GET /Observation/o", {**observation, "modifierExtension": [{"url": "http://other"}]}).status == 404


def test_the_type_of_a_reference_is_not_believed_against_an_unknown_literal() -> None:
    encounter = {
        "resourceType": "Encounter",
        "id": "e",
        "subject": {"reference": "urn:uuid:1", "type": "Organization", "display": "Keiko"},
    }
    assert "Keiko" not in json.dumps(decide([hide("$.name")], "GET /Encounter/e", encounter).body)


@pytest.mark.parametrize("kind", ["Group", "Provenance", "MessageHeader", "Device", "Linkage"])
def test_narrative_of_any_type_goes_where_patients_are_redacted(kind: str) -> None:
    resource = {"resourceType": kind, "id": "x", "text": {"status": "generated", "div": "<div>Keiko</div>"}}
    assert "text" not in decide([hide("$.name")], f"GET /{kind}/x", resource).body


def test_urls_of_the_upstream_become_ours() -> None:
    upstream = "https://upstream.example/fhir"
    resource = {
        "resourceType": "DocumentReference", "id": "d", "status": "current", "subject": {"reference": f"{upstream}/Patient/p1"},
        "content": [{"attachment": {"url": f"{upstream}/Binary/1"}}],
    }  # fmt: skip
    body = json.dumps(decide([], "GET /DocumentReference/d", resource).body)
    assert "upstream.example" not in body and "https://shield.example/fhir/Patient/p1" in body


# --- what a resource does not say -----------------------------------------------------------------------------------------


@pytest.mark.promise
@pytest.mark.parametrize(
    ("selector", "resource"),
    [
        ("*?_security=http://l|VIP", {"meta": {"security": [{"code": "VIP"}]}}),
        ("*?_security=VIP", {"meta": {"security": [{"code": "vip "}]}}),
        ("Patient?identifier=http://mrn|1", {"identifier": [{"value": "1"}]}),
        (
            "Patient?organization=Organization/1",
            {"managingOrganization": {"reference": "https://alias.example/fhir/Organization/1"}},
        ),
        ("*?_profile=http://p", {"meta": {"profile": ["http://p|1.0"]}}),
    ],
)
def test_a_deny_holds_where_the_resource_does_not_say(selector: str, resource: dict[str, Any]) -> None:
    patient = {"resourceType": "Patient", "id": "p1", **resource}
    assert decide([deny(selector)], "GET /Patient/p1", patient).status == 404
    grant = {"id": "g", "who": {"roles": ["nurse"]}, "allow": {"interactions": ["read"], "resources": [selector]}}
    only = Stage(RuleSet(loads(yaml.safe_dump({"rules": [grant]}))))
    caller = principal_from({"roles": ["nurse"], "scopes": "system/*.rs"})
    assert only.rehearse(caller, "GET /Patient/p1", [patient], NOW).status == 404


# --- operators who err ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        hide("$.telecom[?@['use','system']=='phone'].value"),
        hide("$.telecom[?@.system=='telephone'].value"),
        hide("$.telecom[?@.system=='Phone'].value"),
        deny("*?_security=VIP, RESTRICTED"),
        deny("*?_security=VIP,,RESTRICTED"),
        {**hide("$.photo"), "who": {"roles": ["*"], "when": "env.//x\nhour > 1"}},
    ],
)
def test_what_would_hide_nothing_does_not_load(rule: dict[str, Any]) -> None:
    with pytest.raises(OperatorError):
        loads(yaml.safe_dump({"rules": [rule]}))


def test_a_deny_of_some_interactions_is_advised_of() -> None:
    rule = {"id": "d", "who": {"roles": ["*"]}, "deny": {"interactions": ["read"], "resources": ["Patient"]}}
    assert [a.kind for a in advise(loads(yaml.safe_dump({"rules": [rule]})))] == ["partial"]


# --- work without end, requests without a whole -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["1e999999", "-1e999999", "1e100000", "1" * 401, "47", "-0.5", "12.9"])
def test_a_huge_number_costs_nothing_and_shows_nothing(number: str) -> None:
    head = '{"resourceType":"Observation","id":"o","status":"final","code":{"text":"x"},"valueQuantity":{"value":'
    rows = [hide("$.valueQuantity.value", {"with": "generalize", "to": "band", "width": 10}, "Observation")]
    body = decide(rows, "GET /Observation/o", fhir_json.decode(f"{head}{number}}}}}".encode())).body
    wanted = {"47": 40, "-0.5": -10, "12.9": 10}.get(number)
    assert body.get("valueQuantity", {}).get("value") == wanted


@pytest.mark.promise
async def test_every_target_is_answered_by_the_shield_and_recorded(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        for line, status in ((b"GET * HTTP/1.1", b"400"), (b"OPTIONS * HTTP/1.1", b"400"), (b"GET /other HTTP/1.1", b"404")):
            host, port = here.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(line + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
            assert status in answer.split(b"\r\n")[0] and b"OperationOutcome" in answer
    recorded = here.records()
    assert [row["reason"] for row in recorded if "reason" in row] == ["malformed-request"]
    assert [row["aggregated"] for row in recorded if "aggregated" in row] == [{"127.0.0.0/24 unparsed": 2}]


async def test_a_search_whose_body_never_comes_is_not_forwarded(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        host, port = here.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /fhir/Patient/_search HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {here.token()}\r\n"
        writer.write((head + "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 50\r\n\r\nname=").encode())
        await writer.drain()
        writer.close()
        await asyncio.sleep(0.3)
        assert here.seen == [] and here.records() == []


async def test_headers_of_the_upstream_that_are_not_plain_end_here(tmp_path: Path) -> None:
    body = b'{"resourceType":"Patient","id":"pat-1"}'
    app = upstream_saying(200, body, b"application/fhir+json", (b"etag", 'W/"é\u00ff"'.encode()), (b"last-modified", b"x" * 300))
    async with world(tmp_path, upstream=app) as here:
        answer = await here.ask("/Patient/pat-1", here.token())
        assert answer.status == 200 and "etag" not in answer.headers and "last-modified" not in answer.headers


async def test_a_page_link_of_one_patient_does_not_open_under_another(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        first = here.token("patient/*.rs", patient="pat-1", sub="guardian", fhirUser="RelatedPerson/g")
        second = here.token("patient/*.rs", patient="pat-2", sub="guardian", fhirUser="RelatedPerson/g")
        url = (await here.ask("/Observation?_count=2", first)).json["link"][1]["url"]
        assert (await here.ask(url, first)).status == 200
        assert (await here.ask(url, second)).status == 404


def test_the_record_names_the_patient_where_the_view_does_not() -> None:
    observation = {"resourceType": "Observation", "id": "o", "subject": {"reference": "Patient/p1"}}
    outcome = decide([hide("$.subject", resource="Observation")], "GET /Observation/o", observation)
    assert "subject" not in outcome.body and outcome.tally.patients == {"p1"}


@pytest.mark.parametrize("url", ["http://[", "", 5, None, "http://evil.example/fhir?x=1", "?" + "&".join(["a=b"] * 300)])
async def test_page_links_of_the_upstream_that_cannot_be_read_end_here(tmp_path: Path, url: Any) -> None:
    bundle = {"resourceType": "Bundle", "type": "searchset", "link": [{"relation": "next", "url": url}]}
    async with world(tmp_path, upstream=upstream_saying(200, json.dumps(bundle).encode())) as here:
        answer = await here.ask("/Patient", here.token())
        assert answer.status == 200 and [link["relation"] for link in answer.json["link"]] == ["self"]
