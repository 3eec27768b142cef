"""Verify a JWT access token (RFC 7519, RFC 9068, RFC 8725) and remember the result for at most a minute.

Algorithms come from the settings, keys from the issuer's own JWKS; ``jku``, ``x5u``, ``jwk`` are never read, ``crit`` and
``b64`` are refused. Nothing of the token is trusted before its signature, but ``iss`` and ``kid``, which only select.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from joserfc import jws
from joserfc.errors import JoseError

from fhirshield.authenticate import binding
from fhirshield.authenticate.compact import Strict, bad, peek, unique
from fhirshield.authenticate.introspection import Introspection
from fhirshield.authenticate.keys import Keys
from fhirshield.authenticate.profiles import ClaimError, principal_of
from fhirshield.errors import Unavailable
from fhirshield.model import Denial, Principal, Reason, Refused, Situation
from fhirshield.settings import Issuer, Upstream
from fhirshield.state import ExpiringMap
from fhirshield.state.memory import MemoryMap

REMEMBER = 60.0
"""Seconds for which a verified token is not verified again; its expiry is checked each time."""
CACHE = 10_000
FARTHEST = 366 * 86400.0
"""Seconds from now beyond which no access token's ``exp`` lies in earnest."""
SKEW = 10.0
"""Seconds by which an issuer's clock may be ahead (``nbf``, ``iat``)."""
_SHAPE = re.compile(r"[A-Za-z0-9_-]{4,4096}\.[A-Za-z0-9_-]{4,16384}\.[A-Za-z0-9_-]{4,2048}\Z")
_OPAQUE = re.compile(r"[A-Za-z0-9\-._~+/]{16,4096}=*\Z")
_TYPES = {"jwt", "at+jwt", "application/at+jwt"}


class Authenticator:
    """Authenticates for one upstream: its issuers, its audience."""

    def __init__(
        self, upstream: Upstream, issuers: Mapping[str, Issuer], keys: Mapping[str, Keys],
        introspections: Mapping[str, Introspection] | None = None, state: ExpiringMap | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._upstream = upstream
        self._issuers = {issuers[name].issuer: issuers[name] for name in upstream.issuers}
        self._keys = keys
        self._introspections = introspections or {}
        self._opaque = issuers[upstream.introspector] if upstream.introspector else None
        self._clock = clock
        self._state = state or MemoryMap()
        self._cache: OrderedDict[bytes, tuple[float, Principal, Any]] = OrderedDict()
        self._registries = {
            issuer.name: Strict(algorithms=list(issuer.algorithms), strict_check_header=False) for issuer in self._issuers.values()
        }

    async def __call__(self, situation: Situation) -> Principal:
        """The principal of this exchange's bearer token. Raises Refused (401, or 503 without keys)."""
        if situation.credential is None:
            raise Refused(Denial(401, Reason.NO_CREDENTIAL, "login", "a bearer token is needed", (("WWW-Authenticate", "Bearer"),)))
        now = self._clock()
        fingerprint = hashlib.sha256(situation.credential.encode()).digest()
        known = self._cache.get(fingerprint)
        if known is not None and now < known[0] and now < known[1].expires:
            if known[2] is not None or situation.scheme != "bearer":
                await binding.check(known[2], situation.credential, situation, self._state, now)
            return known[1]
        principal, keep, bound = await self._verify(situation.credential, situation, now)
        await binding.check(bound, situation.credential, situation, self._state, now)
        if keep:
            self._cache[fingerprint] = (now + keep, principal, bound)
            if len(self._cache) > CACHE:
                self._cache.popitem(last=False)
        return principal

    async def _verify(self, token: str, situation: Situation, now: float) -> tuple[Principal, float, Any]:
        """The principal, for how many seconds it may be remembered, and what the token is bound to (``cnf``)."""
        if token.count(".") != 2 and self._opaque is not None and _OPAQUE.match(token):
            claims = _complete(await self._introspected(self._opaque, token, now))
            self._check(claims, self._opaque, now)
            return self._principal(claims, self._opaque, situation), 0.0, claims.get("cnf")
        if not _SHAPE.match(token):
            raise bad("not a signed JWT")
        header, unverified = peek(token.split(".", maxsplit=1)[0]), peek(token.split(".")[1])
        issuer = self._issuers.get(_string(unverified, "iss"))
        if issuer is None:
            raise bad("not from an issuer of this server")
        if _string(header, "typ").lower() not in _TYPES or _string(header, "alg") not in issuer.algorithms:
            raise bad("type or algorithm not accepted")
        claims = await self._signed(token, issuer, header.get("kid"))
        self._check(claims, issuer, now)
        keep = REMEMBER
        if issuer.introspection is not None and issuer.introspection.revocation:
            await self._introspected(issuer, token, now)
            keep = 0.0
        return self._principal(claims, issuer, situation), keep, claims.get("cnf")

    def _principal(self, claims: dict[str, Any], issuer: Issuer, situation: Situation) -> Principal:
        try:
            return principal_of(claims, issuer, self._upstream, situation)
        except ClaimError as error:
            raise bad(str(error)) from None

    async def _introspected(self, issuer: Issuer, token: str, now: float) -> dict[str, Any]:
        """What the issuer says of a token now. Raises Refused: 401 where it is not active, 503 where nobody can say."""
        try:
            claims = await self._introspections[issuer.name].claims(token, now)
        except Unavailable:
            raise Refused(_unverifiable()) from None
        if claims is None:
            raise bad("not active")
        settings = issuer.introspection
        if settings is not None and settings.sole_audience and "aud" not in claims:
            claims = {**claims, "aud": list(self._upstream.audience)}
        return claims

    async def _signed(self, token: str, issuer: Issuer, kid: Any) -> dict[str, Any]:
        try:
            keys = await self._keys[issuer.name].candidates(kid if isinstance(kid, str) else None)
        except Unavailable:
            raise Refused(_unverifiable()) from None
        for key in keys:
            try:
                found = jws.deserialize_compact(token.encode(), key, registry=self._registries[issuer.name])
                claims = unique(found.payload)
            except (JoseError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
                continue
            return claims
        raise bad("the signature is not by a key of the issuer")

    def _check(self, claims: dict[str, Any], issuer: Issuer, now: float) -> None:
        if claims.get("iss", issuer.issuer) != issuer.issuer:
            raise bad("not from an issuer of this server")
        expires = claims.get("exp")
        if not _is_number(expires) or expires <= now or expires > now + FARTHEST:
            raise bad("expired, without `exp`, or with one beyond reason")
        for name in ("nbf", "iat"):
            if name in claims and (not _is_number(claims[name]) or claims[name] > now + SKEW):
                raise bad("not yet valid")
        audience = claims.get("aud")
        named = audience if isinstance(audience, list) else [audience]
        if not any(isinstance(one, str) and one in self._upstream.audience for one in named):
            raise bad("not for this server")


def _complete(answer: dict[str, Any]) -> dict[str, Any]:
    """An introspection answer about an opaque token as claims: of an access token, and with an end."""
    kind = _string(answer, "token_type").lower()
    if kind not in {"bearer", "dpop"} and answer.get("typ") != "Bearer":
        raise bad("not an access token")
    return answer


def _unverifiable() -> Denial:
    text = "tokens cannot be verified at the moment"
    return Denial(503, Reason.KEYS_UNAVAILABLE, "transient", text, (("Retry-After", "5"),))


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1 << 53


def _string(value: dict[str, Any], name: str) -> str:
    found = value.get(name)
    return found if isinstance(found, str) else ""
