"""May this be asked? Search parameters and sort keys that would reveal what is hidden are refused, never answered.

Which those are is derived from the redacted paths and the parameters' expressions; nothing is listed by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from fhirshield.authorize.standing import TypeStanding
from fhirshield.fhir.criteria import Criteria, Criterion
from fhirshield.fhir.definitions import type_of
from fhirshield.fhir.including import Include, names_by
from fhirshield.fhir.including import parse as parse_include
from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.fhir.page import Parameter
from fhirshield.fhir.path import Each, Name, Where, predicate, targets
from fhirshield.fhir.reference import Literal
from fhirshield.fhir.search_parameters import RESULT_PARAMETERS, SearchParameter, Way, search_parameter
from fhirshield.model import Denial, Join, Obligation, Reason, Remove, Shape, Total, TypeView

MODIFIERS = {
    "token": {"", "not", "missing"},
    "string": {"", "exact", "contains", "missing"},
    "reference": {"", "missing"},
    "date": {"", "missing"},
    "number": {"", "missing"},
    "quantity": {"", "missing"},
    "uri": {"", "missing", "above", "below"},
    "composite": {""},
}
"""The modifiers that are forwarded, by parameter type; a resource type is one on references too."""
OF_META = {"_lastUpdated": "lastUpdated", "_source": "source"}
"""Asked of a type whose view closes that part of ``meta``, these would tell of hidden edits."""

WITHIN = frozenset({"_text", "_content", "_filter", "_list", "_query"})
"""Parameters that look into all of a resource, or of others: answered where nothing is hidden from the caller, else refused."""
_FOOTPRINTS: dict[tuple[str, str], tuple[tuple[str, ...], ...]] = {
    ("token", "CodeableConcept"): (("coding", "system"), ("coding", "code")),
    ("token", "Coding"): (("system",), ("code",)),
    ("token", "Identifier"): (("system",), ("value",)),
    ("reference", "Reference"): (("reference",),),
}
"""The elements of a datatype that a parameter of a type reads; all of it where not listed."""


@dataclass(slots=True)
class Asked:
    """What the parameters of a search come to."""

    sent: list[Parameter] = field(default_factory=list)
    """Those that the upstream is asked; the others shape the answer here, or are left out."""
    kept: list[Parameter] = field(default_factory=list)
    """Those that are understood, as asked: of these ``self`` is made."""
    again: list[Criterion] = field(default_factory=list)
    """Criteria to judge matches by on their redacted view."""
    joins: list[Join] = field(default_factory=list)
    """Chains and ``_has`` that the upstream cannot be trusted with."""
    includes: list[Include] = field(default_factory=list)
    elements: set[str] = field(default_factory=set)
    summary: str = ""
    total: Total = Total.NONE

    def shape(self, *, counted: bool) -> Shape:
        """How the answer is shaped; the total stands on the first page alone."""
        return Shape(tuple(self.includes), frozenset(self.elements), self.summary, self.total if counted else Total.NONE)


def check(
    parameters: tuple[Parameter, ...], standing: TypeStanding, of: Callable[[str], TypeStanding | None],
    *, open_to: Callable[[str], bool] = lambda name: False, lenient: bool = False,
) -> Asked | Denial:  # fmt: skip
    """What is asked, or the first parameter that may not be. ``of`` gives the standing of other types.

    ``open_to`` tells of a type whether the upstream may join it: nothing at all may be withheld from this caller.
    """
    asked = Asked()
    for parameter in parameters:
        if parameter.name == "_sort":
            denial = _sort_keys(parameter, standing)
        elif parameter.name in WITHIN:
            denial = None if open_to(standing.type) else _revealing(parameter.name, standing.type)
        elif parameter.name in _SHAPING:
            denial = _shaping(parameter, standing, of, asked)
        elif (step := _join(parameter, standing, of)) is not None:
            if isinstance(step, Join):
                asked.kept.append(parameter)
                if open_to(step.search.type):
                    asked.sent.append(parameter)
                else:
                    asked.joins.append(step)
                continue
            denial = step
        else:
            denial = _one(parameter, standing, asked.again)
        if denial is not None:
            if lenient and denial.reason is Reason.UNKNOWN_PARAMETER:
                continue
            return denial
        asked.kept.append(parameter)
        if parameter.name not in _OURS:
            asked.sent.append(parameter)
    return asked


_INSTANT = re.compile(r"[0-9]{4}(?:-[0-9]{2}(?:-[0-9]{2}(?:T[0-9:.]{5,18}(?:Z|[+-][0-9]{2}:[0-9]{2})?)?)?)?\Z")


def check_past(interaction: Interaction, views: list[TypeView]) -> Denial | None:
    """What may not be asked of a history (FHIR R4 §3.1.0.9): when something changed, where times are hidden."""
    for parameter in interaction.parameters:
        name = parameter.name
        if name not in {"_count", "_since", "_at"} or parameter.modifier:
            return Denial(400, Reason.UNKNOWN_PARAMETER, "not-supported", f"`{name}` of a history is unknown or not served")
        if name == "_count" and _count(parameter):
            return _count(parameter)
        if name != "_count" and not _INSTANT.match(parameter.value):
            return Denial(400, Reason.UNKNOWN_PARAMETER, "not-supported", f"`{name}` takes a time")
        hidden = next((view.type for view in views if "lastUpdated" in view.closed), None)
        if name != "_count" and hidden:
            return _revealing(name, hidden)
    return None


_HAS = re.compile(r"([A-Z][A-Za-z]+):([A-Za-z_][A-Za-z0-9\-]*):(.+)\Z")
_CHAIN = re.compile(r"([A-Za-z_][A-Za-z0-9\-]*)(?::([A-Z][A-Za-z]+))?\.(.+)\Z")
_INNER = re.compile(r"([A-Za-z_][A-Za-z0-9\-]*)(?::(.+))?\Z", re.DOTALL)


def _join(parameter: Parameter, standing: TypeStanding, of: Callable[[str], TypeStanding | None]) -> Join | Denial | None:
    """A chain or ``_has`` taken apart one step (FHIR R4 §3.1.1.4.1, §3.1.1.4.2); None for a parameter that is neither."""
    text = f"{parameter.name}:{parameter.modifier}" if parameter.modifier else parameter.name
    if parameter.name == "_has":
        found = _HAS.match(parameter.modifier)
        source = of(found[1]) if found else None
        known = search_parameter(found[1], found[2]) if found and source else None
        if found is None or source is None or known is None or known.type != "reference" or standing.type not in known.targets:
            return _unknown(parameter, standing.type)
        if _revealed(source.view, known):
            return _revealing(f"_has:{found[1]}:{found[2]}", found[1])
        return Join(_inner(found[1], found[3], parameter.value), found[2], reverse=True)
    found = _CHAIN.match(text)
    if found is None:
        return None
    known = search_parameter(standing.type, found[1])
    if known is None or known.type != "reference" or not known.ways:
        return _unknown(parameter, standing.type)
    if _revealed(standing.view, known):
        return _revealing(found[1], standing.type)
    code = re.split(r"[:.]", found[3])[0]
    having = [t for t in known.targets if search_parameter(t, code) is not None or code == "_has"]
    target = found[2] or (having[0] if len(having) == 1 else "")
    if target not in known.targets:
        text = f"`{found[1]}` refers to several types: write {found[1]}:Type.{code}"
        return Denial(400, Reason.UNKNOWN_PARAMETER, "not-supported", text)
    return Join(_inner(target, found[3], parameter.value), found[1], reverse=False)


def _inner(name: str, text: str, value: str) -> Interaction:
    """The search that stands within a chain or ``_has``."""
    plain, _, modifier = text.partition(":") if "." not in text.partition(":")[0] else (text, "", "")
    return Interaction(Kind.SEARCH_TYPE, type=name, parameters=(Parameter(plain, modifier, value),))


def joined(join: Join, found: Mapping[Literal, Any], bases: tuple[str, ...]) -> Criterion | None:
    """What a join comes to once its search was answered: ids, or references. None where nothing was found."""
    if join.reverse:
        include = Include(False, False, join.search.type, join.parameter, "")
        names = sorted({named.id for resource in found.values() for named in names_by(include, resource, bases)})
        return Criterion("_id", "", tuple(names)) if names else None
    names = sorted(map(str, found))
    return Criterion(join.parameter, "", tuple(names)) if names else None


_SHAPING = frozenset({"_include", "_revinclude", "_elements", "_summary", "_total"})
_OURS = frozenset({"_elements", "_summary", "_total"})
"""What is done here and the upstream is not asked: decisions need whole resources, and counts of our own."""


def _shaping(parameter: Parameter, standing: TypeStanding, of: Callable[[str], TypeStanding | None], asked: Asked) -> Denial | None:
    name, value = parameter.name, parameter.value
    if name in {"_include", "_revinclude"}:
        return _include(parameter, of, asked)
    if parameter.modifier:
        return _unknown(parameter, standing.type)
    if name == "_elements":
        return _elements(value, standing, asked)
    if name == "_summary" and value in {"true", "text", "data", "false"}:
        asked.summary = "" if value == "false" else value
    elif name == "_summary" and value == "count":
        asked.total = Total.ALONE
    elif name == "_total" and value in {"none", "estimate", "accurate"}:
        asked.total = asked.total if value == "none" or asked.total is Total.ALONE else Total.WITH
    else:
        return Denial(400, Reason.UNKNOWN_PARAMETER, "not-supported", f"`{name}` does not take this value")
    return None


def _include(parameter: Parameter, of: Callable[[str], TypeStanding | None], asked: Asked) -> Denial | None:
    include = parse_include(parameter.name, parameter.modifier, parameter.value)
    if include is None:
        return Denial(400, Reason.UNKNOWN_PARAMETER, "not-supported", f"`{parameter.name}` takes Type:parameter[:Type] of R4")
    source = of(include.source) if include.source != "*" else None
    known = search_parameter(include.source, include.parameter) if include.parameter != "*" else None
    if source is not None and known is not None and _revealed(source.view, known):
        return _revealing(f"{parameter.name}={include.source}:{include.parameter}", include.source)
    asked.includes.append(include)
    return None


def _elements(value: str, standing: TypeStanding, asked: Asked) -> Denial | None:
    known = type_of(standing.type)
    assert known is not None
    for name in value.split(","):
        plain = name.strip().removeprefix(f"{standing.type}.")
        full = {e.name for e in known.elements.values() if plain in {e.name, e.choice}}
        if not full:
            return Denial(400, Reason.UNKNOWN_PARAMETER, "not-supported", "`_elements` takes names of elements of the type")
        if full & {name for o in standing.view.obligations for name in _whole(o)}:
            return _revealing(f"_elements={plain}", standing.type)
        asked.elements |= full
    return None


def _one(parameter: Parameter, standing: TypeStanding, again: list[Criterion]) -> Denial | None:
    if parameter.name == "_count":
        return _count(parameter)
    known = search_parameter(standing.type, parameter.name)
    if known is None or parameter.name in RESULT_PARAMETERS or not known.ways:
        return _unknown(parameter, standing.type)
    allowed = {""} if parameter.name == "_id" else MODIFIERS.get(known.type, set())  # narrowing rests on `_id`
    typed = known.type == "reference" and parameter.modifier in known.targets
    if parameter.modifier not in allowed and not typed:
        text = f"`{parameter.name}:{parameter.modifier}` is not served"
        return Denial(400, Reason.UNKNOWN_PARAMETER, "not-supported", text)
    revealing = _revealed(standing.view, known)
    if not revealing and OF_META.get(parameter.name) not in standing.view.closed:
        return None
    if revealing and _excluded(parameter, known, revealing):
        again.append(Criterion(parameter.name, "", (parameter.value,)))
        return None
    return _revealing(parameter.name, standing.type)


def _count(parameter: Parameter) -> Denial | None:
    if parameter.value.isascii() and parameter.value.isdigit() and len(parameter.value) < 10 and int(parameter.value) > 0:
        return None
    return Denial(400, Reason.UNKNOWN_PARAMETER, "not-supported", "`_count` takes a number from 1")


def _sort_keys(parameter: Parameter, standing: TypeStanding) -> Denial | None:
    for key in parameter.value.split(","):
        name = key.removeprefix("-")
        known = search_parameter(standing.type, name)
        if known is None or not known.ways:
            return _unknown(Parameter(name, "", ""), standing.type)
        if _revealed(standing.view, known) or OF_META.get(name) in standing.view.closed:
            return _revealing(name, standing.type)
    return None


def _whole(obligation: Obligation) -> tuple[str, ...]:
    """The elements of the resource that an obligation hides whole, whatever they hold."""
    first, *rest = obligation.path.segments
    whole = isinstance(obligation.operation, Remove) and all(isinstance(step, Each) for step in rest)
    return first.names if whole and isinstance(first, Name) else ()


def _unknown(parameter: Parameter, resource_type: str) -> Denial:
    text = f"search parameter `{parameter.name}` of {resource_type} is unknown or not served"
    return Denial(400, Reason.UNKNOWN_PARAMETER, "not-supported", text)


def _revealing(name: str, resource_type: str) -> Denial:
    text = f"search parameter `{name}` of {resource_type} asks about elements that are hidden from this caller"
    return Denial(403, Reason.REVEALING_PARAMETER, "forbidden", text)


@lru_cache(maxsize=16384)
def _revealed(view: TypeView, parameter: SearchParameter) -> tuple[Obligation, ...]:
    """The obligations that touch an element which the parameter reads."""
    reads = [foot for way in _ways(view.type, parameter) for foot in footprint(parameter.type, way)]
    return tuple(
        obligation
        for obligation in view.obligations
        if any(_touches(hidden.names, read) for hidden in targets(obligation.path, view.type) for read in reads)
    )


def _ways(resource_type: str, parameter: SearchParameter) -> tuple[Way, ...]:
    """A composite reads what its components read, and all that its own expression spans."""
    ways = parameter.ways
    for code in parameter.components:
        name = code.partition("-")[2]
        component = search_parameter(resource_type, name) or search_parameter(resource_type, code)
        ways += component.ways if component else ()
    return ways


def footprint(parameter_type: str, way: Way) -> tuple[tuple[str, ...], ...]:
    """The element paths that a parameter reads on one way."""
    tails = _FOOTPRINTS.get((parameter_type, way.datatype), ((),))
    return tuple((*way.names, *tail) for tail in tails)


def _touches(hidden: tuple[str, ...], read: tuple[str, ...]) -> bool:
    """Whether one of the two element paths contains the other; a primitive's sibling counts as the primitive."""
    plain = tuple(name.removeprefix("_") for name in hidden)
    length = min(len(plain), len(read))
    return plain[:length] == read[:length]


def _excluded(parameter: Parameter, known: SearchParameter, obligations: tuple[Obligation, ...]) -> bool:
    """Whether one ``system|value`` names an identifier that every touching obligation's filter leaves alone.

    One value only: with alternatives, which of them fills a page would tell of the others. The match is judged again on
    its redacted view, and such a search has no further pages.
    """
    if known.type != "token" or parameter.modifier or any(way.datatype != "Identifier" for way in known.ways):
        return False
    parts = parameter.value.split("|")
    if len(parts) != 2 or not all(parts) or set(parameter.value) & {",", "\\", "$"}:
        return False
    example = {"system": parts[0], "value": parts[1]}
    for obligation in obligations:
        filters = [s for s in obligation.path.segments if isinstance(s, Where)]
        if len(filters) != 1 or obligation.path.segments[1:2] != (filters[0],):
            return False
        if predicate(filters[0].expression)(example, {}):
            return False
    return True


def rejudge(resource_type: str, again: list[Criterion]) -> Criteria | None:
    """The criteria that a match must still meet once it is redacted."""
    return Criteria(resource_type, tuple(again)) if again else None
