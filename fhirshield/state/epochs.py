"""Epochs: marks by which replicas know whether what they keep of a decision's facts is still so.

Before a fact is written its mark is *pending*, after it the mark is a new random one. Whoever keeps a fact keeps the mark that
stood before it was fetched, and uses it only while the mark is the same; a mark that is pending or new keeps nothing. Marks of
different Redis processes never are equal, since each is read together with the process's run id: what a failover or a restart
brings back is not taken for what was. Unavailable means that nothing kept may be used.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import RedisError

from fhirshield.errors import Unavailable

LIFE = 3600
"""Seconds after which a mark that nobody reads or changes is forgotten; the next reader makes a new one."""
PENDING = 300
"""Seconds for which a write that never ended keeps others from keeping what it may have changed."""
MOST = 1_000_000
_PENDING = "pending:"


@dataclass(frozen=True, slots=True)
class Mark:
    """``settled``: no write is under way that this speaks of."""

    text: str
    settled: bool


class Epochs(Protocol):
    """Marks by key. Each call raises Unavailable where it cannot be asked."""

    async def read(self, keys: Sequence[str]) -> Mapping[str, Mark]:
        """The marks of all these keys; one that was not there is made."""
        ...

    async def begin(self, keys: Iterable[str]) -> None:
        """What these keys stand for is about to change."""
        ...

    async def end(self, keys: Iterable[str]) -> None:
        """It has changed."""
        ...

    async def close(self) -> None:
        """Let go."""
        ...


class MemoryEpochs:
    """The marks of a single process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = MOST) -> None:
        self._marks: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._clock = clock
        self._most = most

    async def read(self, keys: Sequence[str]) -> Mapping[str, Mark]:
        """See Epochs."""
        now = self._clock()
        found = {}
        for key in keys:
            text, until = self._marks.get(key, ("", now))
            if not text or (text.startswith(_PENDING) and until <= now):
                text = self._put(key, _random(), LIFE)
            found[key] = Mark(text, not text.startswith(_PENDING))
        return found

    def _put(self, key: str, text: str, seconds: float) -> str:
        self._marks[key] = (text, self._clock() + seconds)
        self._marks.move_to_end(key)
        if len(self._marks) > self._most:
            self._marks.popitem(last=False)
        return text

    async def begin(self, keys: Iterable[str]) -> None:
        """See Epochs."""
        for key in keys:
            self._put(key, _PENDING + _random(), PENDING)

    async def end(self, keys: Iterable[str]) -> None:
        """See Epochs."""
        for key in keys:
            self._put(key, _random(), LIFE)

    async def close(self) -> None:
        """See Epochs."""
        self._marks.clear()


class RedisEpochs:
    """The marks of many replicas, in a Redis that evicts nothing."""

    def __init__(self, url: str, password: str | None = None, *, patience: float = 0.5) -> None:
        self._pool: Any = ConnectionPool.from_url(
            url, password=password, socket_connect_timeout=patience, socket_timeout=patience, retry=None, max_connections=256
        )
        self._idle: list[AbstractConnection] = []
        self._runs: dict[AbstractConnection, str] = {}

    async def read(self, keys: Sequence[str]) -> Mapping[str, Mark]:
        """See Epochs."""
        if not keys:
            return {}
        names = [_name(key) for key in keys]

        async def ask(connection: AbstractConnection, run: str) -> Mapping[str, Mark]:
            values = await _call(connection, "MGET", *names)
            missing = [name for name, value in zip(names, values, strict=True) if value is None]
            if missing:
                await _calls(connection, [("SET", name, _random(), "EX", LIFE, "NX") for name in missing])
                values = await _call(connection, "MGET", *names)
            texts = [value.decode() if isinstance(value, bytes) else "" for value in values]
            return {
                key: Mark(f"{run}:{text}", bool(text) and not text.startswith(_PENDING))
                for key, text in zip(keys, texts, strict=True)
            }

        marks: Mapping[str, Mark] = await self._ask(ask)
        return marks

    async def begin(self, keys: Iterable[str]) -> None:
        """See Epochs."""
        await self._put([("SET", _name(key), _PENDING + _random(), "EX", PENDING) for key in keys])

    async def end(self, keys: Iterable[str]) -> None:
        """See Epochs."""
        await self._put([("SET", _name(key), _random(), "EX", LIFE) for key in keys])

    async def _put(self, commands: list[tuple[Any, ...]]) -> None:
        async def ask(connection: AbstractConnection, run: str) -> None:
            await _calls(connection, commands)

        if commands:
            await self._ask(ask)

    async def _ask(self, ask: Callable[[AbstractConnection, str], Any]) -> Any:
        """Ask over one connection, whose other end is one process. A connection that fails is not used again."""
        connection = self._idle.pop() if self._idle else self._pool.make_connection()
        whole = False
        try:
            run = self._runs.get(connection)
            if run is None:
                run = await self._meet(connection)
            found = await ask(connection, run)
            whole = True
            return found
        except (RedisError, OSError, TimeoutError) as error:
            raise Unavailable(f"the shared state does not answer: {type(error).__name__}") from error
        finally:
            if whole:
                self._idle.append(connection)
            else:
                self._runs.pop(connection, None)
                await connection.disconnect(nowait=True)

    async def _meet(self, connection: AbstractConnection) -> str:
        """Which process is at the other end, and that it forgets nothing."""
        await connection.connect()  # type: ignore[no-untyped-call]
        answer = await _call(connection, "INFO", "everything")
        rows = dict(line.split(":", 1) for line in answer.decode().splitlines() if ":" in line)
        if rows.get("maxmemory_policy") != "noeviction":
            raise Unavailable("the shared state may forget: its maxmemory-policy is not noeviction")
        if rows.get("role") != "master":
            raise Unavailable("the shared state is a replica, which may be behind")
        self._runs[connection] = str(rows["run_id"])[:16]
        return self._runs[connection]

    async def close(self) -> None:
        """See Epochs."""
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.disconnect()
        await self._pool.aclose()


def _random() -> str:
    return os.urandom(9).hex()


def _name(key: str) -> str:
    return f"fhirshield:epoch:{key}"


async def _call(connection: AbstractConnection, *command: Any) -> Any:
    await connection.send_command(*command)
    return await connection.read_response()


async def _calls(connection: AbstractConnection, commands: list[tuple[Any, ...]]) -> None:
    await connection.send_packed_command(connection.pack_commands(commands))
    for _ in commands:
        await connection.read_response()
