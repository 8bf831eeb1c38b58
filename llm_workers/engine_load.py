"""What an engine reports of its load after each step, kept for whoever asks; vLLM's seam for statistics."""

from __future__ import annotations

from collections.abc import Callable

from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats


class EngineLoad:
    """The last report of one engine, and sums over all of them.

    `kv_cache_use` is the part in use, 0 to 1, of a KV cache that holds `kv_cache_tokens`. `num_deferred` counts those
    of the waiting requests that the engine cannot begin yet: their embeddings or KV caches are still to come.
    `token_gaps_s` is the sum of the times between two tokens of a sequence, of which there were `num_token_gaps`.
    """

    def __init__(self, on_step: Callable[[int], None]) -> None:
        """Args: `on_step` takes the number of requests in each step."""
        self.num_running = 0
        self.num_waiting = 0
        self.num_deferred = 0
        self.kv_cache_use = 0.0
        self.kv_cache_tokens = 0
        self.num_token_gaps = 0
        self.token_gaps_s = 0.0
        self._on_step = on_step

    def take(self, stats: SchedulerStats) -> None:
        """Keep a report of the scheduler."""
        self.num_running = stats.num_running_reqs
        self.num_waiting = stats.num_waiting_reqs + stats.num_skipped_waiting_reqs
        self.num_deferred = stats.num_skipped_waiting_reqs
        self.kv_cache_use = stats.kv_cache_usage
        if stats.num_running_reqs:
            self._on_step(stats.num_running_reqs)

    def take_tokens(self, stats: IterationStats) -> None:
        """Add what one step made."""
        self.num_token_gaps += len(stats.inter_token_latencies_iter)
        self.token_gaps_s += sum(stats.inter_token_latencies_iter)

    def stat_logger(self, vllm_config: VllmConfig, engine_index: int) -> StatLoggerBase:
        """What vLLM calls after each step: a factory as its `stat_loggers` take them."""
        return _LoadLogger(vllm_config, engine_index, self)


class _LoadLogger(StatLoggerBase):  # type: ignore[misc]
    """Hands on what an `EngineLoad` keeps of each report."""

    def __init__(self, vllm_config: VllmConfig, engine_index: int, load: EngineLoad) -> None:
        self._load = load
        self._cache = vllm_config.cache_config

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        if scheduler_stats is not None:
            self._load.take(scheduler_stats)
        if iteration_stats is not None:
            self._load.take_tokens(iteration_stats)

    def log_engine_initialized(self) -> None:
        """The engine is up and has told how large its KV cache is."""
        self._load.kv_cache_tokens = (self._cache.num_gpu_blocks or 0) * self._cache.block_size
