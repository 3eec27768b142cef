"""What has to be known before the one question is asked of the upstream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from fhirshield.authorize import authorize, belonging, draft, endorse, invoked, may_change, on_this, refers, related_only
from fhirshield.fhir import json as fhir_json
from fhirshield.fhir.attachments import documents_of
from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.fhir.reference import Literal, literal
from fhirshield.forward import Forwarder, not_found
from fhirshield.gather import Gatherer
from fhirshield.gather.grants import Grants, Tell
from fhirshield.inquiry.emergency import break_glass
from fhirshield.inquiry.search import Gathered, Searches, granted
from fhirshield.model import Denial, Draft, Permit, Reason, Refused, Stored
from fhirshield.policy.compile import RuleSet
from fhirshield.redact import Redactor
from fhirshield.redact.written import Written


class Before(Searches):
    """Completes permits."""

    def __init__(
        self, rules: RuleSet, gather: Gatherer, forward: Forwarder, redact: Redactor, written: Written, grants: Grants
    ) -> None:  # fmt: skip
        super().__init__(rules, gather, forward, redact)
        self._written = written
        self._grants = grants

    async def __call__(self, permit: Permit, gathered: Gathered, tell: Tell) -> Permit:
        """The permit once it is known what a condition names, what a write would change, and where joins lead. Raises Refused.

        ``tell`` records a glass that is broken on the way.
        """
        await break_glass(permit, self._gather, self._grants, self._redact, gathered, tell)
        await self._gather.about.ready(permit, gathered)
        permit = related_only(permit, self._rules)
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

    # --- writes ---------------------------------------------------------------------------------------------------

    async def _conditioned(self, permit: Permit, gathered: Gathered) -> Permit:
        """Resolve what a conditional write names, by a search that its caller may make.

        Whoever may be denied any resource of the type is refused before anybody is asked: a hidden match would show.
        """
        asked = permit.interaction
        found = await self._all_of(Interaction(Kind.SEARCH_TYPE, type=asked.type, parameters=asked.condition), permit, gathered)
        return granted(authorize(permit.principal, _resolved(asked, found), permit.situation, self._rules))

    async def _weigh(self, permit: Permit, gathered: Gathered) -> Permit:
        """Judge a write by what is stored, what it would become, and what it names; everything is read fresh."""
        drafted = await self._drafted(permit, gathered)
        named = await self._named(permit, drafted.refers, gathered)
        return granted(endorse(permit, drafted, named, self._rules))

    async def _drafted(self, permit: Permit, gathered: Gathered) -> Draft:
        creates = permit.interaction.kind is Kind.CREATE
        stored = Stored(None) if creates else await self._gather.stored(permit, gathered)
        if (
            stored.resource is not None
            and permit.interaction.type == "Binary"
            and not await self._readable(permit, stored.resource, gathered)
        ):
            raise Refused(not_found())
        if not creates and (denial := may_change(permit, stored, self._rules)):
            raise Refused(denial)
        edit = self._written.edit(permit, stored)
        await self._gather.about(permit, [edit.new], gathered)
        image = self._written.image(permit, stored, edit)
        await self._gather.about(permit, [image], gathered)
        drafted = draft(permit, stored, image, self._rules)
        if isinstance(drafted, Denial):
            raise Refused(drafted)
        return drafted

    async def _named(self, permit: Permit, wanted: Iterable[Literal], gathered: Gathered) -> Mapping[Literal, Any]:
        """What is named and there; a Binary only where it belongs to what this caller may see."""
        found = dict(await self._gather.named(permit, wanted, gathered))
        for name in [name for name in found if name.type == "Binary"]:
            if not await self._readable(permit, found[name], gathered):
                del found[name]
        return found

    # --- operations and Binary ------------------------------------------------------------------------------------

    async def _invoked(self, permit: Permit, gathered: Gathered) -> Permit:
        """Leave to invoke an operation, once it is known that its caller may see what it is invoked on and what its body names."""
        asked = permit.interaction
        if asked.id:
            read = replace(asked, kind=Kind.READ, operation="", parameters=(), content=None)
            reading = granted(authorize(permit.principal, read, permit.situation, self._rules))
            stored = await self._gather.stored(reading, gathered)
            seen = stored.resource is not None and self._redact.view_of(stored.resource, reading) is not None
            if not seen or not on_this(permit, stored.resource, self._rules):
                raise Refused(not_found())
        named = refers(asked, permit.situation.bases)
        if isinstance(named, Denial):
            raise Refused(named)
        return granted(invoked(permit, named, await self._named(permit, named, gathered), self._rules))

    async def _belonging(self, permit: Permit, gathered: Gathered) -> Permit:
        """Leave to see a Binary whose security context, or else every document that refers to it, this caller may see."""
        binary = (await self._gather.stored(permit, gathered)).resource
        if binary is None:
            raise Refused(not_found())
        if not await self._belongs(binary, permit, gathered):
            raise Refused(not_found())
        return belonging(permit, binary.get("securityContext"))

    async def _readable(self, permit: Permit, binary: Any, gathered: Gathered) -> bool:
        """Whether this caller may read a Binary, and so refer to it or change it."""
        asked = Interaction(Kind.READ, type="Binary", id=binary["id"])
        read = authorize(permit.principal, asked, permit.situation, self._rules)
        return isinstance(read, Permit) and (not read.thins or await self._belongs(binary, read, gathered))

    async def _belongs(self, binary: Any, permit: Permit, gathered: Gathered) -> bool:
        """Whether a Binary belongs to what this caller may see: by a link that it is shown, where no security context says so."""
        context, bases = binary.get("securityContext"), permit.situation.bases
        if context is None:
            name = Literal("Binary", binary["id"])
            shown = [self._shown(owner, permit) for owner in await self._gather.referring(permit, name, gathered)]
            return None not in shown and any(name in documents_of(view, bases) for view in shown)
        named = literal(context.get("reference") if type(context) is dict else None, bases)
        owners = list((await self._gather.named(permit, [named] if named else [], gathered)).values())
        return bool(owners) and all(self._shown(owner, permit) is not None for owner in owners)

    def _shown(self, resource: Any, permit: Permit) -> Any:
        """A resource as this caller is shown it; None where it is not."""
        read = Interaction(Kind.READ, type=resource["resourceType"], id=resource["id"])
        reading = authorize(permit.principal, read, permit.situation, self._rules)
        if not isinstance(reading, Permit) or reading.thins:
            return None
        body = self._redact.view_of(resource, reading)
        return None if body is None else fhir_json.decode(body)


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
