"""docs/restful.md says what the code does: the same interactions, operations, parameters and modifiers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fhirshield.authorize.parameters import MODIFIERS, WITHIN
from fhirshield.fhir.interaction import RULE_NAMES, SCOPE_LETTERS, Kind
from fhirshield.fhir.operations import NEVER, OPERATIONS
from fhirshield.fhir.search_parameters import RESULT_PARAMETERS, search_parameters
from fhirshield.receive.request import FORMAT_PARAMETERS
from tests.parts import ROOT
from tests.simulators.server import Simulator
from tests.test_operations import RULES, ids
from tests.world import world

TEXT = (ROOT / "docs/restful.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head."""
    part = TEXT.partition(f"## {heading}\n\n")[2].partition("\n\n")[0]
    lines = part.splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_interaction_is_listed_as_it_is() -> None:
    listed = {row[0].strip("`"): [cell.strip("`") for cell in row[1:3]] for row in rows("Interactions")}
    assert set(listed) == {kind.value for kind in Kind}
    for kind, name in RULE_NAMES.items():
        assert listed[kind.value] == [name, SCOPE_LETTERS[kind]]


def test_every_operation_is_listed() -> None:
    listed = {row[0].strip("`"): row[1] for row in rows("Operations")}
    assert set(listed) == {*OPERATIONS, *NEVER, "any other"}
    for name, operation in OPERATIONS.items():
        assert all(kind in listed[name] for kind in operation.types)


def test_every_parameter_is_listed() -> None:
    listed = {name for row in rows("Search parameters") for name in re.findall(r"`(_[A-Za-z]+)`", row[0])}
    common = {name for name in search_parameters("Basic") if name.startswith("_")}
    assert listed == RESULT_PARAMETERS | WITHIN | FORMAT_PARAMETERS | common | {"_has", "_page", "_since", "_at"}


def test_every_modifier_is_listed() -> None:
    part = TEXT.partition("| modifiers of | |\n")[2].partition("\n\n")[0]
    listed = {
        cells[1].strip(): set(re.findall(r"`:([a-z]+)`", cells[2])) for cells in (line.split("|") for line in part.splitlines()[1:])
    }
    assert listed == {kind: names - {""} for kind, names in MODIFIERS.items()}


@pytest.mark.parametrize("name", ["_text=Ash", "_content=Ash", "_filter=family eq Ash"])
async def test_what_looks_into_everything_is_for_whoever_sees_it(tmp_path: Path, name: str) -> None:
    async with world(tmp_path, RULES, make=Simulator) as here:
        here.store.load([{"resourceType": "Patient", "id": "ash", "name": [{"family": "Ash"}], "text": {"div": "<div>Ash</div>"}}])
        path = "/Patient?" + name.replace(" ", "%20")
        assert "ash" in ids(await here.ask(path, here.token("user/*.rs", roles=["all"])))
        here.seen.clear()
        for role in ("staff", "nurse"):
            assert (await here.ask(path, here.token("user/*.rs", roles=[role]))).status == 403
        assert (await here.ask(path, here.token("patient/*.rs", roles=["all"], patient="ash"))).status == 403
        assert not [target for _, target, _ in here.seen if b"Patient" in target]


async def test_an_upstream_that_ignores_a_criterion_is_found_out(tmp_path: Path) -> None:
    class Deaf(Simulator):
        def _search(self, kind: str, query: list[tuple[str, str]]) -> tuple[int, str, list[tuple[bytes, bytes]]]:
            return super()._search(kind, [(n, v) for n, v in query if not n.startswith("gender")])

    async with world(tmp_path, make=Deaf) as here:
        for path in ("/Patient?gender=female", "/Patient?gender:not=female&name=a"):
            reply = await here.ask(path, here.token())
            assert reply.status == 400 and b"`gender`" in reply.body
        lenient = await here.ask("/Patient?gender=female&active=true", here.token(), headers={"Prefer": "handling=lenient"})
        assert lenient.json["link"][0]["url"] == f"{here.base}/Patient?active=true"
        assert (await here.ask("/Patient?active=true", here.token())).status == 200
