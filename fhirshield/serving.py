"""Serve an ASGI application inside a running event loop, leaving signals to whoever runs the loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn


class _Embedded(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


@contextlib.asynccontextmanager
async def serving(app: Any, listener: socket.socket, options: dict[str, Any]) -> AsyncIterator[uvicorn.Server]:
    """Serve an application on a bound socket for as long as the block lasts."""
    chosen = {**options, "loop": "none", "lifespan": options.get("lifespan", "auto"), "log_level": "error"}
    server = _Embedded(uvicorn.Config(app, **chosen))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not task.done():
        await asyncio.sleep(0.01)
    try:
        yield server
    finally:
        server.should_exit = True
        await task
