"""Tokens bound to a key: DPoP (RFC 9449) and client certificates (RFC 8705). A token that claims a binding is nothing without it.

Proofs are checked for every request, remembered tokens included; a proof that was seen before is a replay. The memory of
proofs is the shared state: where it cannot be asked, nobody can say that a proof is fresh, and the answer is 503.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError

from fhirshield.authenticate.compact import Strict, peek, unique
from fhirshield.authenticate.keys import usable
from fhirshield.errors import Unavailable
from fhirshield.model import Denial, Reason, Refused, Situation
from fhirshield.state import ExpiringMap

FRESH = 60.0
"""Seconds for which a proof is fresh."""
SKEW = 10.0
"""Seconds by which a client's clock may be ahead."""
ALGORITHMS = ("ES256", "ES384", "RS256", "PS256")
_SHAPE = re.compile(r"[A-Za-z0-9_-]{4,4096}\.[A-Za-z0-9_-]{4,4096}\.[A-Za-z0-9_-]{4,2048}\Z")
_REGISTRY = Strict(algorithms=list(ALGORITHMS), strict_check_header=False)


async def check(binding: Any, token: str, situation: Situation, state: ExpiringMap, now: float) -> None:
    """Raises Refused unless the request proves the binding (``cnf``) of its token; without a binding there is none to prove."""
    if binding is None:
        if situation.scheme == "dpop":
            raise _bad("the token is bound to no key, and may not be sent as one that is")
        return
    if not isinstance(binding, dict) or not binding.keys() & {"jkt", "x5t#S256"} or binding.keys() - {"jkt", "x5t#S256"}:
        raise _bad("the token is bound in a way that is not known here")
    if "x5t#S256" in binding and (not situation.certificate or situation.certificate != binding["x5t#S256"]):
        raise _bad("the token is bound to another client certificate than the one shown, if any")
    if "jkt" in binding:
        await _proof(binding["jkt"], token, situation, state, now)
    elif situation.scheme == "dpop":
        raise _bad("the token is bound to no DPoP key")


async def _proof(thumbprint: Any, token: str, situation: Situation, state: ExpiringMap, now: float) -> None:
    proof = situation.proof
    if situation.scheme != "dpop" or not proof or not _SHAPE.match(proof):
        raise _bad("the token is bound to a key, and no DPoP proof came with it")
    header = peek(proof.split(".")[0])
    if header.get("typ") != "dpop+jwt" or header.get("alg") not in ALGORITHMS:
        raise _bad("the DPoP proof has another type or algorithm than is accepted")
    try:
        _, key = usable(header.get("jwk"))
        claims = unique(jws.deserialize_compact(proof.encode(), key, registry=_REGISTRY).payload)
        shown = key.thumbprint()
    except (JoseError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        raise _bad("the DPoP proof is not signed by its key") from None
    if not isinstance(thumbprint, str) or shown != thumbprint:
        raise _bad("the DPoP proof is by another key than the token's")
    made, name = claims.get("iat"), claims.get("jti")
    if (
        isinstance(made, bool)
        or not isinstance(made, int | float)
        or not max(now - FRESH, float(int(state.since))) <= made <= now + SKEW
    ):
        raise _bad("the DPoP proof is not fresh")
    if claims.get("htm") != situation.method or _plain(claims.get("htu")) != situation.url:
        raise _bad("the DPoP proof is for another request")
    digest = base64.urlsafe_b64encode(hashlib.sha256(token.encode()).digest()).rstrip(b"=").decode()
    if claims.get("ath") != digest:
        raise _bad("the DPoP proof is for another token")
    if not isinstance(name, str) or not 1 <= len(name) <= 256:
        raise _bad("the DPoP proof has no `jti`")
    try:
        first = await state.add("dpop:" + hashlib.sha256(f"{shown} {name}".encode()).hexdigest(), FRESH + 2 * SKEW)
    except Unavailable:
        text = "proofs of possession cannot be checked at the moment"
        raise Refused(Denial(503, Reason.KEYS_UNAVAILABLE, "transient", text, (("Retry-After", "5"),))) from None
    if not first:
        raise _bad("the DPoP proof was used before")


def _plain(url: Any) -> str:
    """``htu`` without query and fragment (RFC 9449 §4.3)."""
    return url.partition("#")[0].partition("?")[0] if isinstance(url, str) else ""


def _bad(why: str) -> Refused:
    challenge = f'DPoP error="invalid_dpop_proof", algs="{" ".join(ALGORITHMS)}"'
    return Refused(Denial(401, Reason.BAD_TOKEN, "login", f"the token is not accepted: {why}", (("WWW-Authenticate", challenge),)))
