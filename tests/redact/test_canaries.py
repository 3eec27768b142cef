"""A canary in every element of every R4 type: hidden ones leave in no byte, visible ones all arrive.

Each type gets one resource that holds a unique value at every snapshot element, datatypes opened one level. Then every
element is hidden in turn, by every operation that may be used there, and the whole answer is searched.
"""

from __future__ import annotations

import copy
import datetime as dt
import logging
from collections.abc import Iterator
from typing import Any
from zlib import crc32

import pytest

from fhirshield.errors import PathError
from fhirshield.fhir import json as fhir_json
from fhirshield.fhir.definitions import Element, kind_of, resource_types, type_of
from fhirshield.fhir.path import Path, parse, targets
from fhirshield.model import Generalize, Hash, Mask, Obligation, Operation, Remove, Replace
from fhirshield.policy.compile import RuleSet
from fhirshield.policy.load import loads
from fhirshield.policy.operations import check_fit
from fhirshield.policy.rule import Rule, Rules, Who
from fhirshield.redact.operations import Tools
from fhirshield.rehearsal import Stage, principal_from
from tests.parts import FULL
from tests.reference import Dropped, interpret

NOW = dt.datetime(2026, 1, 5, 10, 0, tzinfo=dt.UTC)
PRINCIPAL = principal_from({"roles": ["r"], "scopes": "system/*.cruds"})
ALLOW = loads("rules: [{id: a, who: {roles: [r]}, allow: {interactions: ['*'], resources: ['*'], opaque: {types: ['*']}}}]").rules[
    0
]
OPERATIONS: tuple[Operation, ...] = (
    Remove(), Mask(0, 4, False, 8), Hash(), Replace('"replaced"'), Replace("7"), Generalize("year"), Generalize("month"),
    Generalize("zip3"), Generalize("band", 0, 1000), Generalize("age", 89),
)  # fmt: skip
SILENT = {"text", "meta", "section"}
"""Elements that a redacted view need not show as they were: narrative (a Composition's sections with it), version, marks."""
AROUND = {("total",), *((first, last) for first in ("link",) for last in ("relation", "url"))}
AROUND |= {("entry", name) for name in ("link", "request", "response", "fullUrl")}
"""What a stored Bundle says around its entries, which goes where anything may be hidden from the caller."""
counted = {"hidden": 0, "visible": 0}


class Builder:
    """Fills a type with values that stand nowhere else."""

    def __init__(self) -> None:
        self.next = 0

    def object(self, name: str, *, opened: bool, path: tuple[str, ...]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        kind = type_of(name)
        assert kind is not None
        for element in kind.elements.values():
            if element.name in {"id", "contained", "modifierExtension", "extension"} or element.type in {"Resource", "Extension"}:
                continue
            value = self._value(element, opened=opened, path=path)
            if value is not None:
                made[element.name] = [value] if element.many else value
        return made

    def _value(self, element: Element, *, opened: bool, path: tuple[str, ...]) -> Any:
        if element.primitive:
            return self._primitive(element.type)
        if kind_of(element.type) == "backbone":
            return self.object(element.type, opened=opened, path=(*path, element.type)) if element.type not in path else None
        return self.object(element.type, opened=True, path=path) if not opened else None

    def _primitive(self, name: str) -> Any:
        self.next += 1
        n = self.next
        if name == "boolean":
            return True
        if name in {"integer", "unsignedInt", "positiveInt", "decimal"}:
            return 7_000_000 + n
        if name in {"date", "dateTime"}:
            return f"{1000 + n:04d}-05-06"
        if name == "instant":
            return f"{1000 + n:04d}-05-06T10:11:12Z"
        return f"zq{n}zz"


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """(element path, text of its unique value) of every value but booleans."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from leaves(child, (*path, key))
    elif isinstance(value, list):
        for child in value:
            yield from leaves(child, path)
    elif not isinstance(value, bool):
        yield path, fhir_json.encode(value).decode()


def places(value: Any, text: str = "$", path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(JSONPath, element path) of every element in the resource."""
    for key, child in value.items():
        if key in {"resourceType", "id"} or path[:1] == ("text",):
            continue
        here = f"{text}.{key}" + ("[*]" if isinstance(child, list) else "")
        yield here, (*path, key)
        inner = child[0] if isinstance(child, list) else child
        if isinstance(inner, dict):
            yield from places(inner, here, (*path, key))


def rules_hiding(obligation: Obligation) -> RuleSet:
    who = Who(None, None, None, None)
    redact = Rule("hide", "x:1", "", who, None, None, (obligation,), frozenset(), ())
    return RuleSet(Rules((ALLOW, redact), frozenset(), "digest"))


@pytest.mark.promise
@pytest.mark.parametrize("name", sorted(resource_types()))
def test_hidden_canaries_leave_in_no_byte(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    resource = {"resourceType": name, "id": "canary", **Builder().object(name, opened=False, path=(name,))}
    if name == "Binary":  # it belongs to what may be seen
        resource["securityContext"]["reference"] = "Basic/owner"
    cases = [(p, e, o) for p, e in places(resource) if e[0] not in {"text", "meta"} for o in OPERATIONS]
    for jsonpath, element, operation in cases if FULL else cases[crc32(name.encode()) % 13 :: 13]:
        hide(resource, name, jsonpath, element, operation, caplog)


def fitting(name: str, jsonpath: str, operation: Operation) -> Iterator[tuple[Path, Operation]]:
    """The path with the operation, or with the removal that is possible there, or nothing where it does not fit."""
    path = parse(jsonpath)
    try:
        for target in targets(path, name):
            try:
                check_fit(target, operation, jsonpath)
            except PathError:
                if not isinstance(operation, Remove):
                    raise
                operation = Remove(drop=True)
    except PathError:
        return
    yield path, operation


def hide(resource: Any, name: str, jsonpath: str, element: tuple[str, ...], operation: Operation, caplog: Any) -> None:
    for path, fits in fitting(name, jsonpath, operation):
        hide_one(resource, element, Obligation("hide", name, path, fits), caplog)


def hide_one(resource: Any, element: tuple[str, ...], obligation: Obligation, caplog: Any) -> None:
    name = resource["resourceType"]
    stored = [copy.deepcopy(resource), {"resourceType": "Basic", "id": "owner"}]
    outcome = Stage(rules_hiding(obligation)).rehearse(PRINCIPAL, f"GET /{name}/canary", stored, NOW)
    body = fhir_json.encode(outcome.body).decode() + caplog.text
    hidden = {text for where, text in leaves(resource) if where[: len(element)] == element}
    for text in hidden:
        assert text.strip('"') not in body, obligation
        counted["hidden"] += 1
    for text in expected(resource, obligation) - hidden:
        assert text in body, (obligation, text)
        counted["visible"] += 1


def expected(resource: Any, obligation: Obligation) -> set[str]:
    """The values that must arrive: all outside of what is hidden, but for what cannot stand without it."""
    try:
        left = interpret(copy.deepcopy(resource), [obligation], Tools(NOW.date(), lambda value: "digest"))
    except Dropped:
        return set()
    changed = {"digest", '"replaced"', "7"}
    original = {text for _, text in leaves(resource)}
    name = resource["resourceType"]
    kept = {
        t for w, t in leaves(left)
        if w[0] not in SILENT and t in original and not names_another(name, w) and not (name == "Bundle" and w[:2] in AROUND)
    }  # fmt: skip
    return kept - changed


def names_another(name: str, path: tuple[str, ...]) -> bool:
    """Whether this is the display or identifier of a Reference, which follow what they would tell of the other."""
    kind = type_of(name)
    for key in path:
        if kind is not None and kind.name == "Reference" and key in {"display", "identifier"}:
            return True
        kind = type_of(kind.elements[key].type) if kind is not None and key in kind.elements else None
    return False


def test_zz_counts_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Runs last in this module: how many canaries were looked for."""
    with capsys.disabled():
        print(f"\ncanaries: {counted['hidden']} hidden, {counted['visible']} visible")
    assert counted["hidden"] > 1000 and counted["visible"] > counted["hidden"]
