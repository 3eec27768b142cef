"""What has to be asked of the upstream besides the one question: further pages, joined types, what a write rests on.

Everything asked is decided by ``authorize`` like the caller's own, or read by ``gather`` under the shield's name, and bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fhirshield.authorize import authorize, draft, endorse, joined, may_change, narrowed
from fhirshield.fhir.criteria import Criterion
from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.fhir.reference import Literal
from fhirshield.forward import Forwarder, not_found
from fhirshield.gather import Gatherer
from fhirshield.model import Denial, Permit, Plan, Reason, Refused, Stored, View
from fhirshield.policy.compile import RuleSet
from fhirshield.redact import Redactor, Searchset
from fhirshield.redact.links import Target
from fhirshield.redact.written import Written
from fhirshield.rewrite import fresh, onward, rewrite

MOST_PAGES = 10
"""Pages of the upstream that one page of ours may cost."""
MOST_JOINED = 200
"""Resources that a chain or ``_has`` may lead through."""
Gathered = dict[str, int]
"""What was asked in order to decide: requests by type."""


class Inquiry:
    """Asks one upstream."""

    def __init__(self, rules: RuleSet, gather: Gatherer, forward: Forwarder, redact: Redactor, written: Written) -> None:
        self._rules = rules
        self._gather = gather
        self._forward = forward
        self._redact = redact
        self._written = written

    async def before(self, permit: Permit, gathered: Gathered) -> Permit:
        """The permit once it is known what a condition names, what a write would change, and where joins lead. Raises Refused."""
        if permit.interaction.condition:
            permit = await self._conditioned(permit, gathered)
        if permit.interaction.writes:
            permit = await self._weigh(permit, gathered)
        if permit.joins:
            permit = await self._join(permit, gathered)
        return permit

    async def searched(self, plan: Plan) -> View:
        """A page of our own, from as many of the upstream's as it takes, within a budget."""
        page = Searchset(self._redact, plan)
        for last in (*(False,) * (MOST_PAGES - 1), True):
            onwards = page.add(await self._forward(plan))
            if onwards is None:
                break
            if last:
                page.give_up()
            plan = onward(plan, *onwards)
        return page.view()

    async def _join(self, permit: Permit, gathered: Gathered) -> Permit:
        """Resolve chains and ``_has`` by searches that are decided like the caller's own, in bounded steps."""
        found: list[Criterion | None] = []
        for join in permit.joins:
            inner = granted(authorize(permit.principal, join.search, permit.situation, self._rules))
            matches = await self._matches(inner, gathered)
            found.append(joined(join, matches, permit.situation.bases))
        return narrowed(permit, found)

    async def _matches(self, permit: Permit, gathered: Gathered) -> Mapping[Literal, Any]:
        """All that this caller finds by a search, as it is shown; too much is refused."""
        permit = await self._join(permit, gathered) if permit.joins else permit
        name = permit.interaction.type
        plan = fresh(rewrite(permit.interaction, permit))
        found = Searchset(self._redact, plan, whole=True)
        onwards: Target | None = (plan.segments, plan.query)
        for _ in range(MOST_PAGES):
            gathered[name] = gathered.get(name, 0) + 1
            onwards = found.add(await self._forward(plan))
            if onwards is None:
                break
            plan = onward(plan, *onwards)
        if onwards is not None or len(found.shown) > MOST_JOINED:
            text = f"more {name} than can be joined for this caller; ask more narrowly"
            raise Refused(Denial(403, Reason.NOT_SERVED, "too-costly", text))
        return found.shown

    async def _conditioned(self, permit: Permit, gathered: Gathered) -> Permit:
        """Resolve what a conditional write names, by a search that its caller may make.

        Whoever may be denied any resource of the type is refused before anybody is asked: a hidden match would show.
        """
        asked = permit.interaction
        search = Interaction(Kind.SEARCH_TYPE, type=asked.type, parameters=asked.condition)
        inner = granted(authorize(permit.principal, search, permit.situation, self._rules))
        if inner.thins or inner.joins:
            text = f"conditional writes are not served to a caller from whom any {asked.type}, or what joins it, may be withheld"
            raise Refused(Denial(403, Reason.HIDDEN_PART, "forbidden", text))
        found = await self._matches(inner, gathered)
        return granted(authorize(permit.principal, _resolved(asked, list(found)), permit.situation, self._rules))

    async def _weigh(self, permit: Permit, gathered: Gathered) -> Permit:
        """Judge a write by what is stored, what it would become, and what it names; everything is read fresh."""
        creates = permit.interaction.kind is Kind.CREATE
        stored = Stored(None) if creates else await self._gather.stored(permit, gathered)
        if not creates and (denial := may_change(permit, stored, self._rules)):
            raise Refused(denial)
        image = self._written.image(permit, stored)
        drafted = draft(permit, stored, image, self._rules)
        if isinstance(drafted, Denial):
            raise Refused(drafted)
        named = await self._gather.named(permit, drafted.refers, gathered)
        return granted(endorse(permit, drafted, named, self._rules))


def _resolved(asked: Interaction, found: list[Literal]) -> Interaction:
    """The interaction that a conditional write comes to (FHIR R4 §3.1.0.4.3, §3.1.0.8.1). Raises Refused."""
    if len(found) > 1:
        raise Refused(Denial(412, Reason.UPSTREAM_REFUSED, "multiple-matches", f"several {asked.type} match: name one by its id"))
    creates = asked.kind is Kind.CREATE
    if not found:
        if creates:
            return asked
        if asked.kind is Kind.UPDATE and not (isinstance(asked.content, dict) and "id" in asked.content):
            return replace(asked, kind=Kind.CREATE)
        raise Refused(not_found())
    (one,) = found
    if creates:
        return replace(asked, kind=Kind.READ, id=one.id, condition=(), content=None)
    content = asked.content
    if asked.kind is Kind.UPDATE and isinstance(content, dict):
        if content.get("id", one.id) != one.id:
            raise Refused(Denial(400, Reason.MALFORMED_REQUEST, "invalid", "the id in the body is not that of what matches"))
        content = {**content, "id": one.id}
    return replace(asked, id=one.id, condition=(), content=content)


def granted(decision: Permit | Denial) -> Permit:
    """The permit. Raises Refused for a denial."""
    if isinstance(decision, Denial):
        raise Refused(decision)
    return decision
