"""The chain: each record's MAC covers the record and the MAC before it, under a key that a reader of the disk lacks.

A chain without a key proves nothing, for whoever can write can recompute it. A chain with a key proves edits, deletions
and reordering; only a head published elsewhere (the witness) proves that the tail was not cut.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

import msgspec

GENESIS = bytes(32)


def link(key: bytes, before: bytes, record: bytes) -> bytes:
    """HMAC-SHA256 over the MAC before and the record's bytes."""
    return hmac.digest(key, before + record, "sha256")


def line(record: bytes, mac: bytes) -> bytes:
    """One line of the journal: the MAC in hex, a space, the record as JSON, a newline."""
    return mac.hex().encode() + b" " + record + b"\n"


def split(text: bytes) -> tuple[bytes, bytes] | None:
    """(mac, record) of a whole line without its newline, or None."""
    mac, space, record = text.partition(b" ")
    if len(mac) != 64 or not space:
        return None
    try:
        return bytes.fromhex(mac.decode("ascii")), record
    except ValueError:
        return None


class Head(msgspec.Struct, frozen=True):
    """What the witness keeps: how many records there were, the last MAC, and when; signed under the same key."""

    count: int
    mac: str
    time: str
    signature: str = ""

    def signed(self, key: bytes) -> Head:
        """With its signature."""
        return msgspec.structs.replace(self, signature=self._sign(key))

    def is_genuine(self, key: bytes) -> bool:
        """Whether the signature is by this key."""
        return hmac.compare_digest(self._sign(key), self.signature)

    def _sign(self, key: bytes) -> str:
        text = f"head {self.count} {self.mac} {self.time}".encode()
        return hmac.new(key, text, hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True)
class Proof:
    """What a verification found. ``faults`` is empty where everything is proven."""

    records: int
    heads: int
    proven: int
    """Records that a genuine head of the witness covers."""
    faults: tuple[str, ...]
