"""What operators see: health, metrics, logs; how the shield ends, and how it changes its rules while it serves."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
import yaml

from fhirshield.audit.journal import verify
from fhirshield.watch.logs import JsonLines
from tests.audit import records
from tests.audit.test_durability import around, shield, up
from tests.parts import count
from tests.tally import tally
from tests.world import OPEN, World, merged, world


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found: int = free.getsockname()[1]
        return found


async def get(address: int, path: str) -> tuple[int, str]:
    def ask() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{address}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.to_thread(ask)


@pytest.mark.promise
async def test_metrics_count_and_name_nobody(tmp_path: Path) -> None:
    admin = port()
    rules = merged(OPEN, {"rules": [{"redact": [{"resources": ["Patient"], "path": "$.telecom[*].value", "with": "remove"}]}]})
    async with world(tmp_path, rules, {"admin": f"127.0.0.1:{admin}"}) as here:
        token = here.token(sub="somebody-with-a-name")
        for path in ("/Patient/pat-1", "/Patient?_count=3", "/Patient/nobody", "/Encounter/$everything", "/Patient/%2e"):
            await here.ask(path, token)
        await here.ask("/Patient/pat-1")
        await asyncio.sleep(0.1)
        status, text = await get(admin, "/metrics")
        assert status == 200
        assert 'fhirshield_exchanges_total{interaction="read",reason="permitted",status="200",upstream="/fhir"} 1.0' in text
        assert 'reason="no-credential",status="401"' in text and 'reason="not-found",status="404"' in text
        assert "fhirshield_shown_resources_total 4.0" in text and "fhirshield_redacted_elements_total" in text
        assert "fhirshield_exchange_seconds_count 6.0" in text and "fhirshield_rules_info{digest=" in text
        assert float(text.split("\nfhirshield_journal_syncs ")[1].split()[0]) >= 1
        for name in ("pat-1", "somebody", "Practitioner", "dr-reed", "demo-app", here.records()[0]["decision"]):
            assert name not in text
        assert (await here.ask("/metrics")).status != 200


@pytest.mark.promise
async def test_health_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    admin = port()
    async with world(tmp_path, settings={"admin": f"127.0.0.1:{admin}"}) as here:
        assert (await get(admin, "/health/live"))[0] == 200
        assert await get(admin, "/health/ready") == (200, '{"ready":true,"missing":[]}')

        def fail(*arguments: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fail)
            assert (await here.ask("/Patient/pat-1", here.token())).status == 503
            status, text = await get(admin, "/health/ready")
            assert (status, json.loads(text)["missing"]) == (503, ["the journal cannot be written"])
            assert (await get(admin, "/health/live"))[0] == 200
        assert (await here.ask("/Patient/pat-1", here.token())).status == 200
        assert (await get(admin, "/health/ready"))[0] == 200
        here.entrance.stopping = True
        assert json.loads((await get(admin, "/health/ready"))[1])["missing"] == ["the process is ending"]


def test_logs_are_json_lines() -> None:
    record = logging.LogRecord("fhirshield", logging.ERROR, "f.py", 1, "a %s", ("b\n",), None)
    record.decision = "d1"
    line = JsonLines().format(record)
    assert "\n" not in line and json.loads(line)["message"] == "a b\n" and json.loads(line)["decision"] == "d1"


# --- the end ------------------------------------------------------------------------------------------------------------


@pytest.mark.promise
async def test_told_to_end_it_finishes_and_publishes_the_head(tmp_path: Path) -> None:
    async with around(tmp_path) as (issuer, address):
        process = shield(tmp_path)
        await up(address)
        token = issuer.token("https://shield.example/fhir", "system/*.rs")
        _, writer = await asyncio.open_connection("127.0.0.1", address)
        reader, slow = await asyncio.open_connection("127.0.0.1", address)
        head = f"POST /fhir/Patient/_search HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 9\r\n"
        slow.write((head + "Content-Type: application/x-www-form-urlencoded\r\n\r\n_co").encode())
        await asyncio.sleep(0.3)
        os.killpg(process.pid, signal.SIGTERM)
        await asyncio.sleep(0.3)
        slow.write(b"unt=3&")
        answer = await asyncio.wait_for(reader.read(), 10)
        assert b"200 OK" in answer.split(b"\r\n")[0] and b"searchset" in answer
        for one in (writer, slow):
            one.close()
        await asyncio.to_thread(process.wait, 15)
    proof = verify(tmp_path / "audit", (tmp_path / "journal.key").read_bytes(), tmp_path / "witness.ndjson")
    assert proof.faults == () and proof.records == proof.proven >= 1
    log = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert all({"time", "level", "message"} <= set(line) for line in log)


# --- reloading ------------------------------------------------------------------------------------------------------------

A = merged(OPEN, {"rules": [{"id": "a", "redact": [
    {"resources": ["Patient"], "path": "$.birthDate", "with": "remove"}, {"resources": ["Patient"], "path": "$.gender", "with": "remove"},
]}]})  # fmt: skip
B = merged(OPEN, {"rules": [{"id": "b"}]})
BROKEN = (
    "rules: [",
    "rules: [{id: x}]",
    "rules: [{id: x, who: {roles: ['*']}, redact: [{resources: [Patient], path: $.nothing, with: remove}]}]",
    "",
)


def put(here: World, text: str) -> None:
    """Replace the rule file as editors and ConfigMaps do: at once."""
    (here.folder / "new").write_text(text)
    (here.folder / "new").rename(here.folder / "rules.yaml")


@pytest.mark.promise
async def test_rules_change_while_it_serves_and_no_answer_is_mixed(tmp_path: Path) -> None:
    changes = count(1000, 40)
    async with world(tmp_path, A) as here:
        token, seen, asked = here.token("system/*.rs"), set(), 0
        done = asyncio.Event()

        async def ask() -> None:
            nonlocal asked
            while not done.is_set():
                answer = await here.ask("/Patient/pat-1", token)
                assert answer.status == 200
                seen.add(("birthDate" in answer.json, "gender" in answer.json))
                asked += 1

        asking = [asyncio.create_task(ask()) for _ in range(4)]
        refused = 0
        for number in range(changes):
            broken = number % 10 == 9
            put(here, BROKEN[number // 10 % len(BROKEN)] if broken else yaml.safe_dump((A, B)[number % 2]))
            before = here.entrance.works
            applied = await here.parts.reload()
            assert applied is not broken
            assert (here.entrance.works is before) is broken
            refused += broken
            if number % 8 in {2, 3}:  # the next request is answered by the rules that were last put in force
                now = await here.ask("/Patient/pat-1", token)
                in_force = number - 1 if broken else number
                wanted = bool(in_force % 2)
                assert ("birthDate" in now.json, "gender" in now.json) == (wanted, wanted)
                seen.add((wanted, wanted))
        done.set()
        await asyncio.gather(*asking)
        assert seen == {(True, True), (False, False)} and asked > changes / 20
        for row in here.records():
            assert (row["rule"], bool(row.get("redacted"))) in {("a", True), ("b", False)}
    tally("reloads under load", tried=changes, refused=refused)


async def test_a_changed_file_and_a_hangup_reload(tmp_path: Path) -> None:
    async with around(tmp_path) as (issuer, address):
        process = shield(tmp_path)
        try:
            await up(address)
            token = issuer.token("https://shield.example/fhir", "system/*.rs")

            async def born() -> bool:
                request = urllib.request.Request(
                    f"http://127.0.0.1:{address}/fhir/Patient/pat-1", headers={"Authorization": f"Bearer {token}"}
                )
                answer = await asyncio.to_thread(urllib.request.urlopen, request, timeout=10)
                return b"birthDate" in answer.read()

            assert await born()
            (tmp_path / "rules.yaml").write_text(yaml.safe_dump(A))
            os.kill(process.pid, signal.SIGHUP)
            for wanted, text in ((False, None), (True, yaml.safe_dump(B)), (True, "rules: ["), (False, yaml.safe_dump(A))):
                if text is not None:
                    (tmp_path / "rules.yaml").write_text(text)
                for _ in range(100):
                    if await born() is wanted and (text is None or not text.endswith("[")):
                        break
                    await asyncio.sleep(0.05 if text is None or not text.endswith("[") else 0.03)
                assert await born() is wanted
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            await asyncio.to_thread(process.wait, 15)
    log = (tmp_path / "log").read_text()
    assert "are in force" in log and "the last good settings and rules stay in force" in log
    assert records(tmp_path / "audit")


async def test_what_cannot_change_while_serving_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with world(tmp_path, A) as here:
        text = (tmp_path / "fhirshield.yaml").read_text()
        (tmp_path / "fhirshield.yaml").write_text(text + "listen: 127.0.0.1:1\n")
        assert not await here.parts.reload()
        assert "host, port cannot change while serving" in caplog.text or "port cannot change while serving" in caplog.text
        (tmp_path / "fhirshield.yaml").write_text(text + "limits: {entries: 3}\n")
        assert await here.parts.reload()
        assert (await here.ask("/Patient?_count=5", here.token("system/*.rs"))).status == 502
