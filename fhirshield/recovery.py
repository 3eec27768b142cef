"""Writes whose outcome is not known: asks the upstream's history what became of them, and records it.

A version is known again by the request id that some servers keep in ``meta.source``, or by a keyed digest of its content.
Where the history does not tell, the intent stays open, and is listed.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable, Mapping
from typing import Any

from fhirshield.audit import Journal, record
from fhirshield.audit.intents import content_digest
from fhirshield.errors import MalformedFhir, Unavailable
from fhirshield.fhir import json as fhir_json
from fhirshield.fhir.history import Version, versions_of
from fhirshield.fhir.page import link_target
from fhirshield.outbound.fhir_server import FhirServer

INTERVAL = 5.0
"""Seconds between rounds."""
TRIES = 60
"""Rounds after which an intent that no history tells of is left to people."""
MOST_PAGES = 5
LEAST_ID = 16
"""Characters of a request's id that HAPI keeps in ``meta.source``."""
SKEW = 300.0
"""Seconds by which the upstream's clock may differ."""
_log = logging.getLogger("fhirshield")


class Recovery:
    """Settles open intents of one journal. ``servers`` gives the upstreams in force, by path."""

    def __init__(
        self, journal: Journal, servers: Callable[[], Mapping[str, FhirServer]], digest: Callable[[str, bytes], str],
        now: Callable[[], dt.datetime], patience: float,
    ) -> None:  # fmt: skip
        """``patience``: seconds after an intent before its outcome is asked for, since the upstream may still be at it."""
        self._journal = journal
        self._servers = servers
        self._digest = digest
        self._now = now
        self._patience = patience
        self._tried: dict[str, int] = {}

    async def run(self) -> None:
        """Round after round, for as long as the process lives."""
        while True:
            await self.round()
            await asyncio.sleep(INTERVAL)

    async def round(self) -> None:
        """Try every open intent that is old enough."""
        for decision, entry in list(self._journal.intents.open.items()):
            age = (self._now() - dt.datetime.fromisoformat(entry["time"])).total_seconds()
            if age < self._patience or self._tried.get(decision, 0) >= TRIES:
                continue
            self._tried[decision] = self._tried.get(decision, 0) + 1
            try:
                found = await self._settle(entry)
                if found is None:
                    continue
                result, details = found
                time = self._now().isoformat(timespec="milliseconds")
                await self._journal.record(record.recovered(decision, time, result, details), decision)
                _log.info("write %s, whose outcome was not known, was %s", decision, result)
            except (Unavailable, MalformedFhir) as error:
                _log.info("write %s: its outcome cannot be learned now: %s", decision, type(error).__name__)

    async def _settle(self, entry: dict[str, Any]) -> tuple[str, dict[str, str]] | None:
        """(result, details) where the history tells; None where it does not."""
        server = self._servers().get(entry["upstream"])
        if server is None:
            return None
        if entry["interaction"] == "create":
            since = dt.datetime.fromisoformat(entry["time"]) - dt.timedelta(seconds=SKEW)
            query = (("_since", since.isoformat(timespec="seconds")), ("_count", "100"))
            versions = await self._history(server, (entry["type"], "_history"), query, entry["type"])
            made = self._found(versions or [], entry)
            return ("carried out", {"id": made.name.id, "version": made.version}) if made else None
        versions = await self._history(server, (entry["type"], entry["id"], "_history"), (("_count", "100"),), entry["type"])
        if versions is None:
            return None
        return self._of_instance(versions, entry)

    def _of_instance(self, versions: list[Version], entry: dict[str, Any]) -> tuple[str, dict[str, str]] | None:
        """What the versions of one resource, newest first, tell of a write over one of them."""
        if entry["creates"]:
            made = self._found(versions, entry)
            if made:
                return "carried out", {"version": made.version}
            return ("not carried out", {}) if not versions else None
        place = next((i for i, v in enumerate(versions) if v.version == entry["over"] and v.resource is not None), None)
        if place is None:
            return None
        if place == 0:
            return "not carried out", {}
        after = versions[place - 1]
        if entry["interaction"] == "delete":
            return ("carried out", {}) if after.resource is None else None
        return ("carried out", {"version": after.version}) if self._found([after], entry) else None

    def _found(self, versions: list[Version], entry: dict[str, Any]) -> Version | None:
        """The version that a write made: by the request's id, else the only one with its content."""
        there = [version for version in versions if version.resource is not None]
        asked = entry.get("request", entry["decision"])
        named = [v for v in there if len(request := _request_of(v.resource)) >= LEAST_ID and asked.startswith(request)]
        if len(named) == 1 or (named and "request" not in entry):
            return named[0]
        equal = [v for v in named or there if content_digest(v.resource, self._digest) == entry["content"]]
        return equal[0] if len(equal) == 1 else None

    async def _history(
        self, server: FhirServer, segments: tuple[str, ...], query: tuple[tuple[str, str], ...], name: str
    ) -> list[Version] | None:
        """The entries of a history, newest first; None where the server does not give one whole."""
        found: list[Version] = []
        place = "/".join(segments)
        for _ in range(MOST_PAGES):
            response = await server.send("GET", segments, query, headers={"Cache-Control": "no-cache"})
            if response.status in {404, 410}:
                return found
            bundle = fhir_json.decode(response.body) if response.status == 200 else None
            if not isinstance(bundle, dict) or bundle.get("resourceType") != "Bundle":
                return None
            found += [version for version in versions_of(bundle.get("entry")) if version.name.type == name]
            link = next((one for one in _objects(bundle.get("link")) if one.get("relation") == "next"), None)
            if link is None:
                return found
            target = link_target(link.get("url"), server.url, name, place)
            if target is None:
                return None
            segments, query = target
        return None


def _request_of(resource: dict[str, Any]) -> str:
    """The request that made a version, as HAPI notes it in ``meta.source``; empty where nothing says so."""
    source = _object(resource.get("meta")).get("source")
    return source.rpartition("#")[2] if isinstance(source, str) and "#" in source else ""


def _objects(value: Any) -> list[dict[str, Any]]:
    """The objects of a list, whatever else an upstream may send."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
