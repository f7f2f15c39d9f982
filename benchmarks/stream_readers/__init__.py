"""How each library is told to read the benchmark's samples: one file a library, each with a class `Reader`.

A reader is made of a `Job`, yields batches of (key, what was read), saves where it is the way its library's documentation says, and goes
on from what was saved. Members are read as bytes; with `decode` what was read is `decode_sample`'s, as torch tensors where a DataLoader
has to hand them from one process to another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from schemas.ids import digest
from schemas.regions import Regions, masked_driving, rasterise
from schemas.video import decode_video

HISTORY, FRAMES = 3, 16
WINDOW = HISTORY + FRAMES
_DILATION = 0.01
BUFFER = 100  # samples that webdataset and energon shuffle among


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process is told to do. Folders: the pair set, its copy that energon prepared, and the same samples in litdata's format."""

    library: str
    task: str
    tars: str
    prepared: str = ""
    chunks: str = ""
    decode: bool = False
    workers: int = 0  # beside the process: threads of ours, processes of theirs
    batch: int = 4  # samples a rank and step
    rank: int = 0
    world: int = 1
    steps: int = 0  # before it stops
    samples: int = 0  # at most; 0: all
    seed: int = 0
    states: tuple[str, ...] = ()  # files, one a rank
    keys: tuple[str, ...] = ()


class Reader(Protocol):
    def __init__(self, job: Job) -> None: ...

    def batches(self) -> Iterator[list[tuple[str, Any]]]:
        """To the end of the epoch."""

    def save(self, path: Path) -> None:
        """Where it is. Raises whatever its library does when there is no such thing."""

    def load(self, paths: list[Path]) -> None:
        """Goes on from what all ranks saved."""


def decode_sample(key: str, members: Mapping[str, bytes], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source, target window and masked driving frames, uint8 RGB: what model.stream makes of the sample in epoch 0, by the same calls."""
    regions = Regions.decode(members["regions.npz"])
    frames = len(regions.valid)
    raw = np.random.Philox(key=int(digest("window", seed, 0, key), 16) % 2**64).random_raw(2)
    first, other = int(raw[0]) % (frames - WINDOW + 1), int(raw[1]) % (frames - WINDOW)
    source = decode_video(members["target.mp4"], first=other if other < first else other + WINDOW, count=1)[0]
    target = decode_video(members["target.mp4"], first=first, count=WINDOW)
    first += HISTORY
    driving = decode_video(members["driving.mp4"], first=first, count=FRAMES)
    size_px = driving.shape[1]
    masks = (rasterise(regions, first + t, size_px, dilate_px=_DILATION * size_px) for t in range(FRAMES))
    return source, target, np.stack([masked_driving(f, m) for f, m in zip(driving, masks, strict=True)])
