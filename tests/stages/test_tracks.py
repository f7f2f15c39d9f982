"""Tracks: every face belongs to one, none is lost or doubled, and where it is a guess who is who a track ends."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.patch import PATCH_PX
from stages.tracks import Face, Track, follow, one_at_a_time, stretches

EVERY = 5


def patch(who: int, other: int = 0, share: float = 0.0) -> np.ndarray:
    """Of person `who`; with a share of another's looks."""
    looks = [np.random.default_rng(n).normal(size=(PATCH_PX, PATCH_PX)) for n in (who, other)]
    mixed = (1 - share) * looks[0] + share * looks[1]
    return (mixed / np.linalg.norm(mixed)).astype(np.float32)


def face(x: float, who: int = 1, size: float = 100.0, hidden: float = 0.0, **looks: float) -> Face:
    return Face(np.array([x, 0.0, x + 0.8 * size, size]), patch(who, **looks), hidden)  # type: ignore[arg-type]


def looked(*columns: list[Face]) -> list[tuple[int, list[Face]]]:
    return [(EVERY * i, faces) for i, faces in enumerate(columns)]


def ways(tracks: list[Track]) -> list[list[tuple[int, float]]]:
    """Frame and left border of each track's faces."""
    return [[(k, float(f.box[0])) for k, f in zip(t.frames, t.faces, strict=True)] for t in tracks]


def test_a_face_that_moves_is_one_track() -> None:
    assert ways(follow(looked([face(0)], [face(30)], [face(60)]), EVERY)) == [[(0, 0), (5, 30), (10, 60)]]


def test_people_side_by_side_are_a_track_each() -> None:
    tracks = follow(looked(*[[face(0, 1), face(300, 2)] for _ in range(4)]), EVERY)
    assert [len(t.frames) for t in tracks] == [4, 4]


def test_a_face_that_is_missed_once_goes_on_and_one_that_is_missed_twice_does_not() -> None:
    assert len(follow(looked([face(0)], [], [face(0)]), EVERY)) == 1
    assert len(follow(looked([face(0)], [], [], [face(0)]), EVERY)) == 2


def test_a_jump_or_another_size_is_another_track() -> None:
    assert len(follow(looked([face(0)], [face(80)]), EVERY)) == 2
    assert len(follow(looked([face(0)], [face(0, size=180)]), EVERY)) == 2


def test_people_who_cross_keep_their_tracks_where_their_looks_tell_them_apart() -> None:
    crossing = looked(*[[face(40 * i, 1), face(160 - 40 * i, 2)] for i in range(5)])
    tracks = follow(crossing, EVERY)
    assert ways(tracks) == [[(5 * i, 40 * i) for i in range(5)], [(5 * i, 160 - 40 * i) for i in range(5)]]


def test_a_crossing_of_people_who_look_alike_ends_both_tracks() -> None:
    """Each as much like the other's face as like its own."""
    crossing = looked(*[[face(40 * i, 1, other=2, share=0.5), face(160 - 40 * i, 2, other=1, share=0.5)] for i in range(5)])
    for way in ways(follow(crossing, EVERY)):
        steps = np.diff([x for _, x in way])
        assert (steps > 0).all() or (steps < 0).all()  # nobody turns back at the crossing
        assert not (min(x for _, x in way) < 60 and max(x for _, x in way) > 100)  # and nobody is followed through it


def test_one_who_is_hidden_behind_another_does_not_become_the_other() -> None:
    hides = looked([face(0, 1), face(80, 2)], [face(0, 1), face(50, 2)], [face(20, 2)], [face(-10, 2), face(10, 1)])
    for track in follow(hides, EVERY):
        assert len({f.patch.tobytes() for f in track.faces}) == 1


def test_where_two_meet_and_one_is_seen_who_is_like_neither_both_end() -> None:
    tracks = follow(looked([face(0, 1), face(50, 2)], [face(25, 3)]), EVERY)
    assert [len(t.frames) for t in tracks] == [1, 1, 1]
    assert [t.ended for t in tracks] == [True, True, False]


def test_a_crowd_in_one_place_is_not_followed() -> None:
    crowd = [face(10 * i, i) for i in range(7)]
    assert all(len(t.frames) == 1 for t in follow(looked(crowd, crowd), EVERY))


faces_in_a_look = st.lists(st.builds(face, st.integers(0, 600), st.integers(1, 4), st.sampled_from([80.0, 100.0])), max_size=4)


@given(st.lists(faces_in_a_look, max_size=6))
def test_every_face_of_every_look_is_in_one_track(looks: list[list[Face]]) -> None:
    tracks = follow(looked(*looks), EVERY)
    held = [(k, id(f)) for t in tracks for k, f in zip(t.frames, t.faces, strict=True)]
    assert sorted(held) == sorted((EVERY * i, id(f)) for i, faces in enumerate(looks) for f in faces)
    assert [t.number for t in tracks] == list(range(len(tracks)))
    for track in tracks:
        gaps = np.diff(track.frames)
        assert ((gaps > 0) & (gaps <= 2 * EVERY)).all()


@given(st.lists(faces_in_a_look, max_size=6))
def test_tracks_that_are_taken_do_not_overlap_and_the_largest_is_among_them(looks: list[list[Face]]) -> None:
    tracks = follow(looked(*looks), EVERY)
    taken = one_at_a_time(tracks)
    for before, after in pairwise(taken):
        assert before.frames[-1] < after.frames[0]
    weight = {t.number: sum(f.size for f in t.faces) for t in tracks}
    assert not tracks or max(weight.values()) in [weight[t.number] for t in taken]


def test_of_a_track_that_meets_a_larger_one_the_rest_is_taken() -> None:
    """One shared look does not cost all that comes after it."""
    main = Track(0, [0, 5, 10], [face(0)] * 3)
    other = Track(1, [5, 10, 15, 20], [face(300, size=50)] * 4)
    around = Track(2, [-5, 0, 5, 25], [face(600, size=40)] * 4)
    taken = one_at_a_time([main, other, around])
    assert [(t.number, t.frames) for t in taken] == [(2, [-5]), (0, [0, 5, 10]), (1, [15, 20]), (2, [25])]


def seen(*hidden: float, first: int = 0) -> Track:
    return Track(0, [first + EVERY * i for i in range(len(hidden))], [face(0, hidden=h) for h in hidden])


@pytest.mark.parametrize(
    ("track", "stop", "expected"),
    [
        (seen(0, 0, 0), 15, [(0, 15)]),
        (seen(0, 0, 0), 12, [(0, 12)]),
        (seen(0, 0, first=10), 40, [(6, 20)]),  # it may have come right after the look at 5, and stayed until that at 20
        (seen(0, 0, 1, 0, 0), 25, [(0, 6), (15, 25)]),
        (seen(1, 0, 0), 15, [(5, 15)]),
        (seen(0, 1), 10, [(0, 1)]),
        (seen(1, 1), 10, []),
    ],
)
def test_a_hand_parts_a_track_from_clear_look_to_clear_look(track: Track, stop: int, expected: list[tuple[int, int]]) -> None:
    assert stretches(track, 0.3, EVERY - 1, EVERY - 1, stop) == expected


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1), st.integers(0, 30), st.integers(1, 5))
def test_stretches_are_apart_and_hold_every_clear_look_and_no_other(hidden: list[float], first: int, more: int) -> None:
    track = seen(*hidden, first=first)
    stop = track.frames[-1] + more
    held = [k for a, b in stretches(track, 0.3, EVERY - 1, EVERY - 1, stop) for k in range(a, b)]
    assert held == sorted(set(held)) and all(0 <= k < stop for k in held)
    assert set(held) & set(track.frames) == {k for k, h in zip(track.frames, hidden, strict=True) if not h}
