"""What attackers of labels and of emergency access found."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from fhirshield.errors import Unavailable
from fhirshield.fhir import json as fhir_json
from fhirshield.fhir.glance import glance
from fhirshield.fhir.scopes import parse
from fhirshield.fhir.v3 import ACT_CODE
from fhirshield.gather.grants import Grants
from fhirshield.model import Denial, Emergency, Principal, Reason, Refused
from fhirshield.policy.sensitivity import compiled, read_list
from fhirshield.state.memory import MemoryMap
from tests.consent.test_enforced import ON, ward
from tests.emergency import test_break_glass as emergencies
from tests.emergency.test_break_glass import WHY, doctor, room, two_rooms
from tests.emergency.test_break_glass import status as status_of
from tests.labels.test_labels import LIST, SCT, clinic, condition
from tests.state.test_state import redis_server

PSY = "35489007"


@pytest.mark.parametrize(
    ("system", "code"),
    [
        (f" {SCT} ", PSY), (SCT.upper(), PSY), (SCT.replace("http:", "https:"), PSY), (f"{SCT}/", PSY), (f"{SCT}|2020", PSY),
        (f"{SCT}/731000124108", PSY), (f"{SCT}/731000124108/version/20200301", PSY), (" ", PSY), ("urn:local", PSY),
        (SCT, f"{PSY} |Depressive disorder|"), (SCT, f"{PSY}:246112005=24484000"), (SCT, f"{PSY}\u200b"), ("", f"{PSY} |x|"),
        ("", "F32.1"), ("", "F3210"), ("", "B20"), ("http://hl7.org/fhir/sid/icd-10", "B20+"),
        ("http://fhir.de/CodeSystem/bfarm/icd-10-gm", "F32.1"), ("urn:local", "F32.10"),
    ],
)  # fmt: skip
def test_a_code_tells_however_it_is_spelled(system: str, code: str) -> None:
    lists = compiled(read_list(LIST), {}, {}, "N")
    coding = {"code": code} | ({"system": system} if system else {})
    seen = glance({"resourceType": "Condition", "code": {"coding": [coding]}})
    assert lists.kinds_of(seen.codings)
    assert lists.may_tell(code)


@pytest.mark.parametrize(
    ("system", "code"), [("http://loinc.org", PSY), (SCT, "354890071"), ("urn:local", "B20"), ("", "F3"), ("", "B")]
)
def test_what_is_no_such_code_tells_nothing(system: str, code: str) -> None:
    assert not compiled(read_list(LIST), {}, {}, "N").kinds_of([(system, code)])


def by_reason(identity: str) -> dict[str, Any]:
    return {"resourceType": "MedicationRequest", "id": identity, "status": "active", "intent": "order", "subject": {"reference": "Patient/a"},
            "medicationCodeableConcept": {"text": "x"}, "reasonReference": [{"reference": "Condition/hiv"}]}  # fmt: skip


HELD: list[dict[str, Any]] = [
    {"resourceType": "Observation", "id": "held", "status": "final", "code": {"text": "x"}, "subject": {"reference": "Patient/a"},
     "contained": [by_reason("k")], "derivedFrom": [{"reference": "#k"}]},
    condition("tagged", "6142004", meta={"tag": [{"system": SCT, "code": PSY}]}),
    condition("in-meta", "6142004", meta={"extension": [{"url": "urn:x", "valueCoding": {"system": SCT, "code": PSY}}]}),
    condition("bare-label", "6142004", meta={"security": [{"code": "hiv "}]}),
    condition("bare-rank", "6142004", meta={"security": [{"code": "V"}]}),
    condition("loud-label", "6142004", meta={"security": [{"system": ACT_CODE.upper(), "code": "HIV"}]}),
]  # fmt: skip


async def test_what_is_held_or_labelled_oddly_is_as_sensitive(tmp_path: Path) -> None:
    async with clinic(tmp_path) as here:
        for one in HELD:
            here.store.save(one)
        plain, keeper = here.token("user/*.rs"), here.token("user/*.rs", roles=["keeper"])
        for one in HELD:
            path = f"/{one['resourceType']}/{one['id']}"
            assert (await here.ask(path, plain)).status == 404, path
            assert (await here.ask(path, keeper)).status == 200, path


async def test_a_bundle_says_what_law_its_entries_are_under(tmp_path: Path) -> None:
    inner = condition("of", "6142004", meta={"source": "https://part2.example/intake#1"})
    bundle = {"resourceType": "Bundle", "id": "held", "type": "collection", "entry": [{"fullUrl": "urn:uuid:1", "resource": inner}]}
    async with clinic(tmp_path) as here:
        here.store.save(bundle)
        answer = await here.ask("/Bundle/held", here.token("user/*.rs", roles=["keeper"]))
        assert answer.status != 200 or b"42CFRPart2" in answer.body


# --- emergencies ------------------------------------------------------------------------------------------------------


def emergency(limit: int = 3) -> Emergency:
    return Emergency("glass", frozenset({"*"}), frozenset({"read"}), frozenset({"consent"}), 3600, limit, 3600)


CALLER = Principal("issuer", "me", "app", frozenset(), frozenset(), parse(""), "", "", (), 4e9, "")


class Away(MemoryMap):
    """A map that cannot be asked."""

    async def get(self, key: str) -> bytes | None:
        raise Unavailable("away")


class Late(MemoryMap):
    """A map whose answers take turns, as those of one far away do."""

    async def get(self, key: str) -> bytes | None:
        await asyncio.sleep(0.001)
        return await super().get(key)

    async def put(self, key: str, value: bytes, seconds: float) -> None:
        await asyncio.sleep(0.001)
        await super().put(key, value, seconds)


async def said(grant: Any) -> None:
    """A record that takes a moment."""
    await asyncio.sleep(0.001)


@pytest.mark.promise
async def test_a_grant_that_could_not_be_recorded_opens_nothing_and_takes_no_place() -> None:
    async def full(grant: Any) -> None:
        raise Refused(Denial(503, Reason.JOURNAL_UNAVAILABLE, "transient", "full"))

    for state in (Late(), Away()):
        grants = Grants(state, lambda key: key)
        for _ in range(5):
            with pytest.raises(Refused):
                await grants.open(emergency(), CALLER, "/fhir", "b", "a reason that is long", full)
            assert await grants.known(emergency(), CALLER, "/fhir", "b", "a reason that is long") is None
        opened = [
            await grants.open(emergency(), CALLER, "/fhir", name, "a reason that is long", said) for name in ("b", "b", "c", "d")
        ]
        assert [one.new for one in opened] == [True, False, True, True]


async def test_nobody_uses_a_grant_whose_record_is_still_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first shield dies while it records; to the second nothing was opened, and what it opens it records itself."""
    monkeypatch.setattr("fhirshield.gather.grants._OPENING", 0.5)
    async with two_rooms(tmp_path) as (one, two):
        whole, over = one.parts.journal.record, asyncio.Event()

        async def hangs(entry: Any, decision: str) -> Any:
            if entry["outcome"] == "break-glass":
                await over.wait()
                raise Unavailable("it died")
            return await whole(entry, decision)

        monkeypatch.setattr(one.parts.journal, "record", hangs)
        dying = asyncio.create_task(status_of(one, "/Patient/b", doctor(one), WHY))
        await asyncio.sleep(0.3)
        assert await status_of(two, "/Observation/o-b", doctor(two), WHY) == 404
        assert await status_of(two, "/Patient/b", doctor(two), WHY) == 200
        over.set()
        assert await dying == 503
        assert [record["outcome"] for record in two.records() if record.get("break_glass")] == ["break-glass", "released"]


@pytest.mark.promise
async def test_a_state_that_comes_back_empty_lifts_no_limit_and_ends_no_emergency(tmp_path: Path) -> None:
    with redis_server(tmp_path) as url:
        (tmp_path / "ring").write_bytes(b"r" * 32)
        async with room(tmp_path, state=url, keys={"file": "ring"}) as here:
            names = ("a", "b", "kin", "nobody", "self")
            first = [await status_of(here, f"/Patient/{name}", doctor(here), WHY) for name in names]
            state = Redis.from_url(url)
            await state.flushall()
            again = [await status_of(here, f"/Patient/{name}", doctor(here), WHY) for name in names]
            await state.aclose()
            assert first == again and first.count(200) == 3, (first, again)
            assert sum(record["outcome"] == "break-glass" for record in here.records()) == 3


async def test_a_chart_that_opens_with_many_requests_is_one_emergency() -> None:
    grants = Grants(Late(), lambda key: key)
    opened = await asyncio.gather(
        *(grants.open(emergency(), CALLER, "/fhir", "b", "a reason that is long", said) for _ in range(50))
    )
    assert len({one.id for one in opened}) == 1
    assert sum(one.new for one in opened) == 1
    for other in ("c", "d"):
        assert (await grants.open(emergency(), CALLER, "/fhir", other, "a reason that is long", said)).new
    with pytest.raises(Refused):
        await grants.open(emergency(), CALLER, "/fhir", "e", "a reason that is long", said)


async def test_two_shields_with_one_redis_open_one_grant_of_many_requests(tmp_path: Path) -> None:
    async with two_rooms(tmp_path) as (one, two):
        token = doctor(one), doctor(two)
        found = await asyncio.gather(
            *(status_of((one, two)[n % 2], "/Patient/b", token[n % 2], WHY) for n in range(30)),
        )
        assert set(found) == {200}
        rows = [row for here in (one, two) for row in here.records() if row.get("outcome") == "break-glass"]
        assert len(rows) == 1
        assert await status_of(two, "/Patient/kin", token[1], WHY) == 200


WAYS = ("", "/_history", "/_history/1")


async def test_the_limit_tells_nothing_of_what_is_there(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        token = doctor(here)
        for used in range(4):
            for way in WAYS:
                there = [await here.ask(f"/{name}{way}", token, headers=WHY) for name in ("Observation/o-a", "Condition/vip-a")]
                gone = [await here.ask(f"/{name}{way}", token, headers=WHY) for name in ("Observation/gone", "Condition/gone")]
                assert [(one.status, one.body) for one in there] == [(one.status, one.body) for one in gone], (used, way)
            if used < 3:
                reason = {"Break-Glass-Reason": f"the reason of number {used}"}
                assert await status_of(here, "/Patient/b", token, reason) == 200
        assert await status_of(here, "/Patient/kin", token, WHY) == 403
        under = {"Break-Glass-Reason": "the reason of number 0"}
        assert await status_of(here, "/Observation/o-b", token, under) == 200
        assert await status_of(here, "/Condition/vip-b", token, under) == 404


async def test_what_is_no_id_opens_nothing_and_a_short_claim_is_no_reason(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        token = doctor(here)
        for path in ("/Observation?patient=b%7Cx", "/Observation?patient=b*", "/Observation?patient=b%20"):
            assert await status_of(here, path, token, WHY) == 403, path
        assert not [row for row in here.records() if "break_glass" in row]
        assert await status_of(here, "/Patient/b", doctor(here, break_glass_reason="x")) == 404


async def test_a_source_that_is_away_tells_nothing_of_what_is_there(tmp_path: Path) -> None:
    async with room(tmp_path, consent={"source": {"url": "http://127.0.0.1:9/fhir"}}) as here:
        token = doctor(here)
        assert await status_of(here, "/Patient/b", token, WHY) == 200
        assert await status_of(here, "/Observation/o-b", token, WHY) == 200
        for path in ("/Observation/o-a", "/Observation/gone", "/Condition/vip-b", "/Condition/gone"):
            assert await status_of(here, path, token, WHY) == 503, path


async def test_what_joins_is_away_and_tells_nothing_of_what_is_there(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        token = here.token("user/*.rs", roles=["pharmacist"], fhirUser="Practitioner/ph", purpose_of_use="TREAT")
        assert await status_of(here, "/Patient/b", token, WHY) == 200
        assert await status_of(here, "/Observation/o-b", token, WHY) == 200
        serve = here.store.serve

        def broken(method: str, segments: list[str], *rest: Any) -> Any:
            return (500, "{}", []) if segments[:1] == ["Encounter"] else serve(method, segments, *rest)

        here.store.serve = broken
        other = here.token("user/*.rs", roles=["doctor", "pharmacist"], fhirUser="Practitioner/new", purpose_of_use="TREAT")
        found = {await status_of(here, path, other, WHY) for path in ("/Observation/o-b", "/Observation/gone", "/Condition/vip-b")}
        assert found == {503}


async def test_a_transaction_opens_nothing_and_a_batch_as_its_entries_would(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        token = doctor(here)
        reads = [{"request": {"method": "GET", "url": url}} for url in ("Patient/b", "Patient/kin", "Observation?patient=a")]
        for kind, shown in (("transaction", False), ("batch", True)):
            body = {"resourceType": "Bundle", "type": kind, "entry": reads}
            answer = await here.ask("/", token, "POST", headers=WHY, json=body)
            assert (b'"id":"o-a"' in answer.body) is shown, answer.body
            opened = [row for row in here.records() if row.get("outcome") == "break-glass"]
            assert sorted(one for row in opened for one in row["patients"]) == (["a", "b", "kin"] if shown else [])


async def test_an_emergency_that_is_refused_opens_nothing_to_reads_by_id(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        token = doctor(here)
        for used in range(3):
            assert await status_of(here, "/Patient/b", token, {"Break-Glass-Reason": f"the reason of number {used}"}) == 200
        assert await status_of(here, "/Patient/a", token, WHY) == 403
        assert await status_of(here, "/Observation/o-a", token, WHY) == 404


async def test_an_emergency_that_leaves_consents_alone_tells_nothing_while_they_are_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = copy.deepcopy(emergencies.RULES)
    rules["rules"][5]["break_glass"]["replaces"] = ["relationship"]
    monkeypatch.setattr(emergencies, "RULES", rules)
    async with room(tmp_path, consent={"source": {"url": "http://127.0.0.1:9/fhir"}}) as here:
        for path in ("/Patient/b", "/Patient/gone", "/Observation/o-b", "/Observation/gone"):
            assert await status_of(here, path, doctor(here), WHY) == 503, path


def test_prefixes_and_short_codes_of_a_list_hold_whatever_its_system() -> None:
    lists = compiled([("PSY", SCT, "prefix", "35489"), ("HIV", SCT, "code", "123")], {}, {}, "N")
    for code, kind in ((PSY, "PSY"), (f"{PSY} |x|", "PSY"), ("123", "HIV")):
        assert lists.kinds_of([(SCT, code)]) == {kind}
        assert lists.may_tell(code)


async def test_nobody_makes_a_minor_an_adult_nor_takes_an_organization_out_of_another(tmp_path: Path) -> None:
    """Labels ask for birth dates, and a deny for an organization holds for its parts: both are policy inputs."""
    kind = {"Content-Type": "application/fhir+json"}
    (tmp_path / "labels").mkdir()
    async with clinic(tmp_path / "labels") as here:
        token = here.token("user/*.cruds")
        for change, wanted in (({"birthDate": "1970"}, 403), ({"_birthDate": {"id": "x"}}, 403), ({"gender": "female"}, 200)):
            stored = {"resourceType": "Patient", "id": "kid", "birthDate": "2020"}
            answer = await here.ask("/Patient/kid", token, "PUT", data=fhir_json.encode({**stored, **change}), headers=kind)
            assert answer.status == wanted, (change, answer.body)
        gone = await here.ask("/Patient/kid", token, "PUT", data=b'{"resourceType":"Patient","id":"kid"}', headers=kind)
        assert gone.status == 403 and b"Patient.birthDate" in gone.body
    (tmp_path / "consents").mkdir()
    on = {**ON, "upstreams": [{"hidden_narrative": "drop"}]}
    async with ward(tmp_path / "consents", settings=on) as (here, token):
        part = {"resourceType": "Organization", "id": "part", "name": "x", "partOf": {"reference": "Organization/whole"}}
        for one in (part, {"resourceType": "Organization", "id": "whole", "name": "y"}):
            here.store.save(one)
        alone = {name: value for name, value in part.items() if name != "partOf"}
        for body, wanted in ((alone, 403), ({**part, "name": "z"}, 200)):
            answer = await here.ask("/Organization/part", token, "PUT", data=fhir_json.encode(body), headers=kind)
            assert answer.status == wanted, answer.body
        assert (await here.ask("/Organization/part", token, "DELETE")).status == 403


async def test_an_emergency_is_somebodys_at_one_upstream(tmp_path: Path) -> None:
    """Ids of patients mean nothing across upstreams, and a token without ``sub`` is nobody's."""
    state = MemoryMap()
    told: list[Any] = []

    async def tell(grant: Any) -> None:
        told.append(grant)

    grants = Grants(state, lambda key: key)
    for where in ("/fhir", "/two", "/fhir"):
        await grants.open(emergency(), CALLER, where, "b", "a reason that is long", tell)
    assert len(told) == 2 and await grants.known(emergency(), CALLER, "/three", "b", "a reason that is long") is None
    async with room(tmp_path) as here:
        for subject in (None, "", 0):
            token = doctor(here, sub=subject)
            assert await status_of(here, "/Patient/b", token, WHY) in {401, 403}


async def test_a_grant_that_was_recorded_too_late_is_none_after_a_restart_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with room(tmp_path) as here:
        journal = here.parts.journal
        whole = journal.record

        async def slow(entry: Any, decision: str) -> Any:
            found = await whole(entry, decision)
            if entry["outcome"] == "break-glass":
                raise Unavailable("too late")
            return found

        monkeypatch.setattr(journal, "record", slow)
        assert await status_of(here, "/Patient/b", doctor(here), WHY) == 503
        monkeypatch.setattr(journal, "record", whole)
    async with room(tmp_path) as here:
        assert await status_of(here, "/Observation/o-b", doctor(here), WHY) == 404
        assert await status_of(here, "/Patient/b", doctor(here), WHY) == 200
    caplog.clear()
    async with room(tmp_path) as here:  # who stopped may not have been heard: it is said again
        assert await status_of(here, "/Observation/o-b", doctor(here), WHY) == 200
    assert [record.levelname for record in caplog.records if "before this start" in record.getMessage()] == ["CRITICAL"]


async def test_an_open_grant_waits_for_no_state_and_for_nobody(tmp_path: Path) -> None:
    class Slow(MemoryMap):
        asked = 0

        async def get(self, key: str) -> bytes | None:
            self.asked += 1
            raise Unavailable("away")

    state = Slow()
    grants = Grants(state, lambda key: key)
    opened = await asyncio.gather(
        *(grants.open(emergency(), CALLER, "/fhir", "b", "a reason that is long", said) for _ in range(40))
    )
    assert state.asked == 1 and sum(one.new for one in opened) == 1
