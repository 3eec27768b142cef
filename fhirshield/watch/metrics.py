"""Counts for Prometheus, taken from audit records. Labels are closed lists and what settings name; no ids ever.

Counting happens for every request, so it is additions in dictionaries; what Prometheus reads is made when it asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LABELS = ("upstream", "interaction", "status", "reason")
_ONCE = {
    "shown_resources": "Resources shown",
    "redacted_elements": "Elements hidden in what was shown",
    "sent_bytes": "Bytes of bodies that left",
    "broken_answers": "Answers that did not leave whole",
    "broken_glasses": "Emergency grants that were opened",
    "withdrawn_answers": "Answers that were recorded and not released, since what they rested on changed",
}


_SEEN = {"break-glass": "broken_glasses", "not released": "withdrawn_answers"}


class Metrics(Collector):
    """One registry. ``recorded`` is called with every record of the journal, ``took`` with the seconds of every exchange."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._exchanges: Counter[tuple[str, ...]] = Counter()
        self._withheld: Counter[str] = Counter()
        self._once: dict[str, int] = dict.fromkeys(_ONCE, 0)
        self._reloads: Counter[str] = Counter()
        self._buckets = [0] * (len(BUCKETS) + 1)
        self._seconds = 0.0
        self._digest = ""
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value that is read when it is asked for."""
        self._gauges[name] = (text, read)

    def took(self, seconds: float) -> None:
        """Count an exchange by how long it took."""
        self._buckets[bisect_left(BUCKETS, seconds)] += 1
        self._seconds += seconds

    def recorded(self, entry: Mapping[str, Any]) -> None:
        """Count what a record says."""
        once = self._once
        if entry["outcome"] == "sent":
            once["sent_bytes"] += entry["bytes"]
            once["broken_answers"] += not entry["complete"]
        elif entry["outcome"] in _SEEN:
            once[_SEEN[entry["outcome"]]] += 1
        elif "aggregated" in entry:
            for key, number in entry["aggregated"].items():
                self._exchanges["", "", "", key.rpartition(" ")[2]] += number
        elif "reason" in entry:
            self._exchanges[entry["upstream"], entry.get("interaction", ""), str(entry["status"]), entry["reason"]] += 1
            once["shown_resources"] += entry.get("shown", 0)
            self._withheld.update(entry.get("withheld", ()))
            once["redacted_elements"] += sum(entry["redacted"].values()) if "redacted" in entry else 0

    def reloaded(self, outcome: str, digest: str = "") -> None:
        """Count a reload: ``applied``, ``refused``; name the rules now in force."""
        if outcome:
            self._reloads[outcome] += 1
        self._digest = digest or self._digest

    def collect(self) -> Iterator[Any]:
        """What Prometheus reads."""
        yield _labelled("exchanges", "Exchanges by outcome; strangers beyond their quota too", LABELS, self._exchanges)
        yield _labelled("withheld_resources", "Resources withheld", ("reason",), {(k,): n for k, n in self._withheld.items()})
        yield _labelled("reloads", "Reloads of settings and rules", ("outcome",), {(k,): n for k, n in self._reloads.items()})
        for name, text in _ONCE.items():
            yield CounterMetricFamily(f"fhirshield_{name}", text, self._once[name])
        total, buckets = 0, []
        for bound, number in zip([*map(str, BUCKETS), "+Inf"], self._buckets, strict=True):
            total += number
            buckets.append((bound, float(total)))
        text = "From the last byte of a request to the last of its answer"
        yield HistogramMetricFamily("fhirshield_exchange_seconds", text, buckets, self._seconds)
        rules = GaugeMetricFamily("fhirshield_rules_info", "The rule set in force, by its digest", labels=("digest",))
        rules.add_metric([self._digest], 1)
        yield rules
        for name, (about, read) in self._gauges.items():
            yield GaugeMetricFamily(f"fhirshield_{name}", about, read())

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)


def _labelled(name: str, text: str, labels: tuple[str, ...], counts: Mapping[tuple[str, ...], int]) -> CounterMetricFamily:
    found = CounterMetricFamily(f"fhirshield_{name}", text, labels=labels)
    for values, number in counts.items():
        found.add_metric(values, number)
    return found
