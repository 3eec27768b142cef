"""Resources at hand in place of a server: what decisions read is found among them, by the production engine."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fhirshield.errors import CriteriaError
from fhirshield.fhir import criteria
from fhirshield.fhir.criteria import Criteria, Criterion
from fhirshield.gather import AboutAnswer, Asked
from fhirshield.gather.reading import Counts, Query
from fhirshield.model import Permit
from fhirshield.policy.compile import RuleSet
from fhirshield.state.epochs import MemoryEpochs

T = TypeVar("T")


class _Place:
    """Where the resources at hand are: nowhere."""

    url = "https://upstream.example/fhir"


class Shelf:
    """Answers searches from a list; a parameter that cannot be judged leaves nothing out, since all is judged again."""

    def __init__(self, stored: list[Any], bases: tuple[str, ...]) -> None:
        self.server = _Place()
        self._stored = stored
        self._bases = bases

    async def search(self, permit: Permit, name: str, query: Query, counts: Counts) -> list[dict[str, Any]]:
        """See Reading."""
        found = [one for one in self._stored if one.get("resourceType") == name]
        for key, value in query:
            code, _, modifier = key.partition(":")
            if code == "_count":
                continue
            try:
                asked = Criteria(name, (Criterion(code, modifier, tuple(value.split(","))),))
                holds = criteria.judge(asked, self._bases)
            except CriteriaError:
                continue
            found = [one for one in found if holds(one) is not False]
        return found


def about(rules: RuleSet, stored: list[Any], bases: tuple[str, ...]) -> AboutAnswer:
    """What gathers from resources at hand."""
    labelled = rules.sensitivity
    asked = Asked(
        consents=rules.consent is not None,
        inherit=labelled.inherited if labelled else None,
        births=labelled is not None and labelled.minors is not None,
        relationships=tuple(rules.relationships.values()),
    )
    shelf: Any = Shelf(stored, bases)
    return AboutAnswer(asked, shelf, None, MemoryEpochs(), lambda key: key)


def driven(work: Coroutine[Any, Any, T]) -> T:
    """Run what would be awaited, wherever this is called from."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
