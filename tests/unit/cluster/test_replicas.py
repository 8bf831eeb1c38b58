"""A replica whose engine died takes no more calls: it ends, and the answers under way still go out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator

import pytest
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

from cluster.replicas import IngressReplica, LLMReplica
from cluster.routing.senders import SenderAccount
from llm_workers.messages import DecodeRequest, PrefillRequest, PrefillResult, Prompt
from transfer import DeadlineExceeded, TriptychError, WorkerLost

_LEAVING = """
import asyncio
from cluster.replica_process import leave_process

async def main():
    leave_process()
    await asyncio.sleep(0)
    print("answered", flush=True)
    await asyncio.sleep(100)

asyncio.run(main())
"""


class FailingWorker:
    """Every call ends with the same error."""

    def __init__(self, error: TriptychError) -> None:
        self.error = error

    async def prefill(self, request: PrefillRequest) -> PrefillResult:
        raise self.error

    async def decode(self, request: DecodeRequest) -> AsyncGenerator[RequestOutput, None]:
        raise self.error
        yield

    async def check_health(self) -> None:
        raise self.error

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize(("error", "times"), [(WorkerLost("the engine died"), 3), (DeadlineExceeded("late"), 0)])
async def test_only_a_lost_engine_ends_the_replica(
    error: TriptychError, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[None] = []
    monkeypatch.setattr("cluster.replicas.leave_process", lambda: left.append(None))
    replica = object.__new__(LLMReplica)
    replica._placed = SenderAccount()
    replica._worker = FailingWorker(error)  # type: ignore[assignment]
    prompt, params = Prompt([1]), SamplingParams()
    with pytest.raises(type(error)):
        await anext(replica.prefill(PrefillRequest("r", prompt, params, (), 1.0), "sender"))
    with pytest.raises(type(error)):
        await anext(replica.decode(DecodeRequest("r", prompt, params, None, (), 1.0), "sender"))
    with pytest.raises(type(error)):
        await replica.check_health()
    assert len(left) == times


def test_leaving_lets_what_is_under_way_go_out() -> None:
    done = subprocess.run([sys.executable, "-c", _LEAVING], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (1, "answered")


def test_an_ingress_that_did_not_start_leaves_without_another_error() -> None:
    """Ray runs `__del__` after a failed start as well; what that raised would stand in the log in the cause's place."""
    object.__new__(IngressReplica).__del__()
