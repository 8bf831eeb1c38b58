"""Processes that train together hold the same weights after every step, those of one step on their mean gradient."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import nn

from examples.demo_model.team import Team, run_as_team


def _train_a_little(folder: Path, team: Team) -> None:
    torch.manual_seed(1)
    used, unused = nn.Linear(3, 2), nn.Linear(2, 2)
    inputs = torch.arange(6.0).view(2, 3)
    torch.autograd.backward(used(inputs[team.rank]).square().sum())
    team.average_gradients(used, unused)
    wishes = [team.agree(team.leads), team.agree(not team.leads)]
    mean = team.mean(torch.tensor([float(team.rank), 4.0]))
    torch.save((used.weight.grad, unused.weight.grad, wishes, mean), folder / f"{team.rank}.pt")


def test_two_processes_agree(tmp_path: Path) -> None:
    run_as_team(2, functools.partial(_train_a_little, tmp_path))
    torch.manual_seed(1)
    alone = nn.Linear(3, 2)
    nn.Linear(2, 2)
    torch.autograd.backward(alone(torch.arange(6.0).view(2, 3)).square().sum() / 2)
    for rank in range(2):
        gradient, none, wishes, mean = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(gradient, alone.weight.grad)
        assert none is None
        assert wishes == [True, False]
        assert mean.tolist() == [0.5, 4.0]


def _fail(team: Team) -> None:
    raise ValueError("no more")


def test_a_failure_ends_all(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no more"):
        run_as_team(2, _fail)
    assert capfd.readouterr().err.count("ValueError: no more") == 1  # the other process said so and is gone
