"""Near duplicates: clips, or portraits, of other sources that show almost the same pictures. A pure function of their hashes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from stages.imagehash import BITS

_LEAST_BITS = 4  # of a band, for it to be of use
_NONE = np.zeros(0, np.int64)
_MAX_FRAMES_APART = 2  # of the lengths of a clip and its copy


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A clip (`frames` long) or a portrait (1), by its hashes, uint64 (looks,)."""

    id: str
    source: str
    uri: str
    frames: int
    hashes: np.ndarray
    since: float = math.inf  # when it was first accepted, so that no newcomer takes its place; inf for a newcomer


def near_duplicates(units: Iterable[Pictures], max_distance: float) -> dict[str, str]:
    """Unit -> the one whose copy it is: of those that stay the nearest, or else the first by URI and id.

    Who was accepted first stays, then who is first by URI and id. A copy differs by at most `max_distance` bits of 64 on average
    over the looks. Units of one source are never copies of each other, since they are other moments or other faces; nor are clips of other
    lengths. A copy stands for nothing: what is like it and not like the one that it is a copy of stays.
    """
    by_looks: defaultdict[int, list[Pictures]] = defaultdict(list)
    for unit in sorted(units, key=lambda u: (u.since, u.uri, u.id)):
        if len(unit.hashes):
            by_looks[len(unit.hashes)].append(unit)
    return {copy: of for looks, some in by_looks.items() for copy, of in _copies(some, looks, max_distance).items()}


def _copies(units: list[Pictures], looks: int, max_distance: float) -> dict[str, str]:
    """Of units in order: an earlier one, that is no copy itself, has the later ones as its copies."""
    near = _Near(units, looks, max_distance)
    copied = []
    for k in range(len(units)):
        if len(near.to(k)[0]):
            copied.append(k)
        else:
            near.add(k)
    # Whose copy: not by who was first, since those that stay are known the next time.
    name = np.empty(len(units), np.int64)
    name[sorted(range(len(units)), key=lambda k: (units[k].uri, units[k].id))] = np.arange(len(units))
    found: dict[str, str] = {}
    for k in copied:
        rows, bits = near.to(k)
        found[units[k].id] = units[rows[np.lexsort((name[rows], bits))[0]]].id
    return found


class _Near:
    """The units that stay so far, and which of them a unit is a copy of: exactly, though few are compared.

    Two units that differ in at most n bits are the same in at least one of n + 1 bands, whatever bits are in which. So whoever is to be
    compared is in one bucket with the unit, in some band. Bits that tell most are dealt out first, so that no band is without; those of
    one place in the looks of a clip, which say much the same, go to different bands.
    """

    def __init__(self, units: list[Pictures], looks: int, max_distance: float) -> None:
        self._hashes = np.stack([u.hashes for u in units])
        self._frames = np.array([u.frames for u in units])
        self._source = np.unique([u.source for u in units], return_inverse=True)[1]
        self._limit = max_distance * looks
        self._stay: list[int] = []
        bands = max(math.floor(self._limit) + 1, looks)
        bands = bands if bands * _LEAST_BITS <= BITS * looks else 0  # else nearly all are in one bucket: all are compared
        self._bucket, self._first = np.zeros((bands, len(units)), np.int64), []
        for band, bits in enumerate(_bands(self._hashes, bands)):
            _, bucket, sizes = np.unique(bits, return_inverse=True, return_counts=True)
            self._bucket[band] = bucket
            self._first.append(np.cumsum(sizes) - sizes)
        self._end = [first.copy() for first in self._first]  # of a bucket's rows that are filled
        self._rows = np.zeros((bands, len(units)), np.int64)  # those in one bucket of a band side by side

    def add(self, k: int) -> None:
        """Unit `k` stays."""
        self._stay.append(k)
        for band, bucket in enumerate(self._bucket[:, k].tolist()):
            end = self._end[band]
            self._rows[band, end[bucket]] = k
            end[bucket] += 1

    def to(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Units that stay and that `k` is a copy of, some of them more than once, and in how many bits each differs."""
        buckets = self._bucket[:, k].tolist()
        spans = [(self._first[band][bucket], self._end[band][bucket]) for band, bucket in enumerate(buckets)]
        if spans and sum(end - first for first, end in spans) < len(self._stay):
            rows = np.concatenate([self._rows[band, first:end] for band, (first, end) in enumerate(spans) if first < end] or [_NONE])
        else:
            rows = np.array(self._stay, np.int64)
        rows = rows[(np.abs(self._frames[rows] - self._frames[k]) <= _MAX_FRAMES_APART) & (self._source[rows] != self._source[k])]
        bits = np.bitwise_count(self._hashes[rows] ^ self._hashes[k]).sum(1, dtype=np.int64)
        near = bits <= self._limit
        return rows[near], bits[near]


def _bands(hashes: np.ndarray, bands: int) -> Iterator[np.ndarray]:
    """Each band's bits of hashes (N, looks), at most 64 of them, as uint64 (N,); each bit is in one band."""
    looks = hashes.shape[1]
    ones = np.array([((hashes >> np.uint64(place)) & np.uint64(1)).mean() for place in range(BITS)])
    order = [(place, look) for place in np.argsort(np.abs(ones - 0.5), kind="stable").tolist() for look in range(looks)]
    for band in range(bands):
        key = np.zeros(len(hashes), np.uint64)
        for place, look in order[band::bands]:
            key = (key << np.uint64(1)) | ((hashes[:, look] >> np.uint64(place)) & np.uint64(1))
        yield key
