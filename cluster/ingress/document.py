"""Makes the served OpenAPI document say what this service does, where vLLM's says what one engine would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.routing import Route

from cluster.ingress.unknown_fields import CHECKED_REQUESTS

# Change the number of one engine's data-parallel ranks; here Ray decides the number of replicas.
_ONE_ENGINE_PATHS = frozenset({"/scale_elastic_ep", "/is_scaling_elastic_ep"})


def describe(app: FastAPI) -> None:
    """Take away the routes that are for a single engine, and have the document show that unknown fields are refused."""
    routes = app.router.routes
    routes[:] = [route for route in routes if not isinstance(route, Route) or route.path not in _ONE_ENGINE_PATHS]
    app.openapi = _closed(app.openapi)  # type: ignore[method-assign]


def _closed(openapi: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    def document() -> dict[str, Any]:
        described = openapi()
        for name in CHECKED_REQUESTS:
            described["components"]["schemas"][name]["additionalProperties"] = False
        return described

    return document
