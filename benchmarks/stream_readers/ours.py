"""model.stream: threads, and one integer for all ranks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.stream_readers import FRAMES, HISTORY, Job
from model.fetch import Check
from model.stream import Prefetch, ShardStream, StreamConfig


class Reader:
    """With checksums of every byte checked, as by default."""

    check: Check = StreamConfig.check

    def __init__(self, job: Job) -> None:
        self.job, self.position = job, 0
        self.stream = ShardStream(Path(job.tars), StreamConfig(frames=FRAMES, history=HISTORY, seed=job.seed, check=self.check))
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
            with Prefetch(self.stream, self.size, rank=rank, world=world, threads=self.job.workers) as prefetch:
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
                yield self._members_of(share)
            return
        with ThreadPoolExecutor(self.job.workers) as pool:
            ahead: deque[Future[list[tuple[str, Any]]]] = deque()
            for share in shares:
                ahead.append(pool.submit(self._members_of, share))
                if len(ahead) > 2:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _members_of(self, positions: Iterable[int]) -> list[tuple[str, Any]]:
        """Key and all members of the samples at these positions."""
        return [(self.stream.key(p), self.stream.members(p)) for p in positions]

    def save(self, path: Path) -> None:
        path.write_text(str(self.position))

    def load(self, paths: list[Path]) -> None:
        positions = {int(p.read_text()) for p in paths}
        assert len(positions) == 1, positions
        self.position = positions.pop()


class Digests(Reader):
    """With digests of every byte checked."""

    check: Check = "digests"


class Headers(Reader):
    """With tar headers checked alone."""

    check: Check = "headers"
