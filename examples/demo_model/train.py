"""Train the demo model from scratch; stop at any time and start again with the same command to go on.

Usage: python -m examples.demo_model.train STATE_FILE [--export CHECKPOINT_DIR]
"""

import argparse
import collections
import functools
import logging
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
from examples.demo_model.generator import DEV_SEEDS, QUESTION_KINDS, TRAIN_SEEDS
from examples.demo_model.network import Network
from examples.demo_model.objective import Heads, evaluate_batch, patch_loss
from examples.demo_model.optimiser import Optimiser
from examples.demo_model.team import Team, run_as_team

_log = logging.getLogger(__name__)
_NUM_AHEAD = 6
_DEV_BATCHES = 4
_NUM_TEXT = 4
_PATCH_WEIGHT = 0.5
_PLACE_WEIGHT = 0.2
_STATE_EVERY_S = 120.0


@dataclass(frozen=True, slots=True)
class Settings:
    """``num_steps`` in all, of which the first ``tower_steps`` teach the tower alone; the rest is of whole batches."""

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

    def mixture(self, step: int, size: int) -> Mixture:
        """Return what one process of ``size`` takes of a batch.

        The tower alone sees mostly numbers, the harder thing to tell apart, and no prompts.
        """
        if step < self.tower_steps:
            return Mixture(max(1, self.tower_singles // size), 0, 0, number_share=0.45)
        parts = [max(1, number // size) for number in (self.num_singles, self.num_pairs, _NUM_TEXT)]
        return Mixture(*parts, number_share=0.35)


class BatchStream:
    """One process's parts of the training batches in order, made a few ahead in a process of their own."""

    def __init__(self, settings: Settings, team: Team) -> None:
        self._settings, self._team = settings, team
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _start_maker)

    def __enter__(self) -> "BatchStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def batches(self, first: int, stop: int) -> Iterator[Batch]:
        ahead: collections.deque[Future[Batch]] = collections.deque()
        for index in range(first, stop + _NUM_AHEAD):
            if index < stop:
                mixture = self._settings.mixture(index, self._team.size)
                ahead.append(self._pool.submit(_make, index * self._team.size + self._team.rank, mixture))
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


def dev_accuracy(network: Network, heads: Heads, batches: list[Batch], image_pad: int, team: Team) -> dict[str, float]:
    """Return by question type the share of the whole team's dev questions whose greedy answer is right."""
    counts = torch.zeros(2, len(QUESTION_KINDS))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for batch in batches:
            for kind, right in evaluate_batch(network, heads, batch, image_pad).right:
                counts[:, QUESTION_KINDS.index(kind)] += torch.tensor([float(right), 1.0])
    right_of, asked_of = team.mean(counts).tolist()
    return {kind: right / asked for kind, right, asked in zip(QUESTION_KINDS, right_of, asked_of, strict=True) if asked}


def train(settings: Settings, state_file: Path, export_dir: Path | None, team: Team) -> None:
    """Train up to ``settings.num_steps``, from ``state_file`` where it exists; write it as training goes.

    Once the leader gets SIGINT or SIGTERM, the step under way is finished and kept, and nothing is exported.
    """
    stop = threading.Event()
    if team.leads:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
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
    dev_mixture = Mixture(24, 12, 4, number_share=0.35)
    dev_batches = [dev_maker.make(index, dev_mixture) for index in range(team.rank, _DEV_BATCHES, team.size)]

    def save(step: int) -> None:
        parts = {"network": network.state_dict(), "heads": heads.state_dict(), "optimiser": optimiser.state_dict()}
        torch.save({**parts, "step": step}, state_file.with_suffix(".part"))
        state_file.with_suffix(".part").replace(state_file)

    saved_at = time.monotonic()
    means = Means()
    with BatchStream(settings, team) as stream:
        steps = range(num_done, settings.num_steps)
        bar = tqdm(steps, initial=num_done, total=settings.num_steps, mininterval=5, disable=not team.leads)
        for step, batch in zip(bar, stream.batches(num_done, settings.num_steps), strict=True):
            with torch.autocast("cpu", torch.bfloat16):
                if step < settings.tower_steps:
                    loss = patches = patch_loss(network, heads, batch)
                else:
                    outcome = evaluate_batch(network, heads, batch, image_pad)
                    patches = outcome.patch_loss
                    loss = outcome.answer_loss + _PATCH_WEIGHT * patches + _PLACE_WEIGHT * outcome.place_loss
                    right = sum(r for _, r in outcome.right) / len(outcome.right)
                    means.note(answer=outcome.answer_loss.item(), place=outcome.place_loss.item(), right=right)
            means.note(patch=patches.item())
            torch.autograd.backward(loss)
            team.average_gradients(network, heads)
            optimiser.step(settings.rate_scale(step), team)
            bar.set_postfix({name: f"{mean:.3f}" for name, mean in means.values.items()})
            if step + 1 > settings.tower_steps and (step + 1) % settings.dev_every == 0:
                accuracy = dev_accuracy(network, heads, dev_batches, image_pad, team)
                shown = " ".join(f"{kind} {share:.3f}" for kind, share in accuracy.items())
                _log.info("step %d of %d: %s", step + 1, settings.num_steps, shown)
            num_done = step + 1
            if team.agree(stop.is_set()):
                break
            if team.leads and time.monotonic() - saved_at > _STATE_EVERY_S:
                save(num_done)
                saved_at = time.monotonic()
    if not team.leads:
        return
    save(num_done)
    if num_done < settings.num_steps:
        _log.info("stopped after step %d; the same command goes on from there", num_done)
    elif export_dir is not None:
        export(network, tokenizer, export_dir)


class Means:
    """Running means of what the leader's part of the batches gives, for the progress bar."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def note(self, **values: float) -> None:
        """Take one more value of each."""
        for name, value in values.items():
            self.values[name] = 0.98 * self.values.get(name, value) + 0.02 * value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state_file", type=Path)
    parser.add_argument("--steps", type=int, default=4200)
    parser.add_argument("--tower-steps", type=int, default=1700)
    parser.add_argument("--tower-singles", type=int, default=40)
    parser.add_argument("--singles", type=int, default=24)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--muon-rate", type=float, default=0.015)
    parser.add_argument("--adam-rate", type=float, default=1.5e-3)
    parser.add_argument("--fall-share", type=float, default=0.5, help="share of the steps over which rates fall")
    parser.add_argument("--dev-every", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="of one thread each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--export", type=Path, default=None)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
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
    run_as_team(options.processes, functools.partial(train, settings, options.state_file, options.export))


if __name__ == "__main__":
    main()
