"""Where B's 478 points go: A's motion as numbers that carry no face, and B's own face made to perform them.

Everything is done in the head's own frame (stages.head: canonical units, the face's height is 1), so that A's head pose and
A's expression are apart, and B's shape is B's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from stages import head

# The person's right eye: both corners, lids from the outer to the inner corner.
_CORNERS = ((33, 133), (263, 362))
_UPPER_LIDS = ((246, 161, 160, 159, 158, 157, 173), (466, 388, 387, 386, 385, 384, 398))
_LOWER_LIDS = ((7, 163, 144, 145, 153, 154, 155), (249, 390, 373, 374, 380, 381, 382))
_UPPER_FOLDS = ((247, 30, 29, 27, 28, 56, 190), (467, 260, 259, 257, 258, 286, 414))
_IRISES = ((468, 469, 470, 471, 472), (473, 474, 475, 476, 477))
_GAP_UPPER, _GAP_LOWER = (82, 13, 312), (87, 14, 317)
INNER_UPPER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
INNER_LOWER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
_MOUTH_CORNERS = (61, 291)
_UPPER_LIP_SHARE = 0.25  # of an opening mouth; lower lip and chin take the rest
_FOLD_SHARE = 0.6  # of a closing lid's way; the skin below the brow stretches then, and not the lashes
_LOOKING = 0.5  # of an eye's own opening; where the lids are lower the mesh guesses the iris
_MOST_GAZE = 0.25  # eye widths from the middle: farther no iris goes
_STILL, _QUICK = 0.001, 0.0025  # acceleration of the head in face sizes a frame a frame, without what the mesh shakes
_STILL_SMOOTHING = 4.0  # times as much as else
_NOISE_FRAMES, _CALM_FRAMES = 1.5, 3.0
_LID_MEETING = 0.2  # closed lids meet this far up from the lower one


@dataclass(frozen=True)
class Script:
    """What A does, T frames; arrays of a Motion.

    Attributes:
        scale, rotation, translation: head pose as in stages.head.Pose; (T,), (T, 3, 3), (T, 3) float32.
        expression: (T, 478, 3) float16, head frame, away from A's own neutral face.
        mouth: (T,) inner lip gap over mouth width.
        smile: (T,) mouth width, head frame.
        eyes: (T, 2) right and left opening, 0 closed, 1 as open as A's mostly are.
        gaze: (T, 2, 2) right and left iris from the middle of the eye, x y in eye widths; y from where A mostly looks, because up
            and down an eye's outline says too little of where straight ahead is.
        boxes: (T, 4) face boxes in px.
        calm: (T,) 1 where the head keeps still, 0 where it moves quickly.
    """

    scale: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray
    expression: np.ndarray
    mouth: np.ndarray
    smile: np.ndarray
    eyes: np.ndarray
    gaze: np.ndarray
    boxes: np.ndarray
    calm: np.ndarray

    def __len__(self) -> int:
        return len(self.scale)

    def part(self, at: slice | np.ndarray) -> Script:
        return Script(**{name: array[at] for name, array in vars(self).items()})


@dataclass(frozen=True)
class Face:
    """B's own face in the head's frame.

    Attributes:
        shape: (478, 3) as in the portrait, but with a closed mouth.
        mouth: inner lip gap over mouth width in the portrait.
        gaze: (2, 2) as `gaze_of` gives it.
        eyes: (2,) right and left gap of the lids over the eye's width in the portrait.
    """

    shape: np.ndarray
    mouth: float
    gaze: np.ndarray
    eyes: np.ndarray


def write_script(points: np.ndarray, *, smoothing_frames: float, blink_floor: float) -> Script:
    """A's motion from points (T, 478, 3) in px. `blink_floor` is the opening that the mesh shows on a closed eye.

    The head, not the face that it makes, is smoothed four times as much while it keeps still: all that is quick then is the mesh's own
    shaking.
    """
    points = points.astype(np.float64)
    calm = _calmness(points)
    head_points = points[:, _rigid()]
    still = smooth(head_points, _STILL_SMOOTHING * smoothing_frames)
    points = smooth(points, smoothing_frames)
    mouth, openings = head.mouth_opening(points), head.eye_opening(points)[:, ::-1]
    shape = head.fit_pose(points).invert(points)
    gaze = gaze_of(shape)
    points[:, _rigid()] += calm[:, None, None] * (still - points[:, _rigid()])
    pose = head.fit_pose(points)
    shape[:, _rigid()] = pose.invert(points[:, _rigid()])
    # asking for open eyes too would bring raised brows into the neutral face, and B would look angry
    closed = mouth <= max(float(np.percentile(mouth, 25)), 0.05)
    neutral = np.median(shape[closed], 0)
    gaze = held(gaze, (openings >= _LOOKING * np.median(openings, 0)).all(1))
    gaze[..., 1] -= np.median(gaze[..., 1], 0)
    widest = np.maximum(np.percentile(openings, 75, axis=0), blink_floor + 0.08)
    return Script(
        scale=pose.scale.astype(np.float32),
        rotation=pose.rotation.astype(np.float32),
        translation=pose.translation.astype(np.float32),
        expression=(shape - neutral).astype(np.float16),
        mouth=mouth.astype(np.float32),
        smile=_mouth_width(shape).astype(np.float32),
        eyes=np.clip((openings - blink_floor) / (widest - blink_floor), 0, 1.3).astype(np.float32),
        gaze=gaze.astype(np.float32),
        boxes=head.face_boxes(points).astype(np.float32),
        calm=calm.astype(np.float32),
    )


def _calmness(points: np.ndarray) -> np.ndarray:
    """How still the head keeps (T,), 1 as still as the mesh can show, 0 where it moves quickly, of points (T, 478, 3)."""
    if len(points) < 3:
        return np.ones(len(points))
    rigid = smooth(points[:, _rigid(), :2] / np.median(head.face_size(head.face_boxes(points))), _NOISE_FRAMES)
    quick = np.pad(np.median(np.linalg.norm(np.diff(rigid, 2, axis=0), axis=-1), 1), 1, mode="edge")
    return np.clip((_QUICK - smooth(quick, _CALM_FRAMES)) / (_QUICK - _STILL), 0, 1)


def _rigid() -> np.ndarray:
    return np.flatnonzero(head.rigid_weights())


def read_face(points: np.ndarray) -> tuple[Face, head.Pose]:
    """B's face and its pose (T = 1) from a portrait's points (478, 3)."""
    pose = head.fit_pose(points[None])
    shape = pose.invert(points[None])
    closed = set_mouth(shape, np.zeros(1))[0]
    eyes = head.eye_opening(points[None])[0, ::-1]
    return Face(closed, float(head.mouth_opening(points[None])[0]), gaze_of(shape)[0], eyes), pose


def act(face: Face, script: Script, *, expression_gain: float) -> np.ndarray:
    """B's shape in the head's frame, (T, 478, 3), performing the script."""
    expression = expression_gain * script.expression.astype(np.float64)
    expression *= _smile_room(face, expression, script)
    shape = set_mouth(face.shape + expression, script.mouth)
    gaze = script.gaze + face.gaze * [0, 1]
    gaze[..., 0] = np.clip(gaze[..., 0], -_MOST_GAZE, _MOST_GAZE)
    for side in (0, 1):
        _set_eye(shape, face, expression, script.eyes[:, side], gaze[:, side], side)
    return shape


def _set_eye(shape: np.ndarray, face: Face, expression: np.ndarray, opening: np.ndarray, gaze: np.ndarray, side: int) -> None:
    """Lids relative to B's own open eye, iris by gaze; both ride on A's motion of the corners. Writes into shape (T, 478, 3)."""
    corners, upper, lower = list(_CORNERS[side]), list(_UPPER_LIDS[side]), list(_LOWER_LIDS[side])
    ride = expression[:, corners].mean(1, keepdims=True)
    meeting = face.shape[lower] + _LID_MEETING * (face.shape[upper] - face.shape[lower])
    for lid in (upper, lower):
        shape[:, lid] = meeting + opening[:, None, None] * (face.shape[lid] - meeting) + ride
    fold = list(_UPPER_FOLDS[side])
    shape[:, fold] = face.shape[fold] + ride + _FOLD_SHARE * (shape[:, upper] - face.shape[upper] - ride)
    shape[:, corners] = face.shape[corners] + ride
    ends = face.shape[corners]
    width = np.linalg.norm(ends[0] - ends[1])
    move = np.zeros_like(ride)
    move[:, 0, :2] = (gaze - face.gaze[side]) * width
    shape[:, _IRISES[side]] = face.shape[list(_IRISES[side])] + ride + move


def _smile_room(face: Face, expression: np.ndarray, script: Script) -> np.ndarray:
    """Factors (T, 478, 1) of the lower face's expression: who smiles in the portrait already smiles no wider than A does."""
    own = float(_mouth_width(face.shape))
    asked = _mouth_width(face.shape + expression)
    allowed = np.maximum(own, script.smile)
    factor = np.where(asked > allowed, (allowed - own) / np.maximum(asked - own, 1e-6), 1.0)
    y, nose, mouth = head.canonical()[:, 1], head.canonical()[2, 1], head.canonical()[13, 1]
    low = np.clip((y - nose) / (mouth - nose), 0, 1)
    return 1 + (factor[:, None, None] - 1) * low[:, None]


def _mouth_width(shape: np.ndarray) -> np.ndarray:
    return np.linalg.norm(shape[..., _MOUTH_CORNERS[0], :] - shape[..., _MOUTH_CORNERS[1], :], axis=-1)


def set_mouth(shape: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Shapes (T, 478, 3) with inner lips `gap` (T,) mouth widths apart: chin and lower lip move most, corners not at all."""
    weights = _mouth_weights()
    upper, lower = list(_GAP_UPPER), list(_GAP_LOWER)
    width = np.linalg.norm(shape[:, _MOUTH_CORNERS[0]] - shape[:, _MOUTH_CORNERS[1]], axis=-1)
    now = (shape[:, lower, 1] - shape[:, upper, 1]).mean(1)
    step = (gap * width - now) / (weights[lower] - weights[upper]).mean()
    shape = shape.copy()
    shape[..., 1] += step[:, None] * weights
    above, below = list(INNER_UPPER[1:-1]), list(INNER_LOWER[1:-1])
    crossed = shape[:, above, 1] > shape[:, below, 1]
    middle = (shape[:, above, 1] + shape[:, below, 1]) / 2
    shape[:, above, 1] = np.where(crossed, middle, shape[:, above, 1])
    shape[:, below, 1] = np.where(crossed, middle, shape[:, below, 1])
    return shape


@cache
def _mouth_weights() -> np.ndarray:
    """How far each point goes down (478,) when the lips part by one: 0 at the corners, about .75 on lower lip and chin, -.25 above."""
    points = head.canonical()
    x, y = points[:, 0], points[:, 1]
    line = np.interp(x, points[list(INNER_UPPER), 0], (points[list(INNER_UPPER), 1] + points[list(INNER_LOWER), 1]) / 2)
    half, chin, nose = abs(points[78, 0]), points[152, 1], points[2, 1]
    below = np.clip((y - line) / (chin - line), 0, 1)
    jaw = np.clip(1 - (x / (half * (1 + 1.8 * below))) ** 2, 0, 1)
    lip = np.clip(1 - (x / half) ** 2, 0, 1) * np.clip(1 - (line - y) / (line - nose), 0, 1)
    return np.where(y > line, (1 - _UPPER_LIP_SHARE) * jaw, -_UPPER_LIP_SHARE * lip)


def gaze_of(shape: np.ndarray) -> np.ndarray:
    """Irises from the middle between the eye's corners, in eye widths: (T, 2, 2), right and left, x y, of shapes (T, 478, 3)."""
    sides = []
    for (a, b), iris in zip(_CORNERS, _IRISES, strict=True):
        width = np.linalg.norm(shape[:, a] - shape[:, b], axis=-1)[:, None]
        sides.append((shape[:, iris[0], :2] - (shape[:, a, :2] + shape[:, b, :2]) / 2) / width)
    return np.stack(sides, 1)


def held(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Values (T, ...) with those that are not known, bool (T,), on the straight line between those that are; as they are if none is."""
    if not known.any():
        return values
    at, flat = np.flatnonzero(known), values.reshape(len(values), -1)
    return np.stack([np.interp(np.arange(len(flat)), at, column[at]) for column in flat.T], 1).reshape(values.shape)


def smooth(values: np.ndarray, sigma_frames: float) -> np.ndarray:
    """Gaussian along time, (T, ...); beyond the ends it goes on as it came, so that what moves there does not stop."""
    reach = min(int(np.ceil(3 * sigma_frames)), len(values) - 1)
    if sigma_frames <= 0 or reach < 1:
        return values
    before, after = 2 * values[:1] - values[reach:0:-1], 2 * values[-1:] - values[-2 : -reach - 2 : -1]
    flat = np.concatenate([before, values, after]).reshape(len(values) + 2 * reach, -1)
    blurred = cv2.GaussianBlur(flat, (1, 2 * reach + 1), sigmaX=0, sigmaY=sigma_frames, borderType=cv2.BORDER_REFLECT_101)
    return blurred[reach : reach + len(values)].reshape(values.shape)
