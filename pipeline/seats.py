"""Seats: whom the clips may meet, and who has been seated so far. On arrays of integers, a whole corpus at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pipeline.columns import among, mix

_CHUNK = 1 << 16
_PERFORMERS_KEPT = 256
NO_LIMIT = 1 << 40


@dataclass(kw_only=True)
class Table:
    """Whom the clips may meet, and what has been dealt so far. C clips in seeded order, P portraits by person, N people.

    Attributes:
        clip_who, clip_pose, clip_hash: person int32 (C,); yaw, pitch, log of the face's size float64 (C, 3), nan for a size that does not
            count; uint64 (C,).
        portrait_who, portrait_pose: (P,) ascending; (P, 3).
        split, who_hash: of people, (N,).
        limits: greatest difference in each of the three, (3,).
        want: how many more a clip is to have, int32 (C,).
        uses, most: how often a person appears, int64 (N,), and may appear at most.
        performs, most_performing: the same for performing.
        taken: clip * N + person, int64, sorted: who appears for a clip already.
        barred: clip * P + portrait, int64, sorted: pairs of which there is one that rests.
        relations: performer * N + who appears for him, int64: of earlier pairs.
        embeddings: float32 (N, D) of unit length, nan for those of whom none is known; cosines outside `similarity` are not allowed.
    """

    clip_who: np.ndarray
    clip_pose: np.ndarray
    clip_hash: np.ndarray
    portrait_who: np.ndarray
    portrait_pose: np.ndarray
    split: np.ndarray
    who_hash: np.ndarray
    limits: np.ndarray
    want: np.ndarray
    uses: np.ndarray
    most: int
    performs: np.ndarray
    most_performing: int
    taken: np.ndarray
    barred: np.ndarray
    relations: np.ndarray
    embeddings: np.ndarray | None = None
    similarity: tuple[float, float] = (-1.0, 1.0)
    # what is dealt: person and portrait, int32 (C, seats), -1 for a seat that is free; seats fill from the left
    who: np.ndarray = field(init=False)
    portrait: np.ndarray = field(init=False)
    filled: np.ndarray = field(init=False)
    _alike: dict[int, np.ndarray] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        seats = (len(self.clip_who), max(1, int(self.want.max(initial=0))))
        self.who, self.portrait = np.full(seats, -1, np.int32), np.full(seats, -1, np.int32)
        self.filled = np.zeros(len(self.clip_who), np.int32)
        people = len(self.split)
        self.count = np.bincount(self.portrait_who, minlength=people)
        self.first = np.cumsum(self.count) - self.count

    @cached_property
    def _by_yaw(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each split: its portraits in order of yaw, and their poses (3, portraits)."""
        parts = []
        for s in range(int(self.split.max(initial=0)) + 1):
            own = np.flatnonzero(self.split[self.portrait_who] == s)
            own = own[np.argsort(self.portrait_pose[own, 0], kind="stable")]
            parts.append((own, self.portrait_pose[own].T.copy()))
        return parts

    def portraits_near(self, clips: np.ndarray, *, all_of_them: bool) -> np.ndarray:
        """Portraits, ascending, that fit all of the clips, which are of one split, or might fit one of them; of people who may appear."""
        pose = self.clip_pose[clips]
        low, high = np.fmin.reduce(pose), np.fmax.reduce(pose)
        if all_of_them:
            low, high = high - self.limits, low + self.limits
        else:  # and what a rounding error takes for too far
            anyhow = np.isnan(pose).any(0)
            low, high = np.where(anyhow, -np.inf, low - self.limits - 1e-6), np.where(anyhow, np.inf, high + self.limits + 1e-6)
        own, poses = self._by_yaw[self.split[self.clip_who[clips[0]]]]
        part = slice(np.searchsorted(poses[0], low[0]), np.searchsorted(poses[0], high[0], "right"))
        near = own[part]
        fits = np.ones(len(near), bool)
        for axis in np.flatnonzero(np.isfinite(self.limits[1:])) + 1:
            fits &= ~((poses[axis, part] < low[axis]) | (poses[axis, part] > high[axis]))  # nan fits
        if self.most < NO_LIMIT:
            fits &= self.uses[self.portrait_who[near]] < self.most
        marked = np.zeros(len(self.portrait_who), bool)  # faster than to sort
        marked[near[fits]] = True
        return np.flatnonzero(marked)

    def fits(self, clips: np.ndarray, portraits: np.ndarray) -> np.ndarray:
        """Whether portrait k may stand for clip k, or for the only one, by pose and size, and they are no pair that rests."""
        near = np.ones(len(portraits), bool)
        for axis in np.flatnonzero(np.isfinite(self.limits)):
            near &= ~(np.abs(self.clip_pose[clips, axis] - self.portrait_pose[portraits, axis]) > self.limits[axis])
        if len(self.barred):
            near &= ~among(clips.astype(np.int64) * len(self.portrait_who) + portraits, self.barred)
        return near

    def allowed(self, clips: np.ndarray, who: np.ndarray) -> np.ndarray:
        """Whether person k may appear for clip k, poses apart: somebody else, who is not there yet, not too like nor too unlike."""
        good = self.clip_who[clips] != who
        for seat in range(self.filled[clips].max(initial=0)):
            good &= self.who[clips, seat] != who
        if len(self.taken):
            good &= ~among(clips.astype(np.int64) * len(self.split) + who, self.taken)
        if self.embeddings is not None:
            for at in range(0, len(clips), _CHUNK):
                part = slice(at, at + _CHUNK)
                ours, theirs = self.embeddings[self.clip_who[clips[part]]], self.embeddings[who[part]]
                good[part] &= self._within(np.einsum("nd,nd->n", ours, theirs))
        return good

    def allowed_to(self, clip: int, who: np.ndarray) -> np.ndarray:
        """`allowed` of many people and one clip, who moreover may still appear and have no seat there."""
        good = (self.clip_who[clip] != who) & (self.uses[who] < self.most)
        low, high = np.searchsorted(self.taken, [clip * len(self.split), (clip + 1) * len(self.split)])
        for sits in (*(self.taken[low:high] - clip * len(self.split)), *self.who[clip, : self.filled[clip]]):
            good &= who != sits
        if self.embeddings is not None:
            performer = int(self.clip_who[clip])
            if performer not in self._alike:
                if len(self._alike) == _PERFORMERS_KEPT:
                    self._alike.clear()
                self._alike[performer] = self._within(self.embeddings @ self.embeddings[performer])
            good &= self._alike[performer][who]
        return good

    def _within(self, cosines: np.ndarray) -> np.ndarray:
        return ~((cosines < self.similarity[0]) | (cosines > self.similarity[1]))  # nan is: nothing is known

    def portraits_for(self, clips: np.ndarray, who: np.ndarray) -> np.ndarray:
        """One of person k's portraits that fits clip k, int32, by hash; -1 where none does."""
        found = np.full(len(clips), -1, np.int32)
        left = np.flatnonzero(self.count[who] > 0)
        start = mix(self.clip_hash[clips] ^ self.who_hash[who]).astype(np.int64) & (1 << 62) - 1
        step = 0
        while len(left):
            person = who[left]
            tried = self.first[person] + (start[left] + step) % self.count[person]
            fits = self.fits(clips[left], tried)
            found[left[fits]] = tried[fits]
            step += 1
            left = left[~fits & (step < self.count[person])]
        return found

    def seat(self, clips: np.ndarray, who: np.ndarray, portraits: np.ndarray) -> None:
        """Takes down that these people appear for these clips; no clip is named twice."""
        at = self.filled[clips]
        self.who[clips, at], self.portrait[clips, at] = who, portraits
        self.filled[clips] += 1
        self.want[clips] -= 1
        np.add.at(self.uses, who, 1)
        np.add.at(self.performs, self.clip_who[clips], 1)
