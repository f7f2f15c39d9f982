"""Meshwarp makes a portrait do what it is told: looked at again by the face mesh, on a photograph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from schemas.motion import Motion
from schemas.outcomes import Rejection
from stages import head, meshwarp
from stages.mesh import FaceMesh
from stages.meshwarp import MeshWarp, MeshWarpConfig, motion_from_points
from stages.meshwarp_plan import Script, act, gaze_of, read_face, set_mouth
from stages.meshwarp_render import face_triangles
from stages.reenact import ClipView, Portrait, speaking_frame
from stages.stills import read_image

SIZE_PX = 384
OPEN_LOOP = MeshWarpConfig(calibration_rounds=0)


@pytest.fixture(scope="module")
def mesh() -> FaceMesh:
    return FaceMesh(static=True)


@pytest.fixture(scope="module")
def astronaut(mesh: FaceMesh) -> Portrait:
    data = pytest.importorskip("skimage.data")
    return portrait_of(data.astronaut(), mesh)


@pytest.fixture(scope="module")
def hopper(mesh: FaceMesh) -> Portrait:
    matplotlib = pytest.importorskip("matplotlib")
    return portrait_of(read_image(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"), mesh)


def portrait_of(image: np.ndarray, mesh: FaceMesh) -> Portrait:
    found = mesh(image)
    assert found is not None
    x0, y0, side = head.crop_square(head.face_boxes(found[None]), 2.2, (image.shape[1], image.shape[0]))
    image = cv2.resize(image[y0 : y0 + side, x0 : x0 + side], (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA)
    points = mesh(image)
    assert points is not None
    return Portrait(image, points)


def perform(b: Portrait, points: np.ndarray, config: MeshWarpConfig | None = None, size_px: int = SIZE_PX) -> np.ndarray:
    engine = MeshWarp(config)
    return np.stack(list(engine.render(engine.appearance(b), motion_from_points(points, 25.0, size_px, config))))


def look(frames: np.ndarray, mesh: FaceMesh) -> np.ndarray:
    points = [mesh(frame) for frame in frames]
    assert all(p is not None for p in points), "a driving frame has no face"
    return np.stack([p for p in points if p is not None])


def own_shape(b: Portrait) -> tuple[np.ndarray, head.Pose]:
    pose = head.fit_pose(b.points[None])
    return pose.invert(b.points[None])[0], pose


def turned(b: Portrait, yaw_pitch_roll_deg: np.ndarray) -> np.ndarray:
    """B's own points at absolute angles (T, 3), at the place and size they have in the portrait."""
    shape, pose = own_shape(b)
    frames = len(yaw_pitch_roll_deg)
    rotation = head.rotation_of(np.asarray(yaw_pitch_roll_deg, float))
    return head.Pose(np.repeat(pose.scale, frames), rotation, np.repeat(pose.translation, frames, 0)).apply(shape[None])


def speaking(b: Portrait, gaps: np.ndarray) -> np.ndarray:
    """B's own points with the mouth opened by gaps (T,) mouth widths."""
    shape, pose = own_shape(b)
    shapes = set_mouth(np.repeat(shape[None], len(gaps), 0), gaps)
    return head.Pose(*(np.repeat(x, len(gaps), 0) for x in (pose.scale, pose.rotation, pose.translation))).apply(shapes)


SWING = np.stack([12 * np.sin(np.linspace(0, 6, 24)), 8 * np.sin(np.linspace(1, 9, 24)), 8 * np.cos(np.linspace(0, 5, 24))], 1)


def test_mesh_is_a_surface_without_holes() -> None:
    triangles = face_triangles()
    edges = Counter(frozenset(e) for a, b, c in triangles.tolist() for e in ((a, b), (b, c), (a, c)))
    assert len(triangles) == 2 * 468 - 2 - len(head.FACE_OVAL)  # Euler: a disc whose rim is the face's oval
    assert {e for e, n in edges.items() if n == 1} == {
        frozenset(e) for e in zip(head.FACE_OVAL, np.roll(head.FACE_OVAL, 1).tolist(), strict=True)
    }
    assert max(edges.values()) == 2


def test_standing_still_gives_the_portrait_back(astronaut: Portrait) -> None:
    frame = perform(astronaut, np.repeat(astronaut.points[None], 3, 0), OPEN_LOOP)[1]
    x0, y0, x1, y1 = head.face_boxes(astronaut.points[None])[0].astype(int)
    difference = np.abs(frame.astype(int) - astronaut.image)[y0:y1, x0:x1]
    assert difference.mean() < 4
    assert np.abs(frame.astype(int) - astronaut.image).mean() < 6


@pytest.mark.parametrize(("config", "limit_deg"), [(OPEN_LOOP, 3.5), (MeshWarpConfig(), 1.0)])
def test_head_turns_as_told(astronaut: Portrait, config: MeshWarpConfig, limit_deg: float) -> None:
    told = turned(astronaut, SWING)
    seen, _ = FaceMesh().track(perform(astronaut, told, config))  # as clips are looked at
    error_deg = head.angle_between_deg(head.fit_pose(told).rotation, head.fit_pose(seen).rotation)
    assert error_deg.mean() < limit_deg
    for angle in range(3):
        assert np.corrcoef(SWING[:, angle], head.fit_pose(seen).euler_deg[:, angle])[0, 1] > 0.97


def test_head_is_where_and_as_large_as_told(astronaut: Portrait, hopper: Portrait) -> None:
    told = turned(hopper, SWING) * 0.7 + [60, 30, 0]
    told[..., 0] += np.linspace(0, 40, len(told))[:, None]
    seen, _ = FaceMesh().track(perform(astronaut, told, size_px=400))  # as clips are looked at: a still's face looks 3 % smaller
    expected, got = head.head_square(head.face_boxes(told)), head.head_square(head.face_boxes(seen))
    print(expected, got)
    assert np.abs(expected - got).max() <= 0.02 * expected[2]


@pytest.mark.parametrize("who", ["astronaut", "hopper"])
def test_mouth_opens_as_told(who: str, mesh: FaceMesh, request: pytest.FixtureRequest) -> None:
    b = request.getfixturevalue(who)
    gaps = 0.2 - 0.2 * np.cos(np.linspace(0, 10, 16))
    opening = head.mouth_opening(look(perform(b, speaking(b, gaps)), mesh))
    assert np.corrcoef(gaps, opening)[0, 1] > 0.9
    assert opening[gaps < 0.02].max() < 0.12
    assert opening[gaps > 0.38].min() > 0.25


def test_open_mouth_is_dark_inside(hopper: Portrait, astronaut: Portrait, mesh: FaceMesh) -> None:
    gaps = np.array([0.0, 0.0, 0.5, 0.5])
    frame = perform(hopper, speaking(hopper, gaps), OPEN_LOOP)[3]
    points = look(frame[None], mesh)[0]
    x, y = points[[13, 14], :2].mean(0).round().astype(int)
    skin_x, skin_y = points[50, :2].round().astype(int)
    assert frame[y - 1 : y + 2, x - 1 : x + 2].mean() < 0.5 * frame[skin_y - 2 : skin_y + 3, skin_x - 2 : skin_x + 3].mean()


def test_the_mouth_inside_is_her_own_where_another_picture_shows_it(hopper: Portrait) -> None:
    points = speaking(hopper, np.array([0.45]))[0]
    image = hopper.image.copy()
    cv2.fillPoly(image, [points[list(head.LIPS_INNER), :2].round().astype(np.int32)], (0, 255, 0))
    gaps = np.array([0.0, 0.0, 0.4, 0.4])
    other = perform(replace(hopper, speaking=Portrait(image, points.astype(np.float32))), speaking(hopper, gaps), OPEN_LOOP)
    x, y = speaking(hopper, gaps)[3][[13, 14], :2].mean(0).round().astype(int)
    assert other[3, y, x, 1] > 200 and other[3, y, x, 0] < 60
    drawn = perform(hopper, speaking(hopper, gaps), OPEN_LOOP)
    assert (drawn[0] == other[0]).all(), "a closed mouth shows nothing of it"
    assert drawn[3, y, x, 1] < 100


def test_the_frame_that_shows_most_of_the_mouth_is_found(hopper: Portrait) -> None:
    gaps = np.array([0.0, 0.1, 0.3, 0.25, 0.0])
    points = speaking(hopper, gaps)
    assert speaking_frame(points, 0) == 2
    points[2] = turned(hopper, np.array([[30.0, 0, 0]]))[0]
    assert speaking_frame(points, 0) == 3
    assert speaking_frame(points[:2], 0) is None


def test_brows_rise_and_lips_widen_as_told(astronaut: Portrait, mesh: FaceMesh) -> None:
    """What is neither pose, nor the mouth's gap, nor a lid: the expression that is left in the head's own frame."""
    brows, lips = [70, 63, 105, 66, 107, 336, 296, 334, 293, 300], [*head.LIPS_OUTER, *head.LIPS_INNER]
    shape, pose = own_shape(astronaut)
    amount = 0.5 - 0.5 * np.cos(np.linspace(0, 12, 16))
    told = np.repeat(shape[None], 16, 0)
    told[:, brows, 1] -= 0.05 * amount[:, None]  # of the face's height
    told[:, lips, 0] += 0.2 * amount[:, None] * (shape[lips, 0] - shape[lips, 0].mean())
    many = head.Pose(*(np.repeat(x, 16, 0) for x in (pose.scale, pose.rotation, pose.translation)))
    seen = look(perform(astronaut, many.apply(told), OPEN_LOOP), mesh)
    inside = head.fit_pose(seen).invert(seen)
    assert np.corrcoef(amount, -inside[:, brows, 1].mean(1))[0, 1] > 0.9
    assert np.corrcoef(amount, inside[:, 291, 0] - inside[:, 61, 0])[0, 1] > 0.9


def test_eyes_close_as_told_each_by_itself(astronaut: Portrait, mesh: FaceMesh) -> None:
    told = np.repeat(astronaut.points[None], 12, 0).copy()
    upper = {"right": (246, 161, 160, 159, 158, 157, 173), "left": (466, 388, 387, 386, 385, 384, 398)}
    lower = {"right": (7, 163, 144, 145, 153, 154, 155), "left": (249, 390, 373, 374, 380, 381, 382)}
    for frames, sides in ((slice(3, 6), ("right", "left")), (slice(8, 11), ("left",))):
        for side in sides:
            told[frames, upper[side]] = told[frames, lower[side]]
    left, right = head.eye_opening(look(perform(astronaut, told), mesh)).T
    assert right[4] < 0.6 * right[1]
    assert left[4] < 0.6 * left[1]
    assert left[9] < 0.7 * left[1]
    assert right[9] > left[9] + 0.3 * right[1], "a wink is one eye's"


def test_gaze_follows(hopper: Portrait, mesh: FaceMesh) -> None:
    told = np.repeat(hopper.points[None], 12, 0).copy()
    width = np.linalg.norm(hopper.points[33] - hopper.points[133])
    sway = 0.12 * np.sin(np.linspace(0, 7, 12))
    told[:, 468:478, 0] += (sway * width)[:, None]
    shape = head.fit_pose(seen := look(perform(hopper, told), mesh)).invert(seen)
    assert np.corrcoef(sway, gaze_of(shape)[..., 0].mean(1))[0, 1] > 0.8


def test_nothing_of_a_but_motion(astronaut: Portrait, hopper: Portrait) -> None:
    """A's frames are never asked for, and B's features keep their own proportions, not A's."""

    def no_frames() -> Iterator[np.ndarray]:
        raise AssertionError("asked for A's frames")

    engine = MeshWarp()
    motion = engine.motion(ClipView(no_frames, turned(hopper, SWING[:8] / 2), 25.0, SIZE_PX))
    assert len(motion.encode()) < 8 * 6000
    assert len(list(engine.render(engine.appearance(astronaut), motion))) == 8
    face, _ = read_face(astronaut.points.astype(np.float64))
    posed = act(face, Script(**motion.arrays), expression_gain=1.0)
    still = head.rigid_weights() > 0
    moved = np.linalg.norm(posed - face.shape, axis=2)[:, still].mean()
    apart = np.linalg.norm(own_shape(hopper)[0] - face.shape, axis=1)[still].mean()
    assert moved < 0.15 * apart


def test_same_bytes_again_and_after_storing(astronaut: Portrait) -> None:
    told = turned(astronaut, SWING[:5])
    first, again = perform(astronaut, told), perform(astronaut, told)
    assert (first == again).all()
    engine = MeshWarp()
    stored = Motion.decode(engine.motion(ClipView(lambda: iter(()), told, 25.0, SIZE_PX)).encode())
    assert (np.stack(list(engine.render(engine.appearance(astronaut), stored))) == first).all()


def test_frames_come_one_at_a_time(astronaut: Portrait, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    real = meshwarp.render_frame

    def counting(*args: Any) -> np.ndarray:
        drawn.append(1)
        return real(*args)

    monkeypatch.setattr(meshwarp, "render_frame", counting)
    engine = MeshWarp(OPEN_LOOP)
    frames = engine.render(engine.appearance(astronaut), motion_from_points(np.repeat(turned(astronaut, SWING), 20, 0), 25.0, SIZE_PX))
    assert not drawn
    first = next(frames)
    assert first.shape == (SIZE_PX, SIZE_PX, 3)
    assert first.dtype == np.uint8
    assert len(drawn) == 1


def test_no_hole_even_far_round_and_half_outside(astronaut: Portrait) -> None:
    bright = Portrait(np.maximum(astronaut.image, 60), astronaut.points)
    angles = np.array([[40, 0, 0], [-40, 10, 20], [0, 30, -30], [10, -30, 0]])
    told = turned(bright, angles) + np.array([[0, 0, 0], [120, 0, 0], [-120, 80, 0], [0, -150, 0]])[:, None]
    told = set_mouth_closed(told)
    frames = perform(bright, told, OPEN_LOOP)
    assert (frames.max(-1) < 20).mean() < 1e-3


def set_mouth_closed(points: np.ndarray) -> np.ndarray:
    pose = head.fit_pose(points)
    return pose.apply(set_mouth(pose.invert(points), np.zeros(len(points))))


def test_a_single_frame_is_a_clip(astronaut: Portrait) -> None:
    assert perform(astronaut, astronaut.points[None]).shape == (1, SIZE_PX, SIZE_PX, 3)


def test_large_portrait_looks_as_a_small_one(astronaut: Portrait) -> None:
    large = Portrait(cv2.resize(astronaut.image, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC), astronaut.points * 3)
    told = turned(astronaut, SWING[:3])
    assert np.abs(perform(large, told, OPEN_LOOP).astype(int) - perform(astronaut, told, OPEN_LOOP)).mean() < 2


def test_refuses_what_it_cannot_use(astronaut: Portrait) -> None:
    engine = MeshWarp(OPEN_LOOP)
    with pytest.raises(Rejection, match="face mesh"):
        engine.appearance(Portrait(astronaut.image, astronaut.points - 300))
    with pytest.raises(ValueError, match="478"):
        motion_from_points(np.zeros((0, 478, 3)), 25.0, SIZE_PX)
    with pytest.raises(ValueError, match="finite"):
        motion_from_points(np.full((2, 478, 3), np.nan), 25.0, SIZE_PX)
    with pytest.raises(ValueError, match="liveportrait"):
        next(engine.render(engine.appearance(astronaut), Motion("liveportrait", 25.0, SIZE_PX, {})))
