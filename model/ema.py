"""An exponential moving average of the trained weights, kept by each worker for its own shards: nothing is ever gathered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    decay: float = 0.999
    warmup: int = 10  # the decay is at most (1 + n) / (warmup + n) after n updates, so that early weights are soon forgotten; 1: none

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ValueError(f"ema.decay must lie between 0 and 1, not {self.decay}")
        if self.warmup < 1:
            raise ValueError(f"ema.warmup must be at least 1, not {self.warmup}")

    def decay_at(self, updates: int) -> float:
        """Decay of the update that comes after so many."""
        return min(self.decay, (1 + updates) / (self.warmup + updates))


class Ema:
    """Averages of the parameters of `model` that are trained, by name. A sharded parameter has a sharded average."""

    def __init__(self, config: EmaConfig, model: nn.Module) -> None:
        assert all(p.dtype == torch.float32 for p in _trained(model).values()), "an average of rounded weights stands still"
        self.config = config
        self.averages: dict[str, Tensor] = {name: p.detach().clone() for name, p in _trained(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int) -> None:
        """`updates`: how many came before."""
        weights, averages = _trained(model), self.averages
        shards = [_local(averages[name]) for name in weights]
        torch._foreach_lerp_(shards, [_local(p.detach()) for p in weights.values()], 1 - self.config.decay_at(updates))

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """In the body `model` has the averages for weights; afterwards its own again, bit for bit."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        """In place, one parameter at a time: no second copy of a model, and optimizers keep their parameters."""
        for name, p in _trained(model).items():
            weight, average = _local(p.detach()), _local(self.averages[name])
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _local(tensor: Tensor) -> Tensor:
    """This worker's part of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
