"""The parsers under Hypothesis, and under the fuzzer for a bounded time."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.attacks.parsers import PARSERS, SEEDS, body, selector, target, token
from tests.parts import ROOT, count, missing

TEXT = st.text(alphabet=st.sampled_from("abPatient/?&=:|,\\$%._-*0123456789éA\x00\n {}[]\"'"), max_size=60)


@settings(max_examples=count(5000, 300))
@given(st.one_of(st.binary(max_size=200), TEXT.map(str.encode), st.sampled_from(SEEDS["target"])))
@example(b"/Patient/%2e%2e")
@example(b"/Patient/p?a=%")
def test_targets(data: bytes) -> None:
    target(data)


@settings(max_examples=count(5000, 300))
@given(st.one_of(st.binary(max_size=200), st.from_regex(rb"[A-Za-z0-9_-]{0,80}", fullmatch=True)))
@example(b"W1tbW1tb" * 2000)
def test_tokens(data: bytes) -> None:
    token(data)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda v: st.lists(v) | st.dictionaries(st.text(max_size=3), v)
)


@settings(max_examples=count(5000, 300))
@given(
    st.one_of(st.binary(max_size=200), TEXT.map(str.encode), st.text(alphabet='{}[]":,1e.-\\u0 a\n', max_size=60).map(str.encode))
)
@example(b'{"a\\u0022:":1,"a":2,"a":3}')
@example(b'{"a":"\\ud800"}')
@example(b'{"a"\t:1,"a"\n:2}')
@example(b'{"a": {},"a"\t:""}')
@example(b'{"a":1,"a":"\\u003a"}')
def test_bodies(data: bytes) -> None:
    body(data)


@settings(max_examples=count(5000, 300))
@given(st.one_of(TEXT.map(str.encode), TEXT.map(lambda t: f"Observation?{t}".encode()), st.sampled_from(SEEDS["selector"])))
@example(b"Observation?value-quantity=1e999999999")
def test_selectors(data: bytes) -> None:
    selector(data)


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_the_fuzzer_finds_nothing(name: str) -> None:
    if find_spec("atheris") is None:
        missing("atheris has no wheel for this Python or machine")
    command = [sys.executable, "-m", "tests.attacks.fuzz", name, str(count(30, 4))]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    runs = re.search(r"number_of_executed_units: (\d+)", found.stderr)
    assert found.returncode == 0 and runs, found.stderr[-3000:]
    print(f"\n{name}: {runs[1]} inputs")
