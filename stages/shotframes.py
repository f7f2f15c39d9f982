"""Frames of a shot, for those who look at all of them and then cut stretches out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from stages.ingest import Timing, frames_at_rate
from stages.media import SourceFrame

_KEPT_BYTES = 512 << 20  # of decoded frames between the look for faces and the cut: 55 s of 512 x 512, 7 s of 1920 x 1080


class ShotFrames:
    """The frames of a frame map (T,), first all of them, then stretches, with as little decoding as memory allows.

    The first ones are kept as they were decoded, up to a bound. A stretch that begins where the last one ended goes on decoding there:
    to seek is to decode from a key frame on, which may lie seconds before.
    """

    def __init__(self, path: Path, timing: Timing, source_frames: np.ndarray) -> None:
        self.source_frames = source_frames
        self._path, self._timing, self._next = path, timing, -1
        self._decoded: Iterator[tuple[int, SourceFrame]] = iter(())
        self._kept: list[SourceFrame] = []

    def all(self) -> Iterator[tuple[int, SourceFrame]]:
        """Number and frame, to be taken once, before any stretch."""
        room, before = _KEPT_BYTES, None
        for k, frame in frames_at_rate(self._path, self._timing, self.source_frames):
            if k == len(self._kept):  # nothing was left out yet
                room -= 0 if frame is before else sum(plane.buffer_size for plane in frame.raw.planes)
                if room >= 0:
                    # without the RGB picture that a look asks for, which is larger
                    self._kept.append(self._kept[-1] if frame is before else replace(frame))
            before = frame
            yield k, frame

    def stretch(self, first: int, stop: int) -> Iterator[tuple[int, SourceFrame]]:
        """Output frames [first, stop), counted from 0."""
        there = max(first, min(stop, len(self._kept)))
        yield from enumerate(self._kept[first:there])
        if there < stop and there != self._next:
            self._decoded = frames_at_rate(self._path, self._timing, self.source_frames[there:])
        for k, (_, frame) in enumerate(islice(self._decoded, stop - there), there - first):
            self._next = first + k + 1
            yield k, frame
