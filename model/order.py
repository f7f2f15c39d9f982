"""Order: which sample stands at a position of the stream. Nothing that came before need be known, nor who else reads.

All draws are raw Philox numbers keyed by what they are for, whose stream numpy keeps stable across versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import gcd, lcm
from typing import Protocol

import numpy as np

from schemas.ids import digest

_LONGEST_CYCLE = 100_000  # positions until a mixture of sets repeats its pattern


class Order(Protocol):
    def at(self, position: int) -> int:
        """The row at a position of an endless sequence."""


class Uniform:
    """Each row once in every epoch of `count` positions. `of` tells this sequence from others of one seed."""

    def __init__(self, count: int, seed: int, *of: str | int) -> None:
        self._count, self._seed, self._of = count, seed, of

    def at(self, position: int) -> int:
        epoch, place = divmod(position, self._count)
        return int(_permutation(self._count, "epoch", self._seed, epoch, *self._of)[place])


class Balanced:
    """Each group's turn as often as any other's; within a group its rows go round, none again before all were there.

    In an epoch of as many positions as there are rows, each group has the same number of turns, but for one that some have more: others in
    the next epoch. `groups` names the group of each row.
    """

    def __init__(self, groups: Sequence[str], seed: int, *of: str | int) -> None:
        self._seed, self._of = seed, of
        self._names, group_of = np.unique(np.asarray(groups), return_inverse=True)
        by_group = np.argsort(group_of, kind="stable")
        self._rows = np.split(by_group, np.cumsum(np.bincount(group_of))[:-1])
        self._count = len(groups)
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # the last two

    def at(self, position: int) -> int:
        epoch, place = divmod(position, self._count)
        slots = self._epochs.get(epoch)
        if slots is None:
            slots = self._slots(epoch)
            self._epochs = dict([*self._epochs.items(), (epoch, slots)][-2:])
        group, turn = slots[0][place], int(slots[1][place])
        rows = self._rows[group]
        lap, place = divmod(turn, len(rows))
        return int(rows[_permutation(len(rows), "group", self._seed, str(self._names[group]), lap, *self._of)[place]])

    def _slots(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each place of an epoch, its group and how many turns that has had before; int64 both."""
        count, groups, first = self._count, len(self._rows), epoch * self._count
        shuffled = _permutation(count, "balanced", self._seed, epoch, *self._of)
        group = (first % groups + shuffled) % groups
        by_group, turns = np.argsort(group, kind="stable"), np.bincount(group, minlength=groups)
        turn = np.empty(count, np.int64)
        turn[by_group] = np.arange(count) - np.repeat(np.cumsum(turns) - turns, turns)
        before = np.array([(first - g + groups - 1) // groups for g in range(groups)], np.int64)
        return group, turn + before[group]


class Interleaved:
    """Several sequences in one, in proportion to whole `shares`: after n positions each has had its share of n, rounded up or down.

    The rows of the k-th sequence are numbered from `firsts[k]` on.
    """

    def __init__(self, orders: Sequence[Order], firsts: Sequence[int], shares: Sequence[int]) -> None:
        self._orders, self._firsts, self._shares = orders, firsts, shares
        self._pattern = _pattern(shares)
        self._turns = np.empty(len(self._pattern), np.int64)  # of the same sequence, earlier in the pattern
        for k in range(len(shares)):
            here = self._pattern == k
            self._turns[here] = np.arange(here.sum())

    def at(self, position: int) -> int:
        cycle, place = divmod(position, len(self._pattern))
        k = int(self._pattern[place])
        return self._firsts[k] + self._orders[k].at(cycle * self._shares[k] + int(self._turns[place]))


def whole_shares(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers in the proportion of `weights`, as these are written.

    Raises:
        ValueError: a weight is not above 0, or only large numbers have this proportion.
    """
    try:
        exact = [Fraction(str(w)) for w in weights]
    except ValueError:  # nan, inf
        exact = [Fraction(0)]
    if min(exact) <= 0:
        raise ValueError(f"weights must be numbers above 0, not {list(weights)}")
    whole = [int(f * lcm(*(f.denominator for f in exact))) for f in exact]
    shares = [w // gcd(*whole) for w in whole]
    if sum(shares) > _LONGEST_CYCLE:
        raise ValueError(f"weights {list(weights)}: write them in fewer digits, or as small whole numbers")
    return shares


def _pattern(shares: Sequence[int]) -> np.ndarray:
    """Whose turn it is at each of sum(shares) positions, int64. The j-th turn of one with share s of n must come in
    floor((j-1) n/s) .. ceil(j n/s) - 1: of those whose time has begun, whose ends soonest comes first, which keeps them all in time.
    """
    total = sum(shares)
    had = [0] * len(shares)
    pattern = np.empty(total, np.int64)
    for position in range(total):
        begun = [k for k, s in enumerate(shares) if had[k] < s and had[k] * total // s <= position]
        k = min(begun, key=lambda k: -(-(had[k] + 1) * total // shares[k]))
        had[k] += 1
        pattern[position] = k
    return pattern


def share(position: int, size: int, *, rank: int, world: int) -> range:
    """Rank's positions of the global batch at `position` .. `position + size - 1`: every world-th, from `rank` on."""
    return range(position, position + size)[rank::world]


def draws(count: int, *of: str | int) -> np.ndarray:
    """Random uint64 (count,), the same whenever and wherever they are drawn for the same thing."""
    return np.random.Philox(key=int(digest(*of), 16) % 2**64).random_raw(count)


@lru_cache(maxsize=16)
def _permutation(count: int, *of: str | int) -> np.ndarray:
    """int64 (count,), sorted by draws; kept for who reads on."""
    order = np.argsort(draws(count, *of), kind="stable")
    order.flags.writeable = False
    return order
