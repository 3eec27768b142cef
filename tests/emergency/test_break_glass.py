"""Break-glass: what it replaces and what it never does, for one patient and a while, counted, said aloud, reviewed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fhirshield.cli import main
from fhirshield.errors import OperatorError
from fhirshield.policy.load import loads
from tests.consent.material import consent, provision
from tests.labels.test_labels import LIST, condition
from tests.simulators.server import Simulator
from tests.state.test_state import redis_server
from tests.world import World, world

READING = ["read", "vread", "search", "history"]
WHY = {"Break-Glass-Reason": "unconscious in the emergency room"}
RULES: dict[str, Any] = {
    "sensitivity": {"lists": ["list.csv"]},
    "relationships": {
        "treating": {"patients_of": ["Encounter?participant={fhirUser}&status=in-progress"]},
        "own": {"patients_of": ["Encounter?participant={fhirUser}&class=self"]},
        "family": {"patients_of": ["Encounter?participant={fhirUser}&class=family"]},
    },
    "rules": [
        {"id": "doctor", "who": {"roles": ["doctor"]}, "allow": {"interactions": [*READING, "create"], "resources": ["Patient", "Observation", "Condition", "Encounter"], "related": "treating"}},
        {"id": "all", "who": {"roles": ["pharmacist"]}, "allow": {"interactions": READING, "resources": ["*"]}},
        {"id": "vip", "who": {"roles": ["*"]}, "deny": {"interactions": ["*"], "resources": ["*?_security=urn:l|VIP"]}},
        {"id": "own", "who": {"roles": ["doctor"]}, "deny": {"interactions": ["*"], "resources": ["*"], "related": "own", "hard": True}},
        {"id": "family", "who": {"roles": ["doctor"]}, "deny": {"interactions": ["*"], "resources": ["*"], "related": "family"}},
        {"id": "emergency", "who": {"roles": ["doctor"], "authentication": {"amr": ["otp"]}},
         "break_glass": {"resources": ["Patient", "Observation", "Condition"], "replaces": ["relationship", "consent", "clearance"], "time": "1s", "limit": 3, "per": "1h"}},
        {"id": "half", "who": {"roles": ["pharmacist"]},
         "break_glass": {"resources": ["*"], "replaces": ["consent"], "time": "1h", "limit": 100, "per": "1h"}},
    ],
}  # fmt: skip
ME = {"reference": "Practitioner/me"}


@contextlib.asynccontextmanager
async def room(folder: Path, **settings: Any) -> AsyncIterator[World]:
    (folder / "list.csv").write_text(LIST)
    plain = {"consent": {"policies": {"urn:policy:base": "ignore"}}} | settings
    async with world(folder, RULES, plain, make=Simulator) as here:
        here.store.clear()
        for name in ("a", "b", "self", "kin"):
            subject = {"reference": f"Patient/{name}"}
            here.store.save({"resourceType": "Patient", "id": name})
            here.store.save(
                {"resourceType": "Observation", "id": f"o-{name}", "status": "final", "code": {"text": "x"}, "subject": subject}
            )
            here.store.save(condition(f"hiv-{name}", "B20", subject=subject))
            here.store.save(
                condition(f"vip-{name}", "6142004", subject=subject, meta={"security": [{"system": "urn:l", "code": "VIP"}]})
            )
        for kind in ("self", "kin"):
            here.store.save({"resourceType": "Encounter", "id": kind, "status": "finished", "class": {"code": {"self": "self", "kin": "family"}[kind]},
                             "subject": {"reference": f"Patient/{kind}"}, "participant": [{"individual": ME}]})  # fmt: skip
        here.store.save(consent("deny", "b", provision("deny")))
        yield here


@contextlib.asynccontextmanager
async def two_rooms(folder: Path) -> AsyncIterator[tuple[World, World]]:
    """Two shields with one Redis and one key ring."""
    with redis_server(folder) as url:
        (folder / "ring").write_bytes(b"r" * 32)
        places = [folder / name for name in ("one", "two")]
        for place in places:
            place.mkdir()
        shared = {"state": url, "keys": {"file": "../ring"}}
        async with room(places[0], **shared) as one, room(places[1], **shared) as two:
            yield one, two


def doctor(here: World, **claims: Any) -> str:
    plain = {"roles": ["doctor"], "fhirUser": "Practitioner/me", "amr": ["pwd", "otp"], "purpose_of_use": "TREAT"}
    return here.token(claims.pop("scope", "user/*.cruds"), **(plain | claims))


async def status(here: World, path: str, token: str, headers: Any = None, **how: Any) -> int:
    return (await here.ask(path, token, headers=headers or {}, **how)).status


@pytest.mark.promise
async def test_it_replaces_what_the_rule_names_for_one_patient_and_a_while(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        token = doctor(here)
        for path in ("/Patient/a", "/Observation/o-b", "/Condition/hiv-b"):
            assert await status(here, path, token) == 404
        for path in ("/Patient/a", "/Patient/b", "/Observation/o-b", "/Condition/hiv-b", "/Patient/b/_history"):
            assert await status(here, path, token, WHY) == 200, path
        found = await here.ask("/Observation?patient=b", token, headers=WHY)
        assert [entry["resource"]["id"] for entry in found.json["entry"]] == ["o-b"]
        assert await status(here, "/Observation/o-b", token) == 404  # without the reason, as before
        assert await status(here, "/Patient/nobody", token, WHY) == 404
        for path in ("/Observation", "/Observation?patient=a,b", "/Patient", "/Observation?code=x"):
            assert await status(here, path, token, WHY) == 403, path


@pytest.mark.promise
async def test_it_never_replaces_anything_else(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        token = doctor(here)
        assert await status(here, "/Condition/vip-b", token, WHY) == 404  # a deny in no relationship
        assert await status(here, "/Patient/self", token, WHY) == 404  # one in a relationship that is hard
        assert await status(here, "/Patient/kin", token, WHY) == 200  # one that is not
        assert await status(here, "/Patient/b", doctor(here, scope="user/Observation.rs"), WHY) == 403  # scope
        assert await status(here, "/Encounter/self", token, WHY) == 403  # a type that the rule does not name
        body = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}, "subject": {"reference": "Patient/b"}}
        assert await status(here, "/Observation", token, WHY, method="POST", json=body) == 403  # reading alone
        assert await status(here, "/Patient/b", doctor(here, roles=["nurse"]), WHY) == 403  # role
        assert await status(here, "/Patient/b", doctor(here, amr=["pwd"]), WHY) == 401  # second factor
        assert await status(here, "/Patient/b", doctor(here, purpose_of_use="BTG")) == 404  # a purpose alone
        for reason in ("", "urgent", "x" * 301, "ünconscious in the room"):
            assert (
                await status(here, "/Patient/b", token, {"Break-Glass-Reason": reason.encode("latin-1").decode("latin-1")}) == 400
            ), reason
        pharmacist = here.token("user/*.rs", roles=["pharmacist"], fhirUser="Practitioner/ph", purpose_of_use="TREAT")
        assert await status(here, "/Patient/b", pharmacist, WHY) == 200
        assert await status(here, "/Condition/hiv-b", pharmacist, WHY) == 404  # clearance is not what this rule replaces


async def test_a_claim_with_a_reason_opens_it_too(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        token = doctor(here, break_glass_reason="unconscious in the emergency room")
        assert await status(here, "/Patient/b", token) == 200
        assert await status(here, "/Encounter/self", token) == 404  # what it does not cover is as without it


@pytest.mark.promise
async def test_grants_expire_and_are_counted(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        token = doctor(here)
        for _ in range(5):
            assert await status(here, "/Patient/b", token, WHY) == 200  # one grant
        assert await status(here, "/Patient/a", token, WHY) == 200
        assert await status(here, "/Patient/b", token, {"Break-Glass-Reason": "another reason for it"}) == 200
        for path in ("/Patient/kin", "/Patient/nobody"):
            refused = await here.ask(path, token, headers=WHY)
            assert refused.status == 403 and b"3 times" in refused.body
        assert await status(here, "/Patient/b", token, WHY) == 200
        assert await status(here, "/Patient/kin", doctor(here, sub="colleague"), WHY) == 200
        await asyncio.sleep(1.1)
        assert await status(here, "/Patient/b", token, WHY) == 403  # over, and the limit is reached


@pytest.mark.promise
async def test_record_alert_and_review_show_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    async with room(tmp_path) as here:
        token = doctor(here)
        with caplog.at_level(logging.CRITICAL, "fhirshield"):
            await here.ask("/Patient/b", token, headers=WHY)
        assert "break-glass: grant" in caplog.text and "unconscious" not in caplog.text
        await here.ask("/Observation/o-b", token, headers=WHY)
        opened, first, second = [row for row in here.records() if "break_glass" in row]
        assert opened["outcome"] == "break-glass" and opened["patients"] == ["b"] and opened["stated"] == WHY["Break-Glass-Reason"]
        assert first["decision"] == opened["decision"] and {first["break_glass"], second["break_glass"]} == {opened["break_glass"]}
        assert b"fhirshield_broken_glasses_total 1.0" in here.parts.metrics.text()
    journal, grant = str(tmp_path / "audit"), opened["break_glass"]
    assert main(["breakglass", "list", journal]) == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (row["grant"], row["patients"], len(row["seen"]), row["reviews"]) == (grant, ["b"], 2, [])
    assert main(["breakglass", "review", journal, grant, "--by", "officer", "--verdict", "appropriate", "--note", "ok"]) == 0
    assert main(["breakglass", "review", journal, "0000", "--by", "officer", "--verdict", "appropriate"]) == 1
    capsys.readouterr()
    assert main(["breakglass", "list", journal, "--open"]) == 0 and capsys.readouterr().out == ""
    assert main(["breakglass", "list", journal]) == 0
    assert json.loads(capsys.readouterr().out)["reviews"][0]["verdict"] == "appropriate"
    file = tmp_path / "breakglass-reviews.ndjson"
    file.write_text(file.read_text().replace("appropriate", "inappropriate"))
    assert main(["breakglass", "list", journal]) == 1


@pytest.mark.promise
async def test_it_works_while_the_source_of_consents_is_away(tmp_path: Path) -> None:
    async with room(tmp_path, consent={"source": {"url": "http://127.0.0.1:9/fhir"}}) as here:
        token = doctor(here)
        assert await status(here, "/Patient/b", token) == 503
        assert await status(here, "/Patient/b", token, WHY) == 200
        assert await status(here, "/Observation?patient=b", token, WHY) == 200


async def test_with_the_shared_state_away_it_is_counted_here(tmp_path: Path) -> None:
    async with room(tmp_path, state="redis://127.0.0.1:9/0", keys={"file": "ring"}) as here:
        token = doctor(here)
        assert await status(here, "/Patient/b", token) == 503
        found = [await status(here, f"/Patient/{name}", token, WHY) for name in ("b", "a", "kin", "kin", "b", "nobody")]
        assert found == [200, 200, 200, 200, 200, 403]


async def test_a_restart_without_the_shared_state_lifts_no_limit(tmp_path: Path) -> None:
    away: dict[str, Any] = {"state": "redis://127.0.0.1:9/0", "keys": {"file": "ring"}}
    async with room(tmp_path, **away) as here:
        found = [await status(here, f"/Patient/{name}", doctor(here), WHY) for name in ("b", "a", "kin")]
        first = {record["break_glass"] for record in here.records() if record.get("outcome") == "break-glass"}
    async with room(tmp_path, **away) as here:
        found += [await status(here, f"/Patient/{name}", doctor(here), WHY) for name in ("b", "nobody", "self", "kin")]
        found.append(await status(here, "/Patient/a", doctor(here), {"Break-Glass-Reason": "another emergency"}))
        again = {record["break_glass"] for record in here.records() if "break_glass" in record}
    assert found == [200, 200, 200, 200, 403, 403, 200, 403]
    assert again == first and len(first) == 3


async def test_replicas_know_each_others_grants(tmp_path: Path) -> None:
    async with two_rooms(tmp_path) as (one, two):
        for here, names in ((one, ("a", "b")), (two, ("a", "kin"))):
            for name in names:
                assert await status(here, f"/Patient/{name}", doctor(here), WHY) == 200
        assert [await status(here, "/Patient/nobody", doctor(here), WHY) for here in (one, two)] == [403, 403]


# --- authentication, and what could lift a refusal -----------------------------------------------------------------------


async def test_stronger_authentication_is_asked_for(tmp_path: Path) -> None:
    rules = {"rules": [{"id": "strong", "who": {"roles": ["*"], "authentication": {"acr": ["urn:mfa", "urn:phr"], "max_age": "15m"}},
                        "allow": {"interactions": ["read"], "resources": ["Patient"]}}]}  # fmt: skip
    async with world(tmp_path, rules) as here:
        now = here.now()
        weak = await here.ask("/Patient/pat-1", here.token(acr="urn:pwd", auth_time=now))
        assert weak.status == 401
        assert weak.headers["www-authenticate"].startswith('Bearer error="insufficient_user_authentication"')
        assert (
            'acr_values="urn:mfa urn:phr"' in weak.headers["www-authenticate"]
            and 'max_age="900"' in weak.headers["www-authenticate"]
        )
        assert (await here.ask("/Patient/pat-1", here.token(acr="urn:mfa", auth_time=now - 3600))).status == 401
        assert (await here.ask("/Patient/pat-1", here.token(acr="urn:mfa"))).status == 401
        assert (await here.ask("/Patient/pat-1", here.token(acr="urn:mfa", auth_time=now - 60))).status == 200
        assert (await here.ask("/Observation", here.token(acr="urn:pwd"))).status == 403  # nothing would open that


def test_a_deny_holds_however_weakly_a_caller_authenticated() -> None:
    with pytest.raises(OperatorError, match="however weakly"):
        loads("rules: [{id: a, who: {roles: [x], authentication: {acr: [m]}}, deny: {interactions: ['*'], resources: ['*']}}]")


async def test_conditions_know_address_country_organization_and_login(tmp_path: Path) -> None:
    cases: list[tuple[str, dict[str, Any], int]] = [
        ("env.address == '127.0.0.1'", {}, 200),
        ("env.address.startsWith('10.')", {}, 403),
        ("principal.country == env.country", {}, 200),
        ("principal.country == env.country", {"where": "FR"}, 403),
        (
            "'https://o.example' in principal.organizations",
            {"extensions": {"hl7-b2b": {"organization_id": "https://o.example"}}},
            200,
        ),
        ("'https://o.example' in principal.organizations", {}, 403),
        ("'otp' in principal.amr && principal.acr == 'urn:mfa'", {"amr": ["otp"], "acr": "urn:mfa"}, 200),
        ("env.auth_age < 600", {"auth_time": 1}, 403),
        ("env.auth_age < 600", {}, 403),
    ]
    for number, (text, claims, wanted) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        rules = {
            "rules": [{"id": "a", "who": {"roles": ["*"], "when": text}, "allow": {"interactions": ["read"], "resources": ["*"]}}]
        }
        settings = {"issuers": {"demo": {"country": "DE", "claims": {"country": "where"}}}, "upstreams": [{"country": "DE"}]}
        async with world(folder, rules, settings) as here:
            assert (await here.ask("/Patient/pat-1", here.token(**claims))).status == wanted, text


@pytest.mark.promise
async def test_what_could_lift_a_refusal_is_told_by_what_was_asked_alone(tmp_path: Path) -> None:
    async with room(tmp_path) as here:

        def codes(reply: Any) -> list[str]:
            issues = reply.json["issue"] if reply.status >= 400 else reply.json["entry"][0]["resource"]["issue"]
            return [issue["details"]["coding"][0]["code"] for issue in issues if "details" in issue]

        token, weak = doctor(here), doctor(here, amr=["pwd"])
        answers = [
            await here.ask(path, token)
            for path in ("/Patient/b", "/Patient/nobody", "/Observation?patient=b", "/Observation?patient=nobody")
        ]
        assert [codes(one) for one in answers] == [["consent", "emergency-declaration"]] * 4
        assert answers[0].body == answers[1].body
        assert codes(await here.ask("/Patient/b", weak)) == ["consent", "stronger-authentication"]
        assert codes(await here.ask("/Practitioner/x", token)) == []
        assert codes(await here.ask("/Encounter/self", token)) == ["consent"]


async def test_an_ethics_approval_that_a_rule_waits_for_is_told(tmp_path: Path) -> None:
    rule = {"id": "study", "who": {"roles": ["researcher"], "when": "principal.approval == 'yes'"}, "lift": "ethics-approval",
            "allow": {"interactions": ["read"], "resources": ["Patient"]}}  # fmt: skip
    async with world(tmp_path, {"rules": [rule]}, {"issuers": {"demo": {"claims": {"approval": "approval"}}}}) as here:
        refused = await here.ask("/Patient/pat-1", here.token(roles=["researcher"]))
        assert refused.status == 403 and refused.json["issue"][1]["details"]["coding"][0]["code"] == "ethics-approval"
        assert len((await here.ask("/Patient/pat-1", here.token())).json["issue"]) == 1
        assert (await here.ask("/Patient/pat-1", here.token(roles=["researcher"], approval="yes"))).status == 200
