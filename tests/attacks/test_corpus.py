"""The corpora: bytes in, expectation out. Requests of strangers on a raw socket; answers of an upstream that is out of step."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.audit import records
from tests.tally import tally
from tests.world import World, world

FOLDER = Path(__file__).parent
REQUESTS = yaml.safe_load((FOLDER / "requests.yaml").read_text(encoding="utf-8"))
ANSWERS = yaml.safe_load((FOLDER / "answers.yaml").read_text(encoding="utf-8"))["answers"]
_STATUS = re.compile(rb"^HTTP/1\.1 (\d{3}) ", re.MULTILINE)


async def said(here: World, content: bytes, patience: float = 0.15) -> bytes:
    """What comes back for these bytes on a connection of their own."""
    host, _, port = here.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(content)
        await writer.drain()
        found = b""
        while True:
            chunk = await asyncio.wait_for(reader.read(65536), 5 if not found else patience)
            if not chunk:
                return found
            found += chunk
    except (TimeoutError, ConnectionError):
        return found
    finally:
        writer.close()


def rows() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for row in REQUESTS["targets"]:
        raw = f"GET {row['target']} HTTP/1.1\r\nHost: {{host}}\r\nAuthorization: Bearer {{token}}\r\n\r\n"
        made.append({**row, "raw": raw})
    return [*made, *REQUESTS["raw"]]


@pytest.mark.promise
async def test_hostile_requests_are_refused_before_the_upstream_is_asked(tmp_path: Path) -> None:
    tried = refused = 0
    wrong: list[Any] = []
    async with world(tmp_path) as here:
        token, host = here.token("system/*.rs"), here.url.removeprefix("http://")
        for row in rows():
            text = row["raw"].replace("{token}", token).replace("{host}", host)
            before = len(here.seen)
            answer = await said(here, text.encode("latin-1"))
            found = _STATUS.search(answer)
            status: Any = int(found[1]) if found else "closed"
            asked = len(here.seen) > before
            clean = status == 200 or (b"pat-1" not in answer and b"Traceback" not in answer)
            told = status in {200, "closed"} or b"OperationOutcome" in answer or row["raw"].startswith("HEAD")
            if status != row["status"] or asked is not row.get("forwarded", False) or not clean or not told:
                wrong.append((row["raw"], status, asked, answer[:200]))
            refused += status != 200
            tried += 1
        assert not wrong
        assert all(b".." not in path and b"%2e" not in path.lower() for _, path, _ in here.seen)
        assert not [h for _, _, headers in here.seen for h in headers if "forward" in h or "original" in h or "rewrite" in h]
        assert (await here.ask("/Patient/pat-1", token)).status == 200
    everything = records(tmp_path / "audit")
    recorded = sum(row["outcome"] != "sent" and "aggregated" not in row for row in everything)
    recorded += sum(number for row in everything for number in row.get("aggregated", {}).values())
    silent = sum(row["status"] == "closed" for row in rows())  # what never became a request, or never ended
    assert recorded >= tried - silent
    counted = [row["aggregated"] for row in records(tmp_path / "audit") if "aggregated" in row]
    assert sum(n for row in counted for key, n in row.items() if key.endswith("unparsed")) >= 40
    tally("requests", tried=tried, refused=refused, leaked=len(wrong), unaudited=max(0, tried - silent - recorded))
    assert tried >= 120


# --- answers ----------------------------------------------------------------------------------------------------------

PATIENT = json.dumps({"resourceType": "Patient", "id": "p1", "gender": "female"}).encode()
GOOD = json.dumps({"resourceType": "Patient", "id": "ok", "gender": "male"}).encode()
OTHER = json.dumps({"resourceType": "Patient", "id": "p1", "gender": "other", "name": [{"family": "SMUGGLED"}]}).encode()


def bytes_of(row: dict[str, Any]) -> bytes:
    """The answer's bytes: {body} is a good Patient, {other} one that must never be seen, {n} and {m} their lengths."""
    text = row["raw"].encode("latin-1")
    for name, value in (
        ("body", PATIENT),
        ("other", OTHER),
        ("hexn", b"%x" % len(PATIENT)),
        ("n", b"%d" % len(PATIENT)),
        ("m", b"%d" % len(OTHER)),
    ):
        text = text.replace(b"{" + name.encode() + b"}", value)
    text = text.replace(b"{head}", b"HTTP/1.1 200 OK\r\nContent-Type: application/fhir+json\r\n")
    return re.sub(rb"\{(\d+) x (.)\}", lambda found: found[2] * int(found[1]), text)


Answering = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def scripted(says: list[Answering]) -> AsyncIterator[str]:
    """An upstream that answers ``/Patient/ok`` well, and everything else by the last of ``says``."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"/Patient/ok" in head.split(b"\r\n")[0]:
                    writer.write(
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/fhir+json\r\nContent-Length: %d\r\n\r\n" % len(GOOD)
                    )
                    writer.write(GOOD)
                    await writer.drain()
                else:
                    await says[-1](writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/fhir"
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answering(row: dict[str, Any]) -> Answering:
    content = bytes_of(row)

    async def answer(writer: asyncio.StreamWriter) -> None:
        size = row.get("pieces", len(content)) or 1
        for start in range(0, len(content), size):
            writer.write(content[start : start + size])
            await writer.drain()
            if size < len(content):
                await asyncio.sleep(0.005)
        if row.get("endless"):
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
        if row.get("close", False):
            writer.close()
            raise ConnectionResetError
        if row.get("hang"):
            await asyncio.sleep(30)

    return answer


@pytest.mark.promise
async def test_answers_that_are_out_of_step_end_here_with_their_connection(tmp_path: Path) -> None:
    tried = refused = 0
    says: list[Answering] = []
    limits = {"limits": {"answer": "1MiB"}}
    async with scripted(says) as url, world(tmp_path, upstream=url, settings=merged_timeout(limits, url)) as here:
        token = here.token("system/*.rs")
        for row in ANSWERS:
            says.append(answering(row))
            answer = await here.ask(row.get("path", "/Patient/p1"), token)
            assert answer.status == row["status"], (row["name"], answer.status, answer.body[:200])
            assert b"SMUGGLED" not in answer.body, row["name"]
            if answer.status != 200:
                assert answer.json["resourceType"] == "OperationOutcome" and b"female" not in answer.body, row["name"]
                refused += 1
            for _ in range(2):
                after = await here.ask("/Patient/ok", token)
                assert (after.status, after.json.get("id")) == (200, "ok"), (row["name"], after.body[:200])
            tried += 1
    tally("answers of an upstream", tried=tried, refused=refused)
    assert tried >= 60


def merged_timeout(settings: dict[str, Any], url: str) -> dict[str, Any]:
    upstream = {"path": "/fhir", "url": url, "issuers": ["demo"], "timeout": {"answer": "500ms"}}
    return {**settings, "upstreams": [upstream]}


async def test_a_wait_that_is_given_up_ends_the_connection(tmp_path: Path) -> None:
    """A caller who leaves while an answer is under way leaves no connection behind that the answer still comes on."""
    gate = asyncio.Event()

    async def late(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/fhir+json\r\nContent-Length: %d\r\n\r\n" % len(OTHER))
        await writer.drain()
        await gate.wait()
        writer.write(OTHER)
        await writer.drain()

    async with scripted([late]) as url, world(tmp_path, upstream=url, settings=merged_timeout({}, url)) as here:
        token = here.token("system/*.rs")
        slow = [asyncio.create_task(here.ask("/Patient/p1", token)) for _ in range(4)]
        await asyncio.sleep(0.1)
        for task in slow[:2]:
            task.cancel()
        assert [(await task).status for task in slow[2:]] == [504, 504]
        gate.set()
        answers = await asyncio.gather(*(here.ask("/Patient/ok", token) for _ in range(20)))
        assert {(a.status, a.json["id"]) for a in answers} == {(200, "ok")}
