"""One FHIR server behind the shield: builds the URL from parts, shows the shield's credential, returns the raw answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol
from urllib.parse import quote, urlencode, urlsplit

from fhirshield.outbound.http import Client, Response


class Credential(Protocol):
    """What the shield shows the upstream."""

    async def header(self) -> str | None:
        """The value of ``Authorization``, or None. Raises Unavailable."""
        ...


class FhirServer:
    """Requests below one base URL."""

    def __init__(self, url: str, client: Client, credential: Credential) -> None:
        parts = urlsplit(url)
        self.url = url
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._path = parts.path.rstrip("/")
        self._host = (parts.hostname or "").encode().lower()
        self._client = client
        self._credential = credential

    def named_in(self, body: bytes) -> bool:
        """Whether this server's host may stand in JSON text; never False where it does."""
        return self._host in body.lower() or (b"\\" in body and b"\\u" in body)

    async def send(
        self,
        method: str,
        segments: tuple[str, ...],
        query: tuple[tuple[str, str], ...],
        *,
        form: bool = False,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        authorization: str | None = None,
    ) -> Response:
        """Send one request. Raises Unavailable.

        ``segments`` and ``query`` are not yet percent-encoded; ``authorization`` replaces the shield's own credential;
        ``content`` is FHIR JSON.
        """
        target = "/".join([self._path, *(quote(segment, safe="") for segment in segments)]) or "/"
        encoded = urlencode(query, quote_via=quote, safe="")
        sent = {"Accept": "application/fhir+json", "Accept-Encoding": "identity", **(headers or {})}
        authorization = authorization or await self._credential.header()
        if authorization:
            sent["Authorization"] = authorization
        body = content
        if content is not None:
            sent["Content-Type"] = "application/fhir+json; charset=utf-8"
        if form:
            sent["Content-Type"] = "application/x-www-form-urlencoded"
            body = encoded.encode()
        elif encoded:
            target += "?" + encoded
        return await self._client.send(method, self._origin, target, sent, body)
