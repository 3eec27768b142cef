"""Consents as a decision table: every attribute, nesting and conflict, R4 and R5 twins with the same answer."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fhirshield.authorize.about import About
from fhirshield.authorize.asking import Asking
from fhirshield.authorize.consent import decide
from fhirshield.fhir.consent import Consent, parse
from fhirshield.fhir.glance import Glance
from fhirshield.fhir.reference import literal
from fhirshield.model import Facts
from fhirshield.policy.consent import ConsentPolicy, Decision
from fhirshield.policy.sensitivity import compiled
from fhirshield.rehearsal import principal_from
from tests.consent.material import TERM, consent, consent5, provision, scope

POLICY = ConsentPolicy(policies=(("urn:policy:base", "ignore"), ("urn:policy:permit", "permit"), ("urn:policy:deny", "deny")))
LISTS = compiled([(kind, "urn:kinds", "code", kind) for kind in ("PSY", "HIV", "ETH", "SUD", "OPIOIDUD")], {}, {}, "N")
OBSERVATION: dict[str, Any] = {
    "resourceType": "Observation", "id": "o", "status": "final", "subject": {"reference": "Patient/p"},
    "code": {"coding": [{"system": "urn:c", "code": "1"}]}, "effectiveDateTime": "2025-05-05",
}  # fmt: skip


def cases() -> list[Any]:
    found = []
    for table in yaml.safe_load((Path(__file__).parent / "tables.yaml").read_text()):
        for number, case in enumerate(table.get("cases", [table])):
            for place, row in enumerate(case["rows"]):
                found.append(pytest.param(case, row, id=f"{table['name']} {number}.{place}"))
    return found


def r4(case: dict[str, Any]) -> dict[str, Any]:
    return consent("x", "p", _nested(case["base"], case, "R4"))


def r5(case: dict[str, Any]) -> dict[str, Any]:
    inner = [_nested(None, one, "R5") for one in case.get("but", ())]
    return consent5("x", "p", case["base"], *inner)


def _nested(kind: str | None, said: dict[str, Any], release: str) -> dict[str, Any]:
    other = {"permit": "deny", "deny": "permit", None: None}[kind]
    attributes = {name: value for name, value in said.items() if name not in {"but", "base", "rows", "name"}}
    if "data" in attributes:
        attributes["data"] = [tuple(one) for one in attributes["data"]]
    return provision(kind, *(_nested(other, one, release) for one in said.get("but", ())), release=release, **attributes)


def asked(row: dict[str, Any]) -> tuple[Asking, About]:
    user = row.get("user", "Practitioner/1")
    principal = principal_from({"roles": row.get("roles", []), "purposes": row.get("purposes", ["TREAT"]), "fhir_user": user})
    principal = replace(principal, organizations=frozenset(row.get("org", ())), identifiers=frozenset(row.get("ids", ())))
    facts = Facts()
    for member in row.get("members", ()):
        facts.resources[_name(f"{member['resourceType']}/{member['id']}")] = member
    if "own" in row:
        facts.roles = tuple({"resourceType": "PractitionerRole", **one} for one in row["own"])
    for name, leads in row.get("looks", {}).items():
        facts.glances[_name(name)] = Glance(frozenset(), frozenset(leads), frozenset(), worded=False)
    now = dt.datetime.fromisoformat(row.get("now", "2026-02-02T12:00:00+00:00").replace("Z", "+00:00"))
    asking = Asking(principal, now, (), facts, row.get("action", "read"), frozenset(map(_plain, principal.purposes)))
    over = row.get("about", {})
    start = (
        OBSERVATION if over.get("resourceType", "Observation") == "Observation" else {"subject": OBSERVATION["subject"], "id": "o"}
    )
    resource = {name: value for name, value in (start | over).items() if value is not None}
    if row.get("labels"):
        resource["method"] = {"coding": [{"system": "urn:kinds", "code": kind} for kind in row["labels"]]}
    return asking, About(resource, LISTS if row.get("known", True) else None, (), facts, now.date())


def _plain(text: str) -> str:
    from fhirshield.fhir.v3 import purpose_code

    return purpose_code(text)


def _name(text: str) -> Any:
    found = literal(text)
    assert found is not None
    return found


def shown(consents: list[dict[str, Any]], row: dict[str, Any], policy: ConsentPolicy = POLICY) -> bool:
    trees: list[Consent] = [parse(one, ()) for one in consents]
    return decide(trees, policy, *asked(row)).decision is Decision.PERMIT


@pytest.mark.promise
@pytest.mark.parametrize(("case", "row"), cases())
def test_consents_decide_as_the_table_says_in_both_releases(case: Any, row: Any) -> None:
    assert shown([r4(case)], row) is row["shown"], "R4"
    assert shown([r5(case)], row) is row["shown"], "R5"


# --- what only R4, or only several Consents, can say -------------------------------------------------------------------------

TREAT, PAY = {"purposes": ["TREAT"]}, {"purposes": ["HPAYMT"]}
PERMIT_ALL, DENY_ALL = provision("permit"), provision("deny")


@pytest.mark.parametrize(
    ("root", "row", "wanted"),
    [
        (provision("permit", purpose="TREAT"), TREAT, True),
        (provision("permit", purpose="TREAT"), PAY, False),
        (provision("permit", provision("deny", label="HIV"), purpose="TREAT"), TREAT | {"labels": ["HIV"]}, False),
        # IHE PCF advanced: normal data for all, restricted data for one, who has the purposes of the whole
        (provision("permit", provision("permit", actor="Practitioner/1", label="R"), label="N", purpose="TREAT"), TREAT, True),
        (provision("permit", provision("permit", actor="Practitioner/1", label="R"), label="N", purpose="TREAT"), TREAT | {"labels": ["PSY"]}, True),
        (provision("permit", provision("permit", actor="Practitioner/2", label="R"), label="N", purpose="TREAT"), TREAT | {"labels": ["PSY"]}, False),
        (provision("permit", provision("permit", actor="Practitioner/1", label="R"), label="N", purpose="TREAT"), PAY | {"labels": ["PSY"]}, False),
        (provision("permit", provision("permit", label="PSY"), label="N", purpose="TREAT"), TREAT | {"labels": ["PSY"]}, True),
        (provision("permit", provision("permit", label="PSY"), label="N", purpose="TREAT"), TREAT | {"labels": ["HIV"]}, False),
        # a deny among the exceptions of the whole holds for what is permitted beside it, too
        (provision("permit", provision("permit", label="R"), provision("deny", label="PSY"), label="N"), TREAT | {"labels": ["PSY"]}, False),
        (provision("permit", provision("permit", label="R"), provision("deny", label="PSY"), label="N"), TREAT | {"labels": ["HIV"]}, True),
        # IHE PCF: dissent but for declared emergencies
        (provision("deny", provision("permit", purpose="BTG")), {"purposes": ["BTG"]}, True),
        (provision("deny", provision("permit", purpose="BTG")), TREAT, False),
        (provision(None, provision("permit", purpose="TREAT")), TREAT, True),
        (provision(None, provision("permit", purpose="TREAT")), PAY, False),
        (provision("permit", period="2020-01-01/2025-12-31"), TREAT, False),
        (provision("deny", provision("deny", purpose="TREAT"), purpose="HMARKT"), TREAT, False),
        (provision("bogus"), TREAT, False),
        (provision("permit", expression={"language": "text/cql"}), TREAT, False),
    ],
)  # fmt: skip
def test_what_r4_says(root: Any, row: Any, wanted: bool) -> None:
    from fhirshield.fhir.consent import Unsupported

    try:
        assert shown([consent("x", "p", root)], row) is wanted
    except Unsupported:
        assert wanted is False


@pytest.mark.parametrize(
    ("over", "wanted"),
    [
        ({"policy": [{"uri": "urn:policy:permit"}]}, True),
        ({"policy": [{"uri": "urn:policy:deny"}]}, False),
        ({"policy": [{"uri": "urn:policy:permit"}, {"uri": "urn:policy:deny"}]}, False),
        ({"policy": [{"uri": "urn:policy:unheard-of"}], "provision": PERMIT_ALL}, False),
        ({"policy": None, "policyRule": {"coding": [{"system": "urn:policies", "code": "urn:policy:permit"}]}}, True),
        ({"policy": None, "policyRule": {"text": "as we agreed"}, "provision": PERMIT_ALL}, False),
        ({"policy": [{"uri": "https://profiles.ihe.net/ITI/PCF/Policy-all-normal"}]}, True),
        ({"policy": [{"uri": "https://profiles.ihe.net/ITI/PCF/Policy-basic-normal"}]}, True),
        ({"policy": [{"uri": "https://profiles.ihe.net/ITI/PCF/Policy-deny"}]}, False),
        ({"policy": [{"uri": "https://profiles.ihe.net/ITI/PCF/Policy-break-glass-only"}]}, False),
        ({"policy": [{"uri": "urn:policy:permit"}], "provision": provision("deny", purpose="TREAT")}, False),
        ({"policy": [{"uri": "urn:policy:deny"}], "provision": provision("permit", purpose="TREAT")}, True),
        ({}, False),
        ({"provision": PERMIT_ALL, "status": "inactive"}, False),
        ({"provision": PERMIT_ALL, "status": "proposed"}, False),
        ({"provision": PERMIT_ALL, "scope": scope("adr")}, False),
        ({"provision": PERMIT_ALL, "scope": scope("research")}, False),
        ({"provision": PERMIT_ALL, "category": [{"coding": [{"system": TERM + "consentcategorycodes", "code": "dnr"}]}]}, False),
    ],
)  # fmt: skip
def test_status_scope_category_and_policies(over: Any, wanted: bool) -> None:
    assert shown([consent("x", "p", None, **over)], TREAT) is wanted


def test_a_research_consent_is_for_research() -> None:
    made = consent("x", "p", PERMIT_ALL, scope=scope("research"))
    assert shown([made], {"purposes": ["CLINTRCH"]})
    assert not shown([made], {"purposes": []})
    assert not shown([made], {"purposes": ["HRESCH", "TREAT"]})


@pytest.mark.parametrize(
    ("consents", "strict", "recent"),
    [
        ([], False, False),
        ([("2026-01-01", PERMIT_ALL)], True, True),
        ([("2026-01-01", DENY_ALL), ("2026-02-01", PERMIT_ALL)], False, True),
        ([("2026-01-01", PERMIT_ALL), ("2026-02-01", DENY_ALL)], False, False),
        ([("2026-01-01", DENY_ALL), ("2026-02-01", provision("permit", purpose="HMARKT"))], False, False),
        ([("2026-01-01", PERMIT_ALL), ("2026-01-01", DENY_ALL)], False, False),
        ([(None, DENY_ALL), ("2026-02-01", PERMIT_ALL)], False, False),
        ([(None, PERMIT_ALL), ("2026-02-01", DENY_ALL)], False, False),
        ([(None, PERMIT_ALL), ("2026-02-01", provision("deny", purpose="HMARKT"))], True, True),
    ],
)  # fmt: skip
def test_of_several_consents(consents: Any, strict: bool, recent: bool) -> None:
    made = [consent(f"c{place}", "p", root, dateTime=when) for place, (when, root) in enumerate(consents)]
    for some in (made, made[::-1]):
        assert shown(some, TREAT) is strict
        assert shown(some, TREAT, replace(POLICY, recent_wins=True)) is recent


@pytest.mark.parametrize(
    ("implicit", "row", "wanted"),
    [
        ("deny", TREAT, False), ("permit", TREAT, True), ("permit", PAY, True), ("treatment", TREAT, True), ("treatment", PAY, False),
        ("treatment", {"purposes": ["TREAT", "HMARKT"]}, False), ("treatment", {"purposes": []}, False), ("break-glass", TREAT, False),
        ("break-glass", {"purposes": ["BTG"]}, False),
    ],
)  # fmt: skip
def test_the_four_implicit_policies_hold_where_no_consent_applies(implicit: str, row: Any, wanted: bool) -> None:
    policy = replace(POLICY, implicit=implicit)
    assert shown([], row, policy) is wanted
    assert shown([consent("x", "p", DENY_ALL)], row, policy) is False
    assert shown([consent("x", "p", PERMIT_ALL)], row, policy) is True
