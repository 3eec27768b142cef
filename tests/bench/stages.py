"""Where the shield's CPU goes, by stage, in process: the same material, no network. ``make profile``."""

from __future__ import annotations

import datetime as dt
import gc
import json
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import yaml

from fhirshield.authorize import authorize
from fhirshield.fhir import json as fhir_json
from fhirshield.fhir.reference_places import extensions
from fhirshield.model import Answer, Denial, Plan
from fhirshield.policy.compile import RuleSet
from fhirshield.policy.load import loads
from fhirshield.receive import Receiver, Request
from fhirshield.redact import Redactor, Searchset
from fhirshield.redact.mend import carry_out
from fhirshield.redact.names import Names
from fhirshield.redact.operations import Tools
from fhirshield.redact.place import Change
from fhirshield.redact.program import Program
from fhirshield.rehearsal import principal_from
from fhirshield.rewrite import rewrite
from fhirshield.ring import Ring
from fhirshield.settings import Credential, Upstream
from tests.bench import material

NOW = dt.datetime(2026, 1, 5, 10, tzinfo=dt.UTC)
ROUNDS = 5
SCOPE = "user/Patient.rs user/Observation.rs?category=http://terminology.hl7.org/CodeSystem/observation-category|laboratory"


def show() -> None:
    """Print medians of five rounds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    rules = RuleSet(loads(yaml.safe_dump(material.rules(40))))
    ring = Ring(b"k" * 32)
    upstream = Upstream("/fhir", "http://up.bench/fhir", ("b",), ("b",), Credential(), 1, 1, ("a",), (), 64)
    receiver, redactor = Receiver(upstream, "https://bench.example", ring), Redactor(ring)
    principal = principal_from({"roles": ["clinician"], "scopes": SCOPE, "attributes": {"vip_cleared": False}})
    bodies = documents()

    def request(target: str) -> Request:
        path, _, query = target.partition("?")
        return Request("GET", path.encode(), query.encode(), [], b"", "127.0.0.1", NOW, "d")

    for what, target in (("Patient", "/fhir/Patient/p1"), ("Bundle", "/fhir/Observation?_id=1")):
        body = bodies[what]
        asked = request(target)
        situation, interaction = receiver.situation(asked), receiver.interaction(asked)
        permit = authorize(principal, interaction, situation, rules)
        assert not isinstance(permit, Denial)
        plan: Plan = rewrite(interaction, permit)
        times = {
            "receive": clock(partial(receive, receiver, asked)),
            "authorize": clock(partial(authorize, principal, interaction, situation, rules)),
            "decode": clock(partial(fhir_json.decode, body)),
            "look for extensions": clock(partial(extensions, body)),
            "decode and redact": clock(partial(redact, redactor, plan, body)),
            "decode and encode (the codec alone)": clock(partial(codec, body)),
        }
        print(f"{what}, {len(body)} bytes")
        for stage, micros in times.items():
            print(f"  {stage:<36} {micros:9.1f} us")
    resources = [entry["resource"] for entry in fhir_json.decode(bodies["Bundle"])["entry"]]
    show_parts(permit, resources, ring)


def receive(receiver: Receiver, asked: Request) -> None:
    receiver.situation(asked)
    receiver.interaction(asked)


def redact(redactor: Redactor, plan: Plan, body: bytes) -> None:
    answer = Answer(plan, 200, {}, fhir_json.decode(body), careful=False, deep=False)
    if plan.permit.interaction.searches:
        page = Searchset(redactor, plan)
        page.add(answer)
        page.view()
    else:
        redactor(answer)


def codec(body: bytes) -> None:
    fhir_json.encode(fhir_json.decode_unchecked(body))


def show_parts(permit: Any, resources: list[Any], ring: Ring) -> None:
    """The parts of redaction, for one resource of the Bundle."""
    view = permit.view("Observation")
    tools = Tools(NOW.date(), lambda value: ring.digest("hashes", value))
    spent: dict[str, float] = {}
    program, names = Program("Observation", view.obligations), Names("Observation", view.naming, within=False)
    counts: dict[str, int] = {}

    def lap(part: str, begin: float) -> float:
        now = time.perf_counter()
        spent[part] = spent.get(part, 0.0) + now - begin
        return time.perf_counter()

    for resource in resources:
        changes: list[Change] = []
        at = time.perf_counter()
        permit.judge(resource, "s", False)
        at = lap("judge", at)
        program.follow(resource, tools, changes, counts)
        at = lap("follow paths", at)
        names.clean(resource, False, changes, counts)
        at = lap("names in references", at)
        carry_out(changes, tools, counts)
        at = lap("change and mend", at)
        fhir_json.encode(resource)
        lap("encode", at)
    print("of redaction, one Observation")
    for part, seconds in spent.items():
        print(f"  {part:<36} {seconds / len(resources) * 1e6:9.1f} us")


def documents() -> dict[str, bytes]:
    """One Patient and one Bundle of the benchmark's material, as text."""
    chance = random.Random(1)
    patient = json.dumps(material.patient(1, chance), separators=(",", ":"))
    entries = [{"resource": material.observation(1, i, chance), "search": {"mode": "match"}} for i in range(material.ENTRIES)]
    bundle = json.dumps({"resourceType": "Bundle", "type": "searchset", "link": [], "entry": entries}, separators=(",", ":"))
    return {"Patient": patient.encode(), "Bundle": bundle.replace('"@@', "").replace('@@"', "").encode()}


def clock(work: Callable[[], Any]) -> float:
    """Microseconds of CPU, the median of five rounds of about a tenth of a second."""
    work()
    begin = time.process_time()
    work()
    number = max(3, int(0.1 / max(time.process_time() - begin, 1e-6)))
    found = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        for _ in range(number):
            work()
        found.append((time.process_time() - begin) / number * 1e6)
    return sorted(found)[ROUNDS // 2]
