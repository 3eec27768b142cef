"""What the documentation says is true: code blocks run, lists are equal to the code, links lead somewhere."""

from __future__ import annotations

import argparse
import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fhirshield import document
from fhirshield.cli import COMMANDS
from fhirshield.cli.test import Suite, play
from fhirshield.document import schema_of
from fhirshield.fhir.terminology import Terminology
from fhirshield.model import Reason
from fhirshield.policy.load import loads
from fhirshield.settings import NOT_YET, load
from tests.parts import ROOT, need
from tests.test_settings import leaves

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/adr/*.md")])
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> Iterator[tuple[str, str, str]]:
    for page in PAGES:
        for found in FENCE.finditer(page.read_text(encoding="utf-8")):
            yield f"{page.relative_to(ROOT)}:{found.start()}", found[1].strip(), found[2]


BLOCKS = list(blocks())


@pytest.mark.parametrize(("where", "kind", "text"), BLOCKS, ids=[where for where, _, _ in BLOCKS])
def test_every_code_block_runs(tmp_path: Path, where: str, kind: str, text: str) -> None:
    runners = {
        "yaml settings": _settings, "yaml rules": _rules, "yaml tests": _tests, "sh": _shell, "console": _console,
        "json sensitive.json": _terminology,
    }  # fmt: skip
    assert kind in runners, f"{where}: a block of kind `{kind}` is run by nothing"
    runners[kind](text, tmp_path)


def _settings(text: str, folder: Path) -> None:
    (folder / "fhirshield.yaml").write_text(text)
    assert load(folder / "fhirshield.yaml").upstreams


def _rules(text: str, folder: Path) -> None:
    for _, kind, content in BLOCKS:
        if kind.startswith("json "):
            (folder / kind.removeprefix("json ")).write_text(content)
    assert loads(text, str(folder / "rules.yaml")).rules


def _terminology(text: str, folder: Path) -> None:
    assert Terminology([json.loads(text)])


def _tests(text: str, folder: Path) -> None:
    found, faults = document.parse(text, "tests.yaml", "tests")
    assert not faults
    rules = {
        "id": "a", "who": {"roles": ["nurse"]}, "allow": {"interactions": ["read"], "resources": ["Patient"]},
        "redact": [{"resources": ["Patient"], "path": "$.birthDate", "with": "generalize", "to": "year"}],
    }  # fmt: skip
    physicians = [
        {"id": "b", "who": {"roles": ["physician"]}, "allow": {"interactions": ["read"], "resources": ["Patient"]}},
        {"id": "c", "who": {"roles": ["physician"]}, "break_glass": {"resources": ["Patient"], "replaces": ["consent"], "time": "30m", "limit": 1, "per": "1h"}},
    ]  # fmt: skip
    suite = Suite(folder / "tests.yaml", {}, found.value)
    assert not [p for result in play(suite, loads(yaml.safe_dump({"rules": [rules, *physicians]}))) for p in result.problems]


def _shell(text: str, folder: Path) -> None:
    """Each line is a target of the Makefile, or a call that the command line understands."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in text.strip().splitlines():
        words = shlex.split(line)
        if words[0] == "make":
            assert words[1] in targets, line
        else:
            assert words[0] == "fhirshield" and words[1] in COMMANDS, line
            _understood(words[1:])


def _understood(words: list[str]) -> None:

    parser = argparse.ArgumentParser(exit_on_error=False)
    COMMANDS[words[0]].arguments(parser)
    parser.parse_args(words[1:])


def _console(text: str, folder: Path) -> None:
    """A command and what it prints."""
    command, _, wanted = text.partition("\n")
    words = shlex.split(command.removeprefix("$ "))
    found = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, cwd=ROOT, check=False)
    assert found.stdout.strip() == wanted.strip()


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), (page, target)


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    schema = schema_of("settings")
    for key in leaves(schema, schema):
        assert f"`{key}`" in text or f"`.{key.rpartition('.')[2]}`" in text, key
    for waiting in NOT_YET:
        assert f"`{'.'.join(waiting)}`".replace("upstreams.*", "upstreams.[]") in text, waiting


def test_every_command_reason_and_rule_key_is_documented() -> None:
    everything = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    errors = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"`{name}`" not in everything] == []
    assert re.findall(r"^\| `([a-z-]+)` \|", errors, re.MULTILINE) == [reason.value for reason in Reason]
    rules = (ROOT / "docs/rules.md").read_text(encoding="utf-8")
    properties = schema_of("rules")["$defs"]["redaction"]["properties"]
    assert [key for key in properties if key not in rules] == []


def test_promises_and_the_tests_that_hold_them_are_equal() -> None:
    text = (ROOT / "docs/promises.md").read_text(encoding="utf-8")
    promised = re.findall(r"\| `(tests/[a-z_/0-9]+\.py)::(test_\w+)` \|", text)
    assert len(promised) == len(set(promised)) == text.count("| `tests/")
    marked = {(str(path.relative_to(ROOT)), name) for path in ROOT.glob("tests/**/test_*.py") for name in _marked(path)}
    assert set(promised) == marked


def _marked(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        decorators = node.decorator_list if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and "pytest.mark.promise" in map(ast.unparse, decorators):
            yield node.name


def test_every_guard_that_mutants_take_away_stands_once() -> None:
    from tests.mutants import MUTANTS

    counts = {guard: (ROOT / "fhirshield" / file).read_text(encoding="utf-8").count(old) for guard, file, old, _ in MUTANTS}
    assert [guard for guard, number in counts.items() if number != 1] == [] and len(counts) == len(MUTANTS)


def test_the_picture_of_the_house_names_every_room() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rooms = [p for p in (ROOT / "fhirshield").iterdir() if not p.name.startswith("__")]
    names = [p.name + "/" if p.is_dir() else p.name for p in rooms if p.is_dir() or p.suffix == ".py"]
    assert [name for name in names if name not in text] == []


@pytest.mark.parametrize(("made", "maker"), [("Permit(", "authorize"), ("Plan(", "rewrite"), ("Receipt(", "audit")])
def test_each_token_of_passage_is_made_in_one_room(made: str, maker: str) -> None:
    for path in ROOT.glob("fhirshield/**/*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func).split(".")[-1] + "(" == made]
        assert not calls or path.relative_to(ROOT / "fhirshield").parts[0] == maker, path


def test_the_project_speaks_of_itself_alone() -> None:
    git = need("git", "it lists the project's files")
    tracked = subprocess.run([git, "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    words = re.compile(r"/" + r"work/|/" + r"tmp/bg|files\.pytho" + r"nhosted|registry\.npm" + r"js|repo\.mave" + r"n")
    for name in tracked:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".yml", ".toml", ".lock", ".json", ".txt", ""} and path.is_file():
            assert not words.search(path.read_text(encoding="utf-8", errors="replace")), name
