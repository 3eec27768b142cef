"""HTTP out, behind one small protocol, so that the client can be changed by measurement (docs/adr/0003).

What every request here is: no redirects, no proxies from the environment, no cookies, no decompression, no headers but
those given, the target's bytes exactly as given, a bounded body, a bounded time.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from yarl import URL

from fhirshield.errors import Unavailable

_TARGET = re.compile(r"/[!-~]*\Z")
_REFUSED = re.compile(r"[\x00-\x20\x7f#]")


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


class AioHttpClient:
    """The protocol over aiohttp's pool. Limits: bytes of a body, seconds to connect and to answer."""

    def __init__(self, *, most: int, connect: float, answer: float, connections: int = 100) -> None:
        self._most = most
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=20),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            timeout=aiohttp.ClientTimeout(total=answer, sock_connect=connect),
            max_field_size=16384,
        )

    async def send(self, method: str, origin: str, target: str, headers: Mapping[str, str], body: bytes | None = None) -> Response:
        """See Client."""
        if not _TARGET.match(target) or _REFUSED.search(target):
            raise Unavailable("a target that may not be sent")
        try:
            async with self._session.request(
                method, URL(origin + target, encoded=True), headers=headers, data=body, allow_redirects=False
            ) as response:
                return Response(response.status, _headers(response), await self._read(response))
        except TimeoutError as error:
            raise Unavailable("no answer in time", slow=True) from error
        except (aiohttp.ClientError, OSError, ValueError, asyncio.IncompleteReadError) as error:
            raise Unavailable(f"no answer: {type(error).__name__}") from error

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            response.close()
            raise Unavailable("the answer is compressed, which was not asked for")
        if (response.content_length or 0) > self._most:
            response.close()
            raise Unavailable("the answer is larger than the limit")
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > self._most:
                response.close()
                raise Unavailable("the answer is larger than the limit")
        return bytes(body)

    async def close(self) -> None:
        """See Client."""
        await self._session.close()


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in response.headers.items():
        found.setdefault(name.lower(), value)
    return found
