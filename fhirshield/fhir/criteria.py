"""Criteria: one language, FHIR search syntax, with two readings of one parse (FHIR R4 §3.1.1).

``parse`` reads ``Observation?category=laboratory&status=final``; ``render`` gives it back as query parameters to push to
a server; ``judge`` decides it on a resource. Judging is three-valued: True, False, or None where the resource does not
say. What cannot be decided here (chains, ``_has``, composites, value sets) is a CriteriaError, never an answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from fhirshield.errors import CriteriaError
from fhirshield.fhir.definitions import resource_types
from fhirshield.fhir.ordered import EARLIEST, LATEST, PREFIX, compare, date_span, number_span
from fhirshield.fhir.reference import Literal, literal
from fhirshield.fhir.search_parameters import SearchParameter, reader, search_parameter
from fhirshield.fhir.terminology import Code, Terminology

Answer = bool | None
Judge = Callable[[Any], Answer]
"""resource -> True, False, or None for unknown."""
Decide = Callable[[str, Any], Answer]
"""(datatype, value) -> the same."""

MODIFIERS = {
    "token": frozenset({"", "not", "missing", "in", "above", "below"}),
    "string": frozenset({"", "exact", "contains", "missing"}),
    "reference": frozenset({"", "missing"}) | resource_types(),
    "date": frozenset({"", "missing"}),
    "number": frozenset({"", "missing"}),
    "quantity": frozenset({"", "missing"}),
    "uri": frozenset({"", "missing"}),
}
"""What is decided here, by parameter type."""
PINNED = frozenset({"in", "above", "below"})
"""Modifiers that speak of pinned terminology; no server is asked to know it too."""


@dataclass(frozen=True, slots=True)
class Criterion:
    """``name:modifier=value,value``; the values are as written, escapes and all (comma is OR)."""

    name: str
    modifier: str
    values: tuple[str, ...]
    codes: frozenset[Code] = frozenset()
    """What ``in``, ``above`` or ``below`` stand for."""

    def query(self) -> tuple[str, str]:
        """As a query parameter, not yet percent-encoded."""
        return (f"{self.name}:{self.modifier}" if self.modifier else self.name, ",".join(self.values))


@dataclass(frozen=True, slots=True)
class Criteria:
    """A resource type (or ``*``) and criteria that must all hold."""

    type: str
    items: tuple[Criterion, ...]

    def __str__(self) -> str:
        query = "&".join("=".join(item.query()) for item in self.items)
        return self.type + (f"?{query}" if query else "")


# --- parsing --------------------------------------------------------------------------------------------------------


def parse(text: str, terminology: Terminology | None = None) -> Criteria:
    """Read ``Type?name=value&…``. Raises CriteriaError for what names nothing or is not decided here."""
    resource_type, mark, query = text.partition("?")
    if resource_type != "*" and resource_type not in resource_types():
        raise CriteriaError(f"`{resource_type}` is not a resource type of R4")
    if mark and not query:
        raise CriteriaError(f"`{text}` has a `?` and no criteria")
    known = terminology or Terminology()
    items = tuple(_criterion(resource_type, part, known) for part in query.split("&")) if query else ()
    return Criteria(resource_type, items)


def _criterion(resource_type: str, part: str, terminology: Terminology) -> Criterion:
    name, equals, value = part.partition("=")
    if not equals or not name or not value:
        raise CriteriaError(f"`{part}` is not `parameter=value`")
    code, _, modifier = unquote(name).partition(":")
    values = tuple(split(unquote(value), ","))
    codes = [terminology.codes(modifier, unescape(one)) for one in values] if modifier in PINNED else []
    criterion = Criterion(code, modifier, values, frozenset().union(*codes))
    if any(one != one.strip() or not one for one in criterion.values):
        raise CriteriaError(f"`{part}` has white space around a value, or an empty one")
    judge_of(criterion, resource_type)
    return criterion


def split(text: str, separator: str) -> list[str]:
    """Split at separators that no backslash escapes (FHIR R4 §3.1.1.4.0.1); escapes stay."""
    parts = [""]
    escaped = False
    for char in text:
        if char == separator and not escaped:
            parts.append("")
        else:
            parts[-1] += char
        escaped = char == "\\" and not escaped
    return parts


def unescape(text: str) -> str:
    """Undo ``\\,`` ``\\|`` ``\\$`` ``\\\\``."""
    return re.sub(r"\\([,|$\\])", r"\1", text)


# --- judging --------------------------------------------------------------------------------------------------------


def judge(criteria: Criteria, bases: tuple[str, ...] = (), *, typed: bool = False) -> Judge:
    """The criteria as a function of a resource. Its type is compared too, unless ``typed``: then it is known to fit."""
    judges = [judge_of(item, criteria.type, bases) for item in criteria.items]
    wanted = criteria.type
    if len(judges) == 1 and (typed or wanted == "*"):
        return judges[0]

    def decide(resource: Any) -> Answer:
        if not typed and wanted != "*" and resource.get("resourceType") != wanted:
            return False
        result: Answer = True
        for one in judges:
            answer = one(resource)
            if answer is False:
                return False
            if answer is None:
                result = None
        return result

    return decide


def judge_of(criterion: Criterion, resource_type: str, bases: tuple[str, ...] = ()) -> Judge:
    """One criterion as a function of a resource of that type."""
    base = "Resource" if resource_type == "*" else resource_type
    parameter = search_parameter(base, criterion.name)
    if parameter is None:
        raise CriteriaError(f"`{criterion.name}` is not a search parameter of `{resource_type}`")
    allowed = MODIFIERS.get(parameter.type)
    if allowed is None or not parameter.ways or criterion.name in {"deceased", "_query"}:
        raise CriteriaError(f"`{criterion.name}` ({parameter.type}) cannot be decided on a resource")
    if criterion.modifier not in allowed:
        raise CriteriaError(f"`{criterion.name}:{criterion.modifier}` cannot be decided on a resource")
    if criterion.modifier == "missing":
        return _missing(parameter, criterion.values)
    if criterion.modifier in PINNED:
        decides = [_member(criterion.codes)]
    else:
        decides = [_DECIDERS[parameter.type](value, criterion.modifier, parameter, bases) for value in criterion.values]
    read = reader(parameter.ways)
    negate = criterion.modifier == "not"
    common = None if criterion.modifier else _code_or_concept(parameter, criterion.values)

    def decide(resource: Any) -> Answer:
        if common is not None and (known := common(resource)) is not None:
            return known
        result: Answer = False
        for datatype, value in read(resource):
            for one in decides:
                answer = None if value is None else one(datatype, value)
                if answer is True:
                    return not negate
                if answer is None:
                    result = None
        return (not result if negate else result) if result is not None else None

    return decide


def _code_or_concept(parameter: SearchParameter, values: tuple[str, ...]) -> Judge | None:
    """What most tokens ask of most resources, decided at once: exactly equal codes. None where it takes a closer look."""
    ways = parameter.ways
    if parameter.type != "token" or len(ways) != 1 or len(ways[0].steps) != 1 or ways[0].steps[0][1]:
        return None
    name, datatype = ways[0].steps[0][0], ways[0].datatype
    if datatype not in {"code", "CodeableConcept"}:
        return None
    wanted = [[unescape(part) for part in split(value, "|")] for value in values]
    if any(not parts[-1] for parts in wanted):
        return None
    plain = frozenset(parts[0] for parts in wanted if len(parts) == 1)
    exact = frozenset((parts[0], parts[1]) for parts in wanted if len(parts) == 2)
    codes = frozenset(parts[-1] for parts in wanted)
    folded = frozenset(code.casefold() for code in codes)

    def code(resource: Any) -> Answer:
        found = resource.get(name)
        if type(found) is not str:
            return None
        if found in codes:
            return True
        return False if found.strip().casefold() not in folded else None

    def concept(resource: Any) -> Answer:
        found = resource.get(name)
        for one in found if type(found) is list else (found,):
            codings = one.get("coding") if type(one) is dict else None
            if type(codings) is not list or not codings:
                return None
            for coding in codings:
                if type(coding) is not dict or type(value := coding.get("code")) is not str:
                    return None
                if value in plain:
                    return True
                if value in codes:
                    if type(system := coding.get("system")) is not str:
                        return None
                    if (system, value) in exact:
                        return True
                if value.strip().casefold() in folded:
                    return None
        return False if found else None

    return code if datatype == "code" else concept


def _missing(parameter: SearchParameter, values: tuple[str, ...]) -> Judge:
    if values not in {("true",), ("false",)}:
        raise CriteriaError(f"`{parameter.code}:missing` takes `true` or `false`")
    wanted = values == ("true",)
    read = reader(parameter.ways)
    return lambda resource: (not read(resource)) is wanted


def _token(text: str, modifier: str, parameter: SearchParameter, bases: tuple[str, ...]) -> Decide:
    parts = [unescape(part) for part in split(text, "|")]
    if len(parts) > 2 or not any(parts):
        raise CriteriaError(f"`{text}` is not `code`, `system|code`, `|code` or `system|`")
    system, code = (None, parts[0]) if len(parts) == 1 else (parts[0], parts[1])

    def same(value: Any, found_system: Any) -> Answer:
        if found_system is not None and not isinstance(found_system, str):
            return None
        if system is not None and (found_system or "") != system:
            return None if system and not found_system and same_code(value) is not False else False
        return same_code(value)

    def same_code(value: Any) -> Answer:
        if not code:
            return True
        if value is None:
            return None
        if value is True or value is False:
            value = "true" if value else "false"
        if not isinstance(value, str):
            return None
        return True if value == code else None if value.strip().casefold() == code.casefold() else False

    def decide(datatype: str, value: Any) -> Answer:
        if datatype == "CodeableConcept":
            codings = value.get("coding") if isinstance(value, dict) else None
            if not isinstance(codings, list) or not codings:
                return None
            result: Answer = False
            for coding in codings:
                answer = same(coding.get("code"), coding.get("system")) if type(coding) is dict else None
                if answer is True:
                    return True
                if answer is None:
                    result = None
            return result
        if datatype == "Coding":
            return same(value.get("code"), value.get("system")) if isinstance(value, dict) else None
        if datatype in {"Identifier", "ContactPoint"}:
            if not isinstance(value, dict):
                return None
            return same(value.get("value"), value.get("system") if datatype == "Identifier" else system)
        if isinstance(value, dict | list):
            return None
        return same(value, system)

    return decide


def _member(codes: frozenset[Code]) -> Decide:
    """Whether a coding is one of these; one without a system may be, and so may one that differs in case."""
    plain = frozenset(code for _, code in codes)
    folded = frozenset((system, code.casefold()) for system, code in codes)

    def same(code: Any, system: Any) -> Answer:
        if not isinstance(code, str):
            return None
        if not isinstance(system, str) or not system:
            return None if code in plain or code.strip().casefold() in {one for _, one in folded} else False
        if (system, code) in codes:
            return True
        return None if (system, code.strip().casefold()) in folded else False

    def decide(datatype: str, value: Any) -> Answer:
        if datatype == "CodeableConcept":
            codings = value.get("coding") if isinstance(value, dict) else None
            if not isinstance(codings, list) or not codings:
                return None
            return _any(same(c.get("code"), c.get("system")) if type(c) is dict else None for c in codings)
        if datatype == "Coding" and isinstance(value, dict):
            return same(value.get("code"), value.get("system"))
        return None if isinstance(value, dict | list) else same(value, None)

    return decide


def _any(answers: Any) -> Answer:
    result: Answer = False
    for answer in answers:
        if answer is True:
            return True
        if answer is None:
            result = None
    return result


def _string(text: str, modifier: str, parameter: SearchParameter, bases: tuple[str, ...]) -> Decide:
    wanted = unescape(text)
    plain = wanted if modifier == "exact" else fold(wanted)

    def one(value: Any) -> Answer:
        if not isinstance(value, str):
            return None
        if modifier == "exact":
            return value == plain
        return plain in fold(value) if modifier == "contains" else fold(value).startswith(plain)

    def decide(datatype: str, value: Any) -> Answer:
        if not isinstance(value, dict):
            return one(value)
        parts = [p for v in value.values() for p in (v if isinstance(v, list) else [v]) if isinstance(p, str)]
        return _any(one(part) for part in parts) if parts else None

    return decide


def fold(text: str) -> str:
    """Case and accents removed, as FHIR string search compares."""
    if text.isascii():
        return text.lower()
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold()


def _reference(text: str, modifier: str, parameter: SearchParameter, bases: tuple[str, ...]) -> Decide:
    wanted = unescape(text)
    exact = literal(wanted, bases)
    if exact is None and re.fullmatch(r"[A-Za-z0-9\-.]{1,256}", wanted):
        exact = Literal(modifier, wanted)
    if modifier and exact is not None and exact.type not in {"", modifier}:
        raise CriteriaError(f"`{text}` is not a `{modifier}`")

    def decide(datatype: str, value: Any) -> Answer:
        raw = value.get("reference") if isinstance(value, dict) else value
        if not isinstance(raw, str) or raw.startswith(("#", "urn:")):
            return None
        found = literal(raw, bases)
        if exact is None or found is None:
            elsewhere = exact is not None and raw.rstrip("/").rpartition("/")[2] == exact.id
            return True if raw == wanted else None if elsewhere else False
        return found.id == exact.id and exact.type in {"", found.type}

    return decide


def _uri(text: str, modifier: str, parameter: SearchParameter, bases: tuple[str, ...]) -> Decide:
    wanted = unescape(text)

    def decide(datatype: str, value: Any) -> Answer:
        if not isinstance(value, str):
            return None
        return True if value == wanted else None if value.partition("|")[0] == wanted.partition("|")[0] else False

    return decide


# --- ordered values: date, number, quantity -----------------------------------------------------------------------


def _date(text: str, modifier: str, parameter: SearchParameter, bases: tuple[str, ...]) -> Decide:
    found = PREFIX.match(text)
    span = date_span(found[2]) if found else None
    if found is None or span is None:
        raise CriteriaError(f"`{text}` is not a date with a prefix of eq ne gt lt ge le sa eb")
    prefix, wanted = found[1] or "eq", span

    def decide(datatype: str, value: Any) -> Answer:
        if datatype == "Period" and isinstance(value, dict):
            start, end = value.get("start"), value.get("end")
            first = date_span(start) if isinstance(start, str) else (EARLIEST, EARLIEST)
            last = date_span(end) if isinstance(end, str) else (LATEST, LATEST)
            known = first and last and (first[0], last[1])
        else:
            known = date_span(value) if isinstance(value, str) else None
        return compare(prefix, *known, *wanted) if known else None

    return decide


def _number(text: str, modifier: str, parameter: SearchParameter, bases: tuple[str, ...]) -> Decide:
    prefix, low, high = number_span(text)

    def decide(datatype: str, value: Any) -> Answer:
        if isinstance(value, bool) or not isinstance(value, int | Decimal):
            return None
        return compare(prefix, value, value, low, high)

    return decide


def _quantity(text: str, modifier: str, parameter: SearchParameter, bases: tuple[str, ...]) -> Decide:
    parts = [unescape(part) for part in split(text, "|")]
    if len(parts) not in {1, 3}:
        raise CriteriaError(f"`{text}` is not `number` or `number|system|code`")
    prefix, low, high = number_span(parts[0])
    system, code = (parts[1], parts[2]) if len(parts) == 3 else ("", "")

    def decide(datatype: str, value: Any) -> Answer:
        if not isinstance(value, dict) or "comparator" in value:
            return None
        amount = value.get("value")
        if isinstance(amount, bool) or not isinstance(amount, int | Decimal):
            return None
        if system and value.get("system") != system:
            return None
        if code and code not in {value.get("code"), value.get("unit")}:
            return None
        return compare(prefix, amount, amount, low, high)

    return decide


_DECIDERS: dict[str, Callable[[str, str, SearchParameter, tuple[str, ...]], Decide]] = {
    "token": _token,
    "string": _string,
    "reference": _reference,
    "uri": _uri,
    "date": _date,
    "number": _number,
    "quantity": _quantity,
}
