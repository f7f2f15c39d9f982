"""Linkage: groups of unit vectors are merged, the nearest two first, while their members are alike on average (UPGMA)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence, Set

import numpy as np

_ROWS = 1024  # of the matrix of similarities that are in memory at a time
_SLACK = 1e-4  # float32 finds who may be linked, float64 decides


def linked_groups(
    means: np.ndarray, counts: np.ndarray, min_similarity: float, *, apart: Set[tuple[int, int]], names: Sequence[str]
) -> list[list[int]]:
    """Rows of `means` in groups, each sorted, in the order of their first rows.

    Args:
        means: (N, D), of `counts` (N,) unit vectors each: the product of two is the mean cosine over all pairs.
        apart: pairs of rows that must not meet in a group.
        names: of each row, "" for none: two names must not meet either.

    The result does not depend on rows that nobody is alike to. Of equal similarities the earlier rows' counts first.
    """
    label = _components(means, min_similarity)
    apart_in: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for i, j in apart:
        if label[i] == label[j]:
            apart_in[int(label[i])].append((i, j))
    order = np.argsort(label, kind="stable")
    groups: list[list[int]] = []
    for rows in np.split(order, np.flatnonzero(np.diff(label[order])) + 1):
        inside = apart_in.get(int(label[rows[0]]), [])
        groups += _agglomerate(means[rows], counts[rows], min_similarity, rows, inside, [names[r] for r in rows])
    return sorted(groups)


def alike(means: np.ndarray, min_similarity: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of rows, the earlier first, with a product of at least `min_similarity`, or hardly less: float64 decides. Some at a time."""
    single = means.astype(np.float32)
    for first in range(0, len(means), _ROWS):
        near = single[first : first + _ROWS] @ single[first:].T >= min_similarity - _SLACK
        a, b = np.divmod(np.flatnonzero(near), near.shape[1])
        yield a[b > a] + first, b[b > a] + first


def _components(means: np.ndarray, min_similarity: float) -> np.ndarray:
    """Of each row the first row that similarities connect it to. Average linkage cannot reach beyond them."""
    label = np.arange(len(means))
    for a, b in alike(means, min_similarity):
        root, (a, b) = np.arange(len(means)), (label[a], label[b])
        while True:
            lowest = root.copy()
            np.minimum.at(lowest, a, root[b])
            np.minimum.at(lowest, b, root[a])
            lowest = lowest[lowest]
            if (lowest == root).all():
                break
            root = lowest
        label = root[label]
    return label


def _agglomerate(
    means: np.ndarray, counts: np.ndarray, min_similarity: float, rows: np.ndarray, apart: Sequence[tuple[int, int]], names: list[str]
) -> list[list[int]]:
    if len(rows) == 1:
        return [[int(rows[0])]]
    near = np.round(means @ means.T, 9)  # ties are ties, whatever the order of adding up
    place = {int(r): k for k, r in enumerate(rows)}
    for i, j in apart:
        near[place[i], place[j]] = near[place[j], place[i]] = -np.inf
    called = np.array(names)
    near[(called[:, None] != called) & (called[:, None] != "") & (called != "")] = -np.inf
    np.fill_diagonal(near, -np.inf)
    weights = counts.astype(np.float64)
    members: list[list[int]] = [[int(r)] for r in rows]
    nearest, best = near.argmax(1), near.max(1)
    while best.max() >= min_similarity:
        i = int(best.argmax())
        j = int(nearest[i])  # behind i: before it, its own row would have come first
        near[i] = (weights[i] * near[i] + weights[j] * near[j]) / (weights[i] + weights[j])
        weights[i] += weights[j]
        near[:, i] = near[i]
        near[i, i] = near[j] = near[:, j] = -np.inf
        members[i], members[j] = members[i] + members[j], []
        stale = (nearest == i) | (nearest == j)  # i and j among them; on average nobody came nearer to anybody
        nearest[stale], best[stale] = near[stale].argmax(1), near[stale].max(1)
    return [sorted(m) for m in members if m]
