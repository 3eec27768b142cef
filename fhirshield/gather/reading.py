"""Reading from a FHIR server in order to decide: fresh, every page, in bounds. What cannot be read is a 503, never an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from fhirshield.errors import MalformedFhir, Unavailable
from fhirshield.fhir import json as fhir_json
from fhirshield.fhir.page import link_target
from fhirshield.model import Denial, Permit, Reason, Refused
from fhirshield.outbound.fhir_server import FhirServer
from fhirshield.outbound.http import Response
from fhirshield.settings import Limits

MOST_PAGES = 20
LONGEST = 2000
"""Characters of a query in a URL; a longer one goes by POST ``_search``."""
TOGETHER = 50
"""Ids of one search."""
DEEPEST = 1000
"""Levels of Consents that are read: one that is nested too deeply to be enforced denies its own patient's data alone."""
_FRESH = {"Cache-Control": "no-cache"}
Counts = dict[str, int]
"""What was asked, by type."""
Query = tuple[tuple[str, str], ...]


class Reading:
    """Reads from one server under the shield's credential, or the caller's where that is what the server is shown."""

    def __init__(self, server: FhirServer, limits: Limits, *, forward_token: bool) -> None:
        self.server = server
        self._limits = limits
        self._forward_token = forward_token

    async def ask(self, permit: Permit | None, segments: tuple[str, ...], query: Query, counts: Counts) -> Response:
        """One answer, whatever its status. ``counts`` takes what was read, by type. Raises Refused (503)."""
        credential = permit.situation.credential if permit is not None else None
        authorization = f"Bearer {credential}" if self._forward_token and credential else None
        name = segments[0] if segments else "Bundle"
        counts[name] = counts.get(name, 0) + 1
        form = sum(len(key) + len(value) for key, value in query) > LONGEST
        method, place = ("POST", (*segments, "_search")) if form else ("GET", segments)
        try:
            return await self.server.send(method, place, query, form=form, headers=_FRESH, authorization=authorization)
        except Unavailable:
            raise Refused(away()) from None

    def resource(self, response: Response, depth: int = 0) -> dict[str, Any]:
        """The one resource that an answer is, nested no deeper than settings allow, or than ``depth``. Raises Refused."""
        if response.status != 200:
            raise Refused(away())
        try:
            resource = fhir_json.decode(response.body, depth or self._limits.depth)
        except MalformedFhir:
            raise Refused(away()) from None
        if type(resource) is not dict:
            raise Refused(away())
        return resource

    async def search(self, permit: Permit, name: str, query: Query, counts: Counts) -> list[dict[str, Any]]:
        """All that a search finds, every page of it. Raises Refused."""
        found: list[dict[str, Any]] = []
        async for page in self.pages(permit, name, query, counts, MOST_PAGES):
            found += page
        return found

    async def pages(
        self, permit: Permit | None, name: str, query: Query, counts: Counts, most: int
    ) -> AsyncIterator[list[dict[str, Any]]]:  # fmt: skip
        """What a search finds, page by page. Raises Refused, for more than so many pages too."""
        segments: tuple[str, ...] = (name,)
        for _ in range(most):
            answer = await self.ask(permit, segments, query, counts)
            bundle = self.resource(answer, DEEPEST if name == "Consent" else 0)
            entries = bundle.get("entry", [])
            if bundle.get("resourceType") != "Bundle" or type(entries) is not list:
                raise Refused(away())
            resources = [entry.get("resource") for entry in entries if type(entry) is dict]
            yield [resource for resource in resources if type(resource) is dict]
            url = next_of(bundle)
            if url is None:
                return
            target = link_target(url, self.server.url, name)
            if target is None:
                break
            segments, query = target
        raise Refused(away())


def by_id(ids: Sequence[str]) -> Query:
    """A query for resources of these ids."""
    return (("_id", ",".join(ids)), ("_count", str(len(ids))))


def next_of(bundle: dict[str, Any]) -> Any:
    """The URL of the page after this one, or None."""
    links = bundle.get("link")
    urls = [one.get("url") for one in links if type(one) is dict and one.get("relation") == "next"] if type(links) is list else []
    return urls[0] if urls else None


def away() -> Denial:
    """What is said where a decision cannot be made."""
    text = "what this decision rests on cannot be read from the server at the moment"
    return Denial(503, Reason.FACTS_UNAVAILABLE, "transient", text, (("Retry-After", "5"),))
