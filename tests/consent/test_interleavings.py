"""No late permit: writes, revocations and reads on two replicas, interleaved at random, with a source and a state that fail.

Late is a permit whose re-check began after the answer to the write that revoked it. Everything but time, the source and the
faults is the production's: ``AboutAnswer`` with its kept facts and marks, ``still`` before the first byte.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fhirshield.errors import Unavailable
from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.gather import AboutAnswer, Asked, Stale
from fhirshield.gather.reading import away
from fhirshield.model import Denial, Facts, Permit, Reason, Refused, Writing
from fhirshield.state.epochs import Epochs, Mark, MemoryEpochs, RedisEpochs
from tests.consent.material import consent, provision
from tests.parts import count
from tests.state.test_state import redis_server
from tests.tally import tally

INTERLEAVINGS = count(10_000, 600)
PATIENT = {"resourceType": "Patient", "id": "p"}


class Chance:
    """Turns of a loop taken at random, and faults."""

    def __init__(self, seed: int, faulty: float) -> None:
        self.random = random.Random(seed)
        self.faulty = faulty

    async def turn(self) -> None:
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)

    @property
    def fails(self) -> bool:
        return self.random.random() < self.faulty


class Place:
    url = "http://source.example/fhir"


class Source:
    """One Consent, read at some moment of a search; searches may fail."""

    def __init__(self, chance: Chance) -> None:
        self.server = Place()
        self.permits = True
        self.version = 1
        self._chance = chance

    async def search(self, permit: Any, name: str, query: Any, counts: Any) -> list[Any]:
        await self._chance.turn()
        if self._chance.fails:
            raise Refused(away())
        root = provision("permit" if self.permits else "deny")
        found = [consent("c", "p", root, meta={"versionId": str(self.version)})] if name == "Consent" else []
        await self._chance.turn()
        return found


class Failing:
    """Epochs that take time, and fail: before the work is done, or after it."""

    def __init__(self, inner: Epochs, chance: Chance) -> None:
        self._inner, self._chance = inner, chance

    async def _around(self, work: Any) -> Any:
        await self._chance.turn()
        if self._chance.fails:
            work.close()
            raise Unavailable("away")
        found = await work
        await self._chance.turn()
        if self._chance.fails:
            raise Unavailable("away")
        return found

    async def read(self, keys: Sequence[str]) -> Mapping[str, Mark]:
        found: Mapping[str, Mark] = await self._around(self._inner.read(keys))
        return found

    async def begin(self, keys: Iterable[str]) -> None:
        await self._around(self._inner.begin(list(keys)))

    async def end(self, keys: Iterable[str]) -> None:
        await self._around(self._inner.end(list(keys)))

    async def close(self) -> None:
        pass


class Run:
    """One interleaving."""

    def __init__(self, permit: Permit, inner: Epochs, seed: int, faulty: float) -> None:
        self.chance = Chance(seed, faulty)
        self.source = Source(self.chance)
        self.permit = permit
        asked = Asked(consents=True, max_age=1000.0)
        reading: Any = self.source
        self.replicas = [
            AboutAnswer(asked, reading, None, Failing(inner, self.chance), lambda key: f"{seed} {key}") for _ in range(2)
        ]
        for about in self.replicas:
            about.marks.pauses = (0.0, 0.0)
        self.clock = 0
        self.answered: list[tuple[int, bool, int]] = []
        """(moment of the answer, whether it permits, version)"""
        self.released: list[tuple[int, bool, int]] = []
        """(when the re-check began, whether it showed, the version that decided)"""

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    async def write(self, permits: bool) -> None:
        about = self.chance.random.choice(self.replicas)
        permit = replace(self.permit, situation=replace(self.permit.situation, facts=Facts()),
                         writing=Writing(consent("c", "p", provision("permit" if permits else "deny")), "", False, False, frozenset("p")))  # fmt: skip
        await self.chance.turn()
        try:
            async with about.marks.writing(about.marks.touched([permit]), [permit]):
                await self.chance.turn()
                if self.chance.fails:  # the server acted, or not, and nobody knows
                    if self.chance.random.random() < 0.5:
                        self._store(permits)
                    raise Refused(Denial(502, Reason.OUTCOME_UNKNOWN, "incomplete", ""))
                version = self._store(permits)
                await self.chance.turn()
        except Refused:
            return
        self.answered.append((self.tick(), permits, version))

    def _store(self, permits: bool) -> int:
        self.source.permits = permits
        self.source.version += 1
        return self.source.version

    async def read(self) -> None:
        about = self.chance.random.choice(self.replicas)
        for _ in range(3):
            permit = replace(self.permit, situation=replace(self.permit.situation, facts=Facts()))
            facts = permit.situation.facts
            try:
                await about.ready(permit, {})
                await about(permit, [PATIENT], {})
                (known,) = facts.consents["p"].consents
                await self.chance.turn()
                began = self.tick()
                if await about.still(permit.situation):
                    self.released.append((began, known.root is not None and known.root.permits is True, int(known.version)))
                    return
            except Stale:
                continue
            except Refused:
                return

    async def whole(self) -> None:
        work = [self.read() for _ in range(self.chance.random.randrange(2, 6))]
        work += [self.write(self.chance.random.random() < 0.4) for _ in range(self.chance.random.randrange(1, 4))]
        self.chance.random.shuffle(work)
        await asyncio.gather(*work)
        await self.read()

    def late(self) -> list[Any]:
        """Permits by a version older than the last that was answered before the re-check began, where that one denies."""
        found = []
        for began, shown, version in self.released:
            before = [row for row in self.answered if row[0] < began]
            newest = max(before, key=lambda row: row[2], default=None)
            if shown and newest is not None and version < newest[2]:
                found.append((began, version, newest))
        return found


def permit_of() -> Permit:
    """A permit whose facts are gathered."""
    from fhirshield.policy.compile import RuleSet
    from fhirshield.policy.load import loads
    from fhirshield.rehearsal import Stage, principal_from
    from tests.properties.test_decisions import NOW

    rules = RuleSet(loads("rules: [{id: a, who: {roles: ['*']}, allow: {interactions: [read], resources: [Patient]}}]"))
    outcome = Stage(rules).rehearse(principal_from({}), "GET /Patient/p", [PATIENT], NOW)
    assert outcome.permit is not None
    return replace(outcome.permit, interaction=Interaction(Kind.READ, type="Patient", id="p"))


@pytest.mark.promise
async def test_no_permit_is_late_in_any_interleaving() -> None:
    permit, released, answered = permit_of(), 0, 0
    late: list[Any] = []
    for seed in range(INTERLEAVINGS):
        run = Run(permit, MemoryEpochs(), seed, random.Random(seed).choice((0.0, 0.05, 0.2)))
        await run.whole()
        released, answered, late = (
            released + len(run.released),
            answered + len(run.answered),
            late + [(seed, *one) for one in run.late()],
        )
    assert not late, late[:3]
    assert released > INTERLEAVINGS and answered > INTERLEAVINGS / 2, "runs that do nothing would show nothing"
    tally("interleavings of Consents", tried=INTERLEAVINGS)


async def test_nor_with_a_real_redis_that_is_restarted_and_forgets(tmp_path: Path) -> None:
    permit, released = permit_of(), 0
    for part in range(4):
        with redis_server(tmp_path) as url:
            inner = RedisEpochs(url)
            for seed in range(part * 1000, part * 1000 + count(500, 50)):
                run = Run(permit, inner, seed, 0.05)
                await run.whole()
                assert not run.late(), seed
                released += len(run.released)
            await inner.close()
    assert released > 4 * count(500, 50)


async def test_an_unguarded_read_would_be_late() -> None:
    """The test can fail: without the re-check there are late permits."""
    permit, late = permit_of(), 0
    for seed in range(200):
        run = Run(permit, MemoryEpochs(), seed, 0.0)

        async def always(situation: Any) -> bool:
            return True

        for about in run.replicas:
            about.still = always  # type: ignore[method-assign]
        await run.whole()
        late += len(run.late())
    assert late > 0
