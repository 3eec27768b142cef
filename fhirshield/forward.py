"""Plan -> Answer: asks the upstream and accepts only a whole, well-formed FHIR answer of the kind that was asked for.

What the upstream says beyond status, a few headers and one parsed resource ends here; its errors become ours.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Mapping
from typing import Any

from fhirshield.errors import MalformedFhir, Unavailable
from fhirshield.fhir import json as fhir_json
from fhirshield.fhir.definitions import codes_of
from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.fhir.reference_places import extensions
from fhirshield.model import Answer, Denial, Permit, Plan, Reason, Refused, Together
from fhirshield.outbound.fhir_server import FhirServer
from fhirshield.outbound.http import Response
from fhirshield.settings import Limits

HEADERS = ("etag", "last-modified")
"""The upstream's headers that may travel on, where nothing is hidden."""

_ISSUE_TYPES = "http://hl7.org/fhir/ValueSet/issue-type"
_LOCATION = re.compile(r"(?:^|/)([A-Z][A-Za-z]+)/([A-Za-z0-9\-.]{1,256})(?:/_history/([A-Za-z0-9\-.]{1,256}))?\Z")
_ID = re.compile(r"[A-Za-z0-9\-.]{1,256}\Z")
_PLACE = re.compile(r"[A-Z][A-Za-z]+(?:\.[a-z][A-Za-z0-9]*(?:\[[0-9]{1,4}\])?)+\Z")
_PLAIN = re.compile(r"[ -~]{1,200}\Z")
_EMPTY = {"resourceType": "Bundle", "type": "searchset"}
_CALLERS_FAULT = {
    400: "invalid",
    405: "not-supported",
    409: "conflict",
    412: "conflict",
    413: "too-long",
    415: "not-supported",
    422: "processing",
    429: "throttled",
}


class Forwarder:
    """Forwards to one upstream. The limits bound the entries of a Bundle and the nesting of an answer."""

    def __init__(self, server: FhirServer, limits: Limits, *, forward_token: bool) -> None:
        self._server = server
        self._limits = limits
        self._forward_token = forward_token

    async def __call__(self, plan: Plan) -> Answer:
        """The parsed answer to a plan. Raises Refused."""
        if plan.permit.interaction.writes:
            return await self._write(plan)
        if plan.permit.affects:
            return await self._affect(plan)
        if plan.permit.nothing:
            return Answer(plan, 200, {}, dict(_EMPTY), careful=False, deep=False)
        try:
            response = await self._send(plan)
        except Unavailable as error:
            if error.slow:
                raise Refused(Denial(504, Reason.UPSTREAM_SLOW, "timeout", "the server did not answer in time")) from None
            raise _failed(Reason.UPSTREAM_FAILED, "the server did not answer") from None
        return self._accept(plan, response)

    async def _send(self, plan: Plan) -> Response:
        return await self._server.send(
            plan.method, plan.segments, plan.query, form=plan.form, content=plan.body, headers=dict(plan.headers),
            authorization=self._authorization(plan),
        )  # fmt: skip

    def _authorization(self, plan: Plan) -> str | None:
        credential = plan.permit.situation.credential
        return f"Bearer {credential}" if self._forward_token and credential else None

    # --- writes ---------------------------------------------------------------------------------------------------

    async def _write(self, plan: Plan) -> Answer:
        """Carry out a write; whatever leaves it open whether the upstream acted is said to be unknown."""
        response = await _acting(self._send(plan))
        if response.status in {200, 201, 204}:
            return self._written(plan, response)
        if response.status in {409, 412} and await self._is_newer(plan):
            text = "the resource was changed meanwhile: read it again"
            raise Refused(Denial(412, Reason.STALE_VERSION, "conflict", text))
        if response.status >= 500 or response.status < 200:
            raise _unknown(502)
        raise Refused(_refusal(plan.permit.interaction, response, self._issues(plan, response)))

    async def _affect(self, plan: Plan) -> Answer:
        """Invoke an operation that changes what is stored."""
        response = await _acting(self._send(plan))
        if response.status in {200, 201, 202, 204} and not response.body:
            return Answer(plan, 204, {}, None, careful=False, deep=False)
        if response.status == 200:
            try:
                return self._accept(plan, response)
            except Refused:
                raise _unknown(502) from None
        if response.status >= 500 or response.status < 400:
            raise _unknown(502)
        raise Refused(_refusal(plan.permit.interaction, response, (self._issues(plan, response)[0], ())))

    async def _is_newer(self, plan: Plan) -> bool:
        """Whether the version that a write was bound to is no longer the current one, by a fresh read."""
        writing = plan.permit.writing
        if writing is None or writing.creates or plan.method == "POST":
            return False
        try:
            fresh = {"Cache-Control": "no-cache"}
            authorization = self._authorization(plan)
            response = await self._server.send("GET", plan.segments, (), headers=fresh, authorization=authorization)
            resource = fhir_json.decode(response.body, self._limits.depth) if response.status == 200 else {}
        except (Unavailable, MalformedFhir):
            return False
        if response.status in {404, 410}:
            return True
        meta = resource.get("meta") if isinstance(resource, dict) else None
        version = meta.get("versionId") if isinstance(meta, dict) else None
        return isinstance(version, str) and version != writing.version

    def _written(self, plan: Plan, response: Response) -> Answer:
        """What the upstream says that it wrote."""
        try:
            resource = fhir_json.decode(response.body, self._limits.depth) if response.body else None
        except MalformedFhir:
            raise _unknown(502) from None
        return self._made(plan, response.status, response.headers, resource, response.body)

    def _made(self, plan: Plan, status: int, said: Mapping[str, str], resource: Any, body: bytes) -> Answer:
        """One write's outcome. What comes with it and is not the resource is as good as nothing."""
        interaction = plan.permit.interaction
        headers = {name: value for name in HEADERS if _PLAIN.match(value := said.get(name, ""))}
        location = _LOCATION.search(said.get("location", ""))
        identity = interaction.id or (location[2] if location and location[1] == interaction.type else "")
        version = headers.get("etag", "").removeprefix("W/").strip('"') or (location[3] or "" if location else "")
        if not isinstance(resource, dict) or resource.get("resourceType") != interaction.type:
            resource = None
        if resource is not None:
            identity = identity or (resource["id"] if isinstance(resource.get("id"), str) else "")
            if resource.get("id") != identity:
                raise _unknown(502)
            meta = resource.get("meta")
            version = version or (meta.get("versionId", "") if isinstance(meta, dict) else "")
        if not _ID.match(identity) or not isinstance(version, str) or (version and not _ID.match(version)):
            raise _unknown(502)
        careful, deep = extensions(body)
        named = self._server.named_in(body)
        return Answer(plan, status, headers, resource, careful, deep, named, id=identity, version=version)

    async def together(self, asked: Together) -> list[Answer]:
        """Carry out a transaction; the answers to its writes, in their order. Raises Refused."""
        first = asked.plans[0]
        authorization = self._authorization(first)
        sending = self._server.send("POST", (), (), content=asked.body, headers=dict(asked.headers), authorization=authorization)
        response = await _acting(sending)
        if response.status == 200:
            return self._all_written(asked, response)
        if response.status in {409, 412}:
            for plan in asked.plans:
                if await self._is_newer(plan):
                    raise Refused(Denial(412, Reason.STALE_VERSION, "conflict", "a resource was changed meanwhile: read it again"))
        if response.status >= 500 or response.status < 400:
            raise _unknown(502)
        raise Refused(_refusal(first.permit.interaction, response, (self._issues(first, response)[0], ())))

    def _all_written(self, asked: Together, response: Response) -> list[Answer]:
        try:
            bundle = fhir_json.decode(response.body, self._limits.depth)
        except MalformedFhir:
            raise _unknown(502) from None
        entries = bundle.get("entry") if isinstance(bundle, dict) and bundle.get("resourceType") == "Bundle" else None
        if not isinstance(entries, list) or len(entries) != len(asked.plans) or bundle.get("type") != "transaction-response":
            raise _unknown(502)
        answers = []
        for plan, entry in zip(asked.plans, entries, strict=True):
            said = entry.get("response") if isinstance(entry, dict) else None
            status = str(said.get("status", ""))[:3] if isinstance(said, dict) else ""
            if not isinstance(said, dict) or status not in {"200", "201", "204"}:
                raise _unknown(502)
            headers = {name: value for name in ("etag", "location") if isinstance(value := said.get(name), str)}
            answers.append(self._made(plan, int(status), headers, entry.get("resource"), response.body))
        return answers

    def _issues(self, plan: Plan, response: Response) -> tuple[str, tuple[str, ...]]:
        """Of an upstream's OperationOutcome: the first code, and the places that the caller's own body has."""
        try:
            outcome = fhir_json.decode(response.body, self._limits.depth) if response.body else None
        except MalformedFhir:
            return "", ()
        issues = outcome.get("issue") if isinstance(outcome, dict) and outcome.get("resourceType") == "OperationOutcome" else None
        rows = [row for row in issues if isinstance(row, dict)] if isinstance(issues, list) else []
        codes = [row.get("code") for row in rows]
        code = next((c for c in codes if isinstance(c, str) and c in codes_of(_ISSUE_TYPES)), "")
        content = plan.permit.interaction.content
        places = [place for row in rows for place in _strings(row.get("expression"))]
        merged = not plan.permit.overwrites and not (plan.permit.writing and plan.permit.writing.creates)
        own = [p for p in dict.fromkeys(places) if isinstance(content, dict) and stands_in(content, p, missing=not merged)]
        return code, tuple(own[:10])

    # --- reads ----------------------------------------------------------------------------------------------------

    def _accept(self, plan: Plan, response: Response) -> Answer:
        interaction = plan.permit.interaction
        if plan.permit.asynchronous and (response.status == 202 or (interaction.ends and response.status in {200, 204})):
            kept = {
                name: value for name in ("content-location", "retry-after") if _PLAIN.match(value := response.headers.get(name, ""))
            }
            return Answer(plan, 202, kept, None, careful=False, deep=False)
        tells = (
            interaction.operation == "$validate" and response.status in {400, 412, 422} and b'"OperationOutcome"' in response.body
        )
        if response.status != 200 and not tells:
            raise Refused(_refusal(interaction, response))
        kind = response.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind not in {"application/fhir+json", "application/json"}:
            raise _failed(Reason.UPSTREAM_MALFORMED, "the server's answer is not FHIR JSON")
        try:
            resource, text = fhir_json.decoded(response.body, self._limits.depth)
        except MalformedFhir:
            raise _failed(Reason.UPSTREAM_MALFORMED, "the server's answer is not FHIR JSON") from None
        if not self._is_what_was_asked(plan.permit, resource):
            raise _failed(Reason.UPSTREAM_MALFORMED, "the server's answer is not what was asked for")
        headers = {name: value for name in HEADERS if _PLAIN.match(value := response.headers.get(name, ""))}
        careful, deep = extensions(response.body)
        return Answer(plan, 200, headers, resource, careful, deep, self._server.named_in(response.body), text)

    def _is_what_was_asked(self, permit: Permit, resource: Any) -> bool:
        if not isinstance(resource, dict):
            return False
        interaction = permit.interaction
        if interaction.kind is Kind.OPERATION and interaction.operation not in {"$everything", "$match"}:
            return resource.get("resourceType") in permit.output
        if interaction.kind in {Kind.READ, Kind.VREAD}:
            return bool(resource.get("resourceType") == interaction.type and resource.get("id") == interaction.id)
        entries = resource.get("entry", [])
        return (
            resource.get("resourceType") == "Bundle"
            and resource.get("type") == ("history" if interaction.recalls else "searchset")
            and isinstance(entries, list)
            and len(entries) <= self._limits.entries
            and all(isinstance(entry, dict) for entry in entries)
        )


async def _acting(sending: Awaitable[Response]) -> Response:
    """The answer to what may change something; without one it is unknown whether it did. Raises Refused."""
    try:
        return await sending
    except Unavailable as error:
        if not error.sent:
            raise _failed(Reason.UPSTREAM_FAILED, "the server did not answer; nothing was written") from None
        raise _unknown(504 if error.slow else 502) from None


def _refusal(interaction: Interaction, response: Response, issues: tuple[str, tuple[str, ...]] = ("", ())) -> Denial:
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
        code, places = issues if status != 409 else ("conflict", ())  # what is referred to, and by whom, is not said
        return Denial(status, Reason.UPSTREAM_REFUSED, code or _CALLERS_FAULT[status], text, kept, expression=places)
    return Denial(502, Reason.UPSTREAM_FAILED, "transient", "the server could not answer")


def _strings(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def stands_in(content: dict[str, Any], place: str, *, missing: bool) -> bool:
    """Whether a FHIRPath such as ``Patient.name[0].given`` leads to an element of a body, or (``missing``) to where one is not."""
    names = place.split(".")
    if not _PLACE.match(place) or names[0] != content.get("resourceType"):
        return False
    node: Any = content
    for step in names[1:-1]:
        name, _, index = step.partition("[")
        node = node.get(name) if isinstance(node, dict) else None
        if isinstance(node, list):
            number = int(index.rstrip("]") or 0)
            node = node[number] if number < len(node) else None
    last, _, index = names[-1].partition("[")
    if not isinstance(node, dict) or (missing and not index):
        return isinstance(node, dict)
    value = node.get(last)
    return last in node and (not index or (isinstance(value, list) and int(index.rstrip("]")) < len(value)))


def _unknown(status: int) -> Refused:
    text = "it is not known whether the server carried this out; read before trying again"
    return Refused(Denial(status, Reason.OUTCOME_UNKNOWN, "incomplete", text))


def not_found() -> Denial:
    """One answer for what is withheld, absent and deleted."""
    return Denial(404, Reason.NOT_FOUND, "not-found", "no such resource for this caller")


def _failed(reason: Reason, text: str) -> Refused:
    return Refused(Denial(502, reason, "transient", text))
