"""The bare pass-through that the shield is measured against: starlette and httpx, nothing decided, nothing read."""

from __future__ import annotations

import os

import httpx  # noqa: TID251 - the peer that is measured
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

UPSTREAM = os.environ["BENCH_UPSTREAM"]
client = httpx.AsyncClient(limits=httpx.Limits(max_connections=100), trust_env=False)


async def forward(request: Request) -> Response:
    """One GET, passed on and back."""
    answer = await client.get(f"{UPSTREAM}{request.url.path}", params=request.url.query or None)
    return Response(answer.content, answer.status_code, media_type=answer.headers["content-type"])


app = Starlette(routes=[Route("/{path:path}", forward)])

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["BENCH_PORT"]), http="httptools", loop="uvloop", access_log=False, log_level="error")
