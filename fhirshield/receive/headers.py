"""Request headers: the few that are read, each at most once. All others end here."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import unquote

from fhirshield.fhir.interaction import Return
from fhirshield.model import Denial, Reason, Refused

JSON_TYPES = frozenset({"application/fhir+json", "application/json", "text/json"})
JSON_FORMATS = JSON_TYPES | {"json"}
FORM = "application/x-www-form-urlencoded"
BREAK_GLASS = "break-glass-reason"
"""The header in which a caller states the reason for emergency access."""
_ONCE = (
    BREAK_GLASS,
    "dpop",
    "x-forwarded-for",
    "authorization",
    "accept",
    "content-type",
    "content-encoding",
    "origin",
    "access-control-request-method",
    "if-match",
    "if-none-match",
    "if-none-exist",
    "prefer",
)
_SEVERAL = {"accept", "prefer", "x-forwarded-for"}
"""Lists, which may stand in several headers (RFC 9110 §5.3)."""
_OVERRIDES = ("x-http-method-override", "x-http-method", "x-method-override")
_TOKEN = re.compile(r"(bearer|dpop) +([!-~]+) *\Z", re.IGNORECASE)

Headers = dict[str, str]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def read(raw: list[tuple[bytes, bytes]], also: str = "") -> Headers:
    """The headers that are read, by lower-case name; ``also`` one more. Raises Refused where one that matters stands twice."""
    found: Headers = {}
    for name, value in raw:
        key = name.decode("latin-1").lower()
        if key in _OVERRIDES:
            raise malformed("a header says another method than the request")
        if key not in _ONCE and key != also:
            continue
        text = value.decode("latin-1").strip()
        if key in found and key not in _SEVERAL:
            raise malformed(f"the header `{key}` stands twice")
        found[key] = f"{found[key]},{text}" if key in found else text
    if found.get("content-encoding", "identity").lower() != "identity":
        raise Refused(Denial(415, Reason.MALFORMED_REQUEST, "not-supported", "bodies are taken without a content encoding"))
    return found


def credential(headers: Headers) -> tuple[str, str | None]:
    """Scheme and access token (RFC 6750 §2.1, RFC 9449 §7.1); no token where there is none, or one of another scheme."""
    found = _TOKEN.match(headers.get("authorization", ""))
    return (found[1].lower(), found[2]) if found else ("bearer", None)


def certificate(text: str) -> str:
    """The SHA-256 (base64url) of a certificate as proxies pass it: RFC 9440 (``:base64:``), or PEM with or without escapes."""
    plain = unquote(text) if "%" in text else text
    inner = plain.strip(": ") if plain.startswith(":") else re.sub(r"-----[A-Z ]+-----|\s", "", plain)
    try:
        content = base64.b64decode(inner, validate=True)
    except ValueError:
        return ""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode() if content else ""


def client_address(forwarded: str, peer: str, trusted: Sequence[Network]) -> str:
    """Who asked: the last address of ``X-Forwarded-For`` that is no trusted proxy, where the peer is one."""
    address = peer
    for part in reversed([one.strip() for one in forwarded.split(",")] if forwarded else []):
        if not is_trusted(address, trusted):
            break
        try:
            found = ipaddress.ip_address(part)
        except ValueError:
            break
        if getattr(found, "scope_id", None):  # free text
            break
        address = str(found)
    return address


def is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    """Whether an address is a trusted proxy's."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in trusted)


def check_accept(headers: Headers, format_asked: str | None) -> None:
    """Raises Refused (406) unless JSON will do. ``_format`` goes before ``Accept`` (FHIR R4 §3.1.0.1.11)."""
    if format_asked is not None:
        acceptable = format_asked.split(";")[0].strip() in JSON_FORMATS
    else:
        acceptable = "accept" not in headers or any(map(_is_json, headers["accept"].split(",")))
    if not acceptable:
        text = "only FHIR JSON is served: application/fhir+json"
        raise Refused(Denial(406, Reason.NOT_ACCEPTABLE, "not-supported", text))


_MEDIA = re.compile(r"[a-z0-9!#$&^_.+-]{1,63}/(?:\*|[a-z0-9!#$&^_.+-]{1,63})\Z")


def raw_types(headers: Headers, format_asked: str | None) -> tuple[str, ...]:
    """The media types in which a Binary's own bytes are wanted; empty where FHIR JSON will do (FHIR R4 Binary §2.44.2)."""
    if format_asked is not None or "accept" not in headers or any(map(_is_json, headers["accept"].split(","))):
        return ()
    kinds = (item.split(";")[0].strip().lower() for item in headers["accept"].split(","))
    return tuple(kind for kind in kinds if _MEDIA.match(kind) and not kind.startswith("application/fhir"))


def _is_json(item: str) -> bool:
    parts = [part.strip().lower() for part in item.split(";")]
    refused = any(re.fullmatch(r"q=0(\.0*)?", part) for part in parts[1:])
    return not refused and parts[0] in JSON_TYPES | {"*/*", "application/*"}


_ETAG = re.compile(r'(?:W/)?"([!#-~]{1,200})"\Z')


def if_match(headers: Headers) -> str:
    """The one version of ``If-Match`` (FHIR R4 §3.1.0.5); empty without it. Raises Refused."""
    text = headers.get("if-match", "")
    found = _ETAG.match(text)
    if text and not found:
        raise malformed('`If-Match` takes one version: W/"1"')
    return found[1] if found else ""


def preferred_return(headers: Headers) -> Return:
    """What ``Prefer: return=`` asks for; a representation where it asks for nothing that is known (RFC 7240 §2)."""
    for preference in headers.get("prefer", "").replace(";", ",").split(","):
        name, _, value = preference.partition("=")
        if name.strip().lower() == "return" and value.strip(' "') in set(Return):
            return Return(value.strip(' "'))
    return Return.REPRESENTATION


_STATED = re.compile(r"[ -~]{10,300}\Z")


def emergency(headers: Headers) -> str:
    """The reason that is stated for emergency access; empty without one. Raises Refused where it is no reason."""
    text = headers.get(BREAK_GLASS, "")
    if BREAK_GLASS in headers and not _STATED.match(text):
        raise malformed("`Break-Glass-Reason` states a reason in 10 to 300 printable characters of ASCII")
    return text


def is_asynchronous(headers: Headers) -> bool:
    """Whether ``Prefer: respond-async`` was asked for (RFC 7240 §4.1)."""
    preferences = headers.get("prefer", "").replace(";", ",").split(",")
    return any(p.strip().lower() == "respond-async" for p in preferences)


def is_lenient(headers: Headers) -> bool:
    """Whether ``Prefer: handling=lenient`` was asked for."""
    preferences = headers.get("prefer", "").replace(";", ",").split(",")
    return any(p.strip().lower().replace(" ", "").replace('"', "") == "handling=lenient" for p in preferences)


def media_type(headers: Headers) -> str:
    """The content type without its parameters. Raises Refused (415) for a charset other than UTF-8."""
    kind, *parameters = (part.strip().lower() for part in headers.get("content-type", "").split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip(' "') not in {"utf-8", "utf8"}:
            raise Refused(Denial(415, Reason.MALFORMED_REQUEST, "not-supported", "bodies are taken in UTF-8"))
    return kind


def malformed(text: str) -> Refused:
    """A 400 that says what is wrong with the request."""
    return Refused(Denial(400, Reason.MALFORMED_REQUEST, "invalid", text))
