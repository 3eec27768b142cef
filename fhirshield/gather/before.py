"""What a write would change, and what it names: read from the upstream as it is now.

One reference of a type is a read; several are one search by ``_id``, every page of it. Each is judged by ``authorize``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from fhirshield.errors import MalformedFhir, Unavailable
from fhirshield.fhir import json as fhir_json
from fhirshield.fhir.history import Version, versions_of
from fhirshield.fhir.page import link_target
from fhirshield.fhir.reference import Literal
from fhirshield.fhir.reference_places import extensions
from fhirshield.model import Denial, Permit, Reason, Refused, Stored
from fhirshield.outbound.fhir_server import FhirServer
from fhirshield.outbound.http import Response
from fhirshield.settings import Limits

TOGETHER = 50
"""Ids of one search."""
MOST_REFERENCES = 500
"""What one write may add references to."""
MOST_PAGES = 20
AT_ONCE = 100
"""Versions of one page of a history."""
_FRESH = {"Cache-Control": "no-cache"}


class Gatherer:
    """Reads from one upstream under the shield's credential, or the caller's where that is what the upstream is shown."""

    def __init__(self, server: FhirServer, limits: Limits, *, forward_token: bool) -> None:
        self._server = server
        self._limits = limits
        self._forward_token = forward_token

    async def stored(self, permit: Permit, counts: dict[str, int]) -> Stored:
        """What stands where a write would go. ``counts`` takes what was read, by type. Raises Refused (503)."""
        interaction = permit.interaction
        response = await self._ask(permit, (interaction.type, interaction.id), (), counts)
        if response.status in {404, 410}:
            return Stored(None)
        resource = self._resource(response)
        if resource.get("resourceType") != interaction.type or resource.get("id") != interaction.id:
            raise Refused(_away())
        version = version_of(resource, response)
        if not version:
            raise Refused(Denial(502, Reason.UPSTREAM_MALFORMED, "transient", "the server names no version to insist on"))
        careful, deep = extensions(response.body)
        return Stored(resource, version, careful, deep, self._server.named_in(response.body))

    async def versions(self, permit: Permit, name: Literal, counts: dict[str, int]) -> list[Version]:
        """All versions of a resource as the server has them now, the newest first; too many are refused. Raises Refused."""
        place: tuple[str, ...] = (name.type, name.id, "_history")
        segments = place
        query: tuple[tuple[str, str], ...] = (("_count", str(AT_ONCE)),)
        found: list[Version] = []
        for _ in range(MOST_PAGES):
            response = await self._ask(permit, segments, query, counts)
            if response.status in {404, 410} and not found:
                return []
            bundle = self._resource(response)
            if bundle.get("resourceType") != "Bundle" or bundle.get("type") != "history":
                raise Refused(_away())
            found += [version for version in versions_of(bundle.get("entry")) if version.name == name]
            url = _next(bundle)
            if url is None:
                return found
            target = link_target(url, self._server.url, "/".join(place))
            if target is None:
                raise Refused(_away())
            segments, query = target
        text = f"more versions of a {name.type} than can be judged for this caller"
        raise Refused(Denial(403, Reason.NOT_SERVED, "too-costly", text))

    async def named(self, permit: Permit, wanted: Iterable[Literal], counts: dict[str, int]) -> Mapping[Literal, Any]:
        """The resources of these names; what is not there is left out. Raises Refused."""
        by_type: dict[str, list[str]] = defaultdict(list)
        for number, literal in enumerate(wanted):
            if number >= MOST_REFERENCES:
                text = f"the body refers to more than {MOST_REFERENCES} resources"
                raise Refused(Denial(413, Reason.TOO_LARGE, "too-long", text))
            by_type[literal.type].append(literal.id)
        found: dict[Literal, Any] = {}
        for name, ids in by_type.items():
            if len(ids) == 1:
                response = await self._ask(permit, (name, ids[0]), (), counts)
                resources = [] if response.status in {404, 410} else [self._resource(response)]
            else:
                resources = [
                    r for i in range(0, len(ids), TOGETHER) for r in await self._search(permit, name, ids[i : i + TOGETHER], counts)
                ]
            for resource in resources:
                identity = resource.get("id")
                if resource.get("resourceType") == name and identity in ids:
                    found[Literal(name, identity)] = resource
        return found

    async def referring(self, permit: Permit, name: Literal, counts: dict[str, int]) -> list[dict[str, Any]]:
        """The documents that refer to a Binary by its URL; none where there are many, or the server cannot tell. Raises Refused."""
        urls = (str(name), *(f"{base}/{name}" for base in permit.situation.bases))
        query = (("location", ",".join(urls)), ("_count", str(TOGETHER)))
        response = await self._ask(permit, ("DocumentReference",), query, counts)
        if response.status in {400, 404, 422, 501}:
            return []
        bundle = self._resource(response)
        entries = bundle.get("entry", [])
        if bundle.get("resourceType") != "Bundle" or type(entries) is not list:
            raise Refused(_away())
        if _next(bundle) is not None:
            return []
        resources = [entry.get("resource") for entry in entries if type(entry) is dict]
        found = [one for one in resources if type(one) is dict and one.get("resourceType") == "DocumentReference"]
        return [one for one in found if isinstance(one.get("id"), str)]

    async def _search(self, permit: Permit, name: str, ids: list[str], counts: dict[str, int]) -> list[dict[str, Any]]:
        segments: tuple[str, ...] = (name,)
        query: tuple[tuple[str, str], ...] = (("_id", ",".join(ids)), ("_count", str(len(ids))))
        found: list[dict[str, Any]] = []
        for _ in range(MOST_PAGES):
            bundle = self._resource(await self._ask(permit, segments, query, counts))
            entries = bundle.get("entry", [])
            if bundle.get("resourceType") != "Bundle" or type(entries) is not list:
                raise Refused(_away())
            resources = [entry.get("resource") for entry in entries if type(entry) is dict]
            found += [resource for resource in resources if type(resource) is dict]
            url = _next(bundle)
            if url is None:
                return found
            target = link_target(url, self._server.url, name)
            if target is None:
                break
            segments, query = target
        raise Refused(_away())

    async def _ask(
        self, permit: Permit, segments: tuple[str, ...], query: tuple[tuple[str, str], ...], counts: dict[str, int]
    ) -> Response:
        credential = permit.situation.credential
        authorization = f"Bearer {credential}" if self._forward_token and credential else None
        name = segments[0] if segments else "Bundle"
        counts[name] = counts.get(name, 0) + 1
        try:
            return await self._server.send("GET", segments, query, headers=_FRESH, authorization=authorization)
        except Unavailable:
            raise Refused(_away()) from None

    def _resource(self, response: Response) -> dict[str, Any]:
        if response.status != 200:
            raise Refused(_away())
        try:
            resource = fhir_json.decode(response.body, self._limits.depth)
        except MalformedFhir:
            raise Refused(_away()) from None
        if type(resource) is not dict:
            raise Refused(_away())
        return resource


def _next(bundle: dict[str, Any]) -> Any:
    """The URL of the page after this one, or None."""
    links = bundle.get("link")
    urls = [one.get("url") for one in links if type(one) is dict and one.get("relation") == "next"] if type(links) is list else []
    return urls[0] if urls else None


def version_of(resource: dict[str, Any], response: Response) -> str:
    """The version that a server says a resource has: ``meta.versionId``, else its ETag."""
    meta = resource.get("meta")
    said = meta.get("versionId") if type(meta) is dict else None
    if isinstance(said, str):
        return said
    return response.headers.get("etag", "").removeprefix("W/").strip('"')


def _away() -> Denial:
    text = "what this decision rests on cannot be read from the server at the moment"
    return Denial(503, Reason.FACTS_UNAVAILABLE, "transient", text, (("Retry-After", "5"),))
