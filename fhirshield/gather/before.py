"""What a write would change, and what it names: read from the upstream as it is now.

One reference of a type is a read; several are one search by ``_id``, every page of it. Each is judged by ``authorize``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from fhirshield.fhir.history import Version, versions_of
from fhirshield.fhir.page import link_target
from fhirshield.fhir.reference import Literal
from fhirshield.fhir.reference_places import extensions
from fhirshield.gather.about import AboutAnswer
from fhirshield.gather.reading import MOST_PAGES, TOGETHER, Reading, away, by_id, next_of
from fhirshield.model import Denial, Permit, Reason, Refused, Stored
from fhirshield.outbound.http import Response

MOST_REFERENCES = 500
"""What one write may add references to."""
AT_ONCE = 100
"""Versions of one page of a history."""


class Gatherer:
    """Reads from one upstream; what is read is looked at by ``about``, so that it can be judged."""

    def __init__(self, reading: Reading, about: AboutAnswer) -> None:
        self._reading = reading
        self.about = about

    async def bare(self, permit: Permit, name: Literal, counts: dict[str, int]) -> Any:
        """A resource, of which nothing else is asked yet; None where it is absent. Raises Refused (503)."""
        response = await self._reading.ask(permit, (name.type, name.id), (), counts)
        if response.status in {404, 410}:
            return None
        resource = self._reading.resource(response)
        if resource.get("resourceType") != name.type or resource.get("id") != name.id:
            raise Refused(away())
        return resource

    async def stored(self, permit: Permit, counts: dict[str, int]) -> Stored:
        """What stands where a write would go. ``counts`` takes what was read, by type. Raises Refused (503)."""
        interaction = permit.interaction
        response = await self._reading.ask(permit, (interaction.type, interaction.id), (), counts)
        if response.status in {404, 410}:
            return Stored(None)
        resource = self._reading.resource(response)
        if resource.get("resourceType") != interaction.type or resource.get("id") != interaction.id:
            raise Refused(away())
        version = version_of(resource, response)
        if not version:
            raise Refused(Denial(502, Reason.UPSTREAM_MALFORMED, "transient", "the server names no version to insist on"))
        await self.about(permit, [resource], counts)
        careful, deep = extensions(response.body)
        return Stored(resource, version, careful, deep, self._reading.server.named_in(response.body))

    async def versions(self, permit: Permit, name: Literal, counts: dict[str, int]) -> list[Version]:
        """All versions of a resource as the server has them now, the newest first; too many are refused. Raises Refused."""
        place: tuple[str, ...] = (name.type, name.id, "_history")
        segments = place
        query: tuple[tuple[str, str], ...] = (("_count", str(AT_ONCE)),)
        found: list[Version] = []
        for _ in range(MOST_PAGES):
            response = await self._reading.ask(permit, segments, query, counts)
            if response.status in {404, 410} and not found:
                return []
            bundle = self._reading.resource(response)
            if bundle.get("resourceType") != "Bundle" or bundle.get("type") != "history":
                raise Refused(away())
            found += [version for version in versions_of(bundle.get("entry")) if version.name == name]
            url = next_of(bundle)
            if url is None:
                await self.about(permit, [version.resource for version in found], counts)
                return found
            target = link_target(url, self._reading.server.url, "/".join(place))
            if target is None:
                raise Refused(away())
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
                response = await self._reading.ask(permit, (name, ids[0]), (), counts)
                resources = [] if response.status in {404, 410} else [self._reading.resource(response)]
            else:
                resources = [
                    r
                    for i in range(0, len(ids), TOGETHER)
                    for r in await self._reading.search(permit, name, by_id(ids[i : i + TOGETHER]), counts)
                ]
            for resource in resources:
                identity = resource.get("id")
                if resource.get("resourceType") == name and identity in ids:
                    found[Literal(name, identity)] = resource
        await self.about(permit, found.values(), counts)
        return found

    async def referring(self, permit: Permit, name: Literal, counts: dict[str, int]) -> list[dict[str, Any]]:
        """The documents that refer to a Binary by its URL; none where there are many, or the server cannot tell. Raises Refused."""
        urls = (str(name), *(f"{base}/{name}" for base in permit.situation.bases))
        query = (("location", ",".join(urls)), ("_count", str(TOGETHER)))
        response = await self._reading.ask(permit, ("DocumentReference",), query, counts)
        if response.status in {400, 404, 422, 501}:
            return []
        bundle = self._reading.resource(response)
        entries = bundle.get("entry", [])
        if bundle.get("resourceType") != "Bundle" or type(entries) is not list:
            raise Refused(away())
        if next_of(bundle) is not None:
            return []
        resources = [entry.get("resource") for entry in entries if type(entry) is dict]
        found = [one for one in resources if type(one) is dict and one.get("resourceType") == "DocumentReference"]
        named = [one for one in found if isinstance(one.get("id"), str)]
        await self.about(permit, named, counts)
        return named


def version_of(resource: dict[str, Any], response: Response) -> str:
    """The version that a server says a resource has: ``meta.versionId``, else its ETag."""
    meta = resource.get("meta")
    said = meta.get("versionId") if type(meta) is dict else None
    if isinstance(said, str):
        return said
    return response.headers.get("etag", "").removeprefix("W/").strip('"')
