"""The corpus of writes, on the whole stack: what is refused reaches no upstream, what is hidden answers like what is absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.audit import records
from tests.tally import tally
from tests.world import Reply, World, world

CORPUS = yaml.safe_load((Path(__file__).parent / "writes.yaml").read_text(encoding="utf-8"))
SETTINGS = {"upstreams": [{"hidden_narrative": "drop"}]}


def token(here: World, name: str) -> str:
    claims = dict(CORPUS["callers"][name])
    return here.token(claims.pop("scope"), **claims)


def body_of(case: dict[str, Any], here: World) -> bytes | None:
    body = case.get("body")
    if "copies" in case:
        body = [{"op": "copy", "from": "", "path": f"/extension{n}"} for n in range(case["copies"])]
    if body is None:
        return None
    text = json.dumps(body).replace("{base}", here.base).replace("{upstream}", here.upstream)
    origin = here.upstream.removesuffix("/fhir")
    return text.replace("{origin}", origin).replace("{host}", origin.partition("//")[2]).encode()


async def ask(case: dict[str, Any], here: World, bearer: str) -> Reply:
    method, _, path = case["request"].partition(" ")
    kind = "application/json-patch+json" if method == "PATCH" else "application/fhir+json"
    headers = {"Content-Type": kind, **case.get("headers", {})}
    return await here.ask(path, bearer, method, data=body_of(case, here), headers=headers)


@pytest.mark.promise
async def test_no_write_reaches_further_than_its_writer_may(tmp_path: Path) -> None:
    wrong: list[Any] = []
    replies: dict[str, Reply] = {}
    async with world(tmp_path, {"rules": CORPUS["rules"]}, SETTINGS) as here:
        for case in CORPUS["cases"]:
            here.store.clear()
            here.store.load(CORPUS["stored"])
            here.seen.clear()
            reply = replies[case["name"]] = await ask(case, here, token(here, case["caller"]))
            wrote = [row for row in here.seen if row[0] not in {"GET"}]
            last = [row for row in here.records() if row["decision"] == reply.headers["x-request-id"]]
            problems = [
                reply.status != case["status"] and f"status {reply.status}",
                bool(wrote) is not case.get("written", False) and f"written: {bool(wrote)}",
                "reason" in case and last[-1]["reason"] != case["reason"] and f"reason {last[-1]['reason']}",
                case.get("written") and [row["outcome"] for row in last] != ["intended", "released"] and f"records {last}",
                not case.get("written") and [row["outcome"] for row in last] != ["denied"] and f"records {last}",
                b"Star" in reply.body and "the body tells of a hidden one",
            ]
            if "stored" in case:
                kind, identity = case["request"].partition(" ")[2].strip("/").split("/")[:2]
                found = await here.direct(f"/{kind}/{identity}")
                problems += [
                    f"{name}: {found.get(name)}"
                    for name, value in case["stored"].items()
                    if (found[name] | value if isinstance(value, dict) else value) != found.get(name)
                ]
            problems += [f"sent {word}" for word in case.get("not_sent", ()) if word in json.dumps(here.store.everything())]
            if any(problems):
                wrong.append((case["name"], [p for p in problems if p], reply.body[:300]))
        for case in CORPUS["cases"]:
            if "same_as" in case:
                one, other = replies[case["name"]], replies[case["same_as"]]
                if (one.status, one.body, _headers(one)) != (other.status, other.body, _headers(other)):
                    wrong.append((case["name"], "differs from", case["same_as"]))
    assert not wrong, "\n".join(map(str, wrong))
    refused = sum(not case.get("written") for case in CORPUS["cases"])
    decided = {row["decision"] for row in records(tmp_path / "audit") if "decision" in row}
    unaudited = sum(reply.headers["x-request-id"] not in decided for reply in replies.values())
    tally("writes", tried=len(replies), refused=refused, leaked=len(wrong), unaudited=unaudited)
    assert unaudited == 0


def _headers(reply: Reply) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name not in {"x-request-id", "date"}}
