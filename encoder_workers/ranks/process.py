"""What runs in a rank's process: loads the tower, meets the other ranks, then computes its part of every pass.

The encoder that started it owns it: when its end of the link is gone, however it went, this process ends at once, also
from within an exchange with other ranks.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import signal
import socket
import threading
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist

from configs.environment import set_environment
from configs.priority import NICENESS, give_way
from encoder_workers.checkpoint import Checkpoint
from encoder_workers.interface import SplitTower
from encoder_workers.media import ItemMetadata, Prepared
from encoder_workers.ranks.exchange import DistributedGroup, ExchangedAttention
from encoder_workers.ranks.link import Link, LinkClosed, SharedBuffer
from encoder_workers.ranks.messages import LaunchRank, PassDone, PassItem, RankFailed, RankMessage, RankReady, RunPass
from encoder_workers.ranks.rates import Rates, measure_rates
from encoder_workers.ranks.run import run_pass
from encoder_workers.registry import find_family, load_family
from npu_kernels import (
    check_ops,
    free_bytes,
    is_out_of_memory,
    prepare_process,
    resolve_device,
    resolve_dtype,
    select_ops,
)
from transfer.errors import OutOfMemory

logger = logging.getLogger(__name__)

BACKENDS = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}
"""Of torch.distributed, by kind of device."""
_PARENT_PERIOD_S = 1.0
_DTYPES = {"uint8": torch.uint8, "float32": torch.float32}


def main(descriptor: int) -> None:
    """Serve until the encoder is gone. `descriptor` is this rank's end of the link."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # An interrupt from the terminal is the encoder's business.
    link = Link(socket.socket(fileno=descriptor))
    inbox: queue.SimpleQueue[tuple[RankMessage, list[SharedBuffer]]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(link, inbox, os.getppid()), name="triptych-link", daemon=True).start()
    launch, _ = inbox.get()
    assert isinstance(launch, LaunchRank), type(launch)
    try:
        tower, rates = _load(launch)
        link.send(_ready(tower, rates, launch))
        while True:
            message, buffers = inbox.get()
            assert isinstance(message, RunPass), type(message)
            link.send(PassDone(_run(tower, launch, rates, message, *buffers)))
            del message, buffers
    except LinkClosed:
        os._exit(0)
    except Exception as error:  # The edge of this process: the encoder is told why it ends.
        logger.exception("rank %d of an encoder ends", launch.rank)
        kind = OutOfMemory if is_out_of_memory(error) else type(error)
        link.send(RankFailed(kind.__name__, str(error)))
        # The other ranks may wait for this one, and the process group's own end for them.
        os._exit(1)


def _receive(link: Link, inbox: queue.SimpleQueue[tuple[RankMessage, list[SharedBuffer]]], parent: int) -> None:
    """Hand on what comes. A parent that was copied by a fork can leave the link open when it dies, so it is watched."""
    try:
        while os.getppid() == parent:
            readable, _, _ = select.select([link], [], [], _PARENT_PERIOD_S)
            if readable:
                inbox.put(link.receive())
    except LinkClosed:
        pass
    os._exit(0)


def _ready(tower: SplitTower, rates: Rates, launch: LaunchRank) -> RankReady:
    return RankReady(
        tower.width,
        tower.layout,
        rates,
        row_bytes=tower.costs.row_values * resolve_dtype(launch.dtype).itemsize,
        free_bytes=free_bytes(resolve_device(launch.device)),
        rows_per_pair=tower.costs.rows_per_pair,
    )


def _load(launch: LaunchRank) -> tuple[SplitTower, Rates]:
    """The tower of this rank, over attention that reaches the other ranks, and what plans are made with."""
    torch.set_num_threads(launch.num_threads)
    device = resolve_device(launch.device)
    if device.type == "cpu":
        give_way(NICENESS["encoder"])
    dtype = resolve_dtype(launch.dtype)
    prepare_process(device)
    ops = select_ops(launch.ops if isinstance(launch.ops, str) else dict(launch.ops), device)
    if device.type == "cpu":
        set_environment({"GLOO_SOCKET_IFNAME": "lo"})  # All ranks are on this machine; nothing else may connect.
    else:
        torch.get_device_module(device.type).set_device(device)
    dist.init_process_group(
        BACKENDS[device.type],
        init_method=f"file://{launch.rendezvous}",
        rank=launch.rank,
        world_size=launch.num_ranks,
        timeout=timedelta(seconds=launch.timeout_s),
    )
    group = DistributedGroup()
    checkpoint = Checkpoint(launch.model)
    tower = load_family(find_family(checkpoint)).load_tower(
        checkpoint, replace(ops, attention=ExchangedAttention(ops.attention, group)), device, dtype
    )
    check_ops(ops, device, dtype, tower.attention_shape)
    return tower, measure_rates(ops.attention, group, tower.attention_shape, device, dtype)


def _run(
    tower: SplitTower,
    launch: LaunchRank,
    rates: Rates,
    message: RunPass,
    inputs: SharedBuffer,
    outputs: SharedBuffer,
) -> int:
    inputs.close_descriptor()
    outputs.close_descriptor()
    dtype = resolve_dtype(launch.dtype)
    batch = [_prepared(item, inputs) for item in message.items]
    places = [outputs.tensor(dtype, (item.num_tokens, tower.width), item.output_offset) for item in message.items]
    return run_pass(tower, batch, places, launch.rank, launch.num_ranks, rates)


def _prepared(item: PassItem, inputs: SharedBuffer) -> Prepared:
    rows = inputs.tensor(_DTYPES[item.dtype], item.shape, item.input_offset)
    return Prepared(rows, item.grid, ItemMetadata(item.modality, item.num_tokens, item.num_patches, ()))
