"""What replicas share for a while, behind one narrow protocol: memory for one process, Redis for many.

Nothing here is a source of truth. Each use says what a missing answer means to it (docs/architecture.md, *Shared state*).
"""

from __future__ import annotations

from typing import Protocol


class ExpiringMap(Protocol):
    """Small values that go by themselves. Raises Unavailable where it cannot be asked."""

    since: float
    """From when on this remembers, in seconds since the epoch: what was noted before a restart may be forgotten."""

    async def get(self, key: str) -> bytes | None:
        """The value, or None: never there, or gone."""
        ...

    async def put(self, key: str, value: bytes, seconds: float) -> None:
        """Keep a value for so long."""
        ...

    async def add(self, key: str, seconds: float) -> bool:
        """Note a key for so long; whether it was not noted already. Of many who ask at once, one is told so."""
        ...

    async def forget(self, key: str) -> None:
        """Take back what was kept or noted."""
        ...

    async def close(self) -> None:
        """Let go."""
        ...
