"""What Consents and labels add to a warm search of a hundred entries: two shields side by side, in one run.

    python -m tests.bench.guarded

Both stand in this process before one upstream that answers from memory, with the same forty rules and the same searches; one asks
Consents (nested provisions, two a patient) and computes labels from the project's lists. With ``--redis`` their state is a Redis.
Printed: the median of each, and of the ratio pair by pair. Warm: no Consent is asked for while its mark is known and fresh.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench import material
from tests.consent.material import consent, provision
from tests.parts import ROOT
from tests.state.test_state import redis_server
from tests.world import World, world

ENTRIES = 100


class Upstream:
    """Answers from memory."""

    def __init__(self, patients: int, sensitive: int) -> None:
        chance = random.Random(7)
        names = [f"p{number}" for number in range(patients)]
        found = []
        for number in range(ENTRIES):
            one = material.observation(1, number, chance) | {"subject": {"reference": f"Patient/{names[number % patients]}"}}
            if sensitive and number % sensitive == 0:
                one["component"][0]["code"] = {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10-cm", "code": "F10.20"}]}
            found.append({"fullUrl": f"http://u/fhir/Observation/{number}", "resource": one, "search": {"mode": "match"}})
        self.bodies = {"Observation": _bundle(found), "Encounter": _bundle([])}
        tree = provision(
            "permit",
            provision("deny", purpose="HMARKT"),
            provision("deny", label=["PSY", "SDV"]),
            provision("deny", actor="Practitioner/x"),
        )
        treating = provision("permit", purpose="TREAT")
        consents = [  # given at different times, as patients do
            consent(
                f"{kind}-{name}",
                name,
                {**root, "period": {"start": f"2020-01-{1 + number % 28:02}"}},
                dateTime=f"2020-01-{1 + number % 28:02}",
            )
            for kind, root in (("a", tree), ("b", treating))
            for number, name in enumerate(names)
        ]
        self.bodies["Consent"] = _bundle([{"resource": one} for one in consents])
        self.bodies["Patient"] = _bundle(
            [{"resource": {"resourceType": "Patient", "id": name, "birthDate": "1970"}} for name in names]
        )
        self.asked: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        more = True
        while more:
            more = (await receive()).get("more_body", False)
        kind = scope["path"].removesuffix("/_search").rpartition("/")[2]
        self.asked.append(kind)
        headers = [(b"content-type", b"application/fhir+json"), (b"content-length", str(len(self.bodies[kind])).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self.bodies[kind]})


def _bundle(entries: list[Any]) -> bytes:
    text = json.dumps({"resourceType": "Bundle", "type": "searchset", "entry": entries}, separators=(",", ":"))
    return text.replace('"@@', "").replace('@@"', "").encode()


async def searched(here: World, token: str) -> float:
    """Seconds that one search takes."""
    began = time.perf_counter()
    answer = await here.ask("/Observation?_count=100", token)
    took = time.perf_counter() - began
    assert answer.status == 200 and answer.body.count(b'"fullUrl"') == ENTRIES, answer.body[:300]
    return took


async def compare(folder: Path, options: argparse.Namespace, state: str) -> None:
    """Ask in turn, and print."""
    rules = material.rules(40)
    own = {"id": "clear", "who": {"roles": ["clinician"]}, "clearance": {"confidentiality": "V", "categories": ["*"]}}
    guarded = {"sensitivity": {"lists": ["c2s.csv", "overlay.csv"]}, "rules": [*rules["rules"], own]}
    upstream = Upstream(options.patients, options.sensitive)
    plain: dict[str, Any] = {"issuers": {"demo": {"claims": {"vip_cleared": "vip"}}}, "state": state, "keys": {"file": "ring.key"}}
    more = {"consent": {"policies": {"urn:policy:base": "ignore"}, "max_age": "5s"}}
    async with contextlib.AsyncExitStack() as stack:
        shields = []
        for name, said, settings in (("plain", rules, plain), ("guarded", guarded, plain | more)):
            place = folder / name
            place.mkdir()
            for file in ("c2s.csv", "overlay.csv"):
                shutil.copy(ROOT / "rules/sensitivity" / file, place)
            shields.append(await stack.enter_async_context(world(place, said, settings, upstream=upstream)))
        tokens = [here.token("user/*.rs", roles=["clinician"], vip=True, purpose_of_use="TREAT") for here in shields]
        for here, token in zip(shields, tokens, strict=True):
            for _ in range(20):
                await searched(here, token)
        gc.collect()
        gc.freeze()
        rows = []
        for _ in range(options.pairs):
            rows.append([await searched(here, token) for here, token in zip(shields, tokens, strict=True)])
        asked = upstream.asked.count("Consent")
    without, with_ = (statistics.median(row[place] for row in rows) for place in (0, 1))
    ratio = statistics.median(row[1] / row[0] for row in rows)
    print(f"{options.patients} patients, {'Redis' if state != 'memory' else 'memory'}: {1000 * without:.2f} ms without, {1000 * with_:.2f} ms with Consents and labels;"
          f" median ratio {ratio:.2f} over {len(rows)} pairs, {asked} Consent queries")  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--patients", type=int, default=30)
    parser.add_argument("--sensitive", type=int, default=0, metavar="N", help="every Nth entry has a code of the lists")
    parser.add_argument("--redis", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        state = stack.enter_context(redis_server(Path(folder))) if options.redis else "memory"
        asyncio.run(compare(Path(folder), options, state))


if __name__ == "__main__":
    main()
