"""What an operation makes of one value, and what two operations that meet on one element come to.

``merge`` is commutative, associative and idempotent: mask < hash < replace < remove; two masks show what both show; of
two generalizations the coarser wins; what does not compare is removed.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec

from fhirshield.model import Generalize, Hash, Mask, Operation, Remove, Replace

STARS = "********"
SPARSE_ZIP3 = frozenset(
    ["036", "059", "063", "102", "203", "556", "692", "790", "821", "823", "830", "831", "878", "879", "884", "890", "893"]
)  # fmt: skip
"""Three-digit ZIP areas of 20,000 people or fewer (US census 2000, in HHS's guidance on 45 CFR 164.514(b)): shown as 000."""

REMOVED = object()
"""What a value becomes that cannot be shown in any form."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What operations may use beside the value: the date in the configured zone, and a keyed digest."""

    today: dt.date
    digest: Callable[[bytes], str]


def apply(operation: Operation, value: Any, tools: Tools) -> Any:
    """The value as it may be shown, or REMOVED. A value of an unexpected type is REMOVED."""
    if isinstance(operation, Mask):
        return _mask(operation, value) if isinstance(value, str) else REMOVED
    if isinstance(operation, Hash):
        return tools.digest(value.encode()) if isinstance(value, str) else REMOVED
    if isinstance(operation, Replace):
        return msgspec.json.decode(operation.value)
    if isinstance(operation, Generalize):
        return _GENERALIZE[operation.to](operation, value, tools)
    return REMOVED


def _mask(mask: Mask, value: str) -> str:
    length = len(value)
    first, last = (mask.first, mask.last) if length >= mask.least else (0, 0)
    stars = "*" * (length - first - last) if mask.keep_length else STARS
    return value[:first] + stars + (value[length - last :] if last else "")


_DATE = re.compile(r"(\d{4})(?:-(\d\d))?(?:-(\d\d))?(?:T[0-9:.+\-Z]*)?\Z")


def _date(operation: Generalize, value: Any, tools: Tools) -> Any:
    found = _DATE.match(value) if isinstance(value, str) else None
    if found is None:
        return _capped(operation, value) if operation.to == "age" else REMOVED
    if operation.cap and _age(found, tools.today) > operation.cap:
        return f"{tools.today.year - operation.cap - 1:04d}"
    if operation.to == "year":
        return found[1]
    return value[:7] if operation.to == "month" else value


def _age(found: re.Match[str], today: dt.date) -> int:
    """Whole years since a date; the most they can be where the date is less precise."""
    born = (int(found[1]), int(found[2] or 1), int(found[3] or 1))
    return today.year - born[0] - ((today.month, today.day) < born[1:])


def _capped(operation: Generalize, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return REMOVED
    return operation.cap + 1 if value > operation.cap else value


def _zip3(operation: Generalize, value: Any, tools: Tools) -> Any:
    if not isinstance(value, str) or not re.fullmatch(r"\d{5}(-\d{4})?", value):
        return REMOVED
    return "000" if value[:3] in SPARSE_ZIP3 else value[:3]


def _band(operation: Generalize, value: Any, tools: Tools) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or not -_LARGEST < value < _LARGEST:
        return REMOVED
    return math.floor(value) // operation.width * operation.width


_LARGEST = Decimal(10) ** 30
"""No clinical number is larger; `1e999999` is a number of JSON and a second's work."""

_GENERALIZE: dict[str, Callable[[Generalize, Any, Tools], Any]] = {
    "year": _date,
    "month": _date,
    "age": _date,
    "zip3": _zip3,
    "band": _band,
}

# --- merging ----------------------------------------------------------------------------------------------------------

_RANK = {Mask: 0, Hash: 1, Replace: 2, Remove: 3}
_COARSENESS = {"age": 0, "month": 1, "year": 2}


def merge(one: Operation, other: Operation) -> Operation:
    """The operation that hides all that either hides."""
    if isinstance(one, Remove) or isinstance(other, Remove):
        drop = (isinstance(one, Remove) and one.drop) or (isinstance(other, Remove) and other.drop)
        return Remove(drop)
    if one == other:
        return one
    if isinstance(one, Generalize) and isinstance(other, Generalize):
        return _coarser(one, other)
    if isinstance(one, Generalize) or isinstance(other, Generalize):
        return Remove()
    if isinstance(one, Mask) and isinstance(other, Mask):
        return Mask(
            min(one.first, other.first),
            min(one.last, other.last),
            one.keep_length and other.keep_length,
            max(one.least, other.least),
        )
    if type(one) is type(other):
        return Remove()
    return max(one, other, key=lambda operation: _RANK[type(operation)])


def _coarser(one: Generalize, other: Generalize) -> Operation:
    if one.to in _COARSENESS and other.to in _COARSENESS:
        to = max(one.to, other.to, key=lambda name: _COARSENESS[name])
        caps = [cap for cap in (one.cap, other.cap) if cap]
        return Generalize(to, min(caps, default=0), 0)
    if one.to == other.to == "band" and not max(one.width, other.width) % min(one.width, other.width):
        return max(one, other, key=lambda band: band.width)
    return Remove()
