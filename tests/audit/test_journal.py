"""The journal: durable before a receipt, whole after a crash, proven by key and witness."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fhirshield.audit import Journal, chain
from fhirshield.audit import journal as module
from fhirshield.audit.journal import segments_of, verify
from fhirshield.audit.quota import BURST, Quota, prefix_of
from fhirshield.errors import Unavailable
from fhirshield.model import Situation
from tests.audit import records

KEY = b"k" * 32


def journal(folder: Path, **how: Any) -> Journal:
    made = Journal(folder / "journal", KEY, folder / "witness", **how)
    made.open()
    return made


async def fill(folder: Path, count: int = 20) -> None:
    made = journal(folder)
    await asyncio.gather(*(made.record({"n": n}, str(n)) for n in range(count)))
    await made.close()


async def test_records_are_kept_in_order_and_proven(tmp_path: Path) -> None:
    await fill(tmp_path)
    await fill(tmp_path, 5)
    proof = verify(tmp_path / "journal", KEY, tmp_path / "witness")
    assert (proof.records, proof.proven, proof.faults) == (25, 25, ())
    assert [row["n"] for row in records(tmp_path / "journal")] == [*range(20), *range(5)]


async def test_a_group_shares_one_fdatasync(tmp_path: Path) -> None:
    made = journal(tmp_path)
    receipts = await asyncio.gather(*(made.record({}, "d") for _ in range(200)))
    assert [r.sequence for r in receipts] == list(range(200))
    assert made.syncs <= 4
    await made.close()


@pytest.mark.promise
async def test_no_receipt_before_the_fdatasync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    original = os.fdatasync

    def spy(descriptor: int) -> None:
        original(descriptor)
        order.append("synced")

    monkeypatch.setattr(os, "fdatasync", spy)
    made = journal(tmp_path)
    await made.record({}, "d")
    order.append("receipt")
    assert order == ["synced", "receipt"]
    await made.close()


@pytest.mark.parametrize("cut", range(1, 90, 7))
async def test_a_cut_inside_a_record_is_recovered_and_said(tmp_path: Path, cut: int) -> None:
    await fill(tmp_path, 5)
    (segment,) = segments_of(tmp_path / "journal")
    with open(segment, "r+b") as stream:
        stream.truncate(segment.stat().st_size - cut)
    again = Journal(tmp_path / "journal", KEY, tmp_path / "witness")
    recovery = again.open()
    lost = 5 - recovery.records
    assert lost >= 1 and recovery.records == len(records(tmp_path / "journal"))
    await again.record({"n": "after"}, "d")
    await again.close()
    proof = verify(tmp_path / "journal", KEY, None)
    assert proof.faults == () and proof.records == recovery.records + 1


def change(folder: Path, how: Callable[[list[bytes]], list[bytes]]) -> tuple[str, ...]:
    (segment,) = segments_of(folder / "journal")
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join(how(lines)))
    return verify(folder / "journal", KEY, folder / "witness").faults


def _recomputed(lines: list[bytes]) -> list[bytes]:
    mac, made = chain.GENESIS, []
    for line in lines[:10]:
        record = line[65:].rstrip(b"\n")
        mac = chain.link(b"another key".ljust(32), mac, record)
        made.append(chain.line(record, mac))
    return made


@pytest.mark.promise
@pytest.mark.parametrize(
    "how",
    [
        lambda lines: [*lines[:7], lines[7].replace(b'"n":7', b'"n":8'), *lines[8:]],
        lambda lines: lines[:7] + lines[8:],
        lambda lines: [*lines[:7], lines[8], lines[7], *lines[9:]],
        lambda lines: lines[:8] + lines[7:],
        lambda lines: lines[:15],
        lambda lines: [],
        lambda lines: [*lines[:-1], lines[-1][:-10]],
        lambda lines: [b"x\n", *lines],
        _recomputed,
    ],
)
async def test_tampering_is_found(tmp_path: Path, how: Callable[[list[bytes]], list[bytes]]) -> None:
    await fill(tmp_path)
    assert change(tmp_path, lambda lines: lines) == ()
    assert change(tmp_path, how) != ()


async def test_an_old_journal_put_back_is_found(tmp_path: Path) -> None:
    await fill(tmp_path, 5)
    (segment,) = segments_of(tmp_path / "journal")
    old = segment.read_bytes()
    await fill(tmp_path, 5)
    segment.write_bytes(old)
    assert any("lost" in fault for fault in verify(tmp_path / "journal", KEY, tmp_path / "witness").faults)


async def test_a_forged_head_is_found(tmp_path: Path) -> None:
    await fill(tmp_path, 5)
    witness = tmp_path / "witness"
    head = json.loads(witness.read_bytes().splitlines()[-1])
    witness.write_bytes(json.dumps({**head, "count": 3}).encode() + b"\nnot a head\n")
    assert len(verify(tmp_path / "journal", KEY, witness).faults) == 2


async def test_a_failing_disk_refuses_and_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = journal(tmp_path)
    await made.record({"n": 1}, "d")
    for failing in ("write", "fdatasync"):
        original = getattr(os, failing)

        def fail(*arguments: Any) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, failing, fail)
        with pytest.raises(Unavailable):
            await made.record({"n": "lost"}, "d")
        monkeypatch.setattr(os, failing, original)
    receipt = await made.record({"n": 2}, "d")
    assert receipt.sequence == 1
    await made.close()
    assert verify(tmp_path / "journal", KEY, None).faults == ()
    assert [row["n"] for row in records(tmp_path / "journal")] == [1, 2]


async def test_an_error_that_nobody_foresaw_leaves_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = journal(tmp_path)

    def explode(key: bytes, before: bytes, record: bytes) -> bytes:
        raise RuntimeError

    with monkeypatch.context() as broken:
        broken.setattr(chain, "link", explode)
        with pytest.raises(Unavailable):
            await made.record({}, "d")
    assert (await made.record({}, "d")).sequence == 0
    await made.close()


async def test_half_a_write_is_cut_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = journal(tmp_path)
    original = os.write
    calls = []

    def half(descriptor: int, content: Any) -> int:
        calls.append(1)
        if len(calls) == 1:
            return original(descriptor, bytes(content)[:10])
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(Unavailable):
        await made.record({"n": "lost"}, "d")
    monkeypatch.setattr(os, "write", original)
    await made.record({"n": 2}, "d")
    await made.close()
    assert [row["n"] for row in records(tmp_path / "journal")] == [2]
    assert verify(tmp_path / "journal", KEY, None).faults == ()


async def test_a_slow_disk_refuses_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    made = journal(tmp_path, patience=0.05)
    original = os.fdatasync

    def slow(descriptor: int) -> None:
        time.sleep(0.3)
        original(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    with pytest.raises(Unavailable):
        await made.record({}, "d")
    await made.close()


async def test_segments_turn_over_and_stay_one_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT", 500)
    await fill(tmp_path, 4)
    for _ in range(3):
        await fill(tmp_path, 4)
    assert len(segments_of(tmp_path / "journal")) > 2
    proof = verify(tmp_path / "journal", KEY, tmp_path / "witness")
    assert (proof.records, proof.faults) == (16, ())
    segments_of(tmp_path / "journal")[1].unlink()
    assert verify(tmp_path / "journal", KEY, tmp_path / "witness").faults


async def test_a_segment_that_cannot_begin_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT", 300)
    made = journal(tmp_path)
    original = os.open

    def fail(path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise OSError(24, "Too many open files")
        return original(path, flags, mode)

    monkeypatch.setattr(os, "open", fail)
    for number in range(8):
        await made.record({"n": number}, "d")
    monkeypatch.setattr(os, "open", original)
    for number in range(8, 12):
        await made.record({"n": number}, "d")
    await made.close()
    assert [row["n"] for row in records(tmp_path / "journal")] == list(range(12))
    assert verify(tmp_path / "journal", KEY, tmp_path / "witness").faults == ()
    assert len(segments_of(tmp_path / "journal")) > 1


@pytest.mark.promise
async def test_a_flood_of_strangers_is_counted_not_kept(tmp_path: Path) -> None:
    made = journal(tmp_path)
    clock = [0.0]
    quota = Quota(made, lambda: clock[0])

    situation = Situation("/fhir", "", (), dt.datetime(2026, 1, 5, tzinfo=dt.UTC), "203.0.113.9", "d", None, "")
    for _ in range(5000):
        await quota.record({"reason": "no-credential", "time": "t"}, situation)
    quota.flush()
    await made.close()
    rows = records(tmp_path / "journal")
    assert len(rows) == BURST + 1
    assert rows[-1]["aggregated"] == {"203.0.113.0/24 no-credential": 5000 - BURST}
    assert prefix_of("2001:db8::1") == "2001:db8::/56" and prefix_of("x") == "unknown"
