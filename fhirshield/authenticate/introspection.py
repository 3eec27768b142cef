"""What an authorization server says of a token right now: for opaque tokens all there is, for JWTs whether they are revoked.

Answers are kept, sealed, for a few seconds in the shared state, never past ``exp`` and never without it. A shared state that
is away means that the server is asked each time; a server that is away means 503.
"""

from __future__ import annotations

import hashlib
from typing import Any

from fhirshield.errors import Unavailable
from fhirshield.fhir import json as strict_json
from fhirshield.outbound.introspector import Introspector
from fhirshield.ring import Ring
from fhirshield.state import ExpiringMap

PURPOSE = "introspection answers"


class Introspection:
    """The introspection of one issuer. ``keep`` in seconds; 0 keeps nothing."""

    def __init__(self, introspector: Introspector, state: ExpiringMap, ring: Ring, keep: float) -> None:
        self._introspector = introspector
        self._state = state
        self._ring = ring
        self.keep = keep

    async def claims(self, token: str, now: float) -> dict[str, Any] | None:
        """The claims of an active token, None for any other. Raises Unavailable."""
        key = "introspection:" + hashlib.blake2b(token.encode(), key=self._ring.key(PURPOSE), digest_size=32).hexdigest()
        known = await self._known(key)
        if known is None:
            known = await self._introspector.ask(token)
            await self._remember(key, known, now)
        return known if known["active"] is True else None

    async def _known(self, key: str) -> dict[str, Any] | None:
        if not self.keep:
            return None
        try:
            sealed = await self._state.get(key)
        except Unavailable:
            return None
        content = self._ring.open(PURPOSE, sealed.decode("ascii", "replace")) if sealed else None
        found = strict_json.decode(content) if content else None
        return found if isinstance(found, dict) else None

    async def _remember(self, key: str, answer: dict[str, Any], now: float) -> None:
        expires = answer.get("exp")
        if not self.keep or isinstance(expires, bool) or not isinstance(expires, int):
            return
        seconds = min(self.keep, expires - now)
        if seconds <= 0:
            return
        try:
            await self._state.put(key, self._ring.seal(PURPOSE, strict_json.encode(answer)).encode(), seconds)
        except Unavailable:
            return
