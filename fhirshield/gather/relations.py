"""Whom the caller stands in a relationship to: the patients that a relationship's queries give, judged again here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fhirshield.errors import CriteriaError, Unavailable
from fhirshield.fhir import criteria
from fhirshield.fhir.criteria import Criteria
from fhirshield.fhir.reference import Literal, literal
from fhirshield.fhir.subjects import patients_of
from fhirshield.gather.kept import Kept
from fhirshield.gather.reading import Counts, Reading
from fhirshield.model import PLACEHOLDER, Permit, Principal, Relationship

AT_ONCE = 500
"""Resources of a page."""
MOST_VALUES = 20
"""Values that one placeholder may stand for."""


class Relations:
    """Relationships at one upstream, kept as long as each may be old. ``kept`` makes what keeps."""

    def __init__(self, reading: Reading, kept: Mapping[str, Kept[frozenset[str]]]) -> None:
        self._reading = reading
        self._kept = kept

    async def gather(self, permit: Permit, counts: Counts, *, anyhow: bool = False) -> None:
        """The patients of all relationships that rules ask of this caller. Raises Refused, Unavailable.

        ``anyhow``: asked for even where nobody can say whether what is kept is fresh.
        """
        facts = permit.situation.facts
        for relationship in permit.relations:
            if relationship.name not in facts.related:
                queries = sorted({one for text in relationship.queries for one in filled(text, permit.principal)})
                key = json.dumps([relationship.name, *queries])

                async def fetch(
                    keys: Sequence[str], queries: list[str] = queries, name: str = relationship.name
                ) -> Mapping[str, frozenset[str]]:
                    found = [await self._patients(permit, criteria.parse(one), counts) for one in queries]
                    return {keys[0]: frozenset().union(*found)}

                try:
                    kept = await self._kept[relationship.name].of([key], facts, fetch)
                except Unavailable:
                    if not anyhow:
                        raise
                    kept = dict(await fetch([key]))
                facts.related[relationship.name] = kept[key]

    async def _patients(self, permit: Permit, asked: Criteria, counts: Counts) -> frozenset[str]:
        bases = permit.situation.bases
        holds = criteria.judge(asked, bases)
        query = (*(item.query() for item in asked.items), ("_count", str(AT_ONCE)))
        found: set[str] = set()
        for resource in await self._reading.search(permit, asked.type, query, counts):
            if holds(resource) is True:
                found |= patients_of(resource, bases) or frozenset()
        return frozenset(found)


def filled(text: str, principal: Principal) -> list[str]:
    """A query with what is known of the caller in its places: none where one of them is not known."""
    made = text
    for name in dict.fromkeys(PLACEHOLDER.findall(text)):
        values = _values(name, principal, text.partition("?")[0])
        if not values or len(values) > MOST_VALUES:
            return []
        made = made.replace("{" + name + "}", ",".join(values))
    try:
        criteria.parse(made)
    except CriteriaError:
        return []
    return [made]


def _values(name: str, principal: Principal, kind: str) -> list[str]:
    """What a place stands for; an id by itself names somebody only among those of its own type."""
    user = literal(principal.fhir_user)
    if name == "fhirUser":
        return [] if user is None else [str(user)]
    if name == "fhirUser.id":
        return [user.id] if user is not None and user.type == kind else []
    if name == "organization":
        return [one for one in sorted(principal.organizations) if literal(one) is not None]
    if name == "patient":
        return [f"Patient/{principal.patient}"] if principal.patient else []
    value = dict(principal.attributes).get(name)
    items = value if isinstance(value, tuple) else (value,)
    return [_escaped(one) for one in items if isinstance(one, str) and one and "&" not in one and "%" not in one]


def _escaped(text: str) -> str:
    return re.sub(r"([\\,$|])", r"\\\1", text)


def parties_of(key: str) -> list[str]:
    """What kept patients depend on, to name marks by: the parties that queries name; the types where they name none."""
    _, *queries = json.loads(key)
    found: set[str] = set()
    for text in queries:
        asked = criteria.parse(text)
        named = {str(one) for item in asked.items for value in item.values if (one := literal(value)) is not None}
        found |= {f"party {one}" for one in named} if named else {f"type {asked.type}"}
    return sorted(found) or ["type"]


def touched(image: Any, named: Sequence[Literal]) -> list[str]:
    """The same of a resource that is written."""
    return [f"type {image.get('resourceType')}", *(f"party {one}" for one in named)]


__all__ = ["Relations", "Relationship", "filled", "parties_of", "touched"]
