"""The composition root: settings in, an ASGI application out. Every part is built here; nothing else reads settings.

What is built once stands on the ground: journal, keys, shared state, metrics. The works stand on it and are built anew,
whole, when settings or rules change; a fault leaves the last good ones in force.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import gc
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from fhirshield.audit import Journal
from fhirshield.audit.quota import Quota
from fhirshield.audit.stream import RedisStream
from fhirshield.authenticate import Authenticator
from fhirshield.authenticate.introspection import Introspection
from fhirshield.authenticate.keys import Keys
from fhirshield.describe import Describer
from fhirshield.entrance import Entrance, Works
from fhirshield.errors import Fault, OperatorError
from fhirshield.forward import Forwarder
from fhirshield.gather import AboutAnswer, Asked, Gatherer, Reading
from fhirshield.gather.grants import Grants
from fhirshield.model import Refused
from fhirshield.outbound.credential import BearerFile, ClientCredentials, NoCredential
from fhirshield.outbound.fhir_server import Credential as CredentialSource
from fhirshield.outbound.fhir_server import FhirServer
from fhirshield.outbound.http import Client
from fhirshield.outbound.introspector import Introspector
from fhirshield.outbound.issuer import JwksFile, JwksUrl, NoKeys
from fhirshield.outbound.pool import Pool
from fhirshield.policy.compile import RuleSet
from fhirshield.policy.consent import ConsentPolicy
from fhirshield.policy.load import load as load_rules
from fhirshield.receive import Receiver
from fhirshield.recovery import Recovery
from fhirshield.redact import Redactor
from fhirshield.redact.written import Written
from fhirshield.ring import Ring, load_key
from fhirshield.serving import renew, secured, serving
from fhirshield.settings import ConsentSource, Credential, Issuer, Settings, Sink, Upstream, load
from fhirshield.settings import Introspection as IntrospectionSettings
from fhirshield.shield import Shield
from fhirshield.state import ExpiringMap
from fhirshield.state.epochs import Epochs, MemoryEpochs, RedisEpochs
from fhirshield.state.memory import MemoryMap
from fhirshield.state.redis import RedisMap
from fhirshield.watch.admin import admin
from fhirshield.watch.metrics import Metrics

HEAD_INTERVAL = 10.0
"""Seconds between signed heads at the witness."""
LOOK_INTERVAL = 2.0
"""Seconds between looks at the files of settings and rules."""
RETIREMENT = 60.0
"""Seconds after which connections of replaced works are closed, whatever is under way on them."""
_SMALL = 4 << 20
"""Bytes of an issuer's document."""
_log = logging.getLogger("fhirshield")
_FIXED = ("host", "port", "admin", "audit", "ring_file", "state", "tls")
"""Settings that a running process cannot change."""


@dataclass(slots=True)
class Ground:
    """What stays for the life of the process."""

    entrance: Entrance
    settings: Settings
    ring: Ring
    journal: Journal
    quota: Quota
    state: ExpiringMap
    metrics: Metrics
    issuers: Client
    epochs: Epochs
    grants: Grants
    keys: dict[str, tuple[Issuer, Keys]] = field(default_factory=dict)
    pools: list[Client] = field(default_factory=list)
    """Those of the works in force."""
    servers: dict[str, FhirServer] = field(default_factory=dict)
    """The upstreams in force, by path."""
    reloading: asyncio.Lock = field(default_factory=asyncio.Lock)
    streams: list[RedisStream] = field(default_factory=list)
    retiring: set[asyncio.Task[Any]] = field(default_factory=set)

    async def reload(self) -> bool:
        """Read settings and rules again and put them in force together; with a fault anywhere, nothing changes."""
        async with self.reloading:
            return await self._reload()

    async def _reload(self) -> bool:
        pools: list[Client] = []
        try:
            settings, rules = await asyncio.to_thread(_read, Path(self.settings.file))
            changed = [name for name in _FIXED if getattr(settings, name) != getattr(self.settings, name)]
            if changed:
                fault = Fault(self.settings.file, "", f"{', '.join(changed)} cannot change while serving", "restart")
                raise OperatorError([fault])
            works = _works(settings, rules, self, pools)
            if self.entrance.tls is not None and settings.tls is not None:
                renew(self.entrance.tls, settings.tls)
        except OperatorError as error:
            for fault in error.faults:
                _log.error("reload refused, the last good settings and rules stay in force: %s", fault)
            self.metrics.reloaded("refused")
            return False
        except Exception as error:  # noqa: BLE001 - whatever a file may do to its reader, the next one must be read
            _log.error("reload refused, the last good settings and rules stay in force: %s while reading", type(error).__name__)
            self.metrics.reloaded("refused")
            return False
        old, self.entrance.works = self.entrance.works, works
        pools, self.pools = self.pools, pools
        self.settings = settings
        self.metrics.reloaded("applied", rules.digest)
        _log.info("settings and rules are in force: rules %s", rules.digest[:16])
        if old is not None:
            task = asyncio.create_task(_retire(old, pools))
            self.retiring.add(task)
            task.add_done_callback(self.retiring.discard)
        return True

    async def publish(self) -> None:
        """Publish the journal's head now, not at the next interval. Raises OSError."""
        await self.journal.publish()

    def behind(self) -> float:
        """How many durable records the slowest stream does not have yet."""
        return float(max((stream.behind for stream in self.streams), default=0))

    def missing(self) -> list[str]:
        """What stands in the way of serving."""
        found = []
        if self.entrance.stopping:
            found.append("the process is ending")
        if self.journal.failing:
            found.append("the journal cannot be written")
        return found


def _read(file: Path) -> tuple[Settings, RuleSet]:
    settings = load(file)
    return settings, RuleSet(load_rules(settings.rules), consent_policy(settings))


def consent_policy(settings: Settings) -> ConsentPolicy | None:
    """How Consents are read, where settings have them read."""
    row = settings.consent
    if row is None:
        return None
    policies = tuple(sorted(row.policies.items()))
    return ConsentPolicy(row.default, row.recent_wins, row.own_record, row.exempt_roles, policies=policies)


def build(settings: Settings) -> Entrance:
    """The application. Rules and keys are read at once, so that what is wrong is said before anything listens."""
    rules = RuleSet(load_rules(settings.rules), consent_policy(settings))
    ring = Ring(_key(settings.ring_file, "key ring"))
    metrics = Metrics()
    key = _key(settings.audit.key_file, "journal")
    journal = Journal(settings.audit.journal, key, settings.audit.witness, observe=metrics.recorded)
    entrance = Entrance()
    entrance.tls = secured(settings.tls) if settings.tls else None

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        _spare_the_collector()
        recovery = journal.open()
        if recovery.cut:
            _log.warning("journal: cut %d bytes of an unfinished record; %d whole records kept", recovery.cut, recovery.records)
        if journal.intents.open:
            _log.warning("journal: %d writes have no outcome; their fate is asked of the upstream", len(journal.intents.open))
        quota = Quota(journal, time.monotonic)
        issuers = Pool(most=_SMALL, connect=2.0, answer=5.0)
        state = _state(settings)
        for entry in journal.broken:
            _tell_again(entry)
        grants = Grants(state, lambda key: ring.digest("break-glass", key.encode()), journal.broken)
        ground = Ground(entrance, settings, ring, journal, quota, state, metrics, issuers, _epochs(settings), grants)
        entrance.parts, entrance.quota, entrance.took = ground, quota, metrics.took
        entrance.works = _works(settings, rules, ground, ground.pools)
        _gauges(ground)
        metrics.reloaded("", rules.digest)
        ground.streams = [_stream(sink, place, ground) for place, sink in enumerate(settings.audit.sinks)]
        tasks = [
            asyncio.create_task(work)
            for work in (_heads(ground), _look(ground), _recovery(ground), *(s.run() for s in ground.streams))
        ]
        _on_hangup(ground)
        try:
            async with _admin(ground):
                yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, *ground.retiring, return_exceptions=True)
            quota.flush()
            await journal.close()
            for client in [*ground.pools, issuers]:
                await client.close()
            for stream in ground.streams:
                await stream.close()
            await ground.state.close()
            await ground.epochs.close()

    entrance.application = Starlette(lifespan=lifespan)
    return entrance


def _tell_again(entry: dict[str, Any]) -> None:
    """Say aloud that a grant from before this start is open: who stopped then may not have heard it."""
    with contextlib.suppress(KeyError, ValueError, TypeError):
        left = dt.datetime.fromisoformat(entry["time"]).timestamp() + entry["seconds"] - time.time()
        if left > 0:
            _log.critical(
                "break-glass: grant %s under rule %s in exchange %s, before this start, is open for %d seconds more",
                entry["break_glass"], entry["rule"], entry["decision"], left,
            )  # fmt: skip


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


# --- the works ----------------------------------------------------------------------------------------------------------


def _works(settings: Settings, rules: RuleSet, ground: Ground, pools: list[Client]) -> Works:
    """Works on this ground; the connections that they hold are added to ``pools``. Raises OperatorError."""
    keys = {name: _keys(name, issuer, ground) for name, issuer in settings.issuers.items()}
    introspections = {
        name: Introspection(
            _introspector(issuer.introspection, ground.issuers), ground.state, ground.ring, issuer.introspection.keep
        )
        for name, issuer in settings.issuers.items()
        if issuer.introspection
    }
    redactor = Redactor(ground.ring)
    shields, servers = {}, {}
    for upstream in settings.upstreams:
        client = Pool(
            most=settings.limits.answer, connect=upstream.connect_timeout, answer=upstream.answer_timeout,
            connections=settings.limits.concurrency,
        )  # fmt: skip
        pools.append(client)
        server = FhirServer(upstream.url, client, _credential(upstream.credential, ground.issuers))
        shields[upstream.path] = Shield(
            receive=Receiver(upstream, settings.public_url, ground.ring, settings.limits, settings.proxies),
            authenticate=Authenticator(upstream, settings.issuers, keys, introspections, ground.state),
            rules=rules,
            gather=_gatherer(server, upstream, settings, rules, ground, pools),
            forward=Forwarder(server, settings.limits, forward_token=upstream.credential.forward),
            redact=redactor,
            written=Written(redactor, settings.limits.depth),
            grants=ground.grants,
            describe=Describer(server, client, settings.issuers[upstream.issuers[0]].issuer),
            journal=ground.journal,
            quota=ground.quota,
            ring=ground.ring,
        )
        servers[upstream.path] = server
    ground.servers = servers
    return Works(shields, settings.public_url, settings.zone, settings.limits, rules.digest)


def _gatherer(
    server: FhirServer, upstream: Upstream, settings: Settings, rules: RuleSet, ground: Ground, pools: list[Client]
) -> Gatherer:  # fmt: skip
    """What reads in order to decide: from the upstream, and from where Consents are kept."""
    reading = Reading(server, settings.limits, forward_token=upstream.credential.forward)
    consent, source = settings.consent, None
    if consent is not None and consent.source is not None:
        source = _reading(consent.source, settings, ground.issuers, pools)
    labelled = rules.sensitivity
    if upstream.credential.forward and (rules.relationships or labelled):
        text = "what labels and relationships rest on would be read as the caller, who may not see it"
        raise OperatorError([Fault(settings.file, "upstreams.credential.forward", text, "give the shield a credential of its own")])
    asked = Asked(
        consents=consent is not None,
        max_age=consent.max_age if consent else 5.0,
        lag=consent.lag if consent else 0.0,
        inherit=labelled.inherited if labelled else None,
        relationships=tuple(rules.relationships.values()),
        births=labelled is not None and labelled.minors is not None,
    )
    about = AboutAnswer(asked, reading, source, ground.epochs, lambda key: ground.ring.digest("epochs", key.encode()))
    return Gatherer(reading, about)


def _reading(row: ConsentSource | Upstream, settings: Settings, issuers: Client, pools: list[Client]) -> Reading:
    """What reads one server under the shield's own name; its connections are added to ``pools``."""
    client = Pool(
        most=settings.limits.answer, connect=row.connect_timeout, answer=row.answer_timeout,
        connections=settings.limits.concurrency,
    )  # fmt: skip
    pools.append(client)
    server = FhirServer(row.url, client, _credential(row.credential, issuers))
    return Reading(server, settings.limits, forward_token=False)


async def stored_consents(settings: Settings) -> AsyncIterator[tuple[str, list[Any] | None]]:
    """All active Consents, page by page, each with the URL of its source; None for a source that cannot be read from here."""
    consent = settings.consent
    own = [row for row in settings.upstreams if not row.credential.forward]
    rows: list[ConsentSource | Upstream] = [consent.source] if consent is not None and consent.source is not None else [*own]
    issuers = Pool(most=_SMALL, connect=2.0, answer=5.0)
    pools: list[Client] = [issuers]
    try:
        for row in rows:
            reading = _reading(row, settings, issuers, pools)
            try:
                query = (("status", "active"), ("_count", "200"))
                async for page in reading.pages(None, "Consent", query, {}, MOST_CONSENT_PAGES):
                    yield row.url, page
            except Refused:
                yield row.url, None
    finally:
        for client in pools:
            await client.close()


MOST_CONSENT_PAGES = 10_000
"""Pages of two hundred Consents."""


async def _retire(old: Works, pools: list[Client]) -> None:
    """Let replaced works finish what is under way, then close their connections."""
    end = time.monotonic() + RETIREMENT
    with contextlib.suppress(asyncio.CancelledError):
        while old.held and time.monotonic() < end:
            await asyncio.sleep(0.1)
    for client in pools:
        await client.close()


def _state(settings: Settings) -> ExpiringMap:
    if not settings.state.redis:
        return MemoryMap()
    file = settings.state.password_file
    return RedisMap(settings.state.redis, file.read_text(encoding="utf-8").strip() if file else None)


def _epochs(settings: Settings) -> Epochs:
    if not settings.state.redis:
        return MemoryEpochs()
    file = settings.state.password_file
    return RedisEpochs(settings.state.redis, file.read_text(encoding="utf-8").strip() if file else None)


def _stream(sink: Sink, place: int, ground: Ground) -> RedisStream:
    file = sink.password_file
    password = file.read_text(encoding="utf-8").strip() if file else None
    folder = ground.settings.audit.journal
    cursor = folder / f"stream-{place}.cursor"
    return RedisStream(ground.journal, folder, cursor, url=sink.redis, stream=sink.stream, password=password)


def _introspector(row: IntrospectionSettings, client: Client) -> Introspector:
    return Introspector(client, url=row.url, client_id=row.client_id, client_secret_file=row.client_secret_file)


def _keys(name: str, issuer: Issuer, ground: Ground) -> Keys:
    """The keys of an issuer; those already fetched stay where its settings stay."""
    known = ground.keys.get(name)
    if known is not None and known[0] == issuer:
        return known[1]
    if issuer.jwks_file:
        made = Keys(JwksFile(issuer.jwks_file), issuer=issuer.issuer, hints=ground.state)
    else:
        source = JwksUrl(issuer.jwks_url, ground.issuers) if issuer.jwks_url else NoKeys()
        made = Keys(source, issuer=issuer.issuer, hints=ground.state)
    ground.keys[name] = (issuer, made)
    return made


def _credential(credential: Credential, client: Client) -> CredentialSource:
    if credential.bearer_file:
        return BearerFile(credential.bearer_file)
    if credential.key_file:
        return ClientCredentials(
            client, token_url=credential.token_url, client_id=credential.client_id, key_file=credential.key_file,
            key_id=credential.key_id, algorithm=credential.algorithm, scope=credential.scope,
        )  # fmt: skip
    return NoCredential()


# --- while it runs --------------------------------------------------------------------------------------------------------


async def _heads(ground: Ground) -> None:
    """Publish the journal's head, and the count of strangers, at an interval."""
    while True:
        await asyncio.sleep(HEAD_INTERVAL)
        ground.quota.flush()
        try:
            await ground.publish()
        except OSError as error:
            _log.error("witness: the head cannot be published: %s", error.strerror)


async def _recovery(ground: Ground) -> None:
    """Learn what became of writes whose outcome is not known."""
    patience = max(upstream.answer_timeout for upstream in ground.settings.upstreams)
    now = lambda: dt.datetime.now(dt.UTC)  # noqa: E731
    recovery = Recovery(ground.journal, lambda: ground.servers, ground.ring.digest, now, patience)
    await recovery.run()


async def _look(ground: Ground) -> None:
    """Reload when a file of the settings or rules has changed."""
    seen = await asyncio.to_thread(_files, ground.settings)
    while True:
        await asyncio.sleep(LOOK_INTERVAL)
        now = await asyncio.to_thread(_files, ground.settings)
        if now != seen:
            seen = now
            await ground.reload()


def _files(settings: Settings) -> Mapping[str, tuple[int, int]]:
    """Every file that settings and rules are read from, with its time and size."""
    rules = settings.rules
    folder = rules if rules.is_dir() else rules.parent
    inside = [path for path in folder.rglob("*") if path.suffix in {".yaml", ".json"} and path.is_file()]
    found = {}
    secrets = [settings.tls.certificate_file, settings.tls.key_file] if settings.tls else []
    for path in [Path(settings.file), *inside, *secrets]:
        with contextlib.suppress(OSError):
            status = path.stat()
            found[str(path)] = (status.st_mtime_ns, status.st_size)
    return found


def _on_hangup(ground: Ground) -> None:
    """SIGHUP reloads, where this is the process's main thread."""

    def reload() -> None:
        task: asyncio.Task[Any] = asyncio.ensure_future(ground.reload())
        ground.retiring.add(task)
        task.add_done_callback(ground.retiring.discard)

    with contextlib.suppress(ValueError, RuntimeError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)


@contextlib.asynccontextmanager
async def _admin(ground: Ground) -> AsyncIterator[None]:
    """Serve health and metrics on an address of their own, where settings name one."""
    settings = ground.settings
    if not settings.admin:
        yield
        return
    host, _, port = settings.admin.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio sets TCP_NODELAY on no other
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((host.strip("[]"), int(port)))
    options = {"log_config": None, "access_log": False, "server_header": False, "lifespan": "off"}
    async with serving(admin(ground.missing, ground.metrics), bound, options):
        yield


def _gauges(ground: Ground) -> None:
    """Values that are read when somebody asks."""
    read = ground.metrics.gauge
    read("under_way", "Exchanges under way", lambda: float(ground.entrance.under_way))
    read("journal_records", "Records of the journal", lambda: float(ground.journal.count))
    read("journal_syncs", "fdatasyncs of the journal since the start", lambda: float(ground.journal.syncs))
    read("journal_failing", "1 while the journal cannot be written", lambda: float(ground.journal.failing))
    read("journal_unpublished", "Records after the last head at the witness", lambda: float(ground.journal.unpublished))
    read("open_intents", "Writes whose outcome is not known", lambda: float(len(ground.journal.intents.open)))
    read("stream_behind", "Durable records that are not in every stream yet", ground.behind)
    read("ready", "1 while nothing is missing", lambda: float(not ground.missing()))
