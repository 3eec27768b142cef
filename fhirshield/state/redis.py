"""The shared state of many replicas, in a Redis. Keys are digests and values are sealed before they come here."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

from fhirshield.errors import Unavailable

PREFIX = "fhirshield:"
PATIENCE = 0.5
"""Seconds to connect, and to answer."""
T = TypeVar("T")


class RedisMap:
    """An ExpiringMap over one Redis."""

    since = 0.0

    def __init__(self, url: str, password: str | None = None) -> None:
        self._redis: Redis = Redis.from_url(
            url, password=password, socket_connect_timeout=PATIENCE, socket_timeout=PATIENCE, retry=None, max_connections=64
        )

    async def get(self, key: str) -> bytes | None:
        """See ExpiringMap."""
        found = await _asked(self._redis.get(PREFIX + key))
        return found if isinstance(found, bytes) else None

    async def put(self, key: str, value: bytes, seconds: float) -> None:
        """See ExpiringMap."""
        await _asked(self._redis.set(PREFIX + key, value, px=max(1, int(seconds * 1000))))

    async def add(self, key: str, seconds: float) -> bool:
        """See ExpiringMap."""
        return bool(await _asked(self._redis.set(PREFIX + key, b"1", px=max(1, int(seconds * 1000)), nx=True)))

    async def forget(self, key: str) -> None:
        """See ExpiringMap."""
        await _asked(self._redis.delete(PREFIX + key))

    async def close(self) -> None:
        """See ExpiringMap."""
        await self._redis.aclose()


async def _asked(answer: Awaitable[T]) -> T:
    try:
        return await answer
    except (RedisError, OSError, TimeoutError) as error:
        raise Unavailable(f"the shared state does not answer: {type(error).__name__}") from error
