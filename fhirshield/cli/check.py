"""Check settings and rules: everything that is wrong, at once, and what may not be meant.

    fhirshield check fhirshield.yaml
    fhirshield check rules/            only rules, without settings

Faults keep the shield from starting; advice does not. With --strict, advice makes the exit code 1 too.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fhirshield.authorize.caller import NOTES
from fhirshield.errors import Fault, OperatorError
from fhirshield.policy.check import Advice, advise
from fhirshield.policy.load import load as load_rules
from fhirshield.settings import load as load_settings


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("path", type=Path, help="a settings file, a rule file or a folder of rule files")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--strict", action="store_true", help="advice makes the exit code 1")


def run(options: argparse.Namespace) -> int:
    """Print faults and advice; 1 when there are faults."""
    faults, advice, count = examine(options.path)
    if options.json:
        print(_as_json(faults, advice))
    else:
        for line in [*map(str, faults), *map(str, advice)]:
            print(line)
        if not faults:
            print(f"{count} rules load; {len(advice)} pieces of advice; in force without: {', '.join(NOTES)}")
        else:
            print(f"{len(faults)} faults")
    return 1 if faults or (options.strict and advice) else 0


def examine(path: Path) -> tuple[list[Fault], list[Advice], int]:
    """Faults of settings and of rules together, advice on rules that load, and how many those are."""
    faults: list[Fault] = []
    rules_path, attributes = path, None
    if path.is_file() and not _is_rules(path):
        try:
            settings = load_settings(path)
        except OperatorError as error:
            return error.faults, [], 0
        rules_path = settings.rules
        attributes = frozenset(name for issuer in settings.issuers.values() for name in issuer.claims)
    try:
        rules = load_rules(rules_path)
    except OperatorError as error:
        return faults + error.faults, [], 0
    return faults, advise(rules, attributes), len(rules.rules)


def _is_rules(path: Path) -> bool:
    """A file of rules starts (comments aside) with ``rules:`` or what else a rule file has at the top."""
    lines = (line for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    top = {line.partition(":")[0] for line in lines if line[:1].isalpha()}
    return "issuers" not in top and "rules" in top


def _as_json(faults: list[Fault], advice: list[Advice]) -> str:
    rows = [{"where": f.where, "path": f.path, "message": f.message, "remedy": f.remedy} for f in faults]
    hints = [{"kind": a.kind, "where": a.where, "rule": a.rule, "message": a.message} for a in advice]
    return json.dumps({"faults": rows, "advice": hints}, indent=2)
