"""LivePortrait's crops against the rule written in complex numbers, and against what must not change."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from faceclips import photograph
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from stages import head
from stages.liveportrait_crop import (
    MESH_POINTS,
    POINTS_203,
    Crop,
    crop_by_landmarks,
    driving_crop,
    eye_ratios,
    landmark_parts,
    lip_ratio,
    source_crop,
)
from stages.media import decode
from stages.mesh import FaceMesh
from stages.stills import read_image

UPPER_BROWS = (70, 63, 105, 66, 107, 336, 296, 334, 293, 300)
RIGHT_EYE, LEFT_EYE, CHIN, LIP_MIDDLE, IRISES = 33, 263, 152, 14, (468, 473)

angles_deg = st.floats(-179, 179)
places = st.tuples(st.floats(-500, 1500), st.floats(-500, 1500))


def posed(yaw: float = 0, pitch: float = 0, roll: float = 0, scale: float = 200, at: tuple[float, float] = (300, 250)) -> np.ndarray:
    """The canonical face (478, 3) in a pose."""
    rotation = head.rotation_of(np.array([[yaw, pitch, roll]], float))
    return head.Pose(np.array([scale], float), rotation, np.array([[*at, 0]], float)).apply(head.canonical())[0]


def along(points: np.ndarray, number: int) -> np.ndarray:
    """`number` points at even steps along a polyline (N, 3), both ends included."""
    places = np.linspace(0, len(points) - 1, number)
    return np.stack([np.interp(places, np.arange(len(points)), points[:, i]) for i in range(points.shape[1])], -1)


def as_203(mesh: np.ndarray) -> np.ndarray:
    """What LivePortrait's 203 points would be on the surface of a face mesh (478, 3): eyes, lips, jaw, brows, nose, no forehead."""

    def loop(corners_and_lids: tuple[int, int, int, int], number: int) -> np.ndarray:
        a, top, b, bottom = (mesh[i] for i in corners_and_lids)
        return np.concatenate([along(np.stack(pair), number // 4 + 1)[:-1] for pair in itertools.pairwise([a, top, b, bottom, a])])

    parts = [
        loop((33, 159, 133, 145), 24),  # 0, 6, 12, 18
        loop((362, 386, 263, 374), 24),  # 24, 30, 36, 42
        loop((61, 0, 291, 17), 36),  # 48 and 66 are the corners
        loop((78, 13, 308, 14), 24),  # 90 and 102 are the middles
        along(mesh[[*head.FACE_OVAL[7:30]]], 37),  # from temple to temple under the chin
        along(mesh[[70, 63, 105, 66, 107, 55, 65, 52, 53, 46]], 20),
        along(mesh[[336, 296, 334, 293, 300, 276, 283, 282, 295, 285]], 20),
        along(mesh[list(head.NOSE)], 16),
        mesh[list(IRISES)],
    ]
    points = np.concatenate(parts)
    assert points.shape == (POINTS_203, 3)
    return points[:, :2]


def some_points(seed: int, number: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 400, (number, 2)), *rng.uniform(0, 400, (2, 2))


def slow_square(points: np.ndarray, eyes: np.ndarray, mouth: np.ndarray, scale: float, vy: float) -> tuple[complex, float, complex]:
    """Centre, side and x direction of the original's square, in the complex plane, where x is real and y imaginary."""
    z, down = [complex(*p) for p in points], complex(*mouth) - complex(*eyes)
    down = down / abs(down) if abs(down) > 1e-3 else 1j
    across = down / 1j
    own = [p * across.conjugate() for p in z]  # turned so that the face is upright
    left, right = min(p.real for p in own), max(p.real for p in own)
    top, bottom = min(p.imag for p in own), max(p.imag for p in own)
    side = max(right - left, bottom - top) * scale
    return complex((left + right) / 2, (top + bottom) / 2) * across + vy * side * down, side, across


def slow_crop_px(point: np.ndarray, centre: complex, length: float, across: complex, side: int) -> complex:
    return (complex(*point) - centre) * across.conjugate() * (side / length) + complex(side, side) / 2


def angle_deg(crop: Crop) -> float:
    """Of the crop's x in the picture."""
    return math.degrees(math.atan2(crop.matrix[0, 1], crop.matrix[0, 0]))


# the rule


def test_a_square_that_is_worked_out_by_hand() -> None:
    """A box of 40 x 80 px around 30, 60, doubled, a quarter of 160 px up: centre 30, 20, and 80 crop px for 160."""
    points = np.array([[10.0, 20], [50, 100], [30, 40]])
    crop = crop_by_landmarks(points, np.array([30.0, 40]), np.array([30.0, 80]), side=80, scale=2, vy=-0.25, rotate=True)
    np.testing.assert_allclose(crop.matrix, [[0.5, 0, 25], [0, 0.5, 30]], atol=1e-12)
    assert crop.side == 80 and crop.scale == pytest.approx(0.5)


@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_the_crop_equals_the_rule_in_complex_numbers(seed: int, rotate: bool) -> None:
    points, eyes, mouth = some_points(seed)
    crop = crop_by_landmarks(points, eyes, mouth, side=224, scale=1.5, vy=-0.1, rotate=rotate)
    centre, length, across = slow_square(points, eyes, mouth, 1.5, -0.1)
    expected = [slow_crop_px(p, centre, length, across if rotate else 1, 224) for p in points]
    np.testing.assert_allclose(crop.to_crop_px(points), [[z.real, z.imag] for z in expected], atol=1e-9)
    np.testing.assert_allclose(crop.to_picture_px(crop.to_crop_px(points)), points, atol=1e-9)


@pytest.mark.parametrize("number", [MESH_POINTS, POINTS_203])
def test_sources_and_clips_are_cut_by_the_original_s_numbers(number: int) -> None:
    mesh = posed(20, -10, 25)
    points = mesh if number == MESH_POINTS else as_203(mesh)
    for crop, scale, vy, turned in ((source_crop(points), 2.3, -0.125, True), (driving_crop(points[None]), 2.2, -0.1, False)):
        centre, length, across = slow_square(*landmark_parts(points), scale, vy)
        assert crop.side == 512
        assert crop.scale == pytest.approx(512 / length, abs=1e-12)
        np.testing.assert_allclose(crop.to_crop_px(np.array([centre.real, centre.imag])), 256, atol=1e-9)
        assert math.radians(angle_deg(crop)) == pytest.approx(math.atan2(across.imag, across.real) if turned else 0, abs=1e-9)


def test_the_parts_of_203_points_are_those_of_the_original() -> None:
    points = np.random.default_rng(0).normal(size=(203, 2))
    extent, eyes, mouth = landmark_parts(points)
    np.testing.assert_array_equal(extent, points)
    np.testing.assert_allclose(eyes, (points[[0, 6, 12, 18]].mean(0) + points[[24, 30, 36, 42]].mean(0)) / 2)
    np.testing.assert_allclose(mouth, (points[48] + points[66]) / 2)


def test_eyes_and_mouth_in_one_place_count_as_upright() -> None:
    points, eyes, _ = some_points(7)
    crop = crop_by_landmarks(points, eyes, eyes + 1e-4, side=512, scale=2, vy=0, rotate=True)
    assert angle_deg(crop) == 0


@given(angles_deg, st.floats(0.2, 5), places)
def test_a_face_elsewhere_is_seen_the_same(turn: float, scale: float, shift: tuple[float, float]) -> None:
    """A similarity of all points changes the crop by its inverse: every point keeps its place in the crop."""
    points = posed(25, -10, 5)[:, :2]
    unit = scale * np.exp(1j * math.radians(turn))
    moved = [unit * complex(*p) + complex(*shift) for p in points]
    elsewhere = np.array([[z.real, z.imag] for z in moved])
    np.testing.assert_allclose(source_crop(elsewhere).to_crop_px(elsewhere), source_crop(points).to_crop_px(points), atol=1e-6)


# the face in it


@given(angles_deg, st.floats(50, 800), places)
def test_a_frontal_face_stands_upright_and_is_not_mirrored(roll: float, size: float, at: tuple[float, float]) -> None:
    points = posed(roll=roll, scale=size, at=at)
    crop = source_crop(points)
    assert np.linalg.det(crop.matrix[:, :2]) > 0
    assert (angle_deg(crop) - roll + 180) % 360 - 180 == pytest.approx(0, abs=0.5)
    seen = crop.to_crop_px(points[:, :2])
    assert seen[RIGHT_EYE, 0] + 100 < seen[LEFT_EYE, 0]  # the person's right is on the picture's left
    assert seen[RIGHT_EYE, 1] == pytest.approx(seen[LEFT_EYE, 1], abs=1)
    assert 0.4 * 512 < seen[RIGHT_EYE, 1] < 0.55 * 512 < seen[CHIN, 1] < 512


def test_a_turned_head_is_not_tilted() -> None:
    """The middle of the lips stands out and would tilt it by 8 degrees; between the corners of the mouth it does not."""
    for yaw, pitch in itertools.product((-30, 30), (-15, 0, 15)):
        points = posed(yaw, pitch)
        naive = points[LIP_MIDDLE] - points[list(IRISES)].mean(0)
        assert abs(angle_deg(source_crop(points))) < 2.5 < 7.5 < abs(math.degrees(math.atan2(naive[0], naive[1])))


@given(st.floats(-30, 30), st.floats(-20, 20), angles_deg)
def test_mesh_and_203_points_of_one_face_give_one_crop(yaw: float, pitch: float, roll: float) -> None:
    mesh = posed(yaw, pitch, roll)
    for a, b in (
        (source_crop(mesh), source_crop(as_203(mesh))),
        (driving_crop(mesh[None]), driving_crop(as_203(mesh)[None])),
    ):
        assert a.scale == pytest.approx(b.scale, rel=0.03)
        assert np.abs(a.to_crop_px(b.to_picture_px(np.full(2, 256.0))) - 256).max() < 0.03 * 512
        assert (angle_deg(a) - angle_deg(b) + 180) % 360 - 180 == pytest.approx(0, abs=1)


def test_the_forehead_and_the_gaze_do_not_count() -> None:
    points = posed()
    moved = points.copy()
    forehead = head.canonical()[:, 1] < head.canonical()[list(UPPER_BROWS), 1].min() - 1e-6
    moved[forehead] -= [0, 50, 0]
    moved[468:] += [6, 3, 0]
    assert forehead.sum() == 18
    np.testing.assert_array_equal(source_crop(moved).matrix, source_crop(points).matrix)


def test_the_mesh_counts_alike_on_both_sides() -> None:
    """A mirrored face has the mirrored crop."""
    points = posed(20, 10, 15)
    mirrored = points[head.mirror_map()] * [-1, 1, 1]
    seen, expected = source_crop(mirrored).to_crop_px(mirrored[:, :2]), source_crop(points).to_crop_px(points[:, :2])
    np.testing.assert_allclose(seen[head.mirror_map()], [512, 0] + expected * [-1, 1], atol=1e-6)


# a clip


def swaying(frames: int = 20) -> np.ndarray:
    """(T, 478, 3)."""
    return np.stack(
        [posed(20 * math.sin(k), 5, 8 * math.cos(k), 150 + 5 * math.sin(2 * k), (300 + 20 * math.sin(k), 250)) for k in range(frames)]
    )


def test_a_clip_has_the_mean_of_its_frames_boxes() -> None:
    points = swaying()
    crop = driving_crop(points)
    boxes = []
    for frame in points:
        centre, length, _ = slow_square(*landmark_parts(frame), 2.2, -0.1)
        corner = complex(length, length) / 2
        boxes.append([(centre - corner).real, (centre - corner).imag, (centre + corner).real, (centre + corner).imag])
    x0, y0, x1, y1 = (sum(b[i] for b in boxes) / len(boxes) for i in range(4))
    np.testing.assert_allclose(crop.to_picture_px(np.array([[0, 0], [512, 512]])), [[x0, y0], [x1, y1]], atol=1e-9)
    assert angle_deg(crop) == 0


def test_the_order_of_frames_does_not_matter() -> None:
    points = swaying()
    np.testing.assert_allclose(driving_crop(points[::-1]).matrix, driving_crop(points).matrix, atol=1e-12)


@given(st.floats(-600, 600), st.floats(-600, 600), st.integers(1, 6), st.booleans())
def test_a_face_that_roams_stays_in_view(dx: float, dy: float, frames: int, mesh: bool) -> None:
    still = posed()
    points = np.stack([still] * 8 + [still + np.array([dx * k, dy * k, 0]) for k in range(1, frames)])
    points = points if mesh else np.stack([as_203(frame) for frame in points])
    crop = driving_crop(points)
    centres, lengths = zip(*(slow_square(*landmark_parts(frame), 2.2, -0.1)[:2] for frame in points), strict=True)
    middle = sum(centres) / len(centres)
    np.testing.assert_allclose(crop.to_crop_px(np.array([middle.real, middle.imag])), 256, atol=1e-9)
    seen = crop.to_crop_px(points[..., :2])
    assert seen.min() >= -0.5 and seen.max() <= 511.5 + 1e-9
    mean_scale = 512 / np.mean(lengths)
    assert crop.scale == pytest.approx(mean_scale) or (
        crop.scale < mean_scale and max(seen.max(), 512 - seen.min()) == pytest.approx(511.5)
    )


# keypoints


def slow_to_picture(crop: Crop, x: np.ndarray, size_px: int) -> np.ndarray:
    """Step by step, a 3 x 3 matrix each: -1..1 to outer edges, to pixel centres, to the picture, and back up; depth by lengths."""

    def to_px(side: float) -> np.ndarray:
        edges = np.array([[side / 2, 0, side / 2], [0, side / 2, side / 2], [0, 0, 1]])
        return np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]]) @ edges

    view = np.concatenate([crop.matrix, [[0, 0, 1]]])
    whole = np.linalg.inv(to_px(size_px)) @ np.linalg.inv(view) @ to_px(crop.side)
    unit = np.linalg.norm(whole @ [1, 0, 1] - whole @ [0, 0, 1])
    return np.array([[*(whole @ [a, b, 1])[:2], unit * c] for a, b, c in x])


@given(angles_deg, st.floats(30, 600), places, st.integers(64, 2000))
def test_keypoints_go_to_the_picture_and_back(roll: float, size: float, at: tuple[float, float], size_px: int) -> None:
    crop = source_crop(posed(10, 5, roll, size, at))
    x = np.random.default_rng(0).uniform(-1, 1, (21, 3))
    there = crop.to_picture(x, size_px)
    np.testing.assert_allclose(there, slow_to_picture(crop, x, size_px), atol=1e-9)
    np.testing.assert_allclose(crop.from_picture(there, size_px), x, atol=1e-9)
    stacked = np.stack([x, -x])
    np.testing.assert_allclose(crop.to_picture(stacked, size_px)[1], crop.to_picture(-x, size_px), atol=1e-12)


def test_keypoints_keep_the_head_s_shape() -> None:
    """All three axes grow alike, and the crop's turn is a turn: distances between keypoints keep their ratios."""
    crop = source_crop(posed(roll=40))
    x = np.random.default_rng(1).uniform(-1, 1, (21, 3))
    there = crop.to_picture(x, 700)
    grown = (
        np.linalg.norm(there[:, None] - there, axis=-1)[np.triu_indices(21, 1)]
        / np.linalg.norm(x[:, None] - x, axis=-1)[np.triu_indices(21, 1)]
    )
    np.testing.assert_allclose(grown, 512 / crop.scale / 700, atol=1e-9)
    assert np.linalg.det(np.linalg.lstsq(x - x.mean(0), there - there.mean(0))[0]) > 0


def test_one_and_minus_one_are_the_outer_edges() -> None:
    everything = Crop(np.array([[1.0, 0, 0], [0, 1, 0]]), 640)
    x = np.random.default_rng(2).uniform(-1, 1, (5, 3))
    np.testing.assert_allclose(everything.to_picture(x, 640), x, atol=1e-9)
    # the left half of a picture of 100 px, at twice its size: the middle of its first pixel is between the middles of two
    half = Crop(np.array([[2.0, 0, 0.5], [0, 2, 0.5]]), 100)
    corners = half.to_picture(np.array([[-1.0, -1, 0], [1, 1, 1]]), 100)
    np.testing.assert_allclose(corners, [[-1, -1, 0], [0, 0, 0.5]], atol=1e-9)


def test_a_point_s_keypoint_is_where_the_point_is() -> None:
    mesh = posed(10, 5, 30)
    crop = source_crop(mesh)
    x = (crop.to_crop_px(mesh[:, :2]) + 0.5) * 2 / 512 - 1
    there = crop.to_picture(np.concatenate([x, mesh[:, 2:]], 1), 600)
    np.testing.assert_allclose((there[:, :2] + 1) * 300 - 0.5, mesh[:, :2], atol=1e-9)


# pixels


def centroid(picture: np.ndarray) -> np.ndarray:
    """x, y of the light in a picture, pixel centres at integers."""
    weight = picture[..., 0].astype(np.float64)
    y, x = np.indices(weight.shape)
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


def dot(at: tuple[float, float], wh: tuple[int, int] = (640, 480)) -> np.ndarray:
    y, x = np.indices(wh[::-1])
    light = 255 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * 4.0**2))
    return np.repeat(light.round().astype(np.uint8)[..., None], 3, -1)


@pytest.mark.parametrize("roll", [0, 30, -100, 180])
def test_a_dot_lands_where_the_matrix_says(roll: float) -> None:
    crop = source_crop(posed(5, 5, roll, 150, (320, 240)))
    for at in ((320.0, 240.0), (300.25, 270.5), (350.0, 210.75)):
        place = crop.to_crop_px(np.array(at))
        np.testing.assert_allclose(centroid(crop.cut(dot(at), 512, shrink="area")), place, atol=0.05)
        for shrink in ("area", "bilinear"):
            np.testing.assert_allclose(centroid(crop.cut(dot(at), 256, shrink=shrink)), (place + 0.5) / 2 - 0.5, atol=0.05)


def test_a_cut_is_a_warp_and_then_a_resize() -> None:
    image = photograph("astronaut")
    crop = Crop(np.array([[2.0, 0.3, -200], [-0.3, 2.0, -10]]), 512)
    whole = crop.cut(image, 512, shrink="area")
    assert whole.shape == (512, 512, 3) and whole.dtype == np.uint8
    inverse = np.linalg.inv(np.concatenate([crop.matrix, [[0, 0, 1]]]))
    for x, y in ((100, 200), (317, 41), (255, 255)):  # bilinear by hand; warpAffine rounds places to 1/32 px
        px, py, _ = inverse @ [x, y, 1]
        i, j, a, b = int(px), int(py), px % 1, py % 1
        square = image[j : j + 2, i : i + 2].astype(float)
        by_hand = (square[0, 0] * (1 - a) + square[0, 1] * a) * (1 - b) + (square[1, 0] * (1 - a) + square[1, 1] * a) * b
        np.testing.assert_allclose(whole[y, x], by_hand, atol=6)
    means = whole.reshape(256, 2, 256, 2, 3).astype(float).mean((1, 3))
    for shrink in ("area", "bilinear"):  # at exactly half the size both are the mean of four
        np.testing.assert_allclose(crop.cut(image, 256, shrink=shrink), means, atol=0.76)
    area, bilinear = (crop.cut(image, 64, shrink=shrink) for shrink in ("area", "bilinear"))
    np.testing.assert_allclose(area, whole.reshape(64, 8, 64, 8, 3).astype(float).mean((1, 3)), atol=0.51)
    np.testing.assert_array_equal(bilinear, cv2.resize(whole, (64, 64)))
    assert np.abs(area.astype(int) - bilinear).max() > 20


def test_outside_the_picture_it_is_black() -> None:
    white = np.full((100, 80, 3), 255, np.uint8)
    view = Crop(np.array([[1.0, 0, 50], [0, 1, 50]]), 200).cut(white, 200, shrink="area")
    assert (view[50:150, 50:130] == 255).all()
    assert view.sum() == white.sum()


def test_a_view_of_an_array_is_cut_as_its_copy() -> None:
    image = photograph("astronaut")[:, ::-1, ::-1]
    crop = Crop(np.array([[1.0, 0, 5], [0, 1, 5]]), 300)
    np.testing.assert_array_equal(crop.cut(image, 256, shrink="area"), crop.cut(image.copy(), 256, shrink="area"))


@pytest.mark.parametrize("name", ["aws_photo1_frontal.jpeg", "mpsamples_business-person.png"])
def test_a_real_face_in_a_turned_picture_is_cut_upright_and_alike(shared: Path, name: str) -> None:
    image = read_image(shared / "realdata" / "images" / name)
    points = FaceMesh(static=True)(image)
    assert points is not None
    straight = source_crop(points).cut(image, 256, shrink="area")
    height, width = image.shape[:2]
    side = math.ceil(math.hypot(height, width))
    for turn in (25, -70, 180):
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), turn, 1.0)
        matrix[:, 2] += [(side - width) / 2, (side - height) / 2]
        turned = cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_CUBIC)
        moved = points[:, :2].astype(np.float64) @ matrix[:, :2].T + matrix[:, 2]
        again = source_crop(moved).cut(turned, 256, shrink="area")
        assert structural_similarity(straight, again, channel_axis=2) > 0.97
        # and the mesh, looking by itself, finds the face where it was
        seen = FaceMesh(static=True)(again)
        assert seen is not None
        assert abs(angle_deg(source_crop(seen))) < 4


def test_the_release_s_own_driving_clip_is_framed_so_already(shared: Path) -> None:
    """LivePortrait's d0.mp4 was cut to 512 x 512 by its authors: our crop of it by the mesh is nearly the whole frame."""
    frames = [f.rgb for f in decode(shared / "realdata" / "clips" / "lp_d0.mp4")]
    points, found = FaceMesh().track(frames)
    assert found.all() and frames[0].shape == (512, 512, 3)
    crop = driving_crop(points)
    assert 1 / crop.scale == pytest.approx(1, abs=0.04)
    np.testing.assert_allclose(crop.to_picture_px(np.full(2, 256.0)), 256, atol=0.04 * 512)


# what is refused


@pytest.mark.parametrize("shape", [(468, 3), (106, 2), (203,), (0, 2)])
def test_other_points_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"478 of the face mesh or LivePortrait's 203"):
        source_crop(np.zeros(shape))


@pytest.mark.parametrize("shape", [(0, 478, 3), (478, 3)])
def test_a_clip_without_frames_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="T > 0"):
        driving_crop(np.zeros(shape))


def test_points_that_are_nowhere_are_refused() -> None:
    gone = posed()
    gone[7] = np.nan
    with pytest.raises(ValueError, match="finite"):
        source_crop(gone)
    with pytest.raises(ValueError, match="finite"):
        driving_crop(np.stack([posed(), gone]))
    with pytest.raises(ValueError, match="are one"):
        source_crop(np.zeros((478, 2)))


# retargeting


def test_ratios_are_gaps_over_widths() -> None:
    points = np.random.default_rng(3).normal(size=(2, 203, 2))

    def gap(frame: int, a: int, b: int) -> float:
        return math.dist(points[frame, a], points[frame, b])

    for i in range(2):
        assert eye_ratios(points)[i] == pytest.approx([gap(i, 6, 18) / gap(i, 0, 12), gap(i, 30, 42) / gap(i, 24, 36)])
        assert lip_ratio(points)[i] == pytest.approx(gap(i, 90, 102) / gap(i, 48, 66))
    assert eye_ratios(points[0]).shape == (2,) and lip_ratio(points[0]).shape == ()


@given(angles_deg, st.floats(0.1, 10))
def test_ratios_do_not_depend_on_place_size_and_turn(turn: float, scale: float) -> None:
    points = as_203(posed())
    c, s = scale * math.cos(math.radians(turn)), scale * math.sin(math.radians(turn))
    moved = points @ np.array([[c, s], [-s, c]]) + 7
    np.testing.assert_allclose(eye_ratios(moved), eye_ratios(points), atol=1e-9)
    np.testing.assert_allclose(lip_ratio(moved), lip_ratio(points), atol=1e-9)
