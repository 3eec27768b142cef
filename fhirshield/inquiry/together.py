"""Transactions: every entry decided as the request that it is, before the upstream sees any."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from fhirshield.authorize import authorize, endorse
from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.fhir.reference import Literal, conditional, renamed
from fhirshield.inquiry.before import Before
from fhirshield.inquiry.search import Gathered, granted
from fhirshield.model import Answer, Denial, Draft, Permit, Principal, Reason, Refused, Situation
from fhirshield.model import Together as Sent
from fhirshield.receive.target import parameters_of

MOST_CONDITIONS = 50
"""Conditional references of a transaction."""
Asked = tuple[Situation, Interaction]


class Together(Before):
    """Completes the permits of one request, or of a transaction's entries."""

    async def together(self, asked: list[Asked], principal: Principal, gathered: Gathered) -> list[Permit]:
        """The permits of a transaction's entries, each decided as the request that it is; one denial refuses them all.

        What an entry makes may be referred to by the others (FHIR R4 §3.1.0.11.2). Raises Refused, naming the entry.
        """
        permits: list[Permit] = []
        for place, (situation, interaction) in enumerate(asked):
            with within(place):
                permit = granted(authorize(principal, interaction, situation, self._rules))
                if permit.affects:
                    text = f"`{interaction.operation}` changes what is stored, and could not be undone with the other entries"
                    raise Refused(Denial(400, Reason.NOT_SERVED, "not-supported", text))
                self._check_joins(permit)
                await self._gather.about.ready(permit, gathered)
                permits.append(await self._conditioned(permit, gathered) if permit.interaction.condition else permit)
        _check_distinct(permits)
        permits = await self._linked(permits, gathered)
        drafts: dict[int, Draft] = {}
        for place, permit in enumerate(permits):
            if permit.interaction.writes:
                with within(place):
                    drafts[place] = await self._drafted(permit, gathered)
        made = {
            Literal(permits[place].interaction.type, permits[place].interaction.id): drafted.writing.image
            for place, drafted in drafts.items()
            if drafted.writing.creates and permits[place].interaction.kind is Kind.UPDATE
        }
        wanted = dict.fromkeys(name for drafted in drafts.values() for name in drafted.refers if name not in made)
        seen = {**await self._named(permits[0], wanted, gathered), **made} if drafts else {}
        for place, drafted in drafts.items():
            with within(place):
                permits[place] = granted(endorse(permits[place], drafted, seen, self._rules))
        return permits

    async def carried_out(self, plan: Sent, permits: list[Permit], gathered: Gathered) -> list[Answer]:
        """The writes of a transaction, sent as one; their answers, ready to be judged. Raises Refused."""
        async with self._gather.about.marks.writing(self._gather.about.marks.touched(permits), permits):
            answers = await self._forward.together(plan)
        with contextlib.suppress(Refused):  # it was done: it is told, not shown
            await self._gather.about(permits[0], [answer.resource for answer in answers], gathered)
        return answers

    def _check_joins(self, permit: Permit) -> None:
        """What is read comes after what is written: so whether its chains may be asked is decided now. Raises Refused."""
        for join in permit.joins:
            self._check_joins(granted(authorize(permit.principal, join.search, permit.situation, self._rules)))

    async def _linked(self, permits: list[Permit], gathered: Gathered) -> list[Permit]:
        """The permits with the names of what is already there, and conditional references, as literal references."""
        known = {
            p.interaction.name: f"{p.interaction.type}/{p.interaction.id}"
            for p in permits
            if p.interaction.id and p.interaction.name
        }
        linked, asked = [], 0
        for place, permit in enumerate(permits):
            content = permit.interaction.content
            if permit.interaction.writes and content is not None:
                with within(place):
                    for text in conditional(content) - known.keys():
                        if (asked := asked + 1) > MOST_CONDITIONS:
                            text = f"more than {MOST_CONDITIONS} conditional references"
                            raise Refused(Denial(413, Reason.TOO_LARGE, "too-long", text))
                        known[text] = await self._named_by(text, permit, gathered)
                permit = replace(permit, interaction=replace(permit.interaction, content=renamed(content, known)))
            linked.append(permit)
        return linked

    async def _named_by(self, text: str, permit: Permit, gathered: Gathered) -> str:
        """The resource that a conditional reference names, by a search that its caller may make."""
        name, _, query = text.partition("?")
        search = Interaction(Kind.SEARCH_TYPE, type=name, parameters=tuple(parameters_of(query.encode())))
        found = await self._all_of(search, permit, gathered)
        if len(found) != 1:
            what = "several resources" if found else "nothing that this caller can see"
            raise Refused(Denial(412, Reason.REFERENCE_NOT_VISIBLE, "not-found", f"a conditional reference names {what}"))
        return str(found[0])


@contextlib.contextmanager
def within(place: int) -> Iterator[None]:
    """Names the entry in what is refused here."""
    try:
        yield
    except Refused as refused:
        denial = refused.denial
        places = tuple(f"Bundle.entry[{place}].resource.{text.partition('.')[2]}" for text in denial.expression)
        text = f"entry {place}: {denial.diagnostics}"
        raise Refused(replace(denial, diagnostics=text, expression=places or (f"Bundle.entry[{place}]",))) from None


def _check_distinct(permits: list[Permit]) -> None:
    """No resource is written twice in one transaction (FHIR R4 §3.1.0.11.2). Raises Refused."""
    seen: set[tuple[str, str]] = set()
    for place, permit in enumerate(permits):
        interaction = permit.interaction
        if interaction.writes and interaction.id:
            with within(place):
                if (interaction.type, interaction.id) in seen:
                    raise Refused(Denial(400, Reason.MALFORMED_REQUEST, "invalid", "another entry writes the same resource"))
            seen.add((interaction.type, interaction.id))
