"""Head geometry from the face mesh: pose, face box, crop rule, openings of eyes and mouth. Pure functions of points.

One motion algebra everywhere, row vectors as in LivePortrait: x = scale * (kp @ R + exp) + t, with x right, y down, z away
from the camera, all in px. Angles are of the person's head as the camera sees it: yaw > 0 turns the nose to the picture's
right, pitch > 0 lifts it, roll > 0 tilts the head clockwise in the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from schemas.arrays import decode_arrays
from schemas.facemesh import LEFT_EYE as LEFT_EYE
from schemas.facemesh import LIPS_INNER as LIPS_INNER
from schemas.facemesh import LIPS_OUTER as LIPS_OUTER
from schemas.facemesh import NOSE as NOSE
from schemas.facemesh import RIGHT_EYE as RIGHT_EYE

FACE_OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
_LID_PAIRS_RIGHT = ((160, 144), (159, 145), (158, 153))
_LID_PAIRS_LEFT = ((387, 373), (386, 374), (385, 380))
# Points that the face's muscles hardly move: bridge and wings of the nose, forehead, temples, cheek bones.
_RIGID = (
    *(6, 168, 197, 195, 5, 4, 1, 8, 9, 151, 10, 108, 337, 69, 299, 109, 338, 67, 297, 103, 332, 54, 284, 21, 251),
    *(162, 389, 127, 356, 234, 454, 93, 323, 116, 345, 111, 340, 117, 346, 123, 352, 147, 376, 45, 275, 48, 278, 33, 263, 133, 362),
)


@cache
def canonical() -> np.ndarray:
    """The neutral, frontal, left-right symmetric face, float64 (478, 3), height 1, centred."""
    return _canonical_file()["points"].astype(np.float64)


@cache
def mirror_map() -> np.ndarray:
    """Point i of a picture is point `mirror_map()[i]` of its mirror image; int (478,)."""
    return _canonical_file()["mirror"].astype(np.intp)


@cache
def _canonical_file() -> dict[str, np.ndarray]:
    return decode_arrays(Path(__file__).with_name("canonical_face.npz").read_bytes(), what="canonical_face.npz")


@cache
def rigid_weights() -> np.ndarray:
    """Weights float64 (478,) of a pose fit: 1 on points that expressions hardly move, 0 elsewhere."""
    weights = np.zeros(len(canonical()))
    weights[list(_RIGID)] = 1.0
    return weights


@dataclass(frozen=True)
class Pose:
    """Head pose of T frames: x = scale * kp @ R + t.

    Attributes:
        scale: (T,) px per unit of the shape that was fitted.
        rotation: (T, 3, 3), acting on row vectors.
        translation: (T, 3) px.
    """

    scale: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray

    @property
    def euler_deg(self) -> np.ndarray:
        """(T, 3): yaw, pitch, roll in degrees."""
        return euler_deg(self.rotation)

    def apply(self, shape: np.ndarray) -> np.ndarray:
        """Points (T, N, 3) of a shape (N, 3) or (T, N, 3)."""
        return self.scale[:, None, None] * (shape @ self.rotation) + self.translation[:, None]

    def invert(self, points: np.ndarray) -> np.ndarray:
        """The shape (T, N, 3) in the head's own frame, of points (T, N, 3)."""
        return (points - self.translation[:, None]) @ self.rotation.swapaxes(1, 2) / self.scale[:, None, None]


def fit_pose(points: np.ndarray, shape: np.ndarray | None = None, weights: np.ndarray | None = None) -> Pose:
    """Weighted least-squares similarity (Umeyama 1991) from `shape` (N, 3), by default the canonical face, to points (T, N, 3)."""
    shape = canonical() if shape is None else shape
    weights = rigid_weights() if weights is None else weights
    counted = np.flatnonzero(weights)  # a tenth of the mesh: long clips would make large arrays
    shape, points = shape[counted], points[:, counted].astype(np.float64)
    w = (weights[counted] / weights.sum())[:, None]
    centre_s, centre_p = (w * shape).sum(0), (w * points).sum(1, keepdims=True)
    s, p = shape - centre_s, points - centre_p
    u, singular, vt = np.linalg.svd((w * s).T @ p)
    signs = np.ones_like(singular)
    signs[:, 2] = np.sign(np.linalg.det(u @ vt))
    rotation = u * signs[:, None, :] @ vt
    scale = (singular * signs).sum(1) / (w * s**2).sum()
    translation = centre_p[:, 0] - scale[:, None] * (centre_s @ rotation)
    return Pose(scale, rotation, translation)


def euler_deg(rotation: np.ndarray) -> np.ndarray:
    """Yaw, pitch, roll in degrees (..., 3) of rotations (..., 3, 3) on row vectors; inverse of `rotation_of`."""
    nose = -rotation[..., 2, :]  # where the face looks: towards the camera is -z
    yaw = np.arctan2(nose[..., 0], np.hypot(nose[..., 1], nose[..., 2]))
    pitch = np.arctan2(-nose[..., 1], -nose[..., 2])
    # what is left after yaw and pitch are undone is a turn about the line of sight
    across = rotation[..., 0, :]
    level = np.stack([np.cos(yaw), np.sin(yaw) * np.sin(pitch), np.sin(yaw) * np.cos(pitch)], -1)
    up = np.cross(-nose, level)
    roll = np.arctan2((across * up).sum(-1), (across * level).sum(-1))
    return np.degrees(np.stack([yaw, pitch, roll], -1))


def rotation_of(yaw_pitch_roll_deg: np.ndarray) -> np.ndarray:
    """Rotations (..., 3, 3) on row vectors of yaw, pitch, roll in degrees (..., 3): roll first, then pitch and yaw."""
    yaw, pitch, roll = np.moveaxis(np.radians(yaw_pitch_roll_deg), -1, 0)
    level = np.stack([np.cos(yaw), np.sin(yaw) * np.sin(pitch), np.sin(yaw) * np.cos(pitch)], -1)
    back = np.stack([-np.sin(yaw), np.cos(yaw) * np.sin(pitch), np.cos(yaw) * np.cos(pitch)], -1)
    up = np.cross(back, level)
    c, s = np.cos(roll)[..., None], np.sin(roll)[..., None]
    return np.stack([c * level + s * up, -s * level + c * up, back], -2)


def angle_between_deg(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Geodesic angle in degrees (...) between rotations (..., 3, 3)."""
    trace = np.einsum("...ij,...ij->...", a, b)
    return np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))


def face_boxes(points: np.ndarray) -> np.ndarray:
    """Boxes (T, 4), x0 y0 x1 y1, around the mesh (T, 478, >=2)."""
    xy = np.ascontiguousarray(points[..., :2].swapaxes(-1, -2))  # a third of the time: this is asked of every frame, more than once
    return np.concatenate([xy.min(-1), xy.max(-1)], -1)


def face_size(boxes: np.ndarray) -> np.ndarray:
    """Longer side (T,) of boxes (T, 4): the face's height unless the head lies on its side."""
    return np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])


def head_square(boxes: np.ndarray) -> np.ndarray:
    """The crop rule before head-room and frame borders: centre x, centre y and size (3,) of the head over a whole clip.

    The middle of all places the face's centre takes, and the median face size. Applied to a driving video's boxes it must
    give what it gives for the target's (DESIGN: within 2 %).
    """
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    low, high = np.percentile(centres, [5, 95], axis=0)
    return np.array([*(low + high) / 2, np.median(face_size(boxes))])


def crop_square(boxes: np.ndarray, crop_scale: float, frame_wh: tuple[int, int]) -> tuple[int, int, int]:
    """One square x0, y0, side in source px for a whole clip, inside the frame; all three even, so that chroma is cut as luma is.

    Side = `crop_scale` x the head's size, more where the face roams, never more than the frame's shorter side; then moved
    inside the frame. A tenth of the face's height is added above, for hair.
    """
    cx, cy, size = head_square(boxes)
    extent = max(boxes[:, 2].max() - boxes[:, 0].min(), boxes[:, 3].max() - boxes[:, 1].min())
    side = min(int(max(crop_scale * size, 1.25 * extent)), *frame_wh)
    side -= side % 2
    low = np.array([cx, cy - 0.1 * size]) / 2 - side / 4
    x0, y0 = (2 * min(max(round(v), 0), (most - side) // 2) for v, most in zip(low.tolist(), frame_wh, strict=True))
    return x0, y0, side


def mouth_opening(points: np.ndarray, pose: Pose | None = None) -> np.ndarray:
    """Gap between the inner lips over the width of the mouth, (T,), 0 when closed; in the head's own frame. `pose`: as fitted."""
    upper, lower, corners = (82, 13, 312), (87, 14, 317), (61, 291)
    shape = (pose or fit_pose(points)).invert(points[:, [*upper, *lower, *corners]])
    gap = np.linalg.norm(shape[:, :3] - shape[:, 3:6], axis=-1).mean(1)
    return gap / np.linalg.norm(shape[:, 6] - shape[:, 7], axis=-1)


def eye_opening(points: np.ndarray, pose: Pose | None = None) -> np.ndarray:
    """Gap between the lids over the width of the eye, (T, 2): left, right; in the head's own frame. `pose`: as fitted, if it was."""
    pose = pose or fit_pose(points)
    gaps = []
    for pairs, corners in ((_LID_PAIRS_LEFT, (362, 263)), (_LID_PAIRS_RIGHT, (133, 33))):
        upper, lower = zip(*pairs, strict=True)
        shape = pose.invert(points[:, [*upper, *lower, *corners]])
        gap = np.linalg.norm(shape[:, :3] - shape[:, 3:6], axis=-1).mean(1)
        gaps.append(gap / np.linalg.norm(shape[:, 6] - shape[:, 7], axis=-1))
    return np.stack(gaps, -1)
