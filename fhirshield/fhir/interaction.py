"""One FHIR RESTful interaction (FHIR R4 §3.1.0), as parsed from a request. Nothing of the request's bytes remains."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from fhirshield.fhir.page import Page, Parameter


class Kind(StrEnum):
    """The interactions of the RESTful API, by the names of the code system restful-interaction."""

    READ = "read"
    VREAD = "vread"
    SEARCH_TYPE = "search-type"
    SEARCH_SYSTEM = "search-system"
    SEARCH_COMPARTMENT = "search-compartment"
    HISTORY_INSTANCE = "history-instance"
    HISTORY_TYPE = "history-type"
    HISTORY_SYSTEM = "history-system"
    CREATE = "create"
    UPDATE = "update"
    PATCH = "patch"
    DELETE = "delete"
    BATCH = "batch"
    """A batch, or, until the body is read, a transaction."""
    TRANSACTION = "transaction"
    OPERATION = "operation"
    CAPABILITIES = "capabilities"
    SMART_CONFIGURATION = "smart-configuration"
    PAGE = "page"
    """A further page of a search, by a link of ours."""
    PREFLIGHT = "preflight"
    """A CORS preflight (Fetch §3.2.2); not FHIR."""


RULE_NAMES = {
    Kind.READ: "read",
    Kind.VREAD: "vread",
    Kind.SEARCH_TYPE: "search",
    Kind.PAGE: "search",
    Kind.HISTORY_INSTANCE: "history",
    Kind.HISTORY_TYPE: "history",
    Kind.HISTORY_SYSTEM: "history",
    Kind.CREATE: "create",
    Kind.UPDATE: "update",
    Kind.PATCH: "patch",
    Kind.DELETE: "delete",
}
"""What rules call the interactions that are served."""

SCOPE_LETTERS = {
    Kind.READ: "r",
    Kind.VREAD: "r",
    Kind.SEARCH_TYPE: "s",
    Kind.PAGE: "s",
    Kind.HISTORY_INSTANCE: "r",
    Kind.HISTORY_TYPE: "s",
    Kind.HISTORY_SYSTEM: "s",
    Kind.CREATE: "c",
    Kind.UPDATE: "u",
    Kind.PATCH: "u",
    Kind.DELETE: "d",
}
"""The SMART 2.2 permission that each interaction needs; an update that creates needs ``c`` too."""
HISTORIES = frozenset({Kind.HISTORY_INSTANCE, Kind.HISTORY_TYPE, Kind.HISTORY_SYSTEM})
WRITES = frozenset({Kind.CREATE, Kind.UPDATE, Kind.PATCH, Kind.DELETE})


class Return(StrEnum):
    """What a writer prefers to get back (RFC 7240 ``return``, FHIR R4 §3.1.0.1.6)."""

    REPRESENTATION = "representation"
    MINIMAL = "minimal"
    OUTCOME = "OperationOutcome"


@dataclass(frozen=True, slots=True)
class Interaction:
    """What is asked. ``type`` and ``id`` are empty where the interaction has none."""

    kind: Kind
    type: str = ""
    id: str = ""
    version: str = ""
    operation: str = ""
    parameters: tuple[Parameter, ...] = ()
    page: Page | None = None
    """Where a further page is; ``parameters`` are then those of its search."""
    by_post: bool = False
    """A search by POST ``_search``: its parameters travel in a body."""
    head: bool = False
    """Answer with headers only."""
    compartment: str = ""
    """``Patient/123`` of a compartment search."""
    content: Any = None
    """What a write brings: a resource, or the operations of a JSON Patch; in the upstream's terms."""
    if_match: str = ""
    """The version that a write insists on, as this caller was told it."""
    condition: tuple[Parameter, ...] = ()
    """What a conditional write searches by (FHIR R4 §3.1.0.7.1): its type is ``type``."""
    answer: Return = Return.REPRESENTATION
    name: str = ""
    """What other entries of a transaction call what is made here: a URN."""
    asynchronous: bool = False
    """``Prefer: respond-async`` (FHIR R4 §3.1.0.7): an operation may answer with a job."""
    ends: bool = False
    """The job that ``page`` leads to is to be ended."""
    most: int = 0
    """Of each code, by ``$lastn``."""
    raw: tuple[str, ...] = ()
    """The media types in which a Binary's own bytes are asked for (FHIR R4 §3.1.0.1.11); empty for FHIR JSON."""
    lenient: bool = False
    """Parameters that are not known are left out, not refused (``Prefer: handling=lenient``, FHIR R4 §3.1.1.3)."""

    @property
    def letter(self) -> str:
        """``r`` or ``s``; empty for what is not served."""
        return SCOPE_LETTERS.get(self.kind, "")

    @property
    def writes(self) -> bool:
        """Whether it would change what is stored."""
        return self.kind in WRITES

    @property
    def searches(self) -> bool:
        """Whether its answer is a searchset."""
        return self.kind in {Kind.SEARCH_TYPE, Kind.PAGE}

    @property
    def recalls(self) -> bool:
        """Whether its answer is a history."""
        return self.kind in HISTORIES

    @property
    def place(self) -> tuple[str, ...]:
        """Where it is asked, below the base."""
        named = tuple(part for part in (self.type, self.id) if part)
        if self.kind is Kind.OPERATION:
            return (*named, self.operation)
        return (*named, "_history") if self.recalls else named

    @property
    def rule_name(self) -> str:
        """The name that rules use; empty for what is not served."""
        return RULE_NAMES.get(self.kind, "")
