"""Serve: the shield in front of the upstreams that the settings name.

    fhirshield serve fhirshield.yaml

Everything that is wrong with settings, rules or key files is said at once, and nothing listens until it is right.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import uvicorn

from fhirshield.app import build
from fhirshield.receive.guard import Guard
from fhirshield.settings import Settings, load


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("settings", type=Path, nargs="?", default=Path("fhirshield.yaml"), help="default: fhirshield.yaml")


def run(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; in-flight requests finish, the journal's head is published."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = load(options.settings)
    uvicorn.run(**server_options(settings), app=build(settings))
    return 0


def server_options(settings: Settings) -> dict[str, Any]:
    """How uvicorn is run: httptools behind the guard (docs/adr/0002), no logs of targets, no trust in proxies."""
    return {
        "host": settings.host,
        "port": settings.port,
        "http": Guard,
        "loop": "uvloop",
        "ws": "none",
        "lifespan": "on",
        "interface": "asgi3",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "timeout_graceful_shutdown": 30,
    }
