"""The workers that train one model together: who they are, and the few numbers that they tell each other beside gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist


@dataclass(frozen=True)
class Workers:
    """One of them. `Workers()` is alone, and needs no process group."""

    rank: int = 0
    world: int = 1
    group: dist.ProcessGroup | None = None  # over gloo, whatever gradients travel by
    saving: dist.ProcessGroup | None = None  # one more, for the thread that writes a checkpoint meanwhile

    @staticmethod
    def all() -> Workers:
        """Those of the process group that was started, if one was. Every worker must ask at the same time."""
        if not dist.is_initialized():
            return Workers()
        return Workers(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo"), dist.new_group(backend="gloo"))

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes what is written once."""
        return self.rank == 0

    def gather(self, mine: Any) -> list[Any]:
        """What each worker has, by rank, for all of them."""
        if self.world == 1:
            return [mine]
        everyones: list[Any] = [None] * self.world
        dist.all_gather_object(everyones, mine, group=self.group)
        return everyones

    def wait(self) -> None:
        """Until all have come this far."""
        if self.world > 1:
            dist.barrier(group=self.group)
