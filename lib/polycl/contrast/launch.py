"""One process or many: what each is, and what they share.

The same command runs alone, starts further processes itself (`--devices N`), or is started by torchrun.
"""

from __future__ import annotations

import os
from typing import Literal, cast

import torch
from lightning_fabric import Fabric
from torch import nn

from polycl.devices import Device
from polycl.errors import InputError
from polycl.segmenter.training import MIXED


def is_leader() -> bool:
    """Whether this process speaks for all: the first, by the variables that both kinds of launch set."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def fabric_for(where: Device, processes: int | None, batch: int) -> Fabric:
    """A launched Fabric of `processes` on this machine, or of those that torchrun started, which share `batch` evenly.

    Launched by itself, the program is started again for each further process, with the same arguments.
    """
    local, nodes = _processes(processes)
    kind = where.device.type
    if kind == "cuda" and local > torch.cuda.device_count():
        raise InputError(f"{local} devices were asked for, and there are {torch.cuda.device_count()} GPUs here")
    if batch % (local * nodes):
        raise InputError(f"a batch of {batch} cannot be shared by {local * nodes} devices; use a multiple of that")
    strategy: Literal["ddp", "auto"] = "ddp" if local * nodes > 1 else "auto"
    one = [where.device.index] if local == 1 and kind == "cuda" and where.device.index is not None else local
    fabric = Fabric(accelerator=kind, devices=one, num_nodes=nodes, strategy=strategy, precision=MIXED[where.precision])
    fabric.launch()
    return fabric


def _processes(asked: int | None) -> tuple[int, int]:
    """Processes on this machine, and machines."""
    started = os.environ.get("LOCAL_WORLD_SIZE")  # by torchrun
    if started is None:
        return asked or 1, 1
    if asked is not None and asked != int(started):
        raise InputError(f"torchrun started {started} processes here, and {asked} devices were asked for")
    return int(started), int(os.environ["WORLD_SIZE"]) // int(started)


def gathered(fabric: Fabric, values: torch.Tensor, *, gradients: bool = False) -> torch.Tensor:
    """Rows of all processes, in their order: `[B, ...]` of each to `[B * processes, ...]`."""
    if fabric.world_size == 1:
        return values
    return cast(torch.Tensor, fabric.all_gather(values, sync_grads=gradients)).flatten(0, 1)


def share_buffers(fabric: Fabric, network: nn.Module) -> None:
    """Give every process the first one's buffers: running means differ, as each saw its own share of the last batch."""
    if fabric.world_size > 1:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, 0)
