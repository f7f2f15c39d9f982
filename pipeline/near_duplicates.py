"""Near duplicates: clips, or portraits, of other sources that show almost the same pictures. A pure function of their hashes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from stages.imagehash import BITS

_ROWS = 1024  # of the matrix of distances that are in memory at a time
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
    packed = np.stack([u.hashes for u in units]).astype(">u8").view(np.uint8)
    signs = np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1  # a product counts bits that agree less those that differ
    frames = np.array([u.frames for u in units])
    source = np.unique([u.source for u in units], return_inverse=True)[1]
    least = BITS * looks - 2 * max_distance * looks

    def likeness(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(rows, others): their product where they are copies of each other, else -inf."""
        like = signs[rows] @ signs[others].T
        like[np.abs(frames[rows][:, None] - frames[others]) > _MAX_FRAMES_APART] = -np.inf
        like[(source[rows][:, None] == source[others]) | (like < least)] = -np.inf
        return like

    is_copy = np.zeros(len(units), bool)
    for first in range(0, len(units), _ROWS):
        rows = np.arange(first, min(first + _ROWS, len(units)))
        near = likeness(rows, np.arange(rows[-1] + 1)) > -np.inf
        for k, j in np.argwhere(np.tril(near, first - 1)):
            is_copy[first + k] |= not is_copy[j]
    # Whose copy: not by who was first, since those that stay are known the next time.
    stay = np.array(sorted(np.flatnonzero(~is_copy), key=lambda k: (units[k].uri, units[k].id)))
    found: dict[str, str] = {}
    copied = np.flatnonzero(is_copy)
    for first in range(0, len(copied), _ROWS):
        rows = copied[first : first + _ROWS]
        found |= {units[k].id: units[stay[j]].id for k, j in zip(rows, likeness(rows, stay).argmax(1), strict=True)}
    return found
