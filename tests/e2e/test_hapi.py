"""The shield before a real HAPI FHIR server."""

from __future__ import annotations

import asyncio
import copy
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any
from zlib import crc32

import aiohttp
import pytest
import yaml

from fhirshield.demo.patients import generate
from fhirshield.fhir import json as fhir_json
from fhirshield.fhir.definitions import resource_types
from fhirshield.model import Obligation, Replace
from fhirshield.policy.load import load as load_rules
from fhirshield.rehearsal import Stage
from tests.e2e.conftest import post, put
from tests.generate import Generator
from tests.parts import ROOT, count, data
from tests.redact.test_canaries import NOW, OPERATIONS, PRINCIPAL, fitting, places, rules_hiding
from tests.world import OPEN, World, world

pytestmark = pytest.mark.hapi


def exact(body: bytes) -> Any:
    """JSON with decimals as their text."""
    return json.loads(body, parse_float=str)


async def direct(here: World, path: str) -> Any:
    async with here.session.get(here.upstream + path, headers={"Cache-Control": "no-cache"}) as answer:
        return exact(await answer.read())


async def everything(here: World, kind: str, token: str) -> list[Any]:
    """All matches of a type through the shield, page by page."""
    found, url = [], f"/{kind}?_count=50"
    while url:
        answer = await here.ask(url, token)
        assert answer.status == 200, answer.body
        bundle = exact(answer.body)
        found += [entry["resource"] for entry in bundle.get("entry", [])]
        url = next((link["url"] for link in bundle["link"] if link["relation"] == "next"), "")
        assert here.upstream not in answer.body.decode()
    return found


@pytest.mark.promise
async def test_every_resource_of_a_us_core_patient_equals_hapis_own(tmp_path: Path, hapi: str) -> None:
    text = (data() / "us-core/patient-355.json").read_text(encoding="utf-8")
    await asyncio.to_thread(post, hapi, json.loads(text))
    wanted = Counter(entry["resource"]["resourceType"] for entry in json.loads(text)["entry"])
    async with world(tmp_path, OPEN, upstream=hapi) as here:
        token = here.token("system/*.cruds")
        compared = 0
        for kind, number in wanted.items():
            searched = {r["id"]: r for r in await everything(here, kind, token)}
            assert len(searched) >= number
            for identity, resource in searched.items():
                mine = exact((await here.ask(f"/{kind}/{identity}", token)).body)
                theirs = await direct(here, f"/{kind}/{identity}")
                assert mine == theirs == resource
                compared += 1
        assert compared >= 473
        print(f"\n{compared} resources compared, decimals to the digit")


async def test_decimals_keep_their_digits(tmp_path: Path, hapi: str) -> None:
    for index, number in enumerate(("1.10", "0.00000001", "12345678901234567890.123456789", "-0.50", "100")):
        body = '{"resourceType":"Observation","id":"dec-%d","status":"final","code":{"text":"x"},"valueQuantity":{"value":%s}}'
        async with aiohttp.ClientSession(headers={"Content-Type": "application/fhir+json"}) as session:
            async with session.put(f"{hapi}/Observation/dec-{index}", data=body % (index, number)) as answer:
                assert answer.status in {200, 201}
        folder = tmp_path / str(index)
        folder.mkdir()
        async with world(folder, OPEN, upstream=hapi) as here:
            mine = await here.ask(f"/Observation/dec-{index}", here.token("system/*.rs"))
            assert exact(mine.body) == await direct(here, f"/Observation/dec-{index}")
            assert f'"value":{number}'.encode() in mine.body


async def test_pages_of_hapi_become_links_of_ours(tmp_path: Path, hapi: str) -> None:
    async with world(tmp_path, OPEN, upstream=hapi) as here:
        token = here.token("system/*.rs")
        first = (await here.ask("/Observation?_count=10&_sort=_id", token)).json
        links = {link["relation"]: link["url"] for link in first["link"]}
        assert "_getpages" not in json.dumps(first)
        second = (await here.ask(links["next"], token)).json
        back = {link["relation"]: link["url"] for link in second["link"]}["previous"]
        again = (await here.ask(back, token)).json
        assert [e["resource"]["id"] for e in again["entry"]] == [e["resource"]["id"] for e in first["entry"]]
        assert (await here.ask(links["next"], here.token("system/*.rs", sub="another"))).status == 404


REQUESTS = (
    "/Patient?gender=female", "/Patient?name=quill", "/Patient?family:exact=Quill", "/Patient?birthdate=ge1980-01-01",
    "/Patient?identifier=http://hospital.example/mrn%7CMRN-22337", "/Patient?_id=pat-1,pat-2", "/Patient?active=true",
    "/Observation?patient=Patient/pat-1", "/Observation?patient=Patient/pat-1&category=laboratory",
    "/Observation?code=http://loinc.org%7C4548-4", "/Observation?subject=Patient/pat-2&status=final",
    "/Condition?patient=Patient/pat-3", "/Condition?code=195967001", "/MedicationRequest?patient=pat-1",
    "/Patient?address-city=Quillham", "/Patient?gender:not=male", "/Condition?code:missing=true", "/Patient/pat-1",
    "/Observation/pat-1-obs-0", "/Patient/nobody", "/Patient?general-practitioner=Practitioner/dr-reed",
)  # fmt: skip


async def test_the_demo_store_answers_as_hapi_does(tmp_path: Path, hapi: str) -> None:
    """Of the demo's own resources, since the server may hold others."""
    own = {f"{r['resourceType']}/{r['id']}" for r in generate(12)}
    async with world(tmp_path, OPEN) as here:
        for path in REQUESTS:
            mark = "&" if "?" in path else "?"
            count = f"{mark}_count=500" if "?" in path else ""
            mine = await here.direct(path + count)
            async with here.session.get(hapi + path + count, headers={"Cache-Control": "no-cache"}) as answer:
                theirs = json.loads(await answer.read())
            assert _shape(mine, own) == _shape(theirs, own), path


def _shape(answer: Any, own: set[str]) -> Any:
    if answer["resourceType"] == "Bundle":
        names = {f"{e['resource']['resourceType']}/{e['resource']['id']}" for e in answer.get("entry", [])}
        return names & own
    return {k: v for k, v in answer.items() if k not in {"meta", "issue", "text"}}


@pytest.mark.promise
@pytest.mark.parametrize("pack", sorted(path.stem for path in (ROOT / "rules").glob("*.yaml")))
async def test_redacted_resources_stay_valid(tmp_path: Path, hapi: str, pack: str) -> None:
    """HAPI's ``$validate`` finds no error in a redacted resource that it did not find before."""
    roles, purposes = ROLES[pack]
    async with world(tmp_path, _yaml(pack), upstream=hapi) as here:
        scope = "patient/*.rs" if pack == "patient-app" else "user/*.rs"
        claims: dict[str, Any] = {"roles": roles, "purpose_of_use": purposes}
        if pack == "patient-app":
            claims |= {"patient": "pat-1", "fhirUser": "Patient/pat-1"}
        token = here.token(scope, **claims)
        checked = 0
        for resource in [r for r in generate(12) if "pat-1" in json.dumps(r)]:
            path = f"/{resource['resourceType']}/{resource['id']}"
            answer = await here.ask(path, token)
            if answer.status != 200:
                continue
            async with here.session.get(here.upstream + path, headers={"Cache-Control": "no-cache"}) as stored:
                before = await stored.read()
            assert await errors(here, answer.body) <= await errors(here, before), (path, answer.body)
            checked += 1
        assert checked > 0


@pytest.mark.promise
async def test_any_redaction_of_any_type_stays_valid(tmp_path: Path, hapi: str) -> None:
    """The same for generated resources of every R4 type and obligations on any of their elements."""
    checked = 0
    made_here = [operation for operation in OPERATIONS if not isinstance(operation, Replace)]  # its value is the operator's
    async with world(tmp_path, OPEN, upstream=hapi) as here:
        for name in sorted(resource_types() - UNVALIDATED):
            generator = Generator(crc32(name.encode()), density=0.4)
            for _ in range(30):
                resource = plain(generator.resource(name)) | {"id": "generated"}
                before = await errors(here, fhir_json.encode(resource))
                if not any("Failed to parse" in text for text in before):
                    break
            found = list(places(resource))
            for jsonpath, element in generator.random.sample(found, min(count(40, 2), len(found))):
                generator.random.shuffle(made_here)
                path, operation = next((f for o in made_here for f in fitting(name, jsonpath, o)), (None, None))
                if path is None or operation is None:
                    continue
                view = Stage(rules_hiding(Obligation("hide", name, path, operation)))
                outcome = view.rehearse(PRINCIPAL, f"GET /{name}/generated", [copy.deepcopy(resource)], NOW)
                if outcome.status != 200:
                    continue
                after = await errors(here, fhir_json.encode(outcome.body))
                new = {t: n for t, n in after.items() if n > before[t] and not VALUE_DEPENDENT.search(t)}
                assert not new, (element, path.text, operation, new, outcome.body, resource)
                checked += 1
    print(f"\n{checked} redacted resources validated")
    assert checked > 100


def plain(value: Any) -> Any:
    """Without what the generator makes invalid: extensions, narrative, meta, types of references, and what is empty then."""
    if isinstance(value, list):
        return [kept for one in value if (kept := plain(one)) not in ({}, [])]
    if isinstance(value, dict):
        left = {key: plain(one) for key, one in value.items() if key not in {"extension", "text", "meta"} and key[:1] != "_"}
        if left.keys() <= {"reference", "type", "identifier", "display"}:
            left.pop("type", None)
        return {key: one for key, one in left.items() if one not in ({}, [])}
    return value


async def errors(here: World, body: bytes) -> Counter[str]:
    """What HAPI's validator finds wrong, without places in lists, which shift."""
    url = f"{here.upstream}/{json.loads(body)['resourceType']}/$validate"
    async with here.session.post(url, data=body, headers={"Content-Type": "application/fhir+json"}) as answer:
        outcome = json.loads(await answer.read())
    found = [i["diagnostics"] for i in outcome["issue"] if i["severity"] in {"error", "fatal"}]
    return Counter(re.sub(r"[0-9]+", "#", text.partition(" (codes =")[0]) for text in found)


UNVALIDATED = {"StructureDefinition", "StructureMap"}
"""HAPI's validator itself fails on these where a required name is absent (``NullPointerException``)."""
VALUE_DEPENDENT = re.compile(r"Constraint failed: (per|trd|tcp|que|tst)-#|Unable to find an item with the linkId")
"""Invariants that depend on values: docs/rules.md names them."""
ROLES = {
    "billing": (["billing"], "HPAYMT"),
    "clinician": (["clinician"], "TREAT"),
    "front-desk": (["front-desk"], ""),
    "nurse": (["nurse"], "TREAT"),
    "patient-app": ([], ""),
    "researcher": (["researcher"], "HRESCH"),
}


def _yaml(pack: str) -> Any:
    path = ROOT / "rules" / f"{pack}.yaml"
    assert load_rules(path).rules
    return yaml.safe_load(path.read_text(encoding="utf-8"))


async def test_a_deny_by_label_leaves_hapis_pages_whole(tmp_path: Path, hapi: str) -> None:
    label = {"system": "http://hospital.example/labels", "code": "VIP"}
    await asyncio.to_thread(put, hapi, {"resourceType": "Patient", "id": "vip", "meta": {"security": [label]}, "gender": "male"})
    rules = {"rules": [OPEN["rules"][0], VIP]}
    async with world(tmp_path, rules, upstream=hapi) as here:
        token = here.token("system/*.rs")
        for ask in ("_id={},pat-1&_count=1", "_id={}&_count=1", "_id={}&gender=male&_count=1"):
            found = [(await here.ask("/Patient?" + ask.format(one), token)).json for one in ("vip", "nobody")]
            assert [len(bundle["link"]) for bundle in found] == [1, 1]
            assert [[e["resource"]["id"] for e in b.get("entry", [])] for b in found] in ([["pat-1"]] * 2, [[], []])
        assert (await here.ask("/Patient/vip", token)).status == 404


VIP = {"id": "vip", "who": {"roles": ["*"]}, "deny": {"interactions": ["*"], "resources": ["*?_security=VIP"]}}


async def test_hapis_errors_never_leave(tmp_path: Path, hapi: str) -> None:
    async with world(tmp_path, OPEN, upstream=hapi) as here:
        token = here.token("system/*.rs")
        for path, status in (("/Patient?birthdate=notadate", 400), ("/Patient/nobody", 404), ("/Patient/pat-1/_history/99", 404)):
            answer = await here.ask(path, token)
            assert answer.status == status and b"HAPI-" not in answer.body and b"notadate" not in answer.body
        assert fhir_json.decode(answer.body)["resourceType"] == "OperationOutcome"


async def test_metadata_of_hapi_is_rewritten(tmp_path: Path, hapi: str) -> None:
    async with world(tmp_path, OPEN, upstream=hapi) as here:
        answer = await here.ask("/metadata")
        assert answer.status == 200 and here.upstream.encode() not in answer.body
        assert len(answer.json["rest"][0]["resource"]) > 140
