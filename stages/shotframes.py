"""Frames of a shot, for those who look at all of them and then cut stretches out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from stages.ingest import Timing, frames_at_rate
from stages.media import SourceFrame

_KEPT_BYTES = 512 << 20  # of decoded frames between the look for faces and the cut: a shot of 55 s at 512 x 512, 7 s at 1920 x 1080


class ShotFrames:
    """The frames of a frame map (T,), first all of them, then stretches, with as little decoding as memory allows.

    A shot that fits into the bound is kept as it was decoded. Of a longer one a stretch that begins where the last one ended goes on
    decoding there: to seek is to decode from a key frame on, which may lie seconds before.
    """

    def __init__(self, path: Path, timing: Timing, source_frames: np.ndarray) -> None:
        self.source_frames = source_frames
        self._path, self._timing, self._next = path, timing, -1
        self._decoded: Iterator[tuple[int, SourceFrame]] = iter(())
        self._kept: list[SourceFrame] = []

    def all(self) -> Iterator[tuple[int, SourceFrame]]:
        """Number and frame, to be taken once and to the end, before any stretch."""
        keeps, before = False, None
        for k, frame in frames_at_rate(self._path, self._timing, self.source_frames):
            if k == 0:
                frame_bytes = sum(plane.buffer_size for plane in frame.raw.planes)
                keeps = len(np.unique(self.source_frames)) * frame_bytes <= _KEPT_BYTES
            if keeps:  # without the RGB picture that a look asks for, which is larger
                self._kept.append(self._kept[-1] if frame is before else replace(frame))
            before = frame
            yield k, frame

    def stretch(self, first: int, stop: int) -> Iterator[tuple[int, SourceFrame]]:
        """Output frames [first, stop), counted from 0."""
        if self._kept:
            yield from enumerate(self._kept[first:stop])
            return
        if first < stop and first != self._next:
            self._decoded = frames_at_rate(self._path, self._timing, self.source_frames[first:])
        for k, (_, frame) in enumerate(islice(self._decoded, stop - first)):
            self._next = first + k + 1
            yield k, frame
