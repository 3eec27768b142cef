"""What a connection must keep to before there is a request: one reading of every byte, in a bounded time.

httptools (llhttp) refuses most of what is ambiguous; this refuses what it lets through: targets in absolute form, fragments,
missing or repeated Host, HTTP/1.0 with a transfer encoding, a body behind an upgrade, heads without end. Trailers end here.
Whatever is refused is counted, and answered only where no other answer of the connection is still owed.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fhirshield.fhir.json import encode
from fhirshield.fhir.outcome import outcome

MOST_TARGET = 16 << 10
"""Bytes of a request target."""
MOST_HEAD = 64 << 10
"""Bytes of all headers."""
MOST_HEADERS = 100
PATIENCE = 10.0
"""Seconds for the head of a request to arrive, from the first byte or from the connection's beginning."""
UNREAD = 30.0
"""Seconds for which an answer may wait to be read."""
_TARGET = re.compile(rb"/[!\"$-~]*\Z")
_HOST = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=%]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?\Z")
_REFUSED = encode(outcome("invalid", "this is not a request that can be read one way"))


class _Ambiguous(Exception):
    """Raised within the parser's callbacks; the parser turns it into its own error."""


class Guard(HttpToolsProtocol):
    """uvicorn's protocol over httptools, refusing more."""

    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _fed = 0
    """Bytes of this message so far, those before it in the same segment aside."""
    _bodied = 0
    """Bytes of them that were its body."""
    _begun = False
    _headed = False
    _size = 0
    _certificate = ""
    """SHA-256 (base64url) of the client's certificate (RFC 8705 §3.1)."""

    # --- time -------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection that stays silent does not stay."""
        super().connection_made(transport)
        secure = transport.get_extra_info("ssl_object")
        shown = secure.getpeercert(binary_form=True) if secure is not None else None
        if shown:
            self._certificate = base64.urlsafe_b64encode(hashlib.sha256(shown).digest()).rstrip(b"=").decode()
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more to wait for."""
        self._head_came()
        if self._unread is not None:
            self._unread.cancel()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(PATIENCE, self._too_late)

    def _head_came(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self._timer = None
        self._count()
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Bytes; where no answer is owed for them, what they begin is waited for, but not for ever."""
        self._fed += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return None
        if self._fed - self._bodied > MOST_HEAD + MOST_TARGET + 8 * self._bodied:
            return self.send_400_response("")
        if (self._begun and not self._headed) or self.cycle is None or self.cycle.response_complete:
            self._wait_for_head()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._bodied += len(body)
        super().on_body(body)

    def pause_writing(self) -> None:
        """The other side does not read what it asked for."""
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    # --- the parser's callbacks ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self._begun, self._headed, self._size, self._fed, self._bodied = True, False, 0, 0, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        super().on_url(url)
        if len(self.url) > MOST_TARGET:
            raise _Ambiguous

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; trailers are none."""
        if self._headed:
            return
        self._size += len(name) + len(value) + 4
        if self._size > MOST_HEAD or len(self.headers) >= MOST_HEADERS:
            raise _Ambiguous
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole: is it a request that can be read one way?"""
        self._headed = True
        if self._timer is not None:
            self._head_came()
        version = self.parser.get_http_version()
        if not _TARGET.match(self.url) or version not in {"1.0", "1.1"}:
            raise _Ambiguous
        hosts = [value for name, value in self.headers if name == b"host"]
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if len(hosts) > 1 or (not hosts and version != "1.0") or not all(map(_HOST.match, hosts)):
            raise _Ambiguous
        if codings and (version != "1.1" or [value.strip().lower() for value in codings] != [b"chunked"]):
            raise _Ambiguous
        if self.parser.should_upgrade() and (codings or any(name == b"content-length" for name, _ in self.headers)):
            raise _Ambiguous
        if self._certificate:
            self.scope["extensions"] = {"tls": {"client_certificate": self._certificate}}
        super().on_headers_complete()

    # --- refusing -----------------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed. While another answer is owed here, nothing may be said that could pass for it."""
        self._head_came()
        self._count()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()
            return
        head = (
            "HTTP/1.1 400 Bad Request\r\nContent-Type: application/fhir+json; charset=utf-8\r\nCache-Control: no-store\r\n"
            f"Content-Length: {len(_REFUSED)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + _REFUSED)
        self.transport.close()

    def _count(self) -> None:
        app: Any = self.app
        unparsed = getattr(app, "unparsed", None)
        if unparsed is not None:
            unparsed(self.client[0] if self.client else "")
