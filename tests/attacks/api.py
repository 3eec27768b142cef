"""The corpus ``api.yaml``: its requests made ready, and what an answer to one must be. Used by ``test_api.py`` and ``run.py``."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TEXT = (Path(__file__).parent / "api.yaml").read_text(encoding="utf-8")
_URL = re.compile(r"https?://[^\s\"]+")


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent."""

    method: str
    path: str
    body: Any
    headers: dict[str, str]

    @property
    def content(self) -> bytes | None:
        """The body as bytes."""
        return None if self.body is None else json.dumps(self.body).encode()

    @property
    def sent(self) -> dict[str, str]:
        """The headers, with the type of the body."""
        kind = "application/json-patch+json" if self.method == "PATCH" else "application/fhir+json"
        return {**({"Content-Type": kind} if self.body is not None else {}), **self.headers}


@dataclass(frozen=True, slots=True)
class Case:
    """One attack."""

    area: str
    caller: str
    request: Request
    status: int
    never: tuple[str, ...]
    like: Request | None
    """The same about something that is not there; the answers must be alike."""
    names: tuple[tuple[str, str], ...]
    """What the two name, to be taken for equal."""


def corpus(prefix: str) -> tuple[Any, list[Case]]:
    """The corpus with ids of a run's own: its rules, callers and stored resources, and its cases."""
    found = yaml.safe_load(TEXT.replace("{p}", prefix))
    cases = [_case(row, found["callers"], prefix) for row in found["cases"]]
    return found, cases


def _case(row: Any, callers: Any, prefix: str) -> Case:
    request = _request(row["request"], row)
    like, names = None, []
    if "like" in row:
        method, path, *renamed = row["like"].split(" ")
        body = json.dumps(row.get("body"))
        for pair in renamed:
            old, _, new = pair.partition("->")
            body = body.replace(old, new)
            names.append((old, new))
        like = Request(method, path, json.loads(body), row.get("headers", {}))
        names += [(a, b) for a, b in zip(_words(request.path), _words(path), strict=True) if a != b]
    return Case(
        row["area"],
        row["caller"],
        request,
        row["status"],
        tuple(callers.get(row["caller"], {}).get("never", ())),
        like,
        tuple(names),
    )


def _request(text: str, row: Any) -> Request:
    method, _, path = text.partition(" ")
    return Request(method, path, row.get("body"), row.get("headers", {}))


def _words(path: str) -> list[str]:
    return re.split(r"[/?&=,|]|%7C", path)


def plain(body: bytes, case: Case) -> str:
    """An answer without what tells two requests apart anyway: names that were asked, URLs."""
    text = _URL.sub("URL", body.decode("utf-8", "replace"))
    for ours, theirs in case.names:
        text = text.replace(ours, theirs)
    return text


def told(case: Case, body: bytes, headers: dict[str, str]) -> list[str]:
    """What an answer tells that it must not; what was asked is not told by being echoed."""
    asked = case.request.path + json.dumps(case.request.body)
    text = body.decode("utf-8", "replace") + " ".join(headers.values())
    return [word for word in case.never if word in text and word not in asked]
