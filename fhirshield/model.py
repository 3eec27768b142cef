"""The nouns that the steps hand to each other. Everything here is frozen; nothing here decides or does I/O."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from fhirshield.fhir.consent import Consent, Provision
from fhirshield.fhir.criteria import Criteria, Criterion
from fhirshield.fhir.glance import Code, Glance, Page
from fhirshield.fhir.including import Include
from fhirshield.fhir.interaction import Interaction
from fhirshield.fhir.page import Parameter
from fhirshield.fhir.path import Path
from fhirshield.fhir.reference import Literal
from fhirshield.fhir.scopes import Scopes


class Reason(StrEnum):
    """Why a request was refused or a resource withheld. Audit, metrics and ``explain`` speak these; the list is closed."""

    PERMITTED = "permitted"
    MALFORMED_REQUEST = "malformed-request"
    UNPARSED = "unparsed"
    NOT_ACCEPTABLE = "not-acceptable"
    NOT_SERVED = "not-served"
    TOO_LARGE = "too-large"
    BUSY = "busy"
    NO_CREDENTIAL = "no-credential"
    BAD_TOKEN = "bad-token"  # noqa: S105 - a reason
    KEYS_UNAVAILABLE = "keys-unavailable"
    NO_SCOPE = "no-scope"
    NO_RULE = "no-rule"
    DENIED_BY_RULE = "denied-by-rule"
    UNKNOWN_PARAMETER = "unknown-parameter"
    REVEALING_PARAMETER = "revealing-parameter"
    OUTSIDE_PATIENT = "outside-patient"
    ACTIVE_TYPE = "active-type"
    POLICY_INPUT = "policy-input"
    REFERENCE_NOT_VISIBLE = "reference-not-visible"
    HIDDEN_PART = "hidden-part"
    STALE_VERSION = "stale-version"
    UNKNOWN_ELEMENT = "unknown-element"
    FACTS_UNAVAILABLE = "facts-unavailable"
    OUTCOME_UNKNOWN = "outcome-unknown"
    UNKNOWN_TYPE = "unknown-type"
    UNKNOWN_MODIFIER = "unknown-modifier"
    NOT_FOUND = "not-found"
    NOT_MATCHED = "not-matched"
    NO_PATIENT = "no-patient"
    NO_CONSENT = "no-consent"
    CONSENT_UNSUPPORTED = "consent-unsupported"
    BEYOND_CLEARANCE = "beyond-clearance"
    BREAK_GLASS = "break-glass"
    WEAK_AUTHENTICATION = "insufficient-authentication"
    BAD_PAGE = "bad-page"
    UPSTREAM_REFUSED = "upstream-refused"
    UPSTREAM_MALFORMED = "upstream-malformed"
    UPSTREAM_FAILED = "upstream-failed"
    UPSTREAM_SLOW = "upstream-slow"
    JOURNAL_UNAVAILABLE = "journal-unavailable"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Denial:
    """A refusal as the caller sees it: HTTP status, FHIR issue code, and text that never holds data of a resource."""

    status: int
    reason: Reason
    code: str
    """``OperationOutcome.issue.code``, from the required value set issue-type."""
    diagnostics: str
    headers: tuple[tuple[str, str], ...] = ()
    rule: str = ""
    expression: tuple[str, ...] = ()
    """FHIRPaths into the caller's own body."""


def misfit(place: str) -> Denial:
    """The refusal of a body in which something stands where R4 has nothing like it; ``place`` is its FHIRPath."""
    text = f"`{place}` is not an element that R4 has there"
    return Denial(422, Reason.UNKNOWN_ELEMENT, "structure", text, expression=(place,))


class Refused(Exception):
    """Carries a Denial from any step to the door."""

    def __init__(self, denial: Denial) -> None:
        super().__init__(denial.diagnostics)
        self.denial = denial


@dataclass(frozen=True, slots=True)
class Habits:
    """What settings say of an upstream that decisions on writes need."""

    delete_if_match: bool = False
    """It was shown to honour ``If-Match`` on DELETE."""
    drop_narrative: bool = False
    """An update by a caller who may not see narrative drops it; else it is refused."""


@dataclass(frozen=True, slots=True)
class Labels:
    """How sensitive a resource is: what is stored with it, made no less by what its codes say."""

    rank: int | None
    """Of confidentiality (``fhir/v3.py``); None where nobody says."""
    kinds: frozenset[str]
    """Kinds of sensitive information, by their ActCodes."""
    stored: frozenset[Code]
    """All labels that are stored, of whatever system."""
    whole: bool
    """Codes were looked at, so that what is not among ``kinds`` is not there."""
    own: tuple[Code, ...] = ()
    """What is said of it when it leaves, besides what is stored: by what stands in it, not by what it leads to."""


@dataclass(frozen=True, slots=True)
class OfPatient:
    """The Consents of one patient."""

    consents: tuple[Consent, ...]
    faults: tuple[str, ...] = ()
    """Why some of them cannot be read: then nothing of the patient is shown."""
    linked: tuple[Consent, ...] = ()
    """Those of records that are linked both ways; they only tighten."""


@dataclass(slots=True, eq=False)
class Facts:
    """What was gathered for one exchange, to decide by. It grows as more of the answer is seen; nothing in it changes."""

    consents: dict[str, OfPatient] = field(default_factory=dict)
    """By patient; whoever is not there was not asked about."""
    resources: dict[Literal, Any] = field(default_factory=dict)
    """Those that Consents name as actors; None for what is not there."""
    roles: tuple[Any, ...] | None = None
    """The caller's own PractitionerRoles that are in force; None where nobody asked."""
    glances: dict[Literal, Glance | None] = field(default_factory=dict)
    """Looks at resources that labels or Consents lead to; None for what is not there."""
    subjects: dict[Literal, frozenset[str] | None] = field(default_factory=dict)
    """Whom these are about."""
    births: dict[str, dt.date | None] = field(default_factory=dict)
    """When patients were born; None where that is not known to the year."""
    related: dict[str, frozenset[str]] = field(default_factory=dict)
    """By relationship: the patients who stand in it to the caller."""
    grant: Grant | None = None
    """The emergency under which this exchange is decided."""
    joint: bool = False
    """A transaction's entries share these: no emergency replaces anything, since it is about reading one patient."""

    def replaces(self, conjunct: str, patients: frozenset[str]) -> bool:
        """Whether an emergency replaces a conjunct for all of these patients."""
        grant = self.grant
        return grant is not None and conjunct in grant.emergency.replaces and patients == frozenset((grant.patient,))

    epochs: dict[str, str] = field(default_factory=dict)
    """What was true when this was gathered: it is looked at again before the first byte leaves."""

    def forget(self) -> None:
        """A write of this exchange changed some of it: all of it is gathered anew."""
        for known in (self.consents, self.resources, self.glances, self.subjects, self.births, self.related, self.epochs):
            known.clear()
        self.roles = None


@dataclass(frozen=True, slots=True)
class Situation:
    """What is true of this exchange and not of the caller: when, where, and under which id it is recorded."""

    upstream: str
    """The path under which clients call this upstream: ``/fhir``."""
    base: str
    """The absolute URL of that path, as clients see it."""
    bases: tuple[str, ...]
    """All absolute URLs under which references may name this upstream's resources."""
    now: dt.datetime
    """In the configured zone."""
    address: str
    decision: str
    """The id that stands in the record and in ``X-Request-Id``."""
    credential: str | None
    """The access token, still unverified."""
    origin: str
    """The ``Origin`` of a browser app that settings allow, or empty."""
    scheme: str = "bearer"
    """How the token was shown: ``bearer`` or ``dpop``."""
    proof: str = ""
    """The DPoP proof that came with it, still unverified."""
    certificate: str = ""
    """SHA-256 of the client's certificate (base64url), as the connection or a trusted proxy shows it."""
    method: str = ""
    url: str = ""
    """The request's URL as clients see it, without its query."""
    habits: Habits = Habits()
    emergency: str = ""
    """The reason that a header states for emergency access."""
    country: str = ""
    """Where the data of this upstream is, as settings say."""
    facts: Facts = field(default_factory=Facts, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking, as a verified token says."""

    issuer: str
    """The name of the issuer in the settings."""
    subject: str
    client: str
    roles: frozenset[str]
    purposes: frozenset[str]
    scopes: Scopes
    patient: str
    """The Patient in context at this upstream, or empty."""
    fhir_user: str
    """``Practitioner/123`` at this upstream, or empty."""
    attributes: tuple[tuple[str, Any], ...]
    """Mapped claims, for conditions."""
    expires: float
    """Seconds since the epoch."""
    fingerprint: str
    """Equal for equal values of all of the above but ``expires``."""
    organizations: frozenset[str] = frozenset()
    """For which the caller acts: ``Organization/1`` at this upstream, a URI, or ``system|value``."""
    identifiers: frozenset[str] = frozenset()
    """Of the caller, as ``system|value``."""
    acr: str = ""
    """The authentication context class (OpenID Connect Core §2)."""
    amr: frozenset[str] = frozenset()
    """The authentication methods (RFC 8176)."""
    auth_time: float = 0.0
    """When the person last authenticated, in seconds since the epoch; 0 where nobody says."""
    emergency: str = ""
    """The reason that a claim states for emergency access."""
    residuals: tuple[Provision, ...] = ()
    """What the token leaves to be enforced: what is forbidden, and what is permitted of that."""


# --- obligations ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mask:
    """Show the first and last so many characters of values at least ``least`` long, and nothing of shorter ones."""

    first: int = 0
    last: int = 0
    keep_length: bool = False
    least: int = 0
    """At least twice what is shown: a mask hides half of a value or all of it."""


@dataclass(frozen=True, slots=True)
class Generalize:
    """Say less precisely: a date to ``year`` or ``month``, a ZIP code to ``zip3``, a number to a ``band`` of a width.

    ``cap`` limits ages: a birth date or a number beyond it reads as just beyond it.
    """

    to: str
    cap: int = 0
    width: int = 0


@dataclass(frozen=True, slots=True)
class Hash:
    """A keyed digest: equal values stay equal, nothing else remains."""


@dataclass(frozen=True, slots=True)
class Replace:
    """A fixed value, JSON-encoded so that it compares and hashes."""

    value: str


@dataclass(frozen=True, slots=True)
class Remove:
    """The element goes; a required one becomes ``masked``."""

    drop: bool = False
    """Take the closest removable ancestor too (for modifier elements and elements without an absent form)."""


Operation = Mask | Generalize | Hash | Replace | Remove


@dataclass(frozen=True, slots=True)
class Obligation:
    """One element of one resource type to be hidden in one way."""

    rule: str
    type: str
    path: Path
    operation: Operation
    criteria: Criteria | None = None
    """Applies only to resources for which this is not False."""
    consent: frozenset[Code | str] = frozenset()
    """Applies only where a Consent denies one of these (``ConsentElement.names``); empty: whatever Consents say."""


# --- decisions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one caller may see of one resource. Redact, audit, metrics and ``explain`` read this one value."""

    shown: bool
    reason: Reason
    rule: str = ""
    """The rule that withheld it, or the rule that granted it."""
    applies: int = 0
    """Which of the type's obligations bind here: bit i for the i-th of ``TypeView.obligations``."""
    labels: tuple[Code, ...] = ()
    """Security labels that it leaves with, besides those that are stored."""


@dataclass(frozen=True, slots=True)
class Naming:
    """Where ``Reference.display`` and ``Reference.identifier`` may stay, by the type that is referred to."""

    display: frozenset[str]
    identifier: frozenset[str]
    subject_display: bool
    subject_identifier: bool
    all_open: bool


@dataclass(frozen=True, slots=True, eq=False)
class TypeView:
    """What is the same for every resource of one type in the view of one kind of caller; compared by identity."""

    type: str
    obligations: tuple[Obligation, ...]
    """All that may apply, whatever their criteria."""
    naming: Naming
    marked: bool
    """The view carries obligations: marks are set, narrative goes."""
    closed: frozenset[str]
    """What of ``meta`` goes with that: ``versionId`` (for a token of the view), ``lastUpdated``, ``source``."""
    silent: bool
    """Narrative goes: it is marked, or something of patients is hidden, whom any narrative may name."""
    label: bytes
    """Names the obligations; views that differ have different labels."""


class Total(StrEnum):
    """Whether a search is counted (FHIR R4 §3.1.1.5.5)."""

    NONE = "none"
    WITH = "with"
    """The count beside the page."""
    ALONE = "alone"
    """``_summary=count``."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a search's answer is asked for."""

    includes: tuple[Include, ...] = ()
    elements: frozenset[str] = frozenset()
    """Of ``_elements``, by the names of R4's model; empty for all."""
    summary: str = ""
    """``true``, ``text`` or ``data``; empty for all."""
    total: Total = Total.NONE

    @property
    def partial(self) -> bool:
        """Whether resources leave in part."""
        return bool(self.elements or self.summary)


@dataclass(frozen=True, slots=True)
class Join:
    """A chain or ``_has`` of a search, to be resolved by a search of its own that this caller must be allowed."""

    search: Interaction
    """What is searched in its place."""
    parameter: str
    """The reference that joins: of the searched type for a chain, of the other for ``_has``."""
    reverse: bool


@dataclass(frozen=True, slots=True)
class Stored:
    """What the upstream has now where a write would go; ``resource`` is None where there is nothing."""

    resource: Any
    version: str = ""
    careful: bool = True
    deep: bool = True
    named: bool = True
    """These as in Answer."""


@dataclass(frozen=True, slots=True)
class Writing:
    """What a permitted write sends, all of it judged."""

    image: Any
    """The whole new resource; None for a delete."""
    version: str
    """The version that was judged; empty where there is nothing yet."""
    guarded: bool
    """``If-Match`` binds the write to that version upstream."""
    creates: bool
    patients: frozenset[str]
    """Whom the stored version and the new image are about."""
    stored: Any = None
    """What it changes."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A write that was judged but for what it refers to."""

    writing: Writing
    refers: Mapping[Literal, str]
    """What it adds references to, and where (FHIRPath)."""


PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*(?:\.id)?)\}")
"""What stands for the caller in the queries of a relationship."""


@dataclass(frozen=True, slots=True)
class Relationship:
    """Between a caller and patients: those whom these queries give, in FHIR search syntax with places for the caller."""

    name: str
    queries: tuple[str, ...]
    max_age: float
    """Seconds."""
    types: frozenset[str]
    """The resource types that are asked for: decisions read them."""


REPLACEABLE = ("relationship", "consent", "clearance")
"""The conjuncts that an emergency may replace."""


@dataclass(frozen=True, slots=True)
class Emergency:
    """Emergency access as a rule opens it (break-glass)."""

    rule: str
    types: frozenset[str]
    """``*`` for all."""
    interactions: frozenset[str]
    replaces: frozenset[str]
    seconds: float
    """How long a grant holds."""
    limit: int
    """Grants of one caller within the window."""
    window: float
    """Seconds."""

    def covers(self, resource_type: str, interaction: str) -> bool:
        """Whether it speaks of such a request."""
        return not self.types.isdisjoint({"*", resource_type}) and interaction in self.interactions


@dataclass(frozen=True, slots=True)
class Grant:
    """Leave to see one patient's data in an emergency."""

    id: str
    emergency: Emergency
    patient: str
    reason: str
    """As the caller stated it."""
    new: bool
    """It was opened by this exchange."""


@dataclass(frozen=True, slots=True)
class Opaque:
    """Content that no redaction can look into and that may pass: by media type (``*`` for any), up to so many bytes (0: any)."""

    types: frozenset[str]
    most: int

    @property
    def everything(self) -> bool:
        """Whether it lets anything pass."""
        return "*" in self.types and not self.most

    def lets(self, binary: Any) -> bool:
        """Whether a Binary's content may pass."""
        kind, data = binary.get("contentType"), binary.get("data")
        if type(kind) is not str or (type(data) is not str and data is not None):
            return False
        small = not self.most or len(data or "") * 3 // 4 - (data or "")[-2:].count("=") <= self.most
        return small and bool(self.types & {"*", kind.split(";")[0].strip().lower()})


class Judge(Protocol):
    """Whether one caller may see a resource, and how."""

    def __call__(self, resource: Any, letter: str, careful: bool, page: Page | None = None, /) -> Verdict:
        """``careful``: it may hold modifier extensions; ``page``: what it came on, where that is at hand."""
        ...


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to forward one interaction, and how to judge what comes back. Made by ``authorize`` alone."""

    principal: Principal
    interaction: Interaction
    situation: Situation
    judge: Judge
    """The letter is ``s`` for a match, ``r`` for a read, ``i`` for an included resource, which may be shown because it stands
    beside what refers to it, ``b`` for a Binary that belongs to what may be seen, ``c`` for a contained one, which stands or
    falls with its container: only denies are asked.
    """
    view: Callable[[str], TypeView]
    sees_everything: bool
    """Nothing of any type can be withheld from this caller, and nothing is redacted."""
    narrow: tuple[Criterion, ...]
    """Criteria to AND to a search."""
    nothing: bool
    """The answer is known to be empty; ask nobody."""
    rejudge: Callable[[Any], bool | None] | None
    """Matches are judged by this once more, on their redacted view."""
    binding: str
    """What page links of this caller are bound to."""
    rules: str
    """Digest of the rule set."""
    notes: tuple[str, ...]
    """Conjuncts that are absent by configuration, for the record."""
    sent: tuple[Parameter, ...] = ()
    """The parameters of a search that the upstream is asked."""
    joins: tuple[Join, ...] = ()
    shape: Shape = Shape()
    thins: bool = False
    """Matches of the search may be withheld, so that the upstream's pages and links are not ours."""
    labelled: bool = False
    """Resources are labelled on the way."""
    relations: tuple[Relationship, ...] = ()
    """Those that rules ask of this caller."""
    emergency: Emergency | None = None
    """What opens to the caller, who states a reason."""
    lifts: tuple[str, ...] = ()
    """What could show more, by caller, type, purpose and rules alone."""
    overwrites: bool = False
    """An update replaces the whole: nothing of the type is hidden from this caller, or nothing of it is shown or redacted."""
    writing: Writing | None = None
    """What is written, once it was judged."""
    output: frozenset[str] = frozenset()
    """The types that the answer of an operation may be."""
    affects: frozenset[str] = frozenset()
    """The types that an operation may change."""
    opaque: Opaque | None = None
    """What a Binary's own bytes may be."""
    asynchronous: bool = False
    """The upstream may answer with a job."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One upstream request, built from parsed parts alone."""

    permit: Permit
    method: str
    segments: tuple[str, ...]
    """Below the upstream's base, not yet percent-encoded."""
    query: tuple[tuple[str, str], ...]
    form: bool
    """Send the query as the body of POST ``_search``."""
    body: bytes | None = None
    """FHIR JSON of a write."""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Together:
    """The writes of a transaction, as one upstream request."""

    plans: tuple[Plan, ...]
    body: bytes
    headers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the upstream said, parsed. Its ``text`` is looked at, and never passed on."""

    plan: Plan
    status: int
    headers: Mapping[str, str]
    """Only the allow-listed ones, lower-case."""
    resource: Any
    careful: bool
    """The body may hold modifier extensions."""
    deep: bool
    """The body may hold references within extensions."""
    named: bool = True
    """The body may hold URLs of the upstream."""
    text: bytes = b""
    """The resource as ``json.encode`` writes it, for the first look at what is in it; empty where it is not at hand."""
    id: str = ""
    """Of what a write made, where the upstream named it."""
    version: str = ""


@dataclass(slots=True)
class Tally:
    """Counts for the record; never values. Filled while a view is made, read once it is whole."""

    shown: int = 0
    withheld: dict[str, int] = field(default_factory=dict)
    """By reason."""
    redacted: dict[str, int] = field(default_factory=dict)
    """Elements hidden, by rule."""
    granted: dict[str, int] = field(default_factory=dict)
    """Resources shown, by the rule that granted them."""
    patients: set[str] = field(default_factory=set)
    notices: set[str] = field(default_factory=set)
    """What has to be said with what leaves: labels of privacy law."""


@dataclass(frozen=True, slots=True)
class View:
    """What leaves: status, headers, body, and what it took."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    reason: Reason
    tally: Tally
    rule: str = ""
    created: str = ""
    """The id that a create was given."""
    entries: tuple[str, ...] = ()
    """The decisions of a batch's entries."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that the record of this exchange is durable. Made by ``audit`` alone; ``respond`` asks for it."""

    decision: str
    sequence: int
