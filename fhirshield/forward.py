"""Plan -> Answer: asks the upstream and accepts only a whole, well-formed FHIR answer of the kind that was asked for.

What the upstream says beyond status, a few headers and one parsed resource ends here; its errors become ours.
"""

from __future__ import annotations

import re
from typing import Any

from fhirshield.errors import MalformedFhir, Unavailable
from fhirshield.fhir import json as fhir_json
from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.fhir.reference_places import extensions
from fhirshield.model import Answer, Denial, Plan, Reason, Refused
from fhirshield.outbound.fhir_server import FhirServer
from fhirshield.outbound.http import Response
from fhirshield.settings import Limits

HEADERS = ("etag", "last-modified")
"""The upstream's headers that may travel on, where nothing is hidden."""

_PLAIN = re.compile(r"[ -~]{1,200}\Z")
_EMPTY = {"resourceType": "Bundle", "type": "searchset"}
_CALLERS_FAULT = {400: "invalid", 409: "conflict", 412: "conflict", 415: "not-supported", 422: "processing", 429: "throttled"}


class Forwarder:
    """Forwards to one upstream. The limits bound the entries of a Bundle and the nesting of an answer."""

    def __init__(self, server: FhirServer, limits: Limits, *, forward_token: bool) -> None:
        self._server = server
        self._limits = limits
        self._forward_token = forward_token

    async def __call__(self, plan: Plan) -> Answer:
        """The parsed answer to a plan. Raises Refused."""
        if plan.permit.nothing:
            return Answer(plan, 200, {}, dict(_EMPTY), careful=False, deep=False)
        credential = plan.permit.situation.credential
        authorization = f"Bearer {credential}" if self._forward_token and credential else None
        try:
            response = await self._server.send(plan.method, plan.segments, plan.query, form=plan.form, authorization=authorization)
        except Unavailable as error:
            if error.slow:
                raise Refused(Denial(504, Reason.UPSTREAM_SLOW, "timeout", "the server did not answer in time")) from None
            raise _failed(Reason.UPSTREAM_FAILED, "the server did not answer") from None
        return self._accept(plan, response)

    def _accept(self, plan: Plan, response: Response) -> Answer:
        if response.status != 200:
            raise Refused(_refusal(plan.permit.interaction, response))
        kind = response.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind not in {"application/fhir+json", "application/json"}:
            raise _failed(Reason.UPSTREAM_MALFORMED, "the server's answer is not FHIR JSON")
        try:
            resource = fhir_json.decode(response.body, self._limits.depth)
        except MalformedFhir:
            raise _failed(Reason.UPSTREAM_MALFORMED, "the server's answer is not FHIR JSON") from None
        if not self._is_what_was_asked(plan.permit.interaction, resource):
            raise _failed(Reason.UPSTREAM_MALFORMED, "the server's answer is not what was asked for")
        headers = {name: value for name in HEADERS if _PLAIN.match(value := response.headers.get(name, ""))}
        careful, deep = extensions(response.body)
        return Answer(plan, 200, headers, resource, careful, deep, self._server.named_in(response.body))

    def _is_what_was_asked(self, interaction: Interaction, resource: Any) -> bool:
        if not isinstance(resource, dict):
            return False
        if interaction.kind in {Kind.READ, Kind.VREAD}:
            return bool(resource.get("resourceType") == interaction.type and resource.get("id") == interaction.id)
        entries = resource.get("entry", [])
        return (
            resource.get("resourceType") == "Bundle"
            and resource.get("type") == "searchset"
            and isinstance(entries, list)
            and len(entries) <= self._limits.entries
            and all(isinstance(entry, dict) for entry in entries)
        )


def _refusal(interaction: Interaction, response: Response) -> Denial:
    """Our words for the upstream's refusal (see the table of refusals in docs/architecture.md)."""
    status = response.status
    if status in {404, 410}:
        if interaction.page is not None:
            return Denial(404, Reason.BAD_PAGE, "not-found", "this page link is not, or no longer, valid for this caller")
        return not_found()
    if status in _CALLERS_FAULT:
        retry = response.headers.get("retry-after", "")
        kept = (("Retry-After", retry),) if re.fullmatch(r"[0-9]{1,6}", retry) else ()
        text = "the server does not accept this request"
        return Denial(status, Reason.UPSTREAM_REFUSED, _CALLERS_FAULT[status], text, kept)
    return Denial(502, Reason.UPSTREAM_FAILED, "transient", "the server could not answer")


def not_found() -> Denial:
    """One answer for what is withheld, absent and deleted."""
    return Denial(404, Reason.NOT_FOUND, "not-found", "no such resource for this caller")


def _failed(reason: Reason, text: str) -> Refused:
    return Refused(Denial(502, reason, "transient", text))
