"""THE SENTENCE: what happens to every request, in order. Each step is a folder or a file; no step calls another.

    receive -> authenticate -> authorize -> rewrite -> forward -> redact -> record -> respond

A write takes three steps more: what it would change and what it names is gathered, the new image is made of what the caller
sent and what it could not see, and the intent is durable before the upstream acts.

A refusal in any step leaves by the same door, recorded like an answer. An error that no step foresaw is a refusal too.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fhirshield.audit import Journal, record
from fhirshield.audit.intents import content_digest
from fhirshield.audit.quota import Quota
from fhirshield.authenticate import Authenticator
from fhirshield.authorize import authorize, draft, endorse, joined, may_change, narrowed
from fhirshield.describe import Describer
from fhirshield.errors import Unavailable
from fhirshield.fhir.criteria import Criterion
from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.fhir.reference import Literal
from fhirshield.forward import Forwarder, not_found
from fhirshield.gather import Gatherer
from fhirshield.model import Denial, Permit, Plan, Principal, Reason, Receipt, Refused, Situation, Stored, Tally, View
from fhirshield.policy.compile import RuleSet
from fhirshield.receive import Receiver, Request
from fhirshield.redact import Redactor, Searchset
from fhirshield.redact.body import Withheld
from fhirshield.redact.links import Target
from fhirshield.redact.written import Written
from fhirshield.respond import preflight, refusal
from fhirshield.rewrite import fresh, onward, rewrite
from fhirshield.ring import Ring

Respond = Callable[[View, Receipt, Situation, bool], Awaitable[int]]
"""(view, receipt, situation, headers only) -> bytes of body sent"""

MOST_PAGES = 10
"""Pages of the upstream that one page of ours may cost."""
MOST_JOINED = 200
"""Resources that a chain or ``_has`` may lead through."""
_log = logging.getLogger("fhirshield")
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
        redact: Redactor, written: Written, describe: Describer, journal: Journal, quota: Quota, ring: Ring,
    ) -> None:  # fmt: skip
        self._receive = receive
        self._authenticate = authenticate
        self._rules = rules
        self._gather = gather
        self._forward = forward
        self._redact = redact
        self._written = written
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
            permit = _granted(authorize(principal, interaction, situation, self._rules))
            if interaction.condition:
                permit = await self._conditioned(permit, story)
                interaction = story.interaction = permit.interaction
            if interaction.writes:
                permit = await self._weigh(permit, story)
                await self._intend(permit, story)
            if permit.joins:
                permit = await self._join(permit, story)
            plan = rewrite(interaction, permit)
            if interaction.searches:
                view = await self._searched(plan)
            else:
                view = self._redact(await self._forward(plan))  # the answer ends here: no parsed body waits for the disk
            receipt = await self._record(permit, view, story)
            await self._respond(view, receipt, story, respond)
        except Refused as refused:
            if isinstance(refused, Withheld):
                story.tally, story.reason = refused.tally, refused.reason
            await self.refuse(refused.denial, story, respond)
        except Exception as error:  # noqa: BLE001 - law 2: an error in any check denies; its text may hold data
            _log.error("unforeseen %s in exchange %s at %s", type(error).__name__, request.decision, _place(error))
            denial = Denial(500, Reason.INTERNAL, "exception", "the shield could not decide this request")
            await self.refuse(_unknown() if story.intended else denial, story, respond)

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

    async def _join(self, permit: Permit, story: Story) -> Permit:
        """Resolve chains and ``_has`` by searches that are decided like the caller's own, in bounded steps."""
        found: list[Criterion | None] = []
        for join in permit.joins:
            inner = _granted(authorize(permit.principal, join.search, permit.situation, self._rules))
            matches = await self._matches(inner, story)
            found.append(joined(join, matches, permit.situation.bases))
        return narrowed(permit, found)

    async def _matches(self, permit: Permit, story: Story) -> Mapping[Literal, Any]:
        """All that this caller finds by a search, as it is shown; too much is refused."""
        permit = await self._join(permit, story) if permit.joins else permit
        name = permit.interaction.type
        plan = fresh(rewrite(permit.interaction, permit))
        found = Searchset(self._redact, plan, whole=True)
        onwards: Target | None = (plan.segments, plan.query)
        for _ in range(MOST_PAGES):
            story.gathered[name] = story.gathered.get(name, 0) + 1
            onwards = found.add(await self._forward(plan))
            if onwards is None:
                break
            plan = onward(plan, *onwards)
        if onwards is not None or len(found.shown) > MOST_JOINED:
            text = f"more {name} than can be joined for this caller; ask more narrowly"
            raise Refused(Denial(403, Reason.NOT_SERVED, "too-costly", text))
        return found.shown

    async def _conditioned(self, permit: Permit, story: Story) -> Permit:
        """Resolve what a conditional write names, by a search that its caller may make.

        Whoever may be denied any resource of the type is refused before anybody is asked: a hidden match would show.
        """
        asked = permit.interaction
        search = Interaction(Kind.SEARCH_TYPE, type=asked.type, parameters=asked.condition)
        inner = _granted(authorize(permit.principal, search, permit.situation, self._rules))
        if inner.thins:
            text = f"conditional writes are not served to a caller from whom any {asked.type} may be withheld"
            raise Refused(Denial(403, Reason.HIDDEN_PART, "forbidden", text))
        found = await self._matches(inner, story)
        return _granted(authorize(permit.principal, _resolved(asked, list(found)), permit.situation, self._rules))

    async def _weigh(self, permit: Permit, story: Story) -> Permit:
        """Judge a write by what is stored, what it would become, and what it names; everything is read fresh."""
        creates = permit.interaction.kind is Kind.CREATE
        stored = Stored(None) if creates else await self._gather.stored(permit, story.gathered)
        if not creates and (denial := may_change(permit, stored, self._rules)):
            raise Refused(denial)
        image = self._written.image(permit, stored)
        drafted = draft(permit, stored, image, self._rules)
        if isinstance(drafted, Denial):
            raise Refused(drafted)
        named = await self._gather.named(permit, drafted.refers, story.gathered)
        return _granted(endorse(permit, drafted, named, self._rules))

    async def _intend(self, permit: Permit, story: Story) -> None:
        """No write reaches the upstream before its intent is durable (law 3)."""
        assert permit.writing is not None
        digest = content_digest(permit.writing.image, self._ring.digest)
        try:
            await self._journal.record(record.intended(permit, digest, story.gathered), permit.situation.decision)
        except Unavailable:
            raise Refused(_unrecorded()) from None
        story.intended = True

    async def _record(self, permit: Permit, view: View, story: Story) -> Receipt:
        entry = record.released(permit, view)
        if story.gathered and permit.writing is None:
            entry |= record.asked(story.gathered)
        try:
            return await self._journal.record(entry, permit.situation.decision)
        except Unavailable:
            self._journal.note({**entry, "outcome": "not released"})
            raise Refused(_unknown() if permit.interaction.writes else _unrecorded()) from None

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
        reason = story.reason or denial.reason
        try:
            if story.principal is not None:
                entry = record.denied(story.situation, story.interaction, story.principal, denial, story.tally, reason)
                entry |= {} if story.intended else record.asked(story.gathered)
                receipt = await self._journal.record(entry, story.situation.decision)
            else:
                entry = record.anonymous(story.situation, story.interaction, denial.status, reason)
                receipt = await self._quota.record(entry, story.situation)
        except Unavailable:
            denial = _unknown() if story.intended else _unrecorded()
            receipt = self._journal.counted(story.situation.decision)
        await self._respond(refusal(denial), receipt, story, respond)

    async def _respond(self, view: View, receipt: Receipt, story: Story, respond: Respond) -> None:
        size, complete = 0, False
        try:
            size = await respond(view, receipt, story.situation, story.head)
            complete = True
        finally:
            if story.principal is not None:
                self._journal.note(record.sent(receipt.decision, size, complete))


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


def _granted(decision: Permit | Denial) -> Permit:
    if isinstance(decision, Denial):
        raise Refused(decision)
    return decision


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
