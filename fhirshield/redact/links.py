"""URLs that leave: ``fullUrl``, ``Content-Location``, page links. All are made here from parsed parts; none is passed on.

``next`` and ``previous`` are sealed tokens, bound to who asked, with what scopes, under which rules; what they lead to at
the upstream is inside, where only the shield can read it.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, urlencode

from fhirshield.fhir.operations import JOB
from fhirshield.fhir.page import Page, Target, job_target, link_target
from fhirshield.fhir.reference import rebased
from fhirshield.model import Permit
from fhirshield.ring import Ring

Query = tuple[tuple[str, str], ...]
_ID = re.compile(r"[A-Za-z0-9\-.]{1,256}\Z")


class Linker:
    """Makes URLs for one shield. ``lifetime`` of page links in seconds."""

    def __init__(self, ring: Ring, lifetime: float) -> None:
        self._ring = ring
        self._lifetime = lifetime

    def location(self, permit: Permit, resource: dict[str, Any]) -> str:
        """Where a resource that was read is to be found."""
        return f"{permit.situation.base}/{resource['resourceType']}/{resource['id']}"

    def created(self, permit: Permit, identity: str, version: str) -> str:
        """Where a resource that was created is to be found."""
        url = f"{permit.situation.base}/{permit.interaction.type}/{identity}"
        return f"{url}/_history/{version}" if version else url

    def full_url(self, permit: Permit, resource: dict[str, Any]) -> str:
        """``fullUrl`` of an entry; empty for a resource without a usable id."""
        identity = resource.get("id")
        if not isinstance(identity, str) or not _ID.match(identity):
            return ""
        return f"{permit.situation.base}/{resource['resourceType']}/{identity}"

    def ours(self, permit: Permit, content: bytes) -> bytes:
        """A resource's text with absolute URLs of the upstream as URLs of ours, whatever follows the base."""
        for url in permit.situation.bases:
            content = rebased(content, url, permit.situation.base)
        return content

    def links(self, permit: Permit, upstream: Any) -> list[dict[str, str]]:
        """``self`` as the search was understood, ``next`` and ``previous`` where the upstream has them."""
        found = [self.own(permit)]
        for link in upstream if isinstance(upstream, list) else ():
            relation = link.get("relation") if isinstance(link, dict) else None
            if relation in ("next", "previous", "prev"):
                target = self.target(permit, link.get("url"))
                if target is not None:
                    found.append(self.page(permit, "next" if relation == "next" else "previous", *target))
        return found

    def own(self, permit: Permit) -> dict[str, str]:
        """``self``."""
        return {"relation": "self", "url": self._self(permit)}

    def echoed(self, permit: Permit, upstream: Any) -> frozenset[str] | None:
        """The names of the parameters that an upstream says it understood (FHIR R4 §3.1.1.1.1); None where it does not say."""
        for link in upstream if isinstance(upstream, list) else ():
            if isinstance(link, dict) and link.get("relation") == "self":
                target = self.target(permit, link.get("url"))
                return frozenset(name.partition(":")[0] for name, _ in target[1]) if target and target[0] else None
        return None

    def next_of(self, permit: Permit, upstream: Any) -> Target | None:
        """Where the upstream's next page is."""
        for link in upstream if isinstance(upstream, list) else ():
            if isinstance(link, dict) and link.get("relation") == "next":
                return self.target(permit, link.get("url"))
        return None

    def target(self, permit: Permit, url: Any) -> Target | None:
        """A page link of the upstream's, taken apart; None where it does not lead to the type that was searched."""
        place = "/".join(permit.interaction.place)
        found = (link_target(url, base, place) for base in permit.situation.bases)
        return next((target for target in found if target is not None), None)

    def page(
        self,
        permit: Permit,
        relation: str,
        segments: tuple[str, ...],
        query: Query,
        *,
        skip: int = 0,
        size: int = 0,
        form: bool = False,
    ) -> dict[str, str]:
        """A link to a page, sealed and bound to this caller."""
        interaction, situation = permit.interaction, permit.situation
        page = Page(
            type=interaction.type,
            place="/".join(interaction.place),
            parameters=interaction.parameters,
            segments=segments,
            query=query,
            binding=permit.binding,
            expires=situation.now.timestamp() + self._lifetime,
            skip=skip,
            size=size,
            form=form,
        )
        url = f"{situation.base}/{page.place}?_page={self._ring.seal('page links', page.dump())}"
        return {"relation": relation, "url": url}

    def job(self, permit: Permit, upstream: Any) -> str:
        """Where a job of the upstream's is asked about, sealed and bound to its owner; empty where it is not one below its base."""
        interaction, situation = permit.interaction, permit.situation
        found = (job_target(upstream, base) for base in situation.bases)
        target = next((one for one in found if one is not None), None)
        if target is None:
            return ""
        page = Page(
            type=interaction.type, parameters=interaction.parameters, segments=target[0], query=target[1], binding=permit.binding,
            expires=situation.now.timestamp() + self._lifetime, place=JOB, id=interaction.id, operation=interaction.operation,
        )  # fmt: skip
        return f"{situation.base}/{JOB}?_page={self._ring.seal('page links', page.dump())}"

    def _self(self, permit: Permit) -> str:
        interaction = permit.interaction
        pairs = [(f"{p.name}:{p.modifier}" if p.modifier else p.name, p.value) for p in interaction.parameters]
        query = urlencode(pairs, quote_via=quote, safe="")
        return "/".join((permit.situation.base, *interaction.place)) + (f"?{query}" if query else "")
