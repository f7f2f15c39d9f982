"""Tracks: which face of one look is which of the next. Pure functions; where it would be a guess, the track ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np

from stages.head import face_size
from stages.patch import likeness

_REACH_PER_FRAME = 0.12  # face sizes that a face may have moved, per frame between two looks
_MAX_REACH = 1.0
_MAX_GROWTH = 1.6  # of a face's size from look to look
_MARGIN = 0.2  # by so much more alike must a face be to one track than to any other that could claim it
_MIN_LIKENESS = 0.4  # and so much alike at least, where more than one could be meant
_MAX_RIVALS = 5  # more faces than this in one place are a crowd: none of its tracks goes on


@dataclass(frozen=True)
class Face:
    """One face in one look: mesh box (4,) in px of the picture, its patch, and the share of mouth or eyes that a hand covers (0..1)."""

    box: np.ndarray
    patch: np.ndarray
    hidden: float = 0.0

    @property
    def size(self) -> float:
        return float(face_size(self.box[None])[0])

    @property
    def centre(self) -> np.ndarray:
        middle: np.ndarray = (self.box[:2] + self.box[2:]) / 2
        return middle


@dataclass
class Track:
    """One person's face: `faces[i]` at output frame `frames[i]`, in order of time. Tracks of a shot are numbered as they begin."""

    number: int
    frames: list[int] = field(default_factory=list)
    faces: list[Face] = field(default_factory=list)
    ended: bool = False  # nobody can say where it went on

    @property
    def size_px(self) -> float:
        """Median face size in px of the picture."""
        return float(np.median([f.size for f in self.faces]))

    def box_at(self, frame: int) -> np.ndarray | None:
        """The box (4,) seen at an output frame that was looked at."""
        return self.faces[self.frames.index(frame)].box if frame in self.frames else None


def follow(looks: Iterable[tuple[int, Sequence[Face]]], every: int) -> list[Track]:
    """All faces of a shot as tracks. `looks`: output frame and its faces, every `every` frames.

    A track goes on in the only face within reach, where that face is within no other track's reach. Where several could be meant,
    as when people cross or one hides another, a face goes to a track only if it is clearly more alike to it than to the others, and
    the others to it; tracks for which that is not so end there. A face that is gone for two looks in a row is another track after that.
    """
    tracks: list[Track] = []
    for frame, faces in looks:
        open_tracks = [t for t in tracks if not t.ended and frame - t.frames[-1] <= 2 * every]
        taken: set[int] = set()
        for rivals, claimed in _contests(open_tracks, faces, frame):
            for t, f in _settle([open_tracks[t] for t in rivals], [faces[f] for f in claimed]):
                track = open_tracks[rivals[t]]
                track.frames.append(frame)
                track.faces.append(faces[claimed[f]])
                taken.add(claimed[f])
        for f, face in enumerate(faces):
            if f not in taken:
                tracks.append(Track(len(tracks), [frame], [face]))
    return tracks


def _contests(tracks: Sequence[Track], faces: Sequence[Face], frame: int) -> list[tuple[list[int], list[int]]]:
    """Groups of tracks and faces that are within each other's reach, directly or through others; numbers of each."""
    reach = np.array([[_within_reach(t, f, frame) for f in faces] for t in tracks]).reshape(len(tracks), len(faces))
    left, groups = set(range(len(tracks))), []
    while left:
        rivals, claimed = {min(left)}, set[int]()
        while True:
            more = {int(f) for t in rivals for f in np.flatnonzero(reach[t])}
            others = {int(t) for f in more for t in np.flatnonzero(reach[:, f])}
            if others <= rivals and more <= claimed:
                break
            rivals, claimed = rivals | others, claimed | more
        left -= rivals
        if claimed:
            groups.append((sorted(rivals), sorted(claimed)))
    return groups


def _within_reach(track: Track, face: Face, frame: int) -> bool:
    last = track.faces[-1]
    far = float(np.linalg.norm(face.centre - last.centre)) / last.size
    reach = min(_REACH_PER_FRAME * (frame - track.frames[-1]), _MAX_REACH)
    return far <= reach and 1 / _MAX_GROWTH <= face.size / last.size <= _MAX_GROWTH


def _settle(tracks: Sequence[Track], faces: Sequence[Face]) -> list[tuple[int, int]]:
    """Which track goes on in which face; tracks that nobody can tell apart end."""
    if len(tracks) == len(faces) == 1:
        return [(0, 0)]
    sure: list[tuple[int, int]] = []
    if max(len(tracks), len(faces)) <= _MAX_RIVALS:
        alike = np.array([[likeness(t.faces[-1].patch, f.patch) for f in faces] for t in tracks])
        sure = [(t, f) for t, f in _best(alike) if alike[t, f] >= max(_MIN_LIKENESS, _next_best(alike, t, f) + _MARGIN)]
    claimed = {f for _, f in sure}
    for t, track in enumerate(tracks):
        # one that lost a face to a clear owner may only be hidden; one beside a face that nobody owns may be that face
        track.ended = t not in {t for t, _ in sure} and len(claimed) < len(faces)
    return sure


def _best(alike: np.ndarray) -> list[tuple[int, int]]:
    """The assignment of rows to columns with the largest sum."""
    rows, columns = alike.shape
    if rows > columns:
        return [(t, f) for f, t in _best(alike.T)]
    ways = [list(enumerate(way)) for way in permutations(range(columns), rows)]
    return max(ways, key=lambda way: sum(alike[t, f] for t, f in way))


def _next_best(alike: np.ndarray, t: int, f: int) -> float:
    rest = np.r_[np.delete(alike[t], f), np.delete(alike[:, f], t)]
    return float(rest.max()) if len(rest) else -1.0


def one_at_a_time(tracks: Iterable[Track]) -> list[Track]:
    """At each time the track that is largest for longest, and of the others what lies outside its time; in order of time."""
    chosen: list[Track] = []
    for track in sorted(tracks, key=lambda t: (-sum(f.size for f in t.faces), t.number)):
        spans = [(other.frames[0], other.frames[-1]) for other in chosen]
        part = Track(track.number)
        for frame, face in zip(track.frames, track.faces, strict=True):
            if not any(first <= frame <= last for first, last in spans):
                part.frames.append(frame)
                part.faces.append(face)
            elif part.frames:
                chosen.append(part)
                part = Track(track.number)
        chosen += [part] if part.frames else []
    return sorted(chosen, key=lambda t: t.frames[0])


def stretches(track: Track, max_hidden: float, before: int, after: int, stop: int) -> list[tuple[int, int]]:
    """[first, stop) of output frames in which the face may stand free, of a shot of `stop` frames.

    Where the track begins or ends by itself, `before` or `after` frames more, since the face may have come or gone between two looks;
    where a hand covers the face, from clear look to clear look.
    """
    clear = [f.hidden <= max_hidden for f in track.faces]
    found: list[tuple[int, int]] = []
    begin: int | None = None
    for i, (frame, free) in enumerate(zip(track.frames, clear, strict=True)):
        if free and begin is None:
            begin = max(frame - before, 0) if i == 0 else frame
        last = i + 1 == len(clear)
        if begin is not None and (last or not clear[i + 1]):
            if free:
                found.append((begin, min(frame + after + 1, stop) if last else frame + 1))
            begin = None
    return found
