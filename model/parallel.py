"""How a model is spread over workers and over memory: applied from outside, so that the network's own code knows of one device."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from model.portrait_dit import PortraitDiT

warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # which is never changed in place here


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    # Weights, gradients' sums and the optimizer are float32 in both; with bf16 the passes, and what is gathered for them, are bfloat16.
    precision: Literal["fp32", "bf16"] = "fp32"
    recompute: bool = False  # blocks' activations are computed again in the backward pass, not kept: a third more work, far less memory
    compile: bool = False  # each block by itself: the blocks are alike, so little has to be compiled

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


def spread(model: PortraitDiT, config: ParallelConfig, world: int, device: torch.device) -> None:
    """Changes `model` in place: recomputing, compiling, and then sharding (FSDP2) where there are several workers or bf16 is asked for.

    A worker alone that computes in float32 keeps an ordinary model. Parameters keep their names in any case.
    """
    for block in (*model.base.transformer_blocks, *model.temporal):
        if config.compile:  # within what is recomputed and within FSDP's hooks: neither can be compiled
            block.forward = torch.compile(block.forward)
        if config.recompute:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if world == 1 and config.precision == "fp32":
        return
    mesh: DeviceMesh = init_device_mesh(device.type, (world,))
    policy = MixedPrecisionPolicy(param_dtype=config.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block, temporal in zip(model.base.transformer_blocks, model.temporal, strict=True):
        fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(temporal, mesh=mesh, mp_policy=policy)
    # The rest is little, and is let go after each pass too: averages that are lent to the model between passes must be seen.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
