"""Request headers: the few that are read, each at most once. All others end here."""

from __future__ import annotations

import re

from fhirshield.model import Denial, Reason, Refused

JSON_TYPES = frozenset({"application/fhir+json", "application/json", "text/json"})
JSON_FORMATS = JSON_TYPES | {"json"}
FORM = "application/x-www-form-urlencoded"
_ONCE = ("authorization", "accept", "content-type", "content-encoding", "origin", "access-control-request-method")
_OVERRIDES = ("x-http-method-override", "x-http-method", "x-method-override")
_BEARER = re.compile(r"bearer +([!-~]+) *\Z", re.IGNORECASE)

Headers = dict[str, str]


def read(raw: list[tuple[bytes, bytes]]) -> Headers:
    """The headers that are read, by lower-case name. Raises Refused where one that matters stands twice."""
    found: Headers = {}
    for name, value in raw:
        key = name.decode("latin-1").lower()
        if key in _OVERRIDES:
            raise malformed("a header says another method than the request")
        if key not in _ONCE:
            continue
        text = value.decode("latin-1").strip()
        if key in found and key != "accept":
            raise malformed(f"the header `{key}` stands twice")
        found[key] = f"{found[key]},{text}" if key in found else text
    if found.get("content-encoding", "identity").lower() != "identity":
        raise Refused(Denial(415, Reason.MALFORMED_REQUEST, "not-supported", "bodies are taken without a content encoding"))
    return found


def bearer(headers: Headers) -> str | None:
    """The bearer token (RFC 6750 §2.1), or None: no credential, or one of another scheme."""
    found = _BEARER.match(headers.get("authorization", ""))
    return found[1] if found else None


def check_accept(headers: Headers, format_asked: str | None) -> None:
    """Raises Refused (406) unless JSON will do. ``_format`` goes before ``Accept`` (FHIR R4 §3.1.0.1.11)."""
    if format_asked is not None:
        acceptable = format_asked.split(";")[0].strip() in JSON_FORMATS
    else:
        acceptable = "accept" not in headers or any(map(_is_json, headers["accept"].split(",")))
    if not acceptable:
        text = "only FHIR JSON is served: application/fhir+json"
        raise Refused(Denial(406, Reason.NOT_ACCEPTABLE, "not-supported", text))


def _is_json(item: str) -> bool:
    parts = [part.strip().lower() for part in item.split(";")]
    refused = any(re.fullmatch(r"q=0(\.0*)?", part) for part in parts[1:])
    return not refused and parts[0] in JSON_TYPES | {"*/*", "application/*"}


def malformed(text: str) -> Refused:
    """A 400 that says what is wrong with the request."""
    return Refused(Denial(400, Reason.MALFORMED_REQUEST, "invalid", text))
