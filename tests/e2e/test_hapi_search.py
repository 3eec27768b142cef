"""Search before a real HAPI FHIR server: pages over several hundred entries, joins, includes both ways, counts."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import load, put
from tests.test_operations import asked, ids
from tests.world import World, world

pytestmark = pytest.mark.hapi
VIP = {"meta": {"security": [{"system": "urn:x", "code": "VIP"}]}}
RULES: Any = {
    "rules": [
        {"id": "all", "who": {"roles": ["all", "staff"]}, "allow": {"interactions": ["*"], "resources": ["*"]}},
        {"id": "vip", "who": {"roles": ["staff"]}, "deny": {"interactions": ["*"], "resources": ["*?_security=VIP"]}},
    ]
}


async def pages(here: World, role: str, path: str) -> list[list[str]]:
    """The ids on each page of a search."""
    found, url = [], f"{here.base}{path}"
    token = here.token("user/*.rs", roles=[role])
    while url:
        reply = await here.ask(url, token)
        assert here.upstream not in reply.body.decode()
        found.append(ids(reply))
        url = next((link["url"] for link in reply.json["link"] if link["relation"] == "next"), "")
    return found


async def test_several_hundred_entries_joins_and_includes(tmp_path: Path, hapi: str) -> None:
    run = secrets.token_hex(5)
    observation: Any = {"resourceType": "Observation", "status": "final", "code": {"coding": [{"system": "urn:c", "code": run}]}}
    people: list[Any] = [{"resourceType": "Practitioner", "id": f"{run}-d", "name": [{"family": f"D{run}"}]},
              {"resourceType": "Practitioner", "id": f"{run}-h", "name": [{"family": f"H{run}"}], **VIP},
              {"resourceType": "Patient", "id": f"{run}-a", "name": [{"family": f"A{run}"}]},
              {"resourceType": "Patient", "id": f"{run}-v", "name": [{"family": f"V{run}"}], **VIP}]  # fmt: skip
    for one in people:
        put(hapi, one)
    rows = []
    for number in range(420):
        hidden = number % 7 == 3
        who, doctor = ("v" if number % 5 == 4 else "a"), ("h" if number % 2 else "d")
        rows.append({**observation, "id": f"{run}-{number:03}", "subject": {"reference": f"Patient/{run}-{who}"},
                     "performer": [{"reference": f"Practitioner/{run}-{doctor}"}], **(VIP if hidden else {})})  # fmt: skip
    load(hapi, rows)
    visible = {row["id"] for row in rows if "meta" not in row}
    base = f"/Observation?code=urn:c%7C{run}"
    async with world(tmp_path, RULES, upstream=hapi) as here:
        everyone = await pages(here, "all", f"{base}&_count=50")
        assert sorted(i for page in everyone for i in page) == [row["id"] for row in rows] and len(everyone) == 9
        staff = await pages(here, "staff", f"{base}&_count=50&_sort=_id")
        assert [i for page in staff for i in page] == sorted(visible) and {len(page) for page in staff[:-1]} == {50}
        counted = await asked(here, "staff", f"{base}&_summary=count")
        assert counted.json["total"] == len(visible)
        joined = await pages(here, "staff", f"{base}&_count=100&subject:Patient.name=A{run}")
        expected = {row["id"] for row in rows if "meta" not in row and row["subject"]["reference"].endswith("-a")}
        assert {i for page in joined for i in page} == expected
        for secret in (f"subject:Patient.name=V{run}", f"performer:Practitioner.name=H{run}"):
            assert await pages(here, "staff", f"{base}&{secret}") == [[]]
            assert any(await pages(here, "all", f"{base}&{secret}"))
        has = "_has:Observation:performer:code=urn:c%7C" + run
        assert await pages(here, "staff", f"/Practitioner?{has}&_id={run}-d,{run}-h") == [[f"{run}-d"]]
        included = await asked(here, "staff", f"{base}&_count=30&_include=Observation:performer&_include=Observation:subject")
        others = {e["resource"]["id"] for e in included.json["entry"] if e["search"]["mode"] == "include"}
        assert others == {f"{run}-d", f"{run}-a"} and len(included.json["entry"]) == 32
        reverse = await asked(here, "staff", f"/Practitioner?_id={run}-d&_revinclude=Observation:performer")
        found = {e["resource"]["id"] for e in reverse.json["entry"] if e["search"]["mode"] == "include"}
        assert found == {row["id"] for row in rows if "meta" not in row and row["performer"][0]["reference"].endswith("-d")}
