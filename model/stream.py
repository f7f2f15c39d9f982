"""The shard stream: training windows from pair sets' folders, in an order that is a pure function of (seed, epoch, position).

Nothing about the order depends on how many workers read. Its whole state is one integer, and the digest of what it refers to.
Usable alone: it needs neither torch nor anything of the trainer.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.cache import Cache
from model.cut import BadSlot, StreamConfig, Window, cut_window
from model.fetch import fetch_members, is_file_name, keep_freed_memory
from model.order import Balanced, Interleaved, Order, Uniform, share, whole_shares
from model.prefetch import Prefetch
from model.rows import Row, Rows, Words, arrow, numbers
from schemas.ids import digest
from schemas.sample import INDEX_NAME, read_index
from schemas.store import DiskStore, ObjectStore, Place, Store, open_store

__all__ = ["BadSlot", "Prefetch", "ShardStream", "Shards", "StreamConfig", "Window", "find_pair_set"]

_COLUMNS = ["sample", "digest", "tar", "members", "frames", "size_px", "fps", "performer"]
_OF_THE_SET = ["digest", "size_px", "fps", "performer"]  # what its `Rows` do not have, or not as a column
_GB = 1_000_000_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shards:
    """One of several pair sets that are mixed. With all weights 1 they are as one; else each has its share of the windows."""

    place: str  # a folder, or s3://bucket/prefix
    weight: float = 1.0


def find_pair_set(place: str | Path) -> str | Path:
    """A pair set's folder: `place` itself, or the only one of the run `place`. Raises ValueError when there is none, or more than one."""
    store = open_store(place)
    if store.size(INDEX_NAME) >= 0:
        return place
    sets = store.folders("shards", 1)
    if not sets and not (isinstance(store, DiskStore) and (store.root / "shards").is_dir()):
        return place
    found = [store.at(name) for name in sets if store.size(f"{name}/{INDEX_NAME}") >= 0]
    if len(found) != 1:
        raise ValueError(f"{place}: name one pair set's folder (RUN/shards/SET); this run has {found or 'none yet'}")
    return found[0] if isinstance(place, str) else Path(found[0])


class ShardStream:
    """Random access to an endless sequence of windows: the one at a position is known without what came before.

    An epoch is as many positions as there are samples. In it `mixing: uniform` has each once; `balanced` has each performer equally
    often; and so it is within each of several sets that have weights.

    Attributes:
        keys: samples of the split that are long enough, in sorted order, set by set.
        skipped: samples of the split that are too short for a window.
        frame_px: side of the windows' frames.
        size_px, fps: of the shards' frames; the largest where there are several.
        folder: the (first) place.
        digest: names the samples and their bytes, which are held against it where `check` is digests, and the weights. A position means
            something only together with it.

    Raises:
        ValueError: no index or a damaged one, no sample of the split, none long enough, or frames of several sizes and no `frame_px`.
        OSError: the storage fails.
    """

    def __init__(self, shards: Place | Sequence[Shards], config: StreamConfig) -> None:
        places: list[Place] = []
        weights = [1.0]
        if isinstance(shards, str | Path | DiskStore | ObjectStore):
            places = [shards]
        else:
            mixed: Sequence[Shards] = shards  # type: ignore[assignment]  # a str is a sequence too
            places, weights = [s.place for s in mixed], [s.weight for s in mixed]
        if not places:
            raise ValueError("shards: name at least one pair set's folder")
        self.config, self.folder = config, places[0] if isinstance(places[0], str | Path) else str(places[0])
        self._sets = [_Set.read(place, config) for place in places]
        self.keys = [key for s in self._sets for key in s.keys]
        self.skipped = sum(s.skipped for s in self._sets)
        sizes = sorted({size for s in self._sets for size in s.column("size_px").unique().to_pylist()})
        if sizes[0] < 1:
            raise ValueError(f"{self.folder}: {INDEX_NAME} says that frames are {sizes[0]} px; `crosspair verify` says what is damaged")
        if len(sizes) > 1 and config.frame_px is None:
            raise ValueError(f"{self.folder}: frames are {sizes} px; name the side to train at (`frame_px`)")
        self.frame_px: int = config.frame_px or sizes[0]
        self.size_px: int = sizes[-1]
        self.fps: int = max(pc.max(s.column("fps")).as_py() for s in self._sets)
        digests = [digest("stream", *s.keys, *s.column("digest").to_pylist()) for s in self._sets]
        self.digest = digests[0] if len(places) == 1 else digest("streams", *digests, *map(str, map(float, weights)))
        lengths = [len(s.keys) for s in self._sets]
        self._firsts = [sum(lengths[:k]) for k in range(len(lengths))]
        self._weighted = len(places) > 1 and any(w != 1 for w in weights)
        self._order = self._mix(whole_shares(weights)) if self._weighted else self._order_of(self._sets)
        self._cache = None if config.cache_dir is None else Cache(config.cache_dir, int(config.cache_gb * _GB))
        self._told: set[int] = set()
        keep_freed_memory()

    def _mix(self, shares: Sequence[int]) -> Order:
        return Interleaved([self._order_of([s], k) for k, s in enumerate(self._sets)], self._firsts, shares)

    def _order_of(self, sets: Sequence[_Set], *of: int) -> Order:
        if self.config.mixing == "balanced":
            return Balanced([name for s in sets for name in s.column("performer").to_pylist()], self.config.seed, *of)
        return Uniform(sum(len(s.keys) for s in sets), self.config.seed, *of)

    def __len__(self) -> int:
        """Positions in an epoch: as many as there are samples."""
        return len(self.keys)

    def key(self, position: int) -> str:
        """Which sample stands at a position; nothing is read."""
        return self.keys[self._order.at(position)]

    def batch(self, position: int, size: int, *, rank: int = 0, world: int = 1) -> list[Window | BadSlot]:
        """Rank's share of the global batch at `position` .. `position + size - 1`: every world-th slot, from `rank` on.

        Raises:
            OSError: the storage fails.
        """
        return [self.slot(p) for p in share(position, size, rank=rank, world=world)]

    def slot(self, position: int) -> Window | BadSlot:
        """The window at a position, or why its sample cannot be used, which is logged once. Raises OSError: the storage fails."""
        try:
            return self.read(position)
        except ValueError as e:
            row = self._order.at(position)
            if row not in self._told:
                self._told.add(row)
                _log.warning("skipped: %s", e)
            return BadSlot(self.keys[row], position, str(e))

    def read(self, position: int) -> Window:
        """The window at a position, decoded; a pure function of the shards, the config and `position`.

        Raises:
            ValueError: the sample is of another format, damaged or missing; names it and its tar.
            OSError: the storage fails, and nothing is known about the sample.
        """
        store, row, k = self._row(position)
        with _naming(store, row):
            members = self._fetch(store, row, self.config.members)
            return _cut(members, row, position, self.config, self.frame_px, self._drawn_for(position, row.sample, k))

    def members(self, position: int) -> dict[str, bytes]:
        """All members of the sample at a position, as they are, for who decodes them himself; raises as `read`."""
        store, row, _ = self._row(position)
        with _naming(store, row):
            return self._fetch(store, row, None)

    def driving_only(self) -> ShardStream:
        """The same stream over the same index, with `pixels: driving`."""
        other = copy(self)
        other.config = replace(self.config, pixels="driving")
        return other

    def _fetch(self, store: Store, row: Row, names: Sequence[str] | None) -> dict[str, bytes]:
        return fetch_members(store, row, names, self._cache, check=self.config.check)

    def _row(self, position: int) -> tuple[Store, Row, int]:
        """Of the index, and of which set, counted from 0."""
        place = self._order.at(position)
        k = bisect_right(self._firsts, place) - 1
        return self._sets[k].store, self._sets[k].row(place - self._firsts[k]), k

    def _drawn_for(self, position: int, key: str, k: int) -> tuple[str | int, ...]:
        """What names the draws of a window. Where a sample can come twice in an epoch, they are of its position."""
        once = self.config.mixing == "uniform" and not self._weighted
        when = (position // len(self),) if once else ("position", position)
        return self.config.seed, *when, key, *([k] if k else [])  # two sets can have one pair, by two engines


@dataclass(frozen=True)
class _Set:
    """The samples of one pair set that a stream reads, in the order of their keys."""

    store: Store
    index: pa.Table
    rows: Rows  # of `index`
    numbers: np.ndarray  # of those rows, int64
    keys: list[str]
    skipped: int

    @staticmethod
    def read(place: Place, config: StreamConfig) -> _Set:
        store = open_store(place)
        index, length = read_index(store).select(["split", *_COLUMNS]), config.history + config.frames
        damaged = f"{store.at(INDEX_NAME)}: {{}}; `crosspair verify` says what is damaged"
        splits = Words(index["split"])
        if config.split not in splits.words:
            raise ValueError(
                f"{store}: no sample is in split {config.split!r}; the index has {sorted(splits.words) or 'no samples at all'}"
            )
        in_split, frames = splits.codes == splits.words.index(config.split), numbers(index["frames"])
        rows = np.flatnonzero(in_split & (frames >= length))
        skipped = int(in_split.sum()) - len(rows)
        if not len(rows):
            raise ValueError(
                f"{store}: all {skipped} clips are shorter than the window of {length} frames (history {config.history} "
                f"+ frames {config.frames}); the longest has {frames[in_split].max()}. Lower `frames`, or make longer clips"
            )
        samples = index["sample"].take(arrow(rows))
        by_key = pc.sort_indices(samples)
        keys = samples.take(by_key).to_pylist()
        if pc.count_distinct(samples).as_py() < len(keys):
            raise ValueError(damaged.format(f"it has sample {next(a for a, b in pairwise(keys) if a == b)} twice"))
        for tar in index["tar"].take(arrow(rows)).unique().to_pylist():
            if not is_file_name(tar):
                raise ValueError(damaged.format(f"{tar!r} is not the name of a tar beside it"))
        return _Set(store, index.select(_OF_THE_SET), Rows(index), rows[np.from_dlpack(by_key)], keys, skipped)

    def column(self, name: str) -> pa.ChunkedArray:
        return self.index[name].take(arrow(self.numbers))

    def row(self, place: int) -> Row:
        return self.rows.row(int(self.numbers[place]), self.keys[place])


@contextmanager
def _naming(store: Store, row: Row) -> Iterator[None]:
    """A ValueError that comes of a sample says of which."""
    try:
        yield
    except ValueError as e:
        raise ValueError(f"{store.at(row.tar)}: sample {row.sample}: {e}") from e


def _cut(members: dict[str, bytes], row: Row, *more: Any) -> Window:
    """`cut_window`, where whatever it stumbles over is the sample's: the bytes are here, and they are what the index names."""
    try:
        return cut_window(members, row, *more)
    except (ValueError, MemoryError):
        raise
    except Exception as e:
        raise ValueError(f"damaged: {e!r}") from e
