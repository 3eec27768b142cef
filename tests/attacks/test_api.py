"""The corpus of what callers with tokens try over the whole API, on the shield: before a simulator, and before HAPI."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.api import Case, Request, corpus, plain, told
from tests.attacks.run import attack
from tests.simulators.server import Simulator
from tests.tally import tally
from tests.world import Reply, World, world

BROKEN = {"none": None, "garbage": "eyJhbGciOiJub25lIn0.e30."}


async def ask(here: World, case: Case, callers: Any, request: Request) -> Reply:
    claims = {k: v for k, v in callers.get(case.caller, {}).items() if k not in {"never", "scope"}}
    token = BROKEN[case.caller] if case.caller in BROKEN else here.token(callers[case.caller]["scope"], **claims)
    path = "" if request.path == "/" else request.path
    return await here.ask(path, token, request.method, data=request.content, headers=request.sent)


async def run(here: World, load: Any, prefix: str, *, statuses: bool = True) -> list[Any]:
    """Every case; what went wrong."""
    found, cases = corpus(prefix)
    wrong: list[Any] = []
    areas: Counter[str] = Counter()
    for case in cases:
        load(found["stored"])
        reply = await ask(here, case, found["callers"], case.request)
        areas[case.area] += 1
        if statuses and reply.status != case.status:
            wrong.append((case.area, case.caller, case.request, reply.status, reply.body[:300]))
        if leaked := told(case, reply.body, reply.headers):
            wrong.append((case.area, case.caller, case.request, "leaked", leaked))
        if case.like is not None:
            load(found["stored"])
            other = await ask(here, case, found["callers"], case.like)
            if (reply.status, plain(reply.body, case)) != (other.status, plain(other.body, case)):
                wrong.append(
                    (case.area, case.caller, case.request, "unlike", reply.status, other.status, reply.body[:600], other.body[:600])
                )
    tally("api", tried=len(cases), leaked=sum(row[3] == "leaked" for row in wrong), refused=sum(c.status >= 400 for c in cases))
    assert len(cases) >= 150 and {
        "search",
        "joins",
        "paging",
        "bundles",
        "history",
        "operations",
        "writes",
        "http",
        "tokens",
    } <= set(areas)
    return wrong


@pytest.mark.promise
async def test_nothing_hidden_is_told_over_the_whole_api(tmp_path: Path) -> None:
    found, _ = corpus("t-")
    async with world(tmp_path, {"rules": found["rules"]}, make=Simulator) as here:

        def load(stored: Any) -> None:
            here.store.clear()
            for resource in stored:
                here.store.save(resource)

        wrong = await run(here, load, "t-")
    assert not wrong, "\n".join(map(str, wrong))


async def test_the_corpus_can_be_run_against_any_gateway(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the shield nothing is told; on a gateway that passes everything on, much is."""
    found, _ = corpus("g-")
    async with world(tmp_path, {"rules": found["rules"]}, make=Simulator) as here:
        here.store.clear()
        tokens = {
            name: here.token(row["scope"], **{k: v for k, v in row.items() if k not in {"never", "scope"}})
            for name, row in found["callers"].items()
        }
        assert await attack(here.base, here.upstream, tokens, "g-") == 0
        assert "search" in capsys.readouterr().out
        assert await attack(here.upstream, here.upstream, tokens, "g-") > 50
        assert "tells Starling" in capsys.readouterr().out
