"""The shield without one of its guards: does the test of non-interference notice? Run by ``make mutants``.

Each mutant is a small edit of a copy of the sources. A guard that can go unnoticed is a hole in that test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.parts import ROOT

PAIRS = os.environ.get("FHIRSHIELD_PAIRS", "600")
TEST = "tests/properties/test_non_interference.py"
MUTANTS: tuple[tuple[str, str, str, str], ...] = (
    ("denies are not asked", "authorize/resource.py", "if denies(row, rule_letter, resource) or (also and denies(row, \"r\", resource)) or denies(row, verb, resource):", "if False:"),
    ("the patient's set is not asked", "authorize/resource.py", "return not row.limited or beside or in_patients_set(", "return True or in_patients_set("),
    ("granular scopes are not judged", "authorize/resource.py", "(row.judge is not None and row.judge(resource) is not True)", "False"),
    ("criteria of allows are not judged", "authorize/resource.py", "and (row.judge is None or row.judge(resource) is True)", ""),
    ("withheld is told", "redact/body.py", 'denial = Denial(404, Reason.NOT_FOUND, "not-found", _NOT_FOUND', 'denial = Denial(403, Reason.NOT_FOUND, "forbidden", _NOT_FOUND'),
    ("obligations are not carried out", "redact/body.py", "        if applies:\n", "        if False:\n"),
    ("names stay in references", "redact/body.py", "        if not view.naming.all_open:\n", "        if False:\n"),
    ("narrative stays", "redact/body.py", "        if silent:\n            silence(resource)\n", ""),
    ("marks tell", "redact/body.py", "        if marked and mark is not None:\n", "        if marked and mark is not None and counts:\n"),
    ("versions tell", "authorize/standing.py", "closed=self._closed(name) if obligations else frozenset()", "closed=frozenset()"),
    ("filters on what is hidden", "authorize/parameters.py", "    revealing = _revealed(standing.view, known)\n", "    revealing: tuple[Obligation, ...] = ()\n"),
    ("sorts by what is hidden", "authorize/parameters.py", "        if _revealed(standing.view, known) or OF_META.get(name) in standing.view.closed:\n            return _revealing(name, standing.type)\n    return None\n", "    return None\n"),
    ("what looks into everything", "authorize/parameters.py", "denial = None if open_to(standing.type) else", "denial = None if True else"),
    ("joins are the server's", "authorize/parameters.py", "if open_to(step.search.type):", "if True:"),
    ("pages are the server's", "authorize/caller.py", "thins=criteria is not None or not _all_found(found) or _is_ours(interaction)", "thins=False"),
    ("pages look not ahead", "redact/searchset.py", "if self._made(entries[place], ahead) is not None:", "if True:"),
    ("counts are the server's", "redact/searchset.py", "            if made is None:\n                continue\n            self._total += 1\n", "            self._total += 1\n            if made is None:\n                continue\n"),
    ("includes lead from anywhere", "redact/searchset.py", "keys = reached(permit.shape.includes, self._shown, resources, permit.situation.bases)", "keys = list(resources)"),
    ("includes are not judged", "redact/searchset.py", 'work.judged(resource, "i")', 'work.judged(resource, "c")'),
    ("the past is judged by itself", "redact/history.py", "        if newest is None or redactor.view_of(newest.resource, permit, permit.interaction.letter) is None:\n", "        if newest is None:\n"),
    ("equal views are two entries", "redact/history.py", "if token and before is not None and before.token == token:", "if False and before is not None:"),
    ("the newest of equal views stands", "redact/history.py", "            return None\n        return Seen(version, content, token", "            self.seen.pop()\n        return Seen(version, content, token"),
    ("versions go by number", "redact/history.py", "if (one.token or one.version.version) == version", "if version in {one.token, one.version.version}"),
    ("times of a history", "authorize/parameters.py", 'if name != "_count" and hidden:', "if False:"),
    ("everything is in the server's order", "redact/operation.py", "names = sorted(self._shown, key=lambda name: (name != self._centre, name.type, name.id))", "names = list(self._shown)"),
    ("everything leads from anywhere", "redact/operation.py", "if name == self._centre or self._centre in names_by(_BESIDE[0], resource, bases):", "if True:"),
    ("operations on what is hidden", "inquiry/before.py", "if not seen or not on_this(permit, stored.resource, self._rules):", "if stored.resource is None:"),
    ("dates of everything", "authorize/operation.py", "    if asked and stand.applied.hides:\n", "    if False:\n"),
    ("patients are matched by what is hidden", "authorize/operation.py", "denial = denial or _matched(found, interaction.content)", "denial = denial"),
    ("matches are the server's number", "rewrite/plan.py", '[{"name": "count", "valueInteger": MOST_AT_ONCE}]', '[{"name": "count", "valueInteger": int(given.get("count", "500"))}]'),
    ("what is hidden may be changed", "authorize/writing.py", "    if not verdict.shown:\n        return _not_found(verdict.reason, verdict.rule)\n", ""),
    ("ids are free", "authorize/writing.py", "if kind is Kind.UPDATE and writer.may_create_by_update():", "if kind is Kind.UPDATE:"),
    ("references to what is hidden", "authorize/writing.py", "        if resource is None or not _may_refer(writer, resource):\n            return _not_visible(place)\n    images", "        if resource is None:\n            return _not_visible(place)\n    images"),
    ("conditions on what is hidden", "inquiry/search.py", "if inner.thins or inner.joins:", "if False:"),
    ("loose binaries count as seen", "authorize/caller.py", "and not found.withheld_by and not belonging", "and not found.withheld_by"),
    ("Consents are not asked", "authorize/circumstances.py", "            if said.decision is not Decision.PERMIT:\n", "            if False:\n"),
    ("labels are not asked", "authorize/circumstances.py", "            if labels is not self._cleared and not cleared(self._clearance, labels):\n", "            if False:\n"),
    ("references to what a Consent hides", "authorize/writing.py", "    if found.guarded and found.type != \"Binary\" and writer.seen.refuse(resource) is not None:\n", "    if False:\n"),
    ("a page is not looked at", "fhir/glance.py", "        return self._places.get(id(resource), -1) in self._closer\n", "        return id(resource) not in self._places\n"),
    ("denied elements stay", "authorize/resource.py", "        if names.isdisjoint(said.elements or ()):\n", "        if True:\n"),
    ("whose an edit would be is not gathered", "inquiry/before.py", "        await self._gather.about(permit, [edit.new], gathered)\n", ""),
    ("hidden parts are compared", "redact/written.py", "if interaction.if_match and interaction.if_match != seen.version:", "if interaction.if_match and interaction.if_match != stored.version:"),
)  # fmt: skip
"""(guard, file, what stands there, what stands there without it)"""


def survives(number: int) -> bool:
    """Whether the test passes without a guard."""
    _, file, old, new = MUTANTS[number]
    with tempfile.TemporaryDirectory() as folder:
        for part in ("fhirshield", "tests", "rules", "tools"):
            shutil.copytree(ROOT / part, Path(folder) / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        source = Path(folder) / "fhirshield" / file
        text = source.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{file}: {text.count(old)} times: {old}"
        source.write_text(text.replace(old, new), encoding="utf-8")
        environment = {**os.environ, "FHIRSHIELD_PAIRS": PAIRS, "PYTHONDONTWRITEBYTECODE": "1", "CI": ""}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:randomly", TEST]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        noticed = done.returncode == 1 and "1 failed" in done.stdout
        if done.returncode != 0 and not noticed:
            print(done.stdout[-2000:])
        return not noticed


def main() -> int:
    """All mutants, or those that are named by number; 1 where any survives."""
    chosen = [int(text) for text in sys.argv[1:]] or range(len(MUTANTS))
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        left = [MUTANTS[number][0] for number, alive in zip(chosen, pool.map(survives, chosen), strict=True) if alive]
    for name in left:
        print(f"SURVIVED without the guard: {name}")
    print(f"{len(chosen)} guards taken away, {len(left)} not noticed")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
