"""What attacks and faults were tried, and how they ended; one table at the end of a run."""

from __future__ import annotations

COLUMNS = ("tried", "refused", "leaked", "unaudited", "lost")
TABLE: dict[str, dict[str, int]] = {}


def tally(kind: str, **counts: int) -> None:
    """Add a line, or to a line. What is not named is none."""
    row = TABLE.setdefault(kind, dict.fromkeys(COLUMNS, 0))
    for name, number in counts.items():
        row[name] += number


def lines() -> list[str]:
    """The table, or nothing."""
    if not TABLE:
        return []
    width = max(len(kind) for kind in TABLE)
    head = " " * width + "".join(f"{name:>11}" for name in COLUMNS)
    return [head, *(kind.ljust(width) + "".join(f"{row[name]:>11}" for name in COLUMNS) for kind, row in sorted(TABLE.items()))]
