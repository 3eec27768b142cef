"""Which operation fits which element: the table *operation x datatype* and the rules for what may be removed.

A redaction that passes here can always be carried out on a resource of the type it names.
"""

from __future__ import annotations

import re
from typing import Any

from fhirshield.errors import PathError
from fhirshield.fhir.absent import has_absent_form
from fhirshield.fhir.definitions import codes_of, pattern_of
from fhirshield.fhir.json import encode
from fhirshield.fhir.path import Target
from fhirshield.model import Generalize, Hash, Mask, Operation, Remove, Replace

TEXT = frozenset({"string", "markdown"})
DATES = frozenset({"date", "dateTime"})
NUMBERS = frozenset({"decimal", "integer", "unsignedInt"})
GENERALIZABLE = {
    "year": DATES,
    "month": DATES,
    "age": DATES | NUMBERS,
    "zip3": frozenset({"string"}),
    "band": NUMBERS,
}
_KEYS = {
    "mask": {"show", "length"},
    "generalize": {"to", "cap", "width"},
    "hash": set(),
    "replace": {"value"},
    "remove": {"drop", "withhold_type"},
}
_ALL_KEYS = set().union(*_KEYS.values())
OR_WITHHOLD = ", or `withhold_type: true` to withhold the type from these callers"


def operation_of(row: dict[str, Any]) -> Operation:
    """The operation that a ``redact`` entry asks for. Raises PathError when its keys do not go together."""
    kind = row["with"]
    if strange := sorted((_ALL_KEYS - _KEYS[kind]) & set(row)):
        known = ", ".join(f"`{key}`" for key in sorted(_KEYS[kind])) or "no further keys"
        raise PathError(f"`{strange[0]}` does not go with `{kind}`", f"`{kind}` takes {known}")
    if kind == "mask":
        show = row.get("show", {})
        first, last = show.get("first", 0), show.get("last", 0)
        return Mask(first, last, row.get("length") == "kept", 2 * (first + last))
    if kind == "generalize":
        return _generalize(row)
    if kind == "hash":
        return Hash()
    if kind == "replace":
        if "value" not in row:
            raise PathError("`replace` has no `value`", "say what to put there")
        return Replace(encode(row["value"]).decode())
    return Remove(drop=bool(row.get("drop")))


def _generalize(row: dict[str, Any]) -> Generalize:
    to = row.get("to")
    if to is None:
        raise PathError("`generalize` has no `to`", "say year, month, zip3, band or age")
    if (to == "band") is not ("width" in row):
        raise PathError("`width` goes with `to: band`, and a band needs one", "for example `to: band, width: 10`")
    if to == "age" and "cap" not in row:
        raise PathError("`to: age` has no `cap`", "for example `cap: 89`")
    if "cap" in row and to not in {"age", "year", "month"}:
        raise PathError(f"`cap` does not go with `to: {to}`", "cap ages with `to: age`, or dates with year and month")
    return Generalize(to, row.get("cap", 0), row.get("width", 0))


def check_fit(target: Target, operation: Operation, text: str) -> None:
    """Raises PathError when the operation cannot be carried out at that target."""
    element = target.element
    if isinstance(operation, Remove):
        _check_removal(target, operation, text)
        return
    kind = type(operation).__name__.lower()
    if target.whole_array:
        raise PathError(f"`{text}` ends at all of `{element.name}`, which repeats", f"write `{text}[*]`")
    if not element.primitive:
        raise PathError(f"`{text}` is a {element.type}; {kind} works on primitive values", "go down to one of its elements")
    fits = True
    if isinstance(operation, Mask | Hash):
        fits = element.type in TEXT
    elif isinstance(operation, Generalize):
        fits = element.type in GENERALIZABLE[operation.to]
        kind += f" to {operation.to}"
    else:
        _check_value(target, operation, text)
    if not fits or (element.name == "reference" and target.owners[-1] == "Reference"):
        raise PathError(f"`{text}` is a {element.type}; {kind} does not go with that", "use `remove`")


def _check_removal(target: Target, operation: Remove, text: str) -> None:
    element = target.element
    remedy = f"say `drop: true` to take its parent too{OR_WITHHOLD}"
    if element.modifier and not operation.drop:
        raise PathError(f"`{text}` removes a modifier element whose parent stays: readers would misunderstand it", remedy)
    if element.min > 0 and not has_absent_form(element) and not operation.drop:
        raise PathError(f"`{text}` removes a required element that has no absent form", remedy)


def _check_value(target: Target, operation: Replace, text: str) -> None:
    element = target.element
    value = operation.value.strip('"') if operation.value.startswith('"') else operation.value
    is_text = operation.value.startswith('"')
    wants_text = element.type not in NUMBERS | {"positiveInt", "boolean"}
    pattern = pattern_of(element.type)
    if is_text is not wants_text or pattern is None or not re.fullmatch(pattern, value):
        raise PathError(f"`{value}` is no {element.type}, which `{text}` is", "give a value of that type")
    if element.binding and value not in codes_of(element.binding):
        known = ", ".join(sorted(codes_of(element.binding))[:12])
        raise PathError(f"`{value}` is not in the value set that `{text}` must use", f"one of: {known}")
