"""The shard stream: training windows from a pair set's folder, in an order that is a pure function of (seed, epoch, position).

Nothing about the order depends on how many workers read. Its whole state is one integer, and the digest of what it refers to.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from schemas.ids import digest
from schemas.outlines import PROFILES, with_profile
from schemas.regions import Regions, masked_driving, rasterise
from schemas.sample import (
    CONTROLS,
    DRIVING,
    INDEX_NAME,
    INFO,
    REGIONS_MEMBER,
    SOURCE,
    TARGET,
    SampleInfo,
    decode_controls,
    decode_image,
    read_index,
    read_members,
)
from schemas.video import decode_video, resized

_COLUMNS = ["sample", "digest", "tar", "members", "frames", "size_px", "fps"]


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    frames: int = 8  # of the window: the frames to be made, F in the paper
    history: int = 3  # frames before them, F'
    frame_px: int | None = None  # side that frames are resized to; None: as in the shards
    regions: str = "default"  # what is shown of the driving face: a profile of schemas.outlines, tight, default or wide
    mask_dilation: float = 0.01  # region masks grow by this part of the frame's side, so that an outline's error cuts nothing off
    split: str = "train"
    seed: int = 0


@dataclass(frozen=True)
class Window:
    """One training example. Pictures are uint8 RGB (..., S, S, 3)."""

    key: str
    position: int  # in the stream
    first_frame: int  # of the clip, where `target` begins
    source: np.ndarray  # (S, S, 3), a still of the target's person
    target: np.ndarray  # (F' + F, S, S, 3): the previous frames, then those to be made
    driving: np.ndarray  # (F, S, S, 3): eyes, nose and mouth of the driving frames, the rest black


@dataclass(frozen=True)
class BadSlot:
    key: str
    position: int
    reason: str


def find_pair_set(path: Path) -> Path:
    """A pair set's folder: `path` itself, or the only one of the run `path`. Raises ValueError when there is none, or more than one."""
    if (path / INDEX_NAME).is_file() or not (path / "shards").is_dir():
        return path
    found = sorted(p.parent for p in (path / "shards").glob(f"*/{INDEX_NAME}"))
    if len(found) != 1:
        raise ValueError(f"{path}: name one pair set's folder (RUN/shards/SET); this run has {[str(p) for p in found] or 'none yet'}")
    return found[0]


class ShardStream:
    """Random access to an endless sequence of windows: position p of epoch e = p // len is known without what came before.

    Attributes:
        keys: samples of the split that are long enough, in sorted order.
        skipped: samples of the split that are too short for a window.
        frame_px: side of the windows' frames.
        size_px, fps: of the shards' frames; the largest where there are several.
        digest: names the samples and their bytes. A position means something only together with it.

    Raises:
        ValueError: no index, no sample of the split, none long enough, frames of several sizes and no `frame_px`, or no such profile.
    """

    def __init__(self, folder: Path, config: StreamConfig) -> None:
        if config.regions not in PROFILES:
            raise ValueError(f"regions: there is no profile {config.regions!r}; there are {', '.join(PROFILES)}")
        self.folder, self.config = folder, config
        self.window = config.history + config.frames
        table = read_index(folder)
        in_split = table.filter(pc.equal(table["split"], config.split)).select(_COLUMNS).sort_by("sample")
        if not len(in_split):
            splits = sorted(set(table["split"].to_pylist()))
            raise ValueError(f"{folder}: no sample is in split {config.split!r}; the index has {splits or 'no samples at all'}")
        self._rows = in_split.filter(pc.greater_equal(in_split["frames"], self.window))
        self.skipped = len(in_split) - len(self._rows)
        if not len(self._rows):
            longest = pc.max(in_split["frames"]).as_py()
            raise ValueError(
                f"{folder}: all {self.skipped} clips are shorter than the window of {self.window} frames (history {config.history} "
                f"+ frames {config.frames}); the longest has {longest}. Lower `frames`, or make longer clips"
            )
        sizes = sorted(set(self._rows["size_px"].to_pylist()))
        if len(sizes) > 1 and config.frame_px is None:
            raise ValueError(f"{folder}: frames are {sizes} px; name the side to train at (`frame_px`)")
        self.frame_px: int = config.frame_px or sizes[0]
        self.size_px: int = sizes[-1]
        self.fps: int = pc.max(self._rows["fps"]).as_py()
        self.keys: list[str] = self._rows["sample"].to_pylist()
        self.digest = digest("stream", *self.keys, *self._rows["digest"].to_pylist())
        self._cached_order = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        """Windows in an epoch: one of each sample."""
        return len(self.keys)

    def order(self, epoch: int) -> np.ndarray:
        """The epoch's permutation of `keys`, int64: sorted by raw Philox draws, whose stream numpy keeps stable across versions."""
        cached_epoch, order = self._cached_order
        if epoch != cached_epoch:
            order = np.argsort(_draws(len(self), "epoch", self.config.seed, epoch), kind="stable")
            self._cached_order = (epoch, order)
        return order

    def batch(self, position: int, size: int, *, rank: int = 0, world: int = 1) -> list[Window]:
        """Rank's share of the global batch at `position` .. `position + size - 1`: every world-th window, from `rank` on."""
        return [self.read(p) for p in range(position, position + size)[rank::world]]

    def read(self, position: int) -> Window:
        """The window at a position, decoded; a pure function of the shards, the config and `position`.

        Raises:
            ValueError: the sample is of another format, damaged or missing; names it and its tar.
        """
        epoch, place = divmod(position, len(self))
        row = self._rows.slice(int(self.order(epoch)[place]), 1).to_pylist()[0]
        try:
            return self._read(row, epoch, position)
        except (ValueError, OSError) as e:
            raise ValueError(f"{self.folder / row['tar']}: sample {row['sample']}: {e}") from e

    def _read(self, row: dict[str, Any], epoch: int, position: int) -> Window:
        wanted = (INFO, SOURCE, TARGET, DRIVING, REGIONS_MEMBER, *([CONTROLS] if self.config.regions != "default" else []))
        members = read_members(self.folder, row, wanted)
        missing = set(wanted) - set(members)
        if missing:
            raise ValueError(f"members {sorted(missing)} are missing")
        info = SampleInfo.decode(members[INFO])  # refuses other formats
        for what, found, listed in (
            ("key", info.key, row["sample"]),
            ("frames", info.frames, row["frames"]),
            ("size_px", info.size_px, row["size_px"]),
        ):
            if found != listed:
                raise ValueError(f"its {what} is {found!r}, the index says {listed!r}: index and tar are not of one run")
        place, still = (int(x) for x in _draws(2, "window", self.config.seed, epoch, row["sample"]))
        first = place % (row["frames"] - self.window + 1)
        return Window(
            key=row["sample"],
            position=position,
            first_frame=first,
            source=self._resize(self._source(members, row["frames"], first, still)),
            target=np.stack([self._resize(f) for f in decode_video(members[TARGET], first=first, count=self.window)]),
            driving=self._driving(members, first + self.config.history, row["frames"], row["size_px"]),
        )

    def _source(self, members: dict[str, bytes], frames: int, first: int, draw: int) -> np.ndarray:
        """A frame of the target outside the window; the sample's still where the window covers the clip."""
        outside = frames - self.window
        if not outside:
            return decode_image(members[SOURCE])
        frame = draw % outside
        return decode_video(members[TARGET], first=frame if frame < first else frame + self.window, count=1)[0]

    def _driving(self, members: dict[str, bytes], first: int, frames: int, size_px: int) -> np.ndarray:
        """Masked at the size of the shards, where the outlines are in px, then resized."""
        regions = Regions.decode(members[REGIONS_MEMBER])
        if len(regions.valid) != frames:
            raise ValueError(f"regions of {len(regions.valid)} frames for a video of {frames}")
        if self.config.regions != "default":
            regions = with_profile(regions, decode_controls(members[CONTROLS])["driving_points"], self.config.regions)
        dilate_px = self.config.mask_dilation * size_px
        driving = decode_video(members[DRIVING], first=first, count=self.config.frames)
        masks = (rasterise(regions, first + t, size_px, dilate_px=dilate_px) for t in range(len(driving)))
        return np.stack([self._resize(masked_driving(f, m)) for f, m in zip(driving, masks, strict=True)])

    def _resize(self, frame: np.ndarray) -> np.ndarray:
        return resized(frame, self.frame_px)


def _draws(count: int, *of: str | int) -> np.ndarray:
    """Random uint64 (count,), the same whenever and wherever they are drawn for the same thing."""
    return np.random.Philox(key=int(digest(*of), 16) % 2**64).random_raw(count)


class Prefetch:
    """Reads the next batch in a thread while the present one trains. Decoding releases the GIL; order and state stay the stream's.

    Use as a context manager.
    """

    def __init__(self, stream: ShardStream, size: int, *, rank: int, world: int, threads: int = 1, ahead: int = 2) -> None:
        self._stream, self._size, self._rank, self._world = stream, size, rank, world
        self._pool = ThreadPoolExecutor(1, "stream")

    def batches(self, position: int, count: int) -> Iterator[list[Window]]:
        """Yields `count` batches from `position` on."""
        ahead = None
        for i in range(count):
            now = ahead or self._read(position)
            position += self._size
            ahead = self._read(position) if i + 1 < count else None
            yield now.result()

    def _read(self, position: int) -> Future[list[Window]]:
        return self._pool.submit(self._stream.batch, position, self._size, rank=self._rank, world=self._world)

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
