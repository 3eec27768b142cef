"""Pages that tell nothing: full or last, and a next one exactly where one more match is visible."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fhirshield.inquiry.search import MOST_PAGES
from tests.test_shield import page_through
from tests.world import OPEN, World, world

HIDING = {
    "rules": [
        *OPEN["rules"],
        {
            "id": "no-secrets",
            "who": {"roles": ["*"]},
            "deny": {"interactions": ["*"], "resources": ["Basic?code=secret&subject:missing=true"]},
        },
    ]
}
"""A deny that cannot be sent upstream as one token, so that the shield itself leaves matches out."""


def basic(number: int, code: str) -> dict[str, Any]:
    return {"resourceType": "Basic", "id": f"b{number:03}", "code": {"coding": [{"code": code}]}}


async def pages(here: World, path: str) -> tuple[list[list[str]], list[list[str]]]:
    """Ids and link relations of all pages."""
    token, ids, relations = here.token(), [], []
    while path:
        bundle = (await here.ask(path, token)).json
        ids.append([entry["resource"]["id"] for entry in bundle.get("entry", [])])
        links = {link["relation"]: link["url"] for link in bundle["link"]}
        relations.append(sorted(links))
        path = links.get("next", "")
    return ids, relations


PATTERNS = ("", "s", "ssss", "vs", "sv", "vvvsss", "sssvvv", "vsvsvsvs", "ssssssssssv", "vvvvvs", "vvvvvv")
ASKED = ("_count=3", "_count=1", "_count=5", "_count=50", "")


@pytest.mark.promise
async def test_pages_are_as_if_what_is_hidden_were_not_there(tmp_path: Path) -> None:
    """Visible and hidden ones mixed, before an upstream with pages of four; the same without the hidden ones."""
    async with world(tmp_path, HIDING, page=4) as here:
        for pattern in PATTERNS:
            codes = ["secret" if sign == "s" else "plain" for sign in pattern * 2]
            for asked in ASKED:
                found = []
                for hidden in (True, False):
                    here.store.clear()
                    here.store.load([basic(n, code) for n, code in enumerate(codes) if hidden or code == "plain"])
                    found.append(await pages(here, "/Basic?" + asked if asked else "/Basic"))
                if asked:
                    assert found[0] == found[1], (pattern, asked)
                else:  # without `_count` the upstream's own page size rules, and the first page of each is what it has
                    one, two = ([i for page in ids for i in page] for ids, _ in found)
                    assert one == two, pattern


async def test_a_page_costs_the_upstream_no_more_than_the_budget(tmp_path: Path) -> None:
    """What spending it tells is named in docs/promises.md."""
    async with world(tmp_path, HIDING) as here:
        here.store.load([basic(n, "secret") for n in range(130)] + [basic(999, "plain")])
        here.seen.clear()
        first = (await here.ask("/Basic?_count=2", here.token())).json
        assert len([t for _, t, _ in here.seen if b"/Basic" in t]) == MOST_PAGES
        assert "entry" not in first and [link["relation"] for link in first["link"]] == ["self", "next"]
        ids = [i for page in await page_through(here, "/Basic?_count=2", here.token()) for i in page]
        assert ids == ["b999"]


async def test_who_sees_everything_gets_the_upstreams_pages(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.seen.clear()
        bundle = (await here.ask("/Observation?_count=7", here.token())).json
        assert len(bundle["entry"]) == 7 and len(here.seen) == 1


async def test_a_search_by_post_goes_on_by_post(tmp_path: Path) -> None:
    async with world(tmp_path, HIDING, page=4) as here:
        here.store.load([basic(n, "plain") for n in range(6)])
        token = here.token()
        here.seen.clear()
        first = (await here.ask("/Basic/_search", token, "POST", data={"code": "plain", "_count": "2"})).json
        second = (await here.ask(next(link["url"] for link in first["link"] if link["relation"] == "next"), token)).json
        assert [e["resource"]["id"] for e in second["entry"]] == ["b002", "b003"]
        assert json.dumps(first).count("code=plain") == 1  # in `self`, as it was asked
