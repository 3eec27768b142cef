"""An issuer's signing keys: cached, fetched by one request at a time, refetched for an unknown ``kid`` after a cooldown.

Keys are taken one by one: a weak, private, symmetric or malformed key is skipped and the rest serve. When the issuer is
away, keys that were good stay good for a stale grace; with none at all the answer is Unavailable, never "anyone".
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import hashlib
import time
import warnings
from collections.abc import Callable
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey, import_key

from fhirshield.errors import Unavailable
from fhirshield.outbound.issuer import KeySource
from fhirshield.state import ExpiringMap

TTL = 300.0
"""Seconds for which fetched keys are fresh."""
COOLDOWN = 10.0
"""Seconds between fetches for a ``kid`` that is not known."""
STALE_GRACE = 3600.0
"""Seconds for which keys serve beyond their TTL while the issuer is away."""
MOST_HINTS = 1000
_FOUND, _MISSING = b"found", b"missing"
CURVES = {"P-256", "P-384", "P-521"}
RSA_BITS = range(2048, 8193)

Key = RSAKey | ECKey


class Keys:
    """The keys of one issuer."""

    def __init__(
        self, source: KeySource, clock: Callable[[], float] = time.monotonic, *, issuer: str = "", hints: ExpiringMap | None = None
    ) -> None:
        self._source = source
        self._issuer = issuer
        self._hints = hints
        """What replicas tell each other of an issuer's key ids: that one was found, or was not. Never keys."""
        self._followed: set[str] = set()
        """Hints that were followed."""
        self._clock = clock
        self._keys: list[tuple[str, Key]] = []
        self._fetched = float("-inf")
        self._tried = float("-inf")
        self._lock = asyncio.Lock()
        self.skipped: list[str] = []
        """Why keys of the last set were skipped, for the log."""

    async def candidates(self, kid: str | None) -> list[Key]:
        """The keys that may have signed a token with this ``kid``. Raises Unavailable when there are none to ask."""
        if self._clock() - self._fetched > TTL:
            await self._refresh(TTL)
        found = self._select(kid)
        if not found and kid:
            found = await self._seek(kid)
        return found

    async def _seek(self, kid: str) -> list[Key]:
        """Look for an unknown ``kid`` at the issuer: after a cooldown, or at once where another replica has found it.

        Where another has just looked in vain, the issuer is spared.
        """
        name = hashlib.sha256(f"{self._issuer}\n{kid}".encode()).hexdigest()
        hint = await self._hint(name)
        if hint == _FOUND and name not in self._followed:
            if len(self._followed) >= MOST_HINTS:
                self._followed.clear()
            self._followed.add(name)
            await self._refresh(0.0)
        elif hint != _MISSING and self._clock() - self._tried > COOLDOWN:
            await self._refresh(COOLDOWN)
            await self._tell(name, _FOUND if self._select(kid) else _MISSING)
        return self._select(kid)

    async def _hint(self, name: str) -> bytes | None:
        if self._hints is None:
            return None
        try:
            return await self._hints.get(f"jwks:{name}")
        except Unavailable:
            return None

    async def _tell(self, name: str, what: bytes) -> None:
        if self._hints is not None:
            with contextlib.suppress(Unavailable):
                await self._hints.put(f"jwks:{name}", what, TTL if what == _FOUND else COOLDOWN)

    def _select(self, kid: str | None) -> list[Key]:
        return [key for name, key in self._keys if kid is None or not name or name == kid]

    async def _refresh(self, older: float) -> None:
        """Fetch once for all who wait, unless a try within ``older`` (and the cooldown) has been made already."""
        async with self._lock:
            now = self._clock()
            if older and now - self._tried <= min(older, COOLDOWN):
                self._require(now)
                return
            self._tried = now
            try:
                self._take(await self._source.fetch())
                self._fetched = self._clock()
            except Unavailable:
                self._require(now)

    def _require(self, now: float) -> None:
        if now - self._fetched > TTL + STALE_GRACE:
            raise Unavailable("the issuer's keys are not to be had")

    def _take(self, keys: list[Any]) -> None:
        self._keys, self.skipped = [], []
        for index, raw in enumerate(keys[:100]):
            try:
                self._keys.append(usable(raw))
            except ValueError as error:
                self.skipped.append(f"key {index}: {error}")


def usable(raw: Any) -> tuple[str, Key]:
    """A public signing key of sufficient strength, with its ``kid``. Raises ValueError with the reason."""
    if not isinstance(raw, dict):
        raise ValueError("not an object")
    if raw.get("kty") not in ("RSA", "EC"):
        raise ValueError("not RSA or EC")
    if "d" in raw or "k" in raw:
        raise ValueError("holds a private key")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            key = import_key(raw)
    except (JoseError, binascii.Error, ValueError, KeyError, TypeError, Warning) as error:
        raise ValueError(f"malformed: {type(error).__name__}") from None
    if raw.get("use", "sig") != "sig":
        raise ValueError("not for signatures")
    if isinstance(key, RSAKey):
        if key.public_key.key_size not in RSA_BITS or key.public_key.public_numbers().e > 1 << 32:
            raise ValueError("RSA key too weak or too large")
    elif not isinstance(key, ECKey) or key.curve_name not in CURVES:
        raise ValueError("curve not accepted")
    kid = raw.get("kid")
    return (kid if isinstance(kid, str) else ""), key
