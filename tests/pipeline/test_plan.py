"""The plan: who performs and who appears. Pure, seeded, balanced, and it only grows.

What is allowed is said here once more, pair by pair, and every plan is held against it: small ones, which are dealt clip by clip, and,
with the line between the two drawn elsewhere, the same ones dealt all at once as millions are.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import columns, deal, tables
from pipeline.config import PairsConfig
from pipeline.plan import (
    CLIPS,
    PAIRS,
    PEOPLE,
    PORTRAITS,
    PlannedPair,
    assign_splits,
    grow,
    grow_tables,
    planned_pairs,
    split_of,
    with_generation,
)
from schemas.ids import digest, pair_digests, pair_id
from schemas.units import Clip, PortraitUnit, SourceFile
from stages.gates import still_quality

SPLITS = {"train": 0.7, "val": 0.3}
World = tuple[list[Clip], list[PortraitUnit]]


def source(identity: str) -> SourceFile:
    return SourceFile(id=f"s-{identity}", uri=f"/{identity}", identity=identity, licence="", consent="")


def clip(name: str, identity: str, yaw: float = 0.0, pitch: float = 0.0, px: float = 200.0) -> Clip:
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
        scores={"yaw_deg": yaw, "pitch_deg": pitch, "face_px": px},
        still_scores={},
    )


def portrait(name: str, identity: str, yaw: float = 0.0, pitch: float = 0.0, px: float = 200.0, of_clip: str = "") -> PortraitUnit:
    return PortraitUnit(
        id=name,
        source=source(identity),
        clip=of_clip,
        content="",
        size_px=64,
        folder="",
        image="",
        track="",
        frame=0,
        digests={},
        scores={"yaw_deg": yaw, "pitch_deg": pitch, "face_px": px},
    )


def everyone(*units: Sequence[Clip] | Sequence[PortraitUnit]) -> dict[str, str]:
    return assign_splits([u.source.identity for some in units for u in some], {}, SPLITS, 0)


def together(*units: Sequence[Clip] | Sequence[PortraitUnit]) -> dict[str, str]:
    """All in one split."""
    return dict.fromkeys(everyone(*units), "train")


def plan(
    world: World,
    rules: PairsConfig | None = None,
    earlier: pa.Table | None = None,
    resting: frozenset[str] = frozenset(),
    at_once: bool = False,
    split: dict[str, str] | None = None,
    **more: object,
) -> pa.Table:
    before = PAIRS.empty_table() if earlier is None else earlier
    with all_at_once() if at_once else one_by_one():
        return grow(*world, before, split or everyone(*world), rules or PairsConfig(), resting=resting, **more)  # type: ignore[arg-type]


@contextmanager
def all_at_once() -> Iterator[None]:
    few = deal._FEW, deal._FEW_ALIKE
    deal._FEW, deal._FEW_ALIKE = 1, 1
    try:
        yield
    finally:
        deal._FEW, deal._FEW_ALIKE = few


@contextmanager
def one_by_one() -> Iterator[None]:
    yield


class Allowed:
    """What a generation may hold, pair by pair."""

    def __init__(self, world: World, rules: PairsConfig, split: dict[str, str], earlier: Sequence[PlannedPair], resting: frozenset[str]):
        self.rules, self.split, self.earlier, self.resting = rules, split, earlier, resting
        self.clips, (self.portraits, self.sure) = {c.id: c for c in world[0]}, self.best(world[1])
        self.live = [p for p in earlier if p.pair not in resting]
        self.planned = {p.pair for p in earlier}
        self.who = {p.id: p.source.identity for p in world[1]}

    def best(self, portraits: Sequence[PortraitUnit]) -> tuple[list[PortraitUnit], list[PortraitUnit]]:
        """Portraits that may be among the best of their person, and those that must: of equals across the line, any may."""
        if not self.rules.portraits_per_identity:
            return list(portraits), list(portraits)
        rank = {p.id: (p.clip != "", -still_quality(p.scores)) for p in portraits}
        before, up_to = Counter[str](), Counter[str]()
        for p in portraits:
            others = [rank[o.id] for o in portraits if o.source.identity == p.source.identity]
            before[p.id], up_to[p.id] = sum(o < rank[p.id] for o in others), sum(o <= rank[p.id] for o in others)
        many = self.rules.portraits_per_identity
        return [p for p in portraits if before[p.id] < many], [p for p in portraits if up_to[p.id] <= many]

    def fits(self, c: Clip, p: PortraitUnit) -> bool:
        apart = [abs(c.scores[s] - p.scores[s]) for s in ("yaw_deg", "pitch_deg")]
        sizes = c.scores["face_px"], p.scores["face_px"]
        size = self.rules.max_face_size_ratio == 0 or max(sizes) <= self.rules.max_face_size_ratio * min(sizes) * (1 + 1e-9)
        return apart[0] <= self.rules.max_yaw_difference_deg and apart[1] <= self.rules.max_pitch_difference_deg and size

    def to(self, c: Clip, portraits: Sequence[PortraitUnit] | None = None) -> set[str]:
        """Identities that may appear for a clip, quotas apart, who do not yet."""
        taken = {self.who.get(p.portrait, p.appearance) for p in self.live if p.clip == c.id}
        return {
            p.source.identity
            for p in (self.portraits if portraits is None else portraits)
            if self.split[p.source.identity] == self.split[c.source.identity]
            and p.source.identity not in {c.source.identity, *taken}
            and pair_id(c.id, p.id) not in self.planned
            and self.fits(c, p)
        }

    def uses(self, new: Sequence[PlannedPair] = ()) -> Counter[str]:
        return Counter(self.who.get(p.portrait, p.appearance) for p in (*self.live, *new))

    def performs(self, new: Sequence[PlannedPair] = ()) -> Counter[str]:
        return Counter(p.performer for p in (*self.live, *new))

    def missing(self, c: Clip, new: Sequence[PlannedPair] = ()) -> int:
        return self.rules.per_clip - sum(p.clip == c.id for p in (*self.live, *new))


people = st.sampled_from([f"p{k}" for k in range(8)])
angles = st.one_of(st.floats(-50, 50), st.sampled_from([-30.0, 0.0, 30.0]))
pixels = st.sampled_from([100.0, 200.0, 390.0])
clip_lists = st.lists(st.tuples(people, angles, angles, pixels), max_size=14)
portrait_lists = st.lists(st.tuples(people, angles, angles, pixels, st.booleans()), max_size=14)


def world_of(clips: list[tuple], portraits: list[tuple], prefix: str = "") -> World:
    return (
        [clip(f"{prefix}c{k}", *rest) for k, rest in enumerate(clips)],
        [portrait(f"{prefix}a{k}", *rest, "some clip" if still else "") for k, (*rest, still) in enumerate(portraits)],
    )


worlds = st.builds(world_of, clip_lists, portrait_lists)
more_worlds = st.builds(world_of, clip_lists, portrait_lists, st.just("new-"))
rules_of = st.builds(
    PairsConfig,
    per_clip=st.integers(1, 4),
    per_identity=st.sampled_from([0, 0, 1, 3]),
    per_performer=st.sampled_from([0, 0, 1, 3]),
    both_directions=st.booleans(),
    seed=st.integers(0, 3),
    max_face_size_ratio=st.sampled_from([0.0, 1.5, 2.0]),
    portraits_per_identity=st.integers(0, 2),
)


@given(worlds, more_worlds, rules_of, rules_of, st.booleans(), st.randoms(use_true_random=False))
def test_rules_hold_in_every_generation(
    old: World, new: World, rules: PairsConfig, later: PairsConfig, at_once: bool, rng: random.Random
) -> None:
    """The second one under other rules, with new clips, portraits and people, when some pairs rest; asked again, none adds."""
    split = everyone(*old, *new)
    earlier = PAIRS.empty_table()
    world = old
    resting: frozenset[str] = frozenset()
    for generation, (more, now) in enumerate(((([], []), rules), (new, replace(later, seed=rules.seed)))):
        world = [*world[0], *more[0]], [*world[1], *more[1]]
        allowed = Allowed(world, now, split, planned_pairs(earlier), resting)
        found = plan(world, now, earlier, resting, at_once, split)
        pairs = planned_pairs(found)
        clips, portraits = {c.id: c for c in world[0]}, {p.id: p for p in allowed.portraits}
        for p in pairs:
            c, a = clips[p.clip], portraits[p.portrait]
            assert p.pair == pair_id(c.id, a.id) and (p.performer, p.appearance) == (c.source.identity, a.source.identity)
            assert p.appearance in allowed.to(c) and allowed.fits(c, a) and p.performer != p.appearance
            assert p.split == split[p.performer] == split[p.appearance]
            assert p.generation == (generation if len(earlier) else 0) and p.pair not in allowed.planned
        assert len({(p.clip, p.appearance) for p in pairs}) == len(pairs) and [p.pair for p in pairs] == sorted(p.pair for p in pairs)
        assert all(now.per_clip >= n for n in Counter(p.clip for p in pairs).values())
        assert all(allowed.missing(clips[p.clip], pairs) >= 0 for p in pairs)
        uses, performs = allowed.uses(pairs), allowed.performs(pairs)
        assert not now.per_identity or all(uses[p.appearance] <= now.per_identity for p in pairs)
        assert not now.per_performer or all(performs[p.performer] <= now.per_performer for p in pairs)
        # a clip goes short only where nobody is left who may appear, or its performer has performed enough
        for c in world[0]:
            if allowed.missing(c, pairs) > 0 and not (now.per_performer and performs[c.source.identity] >= now.per_performer):
                left = allowed.to(c, allowed.sure) - {p.appearance for p in pairs if p.clip == c.id}
                assert not {i for i in left if not (now.per_identity and uses[i] >= now.per_identity)}, c.id
        earlier = with_generation(earlier, found)
        assert len(plan(world, now, earlier, resting, at_once, split)) == 0
        resting = frozenset(p.pair for p in planned_pairs(earlier) if rng.random() < 0.3)


@given(worlds, rules_of, st.booleans(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_leaves_no_trace(world: World, rules: PairsConfig, at_once: bool, rng: random.Random) -> None:
    half: World = world[0][::2], world[1][::2]
    split = everyone(*world)
    first = plan(half, rules, split=split, at_once=at_once)
    shuffled: World = (rng.sample(world[0], len(world[0])), rng.sample(world[1], len(world[1])))
    mixed = first.take(pa.array(rng.sample(range(len(first)), len(first)), pa.int64()))
    names = dict(rng.sample(list(split.items()), len(split)))
    assert plan(shuffled, rules, mixed, split=names, at_once=at_once) == plan(world, rules, first, split=split, at_once=at_once)


@given(worlds, more_worlds, st.integers(1, 3), st.booleans())
def test_a_plan_only_grows(old: World, new: World, per_clip: int, at_once: bool) -> None:
    """Who comes later changes nothing of what is planned, nor who is in which split; a clip that had enough gets nobody more."""
    rules, split = PairsConfig(per_clip=per_clip), everyone(*old, *new)
    first = plan(old, rules, split=everyone(*old), at_once=at_once)
    assert first == plan(old, rules, split=split, at_once=at_once)
    second = plan(([*old[0], *new[0]], [*old[1], *new[1]]), rules, first, split=split, at_once=at_once)
    assert set(planned_pairs(first)) <= set(planned_pairs(with_generation(first, second)))
    enough = {c for c, n in Counter(first["clip"].to_pylist()).items() if n == per_clip}
    assert not enough & set(second["clip"].to_pylist())


@given(worlds, more_worlds, rules_of, st.booleans())
def test_those_for_whom_the_same_clips_are_open_appear_equally_often(old: World, new: World, rules: PairsConfig, later: bool) -> None:
    """In a generation at most once more than the other, where they had appeared equally often before."""
    rules = replace(rules, both_directions=False, per_performer=0)
    split = everyone(*old, *new)
    earlier, world = PAIRS.empty_table(), old
    if later:
        earlier, world = plan(old, rules, split=split), ([*old[0], *new[0]], [*old[1], *new[1]])
    allowed = Allowed(world, rules, split, planned_pairs(earlier), frozenset())
    open_to = {c.id: allowed.to(c) for c in world[0] if allowed.missing(c) > 0}
    before, after = allowed.uses(), allowed.uses(planned_pairs(plan(world, rules, earlier, split=split)))
    alike: dict[tuple, list[int]] = {}
    for who in {p.source.identity for p in world[1]}:
        alike.setdefault((frozenset(c for c in open_to if who in open_to[c]), before[who]), []).append(after[who])
    assert all(max(uses) - min(uses) <= 1 for uses in alike.values())


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(("people", "per_clip", "uses"), [(6, 2, {20}), (7, 3, {25, 26}), (5, 3, {36})])
def test_appearances_are_used_evenly(people: int, per_clip: int, uses: set[int], at_once: bool) -> None:
    clips = [clip(f"c{k}", "performer", yaw=k % 7) for k in range(60)]
    portraits = [portrait(f"p{k}-{n}", f"b{k}") for k in range(people) for n in range(1 + 5 * (k == 0))]
    pairs = plan((clips, portraits), PairsConfig(per_clip=per_clip), split=together(clips, portraits), at_once=at_once)
    assert set(Counter(pairs["appearance"].to_pylist()).values()) == uses
    assert len(set(pairs["portrait"].to_pylist())) == people + 5, "all of somebody's portraits serve"


@pytest.mark.parametrize("at_once", [False, True])
def test_nobody_appears_nor_performs_more_often_than_he_may(at_once: bool) -> None:
    clips = [clip(f"c{k}", f"a{k % 2}") for k in range(60)]
    world: World = (clips, [portrait(f"p{k}", f"b{k}") for k in range(6)])
    few = plan(world, PairsConfig(per_identity=7), split=together(*world), at_once=at_once)
    assert Counter(few["appearance"].to_pylist()) == {f"b{k}": 7 for k in range(6)}
    few = plan(world, PairsConfig(per_performer=31), split=together(*world), at_once=at_once)
    assert Counter(few["performer"].to_pylist()) == {"a0": 31, "a1": 31}
    assert Counter(Counter(few["clip"].to_pylist()).values()) == {1: 58, 2: 2}, "each clip has somebody before one has two"


def test_many_who_perform_and_appear_are_used_evenly() -> None:
    """40,000 clips: these are many enough to be dealt at once, in bins, with people who must not meet themselves."""
    rng = np.random.default_rng(0)
    performers = [f"p{k:03d}" for k in rng.integers(0, 200, 40_000)]
    clips = pa.Table.from_arrays(
        [[digest("c", k) for k in range(40_000)], performers, *np.clip(rng.normal(0, 12, (2, 40_000)), -40, 40), np.full(40_000, 200.0)],
        schema=CLIPS,
    )
    who = [f"p{k:03d}" for k in range(200) for _ in range(5)] + [f"only-portrait-{k}" for k in range(20)]
    poses = [*rng.uniform(-20, 20, (2, 1000)), np.full(1000, 200.0)]
    poses = [np.append(p, np.full(20, x)) for p, x in zip(poses, (0.0, 0.0, 200.0), strict=True)]
    portraits = pa.Table.from_arrays([[digest("a", k) for k in range(1020)], who, *poses, np.zeros(1020)], schema=PORTRAITS)
    names = sorted({*who, *performers})
    people = pa.Table.from_arrays([names, ["train"] * len(names)], schema=PEOPLE)
    pairs = grow_tables(clips, portraits, people, PAIRS.empty_table(), np.zeros(0, bool), PairsConfig(per_clip=3))
    assert set(Counter(pairs["clip"].to_pylist()).values()) == {3} and len(pairs) == 120_000
    uses = Counter(pairs["appearance"].to_pylist())
    assert min(uses.values()) >= 540 and max(uses.values()) <= 550 and len(uses) == 220
    alike = [uses[n] for n in names if n.startswith("only")]
    assert max(alike) - min(alike) <= 1
    met = Counter(zip(pairs["performer"].to_pylist(), pairs["appearance"].to_pylist(), strict=True))
    assert not any(a == b for a, b in met) and len(met) > 0.9 * 200 * 219, "who meets whom is mixed"


def test_a_later_generation_evens_out_an_earlier_one() -> None:
    rules = PairsConfig(per_clip=1)
    old: World = ([clip(f"c{k}", "performer") for k in range(5)], [portrait("p", "old")])
    new: World = ([clip(f"c{k}", "performer") for k in range(10)], [portrait("p", "old"), portrait("q", "new")])
    first = plan(old, rules, split=together(*new))
    second = plan(new, rules, first, split=together(*new))
    assert set(second["appearance"].to_pylist()) == {"new"} and len(second) == 5


@pytest.mark.parametrize("at_once", [False, True])
def test_a_clip_that_went_short_is_topped_up_when_there_is_somebody(at_once: bool) -> None:
    rules, clips = PairsConfig(per_clip=3), [clip(f"c{k}", "performer") for k in range(5)]
    old, new = [portrait("p", "b")], [portrait(f"q{k}", f"new{k}") for k in range(4)]
    split = together(clips, old, new)
    first = plan((clips, old), rules, split=split, at_once=at_once)
    second = plan((clips, [*old, *new]), rules, first, split=split, at_once=at_once)
    assert Counter(first["clip"].to_pylist()) == {c.id: 1 for c in clips} and Counter(second["clip"].to_pylist()) == {
        c.id: 2 for c in clips
    }
    assert Counter(p.appearance for p in planned_pairs(second)) in ({f"new{k}": n for k, n in enumerate(o)} for o in orders([3, 3, 2, 2]))


def orders(values: list[int]) -> set[tuple[int, ...]]:
    from itertools import permutations

    return set(permutations(values))


def test_a_pair_that_rests_makes_room_and_is_not_planned_again() -> None:
    clips, portraits = [clip("c", "a")], [portrait("p", "b"), portrait("q", "d")]
    first = plan((clips, portraits), split=together(clips, portraits))
    rests = first["pair"].to_pylist()[0]
    assert len(first) == 2
    gone = plan((clips, portraits), None, first, frozenset([rests]), split=together(clips, portraits))
    assert len(gone) == 0, "nobody else is there"
    others = [*portraits, portrait("r", "e")]
    again = plan((clips, others), None, first, frozenset([rests]), split=together(clips, others))
    assert again["portrait"].to_pylist() == ["r"]


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("per_clip", [1, 2])
def test_both_directions_are_sought(at_once: bool, per_clip: int) -> None:
    clips = [clip(f"c{k}-{n}", f"p{k}") for k in range(20) for n in range(3)]
    world: World = (clips, [portrait(f"a{k}", f"p{k}") for k in range(20)])

    def answered(rules: PairsConfig) -> float:
        pairs = plan(world, rules, split=together(*world), at_once=at_once)
        assert set(Counter(pairs["clip"].to_pylist()).values()) == {per_clip}
        met = set(zip(pairs["performer"].to_pylist(), pairs["appearance"].to_pylist(), strict=True))
        return sum((b, a) in met for a, b in met) / len(met)

    assert answered(PairsConfig(per_clip=per_clip)) < 0.6
    assert answered(PairsConfig(per_clip=per_clip, both_directions=True)) > (0.7 if at_once else 0.8)


@given(worlds, rules_of)
def test_nobody_who_could_perform_in_return_is_left_out_for_others(world: World, rules: PairsConfig) -> None:
    """Where A performs for B, B has a clip to spare, and A a portrait that fits it, B performs for A."""
    rules = replace(rules, both_directions=True, per_identity=0, per_performer=0)
    split = everyone(*world)
    pairs = planned_pairs(plan(world, rules, split=split))
    allowed, met = Allowed(world, rules, split, [], frozenset()), {(p.performer, p.appearance) for p in pairs}
    for a, b in met:
        spare = [c for c in world[0] if c.source.identity == b and allowed.missing(c, pairs) > 0]
        assert (b, a) in met or not any(a in allowed.to(c) for c in spare)


def test_an_answer_comes_before_those_who_appear_less() -> None:
    """In a later generation too, when one who appeared gets clips of his own."""
    clips, portraits = [clip("c", "a")], [portrait("b", "b"), portrait("a", "a")]
    first = plan((clips, portraits[:1]), split=together(clips, portraits))
    later: World = ([*clips, clip("d", "b")], [*portraits, *(portrait(f"n{k}", f"n{k}") for k in range(9))])
    rules = PairsConfig(per_clip=1, both_directions=True)
    second = plan(later, rules, first, split=together(*later))
    assert [(p.performer, p.appearance) for p in planned_pairs(second)] == [("b", "a")]


@given(worlds, more_worlds, rules_of, st.integers(1, 3), st.booleans())
def test_only_given_portraits_are_dealt_and_pairs_are_left_alone(
    world: World, added: World, rules: PairsConfig, extra: int, at_once: bool
) -> None:
    rules = replace(rules, per_identity=0, per_performer=0, both_directions=False)
    all_portraits = [*world[1], *added[1]]
    split = everyone(world[0], all_portraits)
    first = plan(world, rules, split=split, at_once=at_once)
    given_now = {p.id for p in added[1]}
    late: World = (world[0], all_portraits)
    new = plan(late, rules, first, at_once=at_once, split=split, only_portraits=given_now, extra_per_clip=extra)
    assert set(new["portrait"].to_pylist()) <= given_now and set(new["generation"].to_pylist()) <= {1 if len(first) else 0}
    allowed = Allowed((world[0], all_portraits), replace(rules, portraits_per_identity=0), split, planned_pairs(first), frozenset())
    allowed.portraits = added[1]
    counts = Counter(new["clip"].to_pylist())
    assert all(counts[c.id] == min(extra, len(allowed.to(c))) for c in world[0])
    both = with_generation(first, new)
    assert len(plan(late, rules, both, at_once=at_once, split=split, only_portraits=given_now, extra_per_clip=extra)) == 0


def test_the_best_portraits_appear_images_first() -> None:
    stills = [portrait(f"s{k}", "b", yaw=3.0 * k, of_clip="x") for k in range(6)]
    turned = portrait("image", "b", yaw=20.0)
    clips = [clip(f"c{k}", "a") for k in range(200)]

    def used(few: int) -> set[str]:
        rules = PairsConfig(portraits_per_identity=few)
        return set(plan((clips, [*stills, turned]), rules, split=together(clips, stills))["portrait"].to_pylist())

    assert used(1) == {"image"} and used(3) == {"image", "s0", "s1"} and used(0) == {"image", *(s.id for s in stills)}


@pytest.mark.parametrize(
    ("worse", "by"),
    [("yaw_deg", -9.0), ("pitch_deg", 9.0), ("sharpness", 0.02), ("mouth_opening", 0.3), ("eye_opening", 0.1), ("upscale", 2.0)],
)
def test_what_makes_a_still_worse(worse: str, by: float) -> None:
    good = {"yaw_deg": 0.0, "pitch_deg": 0.0, "sharpness": 1.0, "mouth_opening": 0.0, "eye_opening": 0.3, "upscale": 1.0}
    assert still_quality({**good, worse: by}) < still_quality(good) == 0 == still_quality({"yaw_deg": 0.0, "pitch_deg": 0.0})


@pytest.mark.parametrize("at_once", [False, True])
def test_people_who_are_too_like_are_not_paired(at_once: bool) -> None:
    angle = np.radians(np.arange(0, 360, 10))
    names = [f"p{k:02d}" for k in range(36)]
    embeddings = {n: np.array([np.cos(a), np.sin(a)], np.float32) for n, a in zip(names, angle, strict=True)}
    world: World = (
        [clip(f"c{n}{k}", n) for n in [*names, "unknown"] for k in range(9)],
        [portrait(f"a{n}", n) for n in [*names, "unknown"]],
    )
    rules = PairsConfig(per_clip=2, min_similarity=-0.5, max_similarity=0.7)
    pairs = planned_pairs(plan(world, rules, split=together(*world), embeddings=embeddings, at_once=at_once))
    known = [(p.performer, p.appearance) for p in pairs if "unknown" not in (p.performer, p.appearance)]
    assert len(pairs) == 37 * 18 > len(known) > 500
    assert all(-0.5 <= embeddings[a] @ embeddings[b] <= 0.7 for a, b in known)
    free = planned_pairs(plan(world, PairsConfig(), split=together(*world), embeddings=embeddings, at_once=at_once))
    assert any(embeddings[p.performer] @ embeddings[p.appearance] > 0.7 for p in free if "unknown" not in (p.performer, p.appearance))


def test_heads_that_turn_apart_by_more_than_thirty_degrees_meet_only_when_asked_to() -> None:
    world: World = ([clip("c", "a", yaw=-16.0)], [portrait("p", "b", yaw=15.0)])
    assert len(plan(world, split=together(*world))) == 0
    assert len(plan(world, PairsConfig(max_yaw_difference_deg=31.0), split=together(*world))) == 1


def test_a_size_that_is_not_known_fits_any() -> None:
    world: World = ([clip("c", "a", px=100.0)], [portrait("p", "b", px=0.0), portrait("q", "d", px=300.0)])
    pairs = plan(world, PairsConfig(max_face_size_ratio=2.0), split=together(*world))
    assert pairs["portrait"].to_pylist() == ["p"]


def test_a_person_who_changed_names_is_counted_as_he_is_now() -> None:
    """Two people are one since: he appears for the clip already, under his former name."""
    clips = [clip("c", "a")]
    first = plan((clips, [portrait("p", "b")]), split=together(clips, [portrait("p", "b")]))
    later: World = (clips, [portrait("p", "now"), portrait("q", "now"), portrait("r", "e")])
    assert plan(later, None, first, split={**together(*later), "b": "train"})["portrait"].to_pylist() == ["r"]


def test_a_seed_makes_another_plan() -> None:
    world: World = ([clip(f"c{k}", "a") for k in range(9)], [portrait(f"p{k}", f"b{k}") for k in range(40)])
    assert plan(world, PairsConfig(seed=0)) != plan(world, PairsConfig(seed=1))


def test_a_split_depends_on_nobody_else_and_is_kept() -> None:
    names = [f"p{k}" for k in range(2000)]
    alone = {n: split_of(n, SPLITS, 3) for n in names}
    assert assign_splits(names[::-1], {}, SPLITS, 3) == alone
    assert 0.66 < sum(s == "train" for s in alone.values()) / 2000 < 0.74
    kept = assign_splits(names, {"p0": "test", "gone": "val"}, {"val": 1.0}, 4)
    assert kept["p0"] == "test" and kept["gone"] == "val" and kept["p1"] == "val"


def test_a_share_of_zero_is_empty() -> None:
    assert {split_of(f"p{k}", {"a": 0.0, "b": 1.0, "c": 0.0}, 0) for k in range(500)} == {"b"}


def test_ids_of_pairs_are_the_same_one_by_one_and_all_at_once() -> None:
    clips, portraits = [digest("c", k) for k in range(50)], [digest("a", k) for k in range(50)]
    as_bytes = [np.array([list(i.encode()) for i in ids], np.uint8) for ids in (clips, portraits)]
    assert [d.tobytes().hex() for d in pair_digests(*as_bytes)] == [pair_id(c, a) for c, a in zip(clips, portraits, strict=True)]


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    world: World = ([clip(digest("c", k), f"p{k % 3}") for k in range(9)], [portrait(digest("a", k), f"p{k}") for k in range(3)])
    pairs = plan(world, split=together(*world))
    assert tables.load_pairs(tmp_path) == []
    tables.save_pairs(tmp_path, pairs)
    assert tables.pairs(tmp_path) == pairs and tables.load_pairs(tmp_path) == planned_pairs(pairs) and len(pairs) == 18
    before = (tmp_path / "tables/pairs.parquet").read_bytes()
    tables.save(tmp_path, "pairs", tables.load(tmp_path, "pairs"))  # as runs wrote it before
    assert (tmp_path / "tables/pairs.parquet").read_bytes() == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"per_clip": 0},
        {"per_identity": -1},
        {"max_yaw_difference_deg": -1.0},
        {"max_face_size_ratio": 0.5},
        {"min_similarity": 0.5, "max_similarity": 0.4},
        {"max_similarity": 1.5},
    ],
)
def test_rules_that_no_pair_can_keep_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"pairs\."):
        PairsConfig(**wrong)  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12), st.integers(0, 60))
def test_water_rises_to_one_level(people: list[tuple[int, int]], total: int) -> None:
    uses, room = (np.array(column, np.int64) for column in zip(*people, strict=True))
    more = columns.fill(uses, room, total, columns.mix(np.arange(len(uses))))
    assert more.sum() == min(total, room.sum()) and (more >= 0).all() and (more <= room).all()
    level = (uses + more)[more > 0].max(initial=0)
    assert ((uses + more >= level - 1) | (more == room)).all()
