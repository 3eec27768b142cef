"""The journal: append-only segments on a disk, group commit, recovery to the last whole record.

While one group is written and fdatasynced in a thread, the next gathers; everyone in a group gets a receipt when the group
is durable, or none. A failed write poisons nothing: the segment is cut back to its last durable byte and the next group
tries again; until one succeeds, every exchange is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fhirshield.audit import chain
from fhirshield.audit.intents import Intents
from fhirshield.errors import Unavailable
from fhirshield.fhir.interaction import WRITES
from fhirshield.model import Receipt

SEGMENT = 64 << 20
"""Bytes after which a new segment begins."""
PATIENCE = 5.0
"""Seconds to wait for a receipt before the exchange is refused."""
LAZY = 0.05
"""Seconds for which a record that nobody waits for may wait for company."""
_encode = msgspec.json.Encoder(order="deterministic").encode


BROKEN = b'"outcome":"break-glass"'
"""Stands in the records of ``record.broken`` alone."""
UNOPENED = b'"outcome":"not opened"'
"""Stands in those of ``record.unopened`` alone."""


Observe = Callable[[dict[str, Any]], None]
"""Told of every record that is handed in."""
Waiting = tuple[bytes, str, asyncio.Future[Receipt] | None]
"""(record, decision id, who waits for it)"""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was found at the start: records kept, bytes of an unfinished record cut away."""

    records: int
    cut: int


class Journal:
    """Appends records durably. One process owns a folder."""

    def __init__(
        self, folder: Path, key: bytes, witness: Path, *, patience: float = PATIENCE, observe: Observe = lambda entry: None
    ) -> None:
        self._folder = folder
        self._key = key
        self._witness = witness
        self._patience = patience
        self._observe = observe
        self._thread = ThreadPoolExecutor(1, "journal")
        self._waiting: list[Waiting] = []
        self._running = False
        self._task: asyncio.Task[None] | None = None
        """Held, so that it is not collected while callers wait for it."""
        self._later: asyncio.TimerHandle | None = None
        self._descriptor = -1
        self._size = 0
        self._segment = 0
        self._mac = chain.GENESIS
        self._count = 0
        self._published = -1
        self.intents = Intents()
        """Writes whose outcome is not recorded."""
        self.broken: list[dict[str, Any]] = []
        """The records of glasses that were broken before this start, the oldest first."""
        self.syncs = 0
        """fdatasyncs so far."""
        self.failing = False
        """The last group could not be written, or not in time."""

    def open(self) -> Recovery:
        """Find the end of the chain, cut what is not whole, be ready to append. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        segments = segments_of(self._folder)
        cut = 0
        for path in segments:
            cut += self._replay(path, last=path == segments[-1])
        if segments:
            self._segment = int(segments[-1].stem.split("-")[1])
            self._attach(segments[-1])
        else:
            self._begin()
        return Recovery(self._count, cut)

    def _replay(self, path: Path, *, last: bool) -> int:
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        for text in whole.splitlines():
            parts = chain.split(text)
            if parts is not None:
                self._mac = parts[0]
                self._count += 1
                self.intents.read(parts[1])
                if BROKEN in parts[1]:
                    self.broken.append(msgspec.json.decode(parts[1]))
                elif UNOPENED in parts[1]:
                    none = msgspec.json.decode(parts[1])["break_glass"]
                    self.broken = [entry for entry in self.broken if entry["break_glass"] != none]
        if last and len(whole) < len(raw):
            with open(path, "r+b") as stream:
                stream.truncate(len(whole))
                os.fsync(stream.fileno())
        return len(raw) - len(whole)

    def _attach(self, path: Path) -> None:
        opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = opened
        self._size = os.fstat(self._descriptor).st_size

    def _begin(self) -> None:
        """A new segment, whose name is durable before anything is written to it."""
        self._attach(self._folder / f"journal-{self._segment + 1:08d}.log")
        self._segment += 1
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    # --- appending ------------------------------------------------------------------------------------------------

    async def record(self, entry: dict[str, Any], decision: str) -> Receipt:
        """Append one record; returns once it is durable. Raises Unavailable: then nothing may be sent."""
        self._observe(entry)
        future: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        self._waiting.append((_encode(entry), decision, future))
        self._kick()
        receipt = await future
        if "interaction" not in entry or entry["interaction"] in WRITES:
            self.intents.saw(entry)
        return receipt

    def note(self, entry: dict[str, Any]) -> None:
        """Append one record that nobody waits for: with the next group, or after a short while."""
        self._observe(entry)
        self._waiting.append((_encode(entry), "", None))
        if not self._running and self._later is None:
            self._later = asyncio.get_running_loop().call_later(LAZY, self._wake)

    def _wake(self) -> None:
        self._later = None
        self._kick()

    def counted(self, decision: str) -> Receipt:
        """The receipt of an exchange that is only counted (see ``quota``); its number is -1."""
        return Receipt(decision, -1)

    @property
    def count(self) -> int:
        """Records so far."""
        return self._count

    @property
    def unpublished(self) -> int:
        """Records that no head at the witness covers yet."""
        return self._count - max(self._published, 0)

    def _kick(self) -> None:
        if not self._running:
            self._running = True
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting, []
                try:
                    first = await self._committed(group)
                    self.failing = False
                except OSError as error:
                    self.failing = True
                    _fail(group, Unavailable(f"the journal cannot be written: {error.strerror}"))
                    continue
                except Exception as error:  # noqa: BLE001 - law 3: whoever waits is refused, whatever went wrong
                    self.failing = True
                    _fail(group, Unavailable(f"the journal cannot be written: {type(error).__name__}"))
                    continue
                for offset, (_, decision, future) in enumerate(group):
                    if future is not None and not future.done():
                        future.set_result(Receipt(decision, first + offset))
        finally:
            self._running = False

    async def _committed(self, group: list[Waiting]) -> int:
        """The number of the group's first record, once it is durable; whoever waits longer than patience is refused."""
        records = [item[0] for item in group]
        task = asyncio.get_running_loop().run_in_executor(self._thread, self._commit, records)
        while True:
            done, _ = await asyncio.wait((task,), timeout=self._patience)
            if done:
                return task.result()
            self.failing = True
            _fail([*group, *self._waiting], Unavailable("the journal did not answer in time", slow=True))

    def _commit(self, records: list[bytes]) -> int:
        """Write and fdatasync a group, in the journal's thread. All of it or, cut back, nothing."""
        mac, lines = self._mac, []
        for record in records:
            mac = chain.link(self._key, mac, record)
            lines.append(chain.line(record, mac))
        content = memoryview(b"".join(lines))
        before = self._size
        try:
            if os.fstat(self._descriptor).st_size != before:
                os.ftruncate(self._descriptor, before)
            written = 0
            while written < len(content):
                written += os.write(self._descriptor, content[written:])
            os.fdatasync(self._descriptor)
        except OSError:
            self._cut_back(before)
            raise
        self.syncs += 1
        first = self._count
        self._size = before + len(content)
        self._mac = mac
        self._count += len(records)
        if self._size >= SEGMENT:
            with contextlib.suppress(OSError):  # the records are durable where they are; the next group tries again
                self._begin()
        return first

    def _cut_back(self, size: int) -> None:
        try:
            os.ftruncate(self._descriptor, size)
        except OSError:
            return

    # --- witness --------------------------------------------------------------------------------------------------

    async def publish(self) -> None:
        """Append the signed head to the witness, unless it says so already. Raises OSError."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._publish)

    def _publish(self) -> None:
        if self._published == self._count:
            return
        now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
        head = chain.Head(self._count, self._mac.hex(), now).signed(self._key)
        self._witness.parent.mkdir(parents=True, exist_ok=True)
        with open(self._witness, "ab") as stream:
            stream.write(_encode(head) + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._published = self._count

    async def close(self) -> None:
        """Wait for what is under way, publish the head, let go."""
        while self._running or self._waiting:
            self._kick()
            await asyncio.sleep(0.005)
        if self._later is not None:
            self._later.cancel()
        await self.publish()
        self._thread.shutdown()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _fail(group: list[Waiting], error: Unavailable) -> None:
    for _, _, future in group:
        if future is not None and not future.done():
            future.set_exception(error)


def segments_of(folder: Path) -> list[Path]:
    """The segments of a journal, oldest first."""
    return sorted(folder.glob("journal-*.log"))


# --- verification -----------------------------------------------------------------------------------------------------


def verify(folder: Path, key: bytes, witness: Path | None) -> chain.Proof:
    """Walk the whole chain, and hold it against the heads of a witness. Reads only."""
    faults: list[str] = []
    macs: list[bytes] = []
    mac = chain.GENESIS
    for path in segments_of(folder):
        raw = path.read_bytes()
        if raw and not raw.endswith(b"\n"):
            faults.append(f"{path.name}: ends inside a record")
        for number, text in enumerate(raw.splitlines(), 1):
            parts = chain.split(text)
            if parts is None or chain.link(key, mac, parts[1]) != parts[0]:
                faults.append(f"{path.name}:{number}: record {len(macs)} does not follow from the one before it")
            if parts is not None:
                mac = parts[0]
                macs.append(mac)
    heads, proven = _against(witness, key, macs, faults) if witness else (0, 0)
    return chain.Proof(len(macs), heads, proven, tuple(faults))


def _against(witness: Path, key: bytes, macs: list[bytes], faults: list[str]) -> tuple[int, int]:
    if not witness.exists():
        faults.append(f"{witness.name}: no such witness")
        return 0, 0
    heads = proven = 0
    for number, text in enumerate(witness.read_bytes().splitlines(), 1):
        try:
            head = msgspec.json.decode(text, type=chain.Head)
        except msgspec.DecodeError:
            faults.append(f"{witness.name}:{number}: not a head")
            continue
        heads += 1
        if not head.is_genuine(key):
            faults.append(f"{witness.name}:{number}: not signed by this journal's key")
        elif head.count > len(macs):
            faults.append(f"{witness.name}:{number}: {head.count - len(macs)} records of {head.count} are lost")
        elif head.count and macs[head.count - 1].hex() != head.mac:
            faults.append(f"{witness.name}:{number}: the journal is not the one that this head was taken of")
        else:
            proven = max(proven, head.count)
    return heads, proven
