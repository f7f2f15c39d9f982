"""Meshwarp: B's portrait pulled along by the face mesh. No weights, no network of its own, runs anywhere, about 10 ms a frame.

A's motion is read off A's 478 points, B's points are made to perform it, and the portrait is warped to where they go. Good up
to about 20 degrees between the two heads; farther, the cheek that comes into view was never seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from schemas.motion import Motion
from schemas.outcomes import Rejection
from stages import head
from stages.mesh import IRIS_LEFT, IRIS_RIGHT, POINTS, FaceMesh
from stages.meshwarp_layers import cover_holes, take_eyeball, take_mouth
from stages.meshwarp_plan import Face, Script, act, read_face, smooth, write_script
from stages.meshwarp_render import Appearance, render_frame
from stages.reenact import ClipView, Portrait

_CHUNK_FRAMES = 64
_FEATURES = (*head.RIGHT_EYE, *head.LEFT_EYE, *head.LIPS_OUTER)
_MAX_SHRINK = 1.5  # a portrait that shows the face larger than this is made smaller first: the warp samples, it does not average


@dataclass(frozen=True, kw_only=True)
class MeshWarpConfig:
    smoothing_frames: float = 0.7  # sigma; more would lower the correlations
    blink_floor: float = 0.1  # the eye opening that the mesh shows on a closed eye, in eye widths
    expression_gain: float = 0.9
    centre_smoothing_frames: float = 3.0
    calibration_frames: int = 16  # rendered, looked at and corrected for before the clip is rendered
    calibration_rounds: int = 2  # 0: open loop


@dataclass(frozen=True)
class Identity:
    """B, ready to perform."""

    portrait: Portrait
    face: Face
    looks: Appearance


@dataclass(frozen=True)
class Correction:
    """What B must be told so that it is seen to do what A does.

    Attributes:
        turn_deg: (6, 3) rotation vector in degrees, linear in `_features` of A.
        size: factor of the head's size.
        shift_px: (2,).
    """

    turn_deg: np.ndarray
    size: float
    shift_px: np.ndarray


def motion_from_points(points: np.ndarray, fps: float, size_px: int, config: MeshWarpConfig | None = None) -> Motion:
    """The motion template of a face mesh (T, 478, 3) that moves in a square frame of `size_px`: about 3 KB a frame.

    The points may come from a clip or be made up, as stages.head.Pose.apply(shape) makes them; only the mesh counts.
    """
    config = config or MeshWarpConfig()
    if points.ndim != 3 or points.shape[1:] != (POINTS, 3) or not len(points):
        raise ValueError(f"points must be (T, {POINTS}, 3) with T > 0, not {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError("points must be finite in every frame")
    script = write_script(points, smoothing_frames=config.smoothing_frames, blink_floor=config.blink_floor)
    return Motion(engine=MeshWarp.name, fps=fps, size_px=size_px, arrays=dict(vars(script)))


class MeshWarp:
    """Implements stages.reenact.Reenactor."""

    name, version = "meshwarp", 1
    ran_on = "cpu"

    def __init__(self, config: MeshWarpConfig | None = None) -> None:
        self.config = config or MeshWarpConfig()
        # tracking, as the target was looked at: a still's face looks up to 3 % smaller to the mesh
        self._mesh = FaceMesh() if self.config.calibration_rounds else None

    def appearance(self, portrait: Portrait) -> Identity:
        """Raises Rejection: no_face when the points are none of a face inside the picture."""
        points, image = portrait.points.astype(np.float64), portrait.image
        inside = np.all((points[:, :2] >= 0) & (points[:, :2] <= len(image) - 1), axis=1)
        if not inside[list(_FEATURES)].all() or inside.mean() < 0.95:
            size, share = f"{image.shape[1]} x {image.shape[0]} px", f"{inside.mean():.0%} of the face mesh"
            raise Rejection("no_face", f"portrait of {size}: only {share} lies inside; 95% and all of eyes and mouth must")
        face, pose = read_face(points)
        eyes = (
            take_eyeball(image, points, head.RIGHT_EYE, IRIS_RIGHT),
            take_eyeball(image, points, head.LEFT_EYE, IRIS_LEFT),
        )
        mouth = take_mouth(image, points, face.mouth)
        looks = Appearance(cover_holes(image, points, face.mouth), points, pose, pose.invert(points[None])[0], eyes, mouth)
        return Identity(portrait, face, looks)

    def motion(self, clip: ClipView) -> Motion:
        return motion_from_points(clip.points, clip.fps, clip.size_px, self.config)

    def render(self, appearance: Identity, motion: Motion) -> Iterator[np.ndarray]:
        if motion.engine != self.name:
            raise ValueError(f"a motion of {motion.engine!r} is none of {self.name!r}")
        script = Script(**motion.arrays)
        appearance = self._not_too_large(appearance, script)
        correction = Correction(np.zeros((6, 3)), 1.0, np.zeros(2))
        for _ in range(self.config.calibration_rounds):
            correction = self._calibrate(appearance, script, motion.size_px, correction)
        yield from self._perform(appearance, script, motion.size_px, correction, np.arange(len(script)))

    def _not_too_large(self, b: Identity, script: Script) -> Identity:
        shrink = float(b.looks.pose.scale[0] / np.median(script.scale))
        if shrink <= _MAX_SHRINK:
            return b
        side = max(64, round(len(b.portrait.image) / shrink))
        image = cv2.resize(b.portrait.image, (side, side), interpolation=cv2.INTER_AREA)
        return self.appearance(Portrait(image, b.portrait.points * (side / len(b.portrait.image))))

    def _perform(self, b: Identity, script: Script, size_px: int, correction: Correction, at: np.ndarray) -> Iterator[np.ndarray]:
        """Frames `at` of the script."""
        size, shift = self._place(b, script, correction)
        for start in range(0, len(at), _CHUNK_FRAMES):
            chosen = at[start : start + _CHUNK_FRAMES]
            shapes, pose = self._pose(b, script.part(chosen), correction, size)
            pose.translation[:, :2] += shift[chosen]
            points = pose.apply(shapes)
            for i in range(len(chosen)):
                one = head.Pose(pose.scale[i : i + 1], pose.rotation[i : i + 1], pose.translation[i : i + 1])
                yield render_frame(b.looks, points[i], one, shapes[i], size_px)

    def _pose(self, b: Identity, script: Script, correction: Correction, size: float) -> tuple[np.ndarray, head.Pose]:
        """B's shapes (T, 478, 3) in the head's frame, and A's pose with B's size."""
        shapes = act(b.face, script, expression_gain=self.config.expression_gain)
        rotation = script.rotation.astype(np.float64)
        rotation = rotation @ _turns(_features(script) @ correction.turn_deg)
        return shapes, head.Pose(size * script.scale.astype(np.float64), rotation, script.translation.astype(np.float64))

    def _place(self, b: Identity, script: Script, correction: Correction) -> tuple[float, np.ndarray]:
        """One factor of size for the clip, and shifts (T, 2) px, so that B's face box lies on A's."""
        boxes = []
        for start in range(0, len(script), _CHUNK_FRAMES):
            shapes, pose = self._pose(b, script.part(slice(start, start + _CHUNK_FRAMES)), correction, 1.0)
            flat = head.Pose(pose.scale, pose.rotation, np.zeros_like(pose.translation))
            boxes.append(head.face_boxes(flat.apply(shapes)))
        own, target = np.concatenate(boxes), script.boxes.astype(np.float64)
        size = correction.size * float(np.median(head.face_size(target)) / np.median(head.face_size(own)))
        shift = (target[:, :2] + target[:, 2:] - size * (own[:, :2] + own[:, 2:])) / 2 - script.translation[:, :2]
        return size, smooth(shift, self.config.centre_smoothing_frames) + correction.shift_px

    def _calibrate(self, b: Identity, script: Script, size_px: int, correction: Correction) -> Correction:
        """Looks at some frames of the clip and corrects turn, size and place by what was missed."""
        assert self._mesh is not None
        at = np.unique(np.linspace(0, len(script) - 1, self.config.calibration_frames).round().astype(int))
        self._mesh.reset()
        seen = [self._mesh(frame) for frame in self._perform(b, script, size_px, correction, at)]
        found = np.array([p is not None for p in seen])
        if found.sum() < 3:
            return correction
        points = np.stack([p for p in seen if p is not None])
        wanted = script.part(at[found])
        rotation = wanted.rotation.astype(np.float64)
        missed = _turn_vectors(head.fit_pose(points).rotation.swapaxes(1, 2) @ rotation)
        x = _features(wanted)
        ridge = np.diag([1e-3, *(30.0,) * 5])  # a constant is believed at once, a slope only when the head turns enough to show it
        turn = np.linalg.solve(x.T @ x + ridge, x.T @ missed)
        boxes, target = head.face_boxes(points), wanted.boxes.astype(np.float64)
        off = head.head_square(target) - head.head_square(boxes)
        return replace(
            correction,
            turn_deg=correction.turn_deg + turn,
            size=correction.size * float(np.median(head.face_size(target)) / np.median(head.face_size(boxes))),
            shift_px=correction.shift_px + off[:2],
        )


def _features(script: Script) -> np.ndarray:
    """What the missed turn may depend on, (T, 6): a constant, yaw, pitch and roll in degrees, mouth's opening and width in percent."""
    ones = np.ones((len(script), 1))
    mouth = 100 * np.stack([script.mouth - 0.1, script.smile - 0.35], 1)
    return np.concatenate([ones, head.euler_deg(script.rotation), mouth], 1).astype(np.float64)


def _turns(vectors_deg: np.ndarray) -> np.ndarray:
    """Rotations (T, 3, 3) on row vectors of rotation vectors (T, 3) in degrees."""
    return np.stack([cv2.Rodrigues(v)[0].T for v in np.radians(vectors_deg)])


def _turn_vectors(rotation: np.ndarray) -> np.ndarray:
    return np.degrees(np.stack([cv2.Rodrigues(np.ascontiguousarray(r.T))[0][:, 0] for r in rotation]))
