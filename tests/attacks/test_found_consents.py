"""What a fresh attacker found of Consents: denies that did not hold, permits that held too widely, work without bound, oracles."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fhirshield.authorize.consent import compiled
from fhirshield.fhir.consent import Unsupported, parse
from fhirshield.policy.consent import ConsentPolicy
from tests.consent.material import TERM, consent, consent5, provision
from tests.consent.test_enforced import ON, RULES, fill, ids, registrar, ward
from tests.consent.test_tables import TREAT, shown
from tests.simulators.server import Simulator
from tests.world import world

ME = {"reference": "Practitioner/1"}


def actor(role: Any) -> dict[str, Any]:
    return {"role": role, "reference": ME}


def deny(**said: Any) -> dict[str, Any]:
    return provision("permit", {"type": "deny", **said})


@pytest.mark.parametrize(
    "root",
    [
        deny(actor=[actor({"coding": [{"code": "IRCP"}]})]),
        deny(actor=[actor({"coding": [{"system": "urn:unheard-of", "code": "x"}]})]),
        deny(actor=[actor({"coding": [{"system": "http://snomed.info/sct", "code": "309343006"}]})]),
        deny(actor=[actor({"coding": [{"system": "http://hl7.org/fhir/v3/ParticipationType", "code": "IRCP"}]})]),
        deny(actor=[actor({"text": "doctor"})]),
        deny(**{"class": [{"system": "http://hl7.org/fhir/resource-types", "code": "Resource"}]}),
        deny(**{"class": [{"system": "http://hl7.org/fhir/resource-types", "code": "DomainResource"}]}),
        deny(**{"class": [{"system": "http://hl7.org/fhir/resource-types", "code": "Procedure"}, {"display": "notes"}]}),
        deny(code=[{"text": "something"}, {"coding": [{"system": "urn:c", "code": "other"}]}]),
        deny(code=[{"coding": [{"system": "urn:c", "code": "other"}, {"display": "something"}]}]),
        deny(action=[{"coding": [{"system": "urn:unheard-of", "code": "read"}]}]),
        deny(purpose=[{"system": "urn:unheard-of", "code": "treatment"}]),
        deny(dataPeriod={"start": "2027-01-01", "end": "2026-01-01"}),
        deny(securityLabel=[{"system": TERM + "v3-ActCode", "code": "UNHEARDOF"}]),
    ],
)
def test_a_deny_holds_wherever_it_may_be_meant(root: Any) -> None:
    assert not shown([consent("c", "p", root)], TREAT)


@pytest.mark.parametrize(
    "code", [{"coding": [{"display": "HIV"}]}, {"coding": [{"system": "urn:c", "code": "A1"}]}, {"extension": [{"url": "urn:x", "valueCode": "a1"}]}, None]
)  # fmt: skip
def test_a_deny_of_a_code_holds_where_the_resource_may_have_it(code: Any) -> None:
    denied = consent("c", "p", deny(code=[{"coding": [{"system": "urn:c", "code": "a1"}]}]))
    assert not shown([denied], {**TREAT, "about": {"code": code}})


@pytest.mark.parametrize(
    "over",
    [
        {"scope": {"coding": [{"system": TERM + "consentscope", "code": "patient-privacy"}, {"system": TERM + "consentscope", "code": "treatment"}]}},
        {"scope": {"coding": [{"system": "urn:local", "code": "treatment"}]}},
        {"category": [{"coding": [{"system": "urn:local", "code": "dnr"}]}]},
        {"category": [{"coding": [{"system": TERM + "consentcategorycodes", "code": "dnr"}]}, {"text": "privacy"}]},
    ],
)  # fmt: skip
def test_a_deny_of_any_scope_that_may_be_privacy_holds(over: Any) -> None:
    assert not shown([consent("c", "p", provision("deny"), **over), consent("d", "p", provision("permit"))], TREAT)


def test_what_was_not_verified_or_granted_to_others_permits_nothing() -> None:
    assert not shown([consent("c", "p", provision("permit"), verification=[{"verified": False}])], TREAT)
    assert not shown([consent5("c", "p", "permit", grantee=[{"reference": "Practitioner/2"}])], TREAT)
    assert shown([consent5("c", "p", "permit", grantee=[ME])], TREAT)
    assert not shown([consent5("c", "p", None)], TREAT, ConsentPolicy(implicit="permit"))


@pytest.mark.parametrize(
    "over", [{"category": None}, {"policyRule": None}, {"provision": None}, {"scope": {"coding": None, "text": "x"}}]
)
def test_null_where_a_value_should_be_is_not_enforced_and_no_error(over: Any) -> None:
    with pytest.raises(Unsupported):
        parse({**consent("c", "p", provision("permit")), **over}, ())


def test_the_work_of_a_consent_grows_with_what_was_written() -> None:
    node = provision("permit", purpose="TREAT")
    for _ in range(12):
        node = provision(
            "permit", *(provision("permit", purpose="TREAT") for _ in range(35)), provision("deny", node, cls="Condition")
        )
    made = consent("c", "p", node)
    began = time.process_time()
    found = compiled(parse(made, ()), ConsentPolicy(policies=(("urn:policy:base", "ignore"),)))
    assert len({id(one) for one in _all(found.nodes)}) <= 2 * 500
    assert shown([made], TREAT)
    assert time.process_time() - began < 60  # not a measure: it used to take longer than anybody waits


def _all(nodes: Any) -> list[Any]:
    found: dict[int, Any] = {}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if id(node) not in found:
            found[id(node)] = node
            waiting.extend(node.exceptions)
    return list(found.values())


async def test_a_stored_bundle_is_its_patients(tmp_path: Path) -> None:
    async with ward(tmp_path, consent("c1", "a", provision("permit")), consent("c2", "b", provision("deny"))) as (here, token):
        for name in ("a", "b"):
            inner = {
                "resourceType": "Composition",
                "id": "x",
                "status": "final",
                "type": {"text": "x"},
                "date": "2026",
                "title": "x",
                "author": [],
                "subject": {"reference": f"Patient/{name}"},
            }
            here.store.save(
                {
                    "resourceType": "Bundle",
                    "id": f"doc-{name}",
                    "type": "document",
                    "identifier": {"value": name},
                    "entry": [{"resource": inner}],
                }
            )
        here.store.save({"resourceType": "Bundle", "id": "empty", "type": "collection", "identifier": {"value": "b"}})
        here.store.save(
            {
                "resourceType": "Location",
                "id": "l",
                "contained": [{"resourceType": "Patient", "id": "x", "name": [{"family": "B"}]}],
            }
        )
        here.store.save(
            {
                "resourceType": "Practitioner",
                "id": "x",
                "extension": [{"url": "urn:x", "valueReference": {"reference": "Patient/b"}}],
            }
        )
        wanted = {"Bundle/doc-a": 200, "Bundle/doc-b": 404, "Bundle/empty": 404, "Location/l": 404, "Practitioner/x": 404}
        assert {name: (await here.ask(f"/{name}", token)).status for name in wanted} == wanted
        assert await ids(here, token, "/Bundle") == ["doc-a"]


@pytest.mark.parametrize("default", ["deny", "permit", "treatment"])
async def test_writing_about_somebody_hidden_and_about_nobody_is_one_refusal(tmp_path: Path, default: str) -> None:
    settings = {"consent": {**ON["consent"], "default": default}}
    async with ward(tmp_path, consent("c2", "b", provision("deny")), settings=settings) as (here, token):
        for name in ("Observation", "Condition"):
            body = {"resourceType": name, "status": "final", "code": {"text": "x"}}
            body.pop("status") if name == "Condition" else None
            found = [
                await here.ask(f"/{name}", token, "POST", json={**body, "subject": {"reference": f"Patient/{one}"}})
                for one in ("b", "nobody")
            ]
            assert [one.status for one in found] == [422, 422] and found[0].body == found[1].body


async def test_a_revocation_at_the_source_binds_whoever_shares_it(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with world(tmp_path / "other", RULES, make=Simulator) as other:
        upstreams = [{"path": "/fhir"}, {"path": "/consents", "url": other.upstream, "issuers": ["demo"]}]
        settings = {"consent": {**ON["consent"], "source": {"url": other.upstream}}, "upstreams": upstreams}
        async with world(tmp_path, RULES, settings, make=Simulator) as here:
            fill(here)
            other.store.clear()
            other.store.save({"resourceType": "Patient", "id": "a"})
            other.store.save(consent("c1", "a", provision("permit")))
            token = here.token("user/*.rs")
            assert (await here.ask("/Patient/a", token)).status == 200
            clerk = here.token("user/*.cruds", roles=["registrar"], fhirUser="Practitioner/r", aud=f"{here.url}/consents")
            revoked = await here.ask(f"{here.url}/consents/Consent/c1", clerk, "PUT", json=consent("c1", "a", provision("deny")))
            assert revoked.status == 200, revoked.body
            assert (await here.ask("/Patient/a", token)).status == 404


async def test_an_active_consent_that_would_bind_nobody_is_refused(tmp_path: Path) -> None:
    async with ward(tmp_path) as (here, _):
        made = {k: v for k, v in consent("x", "a", provision("deny")).items() if k != "id"}
        for patient in (
            {"identifier": {"value": "1"}},
            {"display": "a"},
            {"reference": "urn:uuid:6a2ff3c1-0000-4000-8000-000000000000"},
        ):
            assert (await here.ask("/Consent", registrar(here), "POST", json={**made, "patient": patient})).status == 422
        drafted = {**made, "patient": {"display": "a"}, "status": "draft"}
        assert (await here.ask("/Consent", registrar(here), "POST", json=drafted)).status == 201


@pytest.mark.parametrize(
    "said",
    [
        {"purpose_of_use": ["TREAT", {"coding": [{"code": "HMARKT"}]}]},
        {"purpose_of_use": ["TREAT", "HMARKT x"]},
        {"purpose_of_use": 7},
        {"purpose_of_use": "TREAT", "extensions": {"hl7-b2b": {"purpose_of_use": ["HMARKT"]}, "ihe_iua": {"purpose_of_use": []}}},
        {"purpose_of_use": "TREAT", "extensions": {"hl7-b2b": ["x"]}},
        {"purpose_of_use": "TREAT", "extensions": ["x"]},
        {"purpose_of_use": "TREAT", "extensions": {"ihe_pcf": "x"}},
        {"purpose_of_use": "TREAT", "ihe_pcf": {"residual": []}},
        {"purpose_of_use": "TREAT", "extensions.ihe_pcf": {"residual": []}},
        {"purpose_of_use": "TREAT", "extensions": {"ihe_pcf.residual": []}},
        {"purpose_of_use": "TREAT", "extensions": {"ihe_pcf": {"residual": None}}},
        {"purpose_of_use": "TREAT", "extensions": {"ihe_pcf": {"residuals": []}}},
        {"purpose_of_use": "TREAT", "extensions": {"ihe_pcf": {"residual": [{"type": "permit", "dataPeriod": "2026"}]}}},
        {"purpose_of_use": "TREAT", "extensions": {"ihe_pcf": {"residual": [{"type": "permit", "data": []}]}}},
    ],
)
async def test_what_a_token_says_and_cannot_be_read_permits_nothing(tmp_path: Path, said: Any) -> None:
    async with ward(tmp_path, consent("c1", "a", provision("permit", purpose="TREAT"))) as (here, token):
        assert (await here.ask("/Patient/a", token)).status == 200
        assert (await here.ask("/Patient/a", here.token("user/*.rs", **said))).status == 404


def test_replicas_have_one_digest_of_what_decides() -> None:
    """Page links are bound to it, and records name it: sets come in another order in every process."""
    script = (
        "from fhirshield.policy.compile import RuleSet; from fhirshield.policy.load import loads;"
        "from fhirshield.policy.consent import ConsentPolicy as P;"
        "text = 'rules: [{id: a, who: {roles: [x]}, allow: {interactions: [read], resources: [Patient]}}]';"
        "print(*(RuleSet(loads(text), P(exempt_roles=frozenset(r))).digest for r in ('abcdefgh', 'abcdefg')))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in "1234"
    }
    assert len(said) == 1 and len(set(said.pop().split())) == 2
