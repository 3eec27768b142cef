"""The shared state: the same in memory and in a real Redis; away means Unavailable."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fhirshield.errors import Unavailable
from fhirshield.state import ExpiringMap
from fhirshield.state.memory import MemoryMap
from fhirshield.state.redis import RedisMap
from tests.parts import need


@contextlib.contextmanager
def redis_server(folder: Path, *arguments: str, port: int = 0) -> Iterator[str]:
    """A Redis on a free port of the loopback, stopped at the end."""
    program = need("redis-server", "Redis is tested for real")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = port or free.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(10)


async def behaves(state: ExpiringMap) -> None:
    assert await state.get("a") is None
    await state.put("a", b"one", 60)
    await state.put("a", b"two", 60)
    assert await state.get("a") == b"two"
    await state.put("short", b"x", 0.05)
    assert await state.get("short") == b"x"
    await asyncio.sleep(0.1)
    assert await state.get("short") is None
    answers = await asyncio.gather(*(state.add("once", 60) for _ in range(50)))
    assert sorted(answers) == [False] * 49 + [True]
    assert await state.add("again", 0.05) and not await state.add("again", 60)
    await asyncio.sleep(0.1)
    assert await state.add("again", 60) and not await state.add("again", 60)
    for name in ("again", "a", "never"):
        await state.forget(name)
    assert await state.add("again", 60) and await state.get("a") is None


async def test_memory() -> None:
    state = MemoryMap()
    await behaves(state)
    await state.close()


async def test_redis(tmp_path: Path) -> None:
    with redis_server(tmp_path) as url:
        state = RedisMap(url)
        await behaves(state)
        await state.close()


async def test_redis_with_a_password(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--requirepass", "test-only") as url:
        state = RedisMap(url, "test-only")
        assert await state.add("a", 1)
        await state.close()
        stranger = RedisMap(url)
        with pytest.raises(Unavailable):
            await stranger.get("a")
        await stranger.close()


async def test_redis_away_is_unavailable(tmp_path: Path) -> None:
    with redis_server(tmp_path) as url:
        state = RedisMap(url)
        await state.put("a", b"1", 60)
    for ask in (state.get("a"), state.put("a", b"1", 1), state.add("a", 1)):
        with pytest.raises(Unavailable):
            await ask
    await state.close()


async def test_a_full_memory_forgets_values_but_never_a_note() -> None:
    clock = [0.0]
    state = MemoryMap(lambda: clock[0], most=3)
    for name in "abcd":
        await state.put(name, b"x", 10)
    assert [await state.get(name) is not None for name in "abcd"] == [False, True, True, True]
    assert [await state.add(name, 10) for name in "abc"] == [True] * 3
    with pytest.raises(Unavailable):
        await state.add("note", 10)
    assert not await state.add("a", 10)
    clock[0] = 11
    assert await state.add("note", 10)
