"""vLLM's encoder-cache connector that fetches embeddings from Triptych's encoders.

The scheduler side fetches into host shared memory, or holds what an encoder on this host wrote there, and defers a
request until its items are there; the worker side, in every tensor-parallel worker, copies them from that memory into
the engine's encoder cache. vLLM loads this file by `ec_connector_module_path`. A request carries what
`embedding_params.request_params` builds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.ec_transfer.ec_connector.base import ECConnectorBase, ECConnectorMetadata, ECConnectorRole
from vllm.platforms import current_platform
from vllm.v1.request import RequestStatus

from llm_workers import arrivals, deepstack
from llm_workers.embedding_needs import EmbeddingNeeds
from llm_workers.embedding_params import parse_params
from llm_workers.embedding_path import EmbeddingPath
from llm_workers.embedding_segment import StoredEmbedding
from llm_workers.embedding_store import EmbeddingStore
from transfer import ClientSettings, EmbeddingClient, FailureReporter, cluster_key, receive_channels

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request


# How long a step without work waits for an embedding. A new request ends it; what an engine is told besides, such as
# that a client is gone, waits for its end.
_IDLE_WAIT_S = 0.05


@dataclass
class LoadList(ECConnectorMetadata):  # type: ignore[misc]
    """What one step loads; scheduler to workers."""

    embeddings: list[StoredEmbedding]


class TriptychConnector(ECConnectorBase):  # type: ignore[misc]
    """The connector; one instance per engine in each of its two roles."""

    def __init__(self, vllm_config: VllmConfig, role: ECConnectorRole) -> None:
        super().__init__(vllm_config=vllm_config, role=role)
        self._to_load: list[str] = []
        self._needs: EmbeddingNeeds | None = None
        if role is ECConnectorRole.WORKER:
            deepstack.install()  # vLLM makes the worker's connector before it loads the model
        if role is ECConnectorRole.SCHEDULER:
            path = EmbeddingPath(**vllm_config.ec_transfer_config.ec_connector_extra_config)
            key_file = Path(path.curve_key_file) if path.curve_key_file else None
            settings = ClientSettings(num_streams=path.num_streams, curve=cluster_key(key_file))
            channels = receive_channels(path.channels, current_platform.device_type)
            self._client = EmbeddingClient(path.fingerprint, settings, channels)
            self._store = EmbeddingStore(path.store_bytes)
            self._failures = FailureReporter(path.failure_endpoint)
            self._needs = EmbeddingNeeds(self._client, self._store, self._failures)
            arrivals.listen(self._needs.wake)

    # Scheduler side. All calls come from the engine's one scheduler thread.

    def ensure_cache_available(self, request: Request, num_computed_tokens: int) -> bool:
        """False while an item after `num_computed_tokens` is still on its way."""
        assert self._needs is not None
        params = request.ec_transfer_params
        keys = [
            feature.identifier
            for feature in request.mm_features
            if feature.mm_position.offset + feature.mm_position.length > num_computed_tokens
        ]
        if params is None or not keys:
            return True
        self._start(request.request_id, params)
        return self._needs.ready(request.request_id, list(dict.fromkeys(keys)))

    def take_unavailable_requests(self) -> set[str]:
        """Requests whose embeddings cannot be had; the reason is already reported."""
        assert self._needs is not None
        return self._needs.take_unavailable()

    def has_cache_item(self, identifier: str) -> bool:
        """Whether the item can be loaded in the step being built."""
        return identifier in self._store

    def update_state_after_alloc(self, request: Request, index: int) -> None:
        """The engine made room for this item: load it in the step being built."""
        identifier = request.mm_features[index].identifier
        if identifier in self._store:
            self._to_load.append(identifier)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> LoadList:
        """What the step's workers load. A step without work ends when an embedding or a request is there.

        The engine repeats such steps every millisecond: half a core, which on a CPU is taken from the encoder that
        everybody waits for. With one every four milliseconds engine and replica still took a fifth of one.

        Raises RuntimeError when the embedding client's thread has failed: no fetch would succeed in an engine that
        counts as healthy. The engine dies of it, and is replaced.
        """
        assert self._needs is not None
        if not self._client.is_running:
            raise RuntimeError("the embedding client has ended: this engine cannot fetch embeddings any more")
        if scheduler_output.total_num_scheduled_tokens == 0 and current_platform.is_cpu():
            self._needs.wait(_IDLE_WAIT_S)
        to_load, self._to_load = self._to_load, []
        return LoadList(self._store.list_for_step(list(dict.fromkeys(to_load))))

    def request_finished(self, request: Request) -> tuple[bool, dict[str, Any] | None]:
        """End of a request in any way: its leases are released; nothing is held back."""
        assert self._needs is not None
        params = request.ec_transfer_params
        if params is not None:
            # A request that never waited (all cached, or aborted early) still owns its leases.
            self._start(request.request_id, params)
            # Its last output was taken, so the steps that loaded for it are over. An aborted one may have some on the
            # way.
            ended_itself = request.status in (RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED)
            self._needs.finish(request.request_id, all_loaded=ended_itself)
        return False, None

    def _start(self, request_id: str, params: dict[str, Any]) -> None:
        """Take up a request at its first appearance; the scheduler asks about a waiting one at every step."""
        assert self._needs is not None
        if request_id not in self._needs:
            self._needs.start(request_id, parse_params(params))

    def shutdown(self) -> None:
        """Release everything; idempotent."""
        if self._needs is not None:
            arrivals.forget(self._needs.wake)
            self._needs.close()
            self._needs = None
            self._client.close()
            self._failures.close()
            self._store.close()

    # Worker side.

    def start_load_caches(self, encoder_cache: dict[str, torch.Tensor], **kwargs: Any) -> None:
        """Copy the step's embeddings into the engine's encoder cache."""
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, LoadList)
        device = torch.device(current_platform.device_type)
        if current_platform.is_cuda_alike():
            device = torch.device(device.type, current_platform.current_device())
        for stored in metadata.embeddings:
            if stored.key not in encoder_cache:
                encoder_cache[stored.key] = stored.load(device)

    def save_caches(self, encoder_cache: dict[str, torch.Tensor], mm_hash: str, **kwargs: Any) -> None:
        """Consumers save nothing."""
