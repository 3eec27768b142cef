"""How well the code lists find what is sensitive: recall of each category, and what is labelled beyond it.

    FHIRSHIELD_DATA=…/data python -m tests.labels.recall

``gold.csv`` says of each resource of six synthetic patients, by clinical reading of its codes and texts, what it tells of; what
is arguable counts neither way. The overlay was made with these patients in view, the lists of C2S were not.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fhirshield.fhir.glance import glance
from fhirshield.policy.sensitivity import compiled, read_list
from tests.parts import ROOT, data

LISTS = ROOT / "rules/sensitivity"


@dataclass(slots=True)
class Row:
    """What became of one category."""

    there: int = 0
    found: int = 0
    beyond: list[str] = field(default_factory=list)
    """Resources that are labelled so and should not be."""


def gold() -> dict[tuple[str, str, str], tuple[set[str], set[str]]]:
    """(file, type, id) -> categories, and those that are arguable."""
    with (Path(__file__).parent / "gold.csv").open() as stream:
        return {
            (row["file"], row["type"], row["id"]): (set(row["categories"].split()), set(row["borderline"].split()))
            for row in csv.DictReader(stream)
        }


def resources(node: Any) -> list[Any]:
    """All resources of a file."""
    if node.get("resourceType") == "Bundle":
        return [one for entry in node.get("entry", ()) for one in resources(entry["resource"])]
    return [node]


def table(lists: tuple[str, ...]) -> dict[str, Row]:
    """Recall and more by category, for these lists."""
    sensitivity = compiled([row for name in lists for row in read_list((LISTS / name).read_text())], {}, {}, "N")
    known, found = gold(), {}
    for file in sorted((data() / "sensitive").glob("*.json")):
        for resource in resources(json.loads(file.read_text())):
            key = (file.stem, resource["resourceType"], resource.get("id", ""))
            found[key] = sensitivity.kinds_of(glance(resource).codings)
    rows: dict[str, Row] = {}
    for key, (wanted, arguable) in known.items():
        got = found.get(key, set())
        for category in wanted:
            row = rows.setdefault(category, Row())
            row.there += 1
            row.found += category in got
        for category in got - wanted - arguable:
            rows.setdefault(category, Row()).beyond.append(f"{key[0]} {key[1]}/{key[2]}")
    return dict(sorted(rows.items()))


def main() -> None:
    """Print the tables."""
    for lists in (("c2s.csv",), ("c2s.csv", "overlay.csv")):
        print(f"\n{' + '.join(lists)}\n{'category':<10}{'there':>6}{'found':>6}{'recall':>8}{'beyond':>8}")
        for category, row in table(lists).items():
            recall = f"{row.found / row.there:.2f}" if row.there else "-"
            print(f"{category:<10}{row.there:>6}{row.found:>6}{recall:>8}{len(row.beyond):>8}")


if __name__ == "__main__":
    main()
