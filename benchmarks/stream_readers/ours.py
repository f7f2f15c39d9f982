"""model.stream: threads, and one integer for all ranks."""

from __future__ import annotations

import inspect
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.stream_readers import FRAMES, HISTORY, Job
from model.stream import Prefetch, ShardStream, StreamConfig
from schemas.sample import read_members

_THREADS = "threads" in inspect.signature(Prefetch.__init__).parameters


class Reader:
    def __init__(self, job: Job) -> None:
        self.job, self.position = job, 0
        self.stream = ShardStream(Path(job.tars), StreamConfig(frames=FRAMES, history=HISTORY, seed=job.seed))
        self.size = job.batch * job.world

    def batches(self) -> Iterator[list[tuple[str, Any]]]:
        steps = -(-(len(self.stream) - self.position) // self.size)
        for windows in self._decoded(steps) if self.job.decode else self._raw(steps):
            self.position += self.size
            if windows:  # the last batch of the epoch may leave a rank without
                yield windows

    def _decoded(self, steps: int) -> Iterator[list[tuple[str, Any]]]:
        rank, world = self.job.rank, self.job.world
        if self.job.workers:
            threads = {"threads": self.job.workers} if _THREADS else {}
            with Prefetch(self.stream, self.size, rank=rank, world=world, **threads) as prefetch:
                yield from map(self._of_this_epoch, prefetch.batches(self.position, steps))
        else:
            for _ in range(steps):
                yield self._of_this_epoch(self.stream.batch(self.position, self.size, rank=rank, world=world))

    def _of_this_epoch(self, windows: list[Any]) -> list[tuple[str, Any]]:
        return [(w.key, (w.source, w.target, w.driving)) for w in windows if w.position < len(self.stream)]

    def _raw(self, steps: int) -> Iterator[list[tuple[str, Any]]]:
        end = min(self.position + steps * self.size, len(self.stream))
        begins = range(self.position, end, self.size)
        shares = [range(min(p + self.job.rank, end), min(p + self.size, end), self.job.world) for p in begins]
        if not self.job.workers:
            for share in shares:
                yield [self.members(p) for p in share]
            return
        with ThreadPoolExecutor(self.job.workers) as pool:
            ahead: deque[list[Any]] = deque()
            for share in shares:
                ahead.append([pool.submit(self.members, p) for p in share])
                if len(ahead) > 2:
                    yield [f.result() for f in ahead.popleft()]
            while ahead:
                yield [f.result() for f in ahead.popleft()]

    def members(self, position: int) -> tuple[str, dict[str, bytes]]:
        """All members of the sample at a position, as the stream reads them: each is checked against its digest."""
        stream: Any = self.stream
        if hasattr(stream, "members"):
            found = stream.members(position)
            return stream.key(position), found
        if hasattr(stream, "_sets"):
            from model.fetch import fetch_members

            row = stream._sets[0].row(stream._order.at(position))
            return row["sample"], fetch_members(stream._sets[0].store, row, [m["name"] for m in row["members"]])
        row = stream._rows.slice(int(stream.order(0)[position]), 1).to_pylist()[0]
        return row["sample"], read_members(stream.folder, row, tuple(m["name"] for m in row["members"]))

    def save(self, path: Path) -> None:
        path.write_text(str(self.position))

    def load(self, paths: list[Path]) -> None:
        positions = {int(p.read_text()) for p in paths}
        assert len(positions) == 1, positions
        self.position = positions.pop()


class Bare(Reader):
    """The same order and reads with nothing checked: what is left of the stream's price when digests and row look-ups are taken away."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        from schemas.sample import read_index

        rows = {r["sample"]: r for r in read_index(Path(job.tars)).to_pylist()}
        self._rows = [rows[key] for key in self.stream.keys]
        self._files = {r["tar"]: (Path(job.tars) / r["tar"]).open("rb", buffering=0) for r in self._rows}
        stream: Any = self.stream
        epoch = [stream._order.at(p) for p in range(len(stream))] if hasattr(stream, "_order") else stream.order(0)
        self._epoch = np.asarray(epoch)

    def members(self, position: int) -> tuple[str, dict[str, bytes]]:
        row = self._rows[int(self._epoch[position])]
        number = self._files[row["tar"]].fileno()
        return row["sample"], {m["name"]: os.pread(number, m["size"], m["offset"]) for m in row["members"]}
