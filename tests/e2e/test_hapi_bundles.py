"""Bundles, history and operations before a real HAPI FHIR server, references checked."""

from __future__ import annotations

import secrets
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import put
from tests.test_batch import OBSERVATION, entry
from tests.test_history import RULES, patient, shown
from tests.test_operations import RULES as OPERATIONS
from tests.test_operations import asked, ids
from tests.test_transactions import DELETING, PATIENT, statuses, transact
from tests.world import world

pytestmark = pytest.mark.hapi


async def test_a_transaction_is_carried_out_and_refers_within_itself(tmp_path: Path, hapi: str) -> None:
    new, mark = f"urn:uuid:{uuid.uuid4()}", secrets.token_hex(6)
    person = {**PATIENT, "identifier": [{"system": "urn:mrn", "value": mark}]}
    async with world(tmp_path, DELETING, upstream=hapi) as here:
        token = here.token("user/*.cruds")
        about = {**OBSERVATION, "subject": {"reference": new}}
        query = f"Patient?identifier=urn:mrn|{mark}"
        reply = await transact(
            here,
            token,
            entry("GET", query),
            {**entry("POST", "Patient", person), "fullUrl": new},
            entry("POST", "Observation", about),
        )
        assert reply.status == 200 and statuses(reply) == ["200", "201", "201"], reply.body
        rows = reply.json["entry"]
        assert hapi not in reply.body.decode() and rows[0]["resource"]["entry"][0]["resource"]["id"] == rows[1]["resource"]["id"]
        patient = f"Patient/{rows[1]['resource']['id']}"
        assert rows[2]["resource"]["subject"]["reference"] == patient
        again = await transact(
            here, token, {**entry("POST", "Patient", person, ifNoneExist=query.partition("?")[2]), "fullUrl": new},
            entry("POST", "Observation", about), entry("POST", "Observation", {**about, "subject": {"reference": query}}),
            entry("PUT", patient, {**rows[1]["resource"], "active": True}, ifMatch='W/"1"'),
        )  # fmt: skip
        assert statuses(again) == ["200", "201", "201", "200"], again.body
        assert [row["resource"]["subject"]["reference"] for row in again.json["entry"][1:3]] == [patient] * 2
        stale = await transact(here, token, entry("PUT", patient, {**rows[1]["resource"], "active": False}, ifMatch='W/"1"'))
        assert stale.status == 412
        gone = await transact(here, token, entry("DELETE", patient))
        assert gone.status == 409 and hapi not in gone.body.decode() and not here.parts.journal.intents.open
        assert mark.encode() not in gone.body


async def test_histories_and_old_versions(tmp_path: Path, hapi: str) -> None:
    mark = secrets.token_hex(6)
    async with world(tmp_path, RULES, upstream=hapi) as here:

        def save(identity: str, **more: Any) -> None:
            put(hapi, patient(f"{mark}-{identity}", **more))

        for number, birth in enumerate(("1970", "1970", "1971", "1970")):
            save("a", birthDate=birth, telecom=[{"value": f"n-{number}"}])
        for body in ({"birthDate": "1970"}, {"meta": {"security": [{"system": "urn:x", "code": "VIP"}]}}):
            save("vip", **body)
        place = f"/Patient/{mark}-a/_history"
        everything = await shown(here, "all", place)
        assert everything == [f"PUT Patient/{mark}-a {n}" for n in (4, 3, 2)] + [everything[-1]] and everything[-1].endswith(" 1")
        assert [row.rpartition(" ")[2] for row in await shown(here, "nurse", place)] == ["1970", "1971", "1970"]
        assert [row.rpartition(" ")[2] for row in await shown(here, "nurse", place + "?_count=2")] == ["1970", "1971"]
        token = here.token("user/*.rs", roles=["staff"])
        for path in (f"/Patient/{mark}-vip/_history", f"/Patient/{mark}-vip/_history/1"):
            assert (await here.ask(path, token)).status == 404
        assert f"{mark}-vip" not in (await here.ask("/Patient/_history?_count=20", token)).body.decode()
        pages, url = [], f"{here.base}/_history?_count=3"
        for _ in range(3):
            reply = await here.ask(url, here.token("user/*.rs", roles=["nurse"]))
            assert reply.status == 200 and hapi not in reply.body.decode()
            pages += [entry["fullUrl"] for entry in reply.json["entry"]]
            url = next(link["url"] for link in reply.json["link"] if link["relation"] == "next")
        assert len(pages) == 9


async def test_operations(tmp_path: Path, hapi: str) -> None:
    mark = secrets.token_hex(6)
    observation = {
        "resourceType": "Observation",
        "status": "final",
        "code": {"text": "x"},
        "subject": {"reference": f"Patient/{mark}"},
    }
    async with world(tmp_path, OPERATIONS, upstream=hapi) as here:
        put(hapi, {"resourceType": "Practitioner", "id": f"{mark}-gp"})
        put(hapi, patient(mark, birthDate="1970-01-02", generalPractitioner=[{"reference": f"Practitioner/{mark}-gp"}]))
        for number in range(120):
            put(
                hapi,
                {
                    **observation,
                    "id": f"{mark}-{number}",
                    "effectiveDateTime": f"2020-01-01T00:{number // 60:02}:{number % 60:02}Z",
                },
            )
        put(hapi, {**observation, "id": f"{mark}-vip", "meta": {"security": [{"system": "urn:x", "code": "VIP"}]}})
        path = f"/Patient/{mark}/$everything"
        everything = ids(await asked(here, "staff", path))
        assert (
            len(everything) == 122 and everything[0] == mark and f"{mark}-vip" not in everything and everything[-1] == f"{mark}-gp"
        )
        assert len(ids(await asked(here, "all", path))) == 123
        assert len(ids(await asked(here, "staff", path + "?_count=50"))) == 50
        assert ids(await asked(here, "staff", f"/Observation/$lastn?patient={mark}")) == [f"{mark}-119"]
        meta = (await asked(here, "nurse", f"/Patient/{mark}/$meta")).json["parameter"][0]["valueMeta"]
        assert meta == (await asked(here, "nurse", f"/Patient/{mark}")).json["meta"]
        fine = await asked(here, "all", "/Observation/$validate", observation)
        wrong = await asked(here, "all", "/Observation/$validate", {**observation, "status": "nonsense"})
        assert fine.status == wrong.status == 200
        severities = [{issue["severity"] for issue in reply.json["issue"]} for reply in (fine, wrong)]
        assert "error" not in severities[0] and "error" in severities[1]
        found = await asked(here, "all", "/CodeSystem/$lookup?system=http://hl7.org/fhir/administrative-gender&code=male")
        assert found.status == 200 and b"Male" in found.body
