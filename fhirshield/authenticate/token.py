"""Verify a JWT access token (RFC 7519, RFC 9068, RFC 8725) and remember the result for at most a minute.

Algorithms come from the settings, keys from the issuer's own JWKS; ``jku``, ``x5u``, ``jwk`` are never read, ``crit`` and
``b64`` are refused. Nothing of the token is trusted before its signature, but ``iss`` and ``kid``, which only select.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from joserfc import jws
from joserfc.errors import JoseError, UnsupportedHeaderError
from joserfc.jws import JWSRegistry

from fhirshield.authenticate.keys import Keys
from fhirshield.authenticate.profiles import ClaimError, principal_of
from fhirshield.errors import Unavailable
from fhirshield.model import Denial, Principal, Reason, Refused, Situation
from fhirshield.settings import Issuer, Upstream

REMEMBER = 60.0
"""Seconds for which a verified token is not verified again; its expiry is checked each time."""
CACHE = 10_000
SKEW = 10.0
"""Seconds by which an issuer's clock may be ahead (``nbf``, ``iat``)."""
_SHAPE = re.compile(r"[A-Za-z0-9_-]{4,4096}\.[A-Za-z0-9_-]{4,16384}\.[A-Za-z0-9_-]{4,2048}\Z")
_TYPES = {"jwt", "at+jwt", "application/at+jwt"}


class _Strict(JWSRegistry):
    max_header_length = 4096
    max_payload_length = 16384
    max_signature_length = 2048

    def check_header(self, header: Any) -> None:
        """Refuse what would change how the token is read."""
        if type(header) is not dict or "crit" in header or "b64" in header:
            raise UnsupportedHeaderError("crit, b64")
        super().check_header(header)


class Authenticator:
    """Authenticates for one upstream: its issuers, its audience."""

    def __init__(
        self, upstream: Upstream, issuers: Mapping[str, Issuer], keys: Mapping[str, Keys], clock: Callable[[], float] = time.time
    ) -> None:
        self._upstream = upstream
        self._issuers = {issuers[name].issuer: issuers[name] for name in upstream.issuers}
        self._keys = keys
        self._clock = clock
        self._cache: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()
        self._registries = {
            issuer.name: _Strict(algorithms=list(issuer.algorithms), strict_check_header=False) for issuer in self._issuers.values()
        }

    async def __call__(self, situation: Situation) -> Principal:
        """The principal of this exchange's bearer token. Raises Refused (401, or 503 without keys)."""
        if situation.credential is None:
            raise Refused(Denial(401, Reason.NO_CREDENTIAL, "login", "a bearer token is needed", (("WWW-Authenticate", "Bearer"),)))
        now = self._clock()
        fingerprint = hashlib.sha256(situation.credential.encode()).digest()
        known = self._cache.get(fingerprint)
        if known is not None and now < known[0] and now < known[1].expires:
            return known[1]
        principal = await self._verify(situation, now)
        self._cache[fingerprint] = (now + REMEMBER, principal)
        if len(self._cache) > CACHE:
            self._cache.popitem(last=False)
        return principal

    async def _verify(self, situation: Situation, now: float) -> Principal:
        token = situation.credential or ""
        if not _SHAPE.match(token):
            raise _bad("not a signed JWT")
        header, unverified = peek(token.split(".")[0]), peek(token.split(".")[1])
        issuer = self._issuers.get(_string(unverified, "iss"))
        if issuer is None:
            raise _bad("not from an issuer of this server")
        if _string(header, "typ").lower() not in _TYPES or _string(header, "alg") not in issuer.algorithms:
            raise _bad("type or algorithm not accepted")
        claims = await self._signed(token, issuer, header.get("kid"))
        self._check(claims, issuer, now)
        try:
            return principal_of(claims, issuer, self._upstream, situation)
        except ClaimError as error:
            raise _bad(str(error)) from None

    async def _signed(self, token: str, issuer: Issuer, kid: Any) -> dict[str, Any]:
        try:
            keys = await self._keys[issuer.name].candidates(kid if isinstance(kid, str) else None)
        except Unavailable:
            text = "tokens cannot be verified at the moment"
            denial = Denial(503, Reason.KEYS_UNAVAILABLE, "transient", text, (("Retry-After", "5"),))
            raise Refused(denial) from None
        for key in keys:
            try:
                found = jws.deserialize_compact(token.encode(), key, registry=self._registries[issuer.name])
                claims = _unique(found.payload)
            except (JoseError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
                continue
            return claims
        raise _bad("the signature is not by a key of the issuer")

    def _check(self, claims: dict[str, Any], issuer: Issuer, now: float) -> None:
        if claims.get("iss") != issuer.issuer:
            raise _bad("not from an issuer of this server")
        expires = claims.get("exp")
        if not _is_number(expires) or expires <= now:
            raise _bad("expired, or without `exp`")
        for name in ("nbf", "iat"):
            if name in claims and (not _is_number(claims[name]) or claims[name] > now + SKEW):
                raise _bad("not yet valid")
        audience = claims.get("aud")
        named = audience if isinstance(audience, list) else [audience]
        if not any(isinstance(one, str) and one in self._upstream.audience for one in named):
            raise _bad("not for this server")


def peek(part: str) -> dict[str, Any]:
    """A part of a token that is not yet trusted."""
    try:
        return _unique(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except ValueError:
        raise _bad("not a signed JWT") from None


def _unique(raw: bytes) -> dict[str, Any]:
    """A JSON object without repeated names, however deep. Raises ValueError."""
    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("too deep") from error
    if type(found) is not dict:
        raise ValueError("not an object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1 << 53


def _string(value: dict[str, Any], name: str) -> str:
    found = value.get(name)
    return found if isinstance(found, str) else ""


def _bad(why: str) -> Refused:
    challenge = ("WWW-Authenticate", 'Bearer error="invalid_token"')
    return Refused(Denial(401, Reason.BAD_TOKEN, "login", f"the bearer token is not accepted: {why}", (challenge,)))
