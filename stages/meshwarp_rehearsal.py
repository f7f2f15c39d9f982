"""Meshwarp's rehearsal: B plays the clip in small, the face mesh looks on, and what B missed is told to B before it counts.

Everything is per frame: an error that depends on what A does just then, such as a lid that hardly closes or a chin that drops less
than it should, is corrected where it happens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from stages import head
from stages.meshwarp_plan import Face, Script, gaze_of, held, smooth

# Sigma in frames: what is seen shakes, and B must not shake with it; but a blink takes four frames.
_TURN_FRAMES, _CALM_TURN_FRAMES, _MOUTH_FRAMES, _EYES_FRAMES, _GAZE_FRAMES = 0.7, 3.0, 1.0, 1.0, 2.0
_MOST_TURN_DEG, _MOST_MOUTH, _MOST_EYES, _MOST_GAZE = 20.0, 0.3, 0.5, 0.08
_SLOPES = (0.8, 3.0)
_MIN_EYE_RANGE = 0.16  # between shut and open; for portraits that squint
_LOOKING = 0.5  # of an eye's range: where the lids are lower the mesh guesses the iris


@dataclass(frozen=True)
class Seen:
    """What the face mesh shows of T frames, in the terms of a Script.

    Attributes:
        rotation: (T, 3, 3).
        mouth: (T,) inner lip gap over mouth width.
        eyes: (T, 2) gap of the lids over the eye's width, right and left.
        gaze: (T, 2, 2) as in a Script, but y too is absolute.
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
        turn_deg: (T, 3) rotation vectors.
        mouth, eyes, gaze_x: (T,) as in a Script, of both eyes alike.
        size: factor of the head's size.
        shift_px: (2,).
    """

    turn_deg: np.ndarray
    mouth: np.ndarray
    eyes: np.ndarray
    gaze_x: np.ndarray
    size: float
    shift_px: np.ndarray

    @staticmethod
    def none(frames: int) -> Correction:
        return Correction(np.zeros((frames, 3)), np.zeros(frames), np.zeros(frames), np.zeros(frames), 1.0, np.zeros(2))

    def apply(self, script: Script) -> Script:
        """The script that B is given; size and shift are for who places the head."""
        return replace(
            script,
            rotation=script.rotation.astype(np.float64) @ _turns(self.turn_deg),
            mouth=np.maximum(script.mouth + self.mouth, 0),
            eyes=np.clip(script.eyes + self.eyes[:, None], 0, 1.6),
            gaze=script.gaze + self.gaze_x[:, None, None] * [1, 0],
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
    """The next correction, after `seen` (N) of the clip that was played under this one; the face was found in the frames `at` (N,)."""
    wanted = script.part(at)
    eye_range = np.maximum(face.eyes - blink_floor, _MIN_EYE_RANGE)
    turn_deg = turn_vectors_deg(seen.rotation.swapaxes(1, 2) @ wanted.rotation.astype(np.float64))
    # eyes go together, and the mean of two that are looked at shakes less
    eyes = (wanted.eyes - (seen.eyes - blink_floor) / eye_range).mean(1)
    looking = np.all((seen.eyes >= blink_floor + _LOOKING * (face.eyes - blink_floor)) & (wanted.eyes > _LOOKING), axis=1)
    gaze_x = held((wanted.gaze - seen.gaze)[..., 0].mean(1), looking) if looking.any() else np.zeros(len(at))

    def added(now: np.ndarray, missed: np.ndarray, most: float) -> np.ndarray:
        """`missed` (N, ...) of what was seen, as the error of every frame, on top of what is corrected already."""
        flat = missed.reshape(len(at), -1)
        every = np.stack([np.interp(np.arange(len(script)), at, column) for column in flat.T], 1)
        return np.clip(now + every.reshape(now.shape), -most, most)

    calm = wanted.calm[:, None]
    turn_deg = calm * smooth(turn_deg, _CALM_TURN_FRAMES) + (1 - calm) * smooth(turn_deg, _TURN_FRAMES)
    told = correction.apply(script).part(at)
    mouth = smooth((wanted.mouth - seen.mouth) / _slope(told.mouth, seen.mouth), _MOUTH_FRAMES)
    target = wanted.boxes.astype(np.float64)
    off = head.head_square(target) - head.head_square(seen.boxes)
    return Correction(
        turn_deg=added(correction.turn_deg, turn_deg, _MOST_TURN_DEG),
        mouth=added(correction.mouth, mouth, _MOST_MOUTH),
        eyes=added(correction.eyes, smooth(eyes, _EYES_FRAMES), _MOST_EYES),
        gaze_x=added(correction.gaze_x, smooth(gaze_x, _GAZE_FRAMES), _MOST_GAZE),
        size=correction.size * float(np.median(head.face_size(target)) / np.median(head.face_size(seen.boxes))),
        shift_px=correction.shift_px + off[:2],
    )


def _slope(told: np.ndarray, seen: np.ndarray) -> float:
    """How much more is seen when more is told: lips that part a little seem to part a lot."""
    spread = told - told.mean()
    return float(np.clip((spread @ seen) / max(float(spread @ spread), 1e-6), *_SLOPES))


def _turns(vectors_deg: np.ndarray) -> np.ndarray:
    """Rotations (T, 3, 3) on row vectors of rotation vectors (T, 3) in degrees."""
    return np.stack([cv2.Rodrigues(v)[0].T for v in np.radians(vectors_deg)])


def turn_vectors_deg(rotation: np.ndarray) -> np.ndarray:
    """Rotation vectors (T, 3) in degrees of rotations (T, 3, 3) on row vectors."""
    return np.degrees(np.stack([cv2.Rodrigues(np.ascontiguousarray(r.T))[0][:, 0] for r in rotation]))
