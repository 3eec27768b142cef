"""Nothing that was answered is lost: on a disk that forgets what was not synced, under kill -9, in the order of system calls."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from fhirshield.audit import Journal
from fhirshield.audit import journal as module
from fhirshield.audit.journal import segments_of, verify
from fhirshield.demo.issuer import Issuer
from fhirshield.demo.patients import generate
from fhirshield.demo.store import Store
from fhirshield.errors import Unavailable
from fhirshield.serving import serving
from tests.audit import records
from tests.parts import ROOT, count, need
from tests.tally import tally
from tests.world import OPEN, listener

KEY = b"k" * 32

# --- a disk that forgets ------------------------------------------------------------------------------------------------


@dataclass
class Disk:
    """Stands for ``os`` in the journal: does what is asked on real files, and notes it in order."""

    log: list[tuple[str, str, Any]] = field(default_factory=list)
    """(operation, path, content)"""
    syncs: bool = True
    _paths: dict[int, str] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        new = not Path(path).exists()
        descriptor = os.open(path, flags, mode)
        self._paths[descriptor] = str(path)
        if new:
            self.log.append(("create", str(path), None))
        return descriptor

    def write(self, descriptor: int, content: Any) -> int:
        written = os.write(descriptor, content[: random.randint(1, len(content))])
        self.log.append(("write", self._paths[descriptor], bytes(content[:written])))
        return written

    def ftruncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)
        self.log.append(("truncate", self._paths[descriptor], size))

    def fdatasync(self, descriptor: int) -> None:
        if self.syncs:
            os.fdatasync(descriptor)
            self.log.append(("sync", self._paths[descriptor], None))

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)
        self.log.append(("sync", self._paths.get(descriptor, ""), None))


def remembered(log: list[tuple[str, str, Any]], torn: int) -> dict[str, bytes]:
    """What a disk holds that loses power now: what was synced, under names whose folder was; ``torn`` bytes of the rest."""
    content: dict[str, bytes] = {}
    durable: dict[str, bytes] = {}
    named: set[str] = set()
    for operation, path, what in log:
        if operation == "create":
            content[path] = b""
        elif operation == "write":
            content[path] = content.get(path, b"") + what
        elif operation == "truncate":
            content[path] = content.get(path, b"")[:what]
        elif operation == "sync" and path in content:
            durable[path] = content[path]
        elif operation == "sync":
            named.update(one for one in content if str(Path(one).parent) == path)
    return {path: durable.get(path, b"") + content[path][len(durable.get(path, b"")) :][:torn] for path in named}


async def written(folder: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Any]]:
    """A journal's life: groups, segments, one after a failure; answers stand in the log too."""
    monkeypatch.setattr(module, "os", disk)
    monkeypatch.setattr(module, "SEGMENT", 1000)
    made = Journal(folder / "journal", KEY, folder / "witness")
    made.open()

    async def one(number: int) -> None:
        await made.record({"n": number, "text": "x" * random.randint(0, 80)}, str(number))
        disk.log.append(("answered", "", number))

    for start in range(0, 60, 6):
        await asyncio.gather(*(one(start + offset) for offset in range(random.randint(1, 6))))
    await made.close()
    monkeypatch.undo()
    return disk.log


def check_every_cut(folder: Path, log: list[tuple[str, str, Any]]) -> int:
    """Cut the power after every operation; whatever was answered by then must be there. Returns how many cuts."""
    cuts = 0
    for end in range(len(log) + 1):
        for torn in (0, 1, 70, 1 << 30):
            there = folder / f"cut-{end}-{torn}"
            (there / "journal").mkdir(parents=True)
            for path, content in remembered(log[:end], torn).items():
                if "journal-" in path:
                    (there / "journal" / Path(path).name).write_bytes(content)
            again = Journal(there / "journal", KEY, there / "witness")
            again.open()
            os.close(again._descriptor)
            again._thread.shutdown()
            assert verify(there / "journal", KEY, None).faults == (), (end, torn)
            kept = {row["n"] for row in records(there / "journal")}
            lost = {number for operation, _, number in log[:end] if operation == "answered"} - kept
            assert not lost, (end, torn, lost)
            shutil.rmtree(there)
            cuts += 1
    return cuts


@pytest.mark.promise
async def test_no_cut_of_power_loses_what_was_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = 0
    for seed in range(count(5, 1)):
        random.seed(seed)
        folder = tmp_path / str(seed)
        log = await written(folder, Disk(), monkeypatch)
        assert sum(operation == "create" for operation, _, _ in log) > 2
        cuts += check_every_cut(folder, log)
    tally("cuts of power", tried=cuts)


async def test_without_the_fdatasync_the_test_above_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = await written(tmp_path, Disk(syncs=False), monkeypatch)
    with pytest.raises(AssertionError):
        check_every_cut(tmp_path, log)


async def test_without_the_folders_fsync_the_test_above_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = await written(tmp_path, Disk(), monkeypatch)
    with pytest.raises(AssertionError):
        check_every_cut(tmp_path, [row for row in log if not (row[0] == "sync" and row[1].endswith("/journal"))])


@pytest.mark.parametrize("operation", ["write", "fdatasync", "ftruncate"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
async def test_whatever_the_disk_refuses_nobody_is_answered_and_it_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, error: int
) -> None:
    failing = [False]
    original = getattr(os, operation)

    class Failing(Disk):
        pass

    def fail(*arguments: Any) -> Any:
        if failing[0]:
            raise OSError(error, os.strerror(error))
        return original(*arguments)

    disk = Failing()
    monkeypatch.setattr(disk, operation, fail, raising=False)
    monkeypatch.setattr(module, "os", disk)
    made = Journal(tmp_path / "journal", KEY, tmp_path / "witness")
    made.open()
    await made.record({"n": 1}, "1")
    failing[0] = True
    if operation == "ftruncate":
        with open(segments_of(tmp_path / "journal")[0], "ab") as stream:
            stream.write(b"left by a write that failed")
    for number in (2, 3):
        with pytest.raises(Unavailable):
            await made.record({"n": number}, str(number))
    failing[0] = False
    await made.record({"n": 4}, "4")
    await made.close()
    tally("faults of a disk", tried=2, refused=2)
    assert [row["n"] for row in records(tmp_path / "journal")] == [1, 4]
    assert verify(tmp_path / "journal", KEY, tmp_path / "witness").faults == ()


# --- the served shield ----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def around(folder: Path, upstream: Any = None, answer: str = "30s") -> AsyncIterator[tuple[Issuer, int]]:
    """A store (or an upstream) and an issuer, and settings of a shield that is yet to be started; yields issuer and port."""
    sockets = [listener() for _ in range(2)]
    store_url, issuer_url = (f"http://127.0.0.1:{s.getsockname()[1]}" for s in sockets)
    issuer, store = Issuer(issuer_url), Store(f"{store_url}/fhir", 20)
    store.load(generate(12))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "rules.yaml").write_text(yaml.safe_dump(OPEN))
    (folder / "jwks.json").write_text(json.dumps(issuer.jwks()))
    settings = {
        "listen": f"127.0.0.1:{port}", "public_url": "https://shield.example", "rules": "rules.yaml", "audit": {"journal": "audit"},
        "issuers": {"demo": {"issuer": issuer_url, "jwks_file": "jwks.json", "profile": "smart"}},
        "upstreams": [{"path": "/fhir", "url": f"{store_url}/fhir", "issuers": ["demo"], "timeout": {"answer": answer}}],
    }  # fmt: skip
    (folder / "fhirshield.yaml").write_text(yaml.safe_dump(settings))
    async with contextlib.AsyncExitStack() as stack:
        for application, bound in ((upstream or store, sockets[0]), (issuer, sockets[1])):
            await stack.enter_async_context(serving(application, bound, {"log_config": None, "lifespan": "off"}))
        yield issuer, port


def shield(folder: Path, *before: str) -> subprocess.Popen[bytes]:
    command = [*before, sys.executable, "-m", "fhirshield", "serve", str(folder / "fhirshield.yaml")]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


async def up(port: int) -> None:
    for _ in range(400):
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the shield did not start")


@pytest.mark.promise
async def test_killed_again_and_again_it_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    cycles, answered = count(200, 4), set()
    async with around(tmp_path) as (issuer, port):
        token = issuer.token("https://shield.example/fhir", "system/*.rs")
        for cycle in range(cycles):
            process = shield(tmp_path)
            try:
                await up(port)
                answered |= await load_until_killed(process, port, token, random.Random(cycle).uniform(0.02, 0.15))
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)
    kept = {row["decision"] for row in records(tmp_path / "audit")}
    secret = (tmp_path / "journal.key").read_bytes()
    opened = Journal(tmp_path / "audit", secret, tmp_path / "witness.ndjson")
    opened.open()
    os.close(opened._descriptor)
    opened._thread.shutdown()
    assert verify(tmp_path / "audit", secret, None).faults == ()
    assert answered and not answered - kept
    tally("kills under load", tried=cycles, lost=len(answered - kept))


async def load_until_killed(process: subprocess.Popen[bytes], port: int, token: str, seconds: float) -> set[str]:
    found: set[str] = set()
    url = f"http://127.0.0.1:{port}/fhir/Patient/pat-1"
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:

        async def ask() -> None:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                while True:
                    async with session.get(url) as answer:
                        found.add(answer.headers["X-Request-Id"])
                        await answer.read()

        asking = [asyncio.create_task(ask()) for _ in range(8)]
        await asyncio.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        await asyncio.gather(*asking)
    return found


async def test_the_kernel_sees_the_fdatasync_before_the_first_byte(tmp_path: Path) -> None:
    strace = need("strace", "it shows the order of system calls")
    async with around(tmp_path) as (issuer, port):
        trace = tmp_path / "trace"
        process = shield(
            tmp_path, strace, "-f", "-y", "-e", "trace=fdatasync,sendto,sendmsg,write,writev", "-s", "200", "-o", str(trace)
        )
        try:
            await up(port)
            token = issuer.token("https://shield.example/fhir", "system/*.rs")
            for _ in range(5):
                request = urllib.request.Request(
                    f"http://127.0.0.1:{port}/fhir/Patient/pat-1", headers={"Authorization": f"Bearer {token}"}
                )
                answer = await asyncio.to_thread(urllib.request.urlopen, request, timeout=20)
                assert answer.status == 200
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(20)
    order = list(events(trace.read_text(errors="replace")))
    assert order.count("answer") >= 5
    for place in [index for index, event in enumerate(order) if event == "answer"]:
        assert "synced" in order[max(0, place - 3) : place], order


def events(text: str) -> Iterator[str]:
    """``synced`` for each finished fdatasync of the journal, ``answer`` for each first byte of an answer."""
    waiting: set[str] = set()
    for line in text.splitlines():
        thread = line.split()[0]
        if "fdatasync(" in line and "/audit/journal-" in line:
            if "unfinished" in line:
                waiting.add(thread)
            elif line.rstrip().endswith("= 0"):
                yield "synced"
        elif "fdatasync resumed" in line and thread in waiting and line.rstrip().endswith("= 0"):
            waiting.discard(thread)
            yield "synced"
        elif re.search(r"(sendto|sendmsg|write|writev)\(.*HTTP/1\.1 200 OK", line):
            yield "answer"


# --- tampering ------------------------------------------------------------------------------------------------------------


async def kept(folder: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A journal of several segments whose head is at the witness."""
    monkeypatch.setattr(module, "SEGMENT", 800)
    made = Journal(folder / "journal", KEY, folder / "witness")
    made.open()
    for n in range(number):
        await made.record({"n": n}, str(n))
    await made.close()
    return segments_of(folder / "journal")


def told(folder: Path) -> tuple[str, ...]:
    return verify(folder / "journal", KEY, folder / "witness").faults


Change = Callable[[bytes], bytes]


@pytest.mark.promise
async def test_a_cut_at_any_boundary_and_inside_any_record_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = await kept(tmp_path, 25, monkeypatch)
    assert len(segments) > 2 and told(tmp_path) == ()
    tried = 0
    for segment in segments:
        whole = segment.read_bytes()
        ends = [found.end() for found in re.finditer(b"\n", whole)]
        for cut in {0, *ends[:-1], *(end - 7 for end in ends)}:
            segment.write_bytes(whole[:cut])
            assert told(tmp_path) != (), (segment.name, cut)
            tried += 1
        segment.write_bytes(whole)
    for one, other in pairwise(segments):
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)
        assert told(tmp_path) != ()
        one.write_bytes(first)
        other.write_bytes(second)
        tried += 1
    for segment in segments:
        content = segment.read_bytes()
        segment.unlink()
        assert told(tmp_path) != ()
        segment.write_bytes(content)
        tried += 1
    assert told(tmp_path) == ()
    tally("tamperings", tried=tried, refused=tried)


async def test_what_is_after_the_last_head_is_said_not_to_be_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await kept(tmp_path, 5, monkeypatch)
    made = Journal(tmp_path / "journal", KEY, tmp_path / "witness")
    made.open()
    await made.record({"n": "later"}, "d")
    monkeypatch.setattr(made, "_publish", lambda: None)
    await made.close()
    proof = verify(tmp_path / "journal", KEY, tmp_path / "witness")
    assert (proof.records, proof.proven, proof.faults) == (6, 5, ())
