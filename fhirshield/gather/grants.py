"""Break-glass grants: for one caller, one patient and one reason, for a while, counted against a limit.

They are kept in the shared state, so that every replica knows them; with that away, here, and counted by what this replica's
journal tells of, before its start too: an emergency waits for no Redis, and neither its loss nor a restart lifts a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fhirshield.errors import Unavailable
from fhirshield.model import Denial, Emergency, Grant, Principal, Reason, Refused
from fhirshield.state import ExpiringMap

_OPENING = 2.0
"""Seconds that one request has to open a grant, while others for the same wait."""
_PAUSE = 0.02
MOST = 1000
"""Grants of one caller under one rule that are remembered."""
_NONE_LEFT = b"-"
"""What stands for a while where a grant was refused, so that those who wait for it are, too."""


class Grants:
    """Opens grants. ``digest`` hides in the shared state who asked for whom; ``broken``: what the journal tells of earlier ones."""

    def __init__(
        self, state: ExpiringMap, digest: Callable[[str], str], broken: Iterable[Mapping[str, Any]] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._state = state
        self._digest = digest
        self._clock = clock
        self._here: dict[str, tuple[str, float]] = {}
        self._given: dict[str, deque[float]] = {}
        for entry in broken:
            with contextlib.suppress(KeyError, ValueError, TypeError, IndexError):  # of another version
                self._recall(entry)

    def _recall(self, entry: Mapping[str, Any]) -> None:
        """Know of a glass that was broken before this process began."""
        opened = dt.datetime.fromisoformat(entry["time"])
        at = self._clock() - max(0.0, (dt.datetime.now(dt.UTC) - opened).total_seconds())
        caller, rule = f"{entry['issuer']}\0{entry['subject']}", entry["rule"]
        self._given.setdefault(f"{caller}\0{rule}", deque(maxlen=MOST)).append(at)
        key = self._digest(f"break-glass {caller}\0{entry['patients'][0]}\0{entry['stated']}\0{rule}")
        self._here[key] = (entry["break_glass"], at + entry["seconds"])

    async def open(self, emergency: Emergency, principal: Principal, patient: str, reason: str) -> Grant:
        """The grant for this patient: the one there is, else a new one. Raises Refused where the limit is reached."""
        caller = f"{principal.issuer}\0{principal.subject}"
        key = self._digest(f"break-glass {caller}\0{patient}\0{reason}\0{emergency.rule}")
        try:
            identity, new = await self._one(emergency, key, self._digest(f"break-glass {caller}\0{emergency.rule}"))
        except Unavailable:
            return self._locally(emergency, key, caller, patient, reason)
        if new:
            self._note(caller, emergency)
        return Grant(identity, emergency, patient, reason, new=new)

    async def known(self, emergency: Emergency, principal: Principal, patient: str, reason: str) -> Grant | None:
        """The grant that is open for this patient, if there is one."""
        caller = f"{principal.issuer}\0{principal.subject}"
        key = self._digest(f"break-glass {caller}\0{patient}\0{reason}\0{emergency.rule}")
        identity = ""
        with contextlib.suppress(Unavailable):
            found = await self._state.get(key)
            identity = found.decode() if found is not None and found != _NONE_LEFT else ""
        if not identity and (here := self._here.get(key)) is not None and here[1] > self._clock():
            identity = here[0]
        return Grant(identity, emergency, patient, reason, new=False) if identity else None

    async def _one(self, emergency: Emergency, key: str, caller: str) -> tuple[str, bool]:
        """The one grant of many requests that come at once, and whether this one opened it. Raises Refused, Unavailable."""
        until = time.monotonic() + 2 * _OPENING
        while time.monotonic() < until:
            known = await self._state.get(key)
            if known == _NONE_LEFT:
                raise Refused(_too_many(emergency))
            if known is not None:
                return known.decode(), False
            if not await self._state.add(f"{key} opening", _OPENING):
                await asyncio.sleep(_PAUSE)
                continue
            if await self._state.get(key) is not None:
                continue
            try:
                await self._count(emergency, caller)
            except Refused:
                await self._state.put(key, _NONE_LEFT, _OPENING)
                raise
            identity = os.urandom(8).hex()
            await self._state.put(key, identity.encode(), emergency.seconds)
            return identity, True
        raise Unavailable("a grant is being opened elsewhere")

    async def _count(self, emergency: Emergency, caller: str) -> None:
        """Take one of the places that a caller has within the window; each comes back by itself."""
        for place in range(emergency.limit):
            if await self._state.add(f"{caller} {place}", emergency.window):
                return
        raise Refused(_too_many(emergency))

    def _locally(self, emergency: Emergency, key: str, caller: str, patient: str, reason: str) -> Grant:
        now = self._clock()
        known = self._here.get(key)
        if known is not None and known[1] > now:
            return Grant(known[0], emergency, patient, reason, new=False)
        given = self._given.setdefault(f"{caller}\0{emergency.rule}", deque())
        while given and given[0] <= now - emergency.window:
            given.popleft()
        if len(given) >= emergency.limit:
            raise Refused(_too_many(emergency))
        self._note(caller, emergency)
        identity = os.urandom(8).hex()
        self._here[key] = (identity, now + emergency.seconds)
        return Grant(identity, emergency, patient, reason, new=True)

    def _note(self, caller: str, emergency: Emergency) -> None:
        self._given.setdefault(f"{caller}\0{emergency.rule}", deque(maxlen=MOST)).append(self._clock())


def _too_many(emergency: Emergency) -> Denial:
    text = f"the glass was broken {emergency.limit} times by this caller within the time that the rule sets"
    return Denial(403, Reason.BREAK_GLASS, "throttled", text, rule=emergency.rule)
