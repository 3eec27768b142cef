"""JSON Patch (RFC 6902) over FHIR JSON: jsonpatch does the work, within bounds (docs/adr/0008)."""

from __future__ import annotations

import copy
from typing import Any

from jsonpatch import JsonPatch, JsonPatchException
from jsonpointer import JsonPointer, JsonPointerException

from fhirshield.errors import MalformedFhir
from fhirshield.fhir.json import check_depth, encode

MOST_OPERATIONS = 500
MOST_COPIED = 4 << 20
"""Bytes that ``copy`` may multiply in one patch."""


class PatchError(Exception):
    """A patch that is none, or that does not apply; ``place`` is the index of the operation, -1 for the whole."""

    def __init__(self, place: int, *, malformed: bool) -> None:
        super().__init__(f"operation {place}")
        self.place = place
        self.malformed = malformed


def apply(operations: Any, resource: dict[str, Any], depth: int = 64) -> Any:
    """What a patch makes of a resource, which stays as it is. Raises PatchError, also for what gets deeper than ``depth``."""
    if type(operations) is not list or len(operations) > MOST_OPERATIONS:
        raise PatchError(-1, malformed=True)
    result: Any = copy.deepcopy(resource)
    copied = 0
    for place, operation in enumerate(operations):
        if type(operation) is not dict or type(operation.get("op")) is not str:
            raise PatchError(place, malformed=True)
        try:
            if operation["op"] == "copy":
                copied += len(encode(JsonPointer(operation["from"]).resolve(result)))
                if copied > MOST_COPIED:
                    raise PatchError(place, malformed=True)
            result = JsonPatch([operation]).apply(result, in_place=True)
        except (JsonPatchException, JsonPointerException, KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
            raise PatchError(place, malformed=isinstance(error, KeyError | TypeError)) from None
    try:
        check_depth(result, depth)
    except MalformedFhir:
        raise PatchError(-1, malformed=True) from None
    return result
