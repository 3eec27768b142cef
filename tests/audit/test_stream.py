"""Records in a Redis Stream: all of them, in order, once, whatever happens to Redis or to the shield."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from fhirshield.audit import Journal
from fhirshield.audit import journal as module
from fhirshield.audit import stream as streaming
from fhirshield.audit.stream import RedisStream
from tests.state.test_state import redis_server
from tests.world import world

KEY = b"k" * 32


def journal(folder: Path) -> Journal:
    made = Journal(folder / "journal", KEY, folder / "witness")
    made.open()
    return made


def sink(folder: Path, made: Journal, url: str) -> RedisStream:
    return RedisStream(made, folder / "journal", folder / "cursor", url=url, stream="audit")


async def streamed(url: str) -> list[tuple[str, Any]]:
    redis: Redis = Redis.from_url(url)
    try:
        rows: Any = await redis.xrange("audit")
        return [(row[0].decode(), json.loads(row[1][b"record"])) for row in rows]
    finally:
        await redis.aclose()


async def fill(made: Journal, first: int, number: int) -> None:
    await asyncio.gather(*(made.record({"n": n, "decision": str(n)}, str(n)) for n in range(first, first + number)))


@pytest.mark.promise
async def test_every_record_arrives_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT", 3000)
    monkeypatch.setattr(streaming, "BATCH", 7)
    made = journal(tmp_path)
    with redis_server(tmp_path) as url:
        await fill(made, 0, 30)
        one = sink(tmp_path, made, url)
        await one.catch_up()
        await fill(made, 30, 50)
        await one.catch_up()
        assert one.sent == 80 and one.behind == 0
        await one.close()
        again = sink(tmp_path, made, url)
        await again.catch_up()
        await fill(made, 80, 3)
        await again.catch_up()
        await again.close()
        (tmp_path / "cursor").unlink()
        without = sink(tmp_path, made, url)
        await without.catch_up()
        assert without.sent == 0
        await without.close()
        (tmp_path / "cursor").write_text('{"number":5,"segment":"journal-00000001.log","offset":0}')
        wrong = sink(tmp_path, made, url)
        await wrong.catch_up()
        assert wrong.sent == 0
        await wrong.close()
        rows = await streamed(url)
    assert [row["n"] for _, row in rows] == list(range(83))
    assert [name for name, _ in rows] == [f"{number}-0" for number in range(1, 84)]
    await made.close()


async def test_what_the_stream_has_already_is_not_repeated(tmp_path: Path) -> None:
    """The machine dies between Redis's answer and the cursor."""
    made = journal(tmp_path)
    with redis_server(tmp_path) as url:
        await fill(made, 0, 10)
        one = sink(tmp_path, made, url)
        await one.catch_up()
        (tmp_path / "cursor").write_text('{"number":4,"segment":"journal-00000001.log","offset":0}')
        await one.close()
        await fill(made, 10, 5)
        again = sink(tmp_path, made, url)
        again._cursor = streaming.Cursor(0, "journal-00000001.log", 0)
        await again.catch_up()
        await again.close()
        assert again.sent == 5
        assert [row["n"] for _, row in await streamed(url)] == list(range(15))
    await made.close()


@pytest.mark.promise
async def test_redis_away_loses_nothing_and_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "LATER", 0.05)
    monkeypatch.setattr(streaming, "IDLE", 0.02)
    with redis_server(tmp_path, "--appendonly", "yes") as url:
        port = int(url.rpartition(":")[2].partition("/")[0])
    settings = {"audit": {"sinks": [{"redis": url, "stream": "audit"}]}}
    async with world(tmp_path, settings=settings) as here:
        token = here.token()
        for _ in range(20):
            assert (await here.ask("/Patient/pat-1", token)).status == 200
        for _ in range(100):  # it is counted when the stream next looks
            await asyncio.sleep(0.05)
            if here.parts.streams[0].behind:
                break
        assert here.parts.streams[0].behind > 0
        rows: list[Any] = []
        with redis_server(tmp_path, "--appendonly", "yes", port=port):
            for _ in range(200):
                await asyncio.sleep(0.05)
                with contextlib.suppress(Exception):
                    rows = await streamed(url)
                    if len(rows) >= 40:
                        break
            wanted = {row["decision"] for row in here.records()}
            assert {row["decision"] for _, row in rows if row["outcome"] == "released"} == wanted and len(wanted) == 20
