"""Builds vLLM's OpenAI application over the pipeline."""

from __future__ import annotations

import contextlib
import json
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from cluster.ingress.admission import Admission, AdmissionMiddleware
from cluster.ingress.api_keys import ApiKeyMiddleware
from cluster.ingress.document import describe
from cluster.ingress.early_errors import EarlyErrorMiddleware
from cluster.ingress.engine_client import PipelineClient
from cluster.ingress.media import CONNECTOR_NAME
from cluster.ingress.observation import RequestObserver
from cluster.ingress.scope import RequestScopeMiddleware
from cluster.ingress.status import StatusSource, status_router
from cluster.ingress.unknown_fields import refuse_unknown_fields
from cluster.ingress.unreadable import answer_unreadable
from cluster.leases import LeaseClient, RequestLeases
from cluster.metrics.scrape import MetricsExport
from cluster.pipeline import Pipeline
from cluster.trace import TraceWriter
from configs import TriptychConfig, read_api_keys
from configs.environment import set_environment

_TASKS = ("generate",)
_OF_THE_MODEL = (
    "max_model_len",
    "hf_overrides",
    "hf_config_path",
    "config_format",
    "tokenizer",
    "tokenizer_mode",
    "skip_tokenizer_init",
    "generation_config",
    "override_generation_config",
    "max_logprobs",
    "logprobs_mode",
)
"""Engine arguments by which an engine judges requests and completes them: the front has to do it in the same way."""


def build_openai_app(
    config: TriptychConfig,
    pipeline: Pipeline,
    leases: LeaseClient,
    status: StatusSource,
    metrics_export: Callable[[], MetricsExport],
    observer: RequestObserver,
) -> ASGIApp:
    """The application; its state is made in its lifespan, before vLLM's own begins.

    Args:
        leases: renews and gives up embedding leases.
        status: gives the statistics of the stages' replicas.
        metrics_export: tells where Ray exports metrics.
        observer: takes note of every request.
    """
    set_environment({"VLLM_MEDIA_CONNECTOR": CONNECTOR_NAME})
    args, vllm_config = front_config(config)
    app: FastAPI = build_app(args, _TASKS, vllm_config.model_config)
    app.include_router(status_router(config.topology, status, metrics_export))
    describe(app)
    answer_unreadable(app)
    vllm_lifespan = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        client = PipelineClient(vllm_config, pipeline, status, config.limits.completions_per_prompt)
        await init_app_state(client, app.state, args, _TASKS)
        refuse_unknown_fields(app.state)
        try:
            async with vllm_lifespan(app) as state:
                yield state
        finally:
            client.shutdown()

    app.router.lifespan_context = lifespan
    # Around the application, not `add_middleware`: vLLM's builder has closed its middleware stack already.
    admission = Admission(config.ingress.max_admitted_requests, config.ingress.max_admitted_bytes)
    return RequestScopeMiddleware(
        ApiKeyMiddleware(
            AdmissionMiddleware(EarlyErrorMiddleware(app), admission),
            read_api_keys(config.ingress.api_keys),
            config.ingress.max_requests_per_key,
        ),
        lambda: RequestLeases(leases, config.transfer.lease_s),
        config.limits.deadline_s,
        TraceWriter(config.ingress.trace_file),
        observer,
    )


def front_config(config: TriptychConfig) -> tuple[Namespace, VllmConfig]:
    """vLLM's command line and configuration for a front end that matches the stages and loads no weights."""
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(_arguments(config))
    for name, value in _engine_arguments(config).items():
        setattr(args, name, value)
    return args, AsyncEngineArgs.from_cli_args(args).create_engine_config()


def _arguments(config: TriptychConfig) -> list[str]:
    ingress = config.ingress
    limits = config.limits.items_per_prompt if config.encoder is not None else {}
    arguments = [
        *("--model", config.model),
        *("--served-model-name", config.api_model_name),
        *("--dtype", config.dtype),
        *("--limit-mm-per-prompt", json.dumps(limits)),
        *("--mm-processor-cache-gb", "0"),
        "--disable-log-stats",
    ]
    if config.trust_remote_code:
        arguments.append("--trust-remote-code")
    if config.encoder is None:
        arguments.append("--language-model-only")
    elif config.encoder.enable_mm_embeds:
        arguments.append("--enable-mm-embeds")
    if ingress.tool_call_parser is not None:
        arguments += ["--enable-auto-tool-choice", "--tool-call-parser", ingress.tool_call_parser]
    if ingress.reasoning_parser is not None:
        arguments += ["--reasoning-parser", ingress.reasoning_parser]
    if ingress.chat_template is not None:
        arguments += ["--chat-template", str(ingress.chat_template)]
    return arguments


def _engine_arguments(config: TriptychConfig) -> dict[str, Any]:
    """What the front takes over from the engines: of one item's tokens, from the one that computes prompts."""
    computing = config.prefill or config.decode
    sources = dict.fromkeys(_OF_THE_MODEL, config.decode.engine_args)
    sources["max_num_batched_tokens"] = computing.engine_args
    return {name: source[name] for name, source in sources.items() if name in source}
