"""Which policies route calls to the replicas of a stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from configs.base import Settings


class RouterConfig(Settings):
    """Which replica of a stage takes a call."""

    encoder: Literal["content_affinity", "least_work"] = Field(
        "content_affinity",
        description="'content_affinity': the same content goes to the same replica, whose cache has it, unless too "
        "much waits there; 'least_work': the replica with the least work.",
    )
    prefill: Literal["least_tokens", "least_outstanding"] = Field(
        "least_tokens",
        description="'least_tokens': the replica with the fewest prompt tokens to compute, those of this prompt that "
        "it computed before left out; 'least_outstanding': the fewest requests.",
    )
    decode: Literal["least_kv", "least_outstanding"] = Field(
        "least_kv",
        description="'least_kv': the replica whose sequences hold the fewest tokens, and none whose KV cache is nearly "
        "full while another has room; 'least_outstanding': the fewest requests.",
    )
    spill_passes: float = Field(
        2.0,
        gt=0,
        description="Work that may wait at the encoder replica which a content prefers, in full passes "
        "(encoder.max_batch_tokens), before the content goes to the replica with the least.",
    )
