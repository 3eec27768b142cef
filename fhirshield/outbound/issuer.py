"""An issuer's public documents: its key set, and what its discovery document names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from fhirshield.errors import Unavailable
from fhirshield.outbound.http import Client


class KeySource(Protocol):
    """Where a JWKS (RFC 7517) comes from."""

    async def fetch(self) -> list[Any]:
        """The members of ``keys``, unchecked. Raises Unavailable."""
        ...


class JwksUrl:
    """A JWKS by HTTP."""

    def __init__(self, url: str, client: Client) -> None:
        self._url = url
        self._client = client

    async def fetch(self) -> list[Any]:
        """See KeySource."""
        return _keys(await get_json(self._url, self._client))


class JwksFile:
    """A JWKS in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def fetch(self) -> list[Any]:
        """See KeySource."""
        try:
            return _keys(msgspec.json.decode(self._path.read_bytes()))
        except (OSError, msgspec.DecodeError, RecursionError) as error:
            raise Unavailable(f"the key file cannot be read: {type(error).__name__}") from error


class NoKeys:
    """An issuer whose tokens are all opaque."""

    async def fetch(self) -> list[Any]:
        """None: no JWT of this issuer is by any key."""
        return []


async def get_json(url: str, client: Client) -> Any:
    """A small JSON document. Raises Unavailable unless it is there, whole and JSON."""
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc}"
    answer = await client.send("GET", origin, parts.path or "/", {"Accept": "application/json"})
    if answer.status != 200:
        raise Unavailable(f"answered {answer.status}")
    try:
        return msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unavailable("answered something that is not JSON") from error


def _keys(document: Any) -> list[Any]:
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise Unavailable("no JWKS")
    return keys
