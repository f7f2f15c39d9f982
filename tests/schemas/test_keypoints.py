"""Keypoint maths against slow references written from the formulas, and against what must not change."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest

from schemas.keypoints import (
    COPIED_EXPRESSION,
    HeadMotion,
    absolute_motion,
    angle_deg,
    expression_friendly,
    hull_volume,
    image_motion,
    relative_motion,
    rotation_matrix,
    stitched,
)

K = 21


def some_motion(frames: int, seed: int) -> HeadMotion:
    rng = np.random.default_rng(seed)
    rotation = rotation_matrix(*rng.uniform(-40, 40, (3, frames)))
    kp, exp = rng.normal(size=(frames, K, 3)), rng.normal(size=(frames, K, 3)) * 0.1
    return HeadMotion(kp, rotation, exp, rng.uniform(0.8, 1.5, frames), rng.normal(size=(frames, 3)))


def slow_points(kp: np.ndarray, rotation: np.ndarray, exp: np.ndarray, scale: float, t: np.ndarray) -> np.ndarray:
    """x = scale * (kp @ R + exp) + (tx, ty, 0), a number at a time."""
    x = np.zeros((K, 3))
    for k in range(K):
        for j in range(3):
            turned = sum(float(kp[k, i]) * float(rotation[i, j]) for i in range(3))
            x[k, j] = scale * (turned + exp[k, j]) + (t[j] if j < 2 else 0.0)
    return x


def slow_rotation(pitch: float, yaw: float, roll: float) -> np.ndarray:
    x, y, z = (math.radians(a) for a in (pitch, yaw, roll))
    rx = np.array([[1, 0, 0], [0, math.cos(x), -math.sin(x)], [0, math.sin(x), math.cos(x)]])
    ry = np.array([[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]])
    rz = np.array([[math.cos(z), -math.sin(z), 0], [math.sin(z), math.cos(z), 0], [0, 0, 1]])
    return (rz @ ry @ rx).T


def test_an_angle_is_the_mean_of_its_bins() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 66)) * 3
    for row, angle in zip(logits, angle_deg(logits), strict=True):
        weights = [math.exp(v) for v in row]
        assert angle == pytest.approx(sum(w / sum(weights) * i * 3 for i, w in enumerate(weights)) - 97.5)


def test_angles_reach_from_end_to_end_and_large_logits_do_not_overflow() -> None:
    ends = np.zeros((2, 66))
    ends[0, 0] = ends[1, 65] = 1e4
    assert angle_deg(ends) == pytest.approx([-97.5, 97.5])
    assert angle_deg(np.zeros(66)) == pytest.approx(0)


def test_rotation_matrix_equals_the_product_of_the_three_axes() -> None:
    angles = np.random.default_rng(1).uniform(-90, 90, (3, 5))
    got = rotation_matrix(*angles)
    for i in range(5):
        np.testing.assert_allclose(got[i], slow_rotation(*angles[:, i]), atol=1e-12)
    np.testing.assert_allclose(got @ got.swapaxes(1, 2), np.broadcast_to(np.eye(3), (5, 3, 3)), atol=1e-12)


def test_points_equal_the_formula_and_drop_the_depth_of_t() -> None:
    m = some_motion(3, 2)
    for i, x in enumerate(m.points()):
        np.testing.assert_allclose(x, slow_points(m.kp[i], m.rotation[i], m.exp[i], m.scale[i], m.t[i]), atol=1e-12)


def test_the_identity_pose_changes_nothing() -> None:
    kp = np.random.default_rng(3).normal(size=(2, K, 3))
    rotation = rotation_matrix(np.zeros(2), np.zeros(2), np.zeros(2))
    np.testing.assert_array_equal(HeadMotion(kp, rotation, np.zeros_like(kp), np.ones(2), np.zeros((2, 3))).points(), kp)


def test_network_outputs_become_motion() -> None:
    rng = np.random.default_rng(4)
    sizes = {"pitch": 66, "yaw": 66, "roll": 66, "t": 3, "exp": 63, "scale": 1, "kp": 63}
    out = {name: rng.normal(size=(2, n)).astype(np.float32) for name, n in sizes.items()}
    m = HeadMotion.from_network(out)
    for i in range(2):
        rotation = slow_rotation(*(float(angle_deg(out[name][i])) for name in ("pitch", "yaw", "roll")))
        expected = slow_points(out["kp"][i].reshape(K, 3), rotation, out["exp"][i].reshape(K, 3), float(out["scale"][i, 0]), out["t"][i])
        np.testing.assert_allclose(m.points()[i], expected, atol=1e-6)


def test_absolute_motion_copies_these_components_of_the_expression_and_no_others() -> None:
    copied = {(k, j) for k in (1, 2, 6, *range(11, 21)) for j in range(3)} | {(3, 1), (4, 1), (5, 2), (8, 2), (9, 1), (9, 2)}
    assert {(int(k), int(j)) for k, j in np.argwhere(COPIED_EXPRESSION)} == copied


@pytest.mark.parametrize("scale", ["driving", "source"])
def test_absolute_motion_equals_the_formula(scale: Literal["driving", "source"]) -> None:
    s, d = some_motion(1, 5), some_motion(3, 6)
    for i, x in enumerate(absolute_motion(s, d, scale=scale).points()):
        exp = s.exp[0].copy()
        for k, j in np.argwhere(COPIED_EXPRESSION):
            exp[k, j] = d.exp[i, k, j]
        size = d.scale[i] if scale == "driving" else s.scale[0]
        np.testing.assert_allclose(x, slow_points(s.kp[0], d.rotation[i], exp, size, d.t[i]), atol=1e-12)


def test_relative_motion_equals_the_formula() -> None:
    s, d = some_motion(1, 7), some_motion(3, 8)
    for i, x in enumerate(relative_motion(s, d).points()):
        rotation = (d.rotation[i] @ d.rotation[0].T) @ s.rotation[0]
        exp, t = s.exp[0] + (d.exp[i] - d.exp[0]), s.t[0] + (d.t[i] - d.t[0])
        np.testing.assert_allclose(x, slow_points(s.kp[0], rotation, exp, s.scale[0] * d.scale[i] / d.scale[0], t), atol=1e-12)


def test_driving_by_oneself_gives_oneself() -> None:
    s = some_motion(1, 9)
    for scale in ("driving", "source"):
        np.testing.assert_allclose(absolute_motion(s, s, scale=scale).points(), s.points(), atol=1e-12)
    np.testing.assert_allclose(relative_motion(s, s).points(), s.points(), atol=1e-12)
    np.testing.assert_allclose(image_motion(s, s, s.exp[0]).points(), s.points(), atol=1e-12)
    np.testing.assert_allclose(expression_friendly(s.points(), s.points()), s.points(), atol=1e-12)


@pytest.mark.parametrize("anchor", [0, 2])
def test_relative_motion_is_the_source_in_the_anchor_frame(anchor: int) -> None:
    s, d = some_motion(1, 10), some_motion(4, 11)
    np.testing.assert_allclose(relative_motion(s, d, anchor=anchor).points()[anchor], s.points()[0], atol=1e-12)


def test_the_order_of_a_batch_does_not_matter() -> None:
    s, d = some_motion(1, 12), some_motion(5, 13)
    together = absolute_motion(s, d).points()
    alone = [absolute_motion(s, d[slice(i, i + 1)]).points()[0] for i in (3, 0, 4)]
    np.testing.assert_array_equal(together[[3, 0, 4]], alone)


def test_image_motion_changes_the_expression_alone() -> None:
    s, d = some_motion(1, 14), some_motion(1, 15)
    neutral = np.random.default_rng(16).normal(size=(K, 3)) * 0.01
    expected = slow_points(s.kp[0], s.rotation[0], s.exp[0] + (d.exp[0] - neutral), s.scale[0], s.t[0])
    np.testing.assert_allclose(image_motion(s, d, neutral).points()[0], expected, atol=1e-12)


def test_hull_volume_of_known_bodies() -> None:
    rng = np.random.default_rng(17)
    corners = rng.normal(size=(4, 3))
    inside = rng.dirichlet(np.ones(4), size=17) @ corners
    tetrahedron = abs(np.linalg.det(corners[1:] - corners[0])) / 6
    assert hull_volume(np.concatenate([inside, corners])) == pytest.approx(tetrahedron)
    octahedron = np.concatenate([np.diag([1.0, 2.0, 3.0]), -np.diag([1.0, 2.0, 3.0])])
    assert hull_volume(octahedron + np.array([5, -3, 2])) == pytest.approx(4 / 3 * 6)


def test_hull_volume_equals_scipys() -> None:
    spatial = pytest.importorskip("scipy.spatial")
    points = np.random.default_rng(18).normal(size=(K, 3))
    assert hull_volume(points) == pytest.approx(spatial.ConvexHull(points).volume)


def test_expression_friendly_motion_scales_with_the_face() -> None:
    d = some_motion(3, 19).points()
    np.testing.assert_allclose(expression_friendly(4 * d[:1], d) - 4 * d[:1], (d - d[:1]) * 8, atol=1e-9)  # root of 4 cubed


def test_stitching_moves_each_point_and_all_together() -> None:
    rng = np.random.default_rng(20)
    x, offsets = rng.normal(size=(2, K, 3)), rng.normal(size=(2, 65))
    got = stitched(x, offsets)
    for i in range(2):
        for k in range(K):
            for j in range(3):
                assert got[i, k, j] == pytest.approx(x[i, k, j] + offsets[i, 3 * k + j] + (offsets[i, 63 + j] if j < 2 else 0))
    np.testing.assert_array_equal(stitched(x, np.zeros((2, 65))), x)
