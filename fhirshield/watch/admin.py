"""The admin side: ``/health/live``, ``/health/ready``, ``/metrics``. On an address of its own, never on the FHIR port."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fhirshield.watch.metrics import Metrics


def admin(missing: Callable[[], list[str]], metrics: Metrics) -> Starlette:
    """The application. ``missing`` says what stands in the way of serving, in words without data."""

    async def live(request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(request: Request) -> Response:
        found = missing()
        return JSONResponse({"ready": not found, "missing": found}, 503 if found else 200)

    async def counted(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return Starlette(routes=[Route("/health/live", live), Route("/health/ready", ready), Route("/metrics", counted)])
