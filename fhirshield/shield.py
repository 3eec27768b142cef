"""THE SENTENCE: what happens to every request, in order. Each step is a folder or a file; no step calls another.

    receive -> authenticate -> authorize -> rewrite -> forward -> redact -> record -> respond

A write takes three steps more: what it would change and what it names is gathered, the new image is made of what the caller
sent and what it could not see, and the intent is durable before the upstream acts.

A refusal in any step leaves by the same door, recorded like an answer. An error that no step foresaw is a refusal too.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fhirshield.audit import Journal, record
from fhirshield.audit.intents import content_digest
from fhirshield.audit.quota import Quota
from fhirshield.authenticate import Authenticator
from fhirshield.authorize import authorize, could_lift
from fhirshield.describe import Describer
from fhirshield.errors import Unavailable
from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.forward import Forwarder
from fhirshield.gather import Gatherer, Stale
from fhirshield.gather.grants import Grants
from fhirshield.inquiry import After, Together, granted, within
from fhirshield.model import Denial, Facts, Grant, Permit, Principal, Reason, Receipt, Refused, Situation, Tally, View
from fhirshield.policy.compile import RuleSet
from fhirshield.receive import Receiver, Request
from fhirshield.redact import Redactor
from fhirshield.redact.body import Withheld
from fhirshield.redact.written import Written
from fhirshield.respond import batch_response, preflight, refusal, stripped
from fhirshield.rewrite import rewrite, together
from fhirshield.ring import Ring

Respond = Callable[[View, Receipt, Situation, bool], Awaitable[int]]
"""(view, receipt, situation, headers only) -> bytes of body sent"""

_log = logging.getLogger("fhirshield")
TRIES = 3
"""How often an exchange is decided before it is said that what it rests on changes too fast."""
_BUNDLES = {Kind.BATCH, Kind.TRANSACTION}
_PUBLIC = {Kind.CAPABILITIES, Kind.SMART_CONFIGURATION, Kind.PREFLIGHT}


@dataclass(slots=True)
class Story:
    """How far an exchange has come, so that a refusal can be recorded with what is known."""

    situation: Situation
    interaction: Interaction | None = None
    principal: Principal | None = None
    tally: Tally = field(default_factory=Tally)
    reason: Reason | None = None
    gathered: dict[str, int] = field(default_factory=dict)
    """What the shield read itself in order to decide: requests by type."""
    intended: bool = False
    """A write went, or was about to go, upstream."""

    @property
    def head(self) -> bool:
        """Whether the answer is headers only."""
        return self.interaction is not None and self.interaction.head


class Shield:
    """One upstream's exchanges. The parts are built once, in ``app``."""

    def __init__(
        self, receive: Receiver, authenticate: Authenticator, rules: RuleSet, gather: Gatherer, forward: Forwarder,
        redact: Redactor, written: Written, grants: Grants, describe: Describer, journal: Journal, quota: Quota, ring: Ring,
    ) -> None:  # fmt: skip
        self._receive = receive
        self._authenticate = authenticate
        self._rules = rules
        self._gather = gather
        self._redact = redact
        self._before = Together(rules, gather, forward, redact, written, grants)
        self._after = After(rules, gather, forward, redact)
        self._describe = describe
        self._journal = journal
        self._quota = quota
        self._ring = ring

    async def exchange(self, request: Request, story: Story, respond: Respond) -> None:
        """Serve one request."""
        try:
            situation = story.situation = self._receive.situation(request)
            interaction = story.interaction = self._receive.interaction(request)
            if interaction.kind in _PUBLIC:
                return await self._publish(interaction, situation, story, respond)
            principal = story.principal = await self._authenticate(situation)
            interaction = story.interaction = self._receive.content(interaction, request)
            view, receipt = await self._answered(request, principal, story)
            await self._respond(view, receipt, story, respond)
        except Refused as refused:
            if isinstance(refused, Withheld):
                story.tally, story.reason = refused.tally, refused.reason
            await self.refuse(refused.denial, story, respond)
        except Exception as error:  # noqa: BLE001 - law 2: an error in any check denies; its text may hold data
            _log.error("unforeseen %s in exchange %s at %s", type(error).__name__, request.decision, _place(error))
            denial = Denial(500, Reason.INTERNAL, "exception", "the shield could not decide this request")
            await self.refuse(_unknown() if story.intended else denial, story, respond)

    async def _answered(self, request: Request, principal: Principal, story: Story) -> tuple[View, Receipt]:
        """What leaves, by what still is so at the end; where that changed meanwhile it is decided again. Raises Refused."""
        interaction = story.interaction
        assert interaction is not None
        for _ in range(TRIES):
            try:
                view, receipt, stories = await self._once(request, principal, story)
                if await self._still(stories, story):
                    return view, receipt
            except Stale:
                if story.intended:
                    raise
            else:
                self._withdraw([story, *stories])
                if story.intended:
                    return stripped(view, whole=interaction.kind not in _BUNDLES), receipt
            story.interaction, story.tally, story.reason = interaction, Tally(), None
            story.situation = replace(story.situation, decision=os.urandom(16).hex(), facts=Facts())
        raise Stale

    async def _once(self, request: Request, principal: Principal, story: Story) -> tuple[View, Receipt, list[Story]]:
        """An exchange decided and recorded, with the stories that it is made of. Raises Refused."""
        interaction = story.interaction
        assert interaction is not None
        if interaction.kind not in _BUNDLES:
            return (*await self._decided(principal, story), [story])
        decided = self._each if interaction.kind is Kind.BATCH else self._together
        view, stories = await decided(request, principal, story)
        entry = record.bundle(story.situation, interaction, principal, view)
        return view, await self._recorded(entry, story), stories

    async def _still(self, stories: list[Story], whole: Story) -> bool:
        """Whether what these rest on is as it was; of writes that were carried out not where nobody can say. Raises Refused."""
        try:
            answers = [await self._gather.about.still(one.situation) for one in stories]
        except Refused:
            if not whole.intended:
                raise
            return False
        return all(answers)

    def _withdraw(self, stories: list[Story]) -> None:
        """What was recorded as released is not."""
        for decision in dict.fromkeys(story.situation.decision for story in stories):
            self._journal.note({"v": record.VERSION, "decision": decision, "outcome": "not released"})

    async def _decided(self, principal: Principal, story: Story) -> tuple[View, Receipt]:
        """One interaction of a known caller: decided, carried out, seen as this caller may see it, recorded. Raises Refused."""
        assert story.interaction is not None
        permit = granted(authorize(principal, story.interaction, story.situation, self._rules))
        permit = await self._before(permit, story.gathered, partial(self._alarm, permit, story))
        interaction = story.interaction = permit.interaction
        if permit.writing is not None:
            await self._intend(permit, story)
        plan = rewrite(interaction, permit)
        view = await self._after(plan, story.gathered)
        entry = record.released(permit, view)
        if story.gathered and permit.writing is None:
            entry |= record.asked(story.gathered)
        return view, await self._recorded(entry, story)

    async def _alarm(self, permit: Permit, story: Story, grant: Grant) -> None:
        """A glass that is broken is recorded, and said aloud, before anything is seen through it. Raises Refused."""
        try:
            await self._recorded(record.broken(permit, grant), story)
        except Refused:  # it may become durable all the same: then this follows it
            self._journal.note(record.unopened(permit.situation.decision, grant))
            raise
        _log.critical(
            "break-glass: grant %s under rule %s in exchange %s", grant.id, grant.emergency.rule, story.situation.decision
        )

    async def _each(self, request: Request, principal: Principal, story: Story) -> tuple[View, list[Story]]:
        """The entries of a batch, each decided, and recorded, as the request that it is (FHIR R4 §3.1.0.11). Raises Refused."""
        views, stories = [], []
        for entry in _entries(story):
            inner = _begun(story, principal, Facts())
            stories.append(inner)
            views.append(await self._entry(entry, request, principal, inner))
            story.intended = story.intended or inner.intended
        return batch_response("batch-response", views, [inner.situation.decision for inner in stories]), stories

    async def _entry(self, entry: Any, request: Request, principal: Principal, story: Story) -> View:
        """The answer to one entry; its refusal is its own. Raises Refused where it cannot be recorded."""
        try:
            story.interaction = story.interaction or self._receive.entry(entry, request, story.situation.decision)
            view, _ = await self._decided(principal, story)
        except Refused as refused:
            view = await self._refused(refused, story)
        except Exception as error:  # noqa: BLE001 - one entry's error is not another's
            _log.error("unforeseen %s in exchange %s at %s", type(error).__name__, story.situation.decision, _place(error))
            denial = Denial(500, Reason.INTERNAL, "exception", "the shield could not decide this request")
            view = await self._refused(Refused(_unknown() if story.intended else denial), story)
        return replace(view, body=b"") if story.head else view

    async def _together(self, request: Request, principal: Principal, story: Story) -> tuple[View, list[Story]]:
        """A transaction: all of it is decided before the upstream sees any; what reads comes after what writes. Raises Refused."""
        story.situation.facts.joint = True
        stories = [_begun(story, principal, story.situation.facts) for _ in _entries(story)]
        for place, (entry, inner) in enumerate(zip(_entries(story), stories, strict=True)):
            with within(place):
                inner.interaction = self._receive.entry(entry, request, inner.situation.decision)
        asked = [(inner.situation, inner.interaction) for inner in stories if inner.interaction is not None]
        permits = await self._before.together(asked, principal, story.gathered)
        for permit, inner in zip(permits, stories, strict=True):
            inner.interaction = permit.interaction
        writes = [(permit, inner) for permit, inner in zip(permits, stories, strict=True) if permit.writing is not None]
        done: dict[int, View] = {}
        if writes:
            done = await self._written(writes, story)
        views = []
        for entry, inner in zip(_entries(story), stories, strict=True):
            views.append(done[id(inner)] if id(inner) in done else await self._entry(entry, request, principal, inner))
        return batch_response("transaction-response", views, [inner.situation.decision for inner in stories]), stories

    async def _written(self, writes: list[tuple[Permit, Story]], story: Story) -> dict[int, View]:
        """What the writes of a transaction came to, by the identity of their stories. Raises Refused."""
        try:
            intents = (self._intend(permit, inner, story.situation.decision) for permit, inner in writes)
            failed = [end for end in await asyncio.gather(*intents, return_exceptions=True) if end is not None]
            if failed:  # nothing was sent; those that are durable are closed below
                raise failed[0]
            story.intended = True
            plan = together([rewrite(permit.interaction, permit) for permit, _ in writes], story.situation)
            answers = await self._before.carried_out(plan, [permit for permit, _ in writes], story.gathered)
            views = [self._redact(answer) for answer in answers]
        except Exception as error:
            denial = error.denial if isinstance(error, Refused) else _unknown()
            story.intended = denial.reason is Reason.OUTCOME_UNKNOWN
            ends = (self._refused(Refused(denial), inner) for _, inner in writes if inner.intended)
            await asyncio.gather(*ends, return_exceptions=True)
            raise
        found = [(record.released(permit, view), inner) for (permit, inner), view in zip(writes, views, strict=True)]
        await asyncio.gather(*(self._recorded(entry, inner) for entry, inner in found))
        return {id(inner): view for (_, inner), view in zip(writes, views, strict=True)}

    async def _refused(self, refused: Refused, story: Story) -> View:
        """The refusal of one entry, once it is recorded. Raises Refused where it cannot be."""
        if isinstance(refused, Withheld):
            story.tally, story.reason = refused.tally, refused.reason
        assert story.principal is not None
        await self._recorded(_denied(refused.denial, story, story.principal), story)
        return refusal(refused.denial, self._lifts(refused.denial, story))

    async def _intend(self, permit: Permit, story: Story, request: str = "") -> None:
        """No write reaches the upstream before its intent is durable (law 3); ``request``: its id there, if another."""
        assert permit.writing is not None
        digest = content_digest(permit.writing.image, self._ring.digest)
        try:
            await self._journal.record(record.intended(permit, digest, story.gathered, request), permit.situation.decision)
        except Unavailable:
            raise Refused(_unrecorded()) from None
        story.intended = True

    async def _recorded(self, entry: dict[str, Any], story: Story) -> Receipt:
        """The receipt of a record, once it is durable. Raises Refused."""
        try:
            return await self._journal.record(entry, story.situation.decision)
        except Unavailable:
            self._journal.note({**entry, "outcome": "not released"})
            raise Refused(_unknown() if story.intended else _unrecorded()) from None

    async def _publish(self, interaction: Interaction, situation: Situation, story: Story, respond: Respond) -> None:
        if interaction.kind is Kind.CAPABILITIES:
            view = await self._describe.capabilities(situation)
        elif interaction.kind is Kind.SMART_CONFIGURATION:
            view = await self._describe.smart_configuration(situation)
        else:
            view = preflight()
        entry = record.anonymous(situation, interaction, view.status, view.reason)
        try:
            receipt = await self._quota.record(entry, situation)
        except Unavailable:
            raise Refused(_unrecorded()) from None
        await self._respond(view, receipt, story, respond)

    async def refuse(self, denial: Denial, story: Story, respond: Respond) -> None:
        """Record a refusal and send it; where it cannot be recorded, a bare 503 that tells nothing."""
        try:
            if story.principal is not None:
                receipt = await self._journal.record(_denied(denial, story, story.principal), story.situation.decision)
            else:
                entry = record.anonymous(story.situation, story.interaction, denial.status, story.reason or denial.reason)
                receipt = await self._quota.record(entry, story.situation)
        except Unavailable:
            denial = _unknown() if story.intended else _unrecorded()
            receipt = self._journal.counted(story.situation.decision)
        await self._respond(refusal(denial, self._lifts(denial, story)), receipt, story, respond)

    def _lifts(self, denial: Denial, story: Story) -> tuple[str, ...]:
        """What could lift a refusal: told by what was asked, not by why it was refused."""
        if denial.status not in {403, 404} or story.principal is None or story.interaction is None:
            return ()
        return could_lift(story.principal, story.interaction, story.situation, self._rules)

    async def _respond(self, view: View, receipt: Receipt, story: Story, respond: Respond) -> None:
        size, complete = 0, False
        try:
            size = await respond(view, receipt, story.situation, story.head)
            complete = True
        finally:
            if story.principal is not None:
                self._journal.note(record.sent(receipt.decision, size, complete))


def _entries(story: Story) -> list[Any]:
    """Those of a batch or a transaction."""
    assert story.interaction is not None
    entries: list[Any] = story.interaction.content["entry"]
    return entries


def _begun(story: Story, principal: Principal, facts: Facts) -> Story:
    """The story of one entry, under a decision of its own."""
    return Story(replace(story.situation, decision=os.urandom(16).hex(), facts=facts), principal=principal)


def _denied(denial: Denial, story: Story, principal: Principal) -> dict[str, Any]:
    """The record of a refusal, with what was read to decide it; of a write that was intended that stands in the intent."""
    reason = story.reason or denial.reason
    entry = record.denied(story.situation, story.interaction, principal, denial, story.tally, reason)
    return entry if story.intended else entry | record.asked(story.gathered)


def _unrecorded() -> Denial:
    text = "this request cannot be recorded at the moment, so it is not answered"
    return Denial(503, Reason.JOURNAL_UNAVAILABLE, "transient", text, (("Retry-After", "5"),))


def _unknown() -> Denial:
    text = "it is not known whether this was carried out; read before trying again"
    return Denial(500, Reason.OUTCOME_UNKNOWN, "incomplete", text)


def _place(error: BaseException) -> str:
    """``module:line`` of the innermost frame; never the error's text."""
    trace: Any = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}" if trace else "?"
