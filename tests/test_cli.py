"""The command line: exit codes, what is printed, what a script would read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fhirshield.audit import Journal
from fhirshield.cli import COMMANDS, main
from fhirshield.ring import load_key
from tests.consent.material import consent, provision
from tests.parts import ROOT
from tests.test_settings import PLAIN
from tests.world import OPEN, merged

RULES = str(ROOT / "rules")


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], *([name] for name in COMMANDS)):
        with pytest.raises(SystemExit) as stopped:
            main([*words, "--help"])
        assert stopped.value.code == 0
        assert len(capsys.readouterr().out) > 200
    with pytest.raises(SystemExit) as stopped:
        main(["nothing"])
    assert stopped.value.code == 2


def test_check(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["check", RULES]) == 0
    assert "rules load" in capsys.readouterr().out
    assert main(["check", RULES, "--strict"]) == 1
    capsys.readouterr()
    assert main(["check", RULES + "/broken/broken.yaml", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert len(told["faults"]) == 11 and all(fault["remedy"] for fault in told["faults"])
    settings = tmp_path / "fhirshield.yaml"
    settings.write_text(yaml.safe_dump(merged(PLAIN, {"zone": "Nowhere"})))
    assert main(["check", str(settings)]) == 1
    assert "fhirshield.yaml:" in capsys.readouterr().out
    settings.write_text(yaml.safe_dump(PLAIN))
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(OPEN))
    assert main(["check", str(settings)]) == 0


def test_rule_tests(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = tmp_path / "junit.xml"
    assert main(["test", RULES, "--junit", str(report)]) == 0
    suite = ET.parse(report).getroot()
    assert int(suite.attrib["tests"]) > 90 and suite.attrib["failures"] == "0"
    assert main(["test", RULES, "--mutate"]) == 0
    assert "0 survived" in capsys.readouterr().out


def test_a_failing_rule_test_and_a_surviving_mutant_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rules = merged(OPEN, {"rules": [{"redact": [{"resources": ["Patient"], "path": "$.photo", "with": "remove"}]}]})
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    (tmp_path / "tests").mkdir()
    test = {"name": "t", "principal": {}, "request": "GET /Patient/p", "stored": [{"resourceType": "Patient", "id": "p"}]}
    (tmp_path / "tests/a.yaml").write_text(yaml.safe_dump({"tests": [{**test, "expect": {"status": 404}}]}))
    assert main(["test", str(tmp_path)]) == 1
    assert "expected 404, found 200" in capsys.readouterr().out
    (tmp_path / "tests/a.yaml").write_text(yaml.safe_dump({"tests": [{**test, "expect": {"status": 200}}]}))
    assert main(["test", str(tmp_path), "--mutate"]) == 1
    assert "SURVIVED rules.yaml: open: $.photo" in capsys.readouterr().out
    assert main(["test", str(tmp_path / "tests")]) == 1


def test_explain(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "nurse.yaml").write_text("roles: [nurse]\npurposes: [TREAT]\nscopes: user/*.rs user/Foo.rs\n")
    (tmp_path / "p.json").write_text('{"resourceType":"Patient","id":"p","telecom":[{"system":"phone","value":"555-0100"}]}')
    words = ["explain", RULES, "--principal", str(tmp_path / "nurse.yaml"), "--request", "GET /Patient/p"]
    words += ["--resource", str(tmp_path / "p.json")]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "200: permitted, rule nurse-ward" in told and "user/Foo.rs grants nothing" in told and "555-0100" not in told
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decision"]["status"] == 200
    assert main([*words[:3], str(tmp_path / "nobody.yaml"), *words[4:]]) == 1


def test_audit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    secret, _ = load_key(tmp_path / "journal.key", make=True)

    async def fill() -> None:
        journal = Journal(tmp_path / "audit", secret, tmp_path / "witness.ndjson")
        journal.open()
        for number in range(5):
            await journal.record({"n": number}, "d")
        await journal.close()

    asyncio.run(fill())
    assert main(["audit", "tail", str(tmp_path / "audit"), "-n", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == ['{"n":3}', '{"n":4}']
    assert main(["audit", "verify", str(tmp_path / "audit"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["proven"] == 5
    (segment,) = (tmp_path / "audit").iterdir()
    segment.write_bytes(segment.read_bytes().replace(b'"n":2', b'"n":7'))
    assert main(["audit", "verify", str(tmp_path / "audit")]) == 1
    assert "FAULT" in capsys.readouterr().out
    assert main(["audit", "verify", str(tmp_path / "audit"), "--key", str(tmp_path / "none")]) == 1


def test_the_demo_walks_and_ends() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "fhirshield", "demo", "--smoke"], capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "stranger" in found.stdout and "0 came after the last of them" in found.stdout and "FAULT" not in found.stdout
    told = found.stdout.partition("What a patient's Consent changes")[2].splitlines()[3:11]
    assert [line.split()[-2:] for line in told if "GET Patient" in line] == [
        ["200", told[0].split()[-1]], ["200", "-"], ["Patient/pat-1", "404"], ["200", told[0].split()[-1]], ["200", told[0].split()[-1]]
    ]  # fmt: skip
    assert "CRITICAL:fhirshield:break-glass" in found.stderr and told[0].split()[-1].startswith("555")


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "rules.yaml").write_text(yaml.safe_dump(OPEN))
    (folder / "fhirshield.yaml").write_text(yaml.safe_dump({**PLAIN, "listen": f"127.0.0.1:{port}"}))
    command = [sys.executable, "-m", "fhirshield", "serve", str(folder / "fhirshield.yaml")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield process, port
    finally:
        process.kill()
        process.wait()


def test_serve_ends_cleanly_and_publishes_its_head(tmp_path: Path) -> None:
    with served(tmp_path) as (process, port):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/fhir/Patient/1", timeout=10)
        os.kill(process.pid, signal.SIGTERM)
        process.wait(20)
    assert main(["audit", "verify", str(tmp_path / "audit"), "--json"]) == 0
    assert (tmp_path / "witness.ndjson").read_bytes().count(b"\n") == 1


def test_a_machine_that_dies_keeps_every_answered_request(tmp_path: Path) -> None:
    """kill -9 while requests are answered: whatever was answered is in the journal, and the chain holds."""
    answered: list[str] = []
    for _ in range(3):
        with served(tmp_path) as (process, port):
            for _ in range(30):
                with pytest.raises(urllib.error.HTTPError) as caught:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/fhir/Patient/1", timeout=10)
                answered.append(caught.value.headers["X-Request-Id"])
                caught.value.close()
            process.kill()
    kept = b"".join(path.read_bytes() for path in (tmp_path / "audit").iterdir()).decode()
    assert [one for one in answered if one not in kept] == []
    assert main(["audit", "verify", str(tmp_path / "audit")]) == 0


def test_serve_says_everything_that_is_wrong_and_does_not_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fhirshield.yaml").write_text(yaml.safe_dump(merged(PLAIN, {"zone": "Nowhere", "upstreams": [{"issuers": ["x"]}]})))
    assert main(["serve", str(tmp_path / "fhirshield.yaml")]) == 1
    assert "faults; nothing was started" in capsys.readouterr().err


CIRCUMSTANCES = """
sensitivity: {lists: [list.csv]}
relationships: {treating: {patients_of: ["Encounter?participant={fhirUser}&status=in-progress"]}}
consent_elements:
  - {id: contact, codes: ["urn:e|contact"], redact: [{resources: [Patient], path: $.telecom, with: remove}]}
rules:
  - {id: treat, who: {roles: [doctor]}, allow: {interactions: [read, search], resources: [Patient, Condition], related: treating}}
  - {id: cleared, who: {roles: [psychiatrist]}, clearance: {confidentiality: R, categories: [PSY]}}
  - id: glass
    who: {roles: [doctor], authentication: {acr: ["urn:2"], max_age: 1h}}
    break_glass: {resources: [Patient], replaces: [relationship, consent], time: 30m, limit: 3, per: 24h}
"""
THEIR_TESTS = """
principals:
  doctor: {roles: [doctor], fhir_user: Practitioner/d, purposes: [TREAT], acr: "urn:2", auth_age: 5m}
  late: {roles: [doctor], fhir_user: Practitioner/d, purposes: [TREAT], acr: "urn:2", auth_age: 2h}
  psychiatrist: {roles: [doctor, psychiatrist], fhir_user: Practitioner/d, purposes: [TREAT]}
consent: {policies: {"urn:policy:base": ignore}}
stored:
  - {resourceType: Encounter, id: e, status: in-progress, class: {code: AMB}, subject: {reference: Patient/a}, participant: [{individual: {reference: Practitioner/d}}]}
  - {resourceType: Condition, id: c, subject: {reference: Patient/a}, code: {coding: [{system: "urn:s", code: psy}]}}
  - {resourceType: Patient, id: a, telecom: [{value: "555"}]}
  - {resourceType: Patient, id: b}
  - CONSENT
  - OTHER
tests:
  - {name: related, principal: doctor, request: GET /Patient/a, expect: {status: 200, body: {resourceType: Patient, id: a}}}
  - {name: not related, principal: doctor, request: GET /Patient/b, expect: {status: 404}}
  - {name: in an emergency, principal: doctor, request: GET /Patient/b, emergency: found unconscious, expect: {status: 200}}
  - {name: who authenticated long ago, principal: late, request: GET /Patient/b, emergency: found unconscious, expect: {status: 401}}
  - {name: beyond clearance, principal: doctor, request: GET /Condition/c, expect: {status: 404, reason: beyond-clearance}}
  - {name: within clearance, principal: psychiatrist, request: GET /Condition/c, expect: {status: 200}}
"""


def test_rule_tests_know_what_patients_and_circumstances_decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "list.csv").write_text("category,system,kind,code\nPSY,urn:s,code,psy\n")
    (tmp_path / "rules.yaml").write_text(CIRCUMSTANCES)
    said = consent("c1", "a", provision("permit", provision("deny", code="urn:e|contact")))
    (tmp_path / "tests/a.yaml").write_text(
        THEIR_TESTS.replace("CONSENT", json.dumps(said)).replace("OTHER", json.dumps(consent("c2", "b", provision("permit"))))
    )
    assert main(["test", str(tmp_path)]) == 0, capsys.readouterr().out
    assert "6 passed" in capsys.readouterr().out
    main(["test", str(tmp_path), "--mutate"])
    survivors = [line for line in capsys.readouterr().out.splitlines() if line.startswith("SURVIVED")]
    assert survivors == ["SURVIVED rules.yaml: treat: search: no test needs it"]
