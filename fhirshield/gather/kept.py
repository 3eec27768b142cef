"""Facts that are kept for a while: each under the mark that stood before it was fetched, and no longer than it may be old."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

from fhirshield.errors import Unavailable
from fhirshield.model import Facts
from fhirshield.state.epochs import Epochs

T = TypeVar("T")
MOST = 50_000
"""Facts of a kind that are kept."""
EVERYTHING = "*"
"""The mark of what is written and not known to be about somebody: whatever is kept goes with it."""


class Kept(Generic[T]):
    """Facts of one kind by key. ``names`` makes the keys of its marks, under which nobody can read who is meant."""

    def __init__(
        self, epochs: Epochs, names: Callable[[str], Sequence[str]], *, max_age: float, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._epochs = epochs
        self._names = names
        self._max_age = max_age
        self._clock = clock
        self._kept: OrderedDict[str, tuple[str, float, T]] = OrderedDict()

    async def of(
        self, keys: Sequence[str], facts: Facts, fetch: Callable[[Sequence[str]], Awaitable[Mapping[str, T]]]
    ) -> dict[str, T]:
        """The facts of these keys, fetched together where they are not known to be fresh. Raises Unavailable.

        ``facts`` notes the marks, which are held against those of the moment before the first byte leaves.
        """
        if not keys:
            return {}
        names = {key: (EVERYTHING, *self._names(key)) for key in keys}
        marks = await self._epochs.read(list(dict.fromkeys(name for several in names.values() for name in several)))
        for name, mark in marks.items():
            if facts.epochs.setdefault(name, mark.text) != mark.text:
                raise Changed
        texts = {key: " ".join(marks[name].text for name in several) for key, several in names.items()}
        now = self._clock()
        found: dict[str, T] = {}
        for key in keys:
            kept = self._kept.get(key)
            if kept is not None and kept[0] == texts[key] and kept[1] > now:
                found[key] = kept[2]
        stale = [key for key in keys if key not in found]
        if stale:
            begun = self._clock()
            fetched = await fetch(stale)
            for key in stale:
                found[key] = fetched[key]
                if all(marks[name].settled for name in names[key]):
                    self._keep(key, (texts[key], begun + self._max_age, fetched[key]))
        return found

    def _keep(self, key: str, row: tuple[str, float, T]) -> None:
        self._kept[key] = row
        self._kept.move_to_end(key)
        if len(self._kept) > MOST:
            self._kept.popitem(last=False)


class Changed(Unavailable):
    """What an exchange rests on changed while it was decided: it is decided again."""

    def __init__(self) -> None:
        super().__init__("what this rests on changed meanwhile")


async def unchanged(epochs: Epochs, facts: Facts) -> bool:
    """Whether all that an exchange rests on is as it was when it was gathered. Raises Unavailable."""
    if not facts.epochs:
        return True
    marks = await epochs.read(list(facts.epochs))
    return all(marks[key].text == text for key, text in facts.epochs.items())
