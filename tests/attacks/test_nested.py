"""Attacks on what stands within and around: nested and contained resources, primitives' extensions, odd values, counts."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from fhirshield.errors import OperatorError
from fhirshield.outbound.pool import Pool
from tests.attacks.test_corpus import scripted
from tests.attacks.test_found import decide, deny, hide

UPSTREAM = "https://upstream.example/fhir"
SECRET = {"extension": [{"url": "http://x/s", "valueString": "SECRET"}]}
VIP = deny("Patient?_security=VIP")


def patient(**elements: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": "p1", **elements}


def observation(**elements: Any) -> dict[str, Any]:
    return {"resourceType": "Observation", "id": "o", "status": "final", **elements}


def text_of(rules: list[Any], request: str, *stored: Any, **principal: Any) -> str:
    return json.dumps(decide(rules, request, *stored, **principal).body)


@pytest.mark.parametrize(
    "path",
    [
        "$.birthDate.extension[*].valueString",
        "$.name[*].given[*].extension",
        "$.identifier[?@.value.extension].value",
        "$.name[*].given[?@.extension]",
    ],
)
def test_a_path_through_a_primitive_is_a_fault(path: str) -> None:
    """It can never lead anywhere: the extensions of a primitive stand in its sibling."""
    with pytest.raises(OperatorError, match="stand beside it"):
        decide([hide(path)], "GET /Patient/p1", patient())


def test_the_sibling_of_a_primitive_is_reached_by_its_own_name() -> None:
    stored = patient(
        _birthDate=SECRET, name=[{"given": ["A", "B"], "_given": [SECRET, {"extension": [{"url": "v", "valueString": "B"}]}]}]
    )
    rules = [
        hide("$._birthDate.extension[*].valueString"),
        {**hide("$.name[*]._given[?@.extension[?@.url=='http://x/s']]"), "id": "other"},
    ]
    body = decide(rules, "GET /Patient/p1", stored).body
    assert "SECRET" not in json.dumps(body)
    assert body["name"][0] == {"given": ["A", "B"], "_given": [None, {"extension": [{"url": "v", "valueString": "B"}]}]}


def bundle(**changes: Any) -> dict[str, Any]:
    request = {"method": "GET", "url": "Patient?birthdate=1970-01-01", "ifNoneExist": "birthdate=1970-01-01"}
    response = {"status": "200", "etag": 'W/"7"', "lastModified": "2024-01-01T00:00:00Z", "location": "Patient/p1/_history/7"}
    vip = {"resourceType": "Patient", "id": "vip", "meta": {"security": [{"code": "VIP"}]}}
    entries = [{"resource": patient(birthDate="1970-01-01"), "request": request, "response": response}, {"resource": vip}]
    link = [{"relation": "next", "url": f"{UPSTREAM}?_getpages=abc"}]
    return {"resourceType": "Bundle", "id": "b", "type": "searchset", "total": 2, "link": link, "entry": entries, **changes}


@pytest.mark.parametrize("secret", ['"total"', "upstream.example", "1970-01-01", '"etag"', "lastModified", "_history", "vip"])
def test_what_stands_around_the_entries_of_a_stored_bundle_goes(secret: str) -> None:
    assert secret not in text_of([hide("$.birthDate"), VIP], "GET /Bundle/b", bundle())


def test_who_sees_everything_sees_a_stored_bundle_as_it_is() -> None:
    body = decide([], "GET /Bundle/b", bundle()).body
    assert body["total"] == 2 and body["entry"][0]["request"]["url"] == "Patient?birthdate=1970-01-01"


def test_patients_within_stand_in_the_record() -> None:
    tally = decide([hide("$.birthDate"), VIP], "GET /Bundle/b", bundle()).tally
    assert tally.patients == {"p1"} and tally.shown == 2 and tally.withheld == {"denied-by-rule": 1}
    inner = observation(subject={"reference": "Patient/p7"})
    report = {"resourceType": "DiagnosticReport", "id": "d", "contained": [inner]}
    assert decide([], "GET /DiagnosticReport/d", report).tally.patients == {"p7"}


def test_hidden_edits_within_do_not_show_in_the_version() -> None:
    def view(version: str, born: str) -> str:
        meta = {"versionId": version, "lastUpdated": f"2024-01-0{version}T00:00:00Z"}
        stored = observation(meta=meta, contained=[{"resourceType": "Patient", "id": "x", "birthDate": born}])
        return text_of([hide("$.birthDate")], "GET /Observation/o", stored)

    assert view("1", "1970-01-01") == view("2", "1981-02-02")
    assert "REDACTED" in view("1", "1970-01-01")


@pytest.mark.parametrize(
    "rule",
    [VIP, deny("Patient"), {**hide("$.name"), "redact": [{"resources": ["Practitioner"], "path": "$.name", "with": "remove"}]}],
)
def test_narrative_goes_where_a_name_that_it_may_tell_is_hidden(rule: Any) -> None:
    narrative = {"status": "generated", "div": "<div>Keiko Dunmore</div>"}
    stored = observation(text=narrative, subject={"reference": "Patient/vip", "display": "Keiko Dunmore"})
    found = decide([rule], "GET /Observation/o", stored).body
    assert "text" not in found


def test_a_contained_subject_is_nobody_that_was_asked_about() -> None:
    inner = observation(subject={"reference": "Patient/p2", "display": "Other", "identifier": {"value": "MRN2"}})
    report = {"resourceType": "DiagnosticReport", "id": "d", "subject": {"reference": "Patient/p1"}, "contained": [inner]}
    found = text_of([], "GET /DiagnosticReport/d", report, scopes="patient/*.rs", patient="p1")
    assert "Other" not in found and "MRN2" not in found


def test_values_of_the_wrong_shape_are_unknown_not_errors() -> None:
    odd = observation(code={"coding": [{"code": "X", "system": ["x"]}]})
    assert decide([deny("Observation?code=http://l|X")], "GET /Observation/o", odd).status == 404
    assert decide([], "GET /Patient/p1", patient(modifierExtension=[{"url": ["a"]}])).status == 404


@pytest.mark.parametrize(
    "url",
    [f"{UPSTREAM}{end}" for end in ("?x=1", "#a", "|1.0", " and", "/Patient/1", "")] + ["HTTPS://Upstream.Example:443/fhir/x"],
)
def test_no_url_of_the_upstream_leaves_whatever_follows_it(url: str) -> None:
    stored = {"resourceType": "DocumentReference", "id": "d", "content": [{"attachment": {"url": url}}]}
    assert "upstream.example" not in text_of([], "GET /DocumentReference/d", stored).lower()


def test_an_extension_without_its_value_goes() -> None:
    stored = patient(extension=[{"url": "u", "valueString": "S"}])
    assert "extension" not in decide([hide("$.extension[?@.url=='u'].valueString")], "GET /Patient/p1", stored).body


def test_counts_are_of_what_was_done() -> None:
    three = [{"system": "http://a", "value": str(number)} for number in range(3)]
    tally = decide([hide("$.identifier[?@.system=='http://a']")], "GET /Patient/p1", patient(identifier=three)).tally
    assert tally.redacted == {"hide": 3}
    stored = patient(identifier=[{"system": "http://mrn", "value": "1", "type": {"coding": [{"code": "SS"}]}}])
    rule = hide("$.identifier[?@.system=='http://ssn' || @.type.coding[?@.code=='SS']].value")
    tally = decide([rule], "GET /Patient?identifier=http://mrn|1", stored).tally
    assert not tally.granted and not tally.patients and tally.withheld == {"not-matched": 1}


async def test_a_get_that_waited_for_its_place_is_sent_again() -> None:
    """On a connection that the other side closes instead of answering the second request."""
    served: dict[int, int] = {}

    async def once(writer: asyncio.StreamWriter) -> None:
        served[id(writer)] = served.get(id(writer), 0) + 1
        if served[id(writer)] > 1:
            writer.close()
            raise ConnectionResetError
        await asyncio.sleep(0.02)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    async with scripted([once]) as url:
        pool = Pool(most=999, connect=1, answer=2, connections=1)
        origin = url.removesuffix("/fhir")
        answers = await asyncio.gather(*(pool.send("GET", origin, f"/{n}", {}) for n in range(4)))
        await pool.close()
    assert [answer.body for answer in answers] == [b"ok"] * 4


async def test_a_new_connection_takes_the_place_of_a_silent_one() -> None:
    """At the limit with all connections silent, a second try must not wait for a place that nobody will free."""
    served: dict[int, int] = {}

    async def once(writer: asyncio.StreamWriter) -> None:
        served[id(writer)] = served.get(id(writer), 0) + 1
        if served[id(writer)] > 1:
            writer.close()
            raise ConnectionResetError
        await asyncio.sleep(0.05)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    async with scripted([once]) as url:
        pool = Pool(most=999, connect=1, answer=2, connections=3)
        origin = url.removesuffix("/fhir")
        await asyncio.gather(*(pool.send("GET", origin, "/", {}) for _ in range(3)))
        connection = await asyncio.wait_for(pool._fresh(origin, new=True), 1)
        assert connection.sound
        await pool.close()
