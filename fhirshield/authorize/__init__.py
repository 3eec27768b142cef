"""Principal × Interaction -> Permit or Denial. The only step that imports ``policy``; the only maker of a Permit.

``caller`` answers *may this be asked?*, ``resource`` answers *may this be seen?*, ``standing`` holds what both read: the
scopes and rules of one kind of caller, by resource type.
"""

from fhirshield.authorize.caller import authorize, belonging, could_lift, narrowed, related_only
from fhirshield.authorize.operation import refers
from fhirshield.authorize.parameters import joined
from fhirshield.authorize.writing import draft, endorse, invoked, may_change, on_this

__all__ = [
    "authorize",
    "belonging",
    "could_lift",
    "draft",
    "endorse",
    "invoked",
    "joined",
    "may_change",
    "narrowed",
    "on_this",
    "refers",
    "related_only",
]
