"""The composition root: settings in, an ASGI application out. Every part is built here, once; nothing else reads settings."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import gc
import logging
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from fhirshield.audit import Journal
from fhirshield.audit.quota import Quota
from fhirshield.authenticate import Authenticator
from fhirshield.authenticate.introspection import Introspection
from fhirshield.authenticate.keys import Keys
from fhirshield.describe import Describer
from fhirshield.forward import Forwarder
from fhirshield.model import Denial, Reason, Receipt, Situation, View
from fhirshield.outbound.credential import BearerFile, ClientCredentials, NoCredential
from fhirshield.outbound.fhir_server import Credential as CredentialSource
from fhirshield.outbound.fhir_server import FhirServer
from fhirshield.outbound.http import Client
from fhirshield.outbound.introspector import Introspector
from fhirshield.outbound.issuer import JwksFile, JwksUrl, NoKeys
from fhirshield.outbound.pool import Pool
from fhirshield.policy.compile import RuleSet
from fhirshield.policy.load import load as load_rules
from fhirshield.receive import Receiver, Request
from fhirshield.redact import Redactor
from fhirshield.respond import respond as send_view
from fhirshield.ring import Ring, load_key
from fhirshield.settings import Credential, Issuer, Settings, Upstream
from fhirshield.settings import Introspection as IntrospectionSettings
from fhirshield.shield import Shield, Story
from fhirshield.state import ExpiringMap
from fhirshield.state.memory import MemoryMap
from fhirshield.state.redis import RedisMap

HEAD_INTERVAL = 10.0
"""Seconds between signed heads at the witness."""
BODY_PATIENCE = 15.0
"""Seconds for the next part of a request's body."""
_SMALL = 4 << 20
"""Bytes of an issuer's document."""
_log = logging.getLogger("fhirshield")


@dataclass(slots=True)
class _Parts:
    """What runs: shields by path, and what must be closed."""

    shields: dict[str, Shield]
    journal: Journal
    quota: Quota
    clients: list[Client]
    state: ExpiringMap


def build(settings: Settings) -> Entrance:
    """The application. Rules and keys are read at once, so that what is wrong is said before anything listens."""
    rules = RuleSet(load_rules(settings.rules))
    ring = Ring(_key(settings.ring_file, "key ring"))
    journal = Journal(settings.audit.journal, _key(settings.audit.key_file, "journal"), settings.audit.witness)
    entrance = Entrance(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        _spare_the_collector()
        parts = _start(settings, rules, ring, journal)
        entrance.parts = parts
        heads = asyncio.create_task(_heads(parts))
        try:
            yield
        finally:
            heads.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await heads
            parts.quota.flush()
            await journal.close()
            for client in parts.clients:
                await client.close()
            await parts.state.close()

    entrance.application = Starlette(lifespan=lifespan)
    return entrance


def _spare_the_collector() -> None:
    """Tables and rules live for ever, and FHIR JSON is trees, freed by reference counts: collect cycles seldom.

    Measured in docs/performance.md: the default thresholds more than double the cost of decoding a large Bundle.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def _key(path: Any, what: str) -> bytes:
    secret, made = load_key(path, make=True)
    if made:
        _log.warning("made a new key for the %s: %s; keep it, and give every replica the same ring", what, path)
    return secret


def _start(settings: Settings, rules: RuleSet, ring: Ring, journal: Journal) -> _Parts:
    recovery = journal.open()
    if recovery.cut:
        _log.warning("journal: cut %d bytes of an unfinished record; %d whole records kept", recovery.cut, recovery.records)
    issuer_client = Pool(most=_SMALL, connect=2.0, answer=5.0)
    clients: list[Client] = [issuer_client]
    keys = {name: _keys(issuer, issuer_client) for name, issuer in settings.issuers.items()}
    state = _state(settings)
    introspections = {
        name: Introspection(_introspector(issuer.introspection, issuer_client), state, ring, issuer.introspection.keep)
        for name, issuer in settings.issuers.items()
        if issuer.introspection
    }
    quota = Quota(journal, time.monotonic)
    redactor = Redactor(ring)
    shields = {}
    for upstream in settings.upstreams:
        client = Pool(
            most=settings.limits.answer, connect=upstream.connect_timeout, answer=upstream.answer_timeout,
            connections=settings.limits.concurrency,
        )  # fmt: skip
        clients.append(client)
        server = FhirServer(upstream.url, client, _credential(upstream.credential, issuer_client))
        shields[upstream.path] = Shield(
            receive=Receiver(upstream, settings.public_url, ring, settings.proxies),
            authenticate=Authenticator(upstream, settings.issuers, keys, introspections, state),
            rules=rules,
            forward=Forwarder(server, settings.limits, forward_token=upstream.credential.forward),
            redact=redactor,
            describe=Describer(server, client, settings.issuers[upstream.issuers[0]].issuer),
            journal=journal,
            quota=quota,
        )
    return _Parts(shields, journal, quota, clients, state)


def _state(settings: Settings) -> ExpiringMap:
    if not settings.state.redis:
        return MemoryMap()
    file = settings.state.password_file
    return RedisMap(settings.state.redis, file.read_text(encoding="utf-8").strip() if file else None)


def _introspector(row: IntrospectionSettings, client: Client) -> Introspector:
    return Introspector(client, url=row.url, client_id=row.client_id, client_secret_file=row.client_secret_file)


def _keys(issuer: Issuer, client: Client) -> Keys:
    if issuer.jwks_file:
        return Keys(JwksFile(issuer.jwks_file))
    return Keys(JwksUrl(issuer.jwks_url, client) if issuer.jwks_url else NoKeys())


def _credential(credential: Credential, client: Client) -> CredentialSource:
    if credential.bearer_file:
        return BearerFile(credential.bearer_file)
    if credential.key_file:
        return ClientCredentials(
            client, token_url=credential.token_url, client_id=credential.client_id, key_file=credential.key_file,
            key_id=credential.key_id, algorithm=credential.algorithm, scope=credential.scope,
        )  # fmt: skip
    return NoCredential()


async def _heads(parts: _Parts) -> None:
    """Publish the journal's head, and the count of strangers, at an interval."""
    while True:
        await asyncio.sleep(HEAD_INTERVAL)
        parts.quota.flush()
        try:
            await parts.journal.publish()
        except OSError as error:
            _log.error("witness: the head cannot be published: %s", error.strerror)


class Entrance:
    """ASGI scope -> Request at the right shield. Reads bodies within the limit, bounds what is under way."""

    def __init__(self, settings: Settings) -> None:
        self.parts: _Parts | None = None
        self.application: ASGIApp | None = None
        """What keeps the lifespan."""
        self._paths = sorted(((u.path.encode(), u) for u in settings.upstreams), key=lambda pair: -len(pair[0]))
        self._public_url = settings.public_url
        self._zone = settings.zone
        self._body = settings.limits.body
        self._most = settings.limits.concurrency
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request; the rest of ASGI is the application's."""
        if scope["type"] != "http":
            assert self.application is not None
            return await self.application(scope, receive, send)
        path: bytes = scope.get("raw_path") or b""
        upstream = self._upstream(path)
        client = scope.get("client")
        address = client[0] if client else ""
        now = dt.datetime.now(self._zone)
        decision = os.urandom(16).hex()
        situation = Situation(upstream.path if upstream else "", self._public_url, (), now, address, decision, None, "")
        story = Story(situation)
        parts = self.parts
        assert parts is not None
        shield = parts.shields[upstream.path] if upstream else next(iter(parts.shields.values()))

        async def respond(view: View, receipt: Receipt, about: Situation, head: bool) -> int:
            return await send_view(send, view, receipt, about, head=head)

        denial = self._obstacle(upstream)
        body = b""
        if denial is None:
            try:
                body = await self._read(receive) if _announces_a_body(scope["headers"]) else b""
            except ConnectionAbortedError:
                return None
            except TimeoutError:
                denial = Denial(408, Reason.MALFORMED_REQUEST, "timeout", "the body did not come")
            except OverflowError:
                denial = Denial(413, Reason.TOO_LARGE, "too-long", "the body is larger than the limit")
        if denial is not None:
            return await shield.refuse(denial, story, respond)
        self._under_way += 1
        try:
            request = Request(scope["method"], path, scope["query_string"], list(scope["headers"]), body, address, now, decision)
            await shield.exchange(request, story, respond)
        finally:
            self._under_way -= 1

    def unparsed(self, address: str) -> None:
        """Count what the HTTP parser refused, from its hook: there is no request to record."""
        if self.parts is not None:
            self.parts.quota.count(address, Reason.UNPARSED.value, dt.datetime.now(self._zone))

    async def publish(self) -> None:
        """Publish the journal's head now, not at the next interval. Raises OSError."""
        assert self.parts is not None
        await self.parts.journal.publish()

    def _upstream(self, path: bytes) -> Upstream | None:
        for prefix, upstream in self._paths:
            if path == prefix or path.startswith(prefix + b"/"):
                return upstream
        return None

    def _obstacle(self, upstream: Upstream | None) -> Denial | None:
        if upstream is None:
            return Denial(404, Reason.MALFORMED_REQUEST, "not-found", "no FHIR server under this path")
        if self._under_way >= self._most:
            return Denial(503, Reason.BUSY, "throttled", "too many requests are under way", (("Retry-After", "1"),))
        return None

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            async with asyncio.timeout(BODY_PATIENCE):
                message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionAbortedError
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._body:
                raise OverflowError
            parts.append(chunk)
            if not message.get("more_body"):
                return b"".join(parts)


def _announces_a_body(headers: Any) -> bool:
    return any(name in {b"content-length", b"transfer-encoding"} for name, _ in headers)
