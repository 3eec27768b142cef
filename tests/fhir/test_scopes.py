"""SMART scopes: strict, version 1 and 2, granular."""

from __future__ import annotations

import pytest

from fhirshield.fhir.scopes import parse


@pytest.mark.parametrize(
    ("text", "context", "kind", "letters"),
    [
        ("patient/Observation.read", "patient", "Observation", "rs"),
        ("user/*.write", "user", "*", "cud"),
        ("system/*.*", "system", "*", "cruds"),
        ("system/*.cruds", "system", "*", "cruds"),
        ("user/Patient.rs", "user", "Patient", "rs"),
        ("user/Patient.s", "user", "Patient", "s"),
        ("patient/Observation.rs?category=laboratory", "patient", "Observation", "rs"),
        ("patient/*.rs?_security=http://x|N", "patient", "*", "rs"),
    ],
)
def test_granted(text: str, context: str, kind: str, letters: str) -> None:
    (scope,) = parse(text).granted
    assert (scope.context, scope.type, scope.permissions) == (context, kind, letters)


@pytest.mark.parametrize(
    "text",
    [
        "patient/Observation.sr", "patient/Observation.rr", "patient/Observation.", "patient/Observation", "patient/Foo.rs",
        "patient/observation.rs", "user/*.rsx", "patient/Observation.rs?", "patient/Observation.rs?foo=1",
        "patient/Observation.read?category=x", "patient/*.rs?category=x", "patient/Observation.rs?subject.name=x", "system/.rs",
    ],
)  # fmt: skip
def test_what_does_not_parse_whole_grants_nothing(text: str) -> None:
    scopes = parse(f"{text} openid")
    assert scopes.granted == ()
    assert [scope for scope, _ in scopes.void] == [text]


def test_other_scopes_are_left_out() -> None:
    scopes = parse("openid fhirUser launch/patient offline_access user/Patient.rs")
    assert [scope.text for scope in scopes.granted] == ["user/Patient.rs"]
    assert scopes.void == ()
