"""The coverage-guided fuzzer (atheris): ``python -m tests.attacks.fuzz PARSER SECONDS``. ``make fuzz`` runs all, longer."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["fhirshield"]):
    from tests.attacks.parsers import PARSERS, SEEDS


def main() -> None:
    name, seconds = sys.argv[1], int(sys.argv[2])
    check: Any = PARSERS[name]
    with tempfile.TemporaryDirectory() as folder:
        for index, seed in enumerate(SEEDS[name]):
            (Path(folder) / str(index)).write_bytes(seed)
        arguments = [
            sys.argv[0],
            f"-max_total_time={seconds}",
            "-max_len=4096",
            "-print_final_stats=1",
            "-rss_limit_mb=4096",
            folder,
        ]
        atheris.Setup(arguments, check)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
