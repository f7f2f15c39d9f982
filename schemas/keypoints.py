"""Implicit keypoints: what LivePortrait's motion network says of a head, and how one head is driven by another. Pure functions of arrays.

The algebra is x = scale * (kp @ R + exp) + t with row vectors, x right, y down, each -1..1 across the crop; the depth of t is dropped.
Formulas are those of LivePortrait (arXiv 2407.03168) and its published code. Everything is computed and returned in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

ANGLE_BINS = 66  # bin i stands for 3 i - 97.5 degrees


def _copied() -> np.ndarray:
    mask = np.zeros((21, 3), bool)
    mask[[1, 2, 6, *range(11, 21)]] = True
    mask[3:5, 1] = True
    mask[[5, 8], 2] = True
    mask[9, 1:] = True
    mask.flags.writeable = False
    return mask


# Which components of the expression absolute motion takes from the driver; the others shape the face, not its expression.
COPIED_EXPRESSION = _copied()


@dataclass(frozen=True)
class HeadMotion:
    """T frames of a head with K keypoints.

    Attributes:
        kp: (T, K, 3) canonical keypoints: the person, without pose and expression.
        rotation: (T, 3, 3), acting on row vectors.
        exp: (T, K, 3) expression, as offsets of the rotated keypoints.
        scale: (T,).
        t: (T, 3); its depth is never used.
    """

    kp: np.ndarray
    rotation: np.ndarray
    exp: np.ndarray
    scale: np.ndarray
    t: np.ndarray

    @staticmethod
    def from_network(outputs: dict[str, np.ndarray]) -> HeadMotion:
        """Of the motion network's outputs by name: pitch, yaw, roll (T, 66) logits; t (T, 3); exp, kp (T, 3 K); scale (T, 1)."""
        pitch, yaw, roll = (angle_deg(outputs[name]) for name in ("pitch", "yaw", "roll"))
        points = {name: np.asarray(outputs[name], np.float64).reshape(len(pitch), -1, 3) for name in ("kp", "exp")}
        scale, t = np.asarray(outputs["scale"], np.float64).reshape(-1), np.asarray(outputs["t"], np.float64)
        return HeadMotion(points["kp"], rotation_matrix(pitch, yaw, roll), points["exp"], scale, t)

    def __len__(self) -> int:
        return len(self.scale)

    def __getitem__(self, frames: slice) -> HeadMotion:
        return HeadMotion(self.kp[frames], self.rotation[frames], self.exp[frames], self.scale[frames], self.t[frames])

    def points(self) -> np.ndarray:
        """Keypoints in the crop, x = scale * (kp @ R + exp) + (tx, ty, 0): float64 (T, K, 3)."""
        x = self.scale[:, None, None] * (self.kp @ self.rotation + self.exp)
        x[..., :2] += self.t[:, None, :2]
        return x


def angle_deg(logits: np.ndarray) -> np.ndarray:
    """The mean of the bins under softmax: (..., 66) to (...) degrees in -97.5..97.5."""
    logits = np.asarray(logits, np.float64)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights @ np.arange(ANGLE_BINS) / weights.sum(-1) * 3 - 97.5


def rotation_matrix(pitch_deg: np.ndarray, yaw_deg: np.ndarray, roll_deg: np.ndarray) -> np.ndarray:
    """R = (Rz(roll) Ry(yaw) Rx(pitch))^T, for row vectors: (...) degrees each to (..., 3, 3)."""
    x, y, z = (np.radians(np.asarray(angle, np.float64)) for angle in (pitch_deg, yaw_deg, roll_deg))
    return (_about(2, z) @ _about(1, y) @ _about(0, x)).swapaxes(-1, -2)


def _about(axis: int, angle: np.ndarray) -> np.ndarray:
    """Rotation of column vectors about one axis, right-handed."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.zeros((*angle.shape, 3, 3))
    matrix[..., axis, axis] = 1
    matrix[..., i, i] = matrix[..., j, j] = np.cos(angle)
    matrix[..., j, i] = np.sin(angle)
    matrix[..., i, j] = -matrix[..., j, i]
    return matrix


def absolute_motion(source: HeadMotion, driving: HeadMotion, *, scale: Literal["driving", "source"] = "driving") -> HeadMotion:
    """`source` (one frame) with the pose, place and expression of each frame of `driving`.

    Args:
        scale: whose head size. LivePortrait's own absolute mode keeps the source's; a pair needs the driver's, or the heads
            of target and driving video differ in size.
    """
    assert len(source) == 1, f"{len(source)} source frames"
    frames = len(driving)
    exp = np.where(COPIED_EXPRESSION, driving.exp, source.exp)
    size = driving.scale if scale == "driving" else np.repeat(source.scale, frames)
    return HeadMotion(np.repeat(source.kp, frames, 0), driving.rotation, exp, size, driving.t)


def relative_motion(source: HeadMotion, driving: HeadMotion, *, anchor: int = 0) -> HeadMotion:
    """`source` (one frame), changed as `driving` changes from its frame `anchor`, which looks like the source then."""
    assert len(source) == 1, f"{len(source)} source frames"
    first = driving[slice(anchor, anchor + 1)]
    return HeadMotion(
        kp=np.repeat(source.kp, len(driving), 0),
        rotation=driving.rotation @ first.rotation.swapaxes(-1, -2) @ source.rotation,
        exp=source.exp + (driving.exp - first.exp),
        scale=source.scale * (driving.scale / first.scale),
        t=source.t + (driving.t - first.t),
    )


def image_motion(source: HeadMotion, driving: HeadMotion, neutral_exp: np.ndarray | float = 0.0) -> HeadMotion:
    """`source` (one frame) with the expressions of pictures, as far as they differ from a neutral one (K, 3). The pose stays.

    LivePortrait's code has a constant for the neutral expression, no component of which is above 0.015.
    """
    assert len(source) == 1, f"{len(source)} source frames"
    still = HeadMotion(*(np.repeat(getattr(source, name), len(driving), 0) for name in ("kp", "rotation", "exp", "scale", "t")))
    return replace(still, exp=still.exp + (driving.exp - neutral_exp))


def expression_friendly(x_s: np.ndarray, x_d: np.ndarray) -> np.ndarray:
    """Relative motion (T, K, 3) made as large as the source's face (1, K, 3) is.

    Both are measured by the root of the volume of the keypoints' hull, the driven face in frame 0.
    """
    ratio = np.sqrt(hull_volume(x_s[0]) / hull_volume(x_d[0]))
    return x_s + (x_d - x_d[:1]) * ratio


def hull_volume(points: np.ndarray) -> float:
    """Volume of the convex hull of (K, 3) points, no four of which lie in one face of it.

    K is about 20: trying every triangle is quicker than a dependency.
    """
    corners = np.asarray(points, np.float64) - np.mean(points, 0)
    a, b, c = corners[np.array(list(combinations(range(len(corners)), 3)))].swapaxes(0, 1)
    normal = np.cross(b - a, c - a)
    height = normal @ corners.T - np.sum(normal * a, -1)[:, None]  # of every point over every triangle's plane, times twice its area
    tolerance = 1e-12 * np.abs(height).max(-1, keepdims=True)
    outer = np.all(height <= tolerance, -1) | np.all(height >= -tolerance, -1)
    return float(np.abs(np.sum(normal * a, -1))[outer].sum() / 6)


def stitched(x_d: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Driving keypoints (T, K, 3) moved by the stitching network's output (T, 3 K + 2): an offset each, one shift in x and y for all."""
    k = x_d.shape[1]
    moved = x_d + np.asarray(offsets, np.float64)[:, : 3 * k].reshape(-1, k, 3)
    moved[..., :2] += offsets[:, None, 3 * k :]
    return moved
