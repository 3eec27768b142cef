"""What settings say of Consents: what policies mean, what holds where none applies, which of several counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from fhirshield.fhir.glance import Code


class Decision(IntEnum):
    """What a Consent, or all of a patient's, say of a resource; the less is shown, the smaller."""

    DENY = 0
    SILENT = 1
    PERMIT = 2


IMPLICIT = ("deny", "permit", "treatment", "break-glass")
"""What may hold where no Consent applies: deny all; permit all; treatment and nothing else; deny all but break-glass."""
_PCF = "https://profiles.ihe.net/ITI/PCF/Policy-"
PCF_POLICIES = {
    f"{_PCF}deny": "deny",
    f"{_PCF}all-normal": "permit",
    f"{_PCF}basic-normal": "treatment",
    f"{_PCF}break-glass-only": "break-glass",
}
"""The implicit policies of IHE PCF 1.1 (volume 1, *Appendix P*) by their canonicals; a Consent may name one as its policy."""
MEANINGS = (*IMPLICIT, "ignore")
"""What a policy may be said to mean."""


@dataclass(frozen=True, slots=True, eq=False)
class ConsentPolicy:
    """How Consents are read. Compared by identity: what is compiled under it is kept with it."""

    implicit: str = "deny"
    recent_wins: bool = False
    """Of several Consents that decide, the most recent one counts; else any deny does."""
    own_record: bool = True
    """A patient may read what is about that patient alone without a Consent."""
    exempt_roles: frozenset[str] = frozenset()
    """Roles whose callers no Consent is asked of."""
    elements: frozenset[Code | str] = frozenset()
    """What provisions may name that hides elements (``ConsentElement.names``)."""
    policies: tuple[tuple[str, str], ...] = ()
    """(URI of a policy or ``system|code`` of a policy rule, one of MEANINGS)"""
    _meanings: dict[str, str] = field(init=False, compare=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._meanings.update(PCF_POLICIES)
        self._meanings.update(self.policies)

    @property
    def text(self) -> str:
        """What it says, the same on every replica."""
        return repr((self.implicit, self.recent_wins, self.own_record, sorted(self.exempt_roles), sorted(self.policies)))

    def meaning(self, policy: str) -> str | None:
        """What a policy that a Consent names means; None where nobody said."""
        found = self._meanings.get(policy)
        return found if found is not None else self._meanings.get(policy.rpartition("|")[2])


def base(meaning: str, purposes: frozenset[str]) -> Decision:
    """What a policy says of everything, by the purposes of use that are stated (plain codes of ActReason)."""
    if meaning == "treatment":
        return Decision.PERMIT if purposes == frozenset(("TREAT",)) else Decision.DENY
    return {"permit": Decision.PERMIT, "ignore": Decision.SILENT}.get(meaning, Decision.DENY)


def plain(code: str) -> str:
    """A code as names of elements are compared with it: whatever its case, without what cannot be seen."""
    return "".join(one for one in code if one.isprintable() and not one.isspace()).casefold()
