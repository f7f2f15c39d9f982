"""What is done to whole columns of integers where millions of pairs are dealt."""

from __future__ import annotations

import numpy as np


def fill(uses: np.ndarray, room: np.ndarray, total: int, order: np.ndarray) -> np.ndarray:
    """How much each of `uses` (N,) rises, at most by its `room`, when `total` is poured over them as water, int64; lowest `order` first
    where the last drops do not reach all. All of `room` where there is less of it than `total`.
    """
    room = np.maximum(room, 0)
    if room.sum() <= total:
        return room
    low, high = int(uses.min()), int((uses + room).max())
    while high - low > 1:  # the level is not below low, and below high
        level = (low + high) // 2
        low, high = (level, high) if np.clip(level - uses, 0, room).sum() <= total else (low, level)
    more = np.clip(low - uses, 0, room)
    higher = np.flatnonzero(np.clip(low + 1 - uses, 0, room) > more)
    last = higher[np.argsort(order[higher])[: total - int(more.sum())]]
    more[last] += 1
    return more


def mix(values: np.ndarray) -> np.ndarray:
    """A hash of each of uint64 (N,): SplitMix64's."""
    x = np.asarray(values, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def among(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which of the keys are in `known`, which is sorted."""
    if not len(known):
        return np.zeros(len(keys), bool)
    return known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys


def distinct(values: np.ndarray) -> np.ndarray:
    """Each value once, of sorted ones."""
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def ranks_within(values: np.ndarray) -> np.ndarray:
    """0, 1, 2... within each run of equal values."""
    begins = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])) if len(values) else np.zeros(0, np.int64)
    lengths = np.diff(np.append(begins, len(values)))
    return np.arange(len(values)) - np.repeat(begins, lengths)
