"""Ordered search values: dates and numbers as ranges, and how two ranges compare (FHIR R4 §3.1.1.4.5 and §3.1.1.4.6)."""

from __future__ import annotations

import datetime as dt
import re
from decimal import Decimal, InvalidOperation
from typing import Any

from fhirshield.errors import CriteriaError

Answer = bool | None

PREFIX = re.compile(r"(eq|ne|gt|lt|ge|le|sa|eb)?(.+)\Z", re.DOTALL)


def compare(prefix: str, low: Any, high: Any, wanted_low: Any, wanted_high: Any) -> Answer:
    """Compare the range of a stored value with the range of a search value (both ends included)."""
    if prefix in {"eq", "ne"}:
        within: Answer = None
        if wanted_low <= low and high <= wanted_high:
            within = True
        elif high < wanted_low or wanted_high < low:
            within = False
        return within if prefix == "eq" or within is None else not within
    if prefix in {"gt", "sa"}:
        return True if low > wanted_high else False if high <= wanted_high else None
    if prefix in {"lt", "eb"}:
        return True if high < wanted_low else False if low >= wanted_low else None
    if prefix == "ge":
        return True if low >= wanted_low else False if high < wanted_low else None
    return True if high <= wanted_high else False if low > wanted_high else None


_DATE = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(\d\d):(\d\d)(?::(\d\d)(\.\d+)?)?(Z|[+-]\d\d:\d\d)?)?)?)?\Z")
EARLIEST = dt.datetime.min.replace(tzinfo=dt.UTC)
LATEST = dt.datetime.max.replace(tzinfo=dt.UTC)
Span = tuple[dt.datetime, dt.datetime]


def date_span(text: str) -> Span | None:
    """First and last instant that a FHIR date, dateTime or instant covers; without an offset it is taken as UTC."""
    found = _DATE.match(text)
    if not found:
        return None
    year, month, day, hour, minute, second, fraction, zone = found.groups()
    try:
        offset = dt.UTC if zone in {None, "Z"} else dt.datetime.strptime(zone, "%z").tzinfo
        micro = int(Decimal(fraction or 0) * 1_000_000)
        low = dt.datetime(
            int(year), int(month or 1), int(day or 1), int(hour or 0), int(minute or 0),
            min(int(second or 0), 59), micro, offset,
        ).astimezone(dt.UTC)  # fmt: skip
        if second:
            width = dt.timedelta() if fraction else dt.timedelta(seconds=1)
        elif hour:
            width = dt.timedelta(minutes=1)
        elif day:
            width = dt.timedelta(days=1)
        else:
            following = low.replace(year=low.year + 1) if not month else _next_month(low)
            width = following - low
        return low, low + width - (dt.timedelta(microseconds=1) if width else dt.timedelta())
    except (ValueError, OverflowError):
        return None


def period_holds(period: Any, moment: dt.datetime) -> Answer:
    """Whether a Period holds a moment; without a Period, always. None where an end cannot be read."""
    if period is None:
        return True
    if not isinstance(period, dict) or "_start" in period or "_end" in period:
        return None
    low, high = (date_span(str(period[name])) if name in period else None for name in ("start", "end"))
    if ("start" in period and low is None) or ("end" in period and high is None):
        return None
    return (low is None or low[0] <= moment) and (high is None or moment <= high[1])


def _next_month(moment: dt.datetime) -> dt.datetime:
    return (moment + dt.timedelta(days=31)).replace(day=1)


def number_span(text: str) -> tuple[str, Decimal, Decimal]:
    """The prefix and the range that a number stands for: half a unit of its last digit around it (R4 §3.1.1.4.6)."""
    found = PREFIX.match(text)
    try:
        number = Decimal(found[2] if found else "")
        exponent = number.as_tuple().exponent
    except InvalidOperation:
        raise CriteriaError(f"`{text}` is not a number with a prefix of eq ne gt lt ge le sa eb") from None
    if found is None or not isinstance(exponent, int) or abs(exponent) > 100 or len(text) > 100:
        raise CriteriaError(f"`{text}` is not a finite number within reason")
    prefix = found[1] or "eq"
    half = Decimal(1).scaleb(exponent) / 2 if prefix in {"eq", "ne"} else Decimal(0)
    return prefix, number - half, number + half
