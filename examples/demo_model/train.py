"""Train the demo model from scratch; stop at any time and start again with the same command to go on.

Usage: python -m examples.demo_model.train STATE_FILE [--export CHECKPOINT_DIR]
"""

import argparse
import collections
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from examples.demo_model import chat
from examples.demo_model.batches import Batch, BatchMaker, Mixture
from examples.demo_model.export import export
from examples.demo_model.generator import DEV_SEEDS, TRAIN_SEEDS
from examples.demo_model.network import Network
from examples.demo_model.objective import Heads, evaluate_batch, patch_loss
from examples.demo_model.optimiser import Optimiser

_log = logging.getLogger(__name__)
_NUM_AHEAD = 6
_DEV_BATCHES = 8
_NUM_TEXT = 4
_PATCH_WEIGHT = 0.5
_PLACE_WEIGHT = 0.2
_STATE_EVERY_S = 120.0


@dataclass(frozen=True, slots=True)
class Settings:
    """``num_steps`` in all, of which the first ``tower_steps`` teach the tower alone."""

    num_steps: int
    tower_steps: int
    tower_singles: int
    num_singles: int
    num_pairs: int
    muon_rate: float
    adam_rate: float
    fall_share: float
    dev_every: int
    seed: int

    def rate_scale(self, step: int) -> float:
        """Warm up over 100 steps, hold, and fall linearly to nothing over the last steps."""
        left = (self.num_steps - step) / (self.fall_share * self.num_steps)
        return min(1.0, (step + 1) / 100, left)

    def mixture(self, step: int) -> Mixture:
        """The tower alone sees mostly numbers, the harder thing to tell apart, and no prompts."""
        if step < self.tower_steps:
            return Mixture(self.tower_singles, 0, 0, number_share=0.45)
        return Mixture(self.num_singles, self.num_pairs, _NUM_TEXT, number_share=0.35)


class BatchStream:
    """Training batches in order, made a few ahead in a process of their own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _start_maker)

    def __enter__(self) -> "BatchStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def batches(self, first: int, stop: int) -> Iterator[Batch]:
        ahead: collections.deque[Future[Batch]] = collections.deque()
        for index in range(first, stop + _NUM_AHEAD):
            if index < stop:
                ahead.append(self._pool.submit(_make, index, self._settings.mixture(index)))
            if index >= first + _NUM_AHEAD or index >= stop:
                if not ahead:
                    return
                yield ahead.popleft().result(timeout=120)


_makers: list[BatchMaker] = []


def _start_maker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes; the trainer ends this one
    torch.set_num_threads(1)
    _makers.append(BatchMaker(chat.build_tokenizer(), TRAIN_SEEDS))


def _make(index: int, mixture: Mixture) -> Batch:
    return _makers[0].make(index, mixture)


def initialise(network: Network) -> None:
    """Draw the weights; outputs of residual branches start small."""
    for name, parameter in network.named_parameters():
        if parameter.dim() < 2:
            continue
        deviation = parameter[0].numel() ** -0.5
        if "embed_tokens" in name:
            deviation = 0.06
        elif name.endswith(("o_proj.weight", "attn.proj.weight", "down_proj.weight")):
            deviation *= 0.3
        torch.nn.init.normal_(parameter, std=deviation)


def dev_accuracy(network: Network, heads: Heads, batches: list[Batch], image_pad: int) -> dict[str, float]:
    """Return by question type the share of dev questions whose greedy answer is right."""
    counts: dict[str, list[bool]] = collections.defaultdict(list)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for batch in batches:
            for kind, right in evaluate_batch(network, heads, batch, image_pad).right:
                counts[kind].append(right)
    return {kind: sum(rights) / len(rights) for kind, rights in sorted(counts.items())}


def train(settings: Settings, state_file: Path, export_dir: Path | None, stop: threading.Event) -> None:
    """Train up to ``settings.num_steps``, from ``state_file`` where it exists; write it as training goes.

    Once ``stop`` is set the step under way is finished and kept, and nothing is exported.
    """
    torch.manual_seed(settings.seed)
    tokenizer = chat.build_tokenizer()
    image_pad = chat.token_id(tokenizer, chat.IMAGE_PAD)
    network, heads = Network(chat.VOCAB_SIZE), Heads()
    initialise(network)
    optimiser = Optimiser(network, heads, settings.muon_rate, settings.adam_rate)
    num_done = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        network.load_state_dict(state["network"])
        heads.load_state_dict(state["heads"])
        optimiser.load_state_dict(state["optimiser"])
        num_done = state["step"]
    dev_maker = BatchMaker(tokenizer, DEV_SEEDS)
    dev_batches = [dev_maker.make(index, Mixture(24, 12, 4, number_share=0.35)) for index in range(_DEV_BATCHES)]

    def save(step: int) -> None:
        parts = {"network": network.state_dict(), "heads": heads.state_dict(), "optimiser": optimiser.state_dict()}
        torch.save({**parts, "step": step}, state_file.with_suffix(".part"))
        state_file.with_suffix(".part").replace(state_file)

    saved_at = time.monotonic()
    mean_loss = mean_patch = mean_place = mean_right = math.nan
    with BatchStream(settings) as stream:
        bar = tqdm(range(num_done, settings.num_steps), initial=num_done, total=settings.num_steps, mininterval=5)
        for step, batch in zip(bar, stream.batches(num_done, settings.num_steps), strict=True):
            with torch.autocast("cpu", torch.bfloat16):
                if step < settings.tower_steps:
                    loss = patches = patch_loss(network, heads, batch)
                else:
                    outcome = evaluate_batch(network, heads, batch, image_pad)
                    patches = outcome.patch_loss
                    loss = outcome.answer_loss + _PATCH_WEIGHT * patches + _PLACE_WEIGHT * outcome.place_loss
                    mean_place = _smooth(mean_place, outcome.place_loss.item())
                    mean_loss = _smooth(mean_loss, outcome.answer_loss.item())
                    mean_right = _smooth(mean_right, sum(r for _, r in outcome.right) / len(outcome.right))
            mean_patch = _smooth(mean_patch, patches.item())
            torch.autograd.backward(loss)
            optimiser.step(settings.rate_scale(step))
            means = {"answer": mean_loss, "patch": mean_patch, "place": mean_place, "right": mean_right}
            bar.set_postfix({name: f"{mean:.3f}" for name, mean in means.items()})
            if step + 1 > settings.tower_steps and (step + 1) % settings.dev_every == 0:
                accuracy = dev_accuracy(network, heads, dev_batches, image_pad)
                shown = " ".join(f"{kind} {share:.3f}" for kind, share in accuracy.items())
                _log.info("step %d patch %.3f answer %.3f: %s", step + 1, mean_patch, mean_loss, shown)
            num_done = step + 1
            if stop.is_set():
                break
            if time.monotonic() - saved_at > _STATE_EVERY_S:
                save(num_done)
                saved_at = time.monotonic()
    save(num_done)
    if num_done < settings.num_steps:
        _log.info("stopped after step %d; the same command goes on from there", num_done)
    elif export_dir is not None:
        export(network, tokenizer, export_dir)


def _smooth(mean: float, value: float) -> float:
    return value if math.isnan(mean) else 0.98 * mean + 0.02 * value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state_file", type=Path)
    parser.add_argument("--steps", type=int, default=5400)
    parser.add_argument("--tower-steps", type=int, default=2400)
    parser.add_argument("--tower-singles", type=int, default=40)
    parser.add_argument("--singles", type=int, default=24)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--muon-rate", type=float, default=0.015)
    parser.add_argument("--adam-rate", type=float, default=1.5e-3)
    parser.add_argument("--fall-share", type=float, default=0.35, help="share of the steps over which rates fall")
    parser.add_argument("--dev-every", type=int, default=250)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--export", type=Path, default=None)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    settings = Settings(
        num_steps=options.steps,
        tower_steps=options.tower_steps,
        tower_singles=options.tower_singles,
        num_singles=options.singles,
        num_pairs=options.pairs,
        muon_rate=options.muon_rate,
        adam_rate=options.adam_rate,
        fall_share=options.fall_share,
        dev_every=options.dev_every,
        seed=options.seed,
    )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    train(settings, options.state_file, options.export, stop)


if __name__ == "__main__":
    main()
