"""Serve: the shield in front of the upstreams that the settings name.

    fhirshield serve fhirshield.yaml

Everything that is wrong with settings, rules or key files is said at once, and nothing listens until it is right.
"""

from __future__ import annotations

import argparse
import ssl
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from fhirshield.app import build
from fhirshield.entrance import Entrance
from fhirshield.receive.guard import Guard
from fhirshield.settings import Settings, load
from fhirshield.watch.logs import to_stderr


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("settings", type=Path, nargs="?", default=Path("fhirshield.yaml"), help="default: fhirshield.yaml")


def run(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; in-flight requests finish, the journal's head is published."""
    to_stderr()
    settings = load(options.settings)
    entrance = build(settings)
    config = uvicorn.Config(entrance, **server_options(settings, entrance.tls))
    _Server(config, entrance).run()
    return 0


class _Server(uvicorn.Server):
    """Says that it ends before it does: unready first, then what is under way, then the journal's head."""

    def __init__(self, config: uvicorn.Config, entrance: Entrance) -> None:
        super().__init__(config)
        self._entrance = entrance

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT."""
        self._entrance.stopping = True
        super().handle_exit(sig, frame)


def server_options(settings: Settings, tls: ssl.SSLContext | None = None) -> dict[str, Any]:
    """How uvicorn is run: httptools behind the guard (docs/adr/0002), no logs of targets, no trust in proxies."""
    return {
        "ssl_context_factory": (lambda config, default: tls) if tls else None,
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
