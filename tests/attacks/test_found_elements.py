"""What attackers of denied elements, of pages and of the commands found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fhirshield.audit import chain
from fhirshield.cli import main
from fhirshield.fhir.glance import glance
from fhirshield.ring import load_key
from tests.consent.material import TERM, consent, consent5, provision
from tests.consent.test_command import files as written
from tests.consent.test_enforced import ON, RULES, ids, ward
from tests.labels.test_labels import LIST
from tests.tally import tally
from tests.world import World

NOTE = "urn:elements|note"
NOTES: Any = {**RULES, "consent_elements": [{"id": "notes", "codes": [NOTE, "http://hl7.org/fhir/v3/ActCode|NOTES"], "expressions": ["Observation.note"], "redact": [
    {"resources": ["Observation"], "path": "$.note", "with": "remove"}]}]}  # fmt: skip
DROP = {**ON, "upstreams": [{"hidden_narrative": "drop"}]}
JSON = {"Content-Type": "application/fhir+json"}
DENYING = provision("permit", provision("deny", code=NOTE))


def note(name: str, patient: str, text: str | None = "five-five-five", **more: Any) -> dict[str, Any]:
    found = {"resourceType": "Observation", "id": name, "status": "final", "code": {"coding": [{"system": "urn:c", "code": "b"}]},
             "subject": {"reference": f"Patient/{patient}"}, **({"note": [{"text": text}]} if text else {})}  # fmt: skip
    return found | more


async def told(here: World, token: str, path: str) -> bool:
    answer = await here.ask(path, token)
    assert answer.status == 200, (path, answer.body)
    return b"five-five-five" in answer.body


@pytest.mark.promise
async def test_the_past_hides_what_is_hidden_now(tmp_path: Path) -> None:
    """By whose it was, by when, by labels that came later, and for redactions of rules alike."""
    cases: list[tuple[str, Any, Any, Any, Any]] = [
        ("whose", NOTES, DENYING, note("x", "b"), note("x", "a")),
        ("when", NOTES, provision("permit", provision("deny", code=NOTE, dataPeriod="2020-01-01/2020-12-31")),
         note("x", "a", effectiveDateTime="2021-05-05"), note("x", "a", effectiveDateTime="2020-05-05")),
        ("label", NOTES | {"sensitivity": {"lists": ["list.csv"]}, "rules": [*RULES["rules"], {"id": "all", "who": {"roles": ["*"]}, "clearance": {"confidentiality": "V", "categories": ["*"]}}]},
         provision("permit", provision("deny", code=NOTE, label="PSY")), note("x", "a"),
         note("x", "a", code={"coding": [{"system": "http://snomed.info/sct", "code": "35489007"}]})),
        ("rule", {"rules": [*RULES["rules"], {"id": "red", "who": {"roles": ["*"]}, "redact": [{"resources": ["Observation?status=amended"], "path": "$.note", "with": "remove"}]}]},
         provision("permit"), note("x", "a"), note("x", "a", status="amended")),
    ]  # fmt: skip
    for name, rules, tree, before, now in cases:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "list.csv").write_text(LIST)
        async with ward(folder, consent("c1", "a", tree), consent("c2", "b", provision("permit")), settings=DROP, rules=rules) as (
            here,
            token,
        ):
            here.store.save(before)
            assert await told(here, token, "/Observation/x"), name
            here.store.save(now)
            for path in ("/Observation/x", "/Observation/x/_history", "/Observation/_history", "/_history"):
                assert not await told(here, token, path), (name, path)


async def test_an_edit_of_what_is_contained_does_not_tell_what_it_hides(tmp_path: Path) -> None:
    async with ward(tmp_path, consent("c1", "a", DENYING), consent("c2", "b", provision("permit")), settings=DROP, rules=NOTES) as (
        here,
        token,
    ):
        answers = []
        for text in ("five-five-five", None):
            here.store.save({**note("x", "a", None), "contained": [note("k", "a", text)], "hasMember": [{"reference": "#k"}]})
            view = (await here.ask("/Observation/x", token)).json
            view["contained"][0]["subject"] = {"reference": "Patient/b"}
            answers.append(await here.ask("/Observation/x", token, "PUT", data=json.dumps(view).encode(), headers=JSON))
        assert [answer.status for answer in answers] == [403, 403] and answers[0].body == answers[1].body
    tally("edits of what is contained", tried=2, refused=2)


def test_notes_names_and_narrative_are_no_concepts_in_words() -> None:
    plain = {"resourceType": "Observation", "code": {"coding": [{"code": "x"}]}}
    others: Any = (
        {"note": [{"text": "x"}]},
        {"text": {"status": "empty", "div": "x"}},
        {"name": [{"text": "x"}]},
        {"address": [{"text": "x"}]},
    )
    concepts: Any = ({"code": {"text": "x"}}, {"category": [{"text": "x"}]}, {"valueCodeableConcept": {"coding": [{"display": "x"}]}},
                     {"extension": [{"url": "u", "valueCodeableConcept": {"text": "x"}}]})  # fmt: skip
    assert [glance({**plain, **more}).worded for more in (*others, *concepts)] == [False] * 4 + [True] * 4


NEARLY = ("urn:elements|NOTE", "|note", "urn:elements/|note", "URN:elements|note", "urn:other|note", "urn:elements|no\u200bte")


@pytest.mark.parametrize("code", [*NEARLY, TERM + "v3-ActCode|NOTES", "http://hl7.org/fhir/v3/ActCode|NOTES"])
async def test_a_code_that_is_nearly_the_name_of_elements_hides_them(tmp_path: Path, code: str) -> None:
    system, _, own = code.rpartition("|")
    coding = {"system": system, "code": own} if system else {"code": own}
    deny = {"type": "deny", "code": [{"coding": [coding]}]}
    async with ward(tmp_path, consent("c1", "a", provision("permit", deny)), settings=DROP, rules=NOTES) as (here, token):
        here.store.save(note("x", "a"))
        assert not await told(here, token, "/Observation/x")
        if code in NEARLY:  # it may be a code of content too
            here.store.save(note("y", "a", code={"coding": [coding]}))
            assert (await here.ask("/Observation/y", token)).status == 404


async def test_an_expression_and_the_code_of_the_same_elements_are_one_deny(tmp_path: Path) -> None:
    deny = provision(None, release="R5", expression={"expression": "Observation.note"}, code=[NOTE, "urn:c|other"])
    async with ward(tmp_path, consent5("c1", "a", "permit", deny), settings=DROP, rules=NOTES) as (here, token):
        here.store.save(note("x", "a"))
        assert not await told(here, token, "/Observation/x")


async def test_a_consent_that_is_nested_deeply_denies_its_own_patient_at_most(tmp_path: Path) -> None:
    tree = provision("deny")
    for _ in range(120):
        tree = provision("permit", tree)
    async with ward(tmp_path, consent("c1", "a", tree), consent("c2", "b", provision("permit"))) as (here, token):
        assert "o-b" in await ids(here, token, "/Observation") and "o-a" not in await ids(here, token, "/Observation")


async def test_nobody_lifts_a_deny_by_an_edit_of_what_it_names(tmp_path: Path) -> None:
    """What ``related`` of a Consent leads from is written by those alone who may write Consents."""
    deny = provision("permit", provision("deny", data=[("related", "Task/t")], code=NOTE))
    task = {"resourceType": "Task", "id": "t", "status": "draft", "intent": "order", "for": {"reference": "Patient/a"}}
    rules = {**NOTES, "rules": [{**RULES["rules"][0], "allow": {**RULES["rules"][0]["allow"], "delete_unseen": True}}]}
    async with ward(tmp_path, consent("c1", "a", deny), settings=DROP, rules=rules) as (here, token):
        for one in (note("x", "a"), {**task, "focus": {"reference": "Observation/x"}}):
            here.store.save(one)
        assert not await told(here, token, "/Observation/x")
        for method, body in (("PUT", json.dumps(task).encode()), ("DELETE", None)):
            answer = await here.ask("/Task/t", token, method, data=body, headers=JSON if body else {})
            assert answer.status == 403 and b"`Consent`" in answer.body, answer.body
        assert not await told(here, token, "/Observation/x")


# --- commands -------------------------------------------------------------------------------------------------------------


def test_breakglass_reads_any_journal_and_says_what_was_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = tmp_path / "audit"
    journal.mkdir()
    key, _ = load_key(tmp_path / "journal.key", make=True)
    mac, lines = chain.GENESIS, []
    for text in (b'{"break_glass":{"x":1},"outcome":"break-glass"}', b'["break_glass"]', b'{"break_glass":"a"}', b'{"break_glass": bad',
                 b'{"break_glass":"g","outcome":"break-glass","rule":"r"}'):  # fmt: skip
        mac = chain.link(key, mac, text)
        lines.append(chain.line(text, mac))
    (journal / "journal-00000001.log").write_bytes(b"".join(lines))
    assert main(["breakglass", "list", str(journal)]) == 0, capsys.readouterr().out
    assert [json.loads(line)["grant"] for line in capsys.readouterr().out.splitlines()] == ["g"]
    (tmp_path / "breakglass-reviews.ndjson").write_bytes(b"\xff\xfe x\n")
    (journal / "journal-00000001.log").write_bytes(b"".join(lines[1:]))
    assert main(["breakglass", "list", str(journal)]) == 1
    told = capsys.readouterr().out
    assert "a review was changed" in told and "does not follow" in told


@pytest.mark.parametrize(
    "content",
    [
        '{"resourceType":"Bundle","entry":[null]}',
        '{"resourceType":"Bundle","entry":[1]}',
        "[]",
        "null",
        '{"resourceType":"Bundle","entry":[{"resource":null}]}',
    ],
)
def test_files_of_resources_that_are_none_are_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    (tmp_path / "odd.json").write_text(content)
    assert main(["consent", "check", str(tmp_path / "odd.json")]) == 1
    assert "odd.json" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", "a: [", "one: 1", "one: {rolls: [x]}", "\udcff", ""])
def test_files_of_callers_that_are_none_are_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    written(tmp_path, before=consent("c", "p", None))
    (tmp_path / "callers.yaml").write_bytes(content.encode(errors="surrogateescape"))
    command = ["consent", "simulate", *[str(tmp_path / "before.json"), "--after"], *[str(tmp_path / "before.json"), "--resources"], str(tmp_path / "before.json"),
               "--rules", str(tmp_path / "rules.yaml"), "--principals", str(tmp_path / "callers.yaml")]  # fmt: skip
    assert main(command) == 1
    assert "callers.yaml" in capsys.readouterr().err
    assert main([*command, "--at", "yesterday"]) == 1
    assert "yesterday" in capsys.readouterr().err


def test_what_is_stored_cannot_forge_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, odd=consent("x\x1b[2J\nfhirshield: 0 faults", "p", provision("permit"), policy=[{"uri": "urn:\x1b\nforged"}]))
    main(["consent", "check", str(tmp_path / "odd.json"), "--settings", str(tmp_path / "fhirshield.yaml")])
    told = capsys.readouterr().out
    assert "\x1b" not in told and not any(line.startswith(("fhirshield:", "forged")) for line in told.splitlines())


# --- of the second attacker -----------------------------------------------------------------------------------------------


async def test_the_dates_of_everything_are_not_asked_where_a_consent_may_hide_them(tmp_path: Path) -> None:
    dates = {**RULES, "consent_elements": [{"id": "dates", "codes": [NOTE], "redact": [{"resources": ["Observation"], "path": "$.effectiveDateTime", "with": "remove"}]}]}  # fmt: skip
    async with ward(tmp_path, consent("c1", "a", DENYING), settings=DROP, rules=dates) as (here, token):
        for query in ("start=2020-01-01", "end=2020-01-01", "_since=2020-01-01T00:00:00Z"):
            assert (await here.ask(f"/Patient/a/$everything?{query}", token)).status == 403, query


def bundle(*held: dict[str, Any], kind: str = "Bundle") -> dict[str, Any]:
    if kind == "Bundle":
        return {"resourceType": "Bundle", "id": "x", "type": "collection", "entry": [{"resource": one} for one in held]}
    return {"resourceType": "Parameters", "id": "x", "parameter": [{"name": "n", "resource": one} for one in held]}


@pytest.mark.parametrize("kind", ["Bundle", "Parameters"])
@pytest.mark.parametrize(
    "now",
    [
        {"meta": {"security": [{"system": "urn:l", "code": "VIP"}]}},
        {"code": {"coding": [{"system": "urn:c", "code": "bad"}]}},
    ],
    ids=["label", "code"],
)
async def test_what_is_withheld_within_a_bundle_now_is_withheld_of_what_it_was(
    tmp_path: Path, kind: str, now: dict[str, Any]
) -> None:
    deny = {"id": "no", "who": {"roles": ["*"]}, "deny": {"interactions": ["*"], "resources": ["Observation?code=urn:c|bad", "Observation?_security=urn:l|VIP"]}}  # fmt: skip
    async with ward(tmp_path, consent("c1", "a", provision("permit")), settings=DROP, rules={"rules": [*RULES["rules"], deny]}) as (
        here,
        token,
    ):
        kept = note("kept", "a", None)
        here.store.save(bundle(note("n", "a"), kept, kind=kind))
        assert await told(here, token, f"/{kind}/x")
        here.store.save(bundle(note("n", "a", **now), kept, kind=kind))
        for path in (f"/{kind}/x", f"/{kind}/x/_history", f"/{kind}/_history"):
            answer = await here.ask(path, token)
            assert answer.status == 200 and b"kept" in answer.body and b"five-five-five" not in answer.body, path


async def test_who_may_only_write_keeps_what_a_consent_hides_and_does_not_learn_what_is_there(tmp_path: Path) -> None:
    writing = {"id": "w", "who": {"roles": ["feed"]}, "allow": {"interactions": ["create", "update", "delete"], "resources": ["Observation"], "delete_unseen": True}}  # fmt: skip
    rules = {**NOTES, "rules": [*NOTES["rules"][1:], writing]}
    async with ward(tmp_path, consent("c1", "a", DENYING), consent("c2", "b", provision("deny")), settings=DROP, rules=rules) as (
        here,
        _,
    ):
        feed = here.token("user/*.cud", roles=["feed"], purpose_of_use="TREAT")
        here.store.save(note("x", "a"))
        await here.ask(
            "/Observation/x", feed, "PUT", data=json.dumps(note("x", "a", None, status="amended")).encode(), headers=JSON
        )
        assert "five-five-five" in here.store.serve("GET", ["Observation", "x"], [], "", {})[1]
        for method in ("PUT", "DELETE"):
            answers = []
            for name in ("o-b", "nobody"):
                body = json.dumps(note(name, "b", None)).encode() if method == "PUT" else None
                answers.append(await here.ask(f"/Observation/{name}", feed, method, data=body, headers=JSON if body else {}))
            assert [answer.status for answer in answers] == [404, 404] and answers[0].body == answers[1].body, method


async def test_a_linked_patient_is_deleted_by_those_alone_who_may_write_links(tmp_path: Path) -> None:
    rules = {"rules": [{**RULES["rules"][0], "allow": {**RULES["rules"][0]["allow"], "delete_unseen": True}}]}
    async with ward(
        tmp_path,
        consent("c1", "a", provision("permit")),
        consent("c2", "b", provision("permit", provision("deny", cls="Observation"))),
        settings=DROP,
        rules=rules,
    ) as (here, token):
        for one, other in (("a", "b"), ("b", "a")):
            here.store.save(
                {"resourceType": "Patient", "id": one, "link": [{"other": {"reference": f"Patient/{other}"}, "type": "seealso"}]}
            )
        assert (await here.ask("/Observation/o-a", token)).status == 404
        answer = await here.ask("/Patient/b", token, "DELETE")
        assert answer.status == 403 and b"Patient.link" in answer.body
        assert (await here.ask("/Patient/c", token, "DELETE")).status in {204, 404}


async def test_an_active_consent_of_a_patient_elsewhere_is_not_written(tmp_path: Path) -> None:
    rules = {"rules": [{**RULES["rules"][0], "allow": {**RULES["rules"][0]["allow"], "policy_inputs": ["Consent"]}}]}
    async with ward(tmp_path, settings={"consent": {**ON["consent"], "default": "permit"}}, rules=rules) as (here, token):
        for reference, status in (
            ("http://elsewhere.example/fhir/Patient/a", 422),
            ("Patient/a/_history/1", 422),
            (f"{here.url}/fhir/Patient/a", 201),
        ):
            made = {**consent("c", "a", provision("deny")), "patient": {"reference": reference}}
            made.pop("id")
            assert (await here.ask("/Consent", token, "POST", data=json.dumps(made).encode(), headers=JSON)).status == status, (
                reference
            )


def test_explain_goes_by_the_time_that_it_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(
        tmp_path,
        consent=consent("c", "p", provision("permit", period="2020-01-01/2020-12-31")),
        patient={"resourceType": "Patient", "id": "p"},
    )
    (tmp_path / "rules.yaml").write_text(
        'rules: [{id: a, who: {roles: ["*"], authentication: {acr: [x], max_age: 4h}}, allow: {interactions: [read], resources: [Patient]}}]'
    )
    for age, at, status in (
        ("1h", "2020-05-05T10:00", "200"),
        ("5h", "2020-05-05T10:00", "401"),
        ("1h", "2031-05-05T10:00", "404"),
    ):
        (tmp_path / "who.yaml").write_text(f"acr: x\nauth_age: {age}\n")
        main(["explain", str(tmp_path / "fhirshield.yaml"), "--principal", str(tmp_path / "who.yaml"), "--request", "GET /Patient/p", "--at", at,
              "--resource", str(tmp_path / "patient.json"), str(tmp_path / "consent.json")])  # fmt: skip
        assert f"{status}: " in capsys.readouterr().out, (age, at)
