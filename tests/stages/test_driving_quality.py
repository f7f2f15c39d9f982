"""Quality and regions: each planted fault gets its own reason, and outlines stand where the points are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from schemas.outcomes import REASONS
from schemas.regions import REGIONS
from stages.head import LEFT_EYE, LIPS_OUTER, NOSE, RIGHT_EYE, Pose, canonical, fit_pose, mirror_map, rotation_of
from stages.likeness import Looks, likeness_scores
from stages.pictures import PictureFaults
from stages.quality import GATES as GATES_TABLE
from stages.quality import QualityGates, decide, worst
from stages.reenact import Portrait
from stages.regions import outline, pose_matrices
from stages.truth import NOT_MEASURED, compare, correlation, score

GATES = QualityGates()
T = 60


def performance() -> np.ndarray:
    """A head that turns, nods, sways and talks: points float32 (T, 478, 3)."""
    t = np.linspace(0, 4 * np.pi, T)
    shape = np.repeat(canonical()[None], T, 0)
    shape[:, [87, 14, 317], 1] += 0.05 * (1 + np.sin(3 * t))[:, None]
    shape[:, [373, 374, 380, 144, 145, 153], 1] -= (0.03 * (np.sin(2 * t) > 0.9))[:, None]
    turns = np.stack([18 * np.sin(t), 8 * np.cos(t), 5 * np.sin(2 * t)], -1)
    places = np.stack([128 + 10 * np.sin(t), 128 + 5 * np.cos(t), 0 * t], -1)
    return Pose(np.full(T, 110.0), rotation_of(turns), places).apply(shape).astype(np.float32)


def reason(driving: np.ndarray) -> str:
    return decide(score(performance(), driving), GATES).reason


def test_a_perfect_driving_video_is_accepted() -> None:
    scores = score(performance(), performance())
    assert decide(scores, GATES).accepted
    assert scores["mouth_correlation"] == pytest.approx(1) and scores["eye_correlation"] == pytest.approx(1)
    assert scores["size_ratio"] == pytest.approx(1) and scores["centre_offset"] == pytest.approx(0, abs=1e-6)


def frozen(points: np.ndarray) -> np.ndarray:
    return np.repeat(points[:1], T, 0)


def mirrored(points: np.ndarray) -> np.ndarray:
    return points[:, mirror_map()] * np.array([-1, 1, 1], np.float32) + np.array([256, 0, 0], np.float32)


def twice_as_fast(points: np.ndarray) -> np.ndarray:
    return points[2 * np.arange(T) % T]


def turned_aside(points: np.ndarray) -> np.ndarray:
    pose = fit_pose(points)
    aside = rotation_of(pose.euler_deg + np.array([0.0, 8.0, 0.0]))
    return Pose(pose.scale, aside, pose.translation).apply(pose.invert(points)).astype(np.float32)


def shaken(points: np.ndarray) -> np.ndarray:
    return points + np.random.default_rng(0).normal(0, 1, (T, 1, 3)).astype(np.float32)


def reshaped(points: np.ndarray, change: Callable[[np.ndarray], None]) -> np.ndarray:
    """With something else than that in the head's own frame."""
    pose = fit_pose(points)
    shape = pose.invert(points)
    change(shape)
    return pose.apply(shape).astype(np.float32)


def mute(points: np.ndarray) -> np.ndarray:
    def shut(shape: np.ndarray) -> None:
        shape[:, [87, 14, 317]] = shape[:, [82, 13, 312]]

    return reshaped(points, shut)


def wide_eyed(points: np.ndarray) -> np.ndarray:
    """Open where A blinks, and the other way about."""

    def turn_about(shape: np.ndarray) -> None:
        lower = [373, 374, 380, 144, 145, 153]
        y = shape[:, lower, 1]
        shape[:, lower, 1] = y.max(0) + y.min(0) - y

    return reshaped(points, turn_about)


def squinting(points: np.ndarray) -> np.ndarray:
    """One iris far to the side, now and then."""

    def look_aside(shape: np.ndarray) -> None:
        shape[::3, [468, 473], 0] += 0.12

    return reshaped(points, look_aside)


def lost(points: np.ndarray, frames: int) -> np.ndarray:
    points = points.copy()
    points[:frames] = np.nan
    return points


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (lambda p: np.roll(p, 3, 0), "out_of_step"),
        (frozen, "frozen"),
        (mirrored, "mirrored"),
        (twice_as_fast, "wrong_motion"),
        (turned_aside, "pose_error"),
        (shaken, "jitter"),
        (mute, "mouth_apart"),
        (wide_eyed, "eyes_apart"),
        (squinting, "gaze_apart"),
        (lambda p: p + np.array([12, 0, 0], np.float32), "geometry"),
        (lambda p: p + np.array([0, -12, 0], np.float32), "geometry"),
        (lambda p: p * 1.1 - np.array([12.8, 12.8, 0], np.float32), "geometry"),
        (lambda p: p * 0.9 + np.array([12.8, 12.8, 0], np.float32), "geometry"),
        (lambda p: lost(p, 3), "lost_driving_face"),
        (lambda p: lost(p, T), "lost_driving_face"),
        (lambda p: lost(p, T - 1), "lost_driving_face"),
    ],
)
def test_a_planted_fault_is_named(fault, expected: str) -> None:
    assert reason(fault(performance())) == expected
    assert expected in REASONS


def turned_far() -> np.ndarray:
    pose = Pose(np.full(T, 110.0), rotation_of(np.array([[66.0, 0, 0]] * T)), np.full((T, 3), 128.0))
    return pose.apply(canonical()).astype(np.float32)


def test_a_head_that_turns_too_far_is_named() -> None:
    scores = score(turned_far(), turned_far())
    assert scores["yaw_extreme_deg"] == pytest.approx(66, abs=0.1)
    assert decide(scores, GATES).reason == "pose_range"
    assert decide(scores, QualityGates(max_yaw_deg=70)).accepted


def plain(level: int) -> np.ndarray:
    return np.full((64, 64, 3), level, np.uint8)


def studio() -> np.ndarray:
    """A grey head before a white wall, in a black coat."""
    picture = plain(255)
    picture[16:40, 20:44] = np.random.default_rng(0).integers(60, 200, (24, 24, 3))
    picture[40:] = 0
    return picture


def with_square(level: int) -> np.ndarray:
    picture = studio()
    picture[4:14, 4:14] = level
    return picture


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (plain(0), "black_frames"),
        (plain(12), "black_frames"),
        (plain(255), "clipped_frames"),
        (plain(128), "torn_picture"),
        (with_square(0), "black_block"),
        (with_square(120), "torn_picture"),
        (np.roll(studio(), 1, 1), ""),
        (studio(), ""),
    ],
)
def test_frames_that_are_no_picture_are_named(fault: np.ndarray, expected: str) -> None:
    faults = PictureFaults()
    frames = [studio(), fault, studio(), studio()]
    assert list(faults.watch(frames)) == frames
    scores, rows = faults.measure(np.full((4, 478, 3), np.nan), 64, Portrait(studio(), canonical()))
    assert scores["black_frames"] == 0.25 * (expected == "black_frames")
    assert decide(scores | score(performance(), performance()), GATES).reason == expected
    assert expected == "" or expected in REASONS
    assert all(len(v) == len(frames) and v.max() == np.float32(scores[k]) for k, v in rows.items())


def test_one_lost_frame_of_sixty_is_borne() -> None:
    assert reason(lost(performance(), 1)) == ""


def test_small_strays_are_borne() -> None:
    rng = np.random.default_rng(0)
    strays = rng.normal(0, 0.5, (1, 478, 3)) + rng.normal(0, 0.1, (T, 478, 3))
    assert reason(performance() + strays.astype(np.float32)) == ""


def test_a_mouth_that_moves_otherwise_shows_in_its_correlation() -> None:
    driving = performance()
    driving[:, [87, 14, 317]] = driving[:, [82, 13, 312]]
    assert score(performance(), driving)["mouth_correlation"] < 0.3


def test_other_lengths_are_an_error() -> None:
    with pytest.raises(ValueError, match="60 frames, driving 59"):
        score(performance(), performance()[:-1])


def test_a_signal_that_hardly_moves_says_nothing() -> None:
    flat, wave = np.full(20, 0.3), np.sin(np.arange(20.0))
    assert correlation(flat, wave) == NOT_MEASURED
    assert correlation(wave, flat) == 0.0
    assert correlation(wave, -wave) == pytest.approx(-1)


def test_every_score_is_a_number() -> None:
    for driving in (performance(), lost(performance(), T), lost(performance(), 10), frozen(performance())):
        scores = score(performance(), driving)
        assert all(np.isfinite(v) and isinstance(v, float) for v in scores.values()), scores
        assert scores.keys() == score(performance(), performance()).keys()


@pytest.mark.parametrize("frames", range(-4, 5))
def test_a_shift_is_measured_in_frames(frames: int) -> None:
    scores = score(performance(), np.roll(performance(), frames, 0))
    assert scores["lag_frames"] == abs(frames) and scores["quick_correlation"] > 0.9


def test_of_a_head_that_keeps_still_nothing_is_said() -> None:
    rng = np.random.default_rng(0)
    target, driving = (frozen(performance()) + rng.normal(0, 0.05, (T, 478, 3)).astype(np.float32) for _ in range(2))
    scores = score(target, driving)
    unsaid = ("motion_correlation", "quick_correlation", "lag_frames", "frozen_frames", "mouth_correlation", "eye_correlation")
    assert all(scores[name] == NOT_MEASURED for name in unsaid) and scores["mirrored"] == 0
    assert decide(scores, GATES).accepted and worst(scores, GATES)[0] < 1


def test_a_frozen_half_is_counted() -> None:
    driving = performance()
    driving[30:] = driving[30]
    scores = score(performance(), driving)
    assert scores["frozen_frames"] == pytest.approx(0.5, abs=0.1) and decide(scores, GATES).reason == "frozen"


def test_lost_frames_are_bridged_and_left_out() -> None:
    driving = performance()
    driving[[0, 17, 18, T - 1]] = np.nan
    scores, details = compare(performance(), driving)
    assert scores["lost_frames"] == pytest.approx(4 / T)
    assert scores["pose_error_deg"] < 0.01 and scores["mouth_correlation"] > 0.999 and scores["jitter_ratio"] < 1.2
    assert np.flatnonzero(np.isnan(details["mouth_driving"])).tolist() == [0, 17, 18, T - 1] and np.isfinite(details["mouth_target"]).all()


def test_how_near_a_score_is_to_its_threshold() -> None:
    gates = QualityGates(max_jitter_ratio=2.0, min_motion_correlation=0.5)
    assert worst({"jitter_ratio": 1.0, "motion_correlation": 0.9}, gates) == (0.5, "jitter_ratio")
    assert worst({"jitter_ratio": 0.1, "motion_correlation": 0.0, "lag_frames": NOT_MEASURED}, gates) == (2.0, "motion_correlation")
    assert worst({"black_frames": 0.1}, gates)[0] > 1 and worst({"black_frames": 0.0}, gates)[0] == 0  # of which none is allowed


def test_a_threshold_decides_by_itself() -> None:
    """Each row of the table rejects for its own reason as soon as its score is beyond, and not before."""
    for gate in GATES_TABLE:
        bound = getattr(GATES, gate.field)
        beyond, within = (bound - sign * 0.01 if gate.is_minimum else bound + sign * 0.01 for sign in (1, -1))
        assert decide({gate.score: beyond}, GATES).reason == gate.reason and gate.reason in REASONS
        assert decide({gate.score: within}, GATES).accepted


def test_likeness_to_b_and_to_a() -> None:
    def seen(patch: list[float], embedding: list[float] | None) -> Looks:
        return Looks(np.array(patch), None if embedding is None else np.array(embedding))

    b = seen([1, 0], [1.0, 0.0])
    driving = {3: seen([1, 0], [0.8, 0.6]), 7: seen([0.6, 0.8], [1.0, 0.0]), 9: seen([0, 1], [np.nan, np.nan])}
    performer = {3: seen([0, 1], [0.0, 1.0]), 7: seen([0, 1], [0.6, 0.8]), 9: seen([0, 1], [1.0, 0.0])}
    scores = likeness_scores(driving, performer, b)
    assert scores == pytest.approx({"target_likeness": 0.6, "csim_appearance": 0.9, "csim_performer": 0.6, "csim_margin": 0.3})
    plain = {k: seen([0, 1], None) for k in driving}
    assert likeness_scores(plain, performer, b) == {"target_likeness": 1.0}
    assert likeness_scores({}, performer, b) == {"target_likeness": NOT_MEASURED}


# --- outlines


def test_outlines_follow_the_points_in_the_order_of_the_format() -> None:
    points = performance()
    regions = outline(points)
    assert regions.outlines.dtype == np.float32 and regions.valid.all()
    for k, loop in enumerate((LEFT_EYE, RIGHT_EYE, NOSE, LIPS_OUTER)):
        atol = 2.0 if k < 2 else 0.3  # px of a face 110 px high; shut lids are kept apart
        np.testing.assert_allclose(regions.outlines[:, k, : len(loop)], points[:, list(loop), :2], atol=atol)
    assert REGIONS == ("left_eye", "right_eye", "nose", "mouth")


def test_the_persons_left_eye_is_on_the_pictures_right() -> None:
    x = outline(performance()[:1]).outlines[0, ..., 0].mean(-1)
    assert x[0] > x[2] > x[1]


def test_a_lost_frame_is_invalid_and_nan_does_not_spread() -> None:
    regions = outline(lost(performance(), 2))
    assert not regions.valid[:2].any() and regions.valid[2:].all()
    assert np.isfinite(regions.outlines).all()


@pytest.mark.parametrize(("yaw", "hidden"), [(70, "left_eye"), (-70, "right_eye")])
def test_the_far_eye_of_a_turned_head_is_invalid(yaw: float, hidden: str) -> None:
    pose = Pose(np.array([100.0]), rotation_of(np.array([[yaw, 0.0, 0.0]])), np.array([[128.0, 128, 0]]))
    points = pose.apply(canonical()).astype(np.float32)
    far = max((LEFT_EYE, RIGHT_EYE), key=lambda loop: points[0, list(loop), 2].mean())
    assert (far == LEFT_EYE) == (hidden == "left_eye")
    assert outline(points).valid[0].tolist() == [name != hidden for name in REGIONS]


def test_pose_matrices_map_the_canonical_face_to_the_picture() -> None:
    points = performance()
    matrices = pose_matrices(lost(points, 1))
    assert np.isnan(matrices[0]).all()
    homogeneous = np.concatenate([canonical(), np.ones((478, 1))], 1)
    got = (homogeneous @ matrices[5].T)[:, :3]
    still = [10, 152, 234, 454, 1]  # forehead, chin, cheeks, tip of the nose
    np.testing.assert_allclose(got[still], points[5, still], atol=1e-3)
