"""Token introspection (RFC 7662) at one authorization server, with the shield's own client credentials."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from fhirshield.errors import MalformedFhir, Unavailable
from fhirshield.fhir import json as strict_json
from fhirshield.outbound.http import Client


class Introspector:
    """Asks one endpoint about tokens. The secret is read from its file at each question, so that it may be changed."""

    def __init__(self, client: Client, *, url: str, client_id: str, client_secret_file: Path) -> None:
        parts = urlsplit(url)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._path = parts.path or "/"
        self._client = client
        self._client_id = client_id
        self._secret_file = client_secret_file

    async def ask(self, token: str) -> dict[str, Any]:
        """What the server says of a token: an object with ``active``. Raises Unavailable for everything else."""
        try:
            secret = self._secret_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Unavailable("the introspection secret cannot be read") from error
        pair = f"{quote(self._client_id, safe='')}:{quote(secret, safe='')}"
        headers = {
            "Accept": "application/json",
            "Content-Type": "application/x-www-form-urlencoded",
            "Authorization": "Basic " + base64.b64encode(pair.encode()).decode(),
        }
        body = urlencode({"token": token, "token_type_hint": "access_token"}).encode()
        answer = await self._client.send("POST", self._origin, self._path, headers, body)
        if answer.status != 200:
            raise Unavailable(f"the introspection endpoint answered {answer.status}")
        try:
            found = strict_json.decode(answer.body)
        except MalformedFhir as error:
            raise Unavailable("the introspection endpoint answered something that is not JSON") from error
        if not isinstance(found, dict) or not isinstance(found.get("active"), bool):
            raise Unavailable("the introspection endpoint answered something else")
        return found
