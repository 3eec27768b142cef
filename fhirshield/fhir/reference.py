"""Literal references: which resource a `Reference.reference` (or a search value) names (FHIR R4 §2.3.0.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from fhirshield.fhir.definitions import resource_types

_RELATIVE = re.compile(r"([A-Z][A-Za-z]+)/([A-Za-z0-9\-.]{1,256})(?:/_history/[A-Za-z0-9\-.]{1,256})?\Z")


@dataclass(frozen=True, slots=True)
class Literal:
    """A resource on the server in question, by type and logical id."""

    type: str
    id: str

    def __str__(self) -> str:
        return f"{self.type}/{self.id}"


def literal(text: object, bases: tuple[str, ...] = ()) -> Literal | None:
    """The resource that a reference names, or None: contained, ``urn:``, elsewhere, or not understood.

    ``bases`` are the absolute URLs (without a trailing slash) under which this server is known.
    """
    return _literal(text, bases) if isinstance(text, str) else None


@lru_cache(maxsize=16384)
def _literal(text: str, bases: tuple[str, ...]) -> Literal | None:
    for base in bases:
        if text.startswith(base + "/"):
            text = text[len(base) + 1 :]
            break
    found = _RELATIVE.match(text)
    if found is None or found[1] not in resource_types():
        return None
    return Literal(found[1], found[2])


def named_in(value: Any, bases: tuple[str, ...] = ()) -> Literal | None:
    """The resource that a Reference names, as ``literal``."""
    return literal(value.get("reference"), bases) if type(value) is dict else None


_CONDITIONAL = re.compile(r"[A-Z][A-Za-z]+\?.", re.DOTALL)


def conditional(node: Any) -> set[str]:
    """The conditional references in a JSON value (FHIR R4 §3.1.0.11.2): ``Patient?identifier=…``."""
    found: set[str] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if type(current) is dict:
            text = current.get("reference")
            if type(text) is str and _CONDITIONAL.match(text) and text.partition("?")[0] in resource_types():
                found.add(text)
            waiting.extend(current.values())
        elif type(current) is list:
            waiting.extend(current)
    return found


_NAMING = frozenset({"reference", "url", "uri", "valueUri", "valueUrl", "valueUuid", "valueOid", "valueCanonical"})


def renamed(node: Any, names: Mapping[str, str], key: str = "") -> Any:
    """A JSON value in which references and URLs that are one of the names are what it stands for."""
    if type(node) is dict:
        patched = "reference" if "op" in node and str(node.get("path", "")).endswith("/reference") else ""
        return {name: renamed(value, names, patched if name == "value" and patched else name) for name, value in node.items()}
    if type(node) is list:
        return [renamed(value, names, key) for value in node]
    return names.get(node, node) if type(node) is str and key in _NAMING else node


@lru_cache(maxsize=64)
def _pattern(url: str) -> re.Pattern[bytes]:
    """A base URL in text: scheme and host in any case, the default port said or not, and no longer path."""
    parts = urlsplit(url)
    port = {"http": 80, "https": 443}[parts.scheme] if parts.port is None else parts.port
    said = rf"(?::{port})?" if port in {80, 443} else f":{port}"
    host = re.escape(parts.hostname or "")
    host = rf"\[{host}\]" if ":" in (parts.hostname or "") else host
    text = rf"(?i:{parts.scheme}://{host}){said}{re.escape(parts.path)}(?![A-Za-z0-9._~%-])"
    return re.compile(text.encode())


def rebased(content: bytes, old: str, new: str) -> bytes:
    """Text in which absolute URLs below one base stand below another, whatever follows the base."""
    if old == new:
        return content
    url = new.encode()
    return _pattern(old).sub(lambda _: url, content)
