"""Consent: what is wrong with Consents, and what a change of them would show to whom.

    fhirshield consent check consent.json …                              contradictory, dead, unsupported, expired
    fhirshield consent simulate before.json --after after.json --resources patient.json --principals callers.yaml --rules rules/

Files hold a resource, a Bundle or NDJSON. Both take --settings fhirshield.yaml, whose `consent` says what policies mean.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fhirshield import document
from fhirshield.app import consent_policy
from fhirshield.errors import Fault, MalformedFhir, OperatorError
from fhirshield.fhir import json as fhir_json
from fhirshield.policy.compile import RuleSet
from fhirshield.policy.consent import ConsentPolicy
from fhirshield.policy.lint import lint
from fhirshield.policy.load import load as load_rules
from fhirshield.rehearsal import Stage, principal_from
from fhirshield.settings import load as load_settings


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = commands.add_parser("check", help="say what is contradictory, dead, unsupported or expired")
    check.add_argument("files", type=Path, nargs="+", metavar="FILE")
    simulate = commands.add_parser("simulate", help="say what each caller would see, before and after a change")
    simulate.add_argument("before", type=Path, help="the Consents as they are")
    simulate.add_argument("--after", type=Path, required=True, help="the Consents as they would be")
    simulate.add_argument("--resources", type=Path, required=True, help="the patient's resources, and others that decisions read")
    simulate.add_argument("--principals", type=Path, required=True, help="callers by name, as in rule tests")
    simulate.add_argument("--rules", type=Path, required=True)
    for command in (check, simulate):
        command.add_argument("--settings", type=Path, help="a settings file, for its `consent`")
        command.add_argument("--at", default="", help="when, e.g. 2026-01-31T10:00+01:00; default: now")
        command.add_argument("--json", action="store_true", help="one JSON document on standard output")


def run(options: argparse.Namespace) -> int:
    """Print findings (1 where there are any), or what would change."""
    at = _moment(options.at)
    at = at if at.tzinfo else at.replace(tzinfo=dt.UTC)
    settings = load_settings(options.settings) if options.settings else None
    policy = (consent_policy(settings) if settings else None) or ConsentPolicy()
    if settings is not None:  # what elements are called stands in the rules
        policy = RuleSet(load_rules(settings.rules), policy).consent or policy
    if options.action == "check":
        found = [one for file in options.files for resource in resources(file) for one in lint(resource, policy, at)]
        rows = [{"kind": f.kind, "consent": f.consent, "path": f.path, "message": f.message} for f in found]
        print(json.dumps(rows, indent=2) if options.json else "\n".join([*map(str, found), f"{len(found)} findings"]))
        return 1 if found else 0
    told = simulated(options, policy, at, settings.upstreams[0].country if settings else "")
    print(json.dumps(told, indent=2) if options.json else "\n".join(_lines(told)))
    return 0


def _moment(text: str) -> dt.datetime:
    try:
        return dt.datetime.fromisoformat(text) if text else dt.datetime.now(dt.UTC)
    except ValueError:
        raise OperatorError([Fault("--at", "", f"`{text}` is no time", "write it as 2026-01-31T10:00+01:00")]) from None


def resources(file: Path) -> list[Any]:
    """All resources of a file: one, a Bundle's, or a line each. Raises OperatorError."""
    try:
        content = file.read_bytes()
        texts = content.splitlines() if file.suffix == ".ndjson" else [content]
        found = [fhir_json.decode(text) for text in texts if text.strip()]
    except OSError as error:
        raise OperatorError([Fault(str(file), "", f"cannot be read: {error.strerror}", "name a file")]) from None
    except MalformedFhir as error:
        raise OperatorError([Fault(str(file), "", f"is {error}", "give FHIR JSON")]) from None
    bundles = [one for one in found if isinstance(one, dict) and one.get("resourceType") == "Bundle"]
    rows = [row for bundle in bundles if isinstance(bundle.get("entry"), list) for row in bundle["entry"]]
    whole = [one for one in found if one not in bundles] + [row.get("resource") if isinstance(row, dict) else row for row in rows]
    for one in whole:
        if not isinstance(one, dict) or not isinstance(one.get("resourceType"), str):
            raise OperatorError([Fault(str(file), "", "holds what is no resource", "give FHIR JSON, each with its resourceType")])
    return whole


def simulated(options: argparse.Namespace, policy: ConsentPolicy, at: dt.datetime, country: str = "") -> dict[str, Any]:
    """For each caller, the resources that are shown before and after, and what decides."""
    rules = RuleSet(load_rules(options.rules), policy)
    others = [one for one in resources(options.resources) if one.get("resourceType") != "Consent"]
    callers = _callers(options.principals)
    told: dict[str, Any] = {}
    for name, row in callers.items():
        principal = principal_from(row, at)
        seen = [
            _seen(Stage(rules, country=country), principal, [*others, *resources(file)], at)
            for file in (options.before, options.after)
        ]
        before, after = seen
        told[name] = {
            "before": sorted(key for key, one in before.items() if one.shown),
            "after": sorted(key for key, one in after.items() if one.shown),
            "why": {key: one.why for key, one in after.items() if not one.shown},
            "hidden": {
                key: {"before": sorted(before[key].hidden), "after": sorted(one.hidden)}
                for key, one in after.items()
                if key in before and one.shown and before[key].shown and one.hidden != before[key].hidden
            },
        }
    return told


def _callers(file: Path) -> dict[str, dict[str, Any]]:
    """The callers of a file, by name. Raises OperatorError."""
    remedy = "name each as in rule tests: `nurse: {roles: [nurse], purposes: [TREAT]}`"
    try:
        text = file.read_text(encoding="utf-8")
        read = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise OperatorError([Fault(str(file), "", f"cannot be read: {type(error).__name__}", remedy)]) from None
    rows = read.get("principals", read) if isinstance(read, dict) else None
    if not isinstance(rows, dict):
        raise OperatorError([Fault(str(file), "", "holds no callers by name", remedy)])
    _, faults = document.parse(yaml.safe_dump({"principals": rows, "tests": [_NO_TEST]}), str(file), "tests")
    if faults:
        raise OperatorError([replace(one, where=str(file), remedy=one.remedy or remedy) for one in faults])
    return rows


_NO_TEST = {"name": "none", "principal": {}, "request": "GET /metadata", "expect": {"status": 200}}


class _Seen(NamedTuple):
    """What a caller sees of a resource: at all, why not, and which of what Consents may deny is hidden."""

    shown: bool
    why: str
    hidden: frozenset[str]


def _seen(stage: Stage, principal: Any, stored: list[Any], at: dt.datetime) -> dict[str, _Seen]:
    found = {}
    elements = {one.id for one in stage.rules.elements}
    for one in stored:
        name = f"{one.get('resourceType')}/{one.get('id')}"
        outcome = stage.rehearse(principal, f"GET /{name}", stored, at)
        why = f"{outcome.reason.value} {outcome.rule}".strip()
        found[name] = _Seen(outcome.status == 200, why, frozenset(outcome.tally.redacted.keys() & elements))
    return found


def _lines(told: dict[str, Any]) -> list[str]:
    lines = []
    for name, row in told.items():
        gained, lost = sorted(set(row["after"]) - set(row["before"])), sorted(set(row["before"]) - set(row["after"]))
        lines.append(f"{name}: {len(row['before'])} before, {len(row['after'])} after")
        lines += [f"  + {one}" for one in gained]
        lines += [f"  - {one}  ({row['why'].get(one, '')})" for one in lost]
        for one, hidden in row["hidden"].items():
            lines.append(
                f"  ~ {one}  (hidden: {', '.join(hidden['before']) or 'nothing'} -> {', '.join(hidden['after']) or 'nothing'})"
            )
    return lines
