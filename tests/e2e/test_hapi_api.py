"""The corpus of what callers try over the whole API, before a real HAPI FHIR server."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.api import corpus
from tests.attacks.test_api import run
from tests.e2e.conftest import put
from tests.world import world


@pytest.mark.hapi
@pytest.mark.promise
async def test_nothing_hidden_is_told_before_hapi(tmp_path: Path, hapi: str) -> None:
    prefix = f"t{secrets.token_hex(4)}-"
    found, _ = corpus(prefix)
    async with world(tmp_path, {"rules": found["rules"]}, upstream=hapi) as here:
        loaded: list[int] = []

        def load(stored: Any) -> None:
            if not loaded:
                loaded.append(1)
                for resource in stored:
                    put(hapi, resource)

        wrong = await run(here, load, prefix)
    assert not wrong, "\n".join(map(str, wrong))
