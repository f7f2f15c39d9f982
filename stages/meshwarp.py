"""Meshwarp: B's portrait pulled along by the face mesh. No weights, no network of its own, runs anywhere, about 10 ms a frame.

A's motion is read off A's 478 points, B's points are made to perform it, and the portrait is warped to where they go. Good up
to about 20 degrees between the two heads; farther, the cheek that comes into view was never seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import cv2
import numpy as np

from schemas.motion import Motion
from schemas.outcomes import Rejection
from stages import head
from stages.mesh import IRIS_LEFT, IRIS_RIGHT, POINTS, FaceMesh
from stages.meshwarp_layers import cover_holes, take_eyeball, take_mouth
from stages.meshwarp_plan import Face, Script, act, read_face, smooth, write_script
from stages.meshwarp_rehearsal import Correction, Seen, learn, read_seen
from stages.meshwarp_render import Appearance, render_frame
from stages.reenact import ClipView, Portrait

_CHUNK_FRAMES = 64
_FEATURES = (*head.RIGHT_EYE, *head.LEFT_EYE, *head.LIPS_OUTER)
_MAX_SHRINK = 1.5  # a portrait that shows the face larger than this is made smaller first: the warp samples, it does not average


@dataclass(frozen=True, kw_only=True)
class MeshWarpConfig:
    smoothing_frames: float = 0.5  # sigma; more would lower the correlations
    blink_floor: float = 0.1  # the eye opening that the mesh shows on a closed eye, in eye widths
    expression_gain: float = 0.9
    centre_smoothing_frames: float = 3.0
    calibration_rounds: int = 2  # times that B plays the clip before it counts, is looked at, and corrected by what was missed
    calibration_px: int = 256  # side of these frames, at most


@dataclass(frozen=True)
class Identity:
    """B, ready to perform."""

    portrait: Portrait
    face: Face
    looks: Appearance


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

    name, version = "meshwarp", 2
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
        other = portrait.speaking or portrait
        mouth = take_mouth(image, points, (other.image, other.points.astype(np.float64)))
        looks = Appearance(cover_holes(image, points, face.mouth), points, pose, pose.invert(points[None])[0], eyes, mouth)
        return Identity(portrait, face, looks)

    def motion(self, clip: ClipView) -> Motion:
        return motion_from_points(clip.points, clip.fps, clip.size_px, self.config)

    def render(self, appearance: Identity, motion: Motion) -> Iterator[np.ndarray]:
        if motion.engine != self.name:
            raise ValueError(f"a motion of {motion.engine!r} is none of {self.name!r}")
        script = Script(**motion.arrays)
        correction = Correction.none(len(script))
        for _ in range(self.config.calibration_rounds):
            correction = self._rehearse(appearance, script, motion.size_px, correction)
        yield from self._perform(appearance, script, motion.size_px, motion.size_px, correction)

    def _not_too_large(self, b: Identity, scale: float) -> Identity:
        """B for a head of `scale` px per unit of its shape."""
        shrink = float(b.looks.pose.scale[0] / scale)
        if shrink <= _MAX_SHRINK:
            return b
        return self.appearance(_shrunk(b.portrait, shrink))

    def _perform(self, b: Identity, script: Script, size_px: int, side: int, correction: Correction) -> Iterator[np.ndarray]:
        """All frames, `side` px instead of the `size_px` that the script is written for."""
        told, zoom = correction.apply(script), side / size_px
        b = self._not_too_large(b, zoom * float(np.median(script.scale)))
        size, shift = self._place(b, told, correction)
        for start in range(0, len(script), _CHUNK_FRAMES):
            part = slice(start, start + _CHUNK_FRAMES)
            shapes, pose = self._pose(b, told.part(part), size)
            pose.translation[:, :2] += shift[part]
            pose = head.Pose(zoom * pose.scale, pose.rotation, zoom * pose.translation)
            points = pose.apply(shapes)
            for i in range(len(points)):
                one = head.Pose(pose.scale[i : i + 1], pose.rotation[i : i + 1], pose.translation[i : i + 1])
                yield render_frame(b.looks, points[i], one, shapes[i], side)

    def _pose(self, b: Identity, told: Script, size: float) -> tuple[np.ndarray, head.Pose]:
        """B's shapes (T, 478, 3) in the head's frame, and A's pose with B's size."""
        shapes = act(b.face, told, expression_gain=self.config.expression_gain)
        return shapes, head.Pose(size * told.scale.astype(np.float64), told.rotation, told.translation.astype(np.float64))

    def _place(self, b: Identity, told: Script, correction: Correction) -> tuple[float, np.ndarray]:
        """One factor of size for the clip, and shifts (T, 2) px, so that B's face box lies on A's."""
        boxes = []
        for start in range(0, len(told), _CHUNK_FRAMES):
            shapes, pose = self._pose(b, told.part(slice(start, start + _CHUNK_FRAMES)), 1.0)
            flat = head.Pose(pose.scale, pose.rotation, np.zeros_like(pose.translation))
            boxes.append(head.face_boxes(flat.apply(shapes)))
        own, target = np.concatenate(boxes), told.boxes.astype(np.float64)
        size = correction.size * float(np.median(head.face_size(target)) / np.median(head.face_size(own)))
        shift = (target[:, :2] + target[:, 2:] - size * (own[:, :2] + own[:, 2:])) / 2 - told.translation[:, :2]
        return size, smooth(shift, self.config.centre_smoothing_frames) + correction.shift_px

    def _rehearse(self, b: Identity, script: Script, size_px: int, correction: Correction) -> Correction:
        """Plays the clip in small, looks at it and corrects by what was missed."""
        assert self._mesh is not None
        self._mesh.reset()
        side = min(self.config.calibration_px, size_px)
        found: list[int] = []
        seen: list[Seen] = []
        points: list[np.ndarray] = []
        for k, frame in enumerate(self._perform(b, script, size_px, side, correction), 1):
            if (p := self._mesh(frame)) is not None:
                found.append(k - 1)
                points.append(p * (size_px / side))
            if points and (len(points) == _CHUNK_FRAMES or k == len(script)):
                seen.append(read_seen(np.stack(points)))
                points = []
        if len(found) < 3:
            return correction
        together = Seen(*(np.concatenate([getattr(s, f.name) for s in seen]) for f in fields(Seen)))
        return learn(script, b.face, correction, together, np.array(found), self.config.blink_floor)


def _shrunk(portrait: Portrait, times: float) -> Portrait:
    side = max(64, round(len(portrait.image) / times))
    image = cv2.resize(portrait.image, (side, side), interpolation=cv2.INTER_AREA)
    speaking = _shrunk(portrait.speaking, times) if portrait.speaking else None
    return Portrait(image, portrait.points * (side / len(portrait.image)), speaking)
