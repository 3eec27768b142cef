"""The simulator answers as HAPI FHIR does: the same requests to both, about the same resources."""

from __future__ import annotations

import json
import random
import re
import secrets
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import pytest

from tests.e2e.conftest import put
from tests.properties.pairs import CRITERIA, PEOPLE, resource
from tests.simulators.server import Simulator

pytestmark = pytest.mark.hapi
NAMES = re.compile(r"(?<![A-Za-z0-9-])([poedg][1-5])(?![A-Za-z0-9-])")
SHAPES = (
    "_include=Observation:subject", "_include=Observation:performer", "_include=Observation:encounter", "_revinclude=Observation:subject",
    "_revinclude=Observation:encounter", "_include:iterate=Patient:general-practitioner&_include=Observation:subject", "_count=2", "_sort=_id",
    "_sort=-date", "_sort=birthdate", "_summary=count", "_total=accurate",
)  # fmt: skip
SKIPPED = {"telecom=555-100-77", "_has:Observation:subject:_has:Provenance:target:agent=x", "_has:Condition:patient:code=x"}
"""HAPI indexes a telecom as a whole; the others name what no resource here is."""


def ask(url: str) -> Any:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Cache-Control": "no-cache"}), timeout=60) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return {"status": error.code}


def seen(bundle: Any) -> Any:
    """What an answer lists: names by mode, the total where it is asked."""
    if "status" in bundle:
        return bundle["status"]
    return [
        (e.get("search", {}).get("mode", ""), f"{e['resource']['resourceType']}/{e['resource']['id']}")
        for e in bundle.get("entry", [])
    ]


def test_the_simulator_finds_what_hapi_finds(hapi: str) -> None:
    run = secrets.token_hex(4)

    def own(text: str) -> str:
        return NAMES.sub(rf"{run}\1", text)

    rng = random.Random(7)
    simulator = Simulator("http://simulator.invalid/fhir", 100)
    made = [resource(rng, kind, name) for kind, names in PEOPLE.items() for name in names]
    made += [resource(rng, "Practitioner", name) for name in ("g1", "g2", "g3")]
    made.sort(key=lambda r: ("Practitioner", "Patient", "Encounter", "Observation").index(r["resourceType"]))
    for one in made:
        one = json.loads(own(json.dumps(one)))
        if one["resourceType"] != "Practitioner":
            one["meta"] = {"tag": [{"system": "urn:run", "code": run}]}
        put(hapi, one)
        simulator.save(one)
    wrong = []
    tried = 0
    for kind in ("Patient", "Observation", "Encounter"):
        queries = [q for q in CRITERIA[kind] if q not in SKIPPED] + list(
            SHAPES if kind == "Observation" else ("_sort=birthdate", "_count=2")[: 2 if kind == "Patient" else 0]
        )
        for query in queries:
            if query == "_sort=birthdate" and kind != "Patient":
                continue
            text = f"{own(query)}&_tag=urn:run|{run}"
            theirs = ask(f"{hapi}/{kind}?" + urllib.parse.quote(text, safe="=&:,.-_"))
            pairs = urllib.parse.parse_qsl(text, keep_blank_values=True)
            status, body, _ = simulator.serve("GET", [kind], pairs, "", {})
            ours = json.loads(body) if status == 200 else {"status": status}
            ordered = "_sort" in query or "_count" in query
            one, other = seen(theirs), seen(ours)
            if isinstance(one, list) and isinstance(other, list) and (not ordered or "_count" in query):
                one, other = (len(one), len(other)) if "_count" in query else (sorted(one), sorted(other))  # type: ignore[assignment]
            if ("_total" in query or "_summary" in query) and theirs.get("total") != ours.get("total"):
                wrong.append((kind, query, theirs.get("total"), ours.get("total")))
            if one != other:
                wrong.append((kind, query, one, other))
            tried += 1
    assert tried > 35 and not wrong, "\n".join(map(str, wrong))


def test_the_simulators_everything_and_history_are_hapis(hapi: str) -> None:
    run = secrets.token_hex(4)
    simulator = Simulator("http://simulator.invalid/fhir", 100)
    patient = {"resourceType": "Patient", "id": f"{run}p", "generalPractitioner": [{"reference": f"Practitioner/{run}d"}]}
    about: Any = {
        "resourceType": "Observation",
        "id": f"{run}o",
        "status": "final",
        "code": {"text": "x"},
        "subject": {"reference": f"Patient/{run}p"},
    }
    for one in (
        {"resourceType": "Practitioner", "id": f"{run}d"},
        patient,
        about,
        {**about, "status": "amended"},
        {**patient, "active": True},
    ):
        put(hapi, one)
        simulator.save(one)
    theirs = ask(f"{hapi}/Patient/{run}p/$everything")
    ours = json.loads(simulator.serve("GET", ["Patient", f"{run}p", "$everything"], [], "", {})[1])
    assert {name for _, name in seen(theirs)} == {name for _, name in seen(ours)}
    for place in (["Observation", f"{run}o"], ["Patient", f"{run}p"]):
        theirs = ask("/".join((hapi, *place, "_history")))
        ours = json.loads(simulator.serve("GET", [*place, "_history"], [], "", {})[1])
        sides = [[(e["request"]["method"], e["resource"]["meta"]["versionId"]) for e in side["entry"]] for side in (theirs, ours)]
        assert [version for _, version in sides[0]] == [version for _, version in sides[1]]
