"""Content that no redaction can look into: attachments, and Binary, which is judged by what it belongs to."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.simulators.server import Simulator
from tests.test_writes import FHIR
from tests.world import World, world

PDF = base64.b64encode(b"%PDF name and number").decode()
READING = {"interactions": ["read", "search", "history", "vread"], "resources": ["*"]}
RULES: Any = {
    "rules": [
        {"id": "all", "who": {"roles": ["all"]}, "allow": {"interactions": ["*"], "resources": ["*"], "opaque": {"types": ["*"]}}},
        {"id": "plain", "who": {"roles": ["plain"]}, "allow": {"interactions": ["*"], "resources": ["*"]}},
        {"id": "app", "who": {"roles": ["app"]}, "allow": {**READING, "opaque": {"types": ["*"]}}},
        {"id": "nurse", "who": {"roles": ["nurse", "reader"]}, "allow": {**READING, "interactions": ["*"]}},
        {"id": "hide", "who": {"roles": ["nurse", "reader"]}, "redact": [{"resources": ["Patient"], "path": "$.identifier", "with": "remove"}]},
        {"id": "vip", "who": {"roles": ["nurse", "reader"]}, "deny": {"interactions": ["*"], "resources": ["*?_security=VIP"]}},
        {"id": "pdf", "who": {"roles": ["reader"]}, "allow": {**READING, "opaque": {"types": ["application/pdf"], "most": "64B"}}},
    ]
}  # fmt: skip


def document(identity: str, patient: str, *attachments: Any, **more: Any) -> Any:
    return {"resourceType": "DocumentReference", "id": identity, "status": "current", "subject": {"reference": f"Patient/{patient}"},
            "content": [{"attachment": a} for a in attachments], **more}  # fmt: skip


def binary(identity: str, kind: str = "application/pdf", context: str = "", data: str = PDF) -> Any:
    return {"resourceType": "Binary", "id": identity, "contentType": kind, "data": data} | (
        {"securityContext": {"reference": context}} if context else {}
    )


VIP = {"meta": {"security": [{"code": "VIP"}]}}
INLINE = {"contentType": "application/pdf", "data": PDF, "hash": "aGFzaA==", "size": 20, "title": "letter"}


async def ready(here: World) -> None:
    here.store.clear()
    here.store.load(
        [
            {"resourceType": "Patient", "id": "a", "photo": [{"contentType": "image/png", "data": PDF}]},
            {"resourceType": "Patient", "id": "b"},
            document("d", "a", INLINE, {"contentType": "text/plain", "data": PDF}, {"contentType": "application/pdf", "url": "https://other.example/x"}),
            document("linked", "a", {"contentType": "application/pdf", "url": f"{here.upstream}/Binary/linked"}),
            document("secret", "a", {"url": "Binary/secret"}, **VIP),
            document("both-1", "a", {"url": "Binary/both"}), document("both-2", "b", {"url": "Binary/both"}),
            binary("linked"), binary("secret"), binary("both"), binary("loose"), binary("mine", context="Patient/a"),
            binary("vip", context="DocumentReference/secret"), binary("page", "text/html", "Patient/a"), binary("odd", context="Patient/nobody"),
            binary("large", context="Patient/a", data=base64.b64encode(b"x" * 65).decode()),
            {"resourceType": "Media", "id": "m", "status": "completed", "subject": {"reference": "Patient/a"}, "content": {"data": PDF}},
        ]
    )  # fmt: skip


@pytest.mark.promise
async def test_attachments_go_where_they_could_tell_what_is_hidden(tmp_path: Path) -> None:
    async with world(tmp_path, RULES, make=Simulator) as here:
        await ready(here)

        async def content(role: str, path: str = "/DocumentReference/d") -> Any:
            reply = await here.ask(path, here.token("user/*.rs", roles=[role]))
            assert reply.status == 200, reply.body
            return reply.json

        stored = await here.direct("/DocumentReference/d")
        for role in ("all", "plain"):
            assert (await content(role)) == stored
        nurse = await content("nurse")
        assert [row["attachment"] for row in nurse["content"]] == [
            {"contentType": "application/pdf", "title": "letter"}, {"contentType": "text/plain"}, {"contentType": "application/pdf"},
        ]  # fmt: skip
        assert nurse["meta"]["security"][0]["code"] == "REDACTED"
        reader = await content("reader")
        assert [row["attachment"].get("data") for row in reader["content"]] == [PDF, None, None]
        assert (await content("reader", "/DocumentReference/linked"))["content"][0]["attachment"][
            "url"
        ] == f"{here.base}/Binary/linked"
        assert "data" not in (await content("nurse", "/Patient/a"))["photo"][0]
        assert "data" not in (await content("nurse", "/Media/m"))["content"]
        found = await content("nurse", "/DocumentReference?patient=Patient/a")
        assert PDF not in json.dumps(found)


@pytest.mark.promise
async def test_a_binary_is_judged_by_what_it_belongs_to(tmp_path: Path) -> None:
    async with world(tmp_path, RULES, make=Simulator) as here:
        await ready(here)

        async def status(role: str, name: str, scope: str = "user/*.rs", **claims: Any) -> int:
            reply = await here.ask(f"/Binary/{name}", here.token(scope, roles=[role], **claims))
            assert reply.status == 200 or PDF.encode() not in reply.body
            return reply.status

        names = ("linked", "secret", "both", "loose", "mine", "vip", "odd", "nobody")
        assert [await status("all", name) for name in names] == [200] * 7 + [404]
        assert [await status("nurse", name) for name in names] == [404, 404, 404, 404, 200, 404, 404, 404], "no link is shown"
        assert [await status("reader", name) for name in names] == [200, 404, 404, 404, 200, 404, 404, 404]
        mine = [await status("app", name, "patient/*.rs", patient="a") for name in names]
        assert mine == [200, 200, 404, 404, 200, 200, 404, 404], "both is about another too"
        assert [await status("app", name, "patient/*.rs", patient="b") for name in names] == [404] * 8
        token = here.token("user/*.rs", roles=["nurse"])
        absent = (await here.ask("/Binary/nobody", token)).body
        assert (await here.ask("/Binary/vip", token)).body == absent == (await here.ask("/Binary/loose", token)).body
        assert "data" not in (await here.ask("/Binary/mine", token)).json
        assert "data" not in (await here.ask("/Binary/mine", here.token("user/*.rs", roles=["plain"]))).json
        for path in ("/Binary/mine/_history", "/Binary/mine/_history/1", "/Binary?_id=mine", "/_history"):
            reply = await here.ask(path, token)
            assert reply.status in {200, 404} and b"Binary" not in reply.body.replace(b"/Binary", b"")
        reply = await here.ask(
            "/Binary/mine", here.token("user/*.cruds", roles=["nurse"]), "PUT", data=json.dumps(binary("mine")), headers=FHIR
        )
        assert reply.status == 404


async def test_a_binary_that_moves_between_two_looks_is_not_shown(tmp_path: Path) -> None:
    class Moving(Simulator):
        reads = 0

        def answer(self, segments: list[str], query: list[tuple[str, str]]) -> Any:
            if segments == ["Binary", "mine"]:
                self.reads += 1
                if self.reads == 2:
                    self.save(binary("mine", context="Patient/b"))
            return super().answer(segments, query)

    async with world(tmp_path, RULES, make=Moving) as here:
        await ready(here)
        token = here.token("patient/*.rs", roles=["app"], patient="a")
        assert (await here.ask("/Binary/mine", token)).status == 404


async def test_a_binarys_own_bytes_need_a_rule(tmp_path: Path) -> None:
    async with world(tmp_path, RULES, make=Simulator) as here:
        await ready(here)

        async def raw(role: str, name: str, accept: str) -> Any:
            return await here.ask(f"/Binary/{name}", here.token("user/*.rs", roles=[role]), headers={"Accept": accept})

        found = await raw("reader", "mine", "application/pdf")
        assert found.body == b"%PDF name and number" and found.headers["content-type"] == "application/pdf"
        assert found.headers["content-disposition"] == "attachment" and found.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in found.headers["content-security-policy"] and "etag" in found.headers
        assert (await raw("all", "page", "text/*")).headers["content-type"] == "text/html"
        for role, name, accept, status in (
            ("nurse", "mine", "application/pdf", 403), ("plain", "mine", "application/pdf", 403), ("reader", "mine", "image/png", 406),
            ("reader", "page", "text/html", 403), ("reader", "large", "application/pdf", 403), ("reader", "vip", "application/pdf", 404),
            ("reader", "nobody", "application/pdf", 404), ("reader", "mine", "nonsense", 406), ("reader", "mine", "application/fhir+xml", 406),
        ):  # fmt: skip
            reply = await raw(role, name, accept)
            assert reply.status == status and b"%PDF" not in reply.body, (role, name, accept)
        assert (await raw("reader", "mine", "*/*")).json["resourceType"] == "Binary"
        assert (await here.ask("/Patient/a", here.token(), headers={"Accept": "application/pdf"})).status == 406


async def test_an_upstream_that_knows_no_location_shows_no_loose_binary(tmp_path: Path) -> None:
    async with world(tmp_path, RULES) as here:  # the demo's store does not know the parameter
        await ready(here)
        assert (await here.ask("/Binary/linked", here.token("user/*.rs", roles=["nurse"]))).status == 404


@pytest.mark.promise
async def test_what_a_redacted_view_of_a_document_writes_back_keeps_its_content(tmp_path: Path) -> None:
    async with world(tmp_path, RULES, {"upstreams": [{"hidden_narrative": "drop"}]}, make=Simulator) as here:
        await ready(here)
        token = here.token("user/*.cruds", roles=["nurse"])
        view = (await here.ask("/DocumentReference/d", token)).json
        reply = await here.ask(
            "/DocumentReference/d", token, "PUT", data=json.dumps({**view, "status": "superseded"}), headers=FHIR
        )
        assert reply.status == 200, reply.body
        stored = await here.direct("/DocumentReference/d")
        assert stored["status"] == "superseded" and stored["content"][0]["attachment"] == INLINE
        assert stored["content"][2]["attachment"]["url"] == "https://other.example/x"
