"""Rule files: every fault with file, line and remedy; what loads means what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fhirshield.document import schema_of
from fhirshield.errors import OperatorError
from fhirshield.fhir import criteria
from fhirshield.model import Mask, Remove
from fhirshield.policy.check import advise
from fhirshield.policy.condition import ConditionError, compile_condition
from fhirshield.policy.load import load, loads
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
        ("allow: {interactions: [operation], resources: [Patient]}", "one of"),
        ("allow: {interactions: [read], resources: [Patient], policy_inputs: [Patient.link]}", "nothing is written"),
        ("allow: {interactions: [update], resources: [Patient], policy_inputs: [Patient.name]}", "does not look right"),
        ("allow: {interactions: [update], resources: [Patient], delete_unseen: true}", "nothing is deleted"),
        (
            "allow: {interactions: [read], resources: [Patient], operations: [{name: $graphql, output: [Patient]}]}",
            "cannot be opened",
        ),
        (
            "allow: {interactions: [read], resources: [Patient], operations: [{name: $everything, output: [Bundle]}]}",
            "is served by itself",
        ),
        (
            "allow: {interactions: [read], resources: [Patient], operations: [{name: $x, output: [Patients]}]}",
            "not a resource type",
        ),
        ("allow: {interactions: [read], resources: [Patient], operations: [{name: x, output: [Patient]}]}", "$"),
        ('allow: {interactions: [read], resources: ["Media?status=x"], opaque: {types: ["*"]}}', "not with criteria"),
        ("allow: {interactions: [read], resources: [Media], opaque: {types: [pdf]}}", "pdf"),
        ("deny: {interactions: [delete], resources: [Patient], delete_unseen: true}", "unknown key"),
        ("allow: {resources: [Patient]}", "missing `interactions`"),
        ("allow: {interactions: [read], resources: ['Patient?foo=1']}", "not a search parameter"),
        ("allow: {interactions: [read], resources: ['Observation?code:in=x']}", "not pinned"),
        ("allow: {interactions: [read], resources: [Patient], related: treating}", "no relationship `treating`"),
        ("deny: {interactions: [read], resources: [Patient], hard: true}", "in no relationship"),
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


VALUE_SET = """{"resourceType":"Bundle","entry":[
  {"resource":{"resourceType":"CodeSystem","url":"http://c","content":"complete","concept":[
    {"code":"root","concept":[{"code":"leaf","concept":[{"code":"tip"}]},{"code":"side"}]}]}},
  {"resource":{"resourceType":"ValueSet","url":"http://v/below","compose":{"include":[
    {"system":"http://c","filter":[{"property":"concept","op":"is-a","value":"leaf"}]}]}}},
  {"resource":{"resourceType":"ValueSet","url":"http://v/both","compose":{
    "include":[{"valueSet":["http://v/below"]},{"system":"http://d","concept":[{"code":"x"}]}],
    "exclude":[{"system":"http://c","concept":[{"code":"tip"}]}]}}},
  {"resource":{"resourceType":"ValueSet","url":"http://v/expanded","expansion":{"contains":[
    {"system":"http://c","code":"root","abstract":true,"contains":[{"system":"http://c","code":"side"}]}]}}}]}"""


@pytest.mark.parametrize(
    ("selector", "system", "code", "answer"),
    [
        ("in=http://v/below", "http://c", "tip", True),
        ("in=http://v/below", "http://c", "side", False),
        ("in=http://v/below", "http://other", "tip", False),
        ("in=http://v/below", None, "tip", None),
        ("in=http://v/below", "http://c", "TIP", None),
        ("in=http://v/below", "http://c", None, None),
        ("in=http://v/both", "http://c", "tip", False),
        ("in=http://v/both", "http://d", "x", True),
        ("in=http://v/expanded", "http://c", "side", True),
        ("in=http://v/expanded", "http://c", "root", False),
        ("in=http://v/expanded,http://v/both", "http://d", "x", True),
        ("below=http://c%7Cleaf", "http://c", "tip", True),
        ("below=http://c%7Cleaf", "http://c", "leaf", True),
        ("below=http://c%7Cleaf", "http://c", "root", False),
        ("above=http://c%7Cleaf", "http://c", "root", True),
        ("above=http://c%7Cleaf", "http://c", "tip", False),
    ],
)
def test_pinned_terminology_decides(
    tmp_path: Path, selector: str, system: str | None, code: str | None, answer: bool | None
) -> None:
    (tmp_path / "t.json").write_text(VALUE_SET)
    (tmp_path / "r.yaml").write_text(
        "terminology: [t.json]\nrules: [{id: a, who: {roles: ['*']}, "
        f"deny: {{interactions: ['*'], resources: ['Condition?code:{selector}']}}}}]"
    )
    (rule,) = load(tmp_path / "r.yaml").rules
    assert rule.deny is not None
    coding = {name: value for name, value in (("system", system), ("code", code)) if value is not None}
    resource = {"resourceType": "Condition", "code": {"coding": [coding]}}
    assert criteria.judge(rule.deny.selectors[0])(resource) is answer


@pytest.mark.parametrize(
    ("pinned", "selector", "word"),
    [
        ("[]", "in=http://v/below", "not pinned"),
        ("[t.json]", "in=http://nowhere", "not pinned"),
        ("[t.json]", "below=http://c%7Cnone", "has no code"),
        ("[t.json]", "below=leaf", "not `system"),
        ("[absent.json]", "in=http://v/below", "cannot be read"),
        ("[r.yaml]", "in=http://v/below", "not JSON"),
        ("[t.json, t.json]", "in=http://v/below", "pinned twice"),
        ("[wide.json]", "in=http://w", "pin an expansion"),
        ("[shape.json]", "in=http://w", "the shape"),
        ("[loop.json]", "in=http://w", "includes itself"),
        ("[part.json]", "below=http://c%7Ca", "not complete"),
    ],
)
def test_terminology_that_cannot_be_pinned_is_a_fault(tmp_path: Path, pinned: str, selector: str, word: str) -> None:
    include = '{"resourceType":"ValueSet","url":"http://w","compose":{"include":[%s]}}'
    (tmp_path / "t.json").write_text(VALUE_SET)
    (tmp_path / "wide.json").write_text(include % '{"system":"http://snomed.info/sct"}')
    (tmp_path / "shape.json").write_text(include % "7")
    (tmp_path / "loop.json").write_text(include % '{"valueSet":["http://w"]}')
    (tmp_path / "part.json").write_text(
        '{"resourceType":"CodeSystem","url":"http://c","content":"fragment","concept":[{"code":"a"}]}'
    )
    (tmp_path / "r.yaml").write_text(
        f"terminology: {pinned}\nrules: [{{id: a, who: {{roles: ['*']}}, "
        f"deny: {{interactions: ['*'], resources: ['Condition?code:{selector}']}}}}]"
    )
    with pytest.raises(OperatorError) as caught:
        load(tmp_path / "r.yaml")
    assert any(word in fault.message for fault in caught.value.faults), [f.message for f in caught.value.faults]


def test_pinned_terminology_is_part_of_the_digest(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(VALUE_SET)
    (tmp_path / "r.yaml").write_text(f"terminology: [t.json]\nrules: [{{id: a, who: {{roles: [x]}}, {GRANT}}}]")
    before = load(tmp_path / "r.yaml").digest
    (tmp_path / "t.json").write_text(VALUE_SET.replace("tip", "top"))
    assert load(tmp_path / "r.yaml").digest != before


def test_what_is_revealed_is_a_disclosure() -> None:
    (rule,) = one("reveal: {resources: [Observation], meta: [lastUpdated]}").rules
    assert rule.reveal is not None and rule.reveal.of("Observation") == {"lastUpdated"} and not rule.reveal.of("Patient")
    assert "lastUpdated" in rule.disclosures[0]
    assert "not a resource type" in faults("reveal: {resources: [Observatio], meta: [lastUpdated]}")


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
        "value", "drop", "withhold_type", "terminology", "reveal", "meta", "policy_inputs", "delete_unseen",
        "operations", "name", "input", "output", "affects", "opaque", "types", "most", "related", "hard", "relationships",
        "patients_of", "max_age", "sensitivity", "lists", "confidentiality", "inherit", "default", "minors", "under", "categories",
        "sources", "label", "parties", "meta_source", "clearance", "grade", "break_glass", "replaces", "time", "limit", "per", "lift",
        "authentication", "acr", "amr", "consent_elements", "codes", "expressions",
    }  # fmt: skip
    assert _keys(schema_of("rules")) == keys


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
