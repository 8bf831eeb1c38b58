"""The encoder stage on real Ray Serve under its policy: replicas follow a step of load, and no request is cut.

Guards: signals that do not reach Ray's controller, a policy that it cannot make, and embeddings that were promised and
go with the replica that has them.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from make_random_checkpoint import make_checkpoint
from PIL import Image
from ray import serve
from ray.serve.handle import DeploymentHandle

from cluster.deployment import deployment_of
from cluster.encoder_replica import EncoderReplica
from cluster.plan import plan_deployments
from cluster.routing.catalogue import encoder_router
from configs import TriptychConfig, embedding_fingerprint
from transfer import EmbeddingClient, EncodeRequest, MediaItem

APP = "encoders"
MOST = 2
WAIT_S = 300.0
_SIDE = 896


@pytest.fixture
def config(tmp_path: Path) -> TriptychConfig:
    make_checkpoint(tmp_path / "model")
    autoscaling: dict[str, Any] = {
        "min_replicas": 1,
        "max_replicas": MOST,
        # Ray's times, short enough to be waited for.
        "metrics_interval_s": 0.5,
        "look_back_period_s": 2.0,
        "upscale_delay_s": 0.5,
        "downscale_delay_s": 2.0,
        "policy": {"policy_function": "encoder_backlog", "policy_kwargs": {"target_backlog_s": 1.0}},
    }
    return TriptychConfig.model_validate(
        {"model": str(tmp_path / "model"), "dtype": "float32", "encoder": {"autoscaling": autoscaling}, "decode": {}}
    )


@pytest.fixture
def encoders(config: TriptychConfig) -> Iterator[DeploymentHandle]:
    """A handle to the encoder stage alone, in a Ray cluster of its own."""
    plan = plan_deployments(config)["encoder"]
    ray.init(
        address="local",
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        _system_config={"worker_niceness": 0},  # as a service of `triptych serve` has it
        log_to_driver=False,
    )
    try:
        serve.start(proxy_location="Disabled")
        settings = config.model_dump(mode="json", exclude_none=True)
        assert config.encoder is not None
        router = encoder_router(config.router, config.encoder)
        graph = deployment_of(plan, EncoderReplica, router).bind(settings, "127.0.0.1")
        yield serve.run(graph, name=APP, route_prefix=None)
    finally:
        serve.shutdown()
        ray.shutdown()


class Load:
    """Clients that encode one new picture after another, and fetch it as an engine would."""

    def __init__(self, config: TriptychConfig, encoders: DeploymentHandle) -> None:
        # As `cluster.ray_stages` calls it, which would bring vLLM along.
        self._encoders = encoders.options(
            stream=True, _by_reference=False, request_serialization="pickle", response_serialization="pickle"
        )
        self._client = EmbeddingClient(embedding_fingerprint(config))
        self._seeds = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self.num_answered = 0

    def add(self, num_clients: int, pause_s: float = 0.0) -> None:
        self._tasks += [asyncio.create_task(self._ask(pause_s)) for _ in range(num_clients)]

    async def end(self) -> None:
        """Let each finish what it has begun; raises what went wrong in any of them."""
        self._stop.set()
        await asyncio.gather(*self._tasks)
        self._tasks.clear()
        self._stop.clear()

    def close(self) -> None:
        self._client.close()

    async def _ask(self, pause_s: float) -> None:
        while not self._stop.is_set():
            pixels = np.full((_SIDE, _SIDE, 3), next(self._seeds) % 256, dtype=np.uint8)
            pixels[0, 0] = np.frombuffer(self.num_answered.to_bytes(3, "big"), dtype=np.uint8)
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, "PNG")
            request = EncodeRequest("r", (MediaItem("image", out.getvalue()),), (), "", WAIT_S)
            (reply,) = [reply async for reply in self._encoders.encode.remote(request)]
            (ticket,) = reply.tickets
            assert ticket is not None
            embedding = await asyncio.wrap_future(self._client.fetch(ticket.ref(), WAIT_S))
            assert tuple(embedding.shape) == (ticket.num_tokens, ticket.width)
            self._client.release(ticket.ref())
            self.num_answered += 1
            await asyncio.sleep(pause_s)


def running() -> dict[str, int]:
    """The replicas of the stage by their states, as Ray's controller sees them."""
    states = serve.status().applications[APP].deployments["encoder"].replica_states
    return {str(getattr(state, "value", state)): count for state, count in states.items()}


async def until(replicas: dict[str, int]) -> None:
    deadline = time.monotonic() + WAIT_S
    while (now := await asyncio.to_thread(running)) != replicas:
        assert time.monotonic() < deadline, f"replicas are {now}, not {replicas}"
        await asyncio.sleep(0.1)


@pytest.mark.timeout(600)
async def test_replicas_follow_a_step_of_load_and_no_request_is_cut(
    config: TriptychConfig, encoders: DeploymentHandle
) -> None:
    load = Load(config, encoders)
    try:
        load.add(16)
        await until({"RUNNING": MOST})
        await load.end()
        # What goes on meanwhile must not notice that replicas are taken away, whichever of them has its pictures.
        load.add(1, pause_s=1.0)
        await until({"RUNNING": 1})
        await load.end()
    finally:
        load.close()
    assert load.num_answered > 16
