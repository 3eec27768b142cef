"""FHIR client libraries read and page through the shield unchanged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import fhirpy
import pytest

from fhirshield.demo.patients import generate
from tests.parts import ROOT, need
from tests.simulators.server import Simulator
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


# --- with full rights -------------------------------------------------------------------------------------------------------

FULL: Any = {
    "rules": [
        {
            "id": "full",
            "who": {"roles": ["*"]},
            "allow": {"interactions": ["*"], "resources": ["*"], "delete_unseen": True, "opaque": {"types": ["*"]}},
        }
    ]
}


def alike(value: Any, *bases: str) -> Any:
    """What a client got, without what differs by decision: URLs, totals (docs/restful.md), what a server says of itself and times."""
    if isinstance(value, dict):
        return {k: alike(v, *bases) for k, v in value.items() if k not in {"total", "lastModified"}}
    if isinstance(value, list):
        return [alike(v, *bases) for v in value]
    for base in bases:
        value = value.replace(base, "BASE") if isinstance(value, str) else value
    return value


def settled(name: str, value: Any, *bases: str) -> Any:
    """An example's result, ready to be compared: without links and locations, and sorted where the order is the shield's own."""
    found = alike(value, *bases)
    if isinstance(found, dict):
        found.pop("link", None)
        if name == "everything":
            found["entry"] = sorted((entry["resource"] for entry in found["entry"]), key=lambda r: (r["resourceType"], r["id"]))
        for entry in found.get("entry", ()) if isinstance(found.get("entry"), list) else ():
            response = entry.get("response", {}) if isinstance(entry, dict) else {}
            if "status" in response:
                response["status"] = response["status"][:3]
            response.pop("location", None)
            if isinstance(entry, dict) and "request" in entry:
                entry["request"].pop("url", None)
    return found


async def twice(here: World, run: Callable[[str, str], Awaitable[Any]]) -> tuple[Any, Any]:
    """The same examples directly and through the shield, each on a server that was set up anew."""
    results = []
    for base in (here.upstream, here.base):
        here.store.clear()
        here.store._made = 0
        here.store.load(generate(12))
        results.append(await run(base, here.token("user/*.cruds")))
    return results[0], results[1]


async def test_fhir_kit_clients_examples_differ_in_nothing_but_urls(tmp_path: Path) -> None:
    for program in ("bash", "node", "npm"):
        need(program, "fhir-kit-client is a package of npm")
    async with world(tmp_path, FULL, make=Simulator) as here:

        async def run(base: str, token: str) -> Any:
            process = await asyncio.create_subprocess_exec(
                str(ROOT / "tools/clients/fhir-kit/run"),
                base,
                token,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            out, err = await process.communicate()
            assert process.returncode == 0, err
            return json.loads(out)

        direct, through = await twice(here, run)
        names = [name for name, _ in direct]
        assert len(names) > 15 and names == [name for name, _ in through]
        for (name, theirs), (_, ours) in zip(direct, through, strict=True):
            assert settled(name, ours, here.upstream, here.base) == settled(name, theirs, here.upstream, here.base), name


async def _fhirpy(base: str, token: str) -> list[Any]:
    """The examples of fhirpy's own documentation."""
    client = fhirpy.AsyncFHIRClient(base, authorization=f"Bearer {token}")
    patient = client.resource("Patient", name=[{"family": "Coleman"}], active=True)
    await patient.save()
    patient["birthDate"] = "1948-04-14"
    await patient.save()
    found: list[Any] = [dict(patient)]
    observation = client.resource("Observation", status="final", code={"text": "x"}, subject=patient.to_reference())
    await observation.save()
    searches = (
        client.resources("Patient").search(family="Coleman").sort("family").limit(10),
        client.resources("Observation").search(subject=patient.to_reference()).limit(2),
        client.resources("Observation").search(patient__Patient__family="Coleman"),
        client.resources("Patient").has("Observation", "subject", status="final").limit(5),
    )
    for search in searches:
        found.append([dict(one) for one in await search.fetch_all()])
    found.append(dict(await client.resources("Patient").search(family="Coleman").first() or {}))
    found.append(await client.resources("Observation").search(_id=observation.id).include("Observation", "subject").fetch_raw())
    found.append(await client.execute(f"Patient/{patient.id}/$everything", method="get"))
    found.append(dict(await client.reference("Patient", "pat-2").to_resource()))
    await observation.delete()  # type: ignore[no-untyped-call]
    found.append([dict(one) for one in await searches[1].fetch_all()])
    return found


async def test_fhirpys_examples_differ_in_nothing_but_urls(tmp_path: Path) -> None:
    async with world(tmp_path, FULL, make=Simulator) as here:
        direct, through = await twice(here, _fhirpy)
        for number, (theirs, ours) in enumerate(zip(direct, through, strict=True)):
            name = "everything" if isinstance(theirs, dict) and "entry" in theirs else ""
            sides = [json.loads(json.dumps(side, default=dict)) for side in (ours, theirs)]
            assert settled(name, sides[0], here.upstream, here.base) == settled(name, sides[1], here.upstream, here.base), number


def _fhirclient(base: str, token: str) -> list[Any]:
    """The examples of fhirclient's own documentation, and its writes."""
    client = pytest.importorskip("fhirclient.client", reason="fhirclient is not installed")
    from fhirclient.models.humanname import HumanName
    from fhirclient.models.patient import Patient
    from fhirclient.models.procedure import Procedure

    smart = client.FHIRClient(settings={"app_id": "app", "api_base": base})
    smart.server.session.headers["Authorization"] = f"Bearer {token}"
    patient = Patient.read("pat-1", smart.server)
    found = [patient.as_json(), smart.human_name(patient.name[0])]
    found.append([p.as_json() for p in Procedure.where({"subject": "Patient/pat-1"}).perform_resources(smart.server)])
    made = Patient({"active": True})
    name = HumanName({"family": "Coleman", "given": ["Lisa"]})
    made.name = [name]
    found.append(made.create(smart.server))
    again = Patient.read("made-1", smart.server)
    again.gender = "female"
    found.append(again.update(smart.server))
    found.append([p.as_json() for p in Patient.where({"family": "Coleman", "_count": "1"}).perform_resources_iter(smart.server)])
    again.delete(smart.server)
    found.append([p.as_json() for p in Patient.where({"family": "Coleman"}).perform_resources(smart.server)])
    return found


@pytest.mark.filterwarnings("ignore")
async def test_fhirclients_examples_differ_in_nothing_but_urls(tmp_path: Path) -> None:
    async with world(tmp_path, FULL, make=Simulator) as here:
        direct, through = await twice(here, lambda base, token: asyncio.to_thread(_fhirclient, base, token))
        assert len(direct) == 7
        for number, (theirs, ours) in enumerate(zip(direct, through, strict=True)):
            assert settled("", ours, here.upstream, here.base) == settled("", theirs, here.upstream, here.base), number
