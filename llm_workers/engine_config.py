"""From Triptych's settings to the arguments of one vLLM engine."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any, Literal

from vllm.config import ECTransferConfig, KVTransferConfig
from vllm.engine.arg_utils import AsyncEngineArgs

from configs import PrefillConfig, TriptychConfig
from configs.environment import CPU_COMPUTING, ENGINE_NICENESS, ENGINE_PARENT, NIXL_PAUSE_US
from configs.kv_transfer import NIXL
from configs.ports import free_port
from configs.priority import NICENESS
from llm_workers.embedding_path import EmbeddingPath

EngineRole = Literal["prefill", "decode"]

# The executor by its path: vLLM's name for it, "uni", is taken for "mp" on a CPU, where vLLM would set the threads of
# each worker process itself. They are set for the whole engine here (`engine_environment`).
_ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
DEFAULT_CPU_KV_CACHE_BYTES = 2**30
_CPU_NIXL_PAUSE_US = 4000
# A call that is overdue is given up by its caller some seconds after its deadline (`cluster.ray_stages`).
_LEASE_MARGIN_S = 10.0
# oneDNN makes a kernel of 100 KiB and more for every number of rows that a batch has, and keeps 1024 of them: an engine
# grows by 30 MiB with every 200 requests. Those of the batches at hand are a few dozen.
_CPU_KERNELS_KEPT = 64


def stage_settings(config: TriptychConfig, role: EngineRole) -> PrefillConfig:
    """The section of the settings that belongs to this role."""
    stage = config.prefill if role == "prefill" else config.decode
    if stage is None:
        raise ValueError("this service has no prefill stage: decode prefills")
    return stage


def computes_prompts(config: TriptychConfig, role: EngineRole) -> bool:
    """Whether this engine computes prompts, and therefore needs embeddings."""
    return role == "prefill" or config.prefill is None


def engine_args(config: TriptychConfig, role: EngineRole, path: EmbeddingPath | None) -> AsyncEngineArgs:
    """The engine of one replica.

    Args:
        path: the embedding path; needed exactly when the engine computes prompts with media in them.
    """
    stage = stage_settings(config, role)
    args = AsyncEngineArgs(
        model=config.model,
        served_model_name=[config.api_model_name],
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
        tensor_parallel_size=stage.tensor_parallel_size,
        distributed_executor_backend=_executor(config.device, stage.tensor_parallel_size),
        mm_processor_cache_gb=0,
        max_num_queued_tokens=stage.max_queued_tokens,
        # A grammar begins behind the reasoning, and a budget ends it: the engine has to know where that is, too.
        reasoning_parser=config.ingress.reasoning_parser or "",
    )
    if config.encoder is not None:
        args.language_model_only = True
    if config.prefill is not None:
        args.kv_transfer_config = KVTransferConfig(
            kv_connector=config.kv_transfer.connector,
            kv_role="kv_both",
            kv_buffer_device=config.kv_transfer.buffer_device or config.device,
            kv_connector_extra_config=_connector_settings(config),
        )
    if path is not None:
        args.ec_transfer_config = ECTransferConfig(
            ec_connector="TriptychConnector",
            ec_connector_module_path="llm_workers.embedding_connector",
            ec_role="ec_consumer",
            ec_connector_extra_config=dataclasses.asdict(path),
        )
    args.kv_cache_memory_bytes = stage.kv_cache_bytes
    if stage.kv_cache_bytes is None and config.device == "cpu":
        args.kv_cache_memory_bytes = DEFAULT_CPU_KV_CACHE_BYTES
    for name, value in stage.engine_args.items():
        if name not in AsyncEngineArgs.__dataclass_fields__:
            raise ValueError(f"{role}.engine_args.{name} is not an argument of vllm.AsyncEngineArgs")
        setattr(args, name, value)
    return args


def _connector_settings(config: TriptychConfig) -> dict[str, Any]:
    """What the KV connector is told, in its own words.

    A prompt's KV cache must be held for as long as its request may live. NIXL frees it after 30 s, which is soon where
    all decode replicas start again; whoever pulls it later is told nothing and decodes what other prompts have written
    there. A decode worker that takes the cache or is not to have it lets it go earlier.
    """
    settings = dict(config.kv_transfer.extra_config)
    if config.kv_transfer.connector == NIXL:
        settings.setdefault("kv_lease_duration", math.ceil(config.limits.deadline_s + _LEASE_MARGIN_S))
    return settings


def _executor(device: str, tensor_parallel_size: int) -> str | None:
    """One worker runs in the engine's own process, on a CPU as on devices: a process less, and no hop in every step."""
    if tensor_parallel_size > 1:
        return "mp"
    return _ONE_PROCESS if device == "cpu" else None


def engine_environment(config: TriptychConfig, role: EngineRole, host: str) -> dict[str, str]:
    """Environment variables that vLLM reads and that have no argument.

    On CPU every engine would bind its threads to the same cores, which costs two engines on one machine a factor of
    ten and more; so threads are left to the operating system and their number is the stage's `num_threads`.

    Args:
        host: address of this node at which other nodes reach the KV side channel.
    """
    stage = stage_settings(config, role)
    variables = {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": host,
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port(host)),
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        ENGINE_PARENT: str(os.getpid()),
    }
    if config.device == "cpu":
        variables |= {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(stage.num_threads),
            NIXL_PAUSE_US: str(_CPU_NIXL_PAUSE_US),
            "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(_CPU_KERNELS_KEPT),
            ENGINE_NICENESS: str(NICENESS[role]),
            **CPU_COMPUTING,
        }
        if stage.engine_args.get("enforce_eager"):
            # vLLM compiles its sampler even so: seconds at the first sampled token, and a C++ compiler that fails on
            # paths with spaces.
            variables["TORCH_COMPILE_DISABLE"] = "1"
    return variables
