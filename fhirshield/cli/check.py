"""Check settings and rules: everything that is wrong, at once, and what may not be meant.

    fhirshield check fhirshield.yaml
    fhirshield check rules/            only rules, without settings
    fhirshield check fhirshield.yaml --consents      the Consents that are stored, too, asked of their source

Faults keep the shield from starting; advice does not. With --strict, advice makes the exit code 1 too.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
from pathlib import Path

from fhirshield.app import consent_policy, stored_consents
from fhirshield.authorize.caller import notes
from fhirshield.errors import Fault, OperatorError
from fhirshield.policy.check import Advice, advise, advise_settings
from fhirshield.policy.compile import RuleSet
from fhirshield.policy.lint import lint
from fhirshield.policy.load import load as load_rules
from fhirshield.settings import load as load_settings


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("path", type=Path, help="a settings file, a rule file or a folder of rule files")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--consents", action="store_true", help="read all active Consents, and say which cannot be enforced")
    parser.add_argument("--strict", action="store_true", help="advice makes the exit code 1")


def run(options: argparse.Namespace) -> int:
    """Print faults and advice; 1 when there are faults."""
    faults, advice, count, without = examine(options.path)
    if options.consents and not faults:
        more, found = asyncio.run(consents(options.path))
        faults, advice = faults + more, advice + found
    if options.json:
        print(_as_json(faults, advice))
    else:
        for line in [*map(str, faults), *map(str, advice)]:
            print(line)
        if not faults:
            print(f"{count} rules load; {len(advice)} pieces of advice; in force without: {', '.join(without) or 'nothing'}")
        else:
            print(f"{len(faults)} faults")
    return 1 if faults or (options.strict and advice) else 0


def examine(path: Path) -> tuple[list[Fault], list[Advice], int, tuple[str, ...]]:
    """Faults of settings and of rules together, advice on both, how many rules load, and what is not asked at all."""
    faults: list[Fault] = []
    advice: list[Advice] = []
    rules_path, attributes, consent = path, None, None
    if path.is_file() and not _is_rules(path):
        try:
            settings = load_settings(path)
        except OperatorError as error:
            return error.faults, [], 0, ()
        rules_path, consent = settings.rules, consent_policy(settings)
        advice += advise_settings(settings)
        attributes = frozenset(name for issuer in settings.issuers.values() for name in issuer.claims)
    try:
        rules = load_rules(rules_path)
    except OperatorError as error:
        return faults + error.faults, [], 0, ()
    if consent is None and path != rules_path:
        text = "no Consent is asked of anybody, so that nothing denies it: say `consent` in the settings"
        advice += [Advice("dead", element.where, element.id, text) for element in rules.elements]
    return faults, advice + advise(rules, attributes), len(rules.rules), notes(RuleSet(rules, consent))


async def consents(path: Path) -> tuple[list[Fault], list[Advice]]:
    """What cannot be enforced of the Consents that are stored: these patients' data is denied. Read from where settings say."""
    remedy = "name a settings file with `consent`"
    if _is_rules(path) or path.is_dir():
        return [Fault(str(path), "", "rules alone say not where Consents are", remedy)], []
    settings = load_settings(path)
    policy = RuleSet(load_rules(settings.rules), consent_policy(settings)).consent
    if policy is None:
        return [Fault(str(path), "consent", "no Consent is asked of anybody here", remedy)], []
    now, faults, found, read = dt.datetime.now(dt.UTC), [], [], 0
    own = settings.consent is not None and settings.consent.source is None
    for name in (row.path for row in settings.upstreams if own and row.credential.forward):
        text = "its Consents are read as the caller, which cannot be done from here"
        faults.append(Fault(str(path), f"upstreams {name}", text, "give the shield a credential of its own"))
    async for url, page in stored_consents(settings):
        if page is None:
            faults.append(Fault(url, "Consent", "its Consents cannot be read", "see whether it answers, and to this credential"))
            continue
        bases = (url, *(f"{settings.public_url}{row.path}" for row in settings.upstreams), *(row.url for row in settings.upstreams))
        read += sum(one.get("resourceType") == "Consent" for one in page)
        for one in (finding for resource in page for finding in lint(resource, policy, now, bases)):
            if one.kind == "unsupported":
                found.append(Advice("consent", url, one.consent, f"{one.path}: {one.message}"))
    found.append(Advice("consent", str(path), "consent", f"{read} active Consents read, {len(found)} of them not enforceable"))
    return faults, found


def _is_rules(path: Path) -> bool:
    """A file of rules starts (comments aside) with ``rules:`` or what else a rule file has at the top."""
    lines = (line for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    top = {line.partition(":")[0] for line in lines if line[:1].isalpha()}
    return "issuers" not in top and "rules" in top


def _as_json(faults: list[Fault], advice: list[Advice]) -> str:
    rows = [{"where": f.where, "path": f.path, "message": f.message, "remedy": f.remedy} for f in faults]
    hints = [{"kind": a.kind, "where": a.where, "rule": a.rule, "message": a.message} for a in advice]
    return json.dumps({"faults": rows, "advice": hints}, indent=2)
