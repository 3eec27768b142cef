"""View × Receipt -> bytes on the wire. There is no other way out, and no way out without a receipt."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

import msgspec

from fhirshield.fhir.json import encode
from fhirshield.fhir.outcome import outcome
from fhirshield.fhir.v3 import NOTICES
from fhirshield.model import Denial, Reason, Receipt, Situation, Tally, View

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
EXPOSED = "ETag, Location, Content-Location, Last-Modified, X-Request-Id"
_ALWAYS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"vary", b"Accept, Authorization, Origin"),
)


def refusal(denial: Denial, lifts: tuple[str, ...] = ()) -> View:
    """A Denial as an OperationOutcome; ``lifts`` are what could lift it."""
    headers = (("Content-Type", "application/fhir+json; charset=utf-8"), *denial.headers)
    body = encode(outcome(denial.code, denial.diagnostics, expression=denial.expression, lifts=lifts))
    return View(denial.status, headers, body, denial.reason, Tally(), denial.rule)


def batch_response(kind: str, views: list[View], decisions: list[str]) -> View:
    """The answers to the entries of a batch or a transaction, in their order (FHIR R4 §3.1.0.11.4)."""
    entries = [_entry(view) for view in views]
    bundle: dict[str, Any] = {"resourceType": "Bundle", "type": kind} | ({"entry": entries} if entries else {})
    tally = Tally(shown=sum(view.tally.shown for view in views), notices=set().union(*(view.tally.notices for view in views)))
    headers = (("Content-Type", "application/fhir+json; charset=utf-8"),)
    return View(200, headers, encode(bundle), Reason.PERMITTED, tally, entries=tuple(decisions))


def _entry(view: View) -> dict[str, Any]:
    headers = {name.lower(): value for name, value in view.headers}
    response: dict[str, Any] = {"status": f"{view.status} {HTTPStatus(view.status).phrase}"}
    for name in ("location", "etag"):
        if name in headers:
            response[name] = headers[name]
    if not view.body:
        return {"response": response}
    if view.status >= 400:
        return {"response": {**response, "outcome": msgspec.Raw(view.body)}}
    return {"resource": msgspec.Raw(view.body), "response": response}


def stripped(view: View, *, whole: bool) -> View:
    """What is left of an answer to writes when what it shows may no longer be shown: that they were carried out.

    ``whole``: of one write; else of a Bundle of entries, whose resources go.
    """
    if whole:
        kept = tuple((name, value) for name, value in view.headers if name in {"Location", "ETag"})
        return View(view.status if view.status != 200 else 204, kept, b"", view.reason, view.tally, view.rule, view.created)
    bundle = msgspec.json.decode(view.body)
    bundle["entry"] = [{"response": entry["response"]} for entry in bundle.get("entry", ())]
    return View(view.status, view.headers, encode(bundle), view.reason, Tally(), entries=view.entries)


def preflight() -> View:
    """The answer to a CORS preflight; the origin's headers are added when it leaves."""
    headers = (
        ("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        ("Access-Control-Allow-Headers", "Authorization, Content-Type, Accept, Prefer, If-Match, Break-Glass-Reason"),
        ("Access-Control-Max-Age", "600"),
    )
    return View(204, headers, b"", Reason.PERMITTED, Tally())


async def respond(send: Send, view: View, receipt: Receipt, situation: Situation, *, head: bool) -> int:
    """Send a view; returns how many bytes of its body were handed over."""
    headers = [
        *_ALWAYS,
        (b"x-request-id", receipt.decision.encode()),
        *((name.lower().encode(), value.encode("latin-1")) for name, value in view.headers),
    ]
    headers += [(b"redisclosure-notice", NOTICES[name].encode()) for name in sorted(view.tally.notices)]
    if view.status != 204:
        headers.append((b"content-length", str(len(view.body)).encode()))
    if situation.origin:
        headers.append((b"access-control-allow-origin", situation.origin.encode()))
        headers.append((b"access-control-expose-headers", EXPOSED.encode()))
    await send({"type": "http.response.start", "status": view.status, "headers": headers})
    body = b"" if head else view.body
    await send({"type": "http.response.body", "body": body})
    return len(body)
