"""URLs that leave: ``fullUrl``, ``Content-Location``, page links. All are made here from parsed parts; none is passed on.

``next`` and ``previous`` are sealed tokens, bound to who asked, with what scopes, under which rules; what they lead to at
the upstream is inside, where only the shield can read it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from fhirshield.fhir.page import Page, link_target
from fhirshield.model import Permit
from fhirshield.ring import Ring


@lru_cache(maxsize=64)
def _pattern(url: str) -> re.Pattern[bytes]:
    """A base URL in text: scheme and host in any case, the default port said or not, and no longer path."""
    parts = urlsplit(url)
    port = {"http": 80, "https": 443}[parts.scheme] if parts.port is None else parts.port
    said = rf"(?::{port})?" if port in {80, 443} else f":{port}"
    host = re.escape(parts.hostname or "")
    host = rf"\[{host}\]" if ":" in (parts.hostname or "") else host
    text = rf"(?i:{parts.scheme}://{host}){said}{re.escape(parts.path)}(?![A-Za-z0-9._~%-])"
    return re.compile(text.encode())


_ID = re.compile(r"[A-Za-z0-9\-.]{1,256}\Z")


class Linker:
    """Makes URLs for one shield. ``lifetime`` of page links in seconds."""

    def __init__(self, ring: Ring, lifetime: float) -> None:
        self._ring = ring
        self._lifetime = lifetime

    def location(self, permit: Permit, resource: dict[str, Any]) -> str:
        """Where a resource that was read is to be found."""
        return f"{permit.situation.base}/{resource['resourceType']}/{resource['id']}"

    def full_url(self, permit: Permit, resource: dict[str, Any]) -> str:
        """``fullUrl`` of an entry; empty for a resource without a usable id."""
        identity = resource.get("id")
        if not isinstance(identity, str) or not _ID.match(identity):
            return ""
        return f"{permit.situation.base}/{resource['resourceType']}/{identity}"

    def ours(self, permit: Permit, content: bytes) -> bytes:
        """A resource's text with absolute URLs of the upstream as URLs of ours, whatever follows the base."""
        base = permit.situation.base.encode()
        for url in permit.situation.bases:
            if url != permit.situation.base:
                content = _pattern(url).sub(lambda _: base, content)
        return content

    def links(self, permit: Permit, upstream: Any) -> list[dict[str, str]]:
        """``self`` as the search was understood, ``next`` and ``previous`` where the upstream has them."""
        found = [{"relation": "self", "url": self._self(permit)}]
        if permit.rejudge is not None:
            return found
        for link in upstream if isinstance(upstream, list) else ():
            relation = link.get("relation") if isinstance(link, dict) else None
            if relation in ("next", "previous", "prev"):
                url = self._page(permit, link.get("url"))
                if url:
                    found.append({"relation": "next" if relation == "next" else "previous", "url": url})
        return found

    def _self(self, permit: Permit) -> str:
        interaction = permit.interaction
        pairs = [(f"{p.name}:{p.modifier}" if p.modifier else p.name, p.value) for p in interaction.parameters]
        query = urlencode(pairs, quote_via=quote, safe="")
        return f"{permit.situation.base}/{interaction.type}" + (f"?{query}" if query else "")

    def _page(self, permit: Permit, url: Any) -> str:
        interaction, situation = permit.interaction, permit.situation
        for base in situation.bases:
            target = link_target(url, base, interaction.type)
            if target is not None:
                break
        else:
            return ""
        page = Page(
            type=interaction.type,
            parameters=interaction.parameters,
            segments=target[0],
            query=target[1],
            binding=permit.binding,
            expires=situation.now.timestamp() + self._lifetime,
        )
        return f"{situation.base}/{interaction.type}?_page={self._ring.seal('page links', page.dump())}"
