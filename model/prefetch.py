"""Prefetch: the next batches are read in threads while the present one trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from model.cut import BadSlot, StreamConfig, Window
from model.order import share


class Slots(Protocol):
    """What is read ahead: a stream, or one with latents (model/latents.py)."""

    config: StreamConfig

    def slot(self, position: int) -> Window | BadSlot:
        """As `ShardStream.slot`; called from several threads at once."""


class Prefetch:
    """Batches of one worker. Decoding releases the GIL, so threads do; order and state stay the stream's.

    `threads` samples are read at once, and up to `ahead` batches are read, or being read, beside the one that was given out.
    Use as a context manager.
    """

    def __init__(self, stream: Slots, size: int, *, rank: int, world: int, threads: int = 1, ahead: int = 2) -> None:
        if threads < 1 or ahead < 0:
            raise ValueError(f"threads must be at least 1 and ahead at least 0, not {threads} and {ahead}")
        self._stream, self._size, self._rank, self._world, self._ahead = stream, size, rank, world, ahead
        self._pool = ThreadPoolExecutor(threads, "stream")

    def batches(self, position: int, count: int) -> Iterator[list[Window | BadSlot]]:
        """Yields this worker's share of `count` global batches from `position` on.

        Raises:
            ValueError: `max_bad_in_a_row` samples in a row cannot be used.
            OSError: the storage fails.
        """
        bad = 0
        ahead: deque[list[Future[Window | BadSlot]]] = deque()
        for i in range(count):
            while len(ahead) <= self._ahead and i + len(ahead) < count:
                ahead.append(self._begin(position + (i + len(ahead)) * self._size))
            batch = [slot.result() for slot in ahead.popleft()]
            for slot in batch:
                bad = bad + 1 if isinstance(slot, BadSlot) else 0
                if isinstance(slot, BadSlot) and bad == self._stream.config.max_bad_in_a_row:
                    raise ValueError(f"{bad} samples in a row cannot be used, the last at position {slot.position}: {slot.reason}")
            yield batch

    def _begin(self, position: int) -> list[Future[Window | BadSlot]]:
        return [self._pool.submit(self._stream.slot, p) for p in share(position, self._size, rank=self._rank, world=self._world)]

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
