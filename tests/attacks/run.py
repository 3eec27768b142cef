"""The corpus ``api.yaml`` against any gateway: what does it tell that it must not?

    python -m tests.attacks.run --target https://gateway/fhir --upstream http://server/fhir \\
        --token nurse=eyJ… --token app=eyJ… --token clerk=eyJ… --token vitals=eyJ…

``--upstream`` is the server behind the gateway, which is loaded with the corpus's resources by PUT (without it, load them by other
means, under ``--prefix``). The gateway has to be set up so that each caller may see what ``rules`` and ``callers`` of the corpus say,
in its own way. Statuses are not compared, gateways differ in them; what counts is that no answer holds what is hidden, and that
what is hidden is answered like what is not there. Callers without a token are left out. Exits 1 where anything was told.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
from collections import Counter

import aiohttp
from yarl import URL

from tests.attacks.api import Case, Request, corpus, plain, told

Answer = tuple[int, bytes, dict[str, str]]


async def ask(session: aiohttp.ClientSession, target: str, token: str, request: Request) -> Answer:
    """One request and its answer."""
    url = URL(target.rstrip("/") + ("" if request.path == "/" else request.path), encoded=True)
    headers = {"Authorization": f"Bearer {token}", **request.sent}
    async with session.request(request.method, url, data=request.content, headers=headers, allow_redirects=False) as answer:
        return answer.status, await answer.read(), dict(answer.headers)


async def attack(target: str, upstream: str, tokens: dict[str, str], prefix: str) -> int:
    """Try every case; how many told something."""
    found, cases = corpus(prefix)
    tried: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    async with aiohttp.ClientSession() as session:
        for resource in found["stored"] if upstream else ():
            place = f"{upstream.rstrip('/')}/{resource['resourceType']}/{resource['id']}"
            async with session.put(place, json=resource, headers={"Content-Type": "application/fhir+json"}) as answer:
                answer.raise_for_status()
        for case in (case for case in cases if case.caller in tokens):
            tried[case.area] += 1
            status, body, headers = await ask(session, target, tokens[case.caller], case.request)
            for problem in [f"tells {word}" for word in told(case, body, headers)] + await _unlike(
                session, target, tokens[case.caller], case, (status, body, headers)
            ):
                failed[case.area] += 1
                print(f"{case.area}: {case.caller}: {case.request.method} {case.request.path}: {problem}")
    width = max(map(len, tried), default=4)
    for area, number in tried.items():
        print(f"{area:<{width}}  tried {number:>3}  told {failed[area]:>3}")
    return sum(failed.values())


async def _unlike(session: aiohttp.ClientSession, target: str, token: str, case: Case, given: Answer) -> list[str]:
    """Whether what is hidden is answered otherwise than what is not there."""
    if case.like is None:
        return []
    status, body, _ = await ask(session, target, token, case.like)
    if (given[0], plain(given[1], case)) == (status, plain(body, case)):
        return []
    return [f"answered {given[0]}, and {status} for {case.like.path}, which is not there"]


def main(arguments: list[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description="What does a FHIR gateway tell that it must not?")
    parser.add_argument("--target", required=True, help="the gateway's base URL")
    parser.add_argument("--upstream", default="", help="the server behind it, to be loaded")
    parser.add_argument("--token", action="append", default=[], metavar="CALLER=TOKEN", help="an access token of a caller")
    parser.add_argument("--prefix", default=f"a{secrets.token_hex(3)}-", help="of the ids that are used")
    options = parser.parse_args(arguments)
    tokens = dict(text.split("=", 1) for text in options.token)
    return 1 if asyncio.run(attack(options.target, options.upstream, tokens, options.prefix)) else 0


if __name__ == "__main__":
    sys.exit(main())
