"""The demo model as `make serve` serves it: what it answers, and that no request gets another one's picture."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from openai import AsyncOpenAI

from examples.demo_model.evaluate import ask
from examples.demo_model.generator import EVAL_SEEDS, Example, is_right
from examples.demo_model.offline import Checkpoint
from examples.demo_model.questions import Question, describe
from examples.demo_model.scene import sample_scene
from tests.e2e.servers import Server, triptych_server

_ROOT = Path(__file__).parents[2]
_CHECKPOINT = _ROOT / "examples" / "demo_model" / "checkpoint"
_NUM_PICTURES = 100
_QUESTION = "Describe the picture."


@pytest.fixture(scope="module")
def demo_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The service of configs/demo.yaml, from any working folder."""
    folder = tmp_path_factory.mktemp("demo")
    settings = yaml.safe_load((_ROOT / "configs" / "demo.yaml").read_text())
    engine = {"kv_cache_bytes": "192 MiB"}
    config = folder / "demo.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                **settings,
                "model": str(_CHECKPOINT),
                "prefill": settings["prefill"] | engine,
                "decode": settings["decode"] | engine,
            }
        )
    )
    with triptych_server(config, folder) as server:
        server.wait_until_ready()
        yield server


def test_the_command_of_the_readme_answers_red(demo_service: Server) -> None:
    """With no sampling settings of its own: the checkpoint's defaults are greedy."""
    triptych = Path(sys.executable).with_name("triptych")
    picture = _ROOT / "examples" / "images" / "red_circle.png"
    command = [str(triptych), "ask", "--url", demo_service.url, "--image", str(picture), "What colour is the circle?"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (answer.stdout.strip(), answer.returncode) == ("red", 0), answer.stderr


@pytest.mark.timeout(600)
def test_100_requests_at_once_each_get_their_own_picture(demo_service: Server) -> None:
    """All ask the same of pictures with different truths, so an answer about another one's picture is wrong.

    The model's own mistakes are told from the service's by asking Hugging Face's module the same.
    """
    examples = _examples_of_different_pictures()
    answers = asyncio.run(_ask_all_at_once(demo_service, examples))
    missed = [
        (made, answer) for made, answer in zip(examples, answers, strict=True) if not is_right(made.question, answer)
    ]
    assert len(missed) <= 0.1 * _NUM_PICTURES, missed
    checkpoint = Checkpoint(_CHECKPOINT, torch.float32)
    assert [answer for _, answer in missed] == [checkpoint.ask(made.images(), _QUESTION) for made, _ in missed]


def _examples_of_different_pictures() -> list[Example]:
    found: dict[str, Example] = {}
    for seed in EVAL_SEEDS:
        scene = sample_scene(random.Random(seed))
        truth = describe(scene)
        found.setdefault(truth, Example(seed, (scene,), Question("describe", _QUESTION, truth)))
        if len(found) == _NUM_PICTURES:
            break
    return list(found.values())


async def _ask_all_at_once(service: Server, examples: list[Example]) -> list[str]:
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        return list(await asyncio.gather(*(ask(client, "demo", made) for made in examples)))
