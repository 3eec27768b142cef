"""HTTP/1.1 connections, kept and used again, over httptools' parser (llhttp) and the event loop's transports.

The rule that everything here follows: a connection goes back to the pool only after an answer whose end is certain, with
nothing behind it. Whatever is odd (two lengths, stray bytes, an unasked-for encoding, an upgrade, a limit passed, a cancelled
wait) ends the connection and the answer with it. docs/adr/0007 says why this is ours.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import httptools

from fhirshield.errors import Unavailable
from fhirshield.outbound.http import Response

IDLE = 20.0
"""Seconds that a connection may wait to be used again."""
IDLE_UNSAFE = 1.0
"""The same for a request that may not be repeated, should the other side have closed the connection meanwhile."""
MOST_HEAD = 64 << 10
"""Bytes of status line and headers, interim answers included."""
_METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE"}
_SAFE_AGAIN = {"GET"}
"""What may be sent once more when a kept connection turns out to be closed (RFC 9110 §9.2.2)."""
_TARGET = re.compile(r"/[!-~]*\Z")
_HEADER = re.compile(r"[!-9;-~]+\Z")
_REFUSED = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_ONCE = {"content-type", "content-length", "content-encoding", "transfer-encoding", "etag", "location"}


class Pool:
    """A Client. Limits: bytes of a body, seconds to connect and to answer, connections to one origin."""

    def __init__(self, *, most: int, connect: float, answer: float, connections: int = 100) -> None:
        self._most = most
        self._connect = connect
        self._answer = answer
        self._connections = connections
        self._idle: dict[str, list[_Connection]] = {}
        self._open: dict[str, int] = {}
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._all: set[_Connection] = set()
        self._tls: ssl.SSLContext | None = None

    async def send(self, method: str, origin: str, target: str, headers: Mapping[str, str], body: bytes | None = None) -> Response:
        """See Client."""
        if method not in _METHODS or not _TARGET.match(target) or "#" in target:
            raise Unavailable("a request that may not be sent", sent=False)
        head = _head(method, origin, target, headers, body)
        if body:
            head += body
        end = asyncio.get_running_loop().time() + self._answer
        again = method in _SAFE_AGAIN
        sent = False
        try:
            for last in (False, True) if again else (False,):
                connection = None if last else self._kept(origin, IDLE if again else IDLE_UNSAFE)
                if connection is None:
                    async with asyncio.timeout_at(end):
                        connection = await self._fresh(origin, new=last)
                sent = True
                response = await self._exchange(connection, head, origin, end)
                if response is not None:
                    return response
            raise Unavailable("no answer: the connection was closed")
        except TimeoutError as error:
            raise Unavailable("no answer in time", slow=True, sent=sent) from error
        except (OSError, ValueError, UnicodeError) as error:
            raise Unavailable(f"no answer: {type(error).__name__}", sent=sent) from error

    async def _exchange(self, connection: _Connection, head: bytes, origin: str, end: float) -> Response | None:
        """One request and its answer; None where a kept connection was closed before a byte of an answer came."""
        try:
            return await connection.exchange(head, end)
        finally:
            if connection.sound:
                self._keep(origin, connection)
            else:
                self._drop(origin, connection)

    # --- which connection -------------------------------------------------------------------------------------------

    def _kept(self, origin: str, idle_for: float = IDLE) -> _Connection | None:
        idle = self._idle.get(origin)
        now = asyncio.get_running_loop().time()
        while idle:
            connection = idle.pop()
            if connection.sound and now - connection.since < idle_for:
                return connection
            self._drop(origin, connection)
        return None

    def _drop(self, origin: str, connection: _Connection) -> None:
        connection.abort()
        self._count(origin, -1)
        self._all.discard(connection)

    def _keep(self, origin: str, connection: _Connection) -> None:
        connection.since = asyncio.get_running_loop().time()
        self._idle.setdefault(origin, []).append(connection)
        self._wake(origin)

    async def _fresh(self, origin: str, *, new: bool) -> _Connection:
        """A connection as soon as there may be one more; ``new`` for one that nothing was ever sent on."""
        while self._open.get(origin, 0) >= self._connections:
            kept = self._kept(origin)
            if kept is not None and not new:
                return kept
            if kept is not None:
                self._drop(origin, kept)
                continue
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(origin, deque()).append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake(origin)
                raise
        self._count(origin, 1)
        try:
            connection = await self._connected(origin)
        except BaseException:
            self._count(origin, -1)
            raise
        self._all.add(connection)
        return connection

    async def _connected(self, origin: str) -> _Connection:
        parts = urlsplit(origin)
        loop = asyncio.get_running_loop()
        secure = parts.scheme == "https"
        if secure and self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        async with asyncio.timeout(self._connect):
            _, connection = await loop.create_connection(
                lambda: _Connection(loop, self._most),
                parts.hostname or "",
                parts.port or (443 if secure else 80),
                ssl=self._tls if secure else None,
            )
        return connection

    def _count(self, origin: str, change: int) -> None:
        self._open[origin] = self._open.get(origin, 0) + change
        if change < 0:
            self._wake(origin)

    def _wake(self, origin: str) -> None:
        waiting = self._waiting.get(origin)
        while waiting:
            waiter = waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def close(self) -> None:
        """See Client."""
        for connection in tuple(self._all):
            connection.abort()
        self._all.clear()
        self._idle.clear()


class _Connection(asyncio.Protocol):
    """One connection: silent, or in one exchange."""

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int) -> None:
        self._loop = loop
        self._most = most
        self._transport: Any = None
        self._closed = True
        self._answer: asyncio.Future[Response | None] | None = None
        self._reader: _Reader | None = None
        self._again = False
        """An answer came here before."""
        self.since = 0.0

    @property
    def sound(self) -> bool:
        """Open, and nobody can be waiting for anything on it."""
        return not self._closed and self._answer is None

    async def exchange(self, request: bytes, end: float) -> Response | None:
        """Send a whole request and wait for its answer until ``end`` of the loop's clock. Raises Unavailable."""
        if not self.sound:
            return None
        self._reader = _Reader(self._most)
        self._answer = self._loop.create_future()
        self._transport.write(request)
        timer = self._loop.call_at(end, self._too_late)
        try:
            return await self._answer
        finally:
            timer.cancel()

    def _too_late(self) -> None:
        if self._answer is not None and self._reader is not None:
            self._finish(Unavailable("no answer in time", slow=True))

    def abort(self) -> None:
        """Close at once."""
        self._closed = True
        if self._transport is not None:
            self._transport.abort()

    # --- from the transport -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready."""
        self._transport = transport
        self._closed = False

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer, or stray ones, which end the connection."""
        reader = self._reader
        if reader is None or self._answer is None:
            return self.abort()
        try:
            reader.feed(data)
        except Unavailable as error:
            return self._finish(error)
        if reader.complete:
            self._finish(None)

    def eof_received(self) -> bool:
        """The other side has said all: an answer that ends with the connection is whole now."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The end, asked for or not."""
        self._closed = True
        reader, answer = self._reader, self._answer
        if reader is None or answer is None or answer.done():
            return
        if exc is None and reader.ends_with_connection:
            reader.complete = True
            self._finish(None)
        elif self._again and not reader.begun:
            self._answer = self._reader = None
            answer.set_result(None)
        else:
            self._finish(Unavailable("no answer: the connection was closed"))

    def _finish(self, error: Unavailable | None) -> None:
        reader, answer = self._reader, self._answer
        assert reader is not None and answer is not None
        self._reader = None
        if error is not None or not reader.reusable:
            self.abort()
        else:
            self._again = True
        self._answer = None
        if answer.done():
            return self.abort()
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(Response(reader.status, reader.headers, b"".join(reader.body)))


class _Reader:
    """Reads one answer; raises Unavailable where it is not one that may be trusted."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._head = 0
        self._names = 0
        self._size = 0
        self._headed = False
        self._parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body: list[bytes] = []
        self.begun = False
        """A byte of the answer has come."""
        self.complete = False
        self.reusable = False
        self.ends_with_connection = False

    def feed(self, data: bytes) -> None:
        """Read on."""
        self.begun = True
        self._head += len(data)
        try:
            self._parser.feed_data(data)
        except Unavailable:
            raise
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, Unavailable):
                raise error.__context__ from None
            raise Unavailable("the answer is not HTTP/1.1") from error
        if self._head - self._size > MOST_HEAD + 8 * self._size:
            raise Unavailable("what is around the answer's body is larger than the limit")

    def on_message_begin(self) -> None:
        """A second answer behind a whole one was not asked for."""
        if self.complete:
            raise Unavailable("the answer is followed by something")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; trailers are none."""
        self._names += len(name) + len(value)
        if self._names > MOST_HEAD:
            raise Unavailable("the answer's headers are larger than the limit")
        if self._headed:
            return
        key = name.decode("latin-1").lower()
        if key in self.headers:
            if key in _ONCE:
                raise Unavailable(f"the answer has two headers {key}")
            return
        self.headers[key] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """What the headers say of the body decides how far it may be trusted."""
        self.status = self._parser.get_status_code()
        if self.status < 200:
            if self.status == 101:
                raise Unavailable("the answer changes the protocol")
            self.headers.clear()
            return
        self._headed = True
        headers = self.headers
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise Unavailable("the answer is compressed, which was not asked for")
        length, coding = headers.get("content-length"), headers.get("transfer-encoding")
        if coding is not None and coding.strip().lower() != "chunked":
            raise Unavailable("the answer has a transfer encoding that is not spoken here")
        if length is not None and int(length) > self._most:
            raise Unavailable("the answer is larger than the limit")
        self.ends_with_connection = length is None and coding is None and self.status not in {204, 304}
        if not self.ends_with_connection:
            self.reusable = self._parser.get_http_version() == "1.1" and self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        self._size += len(data)
        if self._size > self._most:
            raise Unavailable("the answer is larger than the limit")
        self.body.append(data)

    def on_message_complete(self) -> None:
        """Whole, unless it was an interim answer (RFC 9110 §15.2)."""
        self.complete = self.status >= 200


@lru_cache(maxsize=64)
def _host(origin: str) -> str:
    netloc = urlsplit(origin).netloc.rpartition("@")[2]
    if not netloc or _REFUSED.search(netloc) or " " in netloc:
        raise ValueError("origin")
    return netloc


def _head(method: str, origin: str, target: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {_host(origin)}"]
    for name, value in headers.items():
        if not _HEADER.match(name) or _REFUSED.search(value):
            raise Unavailable("a header that may not be sent", sent=False)
        lines.append(f"{name}: {value}")
    if body is not None or method in {"POST", "PUT", "PATCH"}:
        lines.append(f"Content-Length: {len(body or b'')}")
    try:
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    except UnicodeEncodeError:
        raise Unavailable("a header that may not be sent", sent=False) from None
