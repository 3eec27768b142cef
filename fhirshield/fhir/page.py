"""A further page of a search, as a value: where the upstream keeps it, and what had been asked. No secrets, no crypto."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

import msgspec


@dataclass(frozen=True, slots=True)
class Parameter:
    """One search parameter as asked: ``name:modifier=value``, where value still holds its commas and escapes."""

    name: str
    modifier: str
    value: str


@dataclass(frozen=True, slots=True)
class Page:
    """``segments`` and ``query`` lead to the page at the upstream, relative to its base; the rest binds it."""

    type: str
    parameters: tuple[Parameter, ...]
    segments: tuple[str, ...]
    query: tuple[tuple[str, str], ...]
    binding: str
    """Digest of issuer, subject, client, scopes, rule set and upstream."""
    expires: float
    """Seconds since the epoch."""
    skip: int = 0
    """Matches of that page that were shown, or withheld, before."""
    size: int = 0
    """Matches of a page of ours; 0 where the upstream's pages are passed on as they are."""
    form: bool = False
    """The query travels as the body of POST ``_search``."""
    place: str = ""
    """Where it was asked, below the base: ``Patient``, ``Patient/1/_history``; ``$job`` for a job."""
    id: str = ""
    operation: str = ""
    """Of a job: the operation that it carries out, and on which resource."""

    def dump(self) -> bytes:
        """As bytes for sealing."""
        return msgspec.json.encode(self)

    @staticmethod
    def load(content: bytes) -> Page | None:
        """The page of bytes that ``dump`` made."""
        try:
            return msgspec.json.decode(content, type=Page)
        except msgspec.DecodeError:
            return None


Target = tuple[tuple[str, ...], tuple[tuple[str, str], ...]]
"""Path segments below a base, and query pairs; neither percent-encoded."""


def link_target(url: object, base: str, *places: str) -> Target | None:
    """A server's paging link, taken apart.

    None unless it leads to the base itself or to one of the places (or the ``_search`` of one) on the same server.
    """
    if not isinstance(url, str):
        return None
    try:
        parts, home = urlsplit(url), urlsplit(base)
        query = tuple(parse_qsl(parts.query, keep_blank_values=True, max_num_fields=200))
    except ValueError:
        return None
    if parts.netloc and (parts.scheme, parts.netloc) != (home.scheme, home.netloc):
        return None
    path = parts.path.rstrip("/")
    below = path.removeprefix(home.path.rstrip("/")).strip("/") if path.startswith(home.path.rstrip("/")) else None
    place = below.removesuffix("/_search") if below is not None else None
    if place is None or (place and place not in places) or parts.fragment:
        return None
    return tuple(place.split("/")) if place else (), query


_SEGMENT = re.compile(r"\$?[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")


def job_target(url: object, base: str) -> Target | None:
    """Where a server's job is asked about, taken apart; None unless it is plainly below the base."""
    if not isinstance(url, str):
        return None
    try:
        parts, home = urlsplit(url), urlsplit(base)
        query = tuple(parse_qsl(parts.query, keep_blank_values=True, max_num_fields=50))
    except ValueError:
        return None
    own = home.path.rstrip("/") + "/"
    if (parts.scheme, parts.netloc) != (home.scheme, home.netloc) or not parts.path.startswith(own) or parts.fragment:
        return None
    segments = tuple(parts.path.removeprefix(own).split("/"))
    return (segments, query) if 0 < len(segments) < 6 and all(map(_SEGMENT.match, segments)) else None
