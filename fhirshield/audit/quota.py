"""Records of exchanges without a valid token: each within a quota of their own, aggregated beyond it.

So a flood of strangers can neither fill the disk nor keep the journal from those who have a token.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Callable
from typing import Any

from fhirshield.audit import record
from fhirshield.audit.journal import Journal
from fhirshield.model import Receipt, Situation

PER_SECOND = 20.0
BURST = 100.0
MOST_KINDS = 1000
"""Different (address prefix, reason) pairs that are told apart in one aggregate."""


class Quota:
    """A token bucket before the journal. ``clock`` in seconds, monotonic."""

    def __init__(self, journal: Journal, clock: Callable[[], float]) -> None:
        self._journal = journal
        self._clock = clock
        self._level = BURST
        self._seen = clock()
        self._counts: dict[str, int] = {}
        self._first = self._last = ""

    async def record(self, entry: dict[str, Any], situation: Situation) -> Receipt:
        """A receipt for an anonymous exchange. Raises Unavailable within the quota as the journal does."""
        now = self._clock()
        self._level = min(BURST, self._level + (now - self._seen) * PER_SECOND)
        self._seen = now
        if self._level >= 1:
            self._level -= 1
            self.flush()
            return await self._journal.record(entry, situation.decision)
        self._add(situation.address, entry["reason"], entry["time"])
        return self._journal.counted(situation.decision)

    def count(self, address: str, reason: str, now: dt.datetime) -> None:
        """Count what never became a request."""
        self._add(address, reason, now.isoformat(timespec="milliseconds"))

    def _add(self, address: str, reason: str, time: str) -> None:
        key = f"{prefix_of(address)} {reason}"
        if key not in self._counts and len(self._counts) >= MOST_KINDS:
            key = f"other {reason}"
        self._counts[key] = self._counts.get(key, 0) + 1
        self._last = time
        self._first = self._first or self._last

    def flush(self) -> None:
        """Append the aggregate so far, if there is one."""
        if self._counts:
            self._journal.note(record.aggregated(self._counts, self._first, self._last))
            self._counts, self._first = {}, ""


def prefix_of(address: str) -> str:
    """The /24 of an IPv4 address, the /56 of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    bits = 24 if parsed.version == 4 else 56
    return str(ipaddress.ip_network(f"{parsed}/{bits}", strict=False))
