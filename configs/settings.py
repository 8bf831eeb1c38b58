"""The settings of one Triptych service, as validated objects that refuse what they do not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from configs.base import Settings
from configs.kv_transfer import KVTransferSettings
from configs.limits import LimitsConfig
from configs.observability import ObservabilityConfig
from configs.router import RouterConfig
from configs.sizes import ByteSize
from configs.transfer import TransferConfig

Device = Literal["cpu", "cuda", "npu"]
DType = Literal["float32", "bfloat16", "float16"]
_ONE_MODEL = ("max_model_len", "hf_overrides", "hf_config_path", "config_format", "tokenizer", "tokenizer_mode")
"""Engine arguments that say what the model is, which prefill and decode have to agree on."""


class StageConfig(Settings):
    """What every stage has: how many replicas, on which resources, and how many requests each takes."""

    num_replicas: int | None = Field(None, ge=1, description="Fixed number of replicas; 1 when autoscaling is absent.")
    autoscaling: dict[str, Any] | None = Field(
        None,
        description="Ray Serve's autoscaling_config for this stage, e.g. {min_replicas: 1, max_replicas: 4}; its "
        "policy.policy_function is an import path or one of ours: encoder_backlog, prefill_backlog, decode_load.",
    )
    resources_per_rank: dict[str, float] = Field(
        default_factory=dict,
        description="Ray resources that one rank takes, for example {NPU: 1}, {GPU: 1} or {CPU: 2}.",
    )
    num_threads: int = Field(1, ge=1, description="Threads per rank for computing on CPU.")
    max_ongoing_requests: int = Field(256, ge=1, description="Requests one replica works on or holds at a time.")
    environment: dict[str, str] = Field(
        default_factory=dict, description="Environment variables of the stage's processes, for example HCCL_IF_IP."
    )

    @model_validator(mode="after")
    def _one_way_to_count(self) -> StageConfig:
        if self.num_replicas is not None and self.autoscaling is not None:
            raise ValueError("num_replicas and autoscaling exclude each other: remove one of them")
        return self

    @property
    def fixed_replicas(self) -> int:
        """Number of replicas when Ray does not scale the stage."""
        return self.num_replicas or 1


class EncoderConfig(StageConfig):
    """The encode stage: towers without a language model."""

    ranks_per_replica: int = Field(
        1, ge=1, description="Sequence-parallel ranks of one encoder replica, all on one node."
    )
    engine: Literal["native", "vllm"] = Field(
        "native",
        description="Whose tower runs: Triptych's own ('native'), or vLLM's ('vllm') for any other model it knows.",
    )
    ops: str | dict[str, str] = Field(
        "auto", description="Kernel backend: 'auto' (by device), a backend's name, or a table op -> backend."
    )
    enable_mm_embeds: bool = Field(
        False,
        description="Take embeddings that clients computed (image_embeds, video_embeds, audio_embeds), as vLLM's "
        "--enable-mm-embeds; for trusted clients.",
    )
    dtype: DType | None = Field(None, description="Type of tower weights and embeddings; the top level's if absent.")
    max_batch_tokens: int = Field(16384, ge=64, description="Patches packed into one forward at most.")
    target_pass_s: float = Field(
        0.5,
        gt=0.0,
        description="How long a forward of several items should take at most, by what those before it took: "
        "whoever comes meanwhile waits for its end. One item alone may take longer.",
    )
    max_batch_wait_s: float = Field(0.0, ge=0.0, le=1.0, description="How long a batch waits for more items.")
    cache_bytes: ByteSize = Field(
        2**30, description="Host memory for embeddings kept by content; a repeated picture is not encoded again."
    )
    max_pending_items: int = Field(
        4096, ge=1, description="Items that one replica holds (waiting, computing or leased) before it takes no other."
    )

    @model_validator(mode="after")
    def _vllm_runs_alone(self) -> EncoderConfig:
        if self.engine == "vllm" and (self.ranks_per_replica > 1 or self.ops != "auto"):
            raise ValueError(
                "engine is vllm, whose encoder runs in one process with its own operators: "
                "leave out ranks_per_replica and ops"
            )
        return self


class EngineStageConfig(StageConfig):
    """What the two vLLM stages share."""

    tensor_parallel_size: int = Field(1, ge=1, description="Ranks of one replica's tensor parallel group.")
    kv_cache_bytes: ByteSize | None = Field(
        None, description="Memory for the KV cache; vLLM's own choice if absent. Needed on CPU, where 1 GiB is used."
    )
    max_queued_tokens: int = Field(
        2**19,
        ge=1,
        description="Tokens of prompts without a first token at one replica at which it takes no other (vLLM's "
        "max_num_queued_tokens). When none does, requests for which a stage has worked wait, and new ones are "
        "answered 503 [queue_full].",
    )
    engine_args: dict[str, Any] = Field(
        default_factory=dict, description="Passed through to vllm.AsyncEngineArgs, for example {max_model_len: 32768}."
    )

    @model_validator(mode="after")
    def _no_reserved_engine_args(self) -> EngineStageConfig:
        reserved = {
            "model": "model (top level)",
            "served_model_name": "served_model_name (top level)",
            "dtype": "dtype (top level)",
            "revision": "a folder with that revision as model (top level): encoders read it, too",
            "tensor_parallel_size": "tensor_parallel_size of the stage",
            "kv_transfer_config": "kv_transfer (top level)",
            "ec_transfer_config": "transfer (top level)",
            "language_model_only": "nothing: these stages never load the encoder",
            "kv_cache_memory_bytes": "kv_cache_bytes of the stage",
            "max_num_queued_tokens": "max_queued_tokens of the stage",
        }
        for name in self.engine_args:
            if name in reserved:
                raise ValueError(f"engine_args.{name} is decided by Triptych; use {reserved[name]}")
        return self


class PrefillConfig(EngineStageConfig):
    """The prefill stage: prompts in, KV caches out."""

    embedding_store_bytes: ByteSize = Field(
        2**30, description="Host memory in which a replica keeps fetched embeddings; repeats are not fetched again."
    )


class DecodeConfig(PrefillConfig):
    """The decode stage; without a prefill section it also prefills."""


class IngressConfig(StageConfig):
    """The HTTP front: vLLM's OpenAI application."""

    max_ongoing_requests: int = Field(1024, ge=1, description="Requests one ingress replica has under way at a time.")
    max_admitted_requests: int = Field(
        512, ge=1, description="Requests one ingress replica takes in before it answers 429 with Retry-After."
    )
    max_admitted_bytes: ByteSize = Field(
        2**30, ge=2**20, description="Bytes of the bodies of the requests that one ingress replica takes in, likewise."
    )
    api_keys: str | None = Field(
        None,
        description="File of the clients' API keys, one NAME:KEY a line, or 'environment' for the variable "
        "TRIPTYCH_API_KEYS with the same content; absent: anybody is answered. Different names share no cache.",
    )
    max_requests_per_key: int | None = Field(
        None, ge=1, description="Requests of one API key that one ingress replica takes in before it answers 429."
    )
    tool_call_parser: str | None = Field(None, description="vLLM's tool parser for this model, for example 'hermes'.")
    reasoning_parser: str | None = Field(None, description="vLLM's reasoning parser for this model.")
    trace_file: Path | None = Field(
        None, description="Append one JSON line per request to this file: the moments of its way through the stages."
    )
    chat_template: Path | None = Field(None, description="File with a chat template that replaces the checkpoint's.")

    @model_validator(mode="after")
    def _keys_to_bound(self) -> IngressConfig:
        if self.max_requests_per_key is not None and self.api_keys is None:
            raise ValueError("max_requests_per_key needs api_keys: without keys nobody can be told apart")
        return self


class TriptychConfig(Settings):
    """One service: which model, in which stages, on what."""

    model: str = Field(description="Checkpoint folder or model name, as vLLM takes it.")
    served_model_name: str | None = Field(None, description="Name in the API; the model's own if absent.")
    device: Device = Field("cpu", description="Kind of device that all stages compute on.")
    dtype: DType = Field("bfloat16", description="Type of weights and activations of all stages.")
    trust_remote_code: bool = Field(False, description="Let the checkpoint's own Python code run.")
    encoder: EncoderConfig | None = Field(None, description="Encode stage; absent: text only.")
    prefill: PrefillConfig | None = Field(None, description="Prefill stage; absent: decode prefills.")
    decode: DecodeConfig = Field(description="Decode stage.")
    ingress: IngressConfig = Field(default_factory=lambda: IngressConfig.model_validate({}), description="HTTP front.")
    transfer: TransferConfig = Field(
        default_factory=lambda: TransferConfig.model_validate({}), description="Embedding path E to P."
    )
    router: RouterConfig = Field(
        default_factory=lambda: RouterConfig.model_validate({}), description="Which replica takes a call."
    )
    kv_transfer: KVTransferSettings = Field(
        default_factory=lambda: KVTransferSettings.model_validate({}), description="KV cache path P to D."
    )
    limits: LimitsConfig = Field(
        default_factory=lambda: LimitsConfig.model_validate({}), description="Limits of one request."
    )

    autoscaling_policy: dict[str, Any] | None = Field(
        None,
        description="Ray Serve's policy for all autoscaled stages together, e.g. {policy_function: balanced_stages}. "
        "In a Serve config file it stands beside import_path instead.",
    )
    observability: ObservabilityConfig = Field(
        default_factory=lambda: ObservabilityConfig.model_validate({}), description="Traces and logs."
    )

    @property
    def topology(self) -> str:
        """The stages by their letters: E/P/D, E/PD, P/D or PD."""
        return ("E/" if self.encoder else "") + ("P/D" if self.prefill else "PD")

    @property
    def api_model_name(self) -> str:
        """The name that clients put into `model`."""
        return self.served_model_name or self.model

    @property
    def encoder_dtype(self) -> DType:
        """Type of the embeddings that the encoder hands over."""
        return (self.encoder.dtype if self.encoder else None) or self.dtype

    @model_validator(mode="after")
    def _stages_fit_together(self) -> TriptychConfig:
        if self.encoder and self.encoder.dtype not in (None, self.dtype):
            raise ValueError(
                f"encoder.dtype is {self.encoder.dtype} but the language model runs in {self.dtype}: "
                "the engine would have to convert every embedding; give both the same type"
            )
        if self.prefill:
            for name in _ONE_MODEL:
                if self.prefill.engine_args.get(name) != self.decode.engine_args.get(name):
                    raise ValueError(f"prefill and decode have different engine_args.{name}: give both the same")
        if self.device == "cpu":
            for name, stage in self.stages().items():
                wanted = {"NPU", "GPU"} & stage.resources_per_rank.keys()
                if wanted:
                    raise ValueError(f"device is cpu but {name}.resources_per_rank asks for {sorted(wanted)[0]}")
        return self

    def stages(self) -> dict[str, StageConfig]:
        """The stages that this service has, by section name, in the order a request visits them."""
        candidates: dict[str, StageConfig | None] = {
            "encoder": self.encoder,
            "prefill": self.prefill,
            "decode": self.decode,
        }
        return {name: stage for name, stage in candidates.items() if stage is not None}
