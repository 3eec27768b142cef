"""Searches that are made for a caller on the way, decided like its own; all that they find, in bounds."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from fhirshield.authorize import authorize, joined, narrowed, related_only
from fhirshield.fhir.criteria import Criterion
from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.fhir.page import Target
from fhirshield.fhir.reference import Literal
from fhirshield.forward import Forwarder
from fhirshield.gather import Gatherer
from fhirshield.model import Answer, Denial, Permit, Plan, Reason, Refused
from fhirshield.policy.compile import RuleSet
from fhirshield.redact import Redactor, Searchset
from fhirshield.rewrite import fresh, onward, rewrite

MOST_PAGES = 10
"""Pages of the upstream that one page of ours may cost."""
MOST_JOINED = 200
"""Resources that a chain may lead through, or that a ``_has`` may lead to."""
LAST = 5000
"""Observations among which ``$lastn`` looks, and resources among which ``_has`` does."""
Gathered = dict[str, int]
"""What was asked in order to decide: requests by type."""


class Searches:
    """Asks one upstream."""

    def __init__(self, rules: RuleSet, gather: Gatherer, forward: Forwarder, redact: Redactor) -> None:
        self._rules = rules
        self._gather = gather
        self._forward = forward
        self._redact = redact

    async def _answered(self, plan: Plan, gathered: Gathered) -> Answer:
        """What the upstream answers, once it is known what those whom it is about say to it. Raises Refused."""
        marks = self._gather.about.marks.touched([plan.permit])
        async with self._gather.about.marks.writing(marks, [plan.permit]):
            answer = await self._forward(plan)
        with contextlib.suppress(*([Refused] if plan.permit.writing is not None else [])):  # it was done: it is told, not shown
            await self._gather.about(plan.permit, _judged(answer), gathered)
        return answer

    async def _join(self, permit: Permit, gathered: Gathered) -> Permit:
        """Resolve chains and ``_has`` by searches that are decided like the caller's own, in bounded steps."""
        found: list[Criterion | None] = []
        for join in permit.joins:
            inner = granted(authorize(permit.principal, join.search, permit.situation, self._rules))
            matches = await self._matches(inner, gathered, LAST if join.reverse else MOST_JOINED)
            criterion = joined(join, matches, permit.situation.bases)
            if criterion is not None and len(criterion.values) > MOST_JOINED:
                raise Refused(_too_many(permit.interaction.type))
            found.append(criterion)
        return narrowed(permit, found)

    async def _matches(self, permit: Permit, gathered: Gathered, most: int = MOST_JOINED) -> Mapping[Literal, Any]:
        """All that this caller finds by a search, as it is shown; too much is refused."""
        permit = related_only(permit, self._rules)
        permit = await self._join(permit, gathered) if permit.joins else permit
        return (await self._whole(rewrite(permit.interaction, permit), gathered, most)).shown

    async def _whole(self, plan: Plan, gathered: Gathered, most: int) -> Searchset:
        """All matches of a search, up to so many. Raises Refused."""
        name = plan.permit.interaction.type
        plan = fresh(plan)
        found = Searchset(self._redact, plan, whole=True)
        onwards: Target | None = (plan.segments, plan.query)
        for _ in range(MOST_PAGES):
            gathered[name] = gathered.get(name, 0) + 1
            onwards = found.add(await self._answered(plan, gathered))
            if onwards is None:
                break
            plan = onward(plan, *onwards)
        if onwards is not None or len(found.shown) > most:
            raise Refused(_too_many(name))
        return found

    async def _all_of(self, search: Interaction, permit: Permit, gathered: Gathered) -> list[Literal]:
        """What a condition names, where nothing that it could name may be withheld from its caller. Raises Refused."""
        inner = granted(authorize(permit.principal, search, permit.situation, self._rules))
        if inner.thins or inner.joins:
            text = f"conditions are not served to a caller from whom any {search.type}, or what joins it, may be withheld"
            raise Refused(Denial(403, Reason.HIDDEN_PART, "forbidden", text))
        return list(await self._matches(inner, gathered))


def _judged(answer: Answer) -> list[Any]:
    """The resources of an answer that are judged: those of a page, not the page."""
    resource = answer.resource
    pages = (
        isinstance(resource, dict) and resource.get("resourceType") == "Bundle" and resource.get("type") in {"searchset", "history"}
    )
    if pages and answer.plan.permit.interaction.kind is not Kind.READ:
        return [entry["resource"] for entry in resource.get("entry", ()) if "resource" in entry]
    return [resource]


def _too_many(name: str) -> Denial:
    text = f"more {name} than can be joined for this caller; ask more narrowly"
    return Denial(403, Reason.NOT_SERVED, "too-costly", text)


def granted(decision: Permit | Denial) -> Permit:
    """The permit. Raises Refused for a denial."""
    if isinstance(decision, Denial):
        raise Refused(decision)
    return decision
