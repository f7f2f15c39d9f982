"""webdataset: shards and a buffer are shuffled; it has no state to save."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
import webdataset as wds

from benchmarks.stream_readers import BUFFER, Job, decode_sample


class Reader:
    def __init__(self, job: Job) -> None:
        self.job, self.taken = job, 0
        os.environ |= {"RANK": str(job.rank), "WORLD_SIZE": str(job.world)}
        tars = sorted(str(p) for p in Path(job.tars).glob("*.tar"))
        data = wds.WebDataset(
            tars, shardshuffle=len(tars), detshuffle=True, seed=job.seed, nodesplitter=wds.split_by_node, empty_check=False
        )
        data = data.shuffle(BUFFER, rng=Random(job.seed)).map(partial(_sample, decode=job.decode, seed=job.seed))
        data = data.listed(job.batch)
        self.loader = wds.WebLoader(data, batch_size=None, num_workers=job.workers) if job.workers else data

    def batches(self) -> Iterator[list[tuple[str, Any]]]:
        yield from self.loader

    def save(self, path: Path) -> None:
        self.loader.state_dict()  # there is none: the caller shows what it answers

    def load(self, paths: list[Path]) -> None:
        """The epoch begins anew."""


def _sample(sample: dict[str, Any], *, decode: bool, seed: int) -> tuple[str, Any]:
    key = sample["__key__"]
    members = {name: data for name, data in sample.items() if not name.startswith("__")}
    return key, tuple(map(torch.from_numpy, decode_sample(key, members, seed))) if decode else members
