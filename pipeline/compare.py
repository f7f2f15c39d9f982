"""Compare: two pair sets of one run. A pair has one id whatever drew it, so each is measured against itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from pipeline import tables
from schemas.sample import INDEX_NAME, read_index
from schemas.store import Place, Store, open_store
from stages.quality import NOT_MEASURED

Scores = Mapping[str, float]
# Score -> how bad a value is. Of others, as the head's turn, less or more is no better.
_BADNESS: dict[str, Callable[[float], float]] = {
    **dict.fromkeys(("pose_error_deg", "centre_offset", "lost_frames", "black_frames", "clipped_frames"), lambda v: v),
    **dict.fromkeys(("mouth_correlation", "eye_correlation"), lambda v: -v),
    "size_ratio": lambda v: abs(v - 1),
}
_SAME = 1e-6  # two engines that do not differ do not round alike everywhere


@dataclass(frozen=True)
class Compared:
    """One score over the pairs of which both sets have it.

    Attributes:
        difference: median over pairs of B's value minus A's.
        better, worse: pairs in which B's is better or worse than A's; -1 for a score that is neither.
    """

    score: str
    pairs: int
    median_a: float
    median_b: float
    difference: float
    better: int
    worse: int


@dataclass(frozen=True)
class Comparison:
    """Two sets: pairs that both hold as samples, that only one holds, and scores of pairs that both have measured, accepted or not."""

    a: str
    b: str
    both: int
    only_a: list[str]
    only_b: list[str]
    scores: list[Compared]


def sets_of(place: Place) -> list[str]:
    """Names of the pair sets that a run holds."""
    root = open_store(place)
    names = (folder.removeprefix("shards/") for folder in root.folders("shards", depth=1))
    return [n for n in names if root.size(f"shards/{n}/{INDEX_NAME}") >= 0]


def compare_sets(place: Place, a: str, b: str) -> Comparison:
    """B against A.

    Raises:
        ValueError: the run holds no set of that name.
    """
    root, there = open_store(place), sets_of(place)
    for name in (a, b):
        if name not in there:
            raise ValueError(f"{root}: holds no pair set {name}; it has {', '.join(there) or 'none'}")
    held = [set(read_index(root.sub(f"shards/{name}"))["sample"].to_pylist()) for name in (a, b)]
    ours, theirs = _scores(root, a), _scores(root, b)
    pairs = [(ours[p], theirs[p]) for p in sorted(ours.keys() & theirs.keys())]
    names = sorted({n for one, other in pairs for n in one.keys() & other.keys()})
    scores = [c for n in names if (c := _compared(n, [(one[n], other[n]) for one, other in pairs if n in one and n in other]))]
    return Comparison(a, b, len(held[0] & held[1]), sorted(held[0] - held[1]), sorted(held[1] - held[0]), scores)


def every_two(place: Place) -> list[Comparison]:
    return [compare_sets(place, a, b) for a, b in combinations(sets_of(place), 2)]


def _scores(root: Store, name: str) -> dict[str, Scores]:
    """Pair -> what was measured of it; of a set whose rows an older version lost, what the index keeps."""
    if rows := [r for r in tables.load(root, "samples") if r["set"] == name]:
        return {r["pair"]: r["scores"] for r in rows if r["scores"]}
    index = read_index(root.sub(f"shards/{name}"))
    kept = index.select([n for n in index.column_names if n in _BADNESS]).to_pylist()
    return {p: {n: v for n, v in r.items() if v is not None} for p, r in zip(index["sample"].to_pylist(), kept, strict=True)}


def _compared(score: str, values: list[tuple[float, float]]) -> Compared | None:
    both = np.array([v for v in values if NOT_MEASURED not in v], float).reshape(-1, 2)
    if not len(both):
        return None
    better = worse = -1
    if bad := _BADNESS.get(score):
        rise = np.array([bad(b) - bad(a) for a, b in both])
        better, worse = int((rise < -_SAME).sum()), int((rise > _SAME).sum())
    median_a, median_b = np.median(both, axis=0)
    return Compared(score, len(both), float(median_a), float(median_b), float(np.median(both[:, 1] - both[:, 0])), better, worse)
