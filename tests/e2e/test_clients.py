"""FHIR client libraries read and page through the shield unchanged."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import fhirpy
import pytest

from tests.test_shield import NURSE
from tests.world import World, world


async def test_fhirpy_reads_and_pages(tmp_path: Path) -> None:
    async with world(tmp_path, NURSE) as here:
        client = fhirpy.AsyncFHIRClient(here.base, authorization=f"Bearer {here.token(roles=['nurse'])}")
        patient = await client.reference("Patient", "pat-1").to_resource()
        assert patient["id"] == "pat-1" and len(patient["birthDate"]) == 4
        found = await client.resources("Observation").search(patient="Patient/pat-1").limit(2).fetch_all()
        assert len(found) == 5


def _smart_client(here: World, token: str) -> Any:
    client = pytest.importorskip("fhirclient.client", reason="fhirclient is not installed")
    smart = client.FHIRClient(settings={"app_id": "app", "api_base": here.base})
    smart.server.session.headers["Authorization"] = f"Bearer {token}"
    return smart


def _read(here: World, token: str) -> tuple[str, int]:
    from fhirclient.models.observation import Observation
    from fhirclient.models.patient import Patient

    smart = _smart_client(here, token)
    patient = Patient.read("pat-1", smart.server)
    found = list(Observation.where({"patient": "Patient/pat-1", "_count": "2"}).perform_resources_iter(smart.server))
    return patient.id, len(found)


@pytest.mark.filterwarnings("ignore")
async def test_fhirclient_reads_and_pages(tmp_path: Path) -> None:
    async with world(tmp_path, NURSE) as here:
        assert await asyncio.to_thread(_read, here, here.token(roles=["nurse"])) == ("pat-1", 5)
