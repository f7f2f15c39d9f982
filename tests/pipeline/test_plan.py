"""The plan: who performs and who appears. Pure, seeded, balanced, and it only grows."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan import PlannedPair, assign_splits, grow, split_of
from schemas.ids import pair_id
from schemas.units import Clip, PortraitUnit, SourceFile

SPLITS = {"train": 0.7, "val": 0.3}


def source(identity: str) -> SourceFile:
    return SourceFile(id=f"s-{identity}", uri=f"/{identity}", identity=identity, licence="", consent="")


def clip(name: str, identity: str, yaw: float = 0.0, pitch: float = 0.0) -> Clip:
    return Clip(
        id=name,
        shot="",
        source=source(identity),
        content="",
        track=0,
        first_frame=0,
        last_frame=0,
        source_fps=25,
        frames=25,
        fps=25,
        size_px=64,
        crop=(0, 0, 64),
        still_frame=0,
        has_audio=False,
        folder="",
        digests={},
        scores={"yaw_deg": yaw, "pitch_deg": pitch},
        still_scores={},
    )


def portrait(name: str, identity: str, yaw: float = 0.0, pitch: float = 0.0) -> PortraitUnit:
    return PortraitUnit(
        id=name,
        source=source(identity),
        clip="",
        content="",
        size_px=64,
        folder="",
        image="",
        track="",
        frame=0,
        digests={},
        scores={"yaw_deg": yaw, "pitch_deg": pitch},
    )


def plan(clips: list[Clip], portraits: list[PortraitUnit], earlier: list[PlannedPair] | None = None, **settings: Any) -> list[PlannedPair]:
    given = {"per_clip": 2, "max_yaw_difference_deg": 25, "max_pitch_difference_deg": 25, "seed": 0, **settings}
    splits = assign_splits([u.source.identity for u in (*clips, *portraits)], {}, SPLITS, given["seed"])
    return grow(clips, portraits, earlier or [], splits, **given)


people = st.sampled_from([f"p{k}" for k in range(8)])
worlds = st.tuples(
    st.lists(st.tuples(people, st.floats(-50, 50)), max_size=12).map(lambda r: [clip(f"c{k}", i, y) for k, (i, y) in enumerate(r)]),
    st.lists(st.tuples(people, st.floats(-30, 30)), max_size=12).map(lambda r: [portrait(f"a{k}", i, y) for k, (i, y) in enumerate(r)]),
)


@given(worlds, st.integers(1, 4), st.integers(0, 3))
def test_rules_hold_in_every_plan(world: tuple[list[Clip], list[PortraitUnit]], per_clip: int, seed: int) -> None:
    clips, portraits = world
    pairs = plan(clips, portraits, per_clip=per_clip, seed=seed)
    by_clip, by_portrait = {c.id: c for c in clips}, {p.id: p for p in portraits}
    for p in pairs:
        assert p.pair == pair_id(p.clip, p.portrait)
        assert (p.performer, p.appearance) == (by_clip[p.clip].source.identity, by_portrait[p.portrait].source.identity)
        assert p.performer != p.appearance
        assert split_of(p.performer, SPLITS, seed) == split_of(p.appearance, SPLITS, seed) == p.split
        assert abs(by_clip[p.clip].scores["yaw_deg"] - by_portrait[p.portrait].scores["yaw_deg"]) <= 25
    assert len({p.pair for p in pairs}) == len(pairs)
    assert len({(p.clip, p.appearance) for p in pairs}) == len(pairs)
    assert max(Counter(p.clip for p in pairs).values(), default=0) <= per_clip


@given(worlds)
def test_a_clip_goes_without_only_where_nobody_is_allowed(world: tuple[list[Clip], list[PortraitUnit]]) -> None:
    clips, portraits = world
    counts = Counter(p.clip for p in plan(clips, portraits, per_clip=2))
    for c in clips:
        allowed = {
            p.source.identity
            for p in portraits
            if p.source.identity != c.source.identity
            and split_of(p.source.identity, SPLITS, 0) == split_of(c.source.identity, SPLITS, 0)
            and abs(p.scores["yaw_deg"] - c.scores["yaw_deg"]) <= 25
        }
        assert counts[c.id] == min(2, len(allowed))


@given(worlds, st.randoms(use_true_random=False))
def test_the_order_of_the_input_leaves_no_trace(world: tuple[list[Clip], list[PortraitUnit]], rng: random.Random) -> None:
    clips, portraits = world
    shuffled = rng.sample(clips, len(clips)), rng.sample(portraits, len(portraits))
    assert plan(*shuffled) == plan(clips, portraits)


@given(worlds, worlds)
def test_a_plan_only_grows(old: tuple[list[Clip], list[PortraitUnit]], new: tuple[list[Clip], list[PortraitUnit]]) -> None:
    first = plan(*old)
    more = [clip(f"new-{c.id}", c.source.identity) for c in new[0]]
    second = plan([*old[0], *more], [*old[1], *new[1]], first)
    assert not {p.clip for p in second} & {p.clip for p in first}
    assert {p.generation for p in first} <= {0}
    assert {p.generation for p in second} <= {1 if first else 0}


def test_a_plan_that_saw_everything_adds_nothing() -> None:
    clips, portraits = [clip("c", "a")], [portrait(f"p{k}", f"b{k}") for k in range(30)]
    first = plan(clips, portraits)
    assert len(first) == 2
    assert plan(clips, portraits, first) == []


def test_appearances_are_used_evenly() -> None:
    clips = [clip(f"c{k}", "performer") for k in range(60)]
    portraits = [portrait(f"p{k}-{n}", f"b{k}") for k in range(6) for n in range(1 + 5 * (k == 0))]
    splits = dict.fromkeys(["performer", *(f"b{k}" for k in range(6))], "train")
    pairs = grow(clips, portraits, [], splits, per_clip=2, max_yaw_difference_deg=25, max_pitch_difference_deg=25, seed=0)
    assert set(Counter(p.appearance for p in pairs).values()) == {20}


def test_a_later_generation_evens_out_an_earlier_one() -> None:
    splits = dict.fromkeys(["performer", "old", "new"], "train")
    settings = {"per_clip": 1, "max_yaw_difference_deg": 25, "max_pitch_difference_deg": 25, "seed": 0}
    first = grow([clip(f"c{k}", "performer") for k in range(5)], [portrait("p", "old")], [], splits, **settings)
    clips = [clip(f"c{k}", "performer") for k in range(10)]
    second = grow(clips, [portrait("p", "old"), portrait("q", "new")], first, splits, **settings)
    assert {p.appearance for p in second} == {"new"} and len(second) == 5


def test_a_seed_makes_another_plan() -> None:
    clips, portraits = [clip(f"c{k}", "a") for k in range(9)], [portrait(f"p{k}", f"b{k}") for k in range(40)]
    assert plan(clips, portraits, seed=0) != plan(clips, portraits, seed=1)


def test_a_split_depends_on_nobody_else_and_is_kept() -> None:
    names = [f"p{k}" for k in range(2000)]
    alone = {n: split_of(n, SPLITS, 3) for n in names}
    assert assign_splits(names[::-1], {}, SPLITS, 3) == alone
    assert 0.66 < sum(s == "train" for s in alone.values()) / 2000 < 0.74
    kept = assign_splits(names, {"p0": "test", "gone": "val"}, {"val": 1.0}, 4)
    assert kept["p0"] == "test" and kept["gone"] == "val" and kept["p1"] == "val"


def test_a_share_of_zero_is_empty() -> None:
    assert {split_of(f"p{k}", {"a": 0.0, "b": 1.0, "c": 0.0}, 0) for k in range(500)} == {"b"}
