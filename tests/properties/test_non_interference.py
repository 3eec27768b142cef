"""Hidden equals absent, over the whole API: two servers that differ only in what a caller may not see answer it byte for byte alike.

``make mutants`` takes the shield's guards away, one by one, and this test must notice each. ``FHIRSHIELD_PAIRS`` sets how many
pairs are tried, ``FHIRSHIELD_SEED`` where they begin.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.parts import count
from tests.properties import guarded
from tests.properties.pairs import CALLERS, RULES, Asked, Caller, Event, body_of, play, requests, scripts
from tests.simulators.server import Simulator
from tests.tally import tally
from tests.world import Reply, World, world

PAIRS = {
    name: int(os.environ.get("FHIRSHIELD_PAIRS", "0")) or most
    for name, most in (("rules", count(5000, 60)), ("circumstances", count(2000, 60)))
}
SEED = int(os.environ.get("FHIRSHIELD_SEED", "0"))
ASKED = 8
"""Requests of one sequence, before the links that are followed."""
_PAGE = re.compile(rb"_page=[A-Za-z0-9_\-%=]+")
_ONE = re.compile(r"/[A-Z][A-Za-z]+/[a-z0-9]+\Z")
_HEADERS = (
    "etag",
    "location",
    "content-location",
    "content-type",
    "last-modified",
    "www-authenticate",
    "content-length",
    "retry-after",
)


@dataclass(slots=True)
class Running:
    """A shield that stands before a server whose store can be played anew."""

    loop: asyncio.AbstractEventLoop
    here: World
    callers: tuple[Caller, ...]
    base: list[Event]
    """What stands on both servers before their scripts."""
    pairs: int


@pytest.fixture(scope="module", params=["rules", "circumstances"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    loop = asyncio.new_event_loop()
    folder: Path = tmp_path_factory.mktemp("pairs")
    (folder / "list.csv").write_text(guarded.LIST)
    by_rules = request.param == "rules"
    rules, settings = (RULES, {"upstreams": [{"hidden_narrative": "drop"}]}) if by_rules else (guarded.RULES, guarded.SETTINGS)

    async def start(stack: contextlib.AsyncExitStack) -> World:
        return await stack.enter_async_context(world(folder, rules, settings, make=Simulator, page=3))

    stack = contextlib.AsyncExitStack()
    here = loop.run_until_complete(start(stack))
    callers, base = (CALLERS, []) if by_rules else (guarded.CALLERS, guarded.BASE)
    yield Running(loop, here, callers, base, PAIRS[request.param])
    loop.run_until_complete(stack.aclose())
    loop.close()


def plain(reply: Reply) -> tuple[Any, ...]:
    """All of an answer that could tell anything; sealed links are never twice the same."""
    body = _PAGE.sub(b"_page=", reply.body)
    headers = {name: _PAGE.sub(b"_page=", reply.headers[name].encode()) for name in _HEADERS if name in reply.headers}
    if b"_page=" in body:
        headers.pop("content-length", None)
    return reply.status, headers, body


async def one(here: World, token: str, asked: Asked) -> list[tuple[Any, ...]]:
    """A request and the pages that follow from it."""
    view = None
    if asked.edit:
        before = await here.ask(asked.path, token)
        view = before.json if before.status == 200 else None
    headers = {
        "Content-Type": "application/json-patch+json" if asked.method == "PATCH" else "application/fhir+json",
        **dict(asked.headers),
    }
    path = asked.path.replace("|", "%7C")
    found = []
    for number in "123" if asked.edit else "":  # a version of the server's own is nobody's where versions are hidden
        guarded = {**headers, "If-Match": f'W/"{number}"'}
        found.append(plain(await here.ask(path, token, asked.method, data=body_of(asked, view), headers=guarded)))
    reply = await here.ask(path, token, asked.method, data=body_of(asked, view), headers=headers)
    found.append(plain(reply))
    for number in "123" if asked.method == "GET" and _ONE.match(asked.path) else "":
        found.append(plain(await here.ask(f"{asked.path}/_history/{number}", token)))
    for _ in range(4):
        if reply.status != 200 or b'"next"' not in reply.body:
            break
        url = next((link["url"] for link in reply.json.get("link", []) if link["relation"] == "next"), None)
        if url is None:
            break
        reply = await here.ask(url, token)
        found.append(plain(reply))
    if asked.path.endswith("_history") and reply.status == 200:
        for entry in reply.json.get("entry", [])[:3]:
            held = entry.get("resource", {})
            version = held.get("meta", {}).get("versionId", "x")
            found.append(plain(await here.ask(f"/{held.get('resourceType')}/{held.get('id')}/_history/{version}", token)))
    return found


async def answers(here: World, caller: Caller, script: Any, sequence: list[Asked]) -> list[list[tuple[Any, ...]]]:
    play(here.store, script)
    claims: dict[str, Any] = {"patient": caller.patient} if caller.patient else {}
    claims["purpose_of_use"] = "TREAT"
    token = here.token(caller.scope, roles=[caller.role], **claims)
    return [await one(here, token, asked) for asked in sequence]


STATUSES: Counter[int] = Counter()


@pytest.mark.promise
def test_servers_that_differ_in_what_is_hidden_answer_alike(running: Running) -> None:
    tried = Counter[str]()

    @settings(
        max_examples=running.pairs, phases=(Phase.explicit, Phase.reuse, Phase.generate)
    )  # a seed is not made plainer by shrinking
    @given(st.integers(min_value=SEED, max_value=SEED + (1 << 40)))
    def pair(seed: int) -> None:
        rng = random.Random(seed)
        caller = rng.choice(running.callers)
        first, second = scripts(rng, caller)
        sequence = requests(rng, ASKED)
        one_side, other = (
            running.loop.run_until_complete(answers(running.here, caller, [*running.base, *s], sequence)) for s in (first, second)
        )
        for asked, here, there in zip(sequence, one_side, other, strict=True):
            STATUSES.update(reply[0] for reply in here)
            assert here == there, (caller.role, asked, seed)
        tried["pairs"] += 1
        tried["requests"] += sum(map(len, one_side)) * 2

    pair()
    assert {200, 201, 403, 404} <= STATUSES.keys(), "sequences that reach nothing would show nothing"
    tally("pairs of servers", tried=tried["pairs"])
    tally("requests to pairs", tried=tried["requests"], refused=sum(n for status, n in STATUSES.items() if status >= 400) * 2)
