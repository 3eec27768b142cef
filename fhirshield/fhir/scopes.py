"""SMART App Launch scopes for FHIR resources, version 1 and 2.2, granular ones included (SMART 2.2 §3.0.2).

What does not parse whole grants nothing; it is kept aside so that ``explain`` can say so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from fhirshield.errors import CriteriaError
from fhirshield.fhir.criteria import Criteria
from fhirshield.fhir.criteria import parse as parse_criteria
from fhirshield.fhir.definitions import resource_types

_SCOPE = re.compile(r"(patient|user|system)/(\*|[A-Z][A-Za-z]+)\.(\*|read|write|c?r?u?d?s?)(?:\?(.+))?\Z", re.DOTALL)
_VERSION_1 = {"read": "rs", "write": "cud", "*": "cruds"}
_CONTEXT = re.compile(r"(patient|user|system)/")


@dataclass(frozen=True, slots=True)
class Scope:
    """One granted scope: ``context/type.permissions?criteria``."""

    text: str
    context: str
    type: str
    permissions: str
    """A subset of ``cruds``."""
    criteria: Criteria | None

    def covers(self, resource_type: str) -> bool:
        """Whether it speaks of that type, criteria aside."""
        return self.type in {"*", resource_type}


@dataclass(frozen=True, slots=True, eq=False)
class Scopes:
    """All scopes of a token; one object for equal texts. ``void`` look like resource scopes and are none."""

    text: str

    granted: tuple[Scope, ...]
    void: tuple[tuple[str, str], ...]
    """(scope, why)"""


@lru_cache(maxsize=4096)
def parse(text: str) -> Scopes:
    """Read a token's ``scope`` claim (RFC 6749 §3.3). Scopes that are not about resources are left out."""
    granted: list[Scope] = []
    void: list[tuple[str, str]] = []
    for one in text.split(" "):
        if not _CONTEXT.match(one):
            continue
        try:
            granted.append(_scope(one))
        except CriteriaError as error:
            void.append((one, str(error)))
    return Scopes(text, tuple(dict.fromkeys(granted)), tuple(void))


def _scope(text: str) -> Scope:
    found = _SCOPE.match(text)
    if found is None or not found[3]:
        raise CriteriaError("not `context/Type.permissions` of SMART 1 or 2")
    context, resource_type, permissions, query = found.groups()
    if resource_type != "*" and resource_type not in resource_types():
        raise CriteriaError(f"`{resource_type}` is not a resource type of R4")
    letters = _VERSION_1.get(permissions, permissions)
    if query and permissions in _VERSION_1:
        raise CriteriaError("version 1 scopes take no criteria")
    criteria = parse_criteria(f"{resource_type}?{query}") if query else None
    return Scope(text, context, resource_type, letters, criteria)
