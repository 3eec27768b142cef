"""Serve an ASGI application inside a running event loop, leaving signals to whoever runs the loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn

from fhirshield.errors import Fault, OperatorError
from fhirshield.settings import Tls


class _Embedded(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def secured(tls: Tls) -> ssl.SSLContext:
    """A context for TLS 1.2 and later that asks clients for a certificate where settings say who issues them.

    Raises OperatorError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    renew(context, tls)
    if tls.client_ca_file:
        context.verify_mode = ssl.CERT_OPTIONAL
        try:
            context.load_verify_locations(tls.client_ca_file)
        except (OSError, ssl.SSLError) as error:
            raise OperatorError([_unusable(tls.client_ca_file, error)]) from None
    return context


def renew(context: ssl.SSLContext, tls: Tls) -> None:
    """Take certificate and key from their files again, for connections from now on. Raises OperatorError."""
    try:
        context.load_cert_chain(tls.certificate_file, tls.key_file, password=lambda: b"")
    except (OSError, ssl.SSLError) as error:
        raise OperatorError([_unusable(tls.certificate_file, error)]) from None


def _unusable(file: Any, error: OSError) -> Fault:
    return Fault(
        str(file), "", f"cannot be used: {error.strerror or error}", "give PEM, and the key that belongs to it, without a password"
    )


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
