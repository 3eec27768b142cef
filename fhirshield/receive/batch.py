"""Batches and transactions (FHIR R4 §3.1.0.11): their entries as requests, read by the grammar of those on the wire."""

from __future__ import annotations

import base64
import re
from typing import Any

from fhirshield.errors import MalformedFhir
from fhirshield.fhir import json as fhir_json
from fhirshield.model import Denial, Reason, Refused
from fhirshield.receive.content import MARGIN, PATCH
from fhirshield.receive.headers import JSON_TYPES, Headers, malformed, media_type
from fhirshield.settings import Limits

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}
_URL = re.compile(r"[!\"$-;=-~]{1,8000}\Z")
_HEADERS = {"ifMatch": b"if-match", "ifNoneExist": b"if-none-exist", "ifNoneMatch": b"if-none-match"}
Parts = tuple[str, str, list[tuple[bytes, bytes]], bytes]
"""(method, URL relative to the base, headers, body)"""


def batch_of(body: bytes, headers: Headers, limits: Limits) -> Any:
    """``type`` and ``entry`` of a batch or a transaction. Raises Refused."""
    if media_type(headers) not in JSON_TYPES:
        raise Refused(Denial(415, Reason.MALFORMED_REQUEST, "not-supported", "a batch is FHIR JSON: application/fhir+json"))
    try:
        bundle = fhir_json.decode_strictly(body, max(8, limits.depth - MARGIN))
    except MalformedFhir as error:
        raise malformed(f"the body is {error}") from None
    if type(bundle) is not dict or bundle.get("resourceType") != "Bundle":
        raise malformed("the body is no Bundle")
    kind, entries = bundle.get("type"), bundle.get("entry", [])
    if type(kind) is not str or kind not in {"batch", "transaction"} or type(entries) is not list:
        raise malformed("the body is no batch or transaction")
    if len(entries) > limits.entries:
        raise Refused(Denial(413, Reason.TOO_LARGE, "too-long", f"more than {limits.entries} entries"))
    if kind == "transaction":
        _check_names(entries)
    return {"type": kind, "entry": entries}


_URN = re.compile(r"urn:uuid:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z|urn:oid:[0-2](?:\.(?:0|[1-9][0-9]*))+\Z")


def name_of(entry: Any) -> str:
    """What other entries call what an entry makes, if it is a URN; other URLs name nothing that could be referred to."""
    name = entry.get("fullUrl") if type(entry) is dict else None
    return name if type(name) is str and _URN.match(name) else ""


def _check_names(entries: list[Any]) -> None:
    names = [name for entry in entries if (name := name_of(entry))]
    if len(set(names)) < len(names):
        raise malformed("two entries have one fullUrl")


def request_of(entry: Any) -> Parts:
    """What an entry asks. Raises Refused."""
    request = entry.get("request") if type(entry) is dict else None
    request = request if type(request) is dict else {}
    method, url = request.get("method"), request.get("url")
    if type(method) is not str or method not in _METHODS or type(url) is not str or not _URL.match(url):
        raise malformed("an entry has no request with a method and a URL")
    if ":" in url.partition("?")[0] or url.startswith("/") or not url.partition("?")[0]:
        raise malformed("the URL of an entry is relative to the base")
    headers = [(name, value.encode()) for key, name in _HEADERS.items() if type(value := request.get(key)) is str]
    resource = entry.get("resource")
    if resource is None:
        return method, url, headers, b""
    if method == "PATCH" and type(resource) is dict and resource.get("resourceType") == "Binary":
        return method, url, [*headers, (b"content-type", PATCH.encode())], _patch(resource)
    kind = b"application/fhir+json"
    return method, url, [*headers, (b"content-type", kind)], fhir_json.encode(resource)


def _patch(binary: dict[str, Any]) -> bytes:
    """JSON Patch in a Binary (FHIR R4 §3.1.0.8.2). Raises Refused."""
    try:
        if binary.get("contentType") != PATCH:
            raise ValueError
        return base64.b64decode(str(binary.get("data", "")), validate=True)
    except ValueError:
        raise malformed("a patch in a batch is a Binary with JSON Patch") from None
