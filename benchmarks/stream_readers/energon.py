"""Megatron-Energon: the tars as they are, and an index of its own beside them; one state a rank."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.energon import Cooker, DefaultTaskEncoder, WorkerConfig, get_savable_loader, get_train_dataset, stateless

from benchmarks.stream_readers import BUFFER, Job, decode_sample


@stateless
def _cook(sample: Any) -> Any:
    return sample


class _Encoder(DefaultTaskEncoder):
    decoder = None  # members stay bytes
    cookers = [Cooker(_cook)]  # noqa: RUF012

    def __init__(self, *, decode: bool, seed: int) -> None:
        super().__init__()
        self._decode, self._seed = decode, seed

    @stateless
    def encode_sample(self, sample: Any) -> Any:
        if self._decode:
            sample["decoded"] = tuple(map(torch.from_numpy, decode_sample(sample["__key__"], sample, self._seed)))
            for name in [n for n in sample if n != "decoded" and not n.startswith("__")]:
                del sample[name]
        return sample

    @stateless
    def batch(self, samples: list[Any]) -> list[Any]:
        return samples


class Reader:
    def __init__(self, job: Job) -> None:
        self.job = job
        data = get_train_dataset(
            job.prepared,
            worker_config=WorkerConfig(rank=job.rank, world_size=job.world, num_workers=job.workers),
            batch_size=job.batch,
            shuffle_buffer_size=BUFFER,
            max_samples_per_sequence=BUFFER,
            task_encoder=_Encoder(decode=job.decode, seed=job.seed),
            repeat=False,
        )
        self.loader = get_savable_loader(data)

    def batches(self) -> Iterator[list[tuple[str, Any]]]:
        for batch in self.loader:
            yield [(s["__key__"], s["decoded"] if self.job.decode else _members(s)) for s in batch]

    def save(self, path: Path) -> None:
        torch.save(self.loader.save_state_rank(), path)  # as its documentation does

    def load(self, paths: list[Path]) -> None:
        # Its states are dictionaries of its own kind, which weights_only refuses; this benchmark wrote the files a moment ago.
        states = [torch.load(p, weights_only=False) for p in paths]
        if len(states) == self.job.world:
            self.loader.restore_state_rank(states[self.job.rank])
        else:
            self.loader.restore_state_global(states)


def _members(sample: Any) -> dict[str, bytes]:
    return {name: data for name, data in sample.items() if not name.startswith("__")}
