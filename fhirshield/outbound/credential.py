"""Credentials that the shield shows an upstream: none, a bearer file, or OAuth client credentials (SMART Backend Services)."""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import msgspec
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from fhirshield.errors import Fault, OperatorError, Unavailable
from fhirshield.outbound.http import Client

_EARLY = 30.0
"""Seconds before its expiry from which a token is renewed."""


class NoCredential:
    """The upstream asks for none."""

    async def header(self) -> str | None:
        """Nothing."""
        return None


class BearerFile:
    """A token in a file, read again when the file changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._value = ""

    async def header(self) -> str | None:
        """The file's token. Raises Unavailable while it cannot be read."""
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_size)
            if seen != self._seen:
                self._value = self._path.read_text(encoding="ascii").strip()
                self._seen = seen
        except (OSError, UnicodeDecodeError) as error:
            raise Unavailable("the upstream's credential cannot be read") from error
        if not self._value or any(not "!" <= char <= "~" for char in self._value):
            raise Unavailable("the upstream's credential is no bearer token")
        return f"Bearer {self._value}"


class ClientCredentials:
    """``client_credentials`` with ``private_key_jwt`` (SMART 2.2 §4; RFC 7523), one token for all, renewed in time."""

    def __init__(
        self, client: Client, *, token_url: str, client_id: str, key_file: Path, key_id: str, algorithm: str, scope: str
    ) -> None:
        self._client = client
        self._token_url = token_url
        self._client_id = client_id
        self._algorithm = algorithm
        self._key_id = key_id
        self._scope = scope
        kind = RSAKey if algorithm.startswith("RS") else ECKey
        try:
            self._key = kind.import_key(key_file.read_bytes())
        except (OSError, ValueError, TypeError) as error:
            remedy = f"a private key for {algorithm}, as PEM"
            raise OperatorError([Fault(str(key_file), "", f"no usable key: {type(error).__name__}", remedy)]) from None
        self._token = ""
        self._until = 0.0
        self._lock = asyncio.Lock()

    async def header(self) -> str | None:
        """A token that is valid for a while yet. Raises Unavailable."""
        if time.time() >= self._until:
            async with self._lock:
                if time.time() >= self._until:
                    await self._renew()
        return f"Bearer {self._token}"

    async def _renew(self) -> None:
        parts = urlsplit(self._token_url)
        form = {
            "grant_type": "client_credentials",
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": self._assertion(),
        }
        if self._scope:
            form["scope"] = self._scope
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        answer = await self._client.send(
            "POST", f"{parts.scheme}://{parts.netloc}", parts.path or "/", headers, urlencode(form).encode()
        )
        try:
            value = msgspec.json.decode(answer.body) if answer.status == 200 else None
        except msgspec.DecodeError:
            value = None
        token = value.get("access_token") if isinstance(value, dict) else None
        if not isinstance(token, str) or not token:
            raise Unavailable(f"the token endpoint answered {answer.status} without a token")
        lifetime = value.get("expires_in") if isinstance(value, dict) else None
        seconds = float(lifetime) if isinstance(lifetime, int) and lifetime > 0 else 60.0
        self._token, self._until = token, time.time() + max(seconds - _EARLY, 1.0)

    def _assertion(self) -> str:
        now = int(time.time())
        header = {"alg": self._algorithm, "typ": "JWT"} | ({"kid": self._key_id} if self._key_id else {})
        claims = {
            "iss": self._client_id,
            "sub": self._client_id,
            "aud": self._token_url,
            "iat": now,
            "exp": now + 240,
            "jti": str(uuid.uuid4()),
        }
        return jwt.encode(header, claims, self._key, algorithms=[self._algorithm])
