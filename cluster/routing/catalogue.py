"""The router of each stage, as `router` in the settings names it."""

from __future__ import annotations

from typing import Any

from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import RequestRouter

from cluster.routing.affinity import SPILL_WORK, ContentAffinityRouter, LeastWorkRouter
from cluster.routing.kv import LeastKVRouter
from cluster.routing.outstanding import LeastOutstandingRouter
from cluster.routing.reports import REPORT_PERIOD_S
from cluster.routing.tokens import MAX_QUEUED_TOKENS, LeastTokensRouter
from configs import EncoderConfig, PrefillConfig, RouterConfig

_ENCODER: dict[str, type[RequestRouter]] = {"content_affinity": ContentAffinityRouter, "least_work": LeastWorkRouter}
_PREFILL: dict[str, type[RequestRouter]] = {
    "least_tokens": LeastTokensRouter,
    "least_outstanding": LeastOutstandingRouter,
}
_DECODE: dict[str, type[RequestRouter]] = {"least_kv": LeastKVRouter, "least_outstanding": LeastOutstandingRouter}


def encoder_router(router: RouterConfig, encoder: EncoderConfig) -> RequestRouterConfig:
    """The router in front of the encoders."""
    return RequestRouterConfig(
        request_router_class=_ENCODER[router.encoder],
        request_router_kwargs={SPILL_WORK: router.spill_passes * encoder.max_batch_tokens},
        request_routing_stats_period_s=REPORT_PERIOD_S,
    )


def prefill_router(router: RouterConfig, prefill: PrefillConfig) -> RequestRouterConfig:
    """The router in front of prefill."""
    return _engine_router(_PREFILL[router.prefill], {MAX_QUEUED_TOKENS: prefill.max_queued_tokens})


def decode_router(router: RouterConfig) -> RequestRouterConfig:
    """The router in front of decode, also where that computes the prompts."""
    return _engine_router(_DECODE[router.decode], {})


def _engine_router(router: type[RequestRouter], settings: dict[str, Any]) -> RequestRouterConfig:
    return RequestRouterConfig(
        request_router_class=router,
        request_router_kwargs=settings,
        request_routing_stats_period_s=REPORT_PERIOD_S,
    )
