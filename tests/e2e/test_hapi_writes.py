"""Writes before a real HAPI FHIR server: the corpus, read-edit-PUT of redacted views, and what HAPI's own habits make of them."""

from __future__ import annotations

import copy
import datetime as dt
import json
import re
import secrets
from collections import Counter
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from fhirshield.fhir import json as fhir_json
from fhirshield.recovery import Recovery
from tests.attacks.test_writes import CORPUS, SETTINGS, ask
from tests.e2e.conftest import put
from tests.generate import Generator
from tests.parts import count
from tests.redact.test_canaries import leaves
from tests.tally import tally
from tests.test_writes import FHIR, PATCH
from tests.world import World, world

pytestmark = pytest.mark.hapi
KINDS = (
    "Patient",
    "Observation",
    "Condition",
    "Encounter",
    "MedicationRequest",
    "Procedure",
    "AllergyIntolerance",
    "DiagnosticReport",
)


def prefixed(value: Any, prefix: str) -> Any:
    """A case with ids of its own, so that no case meets another's versions and labels."""
    ids = "|".join(resource["id"] for resource in CORPUS["stored"])
    text = re.sub(rf'((?:"id": "|/))({ids}|absent|nobody|new-one|new|e|x)(?=["/ ])', rf"\g<1>{prefix}\2", json.dumps(value))
    return json.loads(text)


@pytest.mark.promise
async def test_the_corpus_of_writes_holds_before_hapi(tmp_path: Path, hapi: str) -> None:
    wrong: list[Any] = []
    run = secrets.token_hex(4)
    async with world(tmp_path, {"rules": CORPUS["rules"]}, SETTINGS, upstream=hapi) as here:
        for number, case in enumerate(case for case in CORPUS["cases"] if not case.get("not_on_hapi")):
            prefix = f"{run}-{number}-"
            claims = prefixed(CORPUS["callers"][case["caller"]], prefix)
            if "patient" in claims:
                claims["patient"] = prefix + claims["patient"]
            for resource in prefixed(CORPUS["stored"], prefix):
                put(hapi, resource)
            own = prefixed(case, prefix)
            reply = await ask(own, here, here.token(claims.pop("scope"), **claims))
            last = [row for row in here.records() if row["decision"] == reply.headers["x-request-id"]]
            wrote = last[0]["outcome"] == "intended"
            if reply.status != case["status"] or wrote is not case.get("written", False) or b"Star" in reply.body:
                wrong.append((case["name"], reply.status, wrote, reply.body[:300]))
            for name, value in case.get("stored", {}).items():
                found = await here.direct("/" + own["request"].partition(" ")[2].strip("/"))
                if name != "meta" and found.get(name) != value:
                    wrong.append((case["name"], name, found.get(name)))
    assert not wrong, "\n".join(map(str, wrong))
    tally("writes before HAPI", tried=len(CORPUS["cases"]), refused=sum(not c.get("written") for c in CORPUS["cases"]))


REDACTED = {
    "rules": [
        {
            "id": "clinician",
            "who": {"roles": ["*"]},
            "allow": {"interactions": ["*"], "resources": ["*"]},
            "redact": [
                {"resources": ["Patient"], "path": "$.identifier[?@.system=='http://hl7.org/fhir/sid/us-ssn']", "with": "remove"},
                {"resources": ["Patient"], "path": "$.telecom[*].value", "with": "mask", "show": {"last": 4}},
                {"resources": ["Patient"], "path": "$.birthDate", "with": "generalize", "to": "year"},
                {"resources": ["Patient"], "path": "$.contact[*].name", "with": "remove"},
                {"resources": ["Observation", "Condition", "Procedure", "AllergyIntolerance"], "path": "$.note", "with": "remove"},
                {"resources": ["Observation"], "path": "$.performer", "with": "remove"},
                {"resources": ["Encounter"], "path": "$.reasonCode[*].text", "with": "remove"},
                {"resources": ["MedicationRequest"], "path": "$.dosageInstruction[*].patientInstruction", "with": "remove"},
                {"resources": ["DiagnosticReport"], "path": "$.conclusion", "with": "remove"},
            ],
        }
    ]
}
EDITS: dict[str, tuple[str, list[Any]]] = {
    "Patient": ("active", [True, False]),
    "Observation": ("method", [{"text": "scale"}, {"text": "watch"}]),
    "Condition": ("recordedDate", ["2020-01-01", "2021-01-01"]),
    "Encounter": ("priority", [{"text": "now"}, {"text": "later"}]),
    "MedicationRequest": ("authoredOn", ["2020-01-01", "2021-01-01"]),
    "Procedure": ("performedString", ["at noon", "at night"]),
    "AllergyIntolerance": ("recordedDate", ["2020-01-01", "2021-01-01"]),
    "DiagnosticReport": ("issued", ["2020-01-01T00:00:00Z", "2021-01-01T00:00:00Z"]),
}


def fit(value: Any) -> Any:
    """What HAPI stores as it came: no extensions, narrative, meta, nor references but to the patient."""
    if isinstance(value, list):
        return [kept for one in value if (kept := fit(one)) not in ({}, [], None)]
    if isinstance(value, dict):
        left = {
            key: fit(one) for key, one in value.items() if key not in {"extension", "text", "meta", "contained"} and key[:1] != "_"
        }
        if "reference" in left and isinstance(left["reference"], str):
            left = {"display": left["display"]} if "display" in left else {}
        return {key: one for key, one in left.items() if one not in ({}, [], None)}
    return value


async def exactly(here: World, path: str) -> Any:
    async with here.session.get(here.upstream + path, headers={"Cache-Control": "no-cache"}) as answer:
        return fhir_json.decode(await answer.read())


@pytest.mark.promise
async def test_read_edit_put_by_a_redacted_caller_loses_no_hidden_byte(tmp_path: Path, hapi: str) -> None:
    wrote = hid = 0
    wanted = count(500, 40)
    async with world(tmp_path, REDACTED, SETTINGS, upstream=hapi) as here:
        token = here.token("user/*.cruds")
        for number in range(2 * wanted):
            if wrote == wanted:
                break
            name = KINDS[number % len(KINDS)]
            generator = Generator(crc32(f"{name}{number}".encode()), density=0.5)
            resource = fit(fhir_json.decode(fhir_json.encode(generator.resource(name)))) | {"id": f"rep-{number}"}
            path = f"/{name}/rep-{number}"
            content = fhir_json.encode(resource)
            async with here.session.put(hapi + path, data=content, headers=FHIR) as made:
                if made.status not in {200, 201}:
                    continue
            before = await exactly(here, path)
            seen = await here.ask(path, token)
            assert seen.status == 200
            new = fhir_json.decode(seen.body)
            element, values = EDITS[name]
            for other in [key for key in new if element.startswith("performed") and key.startswith("performed")]:
                del new[other]
            new[element] = next(value for value in values if value != new.get(element))
            headers = {**FHIR, "If-Match": seen.headers["etag"]}
            answer = await here.ask(path, token, "PUT", data=fhir_json.encode(new), headers=headers)
            assert answer.status == 200, (answer.body, resource)
            after = await exactly(here, path)
            expected = {**before, element: new[element]}
            dropped = {key for key in before if key.startswith("performed") and key != element}
            left = [{k: v for k, v in r.items() if k not in {"meta", "text"} | dropped} for r in (after, expected)]
            assert fhir_json.same(*left), (path, left)
            hid += sum((_values(before) - _values(new)).values())
            wrote += 1
    print(f"\n{wrote} resources read, edited and written back; {hid} hidden values kept")
    assert wrote == wanted and hid > wrote


def _values(resource: Any) -> Counter[Any]:
    return Counter(leaf for leaf in leaves({k: v for k, v in resource.items() if k not in {"meta", "text"}}))


async def test_hapis_conflict_is_412(tmp_path: Path, hapi: str) -> None:
    """HAPI answers a stale ``If-Match`` with 409 (8.8), and ignores it on DELETE."""
    async with world(tmp_path, upstream=hapi) as here:
        token = here.token("user/*.cruds")
        body = {"resourceType": "Basic", "id": "stale", "code": {"text": "1"}}
        put(hapi, body)
        first = await here.ask("/Basic/stale", token)
        put(hapi, {**body, "code": {"text": "2"}})
        headers = {**FHIR, "If-Match": first.headers["etag"]}
        answer = await here.ask("/Basic/stale", token, "PUT", data=json.dumps({**body, "code": {"text": "3"}}), headers=headers)
        assert answer.status == 412
        assert (await here.ask("/Basic/stale", token, "DELETE")).status == 403


async def test_a_life_of_a_resource_on_hapi(tmp_path: Path, hapi: str) -> None:
    rules = copy.deepcopy(CORPUS["rules"][:1])
    rules[0]["allow"]["delete_unseen"] = True
    async with world(tmp_path, {"rules": rules}, upstream=hapi) as here:
        token = here.token("user/*.cruds", roles=["admin"])
        text = '{"resourceType":"Observation","status":"final","code":{"text":"x"},"valueQuantity":{"value":1.10}}'
        made = await here.ask("/Observation", token, "POST", data=text, headers=FHIR)
        assert made.status == 201 and b'"value":1.10' in made.body
        path = made.headers["location"].removeprefix(here.base).partition("/_history")[0]
        patch = json.dumps([{"op": "replace", "path": "/status", "value": "amended"}])
        answer = await here.ask(path, token, "PATCH", data=patch, headers={**PATCH, "If-Match": made.headers["etag"]})
        assert answer.status == 200 and answer.json["status"] == "amended" and answer.headers["etag"] == 'W/"2"'
        assert b'"value":1.10' in (await here.ask(path, token)).body
        assert (await here.ask(path, token, "DELETE")).status == 204
        assert (await here.ask(path, token)).status == (await here.ask(path, token, "DELETE")).status == 404
        again = json.dumps({**json.loads(text), "id": path.rpartition("/")[2]})
        numeric = await here.ask(path, token, "PUT", data=again, headers=FHIR)
        assert numeric.status == 201 and numeric.headers["etag"] == 'W/"4"'  # a deletion is a version of its own


async def test_conditional_writes_on_hapi(tmp_path: Path, hapi: str) -> None:
    rules = copy.deepcopy(CORPUS["rules"][:1])
    rules[0]["allow"]["delete_unseen"] = True
    async with world(tmp_path, {"rules": rules}, upstream=hapi) as here:
        token = here.token("user/*.cruds", roles=["admin"])
        own = f"identifier=http://a.example%7C{secrets.token_hex(6)}"
        value = own.rpartition("%7C")[2]
        body = {"resourceType": "Patient", "identifier": [{"system": "http://a.example", "value": value}]}

        async def ask(method: str, path: str, content: Any, **headers: str) -> Any:
            kind = PATCH if method == "PATCH" else FHIR
            data = json.dumps(content) if content is not None else None
            return await here.ask(path, token, method, data=data, headers={**(kind if data else {}), **headers})

        assert (await ask("PATCH", f"/Patient?{own}", [{"op": "add", "path": "/active", "value": True}])).status == 404
        first = await ask("POST", "/Patient", body, **{"If-None-Exist": own})
        again = await ask("POST", "/Patient", {**body, "active": False}, **{"If-None-Exist": own})
        assert (first.status, again.status) == (201, 200) and first.json["id"] == again.json["id"] and "active" not in again.json
        updated = await ask("PUT", f"/Patient?{own}", {**body, "active": True})
        assert updated.status == 200 and updated.json["id"] == first.json["id"] and updated.json["active"] is True
        assert (await ask("PUT", f"/Patient?{own}", {**body, "id": "another"})).status == 400
        patched = await ask("PATCH", f"/Patient?{own}", [{"op": "replace", "path": "/active", "value": False}])
        assert patched.status == 200 and patched.json["active"] is False
        both = await here.ask("/Patient", token, "POST", data=json.dumps(body), headers=FHIR)
        assert (await ask("PUT", f"/Patient?{own}", body)).status == (await ask("DELETE", f"/Patient?{own}", None)).status == 412
        assert (await here.ask(f"/Patient/{both.json['id']}", token, "DELETE")).status == 204
        assert (await ask("DELETE", f"/Patient?{own}", None)).status == 204
        made = await ask("PUT", f"/Patient?{own}", body)
        assert made.status == 201 and made.json["id"] != first.json["id"]


async def test_hapis_history_tells_what_became_of_writes(tmp_path: Path, hapi: str) -> None:
    """HAPI keeps the request id in ``meta.source``, so that a create is known again among others like it."""
    async with world(tmp_path, upstream=hapi) as here:
        token = here.token("user/*.cruds")
        body = json.dumps({"resourceType": "Basic", "code": {"text": "twin"}})
        made = await here.ask("/Basic", token, "POST", data=body, headers=FHIR)
        await here.ask("/Basic", token, "POST", data=body, headers=FHIR)
        intent = next(row for row in here.records() if row["outcome"] == "intended")
        journal = here.parts.journal
        journal.intents.open[intent["decision"]] = intent
        await Recovery(journal, lambda: here.parts.servers, here.parts.ring.digest, lambda: dt.datetime.now(dt.UTC), 0).round()
        row = here.records()[-1]
        assert row["outcome"] == "recovered" and row["result"] == "carried out"
        assert f"/Basic/{row['id']}/" in made.headers["location"]
