"""One HTTP request at one upstream's path -> Interaction and Situation."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass, replace
from typing import Any

from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.fhir.operations import JOB
from fhirshield.fhir.page import Page, Parameter
from fhirshield.model import Denial, Habits, Reason, Refused, Situation
from fhirshield.receive import headers as head
from fhirshield.receive.batch import batch_of, name_of, request_of
from fhirshield.receive.content import content_of
from fhirshield.receive.operation import operation_of
from fhirshield.receive.target import interaction_of, parameters_of, segments_of
from fhirshield.ring import Ring
from fhirshield.settings import Limits, Proxies, Upstream

PAGE_PURPOSE = "page links"
"""The purpose under which page links are sealed."""
FORMAT_PARAMETERS = frozenset({"_format", "_pretty"})
_QUERY = re.compile(r"\A[A-Za-z]*\?")
"""What some clients write before the query of ``If-None-Exist``."""
_PLAIN = {Kind.READ, Kind.VREAD, Kind.CAPABILITIES, Kind.SMART_CONFIGURATION}


@dataclass(frozen=True, slots=True)
class Request:
    """What the server hands over: raw bytes, the clock's time, an id for the record."""

    method: str
    path: bytes
    """The raw path, below and including the upstream's own."""
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    address: str
    now: dt.datetime
    decision: str
    certificate: str = ""
    """SHA-256 (base64url) of the certificate that the client showed on this connection."""


class Receiver:
    """Reads requests for one upstream."""

    def __init__(
        self, upstream: Upstream, public_url: str, ring: Ring, limits: Limits | None = None, proxies: Proxies | None = None
    ) -> None:
        self._upstream = upstream
        self._habits = Habits(upstream.delete_if_match, upstream.hidden_narrative == "drop")
        self._limits = limits or Limits()
        self._proxies = proxies or Proxies()
        self._public_url = public_url
        self._read: tuple[Request | None, head.Headers] = (None, {})
        self._base = public_url + upstream.path
        self._bases = tuple(dict.fromkeys((self._base, upstream.url)))
        self._prefix = upstream.path.encode()
        self._ring = ring
        self._id = re.compile(rf"[A-Za-z0-9\-.]{{1,{upstream.id_length}}}\Z")

    def situation(self, request: Request) -> Situation:
        """What is true of this exchange. Raises Refused for headers that cannot be read one way."""
        proxies = self._proxies
        headers = self._headers(request)
        origin = headers.get("origin", "")
        scheme, credential = head.credential(headers)
        address, certificate = request.address, request.certificate
        if proxies.trusted:
            address = head.client_address(headers.get("x-forwarded-for", ""), address, proxies.trusted)
            if head.is_trusted(request.address, proxies.trusted):
                shown = headers.get(proxies.certificate_header, "")
                certificate = head.certificate(shown) if shown else ""  # the connection's is the proxy's own
        return Situation(
            upstream=self._upstream.path,
            base=self._base,
            bases=self._bases,
            now=request.now,
            address=address,
            decision=request.decision,
            credential=credential,
            origin=origin if origin in self._upstream.origins else "",
            scheme=scheme,
            proof=headers.get("dpop", ""),
            certificate=certificate,
            method=request.method,
            url=self._public_url + request.path.decode("latin-1"),
            habits=self._habits,
            emergency=head.emergency(headers),
            country=self._upstream.country,
        )

    def _headers(self, request: Request) -> head.Headers:
        """The headers of a request, read once for both questions about it."""
        known, found = self._read
        if known is not request:
            found = head.read(request.headers, self._proxies.certificate_header)
            self._read = (request, found)
        return found

    def interaction(self, request: Request) -> Interaction:
        """The one FHIR interaction that is asked. Raises Refused."""
        headers = self._headers(request)
        if request.method == "OPTIONS" and "access-control-request-method" in headers:
            return Interaction(Kind.PREFLIGHT)
        segments = segments_of(request.path.removeprefix(self._prefix))
        parameters = parameters_of(request.query)
        if request.method == "POST" and segments and segments[-1] == "_search":
            parameters += self._form(request, headers)
        asked = next((p.value for p in parameters if p.name == "_format"), None)
        interaction = interaction_of(request.method, segments, _without_format(parameters), self._is_id)
        wanted = head.raw_types(headers, asked) if interaction.kind is Kind.READ and interaction.type == "Binary" else ()
        if wanted:
            interaction = replace(interaction, raw=wanted)
        else:
            head.check_accept(headers, asked)
        if request.body and request.method in {"GET", "HEAD", "DELETE"}:
            raise head.malformed(f"{request.method} has a body")
        if interaction.kind in _PLAIN and interaction.parameters:
            raise _unknown(interaction.parameters[0].name)
        if interaction.searches and head.is_lenient(headers):
            interaction = replace(interaction, lenient=True)
        if interaction.kind is Kind.OPERATION:
            ends = request.method == "DELETE"
            interaction = replace(interaction, asynchronous=head.is_asynchronous(headers), ends=ends)
        return self._paged(interaction, request.now)

    def content(self, interaction: Interaction, request: Request) -> Interaction:
        """The same interaction with what a write brings, read once it is known who asks. Raises Refused."""
        headers = self._headers(request)
        if interaction.kind is Kind.BATCH:
            content = batch_of(request.body, headers, self._limits)
            return replace(interaction, kind=Kind(content["type"]), content=content)
        if interaction.kind is Kind.OPERATION:
            return operation_of(interaction, request.body, headers, (self._base, self._upstream.url), self._limits)
        if not interaction.writes:
            return interaction
        if "if-none-match" in headers:
            text = "`If-None-Match` is not served on writes"
            raise Refused(Denial(400, Reason.NOT_SERVED, "not-supported", text))
        interaction = replace(interaction, condition=self._condition(interaction, headers), parameters=())
        content = None
        if interaction.kind is not Kind.DELETE:
            bases = (self._base, self._upstream.url)
            content = content_of(interaction, request.body, headers, bases, self._limits)
        return replace(interaction, content=content, if_match=head.if_match(headers), answer=head.preferred_return(headers))

    def entry(self, entry: Any, batch: Request, decision: str) -> Interaction:
        """What an entry of a batch or a transaction asks, as the request that it is. Raises Refused."""
        method, url, headers, body = request_of(entry)
        path, _, query = url.partition("?")
        target = self._prefix + b"/" + path.encode("ascii")
        asked = replace(
            batch, method=method, path=target, query=query.encode("ascii"), headers=headers, body=body, decision=decision
        )
        return replace(self.content(self.interaction(asked), asked), name=name_of(entry))

    def _condition(self, interaction: Interaction, headers: head.Headers) -> tuple[Parameter, ...]:
        """What a conditional write searches by: for a create in a header, else in the URL, in place of the id. Raises Refused."""
        creates = interaction.kind is Kind.CREATE
        asked = headers.get("if-none-exist", "")
        if creates and not interaction.parameters:
            found = tuple(parameters_of(_QUERY.sub("", asked).encode("latin-1")))
            if asked and not found:
                raise head.malformed("`If-None-Exist` takes search parameters")
            return found
        if asked or creates or bool(interaction.id) is bool(interaction.parameters):
            raise head.malformed("a write names a resource by its id, or by search parameters, and not by both")
        return interaction.parameters

    def _form(self, request: Request, headers: head.Headers) -> list[Parameter]:
        if request.body and headers.get("content-type", "").split(";")[0].strip().lower() != head.FORM:
            text = f"POST `_search` takes {head.FORM}"
            raise Refused(Denial(415, Reason.MALFORMED_REQUEST, "not-supported", text))
        return parameters_of(request.body)

    def _is_id(self, text: str) -> bool:
        return self._id.match(text) is not None and text.strip(".") != ""

    def _paged(self, interaction: Interaction, now: dt.datetime) -> Interaction:
        tokens = [p.value for p in interaction.parameters if p.name == "_page"]
        if not tokens and interaction.operation == JOB:
            raise Refused(bad_page())
        if not tokens:
            return interaction
        paged = interaction.recalls or interaction.kind in {Kind.SEARCH_TYPE, Kind.OPERATION}
        if not paged or len(interaction.parameters) > 1 or interaction.by_post:
            raise head.malformed("`_page` stands alone, where the first page was asked")
        content = self._ring.open(PAGE_PURPOSE, tokens[0])
        page = Page.load(content) if content is not None else None
        if page is None or page.place != "/".join(interaction.place) or page.expires <= now.timestamp():
            raise Refused(bad_page())
        if page.place == JOB:
            asked = replace(interaction, type=page.type, id=page.id, operation=page.operation)
            return replace(asked, page=page, parameters=page.parameters, asynchronous=True)
        kind = Kind.PAGE if interaction.kind is Kind.SEARCH_TYPE else interaction.kind
        return replace(interaction, kind=kind, page=page, parameters=page.parameters)


def bad_page() -> Denial:
    """One answer for a page link that is broken, expired, or somebody else's."""
    return Denial(404, Reason.BAD_PAGE, "not-found", "this page link is not, or no longer, valid for this caller")


def _without_format(parameters: list[Parameter]) -> list[Parameter]:
    return [p for p in parameters if p.name not in FORMAT_PARAMETERS]


def _unknown(name: str) -> Refused:
    return Refused(Denial(400, Reason.UNKNOWN_PARAMETER, "not-supported", f"parameter `{name}` is not served here"))
