"""Counts for Prometheus, taken from audit records. Labels are closed lists and what settings name; no ids ever."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """One registry. ``recorded`` is called with every record of the journal."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        add: dict[str, Any] = {"registry": self._registry}
        labels = ("upstream", "interaction", "status", "reason")
        self._exchanges = Counter("fhirshield_exchanges", "Exchanges by outcome; strangers beyond their quota too", labels, **add)
        self._withheld = Counter("fhirshield_withheld_resources", "Resources withheld", ("reason",), **add)
        self._shown = Counter("fhirshield_shown_resources", "Resources shown", **add)
        self._redacted = Counter("fhirshield_redacted_elements", "Elements hidden in what was shown", **add)
        self._bytes = Counter("fhirshield_sent_bytes", "Bytes of bodies that left", **add)
        self._broken = Counter("fhirshield_broken_answers", "Answers that did not leave whole", **add)
        self.seconds = Histogram("fhirshield_exchange_seconds", "From the last byte of a request to the last of its answer",
                                 buckets=BUCKETS, **add)  # fmt: skip
        self._reloads = Counter("fhirshield_reloads", "Reloads of settings and rules", ("outcome",), **add)
        self._rules = Gauge("fhirshield_rules_info", "The rule set in force, by its digest", ("digest",), **add)
        self._children: dict[tuple[str, ...], Any] = {}
        self._add = add

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value that is read when it is asked for."""
        Gauge(f"fhirshield_{name}", text, **self._add).set_function(read)

    def recorded(self, entry: Mapping[str, Any]) -> None:
        """Count what a record says."""
        if entry["outcome"] == "sent":
            self._bytes.inc(entry["bytes"])
            if not entry["complete"]:
                self._broken.inc()
            return
        if "aggregated" in entry:
            for key, number in entry["aggregated"].items():
                self._exchange(("", "", "", key.rpartition(" ")[2])).inc(number)
            return
        if "reason" not in entry:
            return
        self._exchange((entry["upstream"], entry.get("interaction", ""), str(entry["status"]), entry["reason"])).inc()
        if "shown" in entry:
            self._shown.inc(entry["shown"])
            for reason, number in entry.get("withheld", {}).items():
                self._withheld.labels(reason).inc(number)
            if "redacted" in entry:
                self._redacted.inc(sum(entry["redacted"].values()))

    def _exchange(self, values: tuple[str, ...]) -> Any:
        found = self._children.get(values)
        if found is None:
            found = self._children[values] = self._exchanges.labels(*values)
        return found

    def reloaded(self, outcome: str, digest: str = "") -> None:
        """Count a reload: ``applied``, ``refused``; name the rules now in force."""
        if outcome:
            self._reloads.labels(outcome).inc()
        if digest:
            self._rules.clear()
            self._rules.labels(digest).set(1)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)
