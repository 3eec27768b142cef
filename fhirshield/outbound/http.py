"""HTTP out, behind one small protocol, so that the client can be changed by measurement (docs/adr/0007).

What every request here is: no redirects, no proxies from the environment, no cookies, no decompression, no headers but
those given, the target's bytes exactly as given, a bounded body, a bounded time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Response:
    """Status, headers by lower-case name (the first of each), whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Client(Protocol):
    """Sends one request and reads one answer. Raises Unavailable for everything that is not a whole answer."""

    async def send(self, method: str, origin: str, target: str, headers: Mapping[str, str], body: bytes | None = None) -> Response:
        """``origin`` is scheme and authority, ``target`` path and query, both percent-encoded."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...
