"""Intents: writes that were recorded before they went upstream, and that no outcome was recorded of yet.

An intent and its outcome share the decision's id. What stays open after a crash is found in the journal again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from fhirshield.audit import chain
from fhirshield.model import Reason

_DECISION = re.compile(rb'"decision":"([0-9a-f]{32})"')
_INTENDED = b'"outcome":"intended"'
_CLOSING = {"released", "denied", "recovered"}
_NOT_CONTENT = {"id", "meta", "text"}
"""What servers change of a resource as they store it."""


class Intents:
    """The open ones by decision id, in the order of the journal."""

    def __init__(self) -> None:
        self.open: dict[str, dict[str, Any]] = {}

    def saw(self, entry: dict[str, Any]) -> None:
        """Take note of a record that is durable."""
        outcome = entry.get("outcome")
        if outcome == "intended":
            self.open[entry["decision"]] = entry
        elif outcome in _CLOSING and entry.get("reason") != Reason.OUTCOME_UNKNOWN.value:
            self.open.pop(entry.get("decision", ""), None)

    def read(self, record: bytes) -> None:
        """The same of a record's text; quick where it is about no write."""
        if _INTENDED not in record:
            found = _DECISION.search(record) if self.open else None
            if found is None or found[1].decode() not in self.open:
                return
        self.saw(msgspec.json.decode(record))


def intents_of(segments: list[Path]) -> Intents:
    """The open intents of a journal at rest."""
    found = Intents()
    for path in segments:
        for text in path.read_bytes().splitlines():
            parts = chain.split(text)
            if parts is not None:
                found.read(parts[1])
    return found


def content_digest(resource: Any, digest: Callable[[str, bytes], str]) -> str:
    """A keyed digest of what a resource says, by which it is known again in a history; of nothing for a delete."""
    if resource is None:
        return ""
    content = {name: value for name, value in resource.items() if name not in _NOT_CONTENT}
    return digest("intents", msgspec.json.encode(content, order="deterministic", enc_hook=lambda value: str(value)))
