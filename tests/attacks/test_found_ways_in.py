"""What a fresh attacker found in the newer ways in, each as the request that showed it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.simulators.server import Simulator
from tests.test_attachments import PDF, binary, document
from tests.test_batch import OBSERVATION, batch, entry
from tests.test_operations import RULES as OPERATIONS
from tests.test_operations import STORED, asked
from tests.test_transactions import transact
from tests.test_writes import FHIR
from tests.world import OPEN, World, world

VIP = {"security": [{"code": "VIP"}]}
OPAQUE: Any = {
    "rules": [
        {"id": "all", "who": {"roles": ["*"]}, "allow": {"interactions": ["*"], "resources": ["*"], "opaque": {"types": ["application/pdf"], "most": "1KiB"}}},
        {"id": "vip", "who": {"roles": ["staff", "app"]}, "deny": {"interactions": ["*"], "resources": ["*?_security=VIP"]}},
    ]
}  # fmt: skip


async def post(here: World, path: str, token: str, body: Any) -> int:
    return (await here.ask(path, token, "POST", data=json.dumps(body), headers=FHIR)).status


async def filled(here: World) -> None:
    here.store.clear()
    here.store.load(
        [
            {"resourceType": "Patient", "id": "p1"}, {"resourceType": "Patient", "id": "p2"}, {"resourceType": "Patient", "id": "v", "meta": VIP},
            binary("b"), binary("hid", context="Patient/v"), binary("mine", context="Patient/p1"), binary("html", "text/html", "Patient/p1"),
            binary("big", context="Patient/p1", data=PDF * 100), binary("priv"), binary("pub"),
            {"resourceType": "Media", "id": "m", "status": "completed", "subject": {"reference": "Patient/p2"}, "content": {"url": "Binary/b"}},
            {**document("d", "p1", {"contentType": "application/pdf", "url": "Binary/pub"}, {"contentType": "application/pdf", "url": "Binary/priv"})},
        ]
    )  # fmt: skip


@pytest.mark.parametrize(("role", "scope"), [("app", "patient/*.cruds"), ("staff", "user/*.cruds")])
async def test_nobody_opens_a_binary_by_pointing_at_it(tmp_path: Path, role: str, scope: str) -> None:
    async with world(tmp_path, OPAQUE, make=Simulator) as here:
        await filled(here)
        token = here.token(scope, roles=[role], **({"patient": "p1"} if role == "app" else {}))
        for name in ("b", "hid", "absent"):
            for body in (
                document("x", "p1", {"contentType": "application/pdf", "url": f"Binary/{name}"}),
                {**OBSERVATION, "subject": {"reference": "Patient/p1"}, "focus": [{"reference": f"Binary/{name}"}]},
                {"resourceType": "Observation", "status": "final", "code": {"text": "x"}, "subject": {"reference": "Patient/p1"},
                 "extension": [{"url": "http://x", "valueUrl": f"Binary/{name}"}]},
            ):  # fmt: skip
                assert await post(here, f"/{body['resourceType']}", token, body) == 422, (name, body)
            assert (await here.ask(f"/Binary/{name}", token)).status == 404
            body = {**OBSERVATION, "subject": {"reference": "Patient/p1"}, "focus": [{"reference": f"Binary/{name}"}]}
            assert (await transact(here, token, entry("POST", "Observation", body))).status == 422
        body = {**OBSERVATION, "subject": {"reference": "Patient/p1"}, "focus": [{"reference": "Binary/mine"}]}
        assert await post(here, "/Observation", token, body) == 201


async def test_media_type_and_size_hold_for_data_too(tmp_path: Path) -> None:
    async with world(tmp_path, OPAQUE, make=Simulator) as here:
        await filled(here)
        for role in ("staff", "everybody"):
            token = here.token("user/*.cruds", roles=[role])
            assert (await here.ask("/Binary/mine", token)).json["data"] == PDF
            for name in ("html", "big"):
                assert "data" not in (await here.ask(f"/Binary/{name}", token)).json
        held: Any = {**OBSERVATION, "id": "o", "subject": {"reference": "Patient/p1"}, "contained": [binary("in", "text/html")]}
        here.store.save(held)
        assert "data" not in (await here.ask("/Observation/o", token)).json["contained"][0]


async def test_a_binary_whose_link_is_redacted_is_not_shown(tmp_path: Path) -> None:
    rules = copy.deepcopy(OPAQUE)
    rules["rules"].append({"id": "private", "who": {"roles": ["staff"]}, "redact": [
        {"resources": ["DocumentReference"], "path": "$.content[?@.attachment.url=='Binary/priv']", "with": "remove"}]})  # fmt: skip
    async with world(tmp_path, rules, make=Simulator) as here:
        await filled(here)
        token = here.token("user/*.rs", roles=["staff"])
        assert [(await here.ask(f"/Binary/{name}", token)).status for name in ("pub", "priv")] == [200, 404]
        here.store.save({**await here.direct("/DocumentReference/d"), "description": "Binary/priv", "docStatus": "final"})
        assert (await here.ask("/Binary/priv", token)).status == 404, "a link is an attachment's URL, not a text"


async def test_names_in_a_transaction_touch_references_alone(tmp_path: Path) -> None:
    new = "urn:uuid:61ebe359-bfdc-4613-8bf2-c5e300945f0a"
    async with world(tmp_path, OPEN, make=Simulator) as here:
        token = here.token("user/*.cruds")
        empty = {**OBSERVATION, "subject": {"reference": ""}, "note": [{"text": ""}]}
        assert (await transact(here, token, entry("GET", "Patient/pat-1"), entry("POST", "Observation", empty))).status == 422
        own = {**entry("PUT", "Patient/pat-1", (await here.ask("/Patient/pat-1", token)).json), "fullUrl": new}
        body = {**OBSERVATION, "subject": {"reference": new}, "note": [{"text": new}], "identifier": [{"value": new}]}
        reply = await transact(here, token, own, entry("POST", "Observation", body))
        stored = reply.json["entry"][1]["resource"]
        assert (
            stored["subject"]["reference"] == "Patient/pat-1"
            and stored["note"][0]["text"] == stored["identifier"][0]["value"] == new
        )


async def test_attachments_at_every_place_that_is_followed(tmp_path: Path) -> None:
    rules: Any = {"rules": [
        {**OPEN["rules"][0]}, {"id": "hide", "who": {"roles": ["*"]}, "redact": [{"resources": ["Patient"], "path": "$.birthDate", "with": "remove"}]}]}  # fmt: skip
    inline = {"contentType": "application/pdf", "data": PDF}
    held = [
        {"resourceType": "RequestGroup", "id": "r", "status": "active", "intent": "plan", "action": [{"action": [{"action": [
            {"documentation": [{"type": "documentation", "document": inline}]}]}]}]},
        {"resourceType": "QuestionnaireResponse", "id": "q", "status": "completed", "item": [{"linkId": "1", "item": [{"linkId": "2", "answer": [
            {"valueAttachment": inline}]}]}]},
        {"resourceType": "Communication", "id": "c", "status": "completed", "contained": [{"resourceType": "Library", "id": "l", "status": "active",
            "type": {"text": "x"}, "content": [inline]}]},
        {"resourceType": "Task", "id": "t", "status": "draft", "intent": "plan", "input": [{"type": {"text": "x"}, "valueBase64Binary": PDF}]},
        {"resourceType": "Bundle", "id": "b", "type": "collection", "entry": [{"resource": {"resourceType": "Parameters", "parameter": [
            {"name": "x", "valueAttachment": inline}]}}]},
    ]  # fmt: skip
    async with world(tmp_path, rules, make=Simulator) as here:
        here.store.load(held)
        for resource in held:
            reply = await here.ask(f"/{resource['resourceType']}/{resource['id']}", here.token("user/*.rs"))
            assert reply.status == 200 and PDF.encode() not in reply.body, resource


async def test_profiles_and_code_systems_that_may_be_hidden_are_not_asked_about(tmp_path: Path) -> None:
    async with world(tmp_path, OPERATIONS, make=Simulator) as here:
        here.store.load(STORED)
        body = {**OBSERVATION, "subject": {"reference": "Patient/a"}, "meta": {"profile": ["http://x/hidden"]}}
        app: Any = {"scope": "patient/*.cruds", "patient": "a"}
        assert (await asked(here, "app", "/Observation/$validate", body, **app)).status == 403
        wrapped = {
            "resourceType": "Parameters",
            "parameter": [{"name": "profile", "valueUri": "http://x"}, {"name": "resource", "resource": OBSERVATION}],
        }
        assert (await asked(here, "app", "/Observation/$validate", wrapped, **app)).status == 403
        assert (await asked(here, "all", "/ValueSet/$expand?url=http://example.org/vs", scope="user/ValueSet.rs")).status == 403


async def test_what_a_rule_opened_operation_is_given(tmp_path: Path) -> None:
    rules = copy.deepcopy(OPERATIONS)
    rules["rules"].append({"id": "wider", "who": {"roles": ["clerk"]}, "allow": {"interactions": ["read"], "resources": ["Patient?family=Birch"],
        "operations": [{"name": "$process", "input": ["Parameters", "Bundle"], "output": ["Parameters", "Patient", "Practitioner"]}]}})  # fmt: skip
    async with world(tmp_path, rules, make=Simulator) as here:
        here.store.clear()
        here.store.load(STORED)
        for value in ("Patient/vip", f"{here.base}/Patient/vip", "x,Patient/vip"):
            assert (await asked(here, "clerk", f"/Patient/a/$process?subject={value}")).status == 422
        given = {"resourceType": "Parameters", "parameter": [{"name": "x", "valueString": "Patient/vip"}]}
        assert (await asked(here, "clerk", "/Patient/a/$process", given)).status == 422
        held = await asked(here, "clerk", "/Patient/a/$process")
        assert {p["resource"]["resourceType"] for p in held.json["parameter"]} == {"Patient"}, "what both rules answer"
        inner = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": {"resourceType": "Practitioner"}}]}
        assert (await asked(here, "clerk", "/Patient/a/$process", inner)).status == 403


async def test_conditional_references_are_bounded(tmp_path: Path) -> None:
    async with world(tmp_path, OPEN, make=Simulator) as here:
        body = {**OBSERVATION, "performer": [{"reference": f"Patient?_id=pat-1&_count={n}"} for n in range(1, 60)]}
        here.seen.clear()
        assert (await transact(here, here.token("user/*.cruds"), entry("POST", "Observation", body))).status == 413
        assert len(here.seen) < 60


async def test_many_documents_do_not_tell_of_themselves(tmp_path: Path) -> None:
    async with world(tmp_path, OPAQUE, make=Simulator) as here:
        await filled(here)
        here.store.load([document(f"h{n}", "v", {"url": "Binary/b"}, meta=VIP) for n in range(60)])
        token = here.token("user/*.rs", roles=["staff"])
        assert (await here.ask("/Binary/b", token)).body == (await here.ask("/Binary/absent", token)).body


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("", {"resourceType": "Bundle", "type": ["batch"]}, 400), ("", {"resourceType": "Bundle", "type": {}}, 400),
        ("/Observation/$process", {"resourceType": "Parameters", "parameter": [{"name": "x", "resource": {"resourceType": []}}]}, 403),
        ("/Patient/$match", {"resourceType": "Parameters", "parameter": [{"name": "resource", "resource": {}}]}, 400),
        ("/Patient/$match", {"resourceType": "Parameters", "parameter": [{"name": "resource", "resource": {"resourceType": "Patient"}},
                                                                         {"name": "count", "valueString": "\u00b2"}]}, 400),
        ("/Patient/$match", {"resourceType": "Parameters", "parameter": [{"name": "resource", "resource": {"resourceType": "Patient"}},
                                                                         {"name": "count", "valueString": "9" * 5000}]}, 400),
    ],
)  # fmt: skip
async def test_odd_shapes_are_refused_by_name(tmp_path: Path, path: str, body: Any, status: int) -> None:
    async with world(tmp_path, OPERATIONS, make=Simulator) as here:
        assert await post(here, path, here.token("user/*.cruds", roles=["clerk", "all"]), body) == status


async def test_what_a_stored_bundle_says_of_an_entry_without_resource(tmp_path: Path) -> None:
    rules = {"rules": [OPEN["rules"][0], OPAQUE["rules"][1]]}
    async with world(tmp_path, rules, make=Simulator) as here:
        gone = {"fullUrl": f"{here.upstream}/Patient/v", "request": {"method": "DELETE", "url": "Patient/v"}}
        here.store.load([{"resourceType": "Bundle", "id": "b", "type": "transaction", "entry": [gone]}])
        reply = await batch(here, here.token("user/*.rs", roles=["staff"]), entry("GET", "Bundle/b"))
        assert b"Patient/v" not in reply.body and reply.json["entry"][0]["resource"]["entry"][0]["request"]["method"] == "DELETE"


REDACTED: Any = {
    "rules": [
        {"id": "all", "who": {"roles": ["*"]}, "allow": {"interactions": ["*"], "resources": ["*"], "delete_unseen": True, "opaque": {"types": ["*"]}}},
        {"id": "hide", "who": {"roles": ["nurse"]}, "redact": [{"resources": ["Patient"], "path": "$.identifier", "with": "remove"}]},
        {"id": "vip", "who": {"roles": ["staff"]}, "deny": {"interactions": ["*"], "resources": ["*?_security=VIP"]}},
    ]
}  # fmt: skip


@pytest.mark.parametrize("role", ["nurse", "staff"])
async def test_which_binaries_there_are_is_not_told(tmp_path: Path, role: str) -> None:
    answers = []
    for there in (True, False):
        (tmp_path / str(there)).mkdir()
        async with world(tmp_path / str(there), REDACTED, make=Simulator) as here:
            await filled(here)
            if not there:
                for name in ("b", "priv", "pub"):
                    here.store.remove(f"Binary/{name}")
                    del here.store._versions["Binary", name]
                here.store._log = [row for row in here.store._log if row[0] != "Binary" or row[1] not in {"b", "priv", "pub"}]
                here.store.remove("DocumentReference/d")
                del here.store._versions["DocumentReference", "d"]
            else:
                here.store.remove("DocumentReference/d")
            token = here.token("user/*.cruds", roles=[role])
            found = []
            for path in ("/Binary?_id=b,absent&_count=1", "/Binary?_count=1", "/Binary/b/_history", "/Binary/b/_history/1", "/Binary/_history?_count=1",
                         "/Binary?_summary=count", "/Binary?_lastUpdated=gt2000&_count=1"):  # fmt: skip
                reply = await here.ask(path, token)
                found.append((reply.status, reply.body.replace(here.base.encode(), b"")))
            for method, path, headers in (
                ("POST", "/Binary", {"If-None-Exist": "_id=b"}),
                ("PUT", "/Binary?_id=b", {}),
                ("PUT", "/Binary/b", {}),
                ("DELETE", "/Binary/b", {}),
            ):
                body = (
                    binary("b") if method == "PUT" and "?" not in path else {"resourceType": "Binary", "contentType": "text/plain"}
                )
                data = None if method == "DELETE" else json.dumps(body)
                reply = await here.ask(path, token, method, data=data, headers={**FHIR, **headers} if data else {})
                found.append((reply.status, reply.body))
            answers.append(found)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("scope", ["user/Binary.u", "user/Binary.d", "user/*.ud"])
async def test_who_may_not_read_a_binary_may_not_change_it(tmp_path: Path, scope: str) -> None:
    async with world(tmp_path, REDACTED, make=Simulator) as here:
        await filled(here)
        token = here.token(scope, roles=["staff"])
        for name in ("hid", "b", "absent"):
            put = await here.ask(f"/Binary/{name}", token, "PUT", data=json.dumps(binary(name, context="Patient/p1")), headers=FHIR)
            assert put.status in {403, 404} and (await here.ask(f"/Binary/{name}", token, "DELETE")).status in {403, 404}
        assert not [method for method, _, _ in here.seen if method in {"PUT", "DELETE"}]


async def test_names_of_what_may_be_somebodys_go_even_where_a_rule_names_the_type(tmp_path: Path) -> None:
    rules = {
        "rules": [{**OPEN["rules"][0], "allow": {"interactions": ["*"], "resources": ["*", "Device", "Provenance", "Binary"]}}]
    }
    async with world(tmp_path, rules, make=Simulator) as here:
        named = {"reference": "Device/dv2", "display": "pump of another", "identifier": {"value": "SN-2"}}
        here.store.load([{**OBSERVATION, "id": "oa", "subject": {"reference": "Patient/p1"}, "device": named},
                         {"resourceType": "Device", "id": "dv2", "patient": {"reference": "Patient/p2"}}])  # fmt: skip
        token = here.token("patient/*.rs", patient="p1")
        assert (await here.ask("/Device/dv2", token)).status == 404
        assert (await here.ask("/Observation/oa", token)).json["device"] == {"reference": "Device/dv2"}


async def test_the_media_type_of_what_is_hidden_stays(tmp_path: Path) -> None:
    async with world(tmp_path, OPEN, {"upstreams": [{"hidden_narrative": "drop"}]}, make=Simulator) as here:
        await filled(here)
        token = here.token("user/*.cruds")
        view = (await here.ask("/Binary/html", token)).json
        assert "data" not in view
        for kind, status in (("application/pdf", 403), ("text/html", 200)):
            body = {**view, "contentType": kind}
            assert (await here.ask("/Binary/html", token, "PUT", data=json.dumps(body), headers=FHIR)).status == status
        assert (await here.direct("/Binary/html"))["data"] == PDF


async def test_a_count_of_many_digits_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path, OPEN, make=Simulator) as here:
        assert (await here.ask("/Patient?_count=" + "9" * 5000, here.token())).status == 400


# --- found on reading it all once more --------------------------------------------------------------------------------------

HOLDS: Any = {"resourceType": "Patient", "id": "holds", "birthDate": "1970", "contained": [{"resourceType": "Observation", "id": "x", "status": "final",
              "code": {"text": "x"}, "meta": VIP}]}  # fmt: skip


async def test_what_holds_something_denied_is_not_there_for_operations_and_histories_either(tmp_path: Path) -> None:
    async with world(tmp_path, REDACTED, make=Simulator) as here:
        here.store.clear()
        here.store.save({"resourceType": "Patient", "id": "holds", "birthDate": "1969"})
        here.store.save(HOLDS)
        token = here.token("user/*.rs", roles=["staff"])
        for tail in ("", "/$everything", "/$meta", "/_history", "/_history/1", "/_history/2"):
            there, absent = [await here.ask(f"/Patient/{name}{tail}", token) for name in ("holds", "absent")]
            assert there.status == 404 and there.body == absent.body, tail


def opening(role: str, resources: list[str], **operation: Any) -> Any:
    opened = {"name": "$process", "input": ["Observation", "Parameters"], "output": ["Parameters"], **operation}
    allow = {"interactions": ["*"], "resources": resources, "operations": [opened]}
    return {"rules": [{"id": role, "who": {"roles": [role]}, "allow": allow}]}


async def test_an_operation_on_a_type_or_the_server_needs_a_scope_without_limits(tmp_path: Path) -> None:
    async with world(tmp_path, opening("app", ["*"]), make=Simulator) as here:
        here.store.load(STORED)
        body = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}}
        for scope, status in (
            ("patient/*.rs", 403),
            ("user/Observation.rs?status=final", 403),
            ("user/Patient.rs", 403),
            ("user/*.rs", 200),
        ):
            assert (await asked(here, "app", "/Observation/$process", body, scope=scope, patient="a")).status == status, scope
        for scope, status in (("patient/*.rs", 403), ("user/Patient.rs", 403), ("user/*.rs", 404)):
            assert (await asked(here, "app", "/$process", scope=scope, patient="a")).status == status, (
                scope
            )  # 404: the server has none there


async def test_an_operation_that_acted_is_not_said_to_be_refused(tmp_path: Path) -> None:
    """Its answer is withheld; that it was done is not denied, neither to its caller nor in the record."""

    class Answering(Simulator):
        def _operate(self, *rest: Any) -> Any:
            return 200, json.dumps({"resourceType": "Patient", "id": "v", "meta": VIP, "name": [{"family": "Hidden"}]}), []

    rules = opening("admin", ["*"], affects=["Observation"], output=["Patient"])
    rules["rules"].append(
        {"id": "vip", "who": {"roles": ["*"]}, "deny": {"interactions": ["*"], "resources": ["Patient?_security=VIP"]}}
    )
    async with world(tmp_path, rules, make=Answering) as here:
        body = json.dumps({"resourceType": "Observation", "status": "final", "code": {"text": "x"}})
        reply = await here.ask(
            "/Observation/$process", here.token("user/*.cruds", roles=["admin"]), "POST", data=body, headers=FHIR
        )
        assert reply.status == 204 and not reply.body and not here.parts.journal.intents.open
        last = here.records()[-1]
        assert last["outcome"] == "released" and last["withheld"] == {"denied-by-rule": 1}


async def test_what_a_join_may_not_ask_refuses_a_transaction_before_it_is_sent(tmp_path: Path) -> None:
    async with world(tmp_path, OPERATIONS, make=Simulator) as here:
        here.store.load(STORED)
        token = here.token("user/*.cruds", roles=["nurse", "all"])
        new = entry("POST", "Practitioner", {"resourceType": "Practitioner"})
        for chain in (
            "Observation?subject:Patient.birthdate=1970-01-02",
            "Practitioner?_has:Patient:general-practitioner:birthdate=1970",
        ):
            reply = await transact(here, token, new, entry("GET", chain))
            assert reply.status == 403 and b"birthdate" in reply.body
        assert not [method for method, _, _ in here.seen if method != "GET"]
