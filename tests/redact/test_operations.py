"""Single values, and what two operations come to."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhirshield.model import Generalize, Hash, Mask, Operation, Remove, Replace
from fhirshield.redact.operations import REMOVED, Tools, apply, merge

TOOLS = Tools(dt.date(2026, 1, 5), lambda value: "digest")

OPERATIONS = st.one_of(
    st.builds(
        lambda f, la, k, extra: Mask(f, la, k, 2 * (f + la) + extra),
        st.integers(0, 4),
        st.integers(0, 4),
        st.booleans(),
        st.integers(0, 3),
    ),
    st.just(Hash()),
    st.builds(Replace, st.sampled_from(['"a"', '"b"'])),
    st.builds(Remove, st.booleans()),
    st.builds(lambda to, cap: Generalize(to, cap), st.sampled_from(["year", "month", "age"]), st.sampled_from([0, 85, 89])),
    st.builds(lambda width: Generalize("band", 0, width), st.sampled_from([2, 10, 20, 15])),
    st.just(Generalize("zip3")),
)


@pytest.mark.parametrize(
    ("operation", "value", "shown"),
    [
        (Mask(0, 4, False, 8), "320-55-1234", "********1234"),
        (Mask(0, 4, False, 8), "1234567", "********"),
        (Mask(3, 4, True, 14), "32012345671234", "320*******1234"),
        (Mask(0, 0, True, 0), "abc", "***"),
        (Mask(0, 4, False, 8), 12345678, REMOVED),
        (Hash(), "x", "digest"),
        (Hash(), 5, REMOVED),
        (Replace('"a"'), "x", "a"),
        (Replace("7"), 3, 7),
        (Generalize("year"), "1980-02-03", "1980"),
        (Generalize("month"), "1980-02-03T10:00:00Z", "1980-02"),
        (Generalize("month"), "1980", "1980"),
        (Generalize("year"), "last year", REMOVED),
        (Generalize("year", 89), "1931-01-01", "1936"),
        (Generalize("year", 89), "1940-01-01", "1940"),
        (Generalize("age", 89), "1936-01-06", "1936-01-06"),
        (Generalize("age", 89), "1936-01-05", "1936"),
        (Generalize("age", 89), 95, 90),
        (Generalize("age", 89), Decimal("88.5"), Decimal("88.5")),
        (Generalize("age", 89), True, REMOVED),
        (Generalize("zip3"), "05401-1234", "054"),
        (Generalize("zip3"), "03601", "000"),
        (Generalize("zip3"), "SW1A 1AA", REMOVED),
        (Generalize("band", 0, 10), 47, 40),
        (Generalize("band", 0, 10), Decimal("-0.5"), -10),
        (Generalize("band", 0, 10), "47", REMOVED),
        (Remove(), "x", REMOVED),
    ],
)
def test_values(operation: Operation, value: Any, shown: Any) -> None:
    assert apply(operation, value, TOOLS) == shown


@pytest.mark.promise
@given(OPERATIONS, OPERATIONS, OPERATIONS)
def test_merging_obligations_is_commutative_associative_idempotent(a: Operation, b: Operation, c: Operation) -> None:
    assert merge(a, b) == merge(b, a)
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, a) == a
    assert merge(merge(a, b), b) == merge(a, b)


@pytest.mark.promise
@given(st.text(min_size=1, max_size=40), st.integers(0, 8), st.integers(0, 8), st.booleans())
def test_a_mask_hides_at_least_half(value: str, first: int, last: int, keep: bool) -> None:
    shown = apply(Mask(first, last, keep, 2 * (first + last)), value, TOOLS)
    kept = len(shown.replace("*", "", 0)) - shown.count("*")
    assert kept <= len(value) / 2 or "*" in value
    if not keep:
        assert len(shown) - 8 in {0, first + last}


@given(st.text(alphabet="abcdefgh", min_size=0, max_size=20), st.data())
def test_two_masks_show_what_both_show(value: str, data: st.DataObject) -> None:
    masks = [
        Mask(f, la, True, 2 * (f + la)) for f, la in (data.draw(st.tuples(st.integers(0, 4), st.integers(0, 4))) for _ in range(2))
    ]
    one, two = (apply(mask, value, TOOLS) for mask in masks)
    both = apply(merge(*masks), value, TOOLS)
    for position, char in enumerate(both):
        assert char == "*" or (one[position] == char == two[position])
