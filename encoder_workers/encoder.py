"""The encoder: loads a checkpoint's tower, here or over a group of ranks, and turns media into embeddings."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import torch

from encoder_workers.checkpoint import Checkpoint
from encoder_workers.given_embeddings import fit_rows, open_given
from encoder_workers.interface import Processor, Tower
from encoder_workers.media import Decoded, Embedding, ItemMetadata, Limits, Media, Prepared
from encoder_workers.planner import plan_passes
from encoder_workers.ranks import GroupTower, load_group_tower
from encoder_workers.registry import find_family, load_family
from npu_kernels import (
    check_ops,
    free_bytes,
    is_out_of_memory,
    prepare_process,
    release_cached,
    resolve_device,
    resolve_dtype,
    select_ops,
)
from transfer.errors import BadMedia, OutOfMemory
from transfer.messages import Modality

logger = logging.getLogger(__name__)

EncoderEngine = Literal["native", "vllm"]

MAX_PATCHES_PER_PASS = 65_536
_NOT_OF_THE_TOWER = ("text_config", "llm_config", "transformers_version", "torch_dtype", "dtype")
_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Encoder:
    """Media in, embeddings out. Bad items fail alone: their place in a result holds the BadMedia that tells why.

    `describe`, `decode` and `preprocess` keep no state and may run in several threads while `forward` runs in one.
    """

    def __init__(
        self,
        processor: Processor,
        tower: Tower,
        *,
        device: torch.device,
        dtype: torch.dtype,
        revision: str,
        limits: Limits,
        row_bytes: int | None = None,
        rows_per_pair: float = 0.0,
    ) -> None:
        self._processor = processor
        self._tower: Tower | None = tower
        self.device = device
        self.dtype = dtype
        self.revision = revision
        """Identifies the tower's weights and all settings; equal on hosts with equal files."""
        self.limits = limits
        self.width = tower.width
        """Columns of an embedding."""
        self._rows_per_pair = rows_per_pair
        self.row_bytes = row_bytes
        """Device memory that a patch takes in a pass; None where that is not known."""
        self.layout = tower.layout
        """What the columns hold: "main", or "main+deepstack3" for four levels side by side."""

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What this model encodes."""
        return self._processor.modalities

    def work(self, metadata: ItemMetadata) -> float:
        """What an item costs the tower, a*S + b*sum(S_i^2) in units of a: patches, and more where attention weighs."""
        return metadata.num_patches + self._rows_per_pair * metadata.num_pairs

    @property
    def processor(self) -> Processor:
        """The token formula: describes items without weights."""
        return self._processor

    def describe(self, items: Sequence[Media]) -> list[ItemMetadata | BadMedia]:
        """Tokens and prompt metadata of each item, from its header alone. ValueError for an unknown option."""
        return _each(items, lambda item: self._processor.describe(item, self.limits))

    def take(self, media: Media) -> Embedding:
        """An embedding that the client sent (`given_embeddings`), on the host, checked; the tower has no part in it.

        Raises BadMedia when it is not what this model's own would be.
        """
        if media.modality not in self.modalities:
            raise BadMedia(f"this model takes {' and '.join(self.modalities)}, not {media.modality}")
        given = open_given(media)
        metadata = self._processor.describe_given(media.modality, given)
        return Embedding(fit_rows(given, metadata, self.width, self.limits).to(self.dtype), metadata)

    def decode(self, media: Media) -> Decoded:
        """Raw samples of one item. Raises BadMedia."""
        return self._processor.decode(media, self.limits)

    def preprocess(self, decoded: Decoded) -> Prepared:
        """Rows for `forward`."""
        return self._processor.preprocess(decoded)

    def forward(self, batch: Sequence[Prepared]) -> list[Embedding]:
        """One packed pass of the tower over items already prepared; results in order.

        Raises OutOfMemory where the device has no room for the pass; one of fewer items may fit.
        """
        if self._tower is None:
            raise ValueError("the encoder is closed")
        if not batch:
            return []
        reason: str | None = None
        try:
            tensors = self._tower.forward(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
        if reason is not None:
            # Out of the handler, which keeps the tensors of the failed pass alive.
            release_cached(self.device)
            num_patches = sum(item.metadata.num_patches for item in batch)
            raise OutOfMemory(f"no memory on {self.device} for a pass over {num_patches} patches: {reason}")
        for item, tensor in zip(batch, tensors, strict=True):
            assert tensor.shape == (item.metadata.num_tokens, self.width), (tensor.shape, item.metadata)
        return [Embedding(tensor, item.metadata) for item, tensor in zip(batch, tensors, strict=True)]

    def encode(self, items: Sequence[Media]) -> list[Embedding | BadMedia]:
        """All steps for a list of items, packed into as few passes as MAX_PATCHES_PER_PASS allows."""
        prepared = _each(items, lambda item: self.preprocess(self.decode(item)))
        results: list[Embedding | BadMedia | None] = [p if isinstance(p, BadMedia) else None for p in prepared]
        good = [(index, p) for index, p in enumerate(prepared) if isinstance(p, Prepared)]
        for chosen in plan_passes([p.metadata.num_patches for _, p in good], MAX_PATCHES_PER_PASS):
            for place, embedding in zip(chosen, self._forward_in_parts([good[i][1] for i in chosen]), strict=True):
                results[good[place][0]] = embedding
        return [result for result in results if result is not None]

    def _forward_in_parts(self, batch: Sequence[Prepared]) -> list[Embedding]:
        """As `forward`, in halves where there is no memory for all at once."""
        try:
            return self.forward(batch)
        except OutOfMemory:
            if len(batch) == 1:
                raise
        middle = len(batch) // 2
        return self._forward_in_parts(batch[:middle]) + self._forward_in_parts(batch[middle:])

    def free_bytes(self) -> int:
        """Device memory that nobody has taken: of the rank that has least, on the host for a CPU."""
        if isinstance(self._tower, GroupTower) and self.device.type != "cpu":
            return self._tower.free_bytes
        return free_bytes(self.device)

    def close(self) -> None:
        """Free the weights, and end the ranks of a group. Idempotent."""
        if isinstance(self._tower, GroupTower):
            self._tower.close()
        self._tower = None

    def check_health(self) -> None:
        """Raises EncoderLost when the encoder's ranks are lost and could not be started again."""
        if isinstance(self._tower, GroupTower):
            self._tower.check_health()


def load_processor(model: str | Path) -> Processor:
    """The processor of a checkpoint, without weights: enough to tell the number of tokens of any item."""
    checkpoint = Checkpoint(model)
    return load_family(find_family(checkpoint)).load_processor(checkpoint)


def load_encoder(
    model: str | Path,
    *,
    device: str = "cpu",
    dtype: str | torch.dtype,
    ranks: int = 1,
    ops: str | Mapping[str, str] = "auto",
    limits: Limits | None = None,
    engine: EncoderEngine = "native",
    trust_remote_code: bool = False,
) -> Encoder:
    """Load the tower of a checkpoint (a directory or a hub repository) and check its operators on the device.

    With several ranks the tower runs in as many processes on this machine, which split large items between them and
    share out small ones; they end with this process. `device` then names a kind, of which each rank takes one.

    With engine "vllm" vLLM's own processor and tower of the model run, of any model that it knows: in one process, with
    its own operators, and with `trust_remote_code` also where the checkpoint brings Python code.

    Raises CheckpointError (a ValueError) when the checkpoint cannot be used, ValueError for bad arguments, and
    KernelMismatch when an operator is wrong on this device.
    """
    if ranks < 1:
        raise ValueError(f"ranks must be at least 1, got {ranks}")
    started = time.monotonic()
    torch_device, torch_dtype = resolve_device(device), resolve_dtype(dtype)
    prepare_process(torch_device)
    chosen_ops = select_ops(ops, torch_device)
    checkpoint = Checkpoint(model)
    processor: Processor
    tower: Tower
    row_bytes: int | None
    rows_per_pair = 0.0
    if engine == "vllm":
        if ranks > 1 or ops != "auto":
            raise ValueError("vLLM's encoder runs in one process with its own operators: leave out ranks and ops")
        # Loaded on demand: importing vLLM takes long, and only this engine needs it.
        vllm_tower = importlib.import_module("encoder_workers.vllm_tower")
        processor, tower = vllm_tower.load_vllm_encoder(checkpoint, model, torch_device, torch_dtype, trust_remote_code)
        prefixes: tuple[str, ...] = ("",)
        row_bytes = None
    else:
        entry = find_family(checkpoint)
        family, prefixes = load_family(entry), entry.prefixes
        processor = family.load_processor(checkpoint)
        if ranks > 1:
            tower = group = load_group_tower(model, device=torch_device, dtype=torch_dtype, ranks=ranks, ops=ops)
            row_bytes, rows_per_pair = group.row_bytes, group.rows_per_pair
        else:
            tower = one = family.load_tower(checkpoint, chosen_ops, torch_device, torch_dtype)
            check_ops(chosen_ops, torch_device, torch_dtype, one.attention_shape)
            row_bytes, rows_per_pair = one.costs.row_values * torch_dtype.itemsize, one.costs.rows_per_pair
    config = {key: value for key, value in checkpoint.config.items() if key not in _NOT_OF_THE_TOWER}
    revision = checkpoint.digest(checkpoint.names(prefixes), {"config": config, "processor": processor.settings})
    logger.info(
        "loaded the encoder of %s on %s, %d rank(s), in %.1f s", model, torch_device, ranks, time.monotonic() - started
    )
    return Encoder(
        processor,
        tower,
        device=torch_device,
        dtype=torch_dtype,
        revision=revision,
        limits=limits or Limits(),
        row_bytes=row_bytes,
        rows_per_pair=rows_per_pair,
    )


def _each(items: Sequence[_In], step: Callable[[_In], _Out]) -> list[_Out | BadMedia]:
    results: list[_Out | BadMedia] = []
    for item in items:
        try:
            results.append(step(item))
        except BadMedia as error:
            results.append(error)
    return results
