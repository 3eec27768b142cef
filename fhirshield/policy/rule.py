"""The syntax tree of a rule: what ``load`` makes of YAML, what ``check`` reads and ``compile`` compiles."""

from __future__ import annotations

from dataclasses import dataclass

from fhirshield.fhir.criteria import Criteria
from fhirshield.fhir.glance import Code
from fhirshield.fhir.v3 import ACT_CODE, RANKS, above
from fhirshield.model import Emergency, Labels, Obligation, Opaque, Principal, Relationship
from fhirshield.policy.condition import Condition
from fhirshield.policy.sensitivity import Sensitivity

NORMAL = RANKS.index("N")
"""The confidentiality that everybody is cleared for."""
READING = ("read", "vread", "search", "history")
INTERACTIONS = (*READING, "create", "update", "patch", "delete")
POLICY_TYPES = frozenset({"Consent", "RelatedPerson", "Group", "PractitionerRole", "CareTeam"})
"""Types that decisions read: who may see what, and who stands in which relation to whom."""
LINK, SECURITY = "Patient.link", "meta.security"
RESERVED = "opaque"
"""The id under which records tell what went because no rule lets it pass."""
PART, BIRTH = "Organization.partOf", "Patient.birthDate"
"""Read where Consents are asked, and where labels ask how old somebody is."""
"""Elements that decisions read: which records are one person's, and labels."""


@dataclass(frozen=True, slots=True)
class Authentication:
    """How strongly, and how lately, a caller must have authenticated."""

    acr: tuple[str, ...] = ()
    """Any of these authentication context classes, the preferred first; empty for any at all."""
    amr: frozenset[str] = frozenset()
    """All of these methods."""
    max_age: float = 0.0
    """Seconds since then; 0 for any time."""

    def holds(self, principal: Principal, now: float) -> bool:
        """Whether a caller did; what a token does not say did not happen."""
        if self.acr and principal.acr not in self.acr:
            return False
        lately = not self.max_age or (principal.auth_time > 0 and now - principal.auth_time <= self.max_age)
        return lately and self.amr <= principal.amr

    def challenge(self) -> str:
        """What is asked for, in the words of RFC 9470 §3."""
        parts = ['error="insufficient_user_authentication"', 'error_description="stronger or more recent authentication is needed"']
        parts += [f'acr_values="{" ".join(self.acr)}"'] if self.acr else []
        parts += [f'max_age="{int(self.max_age)}"'] if self.max_age else []
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Who:
    """Whom a rule speaks of. ``None`` is everybody (roles) or any purpose, stated or not (purposes)."""

    roles: frozenset[str] | None
    purposes: frozenset[str] | None
    when: Condition | None
    unless: Condition | None
    authentication: Authentication | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation that an ``allow`` opens, with the resource types that it takes, answers and changes."""

    name: str
    input: frozenset[str]
    output: frozenset[str]
    affects: frozenset[str]


@dataclass(frozen=True, slots=True)
class Grant:
    """The body of ``allow`` and of ``deny``: interactions × selectors."""

    interactions: frozenset[str]
    selectors: tuple[Criteria, ...]
    policy_inputs: frozenset[str] = frozenset()
    """What of the elements that decisions read may be written under it."""
    delete_unseen: bool = False
    """Deletes may hit a version, or parts of one, that the caller did not see."""
    operations: tuple[Operation, ...] = ()
    hard: bool = False
    """A deny in a relationship that no emergency lifts."""
    related: str = ""
    """The relationship to which an allow is limited, and in which a deny holds."""
    opaque: Opaque | None = None
    """What of content that cannot be looked into may pass."""

    def of(self, resource_type: str) -> tuple[Criteria, ...]:
        """The selectors that speak of this type."""
        return tuple(s for s in self.selectors if s.type in {"*", resource_type})


@dataclass(frozen=True, slots=True)
class Reveal:
    """What of ``meta`` stays in redacted views of these types (``*`` for all)."""

    types: frozenset[str]
    meta: frozenset[str]

    def of(self, resource_type: str) -> frozenset[str]:
        """What it reveals of this type."""
        return self.meta if self.types & {"*", resource_type} else frozenset()


@dataclass(frozen=True, slots=True)
class Clearance:
    """How sensitive what a caller sees may be. ``kinds`` of sensitive information by ActCode, each with what is a kind of it."""

    rank: int
    kinds: frozenset[str]
    every: bool = False
    """All kinds."""

    def names(self, kind: str) -> bool:
        """Whether it speaks of a kind of sensitive information."""
        return self.every or not self.kinds.isdisjoint(above(ACT_CODE, kind) or (kind,))


def cleared(clearances: frozenset[Clearance], labels: Labels) -> bool:
    """Whether what is so labelled is within these: each kind within one that reaches its rank; what nobody knows is not."""
    rank = labels.rank
    reaching = [one for one in clearances if rank is not None and one.rank >= rank]
    return bool(reaching) and all(any(one.names(kind) for one in reaching) for kind in labels.kinds)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. ``where`` is ``file:line``; ``withheld`` are types that its redactions withhold whole."""

    id: str
    where: str
    description: str
    who: Who
    allow: Grant | None
    deny: Grant | None
    redact: tuple[Obligation, ...]
    withheld: frozenset[str]
    disclosures: tuple[str, ...]
    """What the rule lets out on purpose, for ``check`` to name."""
    reveal: Reveal | None = None
    clearance: Clearance | None = None
    emergency: Emergency | None = None
    lift: str = ""
    """What its conditions wait for, in a word that a refusal may say."""


@dataclass(frozen=True, slots=True)
class ConsentElement:
    """Elements that patients may deny to others: what their Consents call them, and how they are hidden."""

    id: str
    names: frozenset[Code | str]
    """Codes (system by its first name, code), and FHIRPath expressions."""
    redact: tuple[Obligation, ...]
    where: str = ""
    disclosures: tuple[str, ...] = ()
    """What its redactions let out on purpose."""


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules of an installation, in the order of their files, and what stands beside them."""

    rules: tuple[Rule, ...]
    modifier_extensions: frozenset[str]
    digest: str
    """SHA-256 over the files' text, hex."""
    sensitivity: Sensitivity | None = None
    """What codes tell of, where the rules say."""
    relationships: tuple[Relationship, ...] = ()
    elements: tuple[ConsentElement, ...] = ()
