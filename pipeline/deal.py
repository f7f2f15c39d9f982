"""Dealing: who appears for each clip. On arrays of integers, a whole corpus at once; the order of nothing leaves a trace.

Clips are dealt in a seeded order. Each takes, of the people allowed to it, those who appear least. Where many clips have nearly one pose,
all of them are dealt at once: everybody who fits each of those poses is raised to one level of uses, as water would rise, and the seats
that come of it are spread over the clips; a seat that is not allowed (a performer's own clip) changes place with another one. What is
left, and every small plan, is dealt clip by clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

_FEW = 2048  # clips that are dealt one by one
_FEW_ALIKE = 256  # the same, of nearly one pose
_PARTS, _FINER, _FINEST = 2, 4, 4096  # of a limit: the width of a bin, by how much the next one is finer, and the last one
_SWAPS = 32  # rounds
_CHUNK = 1 << 16
_FEW_PORTRAITS = 64
_LOW = np.uint64((1 << 32) - 1)
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
                if len(self._alike) == _FEW_ALIKE:
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


def deal(table: Table, *, both_directions: bool) -> None:
    """Seats as many people as are wanted and allowed. With `both_directions`, whoever appears is sought to perform for his performer."""
    while True:
        if both_directions:
            _answer(table)
        todo = np.flatnonzero(table.want > 0)
        if not len(todo):
            return
        if both_directions:  # some, so that those who appear in them still have clips to answer with
            todo = todo[: -(-len(todo) // (4 if len(todo) <= _FEW else 2))]
        later = _hold_back(table, todo)
        _deal(table, todo, _PARTS)
        # of a clip that goes short nobody is left who is allowed to it
        table.want[todo] = np.where(table.want[todo] > 0, 0, later)


def _hold_back(table: Table, clips: np.ndarray) -> np.ndarray:
    """Lowers what the clips of one who may not perform as often want, last seats first; returns what each may want later, int32."""
    want, who = table.want[clips], table.clip_who[clips]
    left = np.maximum(table.most_performing - table.performs, 0)
    held = np.zeros_like(want)
    mine = np.flatnonzero((np.bincount(who, want, len(left)) > left)[who])
    if len(mine):
        seat = np.repeat(mine, want[mine])
        nth = ranks_within(seat)
        seat = seat[np.lexsort((seat, nth, who[seat]))]
        given = seat[ranks_within(who[seat]) < left[who[seat]]]
        held[mine] = want[mine] - np.bincount(given, minlength=len(clips))[mine]
        table.want[clips] = want - held
    return np.where(left[who] > 0, held, 0).astype(np.int32)


def _deal(table: Table, clips: np.ndarray, parts: int) -> None:
    """Few clips one by one. Many all at once, bin by bin, those first that few portraits fit; what goes short, again in finer bins."""
    if len(clips) <= (_FEW if parts == _PARTS else _FEW_ALIKE) or parts > _FINEST:
        for some in _bins(table, clips, np.full(3, np.inf)):
            _deal_one_by_one(table, some)
        return
    # few bins are soon dealt, narrow ones have more portraits that fit them whole
    bins = list(_bins(table, clips, table.limits / parts / (1 if np.isfinite(table.limits).all() else 2)))
    fitting = [len(table.portraits_near(b, all_of_them=True)) for b in bins]
    for k in np.argsort(fitting, kind="stable"):
        for want in np.flatnonzero(np.bincount(table.want[bins[k]])):
            _deal_at_once(table, bins[k][table.want[bins[k]] == want])
        _deal(table, _with_hope(table, bins[k][table.want[bins[k]] > 0]), parts * _FINER)


def _bins(table: Table, clips: np.ndarray, width: np.ndarray) -> Iterator[np.ndarray]:
    """The clips by split, and by cells of so many degrees and so much size; in each they keep their order."""
    key = table.split[table.clip_who[clips]].astype(np.int64)
    for axis in np.flatnonzero(np.isfinite(width)):
        cell = np.floor(table.clip_pose[clips, axis] / max(width[axis], 1e-9))
        _, cell = np.unique(cell, return_inverse=True)
        key = key * (int(cell.max(initial=0)) + 1) + cell
        if axis and key.max(initial=0) > 1 << 30:
            _, key = np.unique(key, return_inverse=True)
    order = np.argsort(key, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
        if len(part):
            yield clips[part]


def _with_hope(table: Table, clips: np.ndarray) -> np.ndarray:
    """Clips of one bin, but for those of which it is soon seen that there is nobody for them."""
    near = table.portraits_near(clips, all_of_them=False) if len(clips) else clips
    if len(near) > _FEW_PORTRAITS:
        return clips
    hope = np.zeros(len(clips), bool)
    for portrait in near:
        hope |= table.fits(clips, np.full(len(clips), portrait)) & table.allowed(clips, np.full(len(clips), table.portrait_who[portrait]))
    return clips[hope]


def _deal_one_by_one(table: Table, clips: np.ndarray) -> None:
    """Clips of one split: each, in its turn, takes those who appear least; of equals, by a hash of clip and person."""
    portraits = table.portraits_near(clips, all_of_them=False)
    for clip in clips if len(portraits) else ():
        near = portraits[table.fits(clip[None], portraits)]
        who = distinct(table.portrait_who[near])
        who = who[table.allowed_to(int(clip), who)]
        want = int(table.want[clip])
        if len(who) > want:
            uses = table.uses[who]
            who = who[uses <= np.partition(uses, want - 1)[want - 1]]
            who = who[np.lexsort((mix(table.who_hash[who] ^ table.clip_hash[clip]), table.uses[who]))[:want]]
        chosen = table.portraits_for(np.repeat(clip, len(who)), who)
        for k in range(len(who)):
            table.seat(clip[None], who[k : k + 1], chosen[k : k + 1])


def _deal_at_once(table: Table, clips: np.ndarray) -> None:
    """Clips of one bin that want equally many: of those who fit them all, each appears as often as raises the least used to one level."""
    who = distinct(table.portrait_who[table.portraits_near(clips, all_of_them=True)])
    many, want = len(clips), int(table.want[clips[0]])
    if not len(who) or many < 2:
        return
    mixed = mix(table.who_hash[who] ^ table.clip_hash[clips[0]])
    room = np.minimum(many, table.most - table.uses[who])
    more = fill(table.uses[who], room, many * want, mixed)
    order = np.argsort(mixed)
    row = np.full(many * want, -1, np.int32)
    # One after the other, each as often as he appears, through the first seats of all clips, then through the second ones: as nobody
    # appears more often than there are clips, nobody has two seats of one (McNaughton's rule).
    dealt = np.repeat(who[order], more[order])
    row[: len(dealt)] = dealt
    seats = row.reshape(want, many)
    if len(who) >= 8 * want:  # else whoever goes on from first to second seats would often meet himself
        for k in range(1, want):  # so that not the same few meet in many clips
            seats[k] = seats[k, np.argsort(mix(table.clip_hash[clips] + np.uint64(k)))]
    _swap(table, clips, seats)
    for row in seats:
        found = np.full(many, -1, np.int32)
        found[row >= 0] = table.portraits_for(clips[row >= 0], row[row >= 0])
        table.seat(clips[found >= 0], row[found >= 0], found[found >= 0])


def _swap(table: Table, clips: np.ndarray, seats: np.ndarray) -> None:
    """Lets people (want, C) who are not allowed where they sit change places with others; those for whom none is found leave."""
    want, many = seats.shape

    def good(row: np.ndarray, col: np.ndarray, who: np.ndarray) -> np.ndarray:
        """Whether a person may sit there, whoever sits there now."""
        fits = table.allowed(clips[col], who)
        for other in range(want):
            fits &= (row == other) | (seats[other, col] != who)
        return fits

    row, col = np.nonzero(seats >= 0)
    bad = ~good(row, col, seats[row, col])
    row, col = row[bad], col[bad]
    for turn in range(_SWAPS):
        if not len(row):
            return
        # No clip takes part twice, so what is looked at here does not change under the swaps.
        _, one = np.unique(col, return_index=True)
        one = one[np.argsort(mix(table.clip_hash[clips[col[one]]] + np.uint64(turn)))]
        among_themselves = turn % 2 == 0
        if among_themselves:
            half = len(one) // 2
            (r0, c0), (r1, c1) = ((row[part], col[part]) for part in (one[:half], one[half : 2 * half]))
        else:
            r0, c0 = row[one], col[one]
            place = mix(table.clip_hash[clips[c0]] + np.uint64(1000 + turn))
            r1, c1 = ((place >> np.uint64(32)) % np.uint64(want)).astype(np.int64), ((place & _LOW) % np.uint64(many)).astype(np.int64)
            _, first = np.unique(c1, return_index=True)
            free = np.zeros(len(c1), bool)
            free[first] = True
            free &= ~np.isin(c1, c0) & (seats[r1, c1] >= 0)
            r0, c0, r1, c1 = r0[free], c0[free], r1[free], c1[free]
        mine, other = seats[r0, c0], seats[r1, c1]
        swap = good(r0, c0, other) & (good(r1, c1, mine) | among_themselves)
        seats[r0[swap], c0[swap]], seats[r1[swap], c1[swap]] = other[swap], mine[swap]
        bad = ~good(row, col, seats[row, col])
        row, col = row[bad], col[bad]
    seats[row, col] = -1


def _answer(table: Table) -> None:
    """Where A performs for B, and B not for A, seats A at a clip of B that wants somebody."""
    people = np.int64(len(table.split))
    clip, seat = np.nonzero(table.who >= 0)
    pairs = distinct(np.sort(np.concatenate([table.relations, table.clip_who[clip] * people + table.who[clip, seat]])))
    who, performer = np.divmod(pairs, people)
    wanting = np.flatnonzero(table.want > 0)
    wanting = wanting[np.argsort(table.clip_who[wanting], kind="stable")]
    count = np.bincount(table.clip_who[wanting], minlength=people)
    first = np.cumsum(count) - count
    due = ~among(performer * people + who, pairs) & (count[performer] > 0) & (table.count[who] > 0)
    who, performer = who[due], performer[due]
    order = np.lexsort((mix(table.who_hash[who] ^ mix(table.who_hash[performer])), performer))
    who, performer = who[order], performer[order]
    free = np.bincount(table.clip_who[wanting], table.want[wanting], people).astype(np.int64)
    # One for each performer at a time.
    turns = ranks_within(performer)
    order = np.argsort(turns, kind="stable")
    for turn, now in enumerate(np.split(order, np.flatnonzero(np.diff(turns[order])) + 1)):
        _, once = np.unique(who[now], return_index=True) if table.most < NO_LIMIT else (None, slice(None))
        left = now[once]
        left = left[(table.uses[who[left]] < table.most) & (table.performs[performer[left]] < table.most_performing)]
        left = left[free[performer[left]] > 0]
        step = 0
        while len(left):
            here = performer[left]
            clip = wanting[first[here] + (turn + step) % count[here]]
            good = (table.want[clip] > 0) & table.allowed(clip, who[left])
            found = np.full(len(left), -1, np.int32)
            found[good] = table.portraits_for(clip[good], who[left[good]])
            hit = found >= 0
            table.seat(clip[hit], who[left[hit]], found[hit])
            free[here[hit]] -= 1
            step += 1
            left = left[~hit & (step < count[here])]


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
