"""Head geometry: poses are found again, angles have their signs, crops stay in the frame."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.head import (
    LEFT_EYE,
    LIPS_INNER,
    LIPS_OUTER,
    NOSE,
    RIGHT_EYE,
    Pose,
    angle_between_deg,
    canonical,
    crop_square,
    euler_deg,
    eye_opening,
    face_boxes,
    face_size,
    fit_pose,
    head_square,
    mirror_map,
    mouth_opening,
    rigid_weights,
    rotation_of,
)

angles = st.tuples(st.floats(-85, 85), st.floats(-85, 85), st.floats(-175, 175))
NOSE_TIP, FOREHEAD, CHIN, RIGHT_CHEEK, LEFT_CHEEK = 1, 10, 152, 234, 454


def posed(yaw: float = 0, pitch: float = 0, roll: float = 0, scale: float = 200, at: tuple[float, float] = (300, 250)) -> np.ndarray:
    """The canonical face (1, 478, 3) in a pose."""
    rotation = rotation_of(np.array([[yaw, pitch, roll]], float))
    return Pose(np.array([scale], float), rotation, np.array([[*at, 0]], float)).apply(canonical())


@given(angles)
def test_euler_angles_are_the_inverse_of_rotations(ypr: tuple[float, float, float]) -> None:
    rotation = rotation_of(np.array(ypr))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_allclose(euler_deg(rotation), ypr, atol=1e-6)


@given(angles, st.floats(1, 1000), st.tuples(st.floats(-1000, 1000), st.floats(-1000, 1000)))
def test_a_pose_is_found_again(ypr: tuple[float, float, float], scale: float, at: tuple[float, float]) -> None:
    points = posed(*ypr, scale, at)
    pose = fit_pose(points)
    np.testing.assert_allclose(pose.euler_deg[0], ypr, atol=1e-4)
    assert pose.scale[0] == pytest.approx(scale)
    np.testing.assert_allclose(pose.apply(canonical()), points, atol=1e-6 * scale)
    np.testing.assert_allclose(pose.invert(points)[0], canonical(), atol=1e-6)


def test_an_expression_does_not_turn_the_head() -> None:
    points = posed(10, 5, 3)
    points[:, list(LIPS_INNER)] += [0, 30, 0]
    np.testing.assert_allclose(fit_pose(points).euler_deg[0], [10, 5, 3], atol=1e-6)


def test_a_mirrored_cloud_is_no_rotation() -> None:
    """The fit never reflects, even where that would fit best."""
    rotation = fit_pose(posed() * [-1, 1, 1]).rotation[0]
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_angles_have_the_signs_that_are_written() -> None:
    """Yaw > 0: the nose points to the picture's right. Pitch > 0: up. Roll > 0: clockwise. Smaller z is nearer."""
    front = posed()[0]
    assert front[NOSE_TIP, 2] < front[[RIGHT_CHEEK, LEFT_CHEEK], 2].min()
    assert front[FOREHEAD, 1] < front[CHIN, 1]
    assert front[RIGHT_CHEEK, 0] < front[LEFT_CHEEK, 0]  # the person's right is on the picture's left
    assert posed(yaw=20)[0, NOSE_TIP, 0] > front[NOSE_TIP, 0]
    assert posed(pitch=20)[0, NOSE_TIP, 1] < front[NOSE_TIP, 1]
    assert posed(roll=20)[0, FOREHEAD, 0] > front[FOREHEAD, 0]


@given(angles, angles)
def test_the_angle_between_rotations_is_a_distance(a: tuple, b: tuple) -> None:
    ra, rb = rotation_of(np.array(a)), rotation_of(np.array(b))
    assert angle_between_deg(ra, ra) == pytest.approx(0, abs=1e-4)
    assert angle_between_deg(ra, rb) == pytest.approx(angle_between_deg(rb, ra), abs=1e-4)


def test_the_angle_between_rotations_of_one_axis_is_their_difference() -> None:
    a, b = rotation_of(np.array([10.0, 0, 0])), rotation_of(np.array([35.0, 0, 0]))
    assert angle_between_deg(a, b) == pytest.approx(25)


def test_the_canonical_face_is_frontal_and_symmetric() -> None:
    shape = canonical()
    np.testing.assert_allclose(shape[mirror_map()] * [-1, 1, 1], shape, atol=1e-6)
    np.testing.assert_array_equal(mirror_map()[mirror_map()], np.arange(478))
    np.testing.assert_allclose(fit_pose(shape[None]).euler_deg[0], 0, atol=1e-6)
    assert eye_opening(shape[None])[0].min() > 0.2


def test_left_and_right_loops_mirror_each_other() -> None:
    mirror = mirror_map()
    assert set(mirror[list(LEFT_EYE)]) == set(RIGHT_EYE)
    for loop in (LIPS_OUTER, LIPS_INNER, NOSE):
        assert set(mirror[list(loop)]) == set(loop)
    assert set(mirror[np.flatnonzero(rigid_weights())]) == set(np.flatnonzero(rigid_weights()))


@given(angles, st.floats(10, 500))
def test_openings_do_not_depend_on_the_pose(ypr: tuple[float, float, float], scale: float) -> None:
    points = posed(*ypr, scale)
    np.testing.assert_allclose(mouth_opening(points), mouth_opening(canonical()[None]), atol=1e-6)
    np.testing.assert_allclose(eye_opening(points), eye_opening(canonical()[None]), atol=1e-6)


def test_openings_open() -> None:
    shape = canonical().copy()
    shape[[87, 14, 317]] += [0, 0.1, 0]
    assert mouth_opening(shape[None])[0] > mouth_opening(canonical()[None])[0] + 0.1
    shut = canonical().copy()
    shut[[387, 386, 385]] = shut[[373, 374, 380]]
    left, right = eye_opening(shut[None])[0]
    assert left < 0.01 < 0.2 < right


def test_boxes_hold_all_points() -> None:
    points = posed(30, 10, 20)
    box = face_boxes(points)[0]
    np.testing.assert_allclose(box, [*points[0, :, :2].min(0), *points[0, :, :2].max(0)])
    assert face_size(face_boxes(points))[0] == max(box[2] - box[0], box[3] - box[1])


def test_the_head_square_ignores_a_stray_frame() -> None:
    boxes = np.tile([100.0, 100, 200, 220], (100, 1))
    boxes[50] += 500
    np.testing.assert_allclose(head_square(boxes), [150, 160, 120], atol=1)


boxes_in = st.lists(
    st.tuples(st.floats(-50, 1900), st.floats(-50, 1000), st.floats(5, 600), st.floats(5, 600)).map(
        lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
    ),
    min_size=1,
    max_size=6,
)


@given(boxes_in, st.floats(1, 4), st.integers(16, 2000), st.integers(16, 1100))
def test_a_crop_is_an_even_square_inside_the_frame(boxes: list, crop_scale: float, width: int, height: int) -> None:
    x0, y0, side = crop_square(np.array(boxes), crop_scale, (width, height))
    assert x0 % 2 == y0 % 2 == side % 2 == 0 and side > 0
    assert 0 <= x0 <= width - side and 0 <= y0 <= height - side
    assert all(isinstance(v, int) for v in (x0, y0, side))


@given(st.floats(300, 1600), st.floats(300, 700), st.floats(20, 120))
def test_a_crop_with_room_has_the_scale_asked_for_and_headroom(cx: float, cy: float, size: float) -> None:
    box = np.array([[cx - size / 3, cy - size / 2, cx + size / 3, cy + size / 2]])
    x0, y0, side = crop_square(box, 2.2, (1920, 1080))
    assert side == pytest.approx(2.2 * size, abs=2)
    assert x0 + side / 2 == pytest.approx(cx, abs=1.5)
    assert y0 + side / 2 == pytest.approx(cy - 0.1 * size, abs=1.5)


def test_a_crop_widens_where_the_face_roams() -> None:
    still, roaming = np.tile([500.0, 400, 600, 520], (20, 1)), np.tile([500.0, 400, 600, 520], (20, 1))
    roaming[:, [0, 2]] += np.linspace(-200, 200, 20)[:, None]
    x0, _, side = crop_square(roaming, 2.2, (1920, 1080))
    assert side > crop_square(still, 2.2, (1920, 1080))[2]
    assert x0 <= 300 and x0 + side >= 800
