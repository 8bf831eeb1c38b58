"""The training loss: predict the answers, and name what every patch of the pictures shows."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.demo_model import layout
from examples.demo_model.batches import Batch, Pictures
from examples.demo_model.labels import FACT_SIZES, MARK_COLOURS, MARK_NAMES, UNKNOWN
from examples.demo_model.layout import Grid
from examples.demo_model.network import Network
from examples.demo_model.rows import PADDING, SHARED, PackedRows

_NUM_OUTPUTS = len(MARK_NAMES) + len(MARK_COLOURS) + 1
_MAX_CELLS = 13
_MAX_PICTURES = 2
_FACT_WEIGHT = 2.0
_NUM_LENGTHS = 4
_HIDDEN_FROM_ALL = -1e4


class Heads(nn.Module):
    """Training aids, not exported: what a visual token's patches show, in which picture it lies, and where there.

    The tower knows relative places only, and the language model's attention passes on contents without their places:
    left and right, the first and the second are learned many times sooner once its first layer is made to write each
    token's place into it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(layout.TEXT_WIDTH, layout.MERGE**2 * _NUM_OUTPUTS)
        self.place = nn.Linear(layout.TEXT_WIDTH, 2 * _MAX_CELLS + _MAX_PICTURES)
        self.facts = nn.Linear(layout.TEXT_WIDTH, sum(FACT_SIZES))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def place_loss(self, early: Tensor, positions: Tensor, pictures: Tensor) -> Tensor:
        """Return the loss of first-layer outputs (S, D) of visual tokens against where they lie.

        Args:
            positions: their M-RoPE positions (3, S).
            pictures: which picture of its row each belongs to (S), from 0.
        """
        rows, columns, own = self.place(early).float().split((_MAX_CELLS, _MAX_CELLS, _MAX_PICTURES), dim=1)
        down, across = positions[1] - positions[0], positions[2] - positions[0]
        return F.cross_entropy(rows, down) + F.cross_entropy(columns, across) + F.cross_entropy(own, pictures)

    def patch_loss(self, visual: Tensor, pictures: Pictures) -> Tensor:
        """Return the loss of visual tokens (B, N / 4, D) against what the patches show; marked patches weigh more."""
        outputs = self.out(visual).float().view(-1, _NUM_OUTPUTS)
        names, colours, centres = outputs.split((len(MARK_NAMES), len(MARK_COLOURS), 1), dim=1)
        true_names = torch.from_numpy(pictures.names).flatten()
        weight = torch.where(true_names > 0, 4.0, 0.5)
        weight = weight / weight.sum()
        named = F.cross_entropy(names, true_names, reduction="none") @ weight
        coloured = F.cross_entropy(colours, torch.from_numpy(pictures.colours).flatten(), reduction="none") @ weight
        centred = F.binary_cross_entropy_with_logits(
            centres[:, 0], torch.from_numpy(pictures.centres).flatten().float(), pos_weight=torch.tensor(8.0)
        )
        return named + coloured + centred + _FACT_WEIGHT * self._fact_loss(visual, torch.from_numpy(pictures.facts))

    def _fact_loss(self, visual: Tensor, facts: Tensor) -> Tensor:
        """Return the mean loss over the kinds of facts, of visual tokens that lie on a mark."""
        parts = self.facts(visual).float().flatten(0, 1).split(list(FACT_SIZES), dim=1)
        losses = []
        for outputs, truth in zip(parts, facts.flatten(0, 1).unbind(1), strict=True):
            known = max(1, int((truth != UNKNOWN).sum()))
            losses.append(F.cross_entropy(outputs, truth, ignore_index=UNKNOWN, reduction="sum") / known)
        return torch.stack(losses).mean()


@dataclass(frozen=True, slots=True)
class Outcome:
    """Losses of a batch, and per asked question its type and whether greedy decoding gives the true answer."""

    answer_loss: Tensor
    patch_loss: Tensor
    place_loss: Tensor
    right: list[tuple[str, bool]]


def normalise(pictures: Pictures) -> Tensor:
    """Return patches (B, N, 3, 14, 14) as the published preprocessing scales them."""
    mean = torch.tensor(layout.IMAGE_MEAN)[:, None, None]
    std = torch.tensor(layout.IMAGE_STD)[:, None, None]
    return (torch.from_numpy(pictures.patches).float() / 255.0 - mean) / std


def raster(visual: Tensor, grid: Grid) -> Tensor:
    """Put visual tokens (B, N / 4, D) from window order into reading order."""
    cells, _ = layout.windows(grid)
    return visual[:, torch.from_numpy(np.argsort(cells))]


def attention_bias(branches: Tensor) -> Tensor:
    """Return (B, 1, T, T) from branches (B, T): 0 where a token sees another, earlier and shared or of its branch."""
    own = branches[:, :, None] == branches[:, None, :]
    visible = (own | (branches == SHARED)[:, None, :]).tril()
    return torch.where(visible, 0.0, _HIDDEN_FROM_ALL)[:, None]


def patch_loss(network: Network, heads: Heads, batch: Batch) -> Tensor:
    """Return the loss of the tower alone, over all pictures of the batch."""
    _, loss = _see(network, heads, batch)
    return loss


def evaluate_batch(network: Network, heads: Heads, batch: Batch, image_pad: int) -> Outcome:
    """Run the whole network over ``batch``."""
    visual, patches = _see(network, heads, batch)
    rows = batch.rows
    logits, places = _answer_logits(network, heads, visual, rows, image_pad)
    targets = torch.from_numpy(rows.target_ids)
    wrong = np.bincount(
        rows.target_answers, (logits.argmax(1) != targets).numpy().astype(float), minlength=len(rows.kinds)
    )
    right = [(kind, misses == 0) for kind, misses in zip(rows.kinds, wrong, strict=True)]
    return Outcome(F.cross_entropy(logits, targets), patches, places, right)


def _answer_logits(
    network: Network, heads: Heads, visual: Tensor, rows: PackedRows, image_pad: int
) -> tuple[Tensor, Tensor]:
    """Return the logits (S, vocabulary) of the tokens to predict, in their order in ``rows``, and the places' loss."""
    used = (rows.branches != PADDING).sum(1)
    all_ids, all_branches = torch.from_numpy(rows.ids), torch.from_numpy(rows.branches)
    owners = (all_ids == image_pad).sum(1)
    visual_rows = torch.split(visual, owners.tolist())
    by_length = np.argsort(used, kind="stable")
    logits = visual.new_zeros(len(rows.target_ids), network.language_model.embed_tokens.num_embeddings).float()
    lost: list[Tensor] = []
    # Short rows and long ones run apart, so that little padding is computed.
    for part in np.array_split(by_length, min(_NUM_LENGTHS, len(by_length))):
        chosen, length = torch.from_numpy(part), int(used[part].max())
        ids, branches = all_ids[chosen, :length], all_branches[chosen, :length]
        seen = torch.cat([visual_rows[row] for row in part])
        positions = torch.from_numpy(rows.positions)[:, chosen, :length]
        bias = attention_bias(branches).to(visual.dtype)
        local = np.full(len(used), -1)
        local[part] = np.arange(len(part))
        mine = np.flatnonzero(local[rows.target_rows] >= 0)
        asked = torch.from_numpy(local[rows.target_rows[mine]]), torch.from_numpy(rows.target_places[mine])
        hidden, early = network.language_model(ids, seen, ids == image_pad, positions, bias, asked)
        if len(seen):
            shown = ids == image_pad
            lost.append(heads.place_loss(early[shown], positions[:, shown], _pictures_of(positions[0], shown)))
        found = F.linear(hidden, network.language_model.embed_tokens.weight).float()
        logits = logits.index_copy(0, torch.from_numpy(mine), found)
    return logits, torch.stack(lost).mean()


def _pictures_of(times: Tensor, shown: Tensor) -> Tensor:
    """Return which picture of its row each visual token belongs to (S), from the rows' temporal positions (B, T).

    All tokens of a picture share one, and the pictures of a row have others.
    """
    first = times.masked_fill(~shown, torch.iinfo(times.dtype).max).amin(1, keepdim=True)
    return (times > first)[shown].long()


def _see(network: Network, heads: Heads, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the visual tokens of all rows in order (S, D), and the loss of the patches."""
    seen = [
        (network.visual(normalise(pictures), pictures.grid), pictures)
        for pictures in (batch.singles, batch.firsts, batch.seconds)
        if pictures is not None
    ]
    losses = [heads.patch_loss(visual, pictures) * len(visual) for visual, pictures in seen]
    loss = torch.stack(losses).sum() / sum(len(visual) for visual, _ in seen)
    ordered = [raster(visual, pictures.grid) for visual, pictures in seen]
    flat = [ordered[0].flatten(0, 1)]
    if len(ordered) > 1:
        flat.append(torch.cat(ordered[1:], dim=1).flatten(0, 1))
    return torch.cat(flat), loss
