"""LitData: samples in its own chunks; the loader's state_dict, which it says may be loaded by another number of ranks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from litdata import StreamingDataLoader, StreamingDataset, optimize

from benchmarks.stream_readers import Job, decode_sample
from schemas.sample import read_index, read_members


class Reader:
    def __init__(self, job: Job) -> None:
        os.environ |= {"GLOBAL_RANK": str(job.rank), "WORLD_SIZE": str(job.world)}
        sample = partial(_sample, decode=job.decode, seed=job.seed)
        data = StreamingDataset(job.chunks, shuffle=True, drop_last=False, seed=job.seed, transform=sample)
        self.loader = StreamingDataLoader(data, batch_size=job.batch, num_workers=job.workers, collate_fn=list)

    def batches(self) -> Iterator[list[tuple[str, Any]]]:
        yield from self.loader

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.loader.state_dict()))

    def load(self, paths: list[Path]) -> None:
        self.loader.load_state_dict(json.loads(paths[0].read_text()))  # the main process's, as its documentation does


def _sample(sample: dict[str, Any], *, decode: bool, seed: int) -> tuple[str, Any]:
    """What it returns are views, which a DataLoader's worker cannot hand over, and which cost nothing until they are read: bytes."""
    key = sample.pop("key")
    members = {name: bytes(data) for name, data in sample.items()}
    return key, tuple(map(torch.from_numpy, decode_sample(key, members, seed))) if decode else members


def write(tars: str, chunks: str) -> None:
    """The samples of a pair set in its own format."""
    rows = read_index(Path(tars)).to_pylist()
    optimize(fn=partial(_stored, tars), inputs=rows, output_dir=chunks, chunk_bytes="64MB", num_workers=1)


def _stored(tars: str, row: dict[str, Any]) -> dict[str, Any]:
    return {"key": row["sample"], **read_members(Path(tars), row, tuple(m["name"] for m in row["members"]))}
