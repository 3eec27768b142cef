"""Attacks on the running shield: strangers who hold on, files that break their reader, streams that are not ours."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis.asyncio import Redis

from fhirshield import app
from fhirshield.audit.stream import RedisStream
from fhirshield.errors import CriteriaError, Unavailable
from fhirshield.fhir.terminology import Terminology
from fhirshield.receive import guard
from fhirshield.state.memory import MemoryMap
from tests.audit.test_stream import fill, journal, sink
from tests.authenticate.test_binding import bound, proof, status
from tests.state.test_state import redis_server
from tests.world import World, world


async def raw(here: World, content: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = here.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(content)
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize("broken", [
    "rules:\n  - who: {roles: {{ .Values.role }}}\n", "? [a]\n: b\n", "a: &a [*a]\n", "[" * 3000, "rules: " + "9" * 5000, "\x00",
])  # fmt: skip
async def test_no_file_ends_the_watching_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setattr(app, "LOOK_INTERVAL", 0.05)
    async with world(tmp_path) as here:
        (tmp_path / "rules.yaml").write_text(broken)
        assert not await here.parts.reload()
        await asyncio.sleep(0.2)
        (tmp_path / "rules.yaml").write_text("rules: []\n")
        for _ in range(60):
            await asyncio.sleep(0.05)
            if (await here.ask("/Patient/pat-1", here.token())).status == 403:
                return
        raise AssertionError("the good file never took force")


async def test_works_that_cannot_be_built_change_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        pools = list(here.parts.pools)
        text = yaml.safe_load((tmp_path / "fhirshield.yaml").read_text())
        text["upstreams"][0]["credential"] = {"token_url": "http://127.0.0.1:9/t", "client_id": "c", "key_file": "absent.pem"}
        (tmp_path / "fhirshield.yaml").write_text(yaml.safe_dump(text))
        assert not await here.parts.reload()
        assert here.parts.pools == pools and (await here.ask("/Patient/pat-1", here.token())).status == 200


async def test_of_two_reloads_at_once_the_later_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, first = app._read, [True]

    def slow(file: Path) -> Any:
        found = original(file)
        if first.pop() if first else False:
            time.sleep(0.4)
        return found

    async with world(tmp_path) as here:
        monkeypatch.setattr(app, "_read", slow)
        older = asyncio.create_task(here.parts.reload())
        await asyncio.sleep(0.1)
        (tmp_path / "rules.yaml").write_text("rules: []\n")
        await here.parts.reload()
        await older
        assert (await here.ask("/Patient/pat-1", here.token())).status == 403


async def test_names_of_parameters_are_no_way_to_fill_the_journal(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert (await here.ask("/Patient/_search", None, "POST", data=b"a" * 500_000 + b"=1", headers=form)).status in {400, 401}
        assert (await here.ask("/Patient?" + "b" * 8000 + "=1")).status in {400, 401}
        assert max(len(json.dumps(row)) for row in here.records()) < 2000


async def test_slow_bodies_of_strangers_hold_nobody_up(tmp_path: Path) -> None:
    async with world(tmp_path, settings={"limits": {"concurrency": 2}}) as here:
        head = b"POST /fhir/Patient/_search HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\na"
        slow = [await raw(here, head) for _ in range(4)]
        await asyncio.sleep(0.1)
        assert (await here.ask("/Patient/pat-1", here.token())).status == 200
        for _, writer in slow:
            writer.close()


@pytest.mark.parametrize("after", [b"\r\n", b"a"])
async def test_connections_of_strangers_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bytes) -> None:
    monkeypatch.setattr(guard, "PATIENCE", 0.3)
    async with world(tmp_path) as here:
        head = (
            b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
            if after == b"a"
            else b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        reader, writer = await raw(here, head)
        assert await reader.read(100)
        writer.write(after)
        while await asyncio.wait_for(reader.read(65536), 3):
            pass
        writer.close()


@pytest.mark.parametrize("head", [
    b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
])  # fmt: skip
async def test_heads_and_trailers_without_end_end(tmp_path: Path, head: bytes) -> None:
    async with world(tmp_path) as here:
        reader, writer = await raw(here, head)
        sent = 0
        with pytest.raises(ConnectionError):
            while sent < 40 << 20:
                writer.write(b"a" * 65536)
                await writer.drain()
                sent += 65536
        assert sent < 20 << 20 and reader
        writer.close()


async def test_an_answer_that_nobody_reads_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "UNREAD", 0.3)
    async with world(tmp_path) as here:
        host, _, port = here.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        with pytest.raises(ConnectionError):
            for _ in range(200):
                writer.write(b"GET /fhir/metadata HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
                await asyncio.wait_for(writer.drain(), 5)
                await asyncio.sleep(0.05)
        assert reader and here.entrance.under_way == 0
        writer.close()


async def test_a_full_memory_lets_no_proof_in_again(tmp_path: Path) -> None:
    state = MemoryMap(most=4)
    for number in range(4):
        assert await state.add(f"dpop:{number}", 60)
    for number in range(20):
        await state.put(f"introspection:{number}", b"x", 60)
    assert not await state.add("dpop:0", 60)
    with pytest.raises(Unavailable):
        await state.add("dpop:new", 60)


async def test_a_proof_of_before_the_start_is_not_fresh(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        token = bound(here)
        assert await status(here, token, proof(here, token, iat=int(here.parts.state.since) - 2)) == 401
        assert await status(here, token, proof(here, token)) == 200


# --- the stream -----------------------------------------------------------------------------------------------------------


async def caught_up(one: RedisStream) -> bool:
    try:
        await one.catch_up()
    except Exception:  # noqa: BLE001 - any kind of saying so
        return False
    return True


async def test_a_stream_of_another_journal_is_said_not_skipped(tmp_path: Path) -> None:
    with redis_server(tmp_path) as url:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        first, second = journal(tmp_path / "one"), journal(tmp_path / "two")
        await fill(first, 0, 10)
        await fill(second, 100, 8)
        one, two = sink(tmp_path / "one", first, url), sink(tmp_path / "two", second, url)
        assert await caught_up(one) and not await caught_up(two)
        redis: Redis = Redis.from_url(url)
        await redis.xadd("audit", {"record": b"{}"}, id="999-0")
        await fill(first, 10, 3)
        assert not await caught_up(one)
        await redis.delete("audit")
        for _ in range(2):
            await caught_up(one)
        assert await redis.xlen("audit") == 13
        await redis.aclose()
        for stream, made in ((one, first), (two, second)):
            await stream.close()
            await made.close()


# --- terminology ------------------------------------------------------------------------------------------------------------

SYSTEM: dict[str, Any] = {"resourceType": "CodeSystem", "url": "http://c", "content": "complete", "concept": [{"code": "a"}]}
CUT: list[dict[str, Any]] = [
    {"expansion": {"total": 2, "contains": [{"system": "http://c", "code": "a"}]}},
    {"expansion": {"offset": 10, "contains": [{"system": "http://c", "code": "a"}]}},
    {
        "expansion": {
            "contains": [{"system": "http://c", "code": "a"}],
            "extension": [{"url": "http://x/toocostly", "valueBoolean": True}],
        }
    },
    {"expansion": {}, "compose": {"include": [{"system": "http://c", "concept": [{"code": "a"}]}]}},
    {"compose": {"include": [{"system": "http://c", "filter": [{"property": "concept", "op": "is-a", "value": "nowhere"}]}]}},
    {
        "compose": {
            "include": [{"system": "http://c"}],
            "exclude": [{"system": "http://c", "version": "1", "concept": [{"code": "a"}]}],
        }
    },
]


@pytest.mark.parametrize("value_set", CUT)
def test_a_value_set_is_never_smaller_than_it_says(value_set: dict[str, Any]) -> None:
    with pytest.raises(CriteriaError):
        Terminology([SYSTEM, {"resourceType": "ValueSet", "url": "http://v", **value_set}])


def test_a_code_system_that_is_not_whole_or_not_nested_is_refused() -> None:
    for changes in ({"count": 5}, {"concept": [{"code": "a"}, {"code": "b", "property": [{"code": "parent", "valueCode": "a"}]}]}):
        with pytest.raises(CriteriaError):
            Terminology([{**SYSTEM, **changes}])
