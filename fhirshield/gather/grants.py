"""Break-glass grants: for one caller, one patient and one reason, for a while, counted against a limit.

They are kept in the shared state, so that every replica knows them; with that away, here. Whatever the state has forgotten, what
this replica's journal tells of counts, before its start too: an emergency waits for no Redis, and neither its loss nor a restart
lifts a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

from fhirshield.errors import Unavailable
from fhirshield.model import Denial, Emergency, Grant, Principal, Reason, Refused
from fhirshield.state import ExpiringMap

Tell = Callable[[Grant], Awaitable[None]]
"""Records a new grant, and says it aloud. Raises Refused where it cannot be recorded."""
_OPENING = 6.0
"""Seconds that one request has to open a grant and to record it, while others for the same wait."""
_REFUSED = 2.0
"""Seconds for which those who ask together are refused together."""
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
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        for entry in broken:
            with contextlib.suppress(KeyError, ValueError, TypeError, IndexError):  # of another version
                self._recall(entry)

    def _recall(self, entry: Mapping[str, Any]) -> None:
        """Know of a glass that was broken before this process began."""
        opened = dt.datetime.fromisoformat(entry["time"])
        at = self._clock() - max(0.0, (dt.datetime.now(dt.UTC) - opened).total_seconds())
        caller, rule = f"{entry['issuer']}\0{entry['subject']}", entry["rule"]
        self._given.setdefault(f"{caller}\0{rule}", deque(maxlen=MOST)).append(at)
        key = self._digest(f"break-glass {caller}\0{entry['upstream']}\0{entry['patients'][0]}\0{entry['stated']}\0{rule}")
        self._here[key] = (entry["break_glass"], at + entry["seconds"])

    async def open(
        self, emergency: Emergency, principal: Principal, where: str, patient: str, reason: str, tell: Tell
    ) -> Grant:  # fmt: skip
        """The grant for this patient of an upstream: the one there is, else a new one. Raises Refused where the limit is reached.

        A new one is told before anybody can use it, here or on another replica; where it cannot be told it is none.
        """
        if not principal.subject:
            text = "an emergency is somebody's: the token says not whose it is (`sub`)"
            raise Refused(Denial(403, Reason.BREAK_GLASS, "forbidden", text, rule=emergency.rule))
        caller = f"{principal.issuer}\0{principal.subject}"
        key = self._key(caller, where, patient, reason, emergency)
        asked = _Asked(emergency, patient, reason, key, f"{caller}\0{emergency.rule}", tell)
        if (open_here := self._open(asked)) is not None:
            return open_here
        lock = self._locks.get(key) or asyncio.Lock()
        self._locks[key] = lock
        async with lock:
            if (open_here := self._open(asked)) is not None:
                return open_here
            try:
                return await self._together(asked)
            except Unavailable:
                return await self._alone(asked)

    def _key(self, caller: str, where: str, patient: str, reason: str, emergency: Emergency) -> str:
        return self._digest(f"break-glass {caller}\0{where}\0{patient}\0{reason}\0{emergency.rule}")

    def _open(self, asked: _Asked) -> Grant | None:
        """The grant that this replica knows to be open, whatever the state has forgotten."""
        here = self._here.get(asked.key)
        return asked.grant(here[0]) if here is not None and here[1] > self._clock() else None

    async def known(self, emergency: Emergency, principal: Principal, where: str, patient: str, reason: str) -> Grant | None:
        """The grant that is open for this patient of an upstream, if there is one."""
        if not principal.subject:
            return None
        key = self._key(f"{principal.issuer}\0{principal.subject}", where, patient, reason, emergency)
        identity = ""
        with contextlib.suppress(Unavailable):
            found = await self._state.get(key)
            identity = found.decode() if found is not None and found != _NONE_LEFT else ""
        if not identity and (here := self._here.get(key)) is not None and here[1] > self._clock():
            identity = here[0]
        return Grant(identity, emergency, patient, reason, new=False) if identity else None

    async def _together(self, asked: _Asked) -> Grant:
        """The one grant of many requests that come at once, on whatever replica. Raises Refused, Unavailable."""
        emergency, key = asked.emergency, asked.key
        until = time.monotonic() + 2 * _OPENING
        while time.monotonic() < until:
            known = await self._state.get(key)
            if known == _NONE_LEFT:
                raise Refused(_too_many(emergency))
            if known is not None:
                return asked.grant(known.decode())
            if not await self._state.add(f"{key} opening", _OPENING):
                await asyncio.sleep(_PAUSE)
                continue
            if await self._state.get(key) is not None:
                continue
            try:
                place = await self._count(asked)
            except Refused:
                await self._state.put(key, _NONE_LEFT, _REFUSED)
                await self._state.forget(f"{key} opening")
                raise
            try:
                made = await self._told(asked)
            except BaseException:
                with contextlib.suppress(Unavailable):
                    for name in (place, f"{key} opening"):
                        await self._state.forget(name)
                raise
            with contextlib.suppress(Unavailable):  # it is told: it holds here, whoever else knows
                await self._state.put(key, made.id.encode(), emergency.seconds)
            return made
        raise Unavailable("a grant is being opened elsewhere")

    async def _count(self, asked: _Asked) -> str:
        """Take one of the places that a caller has within the window; each comes back by itself. Raises Refused.

        What this replica's journal tells of counts whatever the state has forgotten.
        """
        emergency = asked.emergency
        if self._used(asked) < emergency.limit:
            for place in range(emergency.limit):
                name = f"{self._digest(f'break-glass {asked.caller}')} {place}"
                if await self._state.add(name, emergency.window):
                    return name
        raise Refused(_too_many(emergency))

    async def _alone(self, asked: _Asked) -> Grant:
        """The same with the shared state away, by what this replica knows. Raises Refused."""
        if self._used(asked) >= asked.emergency.limit:
            raise Refused(_too_many(asked.emergency))
        return await self._told(asked)

    def _used(self, asked: _Asked) -> int:
        given = self._given.setdefault(asked.caller, deque(maxlen=MOST))
        while given and given[0] <= self._clock() - asked.emergency.window:
            given.popleft()
        return len(given)

    async def _told(self, asked: _Asked) -> Grant:
        """A new grant, once it is told; counted meanwhile. Raises Refused."""
        made = replace(asked.grant(os.urandom(8).hex()), new=True)
        given, now = self._given.setdefault(asked.caller, deque(maxlen=MOST)), self._clock()
        given.append(now)
        try:
            await asked.tell(made)
        except BaseException:
            with contextlib.suppress(ValueError):
                given.remove(now)
            raise
        self._here[asked.key] = (made.id, now + asked.emergency.seconds)
        return made


@dataclass(frozen=True, slots=True)
class _Asked:
    """A grant that is asked for."""

    emergency: Emergency
    patient: str
    reason: str
    key: str
    caller: str
    """Who asks, under which rule."""
    tell: Tell

    def grant(self, identity: str) -> Grant:
        """The grant, once there is one."""
        return Grant(identity, self.emergency, self.patient, self.reason, new=False)


def _too_many(emergency: Emergency) -> Denial:
    text = f"the glass was broken {emergency.limit} times by this caller within the time that the rule sets"
    return Denial(403, Reason.BREAK_GLASS, "throttled", text, rule=emergency.rule)
