"""Reading compact JWS (RFC 7515) strictly: small, without extensions that change their reading, each name once."""

from __future__ import annotations

import base64
import json
from typing import Any

from joserfc.errors import UnsupportedHeaderError
from joserfc.jws import JWSRegistry

from fhirshield.model import Denial, Reason, Refused


class Strict(JWSRegistry):
    """A registry that refuses ``crit`` and ``b64``, and what is too long to be looked at."""

    max_header_length = 4096
    max_payload_length = 16384
    max_signature_length = 2048

    def check_header(self, header: Any) -> None:
        """Refuse what would change how the token is read."""
        if type(header) is not dict or "crit" in header or "b64" in header:
            raise UnsupportedHeaderError("crit, b64")
        super().check_header(header)


def peek(part: str) -> dict[str, Any]:
    """A part of a token that is not yet trusted. Raises Refused (401)."""
    try:
        return unique(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except ValueError:
        raise bad("not a signed JWT") from None


def unique(raw: bytes) -> dict[str, Any]:
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


def bad(why: str) -> Refused:
    """A 401 that says why the token is not accepted, never what is in it."""
    challenge = ("WWW-Authenticate", 'Bearer error="invalid_token"')
    return Refused(Denial(401, Reason.BAD_TOKEN, "login", f"the bearer token is not accepted: {why}", (challenge,)))
