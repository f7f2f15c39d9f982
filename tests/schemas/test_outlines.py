"""Outlines of a clip: what each profile takes in, held still and never late, and a shut eye that is more than a line."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.outlines import PROFILES, held_still, outlines_of, with_profile
from schemas.regions import REGIONS, Regions, rasterise
from schemas.sample import decode_controls, encode_controls
from stages.head import LEFT_EYE, RIGHT_EYE, Pose, canonical, mirror_map, rotation_of

SIZE_PX = 160
T = 40


def moving(seed: int = 0, tremble_px: float = 0.0) -> np.ndarray:
    """A head that turns and nods evenly: points float32 (T, 478, 3) in px, about 100 px high."""
    t = np.linspace(-1, 1, T)
    pose = Pose(np.full(T, 100.0), rotation_of(np.stack([15 * t, 5 * t, 8 * t], 1)), np.stack([80 + 10 * t, 80 - 4 * t, 0 * t], 1))
    shake = np.random.default_rng(seed).normal(0, 1, (T, 478, 3)) * tremble_px
    return (pose.apply(canonical()) + shake).astype(np.float32)


def masks(points: np.ndarray, profile: str) -> np.ndarray:
    regions = Regions(outlines_of(points, profile), np.ones((len(points), len(REGIONS)), bool))
    return rasterise(regions, 0, SIZE_PX)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_mirrored_face_has_mirrored_outlines(profile: str) -> None:
    """The person's left is then his right, and each point of an outline is its partner's."""
    mirror = mirror_map()
    left, right, nose, mouth = PROFILES[profile]
    assert [int(mirror[i]) for i in right] == list(left)
    for loop in (nose, mouth):
        turned = [int(mirror[i]) for i in loop][::-1]
        assert any(turned == [*loop[k:], *loop[:k]] for k in range(len(loop))), "the same loop the other way round"


def test_what_profiles_take_in() -> None:
    tight, default, wide = (masks(moving()[:1], p) for p in ("tight", "default", "wide"))
    for inner, outer in ((tight, default), (default, wide)):
        assert (inner & outer).sum() > 0.97 * inner.sum()
    assert tight[2].sum() < 0.8 * default[2].sum(), "tip and nostrils, not the bridge"
    assert (wide[:2].sum((1, 2)) > 3 * default[:2].sum((1, 2))).all(), "with brows"
    assert 1.2 * default[3].sum() < wide[3].sum() < 3 * default[3].sum()
    assert not (wide[0] & wide[1]).any()
    brow = moving()[0, [105, 334], :2].round().astype(int)
    assert wide[1, brow[0, 1] + 1, brow[0, 0]] and wide[0, brow[1, 1] + 1, brow[1, 0]]


def test_a_reader_makes_another_profile_from_the_samples_points() -> None:
    """No shard is written again: controls.npz holds what it takes, and of the shard's own outlines gives them to a 32nd of a px."""
    points = moving(tremble_px=0.3)
    points[7] = np.nan
    stored = Regions(outlines_of(points), np.repeat(np.isfinite(points).all((1, 2))[:, None], 4, 1))
    read = decode_controls(encode_controls(points, points, np.zeros((T, 4, 4)), np.zeros((T, 4, 4))))["driving_points"]
    np.testing.assert_allclose(outlines_of(read), stored.outlines, atol=1 / 32)
    wide = with_profile(stored, read, "wide")
    assert wide.valid is stored.valid and wide.outlines.shape[:2] == stored.outlines.shape[:2]
    np.testing.assert_allclose(wide.outlines, outlines_of(points, "wide"), atol=1 / 32)
    assert with_profile(stored, read, "default") is stored
    with pytest.raises(ValueError, match="wide"):
        with_profile(stored, read, "wider")
    with pytest.raises(ValueError, match="39 frames"):
        with_profile(stored, read[1:], "wide")


def test_an_even_movement_stays_and_a_tremble_goes() -> None:
    """Stiller, and where the face is."""
    clean, trembling = moving(), moving(tremble_px=0.25)
    np.testing.assert_allclose(outlines_of(clean)[:, 3], clean[:, list(PROFILES["default"][3]), :2], atol=0.06)
    before = trembling[:, list(PROFILES["default"][3]), :2] - clean[:, list(PROFILES["default"][3]), :2]
    after = outlines_of(trembling)[:, 3] - clean[:, list(PROFILES["default"][3]), :2]
    shake = [np.sqrt((np.diff(x, 2, axis=0) ** 2).mean()) for x in (before, after)]
    assert shake[1] < 0.6 * shake[0]
    assert np.sqrt((after**2).mean()) < 0.8 * np.sqrt((before**2).mean())


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_blink_is_neither_late_nor_shallow(frames: int) -> None:
    """Lids that shut for so many frames are as near to each other in the outline as in the mesh, then and not before or after."""
    gap = np.full(T, 8.0)
    gap[20 : 20 + frames] = 1.0
    lids = np.zeros((T, 4, 2))
    lids[:, :, 0], lids[:, 0, 1], lids[:, 1, 1] = [0, 10, 20, 10], gap / 2, -gap / 2
    lids = lids + np.random.default_rng(1).normal(0, 0.1, lids.shape)
    held = held_still(lids, np.ones(T, bool), np.full(T, 100.0))
    np.testing.assert_allclose(held[:, 0, 1] - held[:, 1, 1], lids[:, 0, 1] - lids[:, 1, 1], atol=0.6)
    assert np.abs(np.ptp(held[:, 0, 1]) - np.ptp(lids[:, 0, 1])) < 0.3


def test_nothing_passes_a_frame_without_a_face() -> None:
    """Frames before and after it are as if the clip ended there."""
    points = moving(tremble_px=0.3)
    cut = points.copy()
    cut[20] = np.nan
    held = outlines_of(cut)
    assert np.isfinite(held).all() and not held[20].any()
    np.testing.assert_array_equal(held[:20], outlines_of(points[:20]))
    np.testing.assert_array_equal(held[21:], outlines_of(points[21:]))


@pytest.mark.parametrize("yaw_deg", [-50.0, 0.0, 50.0])
@pytest.mark.parametrize("profile", ["tight", "default"])
def test_the_nose_of_a_turned_head_has_its_tip(yaw_deg: float, profile: str) -> None:
    pose = Pose(np.array([100.0]), rotation_of(np.array([[yaw_deg, 0.0, 10.0]])), np.array([[80.0, 80.0, 0.0]]))
    points = pose.apply(canonical()).astype(np.float32)
    mask = masks(points, profile)[2]
    for ridge in (195, 5, 4, 1, 19, 45, 275):
        x, y = points[0, ridge, :2].round().astype(int)
        assert mask[y - 1 : y + 2, x - 1 : x + 2].any()


@pytest.mark.parametrize("roll_deg", [0, 35, 90, 180])
def test_a_shut_eye_keeps_its_lashes(roll_deg: float) -> None:
    pose = Pose(np.array([100.0]), rotation_of(np.array([[0.0, 0.0, roll_deg]])), np.array([[80.0, 80.0, 0.0]]))
    shut = canonical().copy()
    for loop in (LEFT_EYE, RIGHT_EYE):
        upper, lower = list(loop[:8:-1]), list(loop[1:8])
        shut[upper] = shut[lower]
    points = pose.apply(shut).astype(np.float32)
    found, opened = masks(points, "default"), masks(pose.apply(canonical()).astype(np.float32), "default")
    for side, loop in enumerate((LEFT_EYE, RIGHT_EYE)):
        width = np.linalg.norm(points[0, loop[0], :2] - points[0, loop[8], :2])
        area = float(found[side].sum())
        assert 0.08 * width**2 < area < opened[side].sum()
        seam = points[0, list(loop[1:8]), :2].round().astype(int)
        assert found[side][seam[:, 1], seam[:, 0]].all()


def test_no_frames_have_no_outlines() -> None:
    assert outlines_of(np.zeros((0, 478, 3), np.float32)).shape[:2] == (0, 4)
    assert outlines_of(np.full((3, 478, 3), np.nan, np.float32)).shape[:2] == (3, 4)
