"""Test rules: each test is a caller, a request, what is stored, and what must leave.

    fhirshield test rules                 every rules/tests/*.yaml, on the production engine
    fhirshield test rules --mutate        delete each rule, path, selector and condition in turn; a survivor is a hole
    fhirshield test rules --junit out.xml for CI

A file of tests names the rule files that it is about (``rules: [nurse.yaml]``), else all of the folder are in force.
"""

from __future__ import annotations

import argparse
import copy
import datetime as dt
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import yaml

from fhirshield import document
from fhirshield.errors import Fault, OperatorError
from fhirshield.policy.compile import RuleSet
from fhirshield.policy.consent import ConsentPolicy
from fhirshield.policy.load import loads
from fhirshield.policy.rule import Rules
from fhirshield.rehearsal import Outcome, Stage, principal_from


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("rules", type=Path, help="a folder of rule files with a folder tests/ in it")
    parser.add_argument("--mutate", action="store_true", help="also look for parts of rules that no test needs")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML")


@dataclass(frozen=True, slots=True)
class Suite:
    """One file of tests, and the text of the rules that it is about."""

    file: Path
    rules: dict[str, Any]
    """File name -> YAML value."""
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """One test that was run; ``problems`` is empty where it passed."""

    suite: str
    name: str
    problems: tuple[str, ...]


def run(options: argparse.Namespace) -> int:
    """Run all suites; 1 when a test fails or a mutant survives."""
    suites = load(options.rules)
    results = [result for suite in suites for result in play(suite, _assemble(options.rules, suite.rules))]
    failed = [result for result in results if result.problems]
    for result in failed:
        print(f"FAILED {result.suite}: {result.name}")
        for problem in result.problems:
            print(f"    {problem}")
    if options.junit:
        options.junit.write_text(junit(results), encoding="utf-8")
    print(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    if failed or not options.mutate:
        return 1 if failed else 0
    return _mutate(suites)


def load(folder: Path) -> list[Suite]:
    """All suites of a folder of rules. Raises OperatorError."""
    files = sorted((folder / "tests").glob("*.yaml")) if folder.is_dir() else []
    if not files:
        raise OperatorError([Fault(str(folder / "tests"), "", "no tests here", "add tests/*.yaml beside the rules")])
    suites = []
    for file in files:
        found, faults = document.read(file, "tests")
        if faults:
            raise OperatorError(faults)
        names = found.value.get("rules") or sorted(path.name for path in folder.glob("*.yaml"))
        suites.append(Suite(file, {name: _yaml(folder / name) for name in names}, found.value))
    return suites


def _yaml(path: Path) -> Any:
    found, faults = document.read(path, "rules")
    if faults:
        raise OperatorError(faults)
    return found.value


def _assemble(folder: Path, texts: dict[str, Any]) -> Rules:
    """The rules of these files as one, with all that stands beside them."""
    whole: dict[str, Any] = {"rules": []}
    for value in texts.values():
        for key, part in value.items():
            if isinstance(part, list):
                whole[key] = [*whole.get(key, ()), *part]
            elif key == "relationships":
                whole[key] = {**whole.get(key, {}), **part}
            else:
                whole[key] = part
    return loads(yaml.safe_dump(whole), str(folder / "rules under test"))


def _policy(row: dict[str, Any] | None) -> ConsentPolicy | None:
    """How Consents are read, as a file of tests says it in the words of settings."""
    if row is None:
        return None
    recent, own = row.get("conflicts") == "most-recent-wins", row.get("own_record", "open") == "open"
    exempt = frozenset(row.get("exempt_roles", ()))
    return ConsentPolicy(row.get("default", "deny"), recent, own, exempt, policies=tuple(sorted(row.get("policies", {}).items())))


def play(suite: Suite, rules: Rules) -> Iterator[Result]:
    """Run one suite on a rule set."""
    stage = Stage(RuleSet(rules, _policy(suite.value.get("consent"))))
    for test in suite.value["tests"]:
        outcome = rehearse(stage, suite, test)
        yield Result(suite.file.stem, test["name"], tuple(compare(outcome, test["expect"])))


def rehearse(stage: Stage, suite: Suite, test: dict[str, Any]) -> Outcome:
    """What the engine makes of one test's request."""
    row = test["principal"]
    if isinstance(row, str):
        row = suite.value.get("principals", {}).get(row)
        if row is None:
            where = str(suite.file)
            raise OperatorError([Fault(where, test["name"], f"no principal `{test['principal']}`", "add it to `principals`")])
    stored = [*suite.value.get("stored", ()), *test.get("stored", ())]
    at = dt.datetime.fromisoformat(test.get("at", "2026-01-05T10:00")).replace(tzinfo=dt.UTC)
    emergency = test.get("emergency", "")
    return stage.rehearse(principal_from(row, at), test["request"], stored, at, test.get("body"), emergency=emergency)


def compare(outcome: Outcome, expect: dict[str, Any]) -> Iterator[str]:
    """What differs from what was expected, in words."""
    found = {"status": outcome.status, "reason": outcome.reason.value, "rule": outcome.rule}
    for name, value in found.items():
        if name in expect and expect[name] != value:
            yield f"{name}: expected {expect[name]}, found {value}"
    if "ids" in expect:
        entries = (outcome.body or {}).get("entry", [])
        ids = [entry["resource"]["id"] for entry in entries]
        if ids != expect["ids"]:
            yield f"ids: expected {expect['ids']}, found {ids}"
    if "body" in expect:
        body = {key: value for key, value in (outcome.body or {}).items() if key != "meta"}
        yield from difference(expect["body"], body, "body")


def difference(expected: Any, found: Any, where: str) -> Iterator[str]:
    """Where two JSON values part, leaf by leaf."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted({*expected, *found}):
            if key not in found:
                yield f"{where}.{key}: expected, not there"
            elif key not in expected:
                yield f"{where}.{key}: there, not expected"
            else:
                yield from difference(expected[key], found[key], f"{where}.{key}")
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for index, pair in enumerate(zip(expected, found, strict=True)):
            yield from difference(*pair, f"{where}[{index}]")
    elif str(expected) != str(found):
        yield f"{where}: expected {expected}, found {found}"


# --- mutants ------------------------------------------------------------------------------------------------------------


def _mutate(suites: list[Suite]) -> int:
    by_file: dict[str, list[Suite]] = {}
    for suite in suites:
        for name in suite.rules:
            by_file.setdefault(name, []).append(suite)
    tried, survivors = 0, []
    for name, concerned in sorted(by_file.items()):
        for what, value in mutants(concerned[0].rules[name]):
            tried += 1
            if all(_survives(suite, name, value) for suite in concerned):
                survivors.append(f"{name}: {what}")
        print(f"{name}: {tried} mutants so far", file=sys.stderr)
    for survivor in survivors:
        print(f"SURVIVED {survivor}: no test needs it")
    print(f"{tried - len(survivors)} mutants found, {len(survivors)} survived")
    return 1 if survivors else 0


def _survives(suite: Suite, name: str, value: Any) -> bool:
    try:
        rules = _assemble(suite.file.parent.parent, {**suite.rules, name: value})
    except OperatorError:
        return False
    return not any(result.problems for result in play(suite, rules))


def mutants(value: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rules of a file with one thing deleted, each with words for what."""
    for index, rule in enumerate(value["rules"]):
        yield f"rule {rule['id']}", _without(value, ("rules", index))
        for name in ("when", "unless", "purposes"):
            if name in rule["who"]:
                yield f"{rule['id']}: {name}", _without(value, ("rules", index, "who", name))
        for grant in ("allow", "deny"):
            if grant in rule:
                yield from _parts(value, ("rules", index, grant, "resources"), rule["id"])
                yield from _parts(value, ("rules", index, grant, "interactions"), rule["id"])
            for name in ("related", "hard"):
                if name in rule.get(grant, ()):
                    yield f"{rule['id']}: {name}", _without(value, ("rules", index, grant, name))
        for name in ("clearance", "break_glass"):
            if name in rule:
                yield f"{rule['id']}: {name}", _without(value, ("rules", index, name))
        if "authentication" in rule["who"]:
            yield f"{rule['id']}: authentication", _without(value, ("rules", index, "who", "authentication"))
        if "reveal" in rule:
            yield f"{rule['id']}: reveal", _without(value, ("rules", index, "reveal"))
        for place, redaction in enumerate(rule.get("redact", ())):
            what = f"{rule['id']}: {redaction['path']}"
            yield what, _without(value, ("rules", index, "redact", place))
            yield from _parts(value, ("rules", index, "redact", place, "resources"), what)

    for place, row in enumerate(value.get("consent_elements", ())):
        yield f"consent element {row['id']}", _without(value, ("consent_elements", place))


def _parts(value: dict[str, Any], key: tuple[Any, ...], what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    parts = _at(value, key)
    if len(parts) > 1:
        for index, part in enumerate(parts):
            yield f"{what}: {part}", _without(value, (*key, index))
    for index, part in enumerate(parts):
        if "?" in part:
            mutant = copy.deepcopy(value)
            _at(mutant, key)[index] = part.partition("?")[0]
            yield f"{what}: criteria of {part}", mutant


def _at(value: Any, key: tuple[Any, ...]) -> Any:
    for part in key:
        value = value[part]
    return value


def _without(value: dict[str, Any], key: tuple[Any, ...]) -> dict[str, Any]:
    mutant: dict[str, Any] = copy.deepcopy(value)
    parent = _at(mutant, key[:-1])
    del parent[key[-1]]
    if not parent and key[-2:-1] == ("redact",):
        del _at(mutant, key[:-2])["redact"]
    if not parent and key[:-1] == ("consent_elements",):
        del mutant["consent_elements"]
    return mutant


def junit(results: list[Result]) -> str:
    """JUnit XML, as CI systems read it."""
    failures = sum(1 for result in results if result.problems)
    lines = [f'<testsuite name="fhirshield rules" tests="{len(results)}" failures="{failures}">']
    for result in results:
        lines.append(f"<testcase classname={quoteattr(result.suite)} name={quoteattr(result.name)}>")
        if result.problems:
            lines.append(f"<failure message={quoteattr('; '.join(result.problems))}/>")
        lines.append("</testcase>")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + "\n".join([*lines, "</testsuite>", ""])
