"""A batch (FHIR R4 §3.1.0.11): its entries as the requests that they are, read by the same grammar as those on the wire."""

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
    """The Bundle of a batch. Raises Refused."""
    if media_type(headers) not in JSON_TYPES:
        raise Refused(Denial(415, Reason.MALFORMED_REQUEST, "not-supported", "a batch is FHIR JSON: application/fhir+json"))
    try:
        bundle = fhir_json.decode_strictly(body, max(8, limits.depth - MARGIN))
    except MalformedFhir as error:
        raise malformed(f"the body is {error}") from None
    if type(bundle) is not dict or bundle.get("resourceType") != "Bundle":
        raise malformed("the body is no Bundle")
    if bundle.get("type") == "transaction":
        raise Refused(Denial(405, Reason.NOT_SERVED, "not-supported", "`transaction` is not served here; `batch` is"))
    entries = bundle.get("entry", [])
    if bundle.get("type") != "batch" or type(entries) is not list:
        raise malformed("the body is no batch")
    if len(entries) > limits.entries:
        raise Refused(Denial(413, Reason.TOO_LARGE, "too-long", f"more than {limits.entries} entries"))
    return {"entry": entries}


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
