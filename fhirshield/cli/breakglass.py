"""Break-glass: the grants that were opened in emergencies, and what those who review them say.

    fhirshield breakglass list var/audit                       grants, with what was seen under each and its review
    fhirshield breakglass review var/audit GRANT --by NAME --verdict appropriate --note "…"

Reviews are kept beside the journal, each under the journal's key and the review before it; `list` says so where one was changed.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import hmac
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fhirshield.audit import chain
from fhirshield.audit.journal import segments_of, verify
from fhirshield.errors import Fault, OperatorError
from fhirshield.ring import load_key

VERDICTS = ("appropriate", "inappropriate", "unclear")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    shown = commands.add_parser("list", help="print the grants as JSON lines, the oldest first")
    shown.add_argument("journal", type=Path)
    shown.add_argument("--key", type=Path, help="default: journal.key beside the journal")
    shown.add_argument("--open", action="store_true", help="those alone that nobody reviewed")
    review = commands.add_parser("review", help="say what a review of a grant came to")
    review.add_argument("journal", type=Path)
    review.add_argument("grant")
    review.add_argument("--by", required=True, help="who reviewed")
    review.add_argument("--verdict", required=True, choices=VERDICTS)
    review.add_argument("--note", default="")
    review.add_argument("--key", type=Path, help="default: journal.key beside the journal")


def run(options: argparse.Namespace) -> int:
    """Print grants, or keep a review; 1 where reviews or the journal were changed, or no such grant is there."""
    key, _ = load_key(options.key or options.journal.parent / "journal.key")
    file = options.journal.parent / "breakglass-reviews.ndjson"
    found = grants(options.journal)
    reviews, whole, last = _reviews(file, key)
    if options.action == "review":
        if options.grant not in found:
            fault = Fault(str(options.journal), "", f"no grant `{options.grant}`", "see `fhirshield breakglass list`")
            raise OperatorError([fault])
        if not whole:
            raise OperatorError([Fault(str(file), "", "a review was changed or cut", "put the file aside, and say who did")])
        _append(file, key, last, options)
        return 0
    for identity, grant in found.items():
        if not (options.open and identity in reviews):
            print(json.dumps({**grant, "reviews": reviews.get(identity, [])}))
    witness = options.journal.parent / "witness.ndjson"
    faults = list(verify(options.journal, key, witness if witness.exists() else None).faults)
    faults += [f"{file}: a review was changed or cut"] if not whole else []
    for text in faults:
        print(json.dumps({"fault": text}))
    return 1 if faults else 0


def grants(journal: Path) -> dict[str, dict[str, Any]]:
    """The grants of a journal by id, each with the decisions that were made under it."""
    found: dict[str, dict[str, Any]] = {}
    for entry in _entries(journal):
        identity = entry["break_glass"]
        if entry["outcome"] == "break-glass":
            kept = ("time", "issuer", "subject", "fhir_user", "client", "rule", "patients", "stated", "seconds", "replaces")
            found[identity] = {"grant": identity, **{name: entry[name] for name in kept if name in entry}, "seen": []}
        elif entry["outcome"] == "not opened":
            found.pop(identity, None)
        elif identity in found:
            found[identity]["seen"].append({name: entry[name] for name in _SEEN if name in entry})
    return found


_SEEN = ("time", "decision", "interaction", "type", "id", "status", "shown")


def _entries(journal: Path) -> Iterator[dict[str, Any]]:
    for path in segments_of(journal):
        for text in path.read_bytes().splitlines():
            parts = chain.split(text)
            if parts is not None and b'"break_glass"' in parts[1]:
                entry = _parsed(parts[1])
                if isinstance(entry.get("break_glass"), str) and "outcome" in entry:  # what is none shows in `audit verify`
                    yield entry


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}


def _mac(key: bytes, before: str, text: str) -> str:
    secret = hashlib.sha256(b"break-glass reviews" + key).digest()
    return hmac.new(secret, f"{before}\n{text}".encode(), hashlib.sha256).hexdigest()


def _reviews(file: Path, key: bytes) -> tuple[dict[str, list[Any]], bool, str]:
    """Reviews by grant, whether each is as it was written, and the last MAC."""
    found: dict[str, list[Any]] = {}
    last, whole = "", True
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else ():
        mac, _, text = line.partition(" ")
        whole = whole and hmac.compare_digest(mac.encode(), _mac(key, last, text).encode())
        last = mac
        if whole:
            row = json.loads(text)
            found.setdefault(row.pop("grant"), []).append(row)
    return found, whole, last


def _append(file: Path, key: bytes, last: str, options: argparse.Namespace) -> None:
    row = {"grant": options.grant, "by": options.by, "verdict": options.verdict, "note": options.note}
    text = json.dumps({**row, "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds")})
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(f"{_mac(key, last, text)} {text}\n")
        stream.flush()
        os.fsync(stream.fileno())
