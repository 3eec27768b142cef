"""Paths: what is refused, with which remedy, and agreement with an RFC 9535 implementation."""

from __future__ import annotations

from typing import Any

import jsonpath_rfc9535
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fhirshield.errors import PathError
from fhirshield.fhir import path as module
from fhirshield.fhir.path import _steps, parse, select, targets
from tests.parts import count


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("$.birthDate", [("birthDate",)]),
        ("$['birthDate']", [("birthDate",)]),
        ("$._birthDate.extension[*]", [("_birthDate", "extension")]),
        ("$.telecom", [("telecom",)]),
        ("$.contact[*]['name','telecom']", [("contact", "name"), ("contact", "telecom")]),
        ("$.name[?@.use=='official' && !@.period].given[*]", [("name", "given")]),
        ("$.identifier[?@.type.coding[?@.code=='SS']].value", [("identifier", "value")]),
        ("$.extension[?@.url=='http://a/b=c|d'].valueString", [("extension", "valueString")]),
        ("$.name[*].given[?@=='x']", [("name", "given")]),
        ("$.name[?@.family==@.text]", [("name",)]),
        ("$.name[?$.birthDate > '2000']", [("name",)]),
    ],
)
def test_paths_that_lead_somewhere(path: str, names: list[tuple[str, ...]]) -> None:
    assert [target.names for target in targets(parse(path), "Patient")] == names


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("$.nam", "has no element"),
        ("$.name.family", "repeats"),
        ("$.name[0].family", "position"),
        ("$.name[0:1].family", "position"),
        ("$.name[-1]", "position"),
        ("$..family", "descendant"),
        ("$.*", "not repeating|wildcard|treats"),
        ("$.maritalStatus[*]", "not"),
        ("$", "whole resource"),
        ("name", "start"),
        ("@.name", "start"),
        ("$.id", "cannot be redacted"),
        ("$.text.div", "cannot be redacted"),
        ("$.contained[*]", "cannot be redacted"),
        ("$.contained[*].name", "another resource"),
        ("$.extension[*].url", "cannot be redacted"),
        ("$.name | $.telecom", "`\\|`"),
        ("$.name where use", "does not have"),
        ("$.name[?@.use=~'x']", "does not have"),
        ("$.name[?@.use='x']", "single"),
        ("$.name[?'x'==@.use]", "left"),
        ("$.name[?@.given=='x']", "repeats"),
        ("$.name[?@.use==5]", "compares a string with a number"),
        ("$.name[?@.period=='x']", "not one value"),
        ("$.name[?@.use==null]", "null"),
        ("$.name[?length(@.use)>2]", "not JSONPath"),
        ("$.name[?@.use=='\\u0041']", "escape"),
        ("$[name]", "unquoted"),
        ("$.name[", "not JSONPath"),
        ("", "not JSONPath"),
        ("$.`this`", "does not have"),
        ("$.name[?@.use==home]", "."),
    ],
)
def test_paths_that_are_refused(path: str, word: str) -> None:
    with pytest.raises(PathError, match=word):
        targets(parse(path), "Patient")


# --- RFC 9535 ---------------------------------------------------------------------------------------------------------

KEYS = st.sampled_from(["a", "b", "c"])
LEAVES = st.one_of(st.sampled_from(["x", "y", ""]), st.integers(-2, 2), st.booleans())
VALUES = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)), max_leaves=12
)


def queries(depth: int) -> st.SearchStrategy[str]:
    names = st.lists(KEYS, min_size=1, max_size=2).map(lambda keys: "".join(f".{k}" for k in keys))
    literal = st.sampled_from(["'x'", "'y'", "1", "-1", "true"])
    compare = st.builds(lambda n, o, v: f"@{n}{o}{v}", names, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), literal)
    exists = st.builds(lambda no, n: f"{no}@{n}", st.sampled_from(["", "!"]), names)
    atom = st.one_of(compare, exists)
    expression = st.builds(
        lambda parts, ops: "".join(p + o for p, o in zip(parts, [*ops, ""], strict=False)),
        st.lists(atom, min_size=1, max_size=3),
        st.lists(st.sampled_from([" && ", " || "]), min_size=3, max_size=3),
    )
    expression = st.builds(lambda e: e.rstrip(" &|"), expression)
    segment = st.one_of(KEYS.map(lambda k: f".{k}"), st.just("[*]"), expression.map(lambda e: f"[?{e}]"), st.just("['a','b']"))
    return st.lists(segment, min_size=1, max_size=depth).map(lambda parts: "$" + "".join(parts))


def comparisons_are_typed(query: str, document: Any) -> bool:
    """Whether no comparison of this query meets a missing or ill-typed operand: there RFC 9535 is not followed."""

    original = module._kind
    kinds: list[str | None] = []

    def spy(value: Any) -> str | None:
        kinds.append(original(value))
        return kinds[-1]

    module._kind = spy
    try:
        list(select(document, document, _steps(parse(query).segments)))
    finally:
        module._kind = original
    pairs = zip(kinds[::2], kinds[1::2], strict=False)
    return all(a is not None and a == b for a, b in pairs)


@pytest.mark.promise
@settings(max_examples=count(5_000, 1_000))
@given(queries(4), st.dictionaries(KEYS, VALUES, max_size=3))
def test_selection_agrees_with_rfc_9535(query: str, document: dict[str, Any]) -> None:
    document = {"a": document, "b": [document, "x", 1]}
    try:
        path = parse(query)
    except PathError:
        assume(False)
    assume(_no_wildcard_on_objects(query, document))
    assume(comparisons_are_typed(query, document))
    ours = list(select(document, document, _steps(path.segments)))
    theirs = [node.value for node in jsonpath_rfc9535.find(query, document)]
    assert ours == theirs


def _no_wildcard_on_objects(query: str, document: Any) -> bool:
    """Wildcards and filters over the members of an object are not in our language."""
    nodes: list[Any] = [document]
    for step in _steps(parse(query).segments):
        if not isinstance(step, tuple) and any(isinstance(node, dict) for node in nodes):
            return False
        nodes = [found for node in nodes for found in select(node, document, (step,))]
    return True
