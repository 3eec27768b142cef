"""The door: ASGI scope -> Request at the right shield. Reads bodies within the limit, bounds what is under way.

What serves can be exchanged while requests are under way: each is served whole by the works that it met at the door.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import ssl
import time
import zoneinfo
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from fhirshield.audit.quota import Quota
from fhirshield.model import Denial, Reason, Receipt, Situation, View
from fhirshield.receive import Request
from fhirshield.respond import respond as send_view
from fhirshield.settings import Limits
from fhirshield.shield import Shield, Story

BODY_PATIENCE = 20.0
"""Seconds for the whole of a request's body."""


@dataclass(slots=True)
class Works:
    """What serves, as one set of settings and rules has it."""

    shields: Mapping[str, Shield]
    """By path."""
    public_url: str
    zone: zoneinfo.ZoneInfo
    limits: Limits
    rules: str
    """Digest of the rule set."""
    held: int = 0
    """Exchanges that began with these works and have not ended."""

    def at(self, path: bytes) -> str:
        """The path of the upstream that a raw target belongs to, the longest first; empty for none."""
        text = path.decode("latin-1")
        found = [prefix for prefix in self.shields if text == prefix or text.startswith(prefix + "/")]
        return max(found, key=len, default="")


class Entrance:
    """The ASGI application. ``works`` and ``quota`` are there while it is started."""

    def __init__(self) -> None:
        self.works: Works | None = None
        self.quota: Quota | None = None
        self.application: ASGIApp | None = None
        """What keeps the lifespan."""
        self.parts: Any = None
        """What the works stand on, for whoever builds and watches them."""
        self.took: Callable[[float], None] = lambda seconds: None
        """Told how many seconds each exchange took."""
        self.under_way = 0
        """Requests that are whole and not yet answered."""
        self._reading = 0
        """Bodies that are on their way; they hold nobody else up."""
        self.tls: ssl.SSLContext | None = None
        """What connections are secured by, where no proxy in front does it."""
        self.stopping = False
        """Set when the process was told to end: what is under way is finished."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request; the rest of ASGI is the application's."""
        if scope["type"] != "http":
            assert self.application is not None
            return await self.application(scope, receive, send)
        works = self.works
        assert works is not None
        begin = time.perf_counter()
        works.held += 1
        try:
            await self._serve(works, scope, receive, send)
        finally:
            works.held -= 1
            self.took(time.perf_counter() - begin)

    async def _serve(self, works: Works, scope: Scope, receive: Receive, send: Send) -> None:
        path: bytes = scope.get("raw_path") or b""
        upstream = works.at(path)
        client = scope.get("client")
        address = client[0] if client else ""
        now = dt.datetime.now(works.zone)
        decision = os.urandom(16).hex()
        story = Story(Situation(upstream, works.public_url, (), now, address, decision, None, ""))
        shield = works.shields[upstream] if upstream else next(iter(works.shields.values()))

        async def respond(view: View, receipt: Receipt, about: Situation, head: bool) -> int:
            return await send_view(send, view, receipt, about, head=head)

        most = works.limits.concurrency
        denial = None if upstream else Denial(404, Reason.MALFORMED_REQUEST, "not-found", "no FHIR server under this path")
        if denial is None and self.under_way >= most:
            denial = _busy()
        body = b""
        if denial is None and _announces_a_body(scope["headers"]):
            if self._reading >= most:
                return await shield.refuse(_busy(), story, respond)
            self._reading += 1
            try:
                async with asyncio.timeout(BODY_PATIENCE):
                    body = await _read(receive, works.limits.body)
            except ConnectionAbortedError:
                return None
            except TimeoutError:
                denial = Denial(408, Reason.MALFORMED_REQUEST, "timeout", "the body did not come")
            except OverflowError:
                denial = Denial(413, Reason.TOO_LARGE, "too-long", "the body is larger than the limit")
            finally:
                self._reading -= 1
        if denial is not None:
            return await shield.refuse(denial, story, respond)
        request = Request(
            scope["method"], path, scope["query_string"], list(scope["headers"]), body, address, now, decision, _certificate(scope)
        )
        self.under_way += 1
        try:
            await shield.exchange(request, story, respond)
        finally:
            self.under_way -= 1

    def unparsed(self, address: str) -> None:
        """Count what the HTTP parser refused, from its hook: there is no request to record."""
        if self.quota is not None and self.works is not None:
            self.quota.count(address, Reason.UNPARSED.value, dt.datetime.now(self.works.zone))


def _certificate(scope: Scope) -> str:
    """The digest of the client's certificate that the guard noted, if the connection showed one."""
    extensions = scope.get("extensions")
    return str(extensions["tls"]["client_certificate"]) if extensions else ""


def _busy() -> Denial:
    return Denial(503, Reason.BUSY, "throttled", "too many requests are under way", (("Retry-After", "1"),))


async def _read(receive: Receive, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionAbortedError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > most:
            raise OverflowError
        parts.append(chunk)
        if not message.get("more_body"):
            return b"".join(parts)


def _announces_a_body(headers: Any) -> bool:
    names = {name for name, _ in headers}
    return b"content-length" in names or b"transfer-encoding" in names
