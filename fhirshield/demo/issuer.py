"""A small OAuth issuer: a signing key, a key set, a discovery document, and tokens for whoever asks. For demo and tests."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey


class Issuer:
    """Signs tokens with one ES256 key, made when it starts."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._key: ECKey = ECKey.generate_key("P-256", {"use": "sig", "alg": "ES256", "kid": "demo-1"})

    def token(self, audience: str, scope: str, *, lifetime: float = 12 * 3600, **claims: Any) -> str:
        """An access token (RFC 9068); ``claims`` are added as they are."""
        now = int(time.time())
        body = {
            "iss": self.url,
            "aud": audience,
            "sub": claims.pop("sub", "somebody"),
            "client_id": claims.pop("client_id", "demo-app"),
            "iat": now,
            "exp": now + int(lifetime),
            "scope": scope,
            **claims,
        }
        return jwt.encode({"alg": "ES256", "typ": "at+jwt", "kid": "demo-1"}, body, self._key, algorithms=["ES256"])

    def jwks(self) -> dict[str, Any]:
        """The public key set."""
        return {"keys": [self._key.as_dict(private=False)]}

    async def __call__(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        """Serve the two documents."""
        if scope["type"] != "http":
            return
        documents = {
            "/jwks": self.jwks(),
            "/.well-known/openid-configuration": {
                "issuer": self.url,
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "jwks_uri": f"{self.url}/jwks",
            },
        }
        found = documents.get(scope["path"])
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200 if found else 404, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(found or {}).encode()})
