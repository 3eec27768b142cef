"""What decisions obey, whatever the rules: default deny, deny beats permit, roles never cancel an obligation, explain agrees."""

from __future__ import annotations

import copy
import datetime as dt
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fhirshield.cli.explain import explain
from fhirshield.fhir import json as fhir_json
from fhirshield.policy.compile import RuleSet
from fhirshield.policy.load import loads
from fhirshield.redact import names, place
from fhirshield.rehearsal import Outcome, Stage, principal_from
from tests.generate import Generator
from tests.parts import count

NOW = dt.datetime(2026, 1, 5, 10, 0, tzinfo=dt.UTC)
TYPES = ["Patient", "Observation", "Condition", "Practitioner"]
ROLES = ["nurse", "clinician", "clerk"]
SELECTORS = [*TYPES, "*", "Observation?status=final", "Patient?gender=male", "*?_security=VIP", "Condition?subject=Patient/p1"]
REDACTIONS = [
    {"resources": ["Patient"], "path": "$.birthDate", "with": "generalize", "to": "year"},
    {"resources": ["Patient"], "path": "$.telecom[*].value", "with": "mask", "show": {"last": 4}},
    {"resources": ["Patient"], "path": "$.identifier[?@.system=='http://a.example'].value", "with": "remove"},
    {"resources": ["Observation?status=final"], "path": "$.note[*].text", "with": "remove"},
    {"resources": ["Condition"], "path": "$.code", "with": "remove"},
]
REQUESTS = ["GET /Patient/r1", "GET /Patient", "GET /Observation/r1", "GET /Observation?status=final", "GET /Condition",
            "GET /Patient?birthdate=1980", "GET /Practitioner/r1", "GET /Observation/r1/_history/1", "GET /Patient?_sort=name"]  # fmt: skip
SCOPES = ["user/*.rs", "user/Patient.rs", "user/Patient.r user/Observation.s", "patient/*.rs", "system/*.cruds",
          "user/Observation.rs?status=final", "user/*.cud", "patient/Observation.rs user/Practitioner.rs"]  # fmt: skip

grants = st.fixed_dictionaries(
    {
        "interactions": st.lists(st.sampled_from(["read", "search", "vread", "*"]), min_size=1, max_size=2, unique=True),
        "resources": st.lists(st.sampled_from(SELECTORS), min_size=1, max_size=3, unique=True),
    }
)
whos = st.fixed_dictionaries(
    {"roles": st.one_of(st.just(["*"]), st.lists(st.sampled_from(ROLES), min_size=1, max_size=2, unique=True))},
    optional={
        "when": st.sampled_from(["env.hour >= 6", "principal.ward == 'A'", "principal.missing"]),
        "unless": st.sampled_from(["principal.cleared", "env.hour < 6"]),
        "purposes": st.just(["TREAT"]),
    },
)
kinds = st.one_of(
    st.builds(lambda g: {"allow": g}, grants),
    st.builds(lambda g: {"deny": g}, grants),
    st.builds(lambda r: {"redact": r}, st.lists(st.sampled_from(REDACTIONS), min_size=1, max_size=2)),
)
rule = st.builds(lambda who, kind: {"who": who, **kind}, whos, kinds)
rules = st.lists(rule, max_size=6).map(lambda rows: [{"id": f"r{i}", **row} for i, row in enumerate(rows)])
principals = st.fixed_dictionaries(
    {
        "roles": st.lists(st.sampled_from(ROLES), max_size=2, unique=True),
        "scopes": st.sampled_from(SCOPES),
        "purposes": st.sampled_from([[], ["TREAT"]]),
        "patient": st.sampled_from(["", "p1"]),
        "attributes": st.sampled_from([{}, {"ward": "A"}, {"cleared": True}, {"cleared": False, "ward": "B"}]),
    }
)


def stored(seed: int) -> list[Any]:
    generator = Generator(seed, density=0.4)
    found = []
    for name in TYPES:
        for identity in ("r1", "r2"):
            resource = generator.resource(name)
            resource["id"] = identity
            if generator.random.random() < 0.3:
                resource["meta"] = {"security": [{"code": "VIP"}]}
            found.append(resource)
    return found


def decide(rows: list[Any], principal: Any, request: str, seed: int) -> Outcome:
    stage = Stage(RuleSet(loads(yaml.safe_dump({"rules": rows}))))
    return stage.rehearse(principal_from(principal), request, copy.deepcopy(stored(seed)), NOW)


def shown(outcome: Outcome) -> dict[str, Any]:
    """The resources that left, by type and id, without meta."""
    body = outcome.body or {}
    resources = [e["resource"] for e in body.get("entry", [])] if body.get("resourceType") == "Bundle" else [body] if body else []
    return {f"{r['resourceType']}/{r['id']}": {k: v for k, v in r.items() if k != "meta"} for r in resources}


def leaves(value: Any) -> int:
    if isinstance(value, dict):
        return sum(leaves(v) for v in value.values())
    return sum(leaves(v) for v in value) if isinstance(value, list) else 1


CASES = (rules, principals, st.sampled_from(REQUESTS), st.integers(0, 50))


@pytest.mark.promise
@settings(max_examples=count(1000, 150))
@given(*CASES)
def test_default_deny(rows: list[Any], principal: Any, request: str, seed: int) -> None:
    without = [row for row in rows if "allow" not in row]
    assert shown(decide(without, principal, request, seed)) == {}


@pytest.mark.promise
@settings(max_examples=count(1000, 150))
@given(*CASES, grants)
def test_forbid_trumps_permit(rows: list[Any], principal: Any, request: str, seed: int, denied: Any) -> None:
    more = [*rows, {"id": "deny", "who": {"roles": ["*"]}, "deny": {"interactions": ["*"], "resources": denied["resources"]}}]
    before, after = shown(decide(rows, principal, request, seed)), shown(decide(more, principal, request, seed))
    assert set(after) <= set(before)
    for name in after:
        kind = name.partition("/")[0]
        assert kind not in denied["resources"] and "*" not in denied["resources"]


@pytest.mark.promise
@settings(max_examples=count(1000, 150))
@given(*CASES)
def test_allowed_only_if_explicitly_permitted(rows: list[Any], principal: Any, request: str, seed: int) -> None:
    outcome = decide(rows, principal, request, seed)
    if shown(outcome):
        allowing = [row for row in rows if "allow" in row]
        assert allowing and outcome.tally.granted.keys() <= {row["id"] for row in allowing}
        assert principal["scopes"] != "user/*.cud"


@pytest.mark.promise
@settings(max_examples=count(1000, 150))
@given(*CASES, st.sampled_from(REDACTIONS))
def test_adding_an_obligation_never_shows_more(rows: list[Any], principal: Any, request: str, seed: int, more: Any) -> None:
    before = decide(rows, principal, request, seed)
    after = decide([*rows, {"id": "more", "who": {"roles": ["*"]}, "redact": [more]}], principal, request, seed)
    assert set(shown(after)) <= set(shown(before))
    for name, resource in shown(after).items():
        masked = fhir_json.encode(resource).count(b"data-absent-reason")
        assert leaves(resource) <= leaves(shown(before)[name]) + 2 * masked


@pytest.mark.promise
@settings(max_examples=count(1000, 150))
@given(*CASES, st.sampled_from(ROLES))
def test_roles_never_cancel_an_obligation(rows: list[Any], principal: Any, request: str, seed: int, role: str) -> None:
    """A further role may bring grants, but what both views show is redacted at least as much."""
    more = {**principal, "roles": [*principal["roles"], role]}
    before, after = shown(decide(rows, principal, request, seed)), shown(decide(rows, more, request, seed))
    for name in set(before) & set(after):
        masked = fhir_json.encode(after[name]).count(b"data-absent-reason")
        names = fhir_json.encode(after[name]).count(b'"display"') + fhir_json.encode(after[name]).count(b'"identifier"')
        narrative = leaves(after[name].get("text", {})) if "text" not in before[name] else 0  # whom it may name, both may see
        assert leaves(after[name]) <= leaves(before[name]) + 2 * masked + 10 * names + narrative


@pytest.mark.promise
@settings(max_examples=count(300, 60))
@given(*CASES)
def test_the_order_of_rules_does_not_matter(rows: list[Any], principal: Any, request: str, seed: int) -> None:
    one, other = decide(rows, principal, request, seed), decide(rows[::-1], principal, request, seed)
    assert (one.status, shown(one)) == (other.status, shown(other))


@pytest.mark.promise
@pytest.mark.parametrize("kind", ["deny", "redact"])
def test_deny_rule_error_denies(kind: str) -> None:
    """A condition that cannot be known never opens a door."""
    allow = {"id": "a", "who": {"roles": ["*"]}, "allow": {"interactions": ["*"], "resources": ["*"]}}
    body = {"deny": {"interactions": ["*"], "resources": ["Patient"]}} if kind == "deny" else {"redact": [REDACTIONS[0]]}
    for condition in ({"when": "principal.nope"}, {"unless": "principal.nope"}, {"when": "env.hour > 'x'"}):
        outcome = decide(
            [allow, {"id": "b", "who": {"roles": ["*"], **condition}, **body}], {"scopes": "system/*.rs"}, "GET /Patient/r1", 1
        )
        assert outcome.status == (403 if kind == "deny" else 200)
        assert len(shown(outcome).get("Patient/r1", {}).get("birthDate", "1234")) == 4
    allow["who"] = {"roles": ["*"], "when": "principal.nope"}
    assert decide([allow], {"scopes": "system/*.rs"}, "GET /Patient/r1", 1).status == 403


@pytest.mark.promise
@settings(max_examples=count(5000, 400))
@given(*CASES)
def test_explain_and_the_served_answer_agree(rows: list[Any], principal: Any, request: str, seed: int) -> None:
    ruleset = RuleSet(loads(yaml.safe_dump({"rules": rows})))
    caller, held = principal_from(principal), stored(seed)
    outcome = Stage(ruleset).rehearse(caller, request, copy.deepcopy(held), NOW)
    told = explain(ruleset, caller, outcome, held)
    assert told["decision"]["status"] == outcome.status
    if outcome.permit is None:
        return
    permitted = {row["resource"] for row in told["resources"] if row["verdict"] == "permitted"}
    assert permitted >= set(shown(outcome))
    for row in told["resources"]:
        granted = [r for r in row["scopes"] if r["grants"] == "yes"]
        matched = [r for r in row["allows"] if r["matches"] == "yes"]
        if row["verdict"] == "permitted":
            assert granted and matched
    told_rules = {o["rule"] for row in told["resources"] for o in row["obligations"]}
    assert set(outcome.tally.redacted) <= told_rules | {names.RULE, place.MISSHAPEN}


@pytest.mark.promise
def test_hidden_data_does_not_change_the_answer() -> None:
    """Two records that differ only in what is hidden give the same bytes, version and all."""
    rows = [
        {"id": "a", "who": {"roles": ["*"]}, "allow": {"interactions": ["*"], "resources": ["*"]}},
        {"id": "b", "who": {"roles": ["*"]}, "redact": [{"resources": ["Patient"], "path": "$.telecom", "with": "remove"}]},
    ]
    stage = Stage(RuleSet(loads(yaml.safe_dump({"rules": rows}))))
    caller = principal_from({"scopes": "system/*.rs"})
    base = {"resourceType": "Patient", "id": "r1", "name": [{"family": "Quill"}]}
    variants: list[Any] = [
        base,
        {**base, "telecom": [{"system": "phone", "value": "1"}], "meta": {"versionId": "9", "lastUpdated": "2026-01-01T00:00:00Z"}},
        {**base, "text": {"status": "generated", "div": "<div>1</div>"}, "_telecom": [{"id": "x"}], "meta": {"source": "#x"}},
    ]
    bodies = {fhir_json.encode(stage.rehearse(caller, "GET /Patient/r1", [v], NOW).body) for v in copy.deepcopy(variants)}
    assert len(bodies) == 1


def test_expiry_is_not_part_of_who_somebody_is() -> None:
    one = principal_from({"scopes": "user/*.rs"})
    assert replace(one, expires=1.0).fingerprint == one.fingerprint
