"""What has to be asked of the upstream besides the one question: further pages, joined types, what a write rests on.

Everything asked is decided by ``authorize`` like the caller's own, or read by ``gather`` under the shield's name, and bounded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from fhirshield.authorize import authorize, belonging, draft, endorse, invoked, joined, may_change, narrowed, on_this, refers
from fhirshield.fhir.criteria import Criterion
from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.fhir.page import Target
from fhirshield.fhir.reference import Literal, conditional, literal, renamed
from fhirshield.forward import Forwarder, not_found
from fhirshield.gather import Gatherer
from fhirshield.model import Denial, Draft, Permit, Plan, Principal, Reason, Refused, Situation, Stored, View
from fhirshield.policy.compile import RuleSet
from fhirshield.receive.target import parameters_of
from fhirshield.redact import Everything, History, Matches, Past, Redactor, Searchset, as_meta, newest, operated
from fhirshield.redact.written import Written
from fhirshield.rewrite import fresh, onward, rewrite

MOST_PAGES = 10
"""Pages of the upstream that one page of ours may cost."""
MOST_JOINED = 200
"""Resources that a chain may lead through, or that a ``_has`` may lead to."""
MOST_CONDITIONS = 50
"""Conditional references of a transaction."""
LAST = 5000
"""Observations among which ``$lastn`` looks, and resources among which ``_has`` does."""
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
        if permit.interaction.kind is Kind.OPERATION:
            permit = await self._invoked(permit, gathered)
        if permit.interaction.kind is Kind.READ and permit.thins:
            permit = await self._belonging(permit, gathered)
        return permit

    async def _belonging(self, permit: Permit, gathered: Gathered) -> Permit:
        """Leave to see a Binary whose security context, or else every document that refers to it, this caller may see."""
        binary = (await self._gather.stored(permit, gathered)).resource
        if binary is None:
            raise Refused(not_found())
        if not await self._belongs(binary, permit, gathered):
            raise Refused(not_found())
        return belonging(permit, binary.get("securityContext"))

    async def _belongs(self, binary: Any, permit: Permit, gathered: Gathered) -> bool:
        """Whether a Binary belongs to what this caller may see: by a link that it is shown, where no security context says so."""
        context = binary.get("securityContext")
        if context is None:
            owners = await self._gather.referring(permit, Literal("Binary", binary["id"]), gathered)
            shown = [self._shows(owner, f"Binary/{binary['id']}", permit) for owner in owners]
            return None not in shown and any(shown)
        named = literal(context.get("reference") if type(context) is dict else None, permit.situation.bases)
        owners = list((await self._gather.named(permit, [named] if named else [], gathered)).values())
        return bool(owners) and all(self._shows(owner, "", permit) for owner in owners)

    def _shows(self, resource: Any, link: str, permit: Permit) -> bool | None:
        """Whether this caller's view of a resource holds a link; None where it is shown nothing of the resource."""
        read = Interaction(Kind.READ, type=resource["resourceType"], id=resource["id"])
        reading = authorize(permit.principal, read, permit.situation, self._rules)
        if not isinstance(reading, Permit) or reading.thins:
            return None
        body = self._redact.view_of(resource, reading)
        return None if body is None else f'{link}"'.encode() in body

    async def _named(self, permit: Permit, wanted: Iterable[Literal], gathered: Gathered) -> Mapping[Literal, Any]:
        """What is named and there; a Binary only where it belongs to what this caller may see."""
        found = dict(await self._gather.named(permit, wanted, gathered))
        for name in [name for name in found if name.type == "Binary"]:
            read = authorize(permit.principal, Interaction(Kind.READ, type="Binary", id=name.id), permit.situation, self._rules)
            if not isinstance(read, Permit) or (read.thins and not await self._belongs(found[name], read, gathered)):
                del found[name]
        return found

    async def _invoked(self, permit: Permit, gathered: Gathered) -> Permit:
        """Leave to invoke an operation, once it is known that its caller may see what it is invoked on and what its body names."""
        asked = permit.interaction
        if asked.id:
            read = replace(asked, kind=Kind.READ, operation="", parameters=(), content=None)
            reading = granted(authorize(permit.principal, read, permit.situation, self._rules))
            stored = await self._gather.stored(reading, gathered)
            seen = stored.resource is not None and reading.judge(stored.resource, "r", stored.careful).shown
            if not seen or not on_this(permit, stored.resource, self._rules):
                raise Refused(not_found())
        named = refers(asked, permit.situation.bases)
        if isinstance(named, Denial):
            raise Refused(named)
        return granted(invoked(permit, named, await self._named(permit, named, gathered), self._rules))

    async def answered(self, plan: Plan, gathered: Gathered) -> View:
        """What comes back, as this caller may see it. Raises Refused."""
        interaction = plan.permit.interaction
        if interaction.operation in _ANSWERS:
            return await _ANSWERS[interaction.operation](self, plan, gathered)
        if interaction.kind is Kind.OPERATION:
            return operated(self._redact, await self._forward(plan))
        if interaction.searches:
            return await self._searched(plan)
        if interaction.recalls:
            return await self._recalled(plan, gathered)
        if interaction.kind is Kind.VREAD and plan.permit.thins:
            versions = await self._gather.versions(plan.permit, Literal(interaction.type, interaction.id), gathered)
            return Past(self._redact, plan.permit, versions).view(interaction.version)
        return self._redact(await self._forward(plan))  # the answer ends here: no parsed body waits for the disk

    async def _everything(self, plan: Plan, gathered: Gathered) -> View:
        """All that a patient's record holds, of which the page that is asked is shown."""
        found = Everything(self._redact, plan)
        for _ in range(MOST_PAGES):
            onwards = found.add(await self._forward(plan))
            if onwards is None:
                return found.view()
            plan = onward(plan, *onwards)
        text = "more resources than can be judged at once; ask for some types by `_type`"
        raise Refused(Denial(403, Reason.NOT_SERVED, "too-costly", text))

    async def _match(self, plan: Plan, gathered: Gathered) -> View:
        found = Matches(self._redact, plan)
        found.add(await self._forward(plan))
        return found.view()

    async def _lastn(self, plan: Plan, gathered: Gathered) -> View:
        permit = plan.permit
        return newest(await self._whole(plan, gathered, LAST), permit.interaction.most)

    async def _meta(self, plan: Plan, gathered: Gathered) -> View:
        return as_meta(self._redact(await self._forward(plan)))

    async def _recalled(self, plan: Plan, gathered: Gathered) -> View:
        """A page of a history; where anything may be withheld, every resource of it is judged by all of its versions."""
        page, asked = History(self._redact, plan), 0
        for last in (*(False,) * (MOST_PAGES - 1), True):
            answer = await self._forward(plan)
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

    async def _searched(self, plan: Plan) -> View:
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
            matches = await self._matches(inner, gathered, LAST if join.reverse else MOST_JOINED)
            criterion = joined(join, matches, permit.situation.bases)
            if criterion is not None and len(criterion.values) > MOST_JOINED:
                raise Refused(_too_many(permit.interaction.type))
            found.append(criterion)
        return narrowed(permit, found)

    async def _matches(self, permit: Permit, gathered: Gathered, most: int = MOST_JOINED) -> Mapping[Literal, Any]:
        """All that this caller finds by a search, as it is shown; too much is refused."""
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
            onwards = found.add(await self._forward(plan))
            if onwards is None:
                break
            plan = onward(plan, *onwards)
        if onwards is not None or len(found.shown) > most:
            raise Refused(_too_many(name))
        return found

    async def _conditioned(self, permit: Permit, gathered: Gathered) -> Permit:
        """Resolve what a conditional write names, by a search that its caller may make.

        Whoever may be denied any resource of the type is refused before anybody is asked: a hidden match would show.
        """
        asked = permit.interaction
        found = await self._all_of(Interaction(Kind.SEARCH_TYPE, type=asked.type, parameters=asked.condition), permit, gathered)
        return granted(authorize(permit.principal, _resolved(asked, found), permit.situation, self._rules))

    async def _all_of(self, search: Interaction, permit: Permit, gathered: Gathered) -> list[Literal]:
        """What a condition names, where nothing that it could name may be withheld from its caller. Raises Refused."""
        inner = granted(authorize(permit.principal, search, permit.situation, self._rules))
        if inner.thins or inner.joins:
            text = f"conditions are not served to a caller from whom any {search.type}, or what joins it, may be withheld"
            raise Refused(Denial(403, Reason.HIDDEN_PART, "forbidden", text))
        return list(await self._matches(inner, gathered))

    async def _weigh(self, permit: Permit, gathered: Gathered) -> Permit:
        """Judge a write by what is stored, what it would become, and what it names; everything is read fresh."""
        drafted = await self._drafted(permit, gathered)
        named = await self._named(permit, drafted.refers, gathered)
        return granted(endorse(permit, drafted, named, self._rules))

    async def _drafted(self, permit: Permit, gathered: Gathered) -> Draft:
        creates = permit.interaction.kind is Kind.CREATE
        stored = Stored(None) if creates else await self._gather.stored(permit, gathered)
        if not creates and (denial := may_change(permit, stored, self._rules)):
            raise Refused(denial)
        image = self._written.image(permit, stored)
        drafted = draft(permit, stored, image, self._rules)
        if isinstance(drafted, Denial):
            raise Refused(drafted)
        return drafted

    # --- transactions ---------------------------------------------------------------------------------------------

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


def _too_many(name: str) -> Denial:
    text = f"more {name} than can be joined for this caller; ask more narrowly"
    return Denial(403, Reason.NOT_SERVED, "too-costly", text)


_ANSWERS: dict[str, Callable[[Inquiry, Plan, Gathered], Awaitable[View]]] = {
    "$everything": Inquiry._everything,
    "$lastn": Inquiry._lastn,
    "$match": Inquiry._match,
    "$meta": Inquiry._meta,
}
Asked = tuple[Situation, Interaction]


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
