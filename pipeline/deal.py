"""Dealing: who appears for each clip. On arrays of integers, a whole corpus at once; the order of nothing leaves a trace.

Clips are dealt in a seeded order. Each takes, of the people allowed to it, those who appear least. Where many clips have nearly one pose,
all of them are dealt at once: everybody who fits each of those poses is raised to one level of uses, as water would rise, and the seats
that come of it are spread over the clips; a seat that is not allowed (a performer's own clip) changes place with another one. What is
left, and every small plan, is dealt clip by clip.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.columns import among, distinct, fill, mix, ranks_within
from pipeline.seats import NO_LIMIT, Table

_FEW = 2048  # clips that are dealt one by one
_FEW_ALIKE = 256  # the same, of nearly one pose
_PARTS, _FINER, _FINEST = 2, 4, 4096  # of a limit: the width of a bin, by how much the next one is finer, and the last one
_SWAPS = 32  # rounds
_FEW_PORTRAITS = 64
_LOW = np.uint64((1 << 32) - 1)


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
