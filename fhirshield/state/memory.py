"""The shared state of a single process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from fhirshield.errors import Unavailable

MOST = 100_000
"""Entries; beyond it, expired ones are cleared away, and if none are, nothing new is noted."""


class MemoryMap:
    """An ExpiringMap in memory. ``clock`` in seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = MOST) -> None:
        self._clock = clock
        self._most = most
        self._entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._notes: dict[str, float] = {}
        self.since = time.time()

    async def get(self, key: str) -> bytes | None:
        """See ExpiringMap."""
        found = self._entries.get(key)
        return found[1] if found is not None and self._clock() < found[0] else None

    async def put(self, key: str, value: bytes, seconds: float) -> None:
        """See ExpiringMap; what does not fit pushes out the oldest."""
        self._entries.pop(key, None)
        if len(self._entries) >= self._most:
            now = self._clock()
            for old in [name for name, (until, _) in self._entries.items() if until <= now]:
                del self._entries[old]
            if len(self._entries) >= self._most:
                self._entries.popitem(last=False)
        self._entries[key] = (self._clock() + seconds, value)

    async def add(self, key: str, seconds: float) -> bool:
        """See ExpiringMap. Raises Unavailable when full: a note that is pushed out would be a replay let through."""
        now = self._clock()
        if self._notes.get(key, now) > now:
            return False
        if len(self._notes) >= self._most:
            self._notes = {name: until for name, until in self._notes.items() if until > now}
            if len(self._notes) >= self._most:
                raise Unavailable("the memory for replays is full")
        self._notes[key] = now + seconds
        return True

    async def forget(self, key: str) -> None:
        """See ExpiringMap."""
        self._entries.pop(key, None)
        self._notes.pop(key, None)

    async def close(self) -> None:
        """See ExpiringMap."""
        self._entries.clear()
        self._notes.clear()
