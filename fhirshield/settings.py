"""Settings: frozen, bounded, checked without side effects, every fault at once.

``load`` reads ``fhirshield.yaml`` against ``schemas/settings.json``. Secrets are only ever *named* here, as files.
A key whose engine does not exist yet is a fault that says so: no key is accepted and not enforced.
"""

from __future__ import annotations

import ipaddress
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fhirshield import document
from fhirshield.document import Document, Key
from fhirshield.errors import Fault, OperatorError

NOT_YET: dict[tuple[str, ...], str] = {
    ("audit", "sinks", "*", "fhir"): "sending records to a FHIR server",
    ("audit", "sinks", "*", "kafka"): "streaming records to Kafka",
}
"""Keys of the design whose engines are not in this version."""

ALGORITHMS = ("RS256", "RS384", "ES256", "ES384")


@dataclass(frozen=True, slots=True)
class RoleSource:
    """Where roles come from: a claim (dots go into objects), the client, the type of ``fhirUser``, a scope."""

    claim: str
    clients: Mapping[str, tuple[str, ...]]
    fhir_user: Mapping[str, tuple[str, ...]]
    scopes: Mapping[str, tuple[str, ...]]
    exchange: bool = False
    """Roles come from ``subject_role`` of IUA or UDAP B2B too."""


@dataclass(frozen=True, slots=True)
class Introspection:
    """Where tokens are introspected (RFC 7662), as whom, and what an answer is good for."""

    url: str
    client_id: str
    client_secret_file: Path
    keep: float
    """Seconds."""
    revocation: bool
    sole_audience: bool


@dataclass(frozen=True, slots=True)
class Proxies:
    """Who may say where a request came from, and with which client certificate."""

    trusted: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    certificate_header: str = ""
    """Lower-case name of the header with the client's certificate, or empty."""


@dataclass(frozen=True, slots=True)
class State:
    """What replicas share for a while; memory where ``redis`` is empty."""

    redis: str = ""
    password_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Issuer:
    """One OAuth authorization server whose tokens are accepted."""

    name: str
    issuer: str
    jwks_url: str
    jwks_file: Path | None
    algorithms: tuple[str, ...]
    profile: str
    claims: Mapping[str, str]
    roles: RoleSource
    default_purpose: Mapping[str, str]
    introspection: Introspection | None = None
    organization: str = ""
    """The claim that says for which organization the caller acts."""
    country: str = ""
    """Where its callers are, unless a claim that is mapped to ``country`` says otherwise."""


@dataclass(frozen=True, slots=True)
class Credential:
    """What the shield shows the upstream. Exactly one of the three forms is set, or none."""

    bearer_file: Path | None = None
    token_url: str = ""
    client_id: str = ""
    key_file: Path | None = None
    key_id: str = ""
    algorithm: str = "RS384"
    scope: str = ""
    forward: bool = False


@dataclass(frozen=True, slots=True)
class Upstream:
    """One FHIR server behind the shield."""

    path: str
    url: str
    issuers: tuple[str, ...]
    identities: tuple[str, ...]
    credential: Credential
    connect_timeout: float
    """Seconds."""
    answer_timeout: float
    """Seconds."""
    audience: tuple[str, ...]
    origins: tuple[str, ...]
    id_length: int
    introspector: str = ""
    """The issuer that opaque tokens are asked of, or empty."""
    delete_if_match: bool = False
    """It was shown to honour ``If-Match`` on DELETE."""
    country: str = ""
    """Where its data is."""
    hidden_narrative: str = "refuse"
    """What an update does where narrative is hidden from the writer: ``refuse`` or ``drop``."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds in bytes and counts."""

    body: int = 16 << 20
    answer: int = 64 << 20
    depth: int = 64
    entries: int = 1000
    concurrency: int = 512


@dataclass(frozen=True, slots=True)
class Sink:
    """A Redis Stream that records are streamed to."""

    redis: str
    stream: str
    password_file: Path | None


@dataclass(frozen=True, slots=True)
class Audit:
    """Where records go and which key chains them."""

    journal: Path
    key_file: Path
    witness: Path
    sinks: tuple[Sink, ...] = ()


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of the FHIR side's own TLS."""

    certificate_file: Path
    key_file: Path
    client_ca_file: Path | None = None
    """Who may issue clients' certificates; without it none is asked for."""


@dataclass(frozen=True, slots=True)
class ConsentSource:
    """A FHIR server that keeps Consents."""

    url: str
    credential: Credential
    connect_timeout: float
    """Seconds."""
    answer_timeout: float
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Consents:
    """Where Consents come from, how old they may be, and how they are read."""

    source: ConsentSource | None
    """None: each upstream keeps its own."""
    default: str
    max_age: float
    """Seconds."""
    lag: float
    """Seconds after a write for which searches of the source may miss it."""
    eventual: bool
    """Nobody knows for how long."""
    recent_wins: bool
    own_record: bool
    exempt_roles: frozenset[str]
    policies: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything an operator decides but the rules."""

    file: str
    host: str
    port: int
    admin: str
    """address:port of the admin side, or empty."""
    public_url: str
    issuers: Mapping[str, Issuer]
    upstreams: tuple[Upstream, ...]
    rules: Path
    audit: Audit
    ring_file: Path
    zone: zoneinfo.ZoneInfo
    limits: Limits
    state: State = State()
    proxies: Proxies = Proxies()
    tls: Tls | None = None
    consent: Consents | None = None


def load(path: Path) -> Settings:
    """Read settings. Paths are relative to the file. Raises OperatorError with every fault found."""
    found, faults = document.read(path, "settings")
    faults = _not_yet(found, faults)
    if faults:
        raise OperatorError(faults)
    settings = _settings(found, path.parent)
    faults = _cross_check(found, settings)
    if faults:
        raise OperatorError(faults)
    return settings


def _not_yet(found: Document, faults: list[Fault]) -> list[Fault]:
    """Say of a key that the design knows what it waits for, instead of calling it unknown."""
    result = []
    waiting = {found.where(key): (key, what) for key in found.lines for pattern, what in NOT_YET.items() if _fits(key, pattern)}
    for fault in faults:
        if fault.where in waiting and "unknown key" in fault.message:
            continue
        result.append(fault)
    for key, what in waiting.values():
        result.append(found.fault(key, f"{what} is not in this version", "remove the key"))
    return result


def _fits(key: Key, pattern: tuple[str, ...]) -> bool:
    return len(key) == len(pattern) and all(want in {"*", part} for part, want in zip(key, pattern, strict=True))


def _settings(found: Document, folder: Path) -> Settings:
    raw = found.value
    host, _, port = raw.get("listen", "127.0.0.1:8080").rpartition(":")
    journal = folder / raw["audit"]["journal"]
    beside = journal.parent
    limits = raw.get("limits", {})
    return Settings(
        file=found.file,
        host=host,
        port=int(port),
        admin=raw.get("admin", ""),
        public_url=raw["public_url"],
        issuers={name: _issuer(name, row, folder) for name, row in raw["issuers"].items()},
        upstreams=tuple(_upstream(row, raw["public_url"], folder) for row in raw["upstreams"]),
        rules=folder / raw["rules"],
        audit=Audit(
            journal,
            folder / raw["audit"]["key_file"] if "key_file" in raw["audit"] else beside / "journal.key",
            folder / raw["audit"]["witness"] if "witness" in raw["audit"] else beside / "witness.ndjson",
            tuple(_sink(row, folder) for row in raw["audit"].get("sinks", ())),
        ),
        ring_file=folder / raw["keys"]["file"] if "keys" in raw else beside / "ring.key",
        zone=_zone(raw.get("zone", "UTC")) or zoneinfo.ZoneInfo("UTC"),
        limits=Limits(
            size(limits.get("body", "16MiB")),
            size(limits.get("answer", "64MiB")),
            limits.get("depth", 64),
            limits.get("entries", 1000),
            limits.get("concurrency", 512),
        ),
        state=_state(raw.get("state", "memory"), folder),
        proxies=Proxies(
            tuple(ipaddress.ip_network(text, strict=False) for text in raw.get("trusted_proxies", ()) if _network(text)),
            raw.get("client_certificate_header", "").lower(),
        ),
        tls=Tls(**{name: folder / file for name, file in raw["tls"].items()}) if "tls" in raw else None,
        consent=_consents(raw["consent"], folder) if "consent" in raw else None,
    )


def _consents(row: Any, folder: Path) -> Consents:
    lag = row.get("search_lag", "0s")
    source = row.get("source")
    timeout = source.get("timeout", {}) if source else {}
    return Consents(
        source=ConsentSource(
            source["url"].rstrip("/"),
            _credential(source.get("credential", {}), folder),
            duration(timeout.get("connect", "2s")),
            duration(timeout.get("answer", "30s")),
        )
        if source
        else None,
        default=row.get("default", "deny"),
        max_age=duration(row.get("max_age", "5s")),
        lag=0.0 if lag == "eventual" else duration(lag),
        eventual=lag == "eventual",
        recent_wins=row.get("conflicts") == "most-recent-wins",
        own_record=row.get("own_record", "open") == "open",
        exempt_roles=frozenset(row.get("exempt_roles", ())),
        policies=row.get("policies", {}),
    )


def _credential(row: Any, folder: Path) -> Credential:
    return Credential(**{name: folder / value if name in {"bearer_file", "key_file"} else value for name, value in row.items()})


def _sink(row: Any, folder: Path) -> Sink:
    password = folder / row["password_file"] if "password_file" in row else None
    return Sink(row["redis"], row.get("stream", "fhirshield:audit"), password)


def _state(row: Any, folder: Path) -> State:
    if isinstance(row, str):
        return State("" if row == "memory" else row)
    return State(row["redis"], folder / row["password_file"] if "password_file" in row else None)


def _issuer(name: str, row: Any, folder: Path) -> Issuer:
    roles = row.get("roles", {})
    return Issuer(
        name=name,
        issuer=row["issuer"],
        jwks_url=row.get("jwks_url", ""),
        jwks_file=folder / row["jwks_file"] if "jwks_file" in row else None,
        algorithms=tuple(row.get("algorithms", ALGORITHMS)),
        profile=row["profile"],
        claims=row.get("claims", {}),
        roles=RoleSource(
            roles.get("from", ""),
            {key: tuple(value) for key, value in roles.get("clients", {}).items()},
            {key: tuple(value) for key, value in roles.get("fhir_user", {}).items()},
            {key: tuple(value) for key, value in roles.get("scopes", {}).items()},
            roles.get("exchange", False),
        ),
        default_purpose=row.get("default_purpose", {}),
        introspection=_introspection(row["introspection"], folder) if "introspection" in row else None,
        organization=row.get("organization", ""),
        country=row.get("country", ""),
    )


def _introspection(row: Any, folder: Path) -> Introspection:
    return Introspection(
        url=row["url"],
        client_id=row["client_id"],
        client_secret_file=folder / row["client_secret_file"],
        keep=duration(row.get("keep", "10s")),
        revocation=row.get("revocation", False),
        sole_audience=row.get("sole_audience", False),
    )


def _upstream(row: Any, public_url: str, folder: Path) -> Upstream:
    timeout = row.get("timeout", {})
    return Upstream(
        path=row["path"],
        url=row["url"].rstrip("/"),
        issuers=tuple(row["issuers"]),
        identities=tuple(row.get("identities", row["issuers"][:1])),
        credential=_credential(row.get("credential", {}), folder),
        connect_timeout=duration(timeout.get("connect", "2s")),
        answer_timeout=duration(timeout.get("answer", "30s")),
        audience=tuple(row.get("audience", [public_url + row["path"]])),
        origins=tuple(row.get("origins", ())),
        id_length=row.get("id_length", 64),
        introspector=row.get("introspector", ""),
        delete_if_match=row.get("delete_if_match", False),
        country=row.get("country", ""),
        hidden_narrative=row.get("hidden_narrative", "refuse"),
    )


def _cross_check(found: Document, settings: Settings) -> list[Fault]:
    faults = []
    raw = found.value
    seen: dict[str, int] = {}
    for index, upstream in enumerate(settings.upstreams):
        for field in ("issuers", "identities"):
            for place, name in enumerate(getattr(upstream, field)):
                if name not in settings.issuers:
                    known = ", ".join(settings.issuers)
                    faults.append(found.fault(("upstreams", index, field, place), f"no issuer `{name}`", f"known: {known}"))
        for name in set(upstream.identities) - set(upstream.issuers):
            key: Key = ("upstreams", index, "identities")
            faults.append(found.fault(key, f"`{name}` opens nothing here", "list it under `issuers` too"))
        asked = upstream.introspector
        if asked and (asked not in upstream.issuers or settings.issuers[asked].introspection is None):
            remedy = "name an issuer of this upstream that has `introspection`"
            faults.append(found.fault(("upstreams", index, "introspector"), f"`{asked}` cannot be asked here", remedy))
        if upstream.path in seen:
            faults.append(found.fault(("upstreams", index, "path"), f"`{upstream.path}` is taken", "give each its own"))
        seen[upstream.path] = index
    urls: dict[str, str] = {}
    for name, issuer in settings.issuers.items():
        if issuer.issuer in urls:
            other = urls[issuer.issuer]
            faults.append(found.fault(("issuers", name, "issuer"), f"is also the issuer of `{other}`", "merge the two"))
        urls[issuer.issuer] = name
    for place, text in enumerate(raw.get("trusted_proxies", ())):
        if not _network(text):
            faults.append(found.fault(("trusted_proxies", place), f"`{text}` is not an address or network", "write 10.0.0.0/8"))
    if "client_certificate_header" in raw and not raw.get("trusted_proxies"):
        faults.append(
            found.fault(("client_certificate_header",), "is believed of nobody", "name the proxy under `trusted_proxies`")
        )
    faults += _check_consents(found, settings)
    if "zone" in raw and _zone(raw["zone"]) is None:
        faults.append(found.fault(("zone",), f"`{raw['zone']}` is not a time zone", "use an IANA name: Europe/Berlin"))
    return faults


def _check_consents(found: Document, settings: Settings) -> list[Fault]:
    consent, faults = settings.consent, []
    if consent is None:
        return []
    if consent.lag >= consent.max_age:
        text = "searches may miss a Consent for longer than one may be old"
        faults.append(found.fault(("consent", "search_lag"), text, "raise `max_age` above it"))
    if settings.state.redis and "keys" not in found.value:
        text = "replicas would not know each other's marks: a revocation on one would not bind the others"
        faults.append(found.fault(("state",), text, "give every replica the same `keys.file`"))
    for index, upstream in enumerate(settings.upstreams):
        if upstream.credential.forward:
            text = "Consents, and whom they name, would be read as the caller, who may not see them"
            remedy = "give the shield a credential of its own"
            faults.append(found.fault(("upstreams", index, "credential", "forward"), text, remedy))
    return faults


def _network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _zone(name: str) -> zoneinfo.ZoneInfo | None:
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return None


def size(text: str) -> int:
    """``16MiB`` in bytes."""
    number = int(text.rstrip("BKMi"))
    return number * {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}[text.lstrip("0123456789")]


def duration(text: str) -> float:
    """``30s`` in seconds."""
    unit = text.lstrip("0123456789")
    return int(text.removesuffix(unit)) * {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}[unit]
