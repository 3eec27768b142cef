"""Audit: read the journal, and prove that it is whole.

    fhirshield audit tail var/audit            the last records, as JSON lines
    fhirshield audit intents var/audit         writes that have no outcome, as JSON lines
    fhirshield audit verify var/audit --key var/journal.key --witness var/witness.ndjson

Verification recomputes the chain under its key and holds it against the heads that were published at the witness: what is
lost after the last of them cannot be proven either way, and is said so.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fhirshield.audit import chain
from fhirshield.audit.intents import intents_of
from fhirshield.audit.journal import segments_of, verify
from fhirshield.ring import load_key


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    tail = commands.add_parser("tail", help="print the last records as JSON lines")
    tail.add_argument("journal", type=Path)
    tail.add_argument("-n", "--number", type=int, default=10, help="how many (default 10)")
    intents = commands.add_parser("intents", help="print the writes that have no outcome as JSON lines")
    intents.add_argument("journal", type=Path)
    check = commands.add_parser("verify", help="prove the chain")
    check.add_argument("journal", type=Path)
    check.add_argument("--key", type=Path, help="default: journal.key beside the journal")
    check.add_argument("--witness", type=Path, help="default: witness.ndjson beside the journal, if it is there")
    check.add_argument("--json", action="store_true", help="one JSON document on standard output")


def run(options: argparse.Namespace) -> int:
    """Print records, or the proof; 1 when the chain does not hold."""
    if options.action == "tail":
        for text in _last(options.journal, options.number):
            print(text)
        return 0
    if options.action == "intents":
        for entry in intents_of(segments_of(options.journal)).open.values():
            print(json.dumps(entry))
        return 0
    beside = options.journal.parent
    secret, _ = load_key(options.key or beside / "journal.key")
    witness = options.witness
    if witness is None and (beside / "witness.ndjson").exists():
        witness = beside / "witness.ndjson"
    proof = verify(options.journal, secret, witness)
    if options.json:
        print(json.dumps({"records": proof.records, "heads": proof.heads, "proven": proof.proven, "faults": proof.faults}))
    else:
        print("\n".join(told(proof, witness is not None)))
    return 1 if proof.faults else 0


def told(proof: chain.Proof, witnessed: bool) -> list[str]:
    """A proof in words."""
    lines = [f"FAULT {fault}" for fault in proof.faults]
    lines.append(f"{proof.records} records" + ("" if proof.faults else ", each following from the one before it"))
    if witnessed:
        after = proof.records - proof.proven
        lines.append(f"{proof.proven} are covered by {proof.heads} heads at the witness; {after} came after the last of them")
    else:
        lines.append("no witness: that the end was not cut is not proven")
    return lines


def _last(folder: Path, number: int) -> list[str]:
    found: list[str] = []
    for path in reversed(segments_of(folder)):
        lines = [parts[1].decode() for text in path.read_bytes().splitlines() if (parts := chain.split(text))]
        found = lines[-(number - len(found)) :] + found if number > len(found) else found
    return found
