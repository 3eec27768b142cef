"""Explain: why a caller sees of a resource what it sees, by the engine that serves.

    fhirshield explain rules --principal nurse.yaml --request 'GET /Patient/1' --resource patient.json
    fhirshield explain fhirshield.yaml --principal nurse.yaml --request 'GET /Observation?status=final' --resource *.json

The principal is a YAML file with the keys of a rule test's `principal`. Each scope and each rule that was tried is shown with
what it decided; then what leaves, and what was taken from it by which rule.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fhirshield.app import consent_policy
from fhirshield.authorize.caller import notes, standing_of
from fhirshield.authorize.resource import scope_grants
from fhirshield.authorize.standing import Standing
from fhirshield.errors import Fault, OperatorError
from fhirshield.fhir import json as fhir_json
from fhirshield.model import Permit, Principal, Situation
from fhirshield.policy.compile import RuleSet, environment, facts_of, meets
from fhirshield.policy.load import load as load_rules
from fhirshield.rehearsal import Outcome, Stage, principal_from
from fhirshield.settings import load as load_settings

_WORDS = {True: "yes", False: "no", None: "cannot be known"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("rules", type=Path, help="a settings file, a rule file or a folder of rule files")
    parser.add_argument("--principal", type=Path, required=True, help="YAML: roles, purposes, scopes, patient, …")
    parser.add_argument("--request", required=True, help="method and target below the upstream: 'GET /Patient/1'")
    parser.add_argument("--resource", type=Path, nargs="*", default=[], help="FHIR JSON files that are stored")
    parser.add_argument("--at", default="", help="local time, 2026-01-05T10:00; default: now")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def run(options: argparse.Namespace) -> int:
    """Print the explanation; always 0 for a decision, whatever it is."""
    path, consent, country = options.rules, None, ""
    zone: dt.tzinfo = dt.UTC
    if path.is_file() and "issuers:" in path.read_text(encoding="utf-8"):
        settings = load_settings(path)
        path, consent = settings.rules, consent_policy(settings)
        country, zone = settings.upstreams[0].country, settings.zone
    rules = RuleSet(load_rules(path), consent)
    at = dt.datetime.fromisoformat(options.at) if options.at else dt.datetime.now(dt.UTC)
    at = at if at.tzinfo else at.replace(tzinfo=zone)
    principal = principal_from(_read(options.principal), at)
    stored = [fhir_json.decode(_bytes(file)) for file in options.resource]
    outcome = Stage(rules, country=country).rehearse(principal, options.request, stored, at)
    told = explain(rules, principal, outcome, stored)
    if options.json:
        print(json.dumps(told, indent=2, default=str))
    else:
        print("\n".join(_lines(told)))
    return 0


def _read(path: Path) -> dict[str, Any]:
    value = yaml.safe_load(_bytes(path))
    if not isinstance(value, dict):
        raise OperatorError([Fault(str(path), "", "not a principal", "write `roles: [nurse]` and the like")])
    return value


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OperatorError([Fault(str(path), "", f"cannot be read: {error.strerror}", "name a file")]) from None


def explain(rules: RuleSet, principal: Principal, outcome: Outcome, stored: list[Any]) -> dict[str, Any]:
    """What was decided and by what, as JSON."""
    told: dict[str, Any] = {
        "decision": {"status": outcome.status, "reason": outcome.reason.value, "rule": outcome.rule},
        "void_scopes": [{"scope": scope, "why": why} for scope, why in principal.scopes.void],
        "rules": list(_who(rules, principal, outcome.situation)),
        "resources": [],
        "withheld": outcome.tally.withheld,
        "redacted": outcome.tally.redacted,
        "in_force_without": list(notes(rules)),
        "body": outcome.body,
    }
    if outcome.situation and outcome.interaction and outcome.interaction.letter:
        stand = standing_of(principal, outcome.situation, rules)
        letter = outcome.interaction.letter
        concerned = [r for r in stored if r.get("resourceType") == outcome.interaction.type]
        if outcome.interaction.id:
            concerned = [r for r in concerned if r.get("id") == outcome.interaction.id]
        told["resources"] = [_resource(stand, principal, letter, r, outcome.permit) for r in concerned]
    return told


def _who(rules: RuleSet, principal: Principal, situation: Situation | None) -> Iterator[dict[str, str]]:
    facts, env = facts_of(principal), environment(principal, situation) if situation is not None else {}
    for rule in rules.rules:
        yield {"rule": rule.id, "where": rule.where, "speaks of this caller": _WORDS[meets(rule.who, principal, facts, env)]}


def _resource(
    stand: Standing, principal: Principal, letter: str, resource: dict[str, Any], permit: Permit | None
) -> dict[str, Any]:
    found = stand.of(str(resource.get("resourceType")))
    if found is None:
        return {"resource": str(resource.get("resourceType")), "verdict": "unknown type"}
    verdict = permit.judge(resource, letter, True) if permit else None
    bits = verdict.applies if verdict and verdict.shown else 0
    return {
        "resource": f"{resource.get('resourceType')}/{resource.get('id')}",
        "scopes": [
            {
                "scope": row.scope.text,
                "grants": _WORDS[scope_grants(row, letter, resource, found, principal.patient, stand.bases)],
            }
            for row in found.scopes
        ],
        "denies": [{"rule": row.rule.id, "matches": _WORDS[row.judge(resource) if row.judge else True]} for row in found.denies],
        "allows": [{"rule": row.rule.id, "matches": _WORDS[row.judge(resource) if row.judge else True]} for row in found.allows],
        "verdict": verdict.reason.value if verdict else "not asked: the request was refused",
        "by": verdict.rule if verdict else "",
        "obligations": [
            {"rule": o.rule, "path": o.path.text, "with": type(o.operation).__name__.lower()}
            for i, o in enumerate(found.view.obligations)
            if bits >> i & 1
        ],
    }


def _lines(told: dict[str, Any]) -> Iterator[str]:
    decision = told["decision"]
    by = f", rule {decision['rule']}" if decision["rule"] else ""
    yield f"{decision['status']}: {decision['reason']}{by}"
    yield f"in force without: {', '.join(told['in_force_without'])}"
    for row in told["void_scopes"]:
        yield f"scope {row['scope']} grants nothing: {row['why']}"
    yield "rules that speak of this caller:"
    for row in told["rules"]:
        yield f"  {row['speaks of this caller']:>16}  {row['rule']}  ({row['where']})"
    for resource in told["resources"]:
        by = f", {resource['by']}" if resource.get("by") else ""
        yield f"{resource['resource']}: {resource['verdict']}{by}"
        for kind in ("scopes", "denies", "allows"):
            for row in resource.get(kind, ()):
                name, answer = row.get("scope") or row.get("rule"), row.get("grants") or row.get("matches")
                yield f"  {kind[:-1]:>6} {name}: {answer}"
        for row in resource.get("obligations", ()):
            yield f"  {row['with']:>10} {row['path']}  ({row['rule']})"
    if told["body"] is not None:
        yield json.dumps(told["body"], indent=2, default=str)
