"""Rule files: every fault with file, line and remedy; what loads means what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fhirshield.document import schema_of
from fhirshield.errors import OperatorError
from fhirshield.model import Mask, Remove
from fhirshield.policy.check import advise
from fhirshield.policy.condition import ConditionError, compile_condition
from fhirshield.policy.load import NOT_YET, load, loads
from fhirshield.policy.rule import Rules
from tests.parts import ROOT

GRANT = "allow: {interactions: [read], resources: [Patient]}"


def one(body: str, who: str = "{roles: [nurse]}") -> Rules:
    return loads(f"rules:\n  - id: a\n    who: {who}\n    {body}\n")


def faults(body: str, who: str = "{roles: [nurse]}") -> str:
    with pytest.raises(OperatorError) as caught:
        one(body, who)
    return str(caught.value)


def redact(path: str, rest: str, resources: str = "[Patient]") -> str:
    return f'redact: [{{resources: {resources}, path: "{path}", {rest}}}]'


def test_the_packs_load() -> None:
    assert {rule.id for rule in load(ROOT / "rules").rules} >= {"nurse-ward", "clinician-treats", "own-record"}


@pytest.mark.promise
def test_the_broken_pack_names_every_fault_with_line_and_remedy() -> None:
    with pytest.raises(OperatorError) as caught:
        load(ROOT / "rules/broken/broken.yaml")
    lines = [fault.where.rpartition(":")[2] for fault in caught.value.faults]
    assert len(caught.value.faults) == 11
    assert lines == sorted(lines, key=int)
    assert all(fault.message and fault.where.startswith(str(ROOT)) for fault in caught.value.faults)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("allow: {interactions: [read], resources: [Patients]}", "not a resource type"),
        ("allow: {interactions: [fly], resources: [Patient]}", "one of"),
        ("allow: {interactions: [create], resources: [Patient]}", "one of"),
        ("allow: {resources: [Patient]}", "missing `interactions`"),
        ("allow: {interactions: [read], resources: ['Patient?foo=1']}", "not a search parameter"),
        ("allow: {interactions: [read], resources: ['Observation?code:in=x']}", "cannot be decided"),
        ("allow: {interactions: [read], resources: [Patient], related: treating}", "not in this version"),
        ("deny: {interactions: [read], resources: [Patient], hard: true}", "not in this version"),
        ("forbid: {}", "unknown key `forbid`"),
        ("description: x", "any of|is not valid|allow"),
        (redact("$.birthDate", "with: mask"), "mask does not go with"),
        (redact("$.birthDate", "with: generalize"), "no `to`"),
        (redact("$.birthDate", "with: generalize, to: band, width: 5"), "does not go with"),
        (redact("$.birthDate", "with: generalize, to: band"), "`width`"),
        (redact("$.birthDate", "with: generalize, to: age"), "no `cap`"),
        (redact("$.birthDate", "with: remove, show: {last: 4}"), "`show` does not go with `remove`"),
        (redact("$.birthDate", "with: shift"), "one of"),
        (redact("$.birthDate", "with: replace"), "no `value`"),
        (redact("$.birthDate", "with: replace, value: soon"), "no date"),
        (redact("$.gender", "with: replace, value: x"), "not in the value set"),
        (redact("$.gender", "with: mask"), "is a code"),
        (redact("$.name[*]", "with: mask"), "primitive"),
        (redact("$.name[*].given", "with: mask"), "repeats"),
        (redact("$.active", "with: remove"), "modifier"),
        (redact("$.link[*].other", "with: hash"), "primitive"),
        (redact("$.managingOrganization.reference", "with: mask"), "does not go with"),
        (redact("$.identifier[*].value", "with: remove", "['*']"), "not repeating|which it is not|repeats|treats"),
        (redact("$.nothing", "with: remove", "['*']"), "has no element"),
        (redact("$.birthDate", "with: remove, withhold_type: true", "['Patient?gender=male']"), "drop the criteria"),
    ],
)
def test_faults(body: str, word: str) -> None:
    assert re.search(word, faults(body)), faults(body)


@pytest.mark.parametrize(
    ("who", "word"),
    [
        ("{roles: []}", "roles"),
        ("{purposes: [TREAT]}", "missing `roles`"),
        ("{roles: [nurse, '*']}", "everybody"),
        ("{roles: [nurse], when: 'env.hours > 1'}", "unknown"),
        ("{roles: [nurse], when: 'subject.x'}", "unknown"),
        ("{roles: [nurse], when: '1 +'}", "not a CEL condition"),
        ("{roles: [nurse], when: 'size(env) > 1'}", "member by member"),
    ],
)
def test_faults_in_who(who: str, word: str) -> None:
    assert word in faults(GRANT, who)


def test_faults_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("rules: [{id: a, who: {roles: [x]}, allow: {interactions: [fly], resources: [Patient]}}]")
    (tmp_path / "b.yaml").write_text("rules: [\n")
    (tmp_path / "c.yaml").write_text(
        "rules:\n  - {id: c, who: {roles: [x]}, redact: [{resources: [Patient], path: $.x, with: remove}]}\n"
    )
    with pytest.raises(OperatorError) as caught:
        load(tmp_path)
    assert [Path(f.where.rpartition(":")[0]).name for f in caught.value.faults] == ["a.yaml", "b.yaml", "c.yaml"]


def test_an_id_is_used_once_and_keys_are_written_once() -> None:
    twice = f"rules:\n  - {{id: a, who: {{roles: [x]}}, {GRANT}}}\n  - {{id: a, who: {{roles: [x]}}, {GRANT}}}\n"
    with pytest.raises(OperatorError, match="taken"):
        loads(twice)
    with pytest.raises(OperatorError, match="written twice"):
        loads(twice.replace("id: a, who", "id: a, id: b, who", 1))


def test_wide_redactions_reach_every_type_that_has_the_element() -> None:
    (rule,) = one(redact("$.meta.source", "with: remove", "['*']")).rules
    assert len({o.type for o in rule.redact}) == 146


def test_operations_are_what_was_written() -> None:
    (rule,) = one(redact("$.telecom[*].value", "with: mask, show: {first: 1, last: 3}, length: kept")).rules
    assert rule.redact[0].operation == Mask(1, 3, True, 8)
    assert "length kept" in rule.disclosures[0]
    (rule,) = one(redact("$.active", "with: remove, drop: true")).rules
    assert rule.redact[0].operation == Remove(drop=True)
    (rule,) = one(redact("$.active", "with: remove, withhold_type: true")).rules
    assert rule.withheld == {"Patient"} and not rule.redact


def test_every_key_of_the_schema_is_known_to_this_test() -> None:
    keys = {
        "rules", "modifier_extensions", "id", "description", "who", "allow", "deny", "redact", "roles", "purposes", "when",
        "unless", "interactions", "resources", "path", "with", "show", "first", "last", "length", "to", "cap", "width",
        "value", "drop", "withhold_type",
    }  # fmt: skip
    assert _keys(schema_of("rules")) == keys
    assert not keys & set(NOT_YET)


def _keys(schema: object) -> set[str]:
    found: set[str] = set()
    if isinstance(schema, dict):
        found |= set(schema.get("properties", {}))
        for value in schema.values():
            found |= _keys(value)
    elif isinstance(schema, list):
        for value in schema:
            found |= _keys(value)
    return found


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("env.hour >= 6", True), ("env.hour >= 6 && principal.vip", True), ("!principal.vip", False), ("principal.nope", None),
        ("'nurse' in principal.roles", True), ("principal.roles.exists(r, r == 'x')", False), ("env.hour", None),
        ("env.hour > 'x'", None), ("has(principal.nope) && principal.nope", False), ("principal.client == \"principal.x\"", False),
        ("env.weekday in [1, 2] && env.date == '2026-01-05' && env.minute == 0", True),
    ],
)  # fmt: skip
def test_conditions(text: str, answer: bool | None) -> None:
    principal = {"roles": ["nurse"], "purposes": [], "client": "c", "issuer": "i", "vip": True}
    env = {"hour": 10, "minute": 0, "weekday": 1, "date": "2026-01-05"}
    assert compile_condition(text).holds(principal, env) is answer


def test_conditions_name_what_they_read() -> None:
    condition = compile_condition("env.hour > 1 && principal.vip && 'env.minute' == ''")
    assert (condition.environment, condition.attributes) == (("hour",), ("vip",))
    with pytest.raises(ConditionError):
        compile_condition("env.now")


def test_advice() -> None:
    rules = loads(
        """
rules:
  - {id: wide, who: {roles: ["*"]}, allow: {interactions: ["*"], resources: ["*"]}}
  - {id: narrow, who: {roles: [nurse]}, allow: {interactions: [read], resources: [Patient]}}
  - {id: never, who: {roles: [clerk]}, allow: {interactions: [read], resources: [Claim]}}
  - {id: no-claims, who: {roles: ["*"]}, deny: {interactions: ["*"], resources: [Claim]}}
  - id: kept
    who: {roles: [nurse], when: principal.nope}
    redact: [{resources: [Patient], path: "$.telecom[*].value", with: mask, length: kept}]
  - id: one
    who: {roles: [nurse]}
    redact: [{resources: [Patient], path: "$.birthDate", with: generalize, to: year}]
  - id: two
    who: {roles: [nurse]}
    redact: [{resources: [Patient], path: "$.birthDate", with: generalize, to: month}]
  - id: other
    who: {roles: [clinician]}
    allow: {interactions: [read], resources: ["Patient?gender=male"]}
"""
    )
    found = {(advice.kind, advice.rule) for advice in advise(rules, frozenset())}
    assert {("shadowed", "narrow"), ("contradictory", "never"), ("disclosure", "kept"), ("attribute", "kept")} <= found
    assert ("conflict", "one") in found and ("reduces", "one") in found
    dead = loads("rules: [{id: d, who: {roles: [x]}, redact: [{resources: [Patient], path: $.photo, with: remove}]}]")
    assert [advice.kind for advice in advise(dead)] == ["dead"]
