"""What comes back, as this caller may see it: pages of our own, pasts, and what operations answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fhirshield.fhir.interaction import Kind
from fhirshield.fhir.reference import Literal
from fhirshield.forward import not_found
from fhirshield.inquiry.search import LAST, MOST_JOINED, MOST_PAGES, Gathered, Searches
from fhirshield.model import Denial, Plan, Reason, Refused, View
from fhirshield.redact import Everything, History, Matches, Past, Searchset, as_meta, newest, operated
from fhirshield.rewrite import onward


class After(Searches):
    """Answers plans."""

    async def __call__(self, plan: Plan, gathered: Gathered) -> View:
        """What comes back, as this caller may see it. Raises Refused."""
        interaction = plan.permit.interaction
        if interaction.operation in _ANSWERS:
            return await _ANSWERS[interaction.operation](self, plan, gathered)
        if interaction.kind is Kind.OPERATION:
            return operated(self._redact, await self._answered(plan, gathered))
        if interaction.searches:
            return await self._searched(plan, gathered)
        if interaction.recalls:
            return await self._recalled(plan, gathered)
        if interaction.kind is Kind.VREAD and plan.permit.thins:
            versions = await self._gather.versions(plan.permit, Literal(interaction.type, interaction.id), gathered)
            return Past(self._redact, plan.permit, versions).view(interaction.version)
        return self._redact(await self._answered(plan, gathered))  # the answer ends here: no parsed body waits for the disk

    async def _searched(self, plan: Plan, gathered: Gathered) -> View:
        """A page of our own, from as many of the upstream's as it takes, within a budget."""
        page = Searchset(self._redact, plan)
        for last in (*(False,) * (MOST_PAGES - 1), True):
            onwards = page.add(await self._answered(plan, gathered))
            if onwards is None:
                break
            if last:
                page.give_up()
            plan = onward(plan, *onwards)
        return page.view()

    async def _recalled(self, plan: Plan, gathered: Gathered) -> View:
        """A page of a history; where anything may be withheld, every resource of it is judged by all of its versions."""
        page, asked = History(self._redact, plan), 0
        for last in (*(False,) * (MOST_PAGES - 1), True):
            answer = await self._answered(plan, gathered)
            unknown = page.unknown(answer)
            if asked and asked + len(unknown) > MOST_JOINED:
                page.give_up()
                break
            asked += len(unknown)
            for name in unknown:
                page.know(name, await self._gather.versions(plan.permit, name, gathered))
            onwards = page.add(answer)
            if onwards is None:
                break
            if last:
                page.give_up()
            plan = onward(plan, *onwards)
        if plan.permit.interaction.id and plan.permit.thins and page.empty:
            raise Refused(not_found())
        return page.view()

    async def _everything(self, plan: Plan, gathered: Gathered) -> View:
        """All that a patient's record holds, of which the page that is asked is shown."""
        found = Everything(self._redact, plan)
        for _ in range(MOST_PAGES):
            onwards = found.add(await self._answered(plan, gathered))
            if onwards is None:
                return found.view()
            plan = onward(plan, *onwards)
        text = "more resources than can be judged at once; ask for some types by `_type`"
        raise Refused(Denial(403, Reason.NOT_SERVED, "too-costly", text))

    async def _match(self, plan: Plan, gathered: Gathered) -> View:
        found = Matches(self._redact, plan)
        found.add(await self._answered(plan, gathered))
        return found.view()

    async def _lastn(self, plan: Plan, gathered: Gathered) -> View:
        permit = plan.permit
        return newest(await self._whole(plan, gathered, LAST), permit.interaction.most)

    async def _meta(self, plan: Plan, gathered: Gathered) -> View:
        return as_meta(self._redact(await self._answered(plan, gathered)))


_ANSWERS: dict[str, Callable[[After, Plan, Gathered], Awaitable[View]]] = {
    "$everything": After._everything,
    "$lastn": After._lastn,
    "$match": After._match,
    "$meta": After._meta,
}
