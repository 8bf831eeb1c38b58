"""Whether an encoder's passes and its cache fit into the memory that its weights have left."""

from __future__ import annotations

from configs import EncoderConfig
from encoder_workers.encoder import Encoder
from npu_kernels import free_bytes, resolve_device

_GIB = 2**30


def check_memory(encoder: Encoder, settings: EncoderConfig) -> None:
    """Raise ValueError, which says what to lower, unless a full pass fits into the device and the cache into the host.

    An estimate: of the largest moment of a pass, without the allocator's own losses. Nothing is known of vLLM's towers.
    """
    max_batch_tokens, cache_bytes = settings.max_batch_tokens, settings.cache_bytes
    pass_bytes = (encoder.row_bytes or 0) * max_batch_tokens
    device_bytes, host_bytes = encoder.free_bytes(), free_bytes(resolve_device("cpu"))
    on_host = encoder.device.type == "cpu"
    needed = pass_bytes + (cache_bytes if on_host else 0)
    if needed > device_bytes:
        cache = f" and {_gib(cache_bytes)} for embeddings (encoder.cache_bytes)" if on_host else ""
        raise ValueError(
            f"the encoder needs about {_gib(pass_bytes)} for a pass of {max_batch_tokens} patches "
            f"(encoder.max_batch_tokens){cache}, but its weights have left {_gib(device_bytes)} on {encoder.device}: "
            "lower these, or give the replica more memory"
        )
    if not on_host and cache_bytes > host_bytes:
        raise ValueError(
            f"the encoder is to keep {_gib(cache_bytes)} of embeddings (encoder.cache_bytes), but this host has "
            f"{_gib(host_bytes)} of memory left: lower it"
        )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB"
