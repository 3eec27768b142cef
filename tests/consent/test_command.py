"""`fhirshield consent` and `explain`: findings, simulations, and which provision decided."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fhirshield.cli import main
from tests.consent.material import consent, provision, scope
from tests.consent.test_enforced import ward

OPEN: dict[str, Any] = {"rules": [{"id": "open", "who": {"roles": ["*"]}, "allow": {"interactions": ["*"], "resources": ["*"]}}]}
SETTINGS: dict[str, Any] = {
    "public_url": "https://x.example", "issuers": {"i": {"issuer": "https://i.example", "jwks_url": "https://i.example/k", "profile": "smart"}},
    "upstreams": [{"path": "/fhir", "url": "http://u.example/fhir", "issuers": ["i"]}], "rules": "rules.yaml", "audit": {"journal": "audit"},
    "consent": {"policies": {"urn:policy:base": "ignore"}},
}  # fmt: skip


def files(folder: Path, **content: Any) -> None:
    (folder / "rules.yaml").write_text(yaml.safe_dump(OPEN))
    (folder / "fhirshield.yaml").write_text(yaml.safe_dump(SETTINGS))
    for name, value in content.items():
        (folder / f"{name}.json").write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("made", "kinds"),
    [
        (consent("c", "p", provision("permit")), []),
        (consent("c", "p", provision("permit"), policy=[{"uri": "urn:unheard-of"}]), ["unsupported"]),
        (consent("c", "p", None), ["unsupported"]),
        (consent("c", "p", provision("permit"), status="draft"), ["inactive"]),
        (consent("c", "p", provision("permit", period="2020-01-01/2020-12-31")), ["expired"]),
        (consent("c", "p", provision("permit", provision("deny", period="2020-01-01/2020-12-31", purpose="HMARKT"))), ["expired"]),
        (consent("c", "p", provision("permit", provision("deny", cls="Observation"), provision("permit", cls="Observation"))), ["contradictory"]),
        (consent("c", "p", provision("permit", provision("deny", cls="Observation"), provision("deny", cls="Observation"))), ["dead"]),
        (consent("c", "p", provision("permit", provision("permit"))), ["dead"]),
        (consent("c", "p", provision("permit", label=["N", "HIV"])), ["contradictory"]),
        (consent("c", "p", provision("bogus")), ["unsupported"]),
        (consent("c", "p", provision("permit"), scope=scope("adr")), ["dead"]),
        ({"resourceType": "Patient", "id": "p"}, ["unsupported"]),
    ],
)  # fmt: skip
def test_check_finds_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str], made: Any, kinds: list[str]) -> None:
    files(tmp_path, consent=made)
    code = main(["consent", "check", str(tmp_path / "consent.json"), "--settings", str(tmp_path / "fhirshield.yaml"), "--json"])
    assert ([row["kind"] for row in json.loads(capsys.readouterr().out)], code) == (kinds, bool(kinds))


def test_simulate_shows_what_a_change_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subject = {"reference": "Patient/p"}
    observation = {"resourceType": "Observation", "id": "o", "status": "final", "code": {"text": "x"}, "subject": subject}
    entries = [{"resource": {"resourceType": "Patient", "id": "p"}}, {"resource": observation}]
    files(
        tmp_path, before=consent("c", "p", provision("permit")), resources={"resourceType": "Bundle", "type": "collection", "entry": entries},
        after=consent("c", "p", provision("permit", provision("deny", actor="Practitioner/2", cls="Observation"))),
    )  # fmt: skip
    (tmp_path / "callers.yaml").write_text(
        yaml.safe_dump({"one": {"fhir_user": "Practitioner/1"}, "two": {"fhir_user": "Practitioner/2"}})
    )
    command = ["consent", "simulate", str(tmp_path / "before.json"), "--after", str(tmp_path / "after.json"), "--resources", str(tmp_path / "resources.json"),
               "--principals", str(tmp_path / "callers.yaml"), "--rules", str(tmp_path / "rules.yaml"), "--settings", str(tmp_path / "fhirshield.yaml")]  # fmt: skip
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["one"]["before"] == told["one"]["after"] == told["two"]["before"] == ["Consent/c", "Observation/o", "Patient/p"]
    assert told["two"]["after"] == ["Consent/c", "Patient/p"]
    assert told["two"]["why"] == {"Observation/o": "no-consent Consent/c Consent.provision.provision[0]"}
    assert main(command) == 0
    assert "  - Observation/o" in capsys.readouterr().out


def test_simulate_shows_which_elements_a_change_hides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patient = {"resourceType": "Patient", "id": "p", "telecom": [{"value": "555"}]}
    files(tmp_path, before=consent("c", "p", provision("permit")), resources=patient,
          after=consent("new", "p", provision("permit", provision("deny", code="urn:e|contact"))))  # fmt: skip
    contact = {
        "id": "contact",
        "codes": ["urn:e|contact"],
        "redact": [{"resources": ["Patient"], "path": "$.telecom", "with": "remove"}],
    }
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({**OPEN, "consent_elements": [contact]}))
    (tmp_path / "callers.yaml").write_text(yaml.safe_dump({"one": {"fhir_user": "Practitioner/1"}}))
    command = ["consent", "simulate", str(tmp_path / "before.json"), "--after", str(tmp_path / "after.json"), "--resources", str(tmp_path / "resources.json"),
               "--principals", str(tmp_path / "callers.yaml"), "--rules", str(tmp_path / "rules.yaml"), "--settings", str(tmp_path / "fhirshield.yaml")]  # fmt: skip
    assert main(command) == 0
    assert "  ~ Patient/p  (hidden: nothing -> contact)" in capsys.readouterr().out


def test_explain_names_consent_version_and_provision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = consent("c", "p", provision("permit", provision("deny", cls="Patient")), meta={"versionId": "7"})
    files(tmp_path, consent=made, patient={"resourceType": "Patient", "id": "p"})
    (tmp_path / "who.yaml").write_text("roles: [nurse]\n")
    command = ["explain", str(tmp_path / "fhirshield.yaml"), "--principal", str(tmp_path / "who.yaml"), "--request", "GET /Patient/p",
               "--resource", str(tmp_path / "patient.json"), str(tmp_path / "consent.json")]  # fmt: skip
    assert main(command) == 0
    assert "404: no-consent, rule Consent/c/_history/7 Consent.provision.provision[0]" in capsys.readouterr().out


def test_files_that_cannot_be_read_are_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "odd.json").write_text("{")
    for name in ("odd.json", "absent.json"):
        assert main(["consent", "check", str(tmp_path / name)]) == 1
        assert name in capsys.readouterr().err


async def test_check_reads_the_stored_consents_and_names_those_that_cannot_be_enforced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = [consent(f"c{number}", "a", provision("permit")) for number in range(450)]
    stored += [
        consent("odd", "a", provision("permit"), policy=[{"uri": "urn:unheard-of"}]),
        {**consent("bad", "b", None), "status": "active", "provision": {"type": "perhaps"}},
    ]
    async with ward(tmp_path, *stored) as (here, _):
        file = str(here.folder / "fhirshield.yaml")
        assert await asyncio.to_thread(main, ["check", file, "--consents"]) == 0
        told = capsys.readouterr().out
        assert "452 active Consents read, 2 of them not enforceable" in told
        assert "Consent/odd: Consent.policy: `urn:unheard-of` stands nowhere" in told and "Consent/bad" in told
        assert await asyncio.to_thread(main, ["check", file, "--consents", "--strict"]) == 1
        assert sum(b"/fhir/Consent" in target for _, target, _ in here.seen) >= 6  # pages of two hundred at most
    assert await asyncio.to_thread(main, ["check", file, "--consents"]) == 1  # nobody answers there any more
    assert "cannot be read" in capsys.readouterr().out
    files(tmp_path)
    (tmp_path / "fhirshield.yaml").write_text(yaml.safe_dump({name: row for name, row in SETTINGS.items() if name != "consent"}))
    assert await asyncio.to_thread(main, ["check", str(tmp_path / "fhirshield.yaml"), "--consents"]) == 1
    assert "no Consent is asked" in capsys.readouterr().out


async def test_the_log_says_once_that_a_consent_cannot_be_enforced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    on = {"consent": {"max_age": "100ms"}}
    async with ward(tmp_path, {**consent("bad", "a", None), "provision": {"type": "perhaps"}}, settings=on) as (here, token):
        for _ in range(3):
            assert (await here.ask("/Patient/a", token)).status == 404
            await asyncio.sleep(0.12)
    assert [record.getMessage() for record in caplog.records if "cannot be enforced" in record.getMessage()] == [
        "Consent/bad cannot be enforced, so that nothing of its patient is shown: `Consent.provision.type` is neither permit nor deny"
    ]
