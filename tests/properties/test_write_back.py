"""What a redacted view writes back: nothing unseen is lost, nothing is uncovered, and nothing unseen decides (law 5, law 4)."""

from __future__ import annotations

import copy
import datetime as dt
from collections import Counter
from typing import Any

import pytest

from fhirshield.authorize.standing import ACTIVE_TYPES
from fhirshield.fhir import json as fhir_json
from fhirshield.fhir.criteria import Criteria
from fhirshield.fhir.definitions import resource_types
from fhirshield.model import Obligation
from fhirshield.policy.compile import RuleSet
from fhirshield.policy.rule import INTERACTIONS, LINK, POLICY_TYPES, SECURITY, Grant, Rule, Rules, Who
from fhirshield.redact.body import silence
from fhirshield.rehearsal import Outcome, Stage, principal_from
from tests.generate import Generator
from tests.parts import count
from tests.redact.test_canaries import leaves
from tests.redact.test_program import random_obligations

NOW = dt.datetime(2026, 1, 5, 10, 0, tzinfo=dt.UTC)
TYPES = sorted(resource_types() - ACTIVE_TYPES - {"Bundle", "Parameters", "Binary"})
EVERYBODY = Who(None, None, None, None)
PRINCIPAL = principal_from({"roles": ["r"], "scopes": "system/*.cruds"})
NAMES = {"display", "identifier"}
"""What references tell belongs to what they refer to, and goes with it."""
tried = Counter[str]()


def stage_hiding(name: str, obligations: list[Obligation]) -> Stage:
    inputs = POLICY_TYPES | {LINK, SECURITY}
    allow = Rule("a", "x:1", "", EVERYBODY, Grant(frozenset(INTERACTIONS), (Criteria("*", ()),), inputs), None, (), frozenset(), ())
    hide = Rule("rule", "x:2", "", EVERYBODY, None, None, tuple(obligations), frozenset(), ())
    return Stage(RuleSet(Rules((allow, hide), frozenset(), "digest")), hidden_narrative="drop")


class Case:
    """One stored resource, what hides parts of it, and the view that its writer has."""

    def __init__(self, name: str, seed: int) -> None:
        self.generator = Generator(seed, density=0.4)
        self.name = name
        self.stored = fhir_json.decode(fhir_json.encode(self.generator.resource(name)))
        self.stored.pop("meta", None)
        self.stored.pop("text", None)
        self.obligations = random_obligations(self.generator, name, 3)
        self.stage = stage_hiding(name, self.obligations)
        self.view = self.read(self.stored)

    def read(self, stored: Any) -> Any:
        found = self.stage.rehearse(PRINCIPAL, f"GET /{self.name}/{stored['id']}", [stored], NOW)
        return found.body if found.status == 200 else None

    def put(self, stored: Any, new: Any) -> Outcome:
        seen = copy.deepcopy(new)
        return self.stage.rehearse(PRINCIPAL, f"PUT /{self.name}/{stored['id']}", [stored], NOW, seen)

    def edited(self) -> Any:
        """The view with one edit, as clients make them."""
        chance = self.generator.random
        new = copy.deepcopy(self.view)
        owner = chance.choice([node for node in objects(new) if node is not new.get("meta")] or [new])
        keys = [key for key in owner if key not in {"resourceType", "id", "meta", "url"}]
        kind = chance.choice(["change", "remove", "add", "entry", "copy"])
        if kind == "add" or not keys:
            other = Generator(chance.randint(0, 10**6), density=0.5).resource(self.name)
            for key, value in other.items():
                if key not in {"id", "meta", "text", "resourceType", "contained"} and key not in new:
                    new[key] = value
                    break
            return new
        key = chance.choice(keys)
        if kind == "remove":
            del owner[key]
        elif kind in {"entry", "copy"} and isinstance(owner[key], list):
            place = chance.randrange(len(owner[key]))
            if kind == "copy":
                owner[key].append(copy.deepcopy(owner[key][place]))
            elif len(owner[key]) > 1:
                del owner[key][place]
            else:
                del owner[key]
        elif isinstance(owner[key], str):
            owner[key] = "changed" if chance.random() < 0.7 else owner[key] + "0"
        elif isinstance(owner[key], dict):
            owner[key] = {"id": "e1", **owner[key]} if "id" not in owner[key] else {}
        else:
            del owner[key]
        return new


def objects(node: Any) -> list[Any]:
    found = [node] if isinstance(node, dict) else []
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        found += objects(child)
    return found


def unseen(stored: Any, view: Any) -> Counter[tuple[tuple[str, ...], str]]:
    """The values that are stored and not shown, names in references aside."""
    hidden = Counter(leaves(stored)) - Counter(leaves(view))
    return Counter(
        {
            key: n
            for key, n in hidden.items()
            if not NAMES & {name.removeprefix("_") for name in key[0]} and key[0][0] not in {"text", "meta", "section"}
        }
    )


def silent(resource: Any) -> Any:
    result = copy.deepcopy(resource)
    silence(result)
    return result


def cases(name: str, full: int, sample: int) -> list[Case]:
    made = [Case(name, seed) for seed in range(count(full, sample))]
    return [case for case in made if case.view is not None]


@pytest.mark.promise
@pytest.mark.parametrize("name", TYPES)
def test_a_view_that_comes_back_as_it_was_changes_nothing(name: str) -> None:
    for case in cases(name, 20, 2):
        outcome = case.put(case.stored, case.view)
        assert outcome.status == 200, (outcome.reason, [o.path.text for o in case.obligations])
        assert outcome.permit is not None and outcome.permit.writing is not None
        image = outcome.permit.writing.image
        assert fhir_json.same(image, case.stored), [o.path.text for o in case.obligations]


@pytest.mark.promise
@pytest.mark.parametrize("name", TYPES)
def test_an_edit_loses_nothing_unseen_and_uncovers_nothing(name: str) -> None:
    for case in cases(name, 60, 4):
        new = case.edited()
        outcome = case.put(case.stored, new)
        tried[str(outcome.status)] += 1
        assert outcome.status in {200, 400, 403, 422}, (outcome.status, outcome.reason)
        if outcome.status != 200:
            continue
        assert outcome.permit is not None and outcome.permit.writing is not None
        image = outcome.permit.writing.image
        lost = unseen(silent(case.stored), case.view) - Counter(leaves(image))
        assert not lost, (lost, [(o.path.text, o.operation) for o in case.obligations])
        again = case.read({**image, "id": case.stored["id"]})
        shown = Counter(leaves(again)) - Counter(leaves(new))
        uncovered = {value for path, value in shown if path[0] != "meta"} & {value for _, value in unseen(case.stored, case.view)}
        assert not uncovered, (uncovered, [(o.path.text, o.operation) for o in case.obligations])


@pytest.mark.promise
@pytest.mark.parametrize("name", TYPES)
def test_what_is_unseen_does_not_decide_what_may_be_written(name: str) -> None:
    for case in cases(name, 60, 4):
        other = copy.deepcopy(case.stored)
        hidden = unseen(case.stored, case.view)
        for node in objects(other):
            for key in [k for k, v in node.items() if isinstance(v, str) and k not in {"resourceType", "id", "url", "reference"}]:
                if any(path[-1] == key and value == fhir_json.encode(node[key]).decode() for path, value in hidden):
                    if case.generator.random.random() < 0.5 and len(node) > 1:
                        del node[key]
                    else:
                        node[key] = "otherwise"
        if fhir_json.same(other, case.stored) or not fhir_json.same(case.read(other), case.view):
            continue
        new = case.edited()
        one, two = case.put(case.stored, new), case.put(other, new)
        tried["pairs"] += 1
        assert (one.status, one.reason, one.body) == (two.status, two.reason, two.body), [o.path.text for o in case.obligations]


def test_enough_of_it_was_written() -> None:
    """The properties above speak of something only where edits are accepted, and where pairs differ."""
    assert tried["200"] > 50 and tried["403"] > 20 and tried["pairs"] > 20, tried
