"""Meshwarp's rehearsal: B plays the clip in small, the face mesh looks on, and what B missed is told to B before it counts.

Everything is per frame: an error that depends on what A does just then, such as a lid that hardly closes or a chin that drops less
than it should, is corrected where it happens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from stages import head
from stages.meshwarp_plan import Face, Script, gaze_of, smooth

_SMOOTH_TURN_FRAMES = 1.0  # sigma: what is seen shakes, and B must not shake with it
_SMOOTH_FEATURE_FRAMES = 0.7  # a blink takes four frames
_MOST_TURN_DEG, _MOST_MOUTH, _MOST_EYES, _MOST_GAZE = 20.0, 0.3, 0.7, 0.2
_MIN_EYE_RANGE = 0.08  # between shut and open; for portraits that squint


@dataclass(frozen=True)
class Seen:
    """What the face mesh shows of T frames, in the terms of a Script.

    Attributes:
        rotation: (T, 3, 3).
        mouth: (T,) inner lip gap over mouth width.
        eyes: (T, 2) gap of the lids over the eye's width, right and left.
        gaze: (T, 2, 2) as in a Script, but absolute.
        boxes: (T, 4) px.
    """

    rotation: np.ndarray
    mouth: np.ndarray
    eyes: np.ndarray
    gaze: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class Correction:
    """What is added to what A does, T frames, so that B is seen to do it.

    Attributes:
        turn_deg: (T, 3) rotation vectors; the others as in a Script: mouth (T,), eyes (T, 2), gaze (T, 2, 2).
        size: factor of the head's size.
        shift_px: (2,).
    """

    turn_deg: np.ndarray
    mouth: np.ndarray
    eyes: np.ndarray
    gaze: np.ndarray
    size: float
    shift_px: np.ndarray

    @staticmethod
    def none(frames: int) -> Correction:
        turn, mouth, eyes, gaze = (np.zeros((frames, *shape)) for shape in ((3,), (), (2,), (2, 2)))
        return Correction(turn, mouth, eyes, gaze, 1.0, np.zeros(2))

    def apply(self, script: Script) -> Script:
        """The script that B is given; size and shift are for who places the head."""
        return replace(
            script,
            rotation=script.rotation.astype(np.float64) @ _turns(self.turn_deg),
            mouth=np.maximum(script.mouth + self.mouth, 0),
            eyes=np.clip(script.eyes + self.eyes, 0, 1.6),
            gaze=script.gaze + self.gaze,
        )


def read_seen(points: np.ndarray) -> Seen:
    """Of mesh points (T, 478, 3) in px."""
    pose = head.fit_pose(points)
    return Seen(
        pose.rotation,
        head.mouth_opening(points, pose),
        head.eye_opening(points, pose)[:, ::-1],
        gaze_of(pose.invert(points)),
        head.face_boxes(points),
    )


def learn(script: Script, face: Face, correction: Correction, seen: Seen, at: np.ndarray, blink_floor: float) -> Correction:
    """The next correction, after `seen` (N) of the frames `at` (N,) that were played under this one."""
    wanted = script.part(at)
    width = np.maximum(face.eyes - blink_floor, _MIN_EYE_RANGE)
    gaze = wanted.gaze - seen.gaze
    gaze[..., 1] += face.gaze[:, 1]

    def over_time(missed: np.ndarray, sigma_frames: float) -> np.ndarray:
        """The error of every frame, of what was seen of some."""
        flat = smooth(missed, sigma_frames).reshape(len(at), -1)
        every = np.arange(len(script))
        return np.stack([np.interp(every, at, column) for column in flat.T], 1).reshape(len(script), *missed.shape[1:])

    def added(now: np.ndarray, missed: np.ndarray, sigma_frames: float, most: float) -> np.ndarray:
        return np.clip(now + over_time(missed, sigma_frames), -most, most)

    turn_deg = turn_vectors_deg(seen.rotation.swapaxes(1, 2) @ wanted.rotation.astype(np.float64))
    target = wanted.boxes.astype(np.float64)
    off = head.head_square(target) - head.head_square(seen.boxes)
    return Correction(
        turn_deg=added(correction.turn_deg, turn_deg, _SMOOTH_TURN_FRAMES, _MOST_TURN_DEG),
        mouth=added(correction.mouth, wanted.mouth - seen.mouth, _SMOOTH_FEATURE_FRAMES, _MOST_MOUTH),
        eyes=added(correction.eyes, wanted.eyes - (seen.eyes - blink_floor) / width, _SMOOTH_FEATURE_FRAMES, _MOST_EYES),
        gaze=added(correction.gaze, gaze, _SMOOTH_FEATURE_FRAMES, _MOST_GAZE),
        size=correction.size * float(np.median(head.face_size(target)) / np.median(head.face_size(seen.boxes))),
        shift_px=correction.shift_px + off[:2],
    )


def _turns(vectors_deg: np.ndarray) -> np.ndarray:
    """Rotations (T, 3, 3) on row vectors of rotation vectors (T, 3) in degrees."""
    return np.stack([cv2.Rodrigues(v)[0].T for v in np.radians(vectors_deg)])


def turn_vectors_deg(rotation: np.ndarray) -> np.ndarray:
    """Rotation vectors (T, 3) in degrees of rotations (T, 3, 3) on row vectors."""
    return np.degrees(np.stack([cv2.Rodrigues(np.ascontiguousarray(r.T))[0][:, 0] for r in rotation]))
