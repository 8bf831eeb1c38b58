"""Settings of what a service tells about itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from configs.base import Settings


class ObservabilityConfig(Settings):
    """What the service tells about itself besides its metrics, which Ray always exports."""

    otlp_endpoint: str | None = Field(
        None,
        pattern="^https?://",
        description="Where traces go by OTLP over HTTP, for example http://collector:4318/v1/traces; absent: none.",
    )
    trace_sample_ratio: float = Field(
        1.0, ge=0.0, le=1.0, description="Part of the requests that are traced, where the caller has not decided it."
    )
    engine_metrics: bool = Field(True, description="Export vLLM's own metrics of each engine with the label 'stage'.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="What the replicas log; every line about a request carries its id."
    )
