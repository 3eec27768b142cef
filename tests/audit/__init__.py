"""Tests of the records; ``records`` reads a journal plainly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def records(folder: Path) -> list[dict[str, Any]]:
    """The records of a journal, in order, without any check."""
    lines = [line for path in sorted(folder.glob("journal-*.log")) for line in path.read_bytes().splitlines()]
    return [json.loads(line[65:]) for line in lines]
