"""Bundles, history and operations before a real HAPI FHIR server, references checked."""

from __future__ import annotations

import secrets
import uuid
from pathlib import Path

import pytest

from tests.test_batch import OBSERVATION, entry
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
