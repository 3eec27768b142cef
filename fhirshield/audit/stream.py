"""Records on their way to a Redis Stream: read from the journal behind a cursor, never on a request's way.

Only durable records are sent, each under its number in the journal as the stream's id, so that a record that is sent twice
is refused by the stream and none is missed: after a pause, a crash or a lost cursor, the stream says what it has.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from fhirshield.audit import chain
from fhirshield.audit.journal import Journal, segments_of

BATCH = 500
"""Records a round trip."""
IDLE = 0.25
"""Seconds between looks for new records."""
LATER = 2.0
"""Seconds to wait after Redis did not answer."""
PATIENCE = 2.0
_log = logging.getLogger("fhirshield")


class Cursor(msgspec.Struct):
    """How far the stream has come: the next record's number, and where it begins."""

    number: int = 0
    segment: str = ""
    offset: int = 0


class Conflict(Exception):
    """The stream is not what this journal left there."""


class RedisStream:
    """One journal's records in one stream. ``cursor`` is a file; losing it costs a walk, not a record."""

    def __init__(self, journal: Journal, folder: Path, cursor: Path, *, url: str, stream: str, password: str | None = None) -> None:
        self._journal = journal
        self._folder = folder
        self._file = cursor
        self._stream = stream
        self._redis: Redis = Redis.from_url(
            url, password=password, socket_connect_timeout=PATIENCE, socket_timeout=PATIENCE, retry=None
        )
        self._cursor = Cursor()
        self.sent = 0
        """Records sent since the start."""
        self.behind = 0
        """Durable records that are not yet in the stream."""

    async def run(self) -> None:
        """Send for ever; whatever Redis does, the journal keeps what is to be sent."""
        failing = False
        while True:
            try:
                await self.catch_up()
                failing = False
                await asyncio.sleep(IDLE)
            except (RedisError, OSError, TimeoutError, Conflict) as error:
                if not failing:
                    said = str(error) if isinstance(error, Conflict) else type(error).__name__
                    _log.error("audit stream: %s; records wait in the journal", said)
                failing = True
                self.behind = self._journal.count - self._cursor.number
                await asyncio.sleep(LATER)

    async def catch_up(self) -> None:
        """Send all that is durable now. Raises RedisError, OSError."""
        if not self._cursor.segment:
            self._cursor = await self._begin()
        while rows := await asyncio.to_thread(self._next, self._journal.count):
            await self._send(rows[0], rows[1])
            self._cursor = rows[2]
            await asyncio.to_thread(self._keep)
            self.behind = self._journal.count - self._cursor.number

    async def close(self) -> None:
        """Let go."""
        await self._redis.aclose()

    # --- where to go on -----------------------------------------------------------------------------------------------

    async def _begin(self) -> Cursor:
        """The cursor of the file, unless the stream has more; without either, the journal's first record."""
        known = await asyncio.to_thread(self._kept)
        has = await self._last()
        there = await asyncio.to_thread(self._walk, has)
        if has and (there.number < has or not await self._is_ours(has, await asyncio.to_thread(self._record, has - 1))):
            raise Conflict(f"the stream {self._stream} holds what is not of this journal; name another")
        return known if known is not None and known.number == has and known.segment else there

    async def _is_ours(self, number: int, record: bytes | None) -> bool:
        """Whether the stream holds this record under this number."""
        found: Any = await _answer(self._redis.xrange(self._stream, f"{number}-0", f"{number}-0"))
        return bool(found) and record is not None and found[0][1].get(b"record") == record

    def _record(self, number: int) -> bytes | None:
        """One record of the journal, by its number."""
        seen = 0
        for path in segments_of(self._folder):
            for line in path.read_bytes().splitlines():
                if seen == number:
                    parts = chain.split(line)
                    return parts[1] if parts else None
                seen += 1
        return None

    async def _last(self) -> int:
        """How many records the stream has: the id of the last is its number and one more."""
        try:
            found: Any = await _answer(self._redis.xinfo_stream(self._stream))
        except ResponseError:
            return 0
        text = found.get("last-generated-id", b"0-0")
        return int((text.decode() if isinstance(text, bytes) else str(text)).partition("-")[0])

    def _walk(self, number: int) -> Cursor:
        """The place in the journal of the record with this number."""
        seen = 0
        cursor = Cursor()
        for path in segments_of(self._folder):
            offset = 0
            for line in path.read_bytes().splitlines(keepends=True):
                if seen == number:
                    return Cursor(number, path.name, offset)
                offset += len(line)
                seen += 1
            cursor = Cursor(seen, path.name, offset)
        return cursor

    def _kept(self) -> Cursor | None:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Cursor)
        except (OSError, msgspec.DecodeError):
            return None

    def _keep(self) -> None:
        beside = self._file.with_suffix(".new")
        beside.write_bytes(msgspec.json.encode(self._cursor))
        beside.replace(self._file)

    # --- sending --------------------------------------------------------------------------------------------------------

    def _next(self, durable: int) -> tuple[int, list[bytes], Cursor] | None:
        """(number of the first, records, cursor behind them): at most a batch, and nothing that is not durable."""
        cursor = self._cursor
        number, name, offset = cursor.number, cursor.segment, cursor.offset
        rows: list[bytes] = []
        for path in segments_of(self._folder):
            if path.name < name:
                continue
            if path.name > name:
                name, offset = path.name, 0
            with path.open("rb") as stream:
                stream.seek(offset)
                while number + len(rows) < durable and len(rows) < BATCH:
                    line = stream.readline()
                    parts = chain.split(line.rstrip(b"\n")) if line.endswith(b"\n") else None
                    if parts is None:
                        break
                    rows.append(parts[1])
                    offset += len(line)
            if len(rows) >= BATCH:
                break
        return (number, rows, Cursor(number + len(rows), name, offset)) if rows else None

    async def _send(self, first: int, rows: list[bytes]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for place, row in enumerate(rows):
            entry = json.loads(row)
            fields: Any = {"record": row, "decision": str(entry.get("decision", "")), "outcome": str(entry.get("outcome", ""))}
            pipeline.xadd(self._stream, fields, id=f"{first + place + 1}-0", nomkstream=first + place > 0)
        for place, answer in enumerate(await pipeline.execute(raise_on_error=False)):
            if isinstance(answer, ResponseError) and "equal or smaller" in str(answer):
                if not await self._is_ours(first + place + 1, rows[place]):
                    raise Conflict(f"the stream {self._stream} holds what is not of this journal; name another")
                continue
            if isinstance(answer, Exception):
                raise answer
            if answer is None:
                self._cursor = Cursor()
                raise Conflict(f"the stream {self._stream} is gone; it is begun anew")
            self.sent += 1


async def _answer(asked: Awaitable[Any]) -> Any:
    return await asked
