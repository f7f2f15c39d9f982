"""Crops through which LivePortrait's networks look at a face: similarities fitted to landmarks, and keypoints carried through them.

Rules are those of LivePortrait's published cropper (arXiv 2407.03168): its networks were trained on pictures cut in this way, so a
face must fill the crop as it did there. Pure functions of points; all geometry is float64.

Pixels: points and matrices have pixel centres at integers, as cv2.warpAffine has. The middle of a face goes to side / 2, which is half
a pixel right of and below the middle of the crop's pixels: so the original does. Keypoints' -1..1 span the outer edges of the pixels,
-0.5..side - 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

MESH_POINTS, POINTS_203 = 478, 203

# The 203 points end at the brows. The crop is as large as their extent, so of the mesh the forehead does not count: all points that
# lie above both brows in the neutral, frontal face.
_FOREHEAD = (10, 54, 67, 68, 69, 103, 104, 108, 109, 151, 284, 297, 298, 299, 332, 333, 337, 338)
_MESH_EXTENT = tuple(i for i in range(MESH_POINTS) if i not in _FOREHEAD)

# Corners and middles of the lids of both eyes; corners of the mouth. The mesh's irises and the middle of its lips would do for a frontal
# face, and others use them. But the lips stand out: at 30 degrees of yaw the crop would turn by 8 degrees, with the corners by 2; and the
# irises go with the gaze.
_EYES = {MESH_POINTS: (33, 159, 133, 145, 362, 386, 263, 374), POINTS_203: (0, 6, 12, 18, 24, 30, 36, 42)}
_MOUTH = {MESH_POINTS: (61, 291), POINTS_203: (48, 66)}


@dataclass(frozen=True)
class Crop:
    """A square view of a picture.

    Attributes:
        matrix: float64 (2, 3), picture px to crop px: a turn, one scale, a shift.
        side: of the crop, px.
    """

    matrix: np.ndarray
    side: int

    @property
    def scale(self) -> float:
        """Crop px per picture px."""
        return float(np.sqrt(np.linalg.det(self.matrix[:, :2])))

    def to_crop_px(self, points: np.ndarray) -> np.ndarray:
        """Picture px (..., 2) to crop px, float64."""
        return np.asarray(points, np.float64) @ self.matrix[:, :2].T + self.matrix[:, 2]

    def to_picture_px(self, points: np.ndarray) -> np.ndarray:
        """Crop px (..., 2) to picture px, float64."""
        return (np.asarray(points, np.float64) - self.matrix[:, 2]) @ np.linalg.inv(self.matrix[:, :2]).T

    def cut(self, image: np.ndarray, out_side: int, *, shrink: Literal["area", "bilinear"]) -> np.ndarray:
        """The view, uint8 (out_side, out_side, 3), black outside the picture (H, W, 3).

        Bilinear to `side`, then resized when `out_side` differs. The original shrinks a source by "area", a driving frame "bilinear".
        """
        view = cv2.warpAffine(image, self.matrix, (self.side, self.side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        if out_side == self.side:
            return view
        how = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR}[shrink]
        return cv2.resize(view, (out_side, out_side), interpolation=how)

    def to_picture(self, x: np.ndarray, size_px: int) -> np.ndarray:
        """Keypoints (..., K, 3) in the crop's -1..1 as the same places in the -1..1 of the whole picture of `size_px` squared.

        Depth goes by the scale alone; a crop's turn, about the line of sight, is undone in x and y.
        """
        linear, shift = self._keypoint_map(size_px)
        return (np.asarray(x, np.float64) - shift) @ np.linalg.inv(linear).T

    def from_picture(self, x: np.ndarray, size_px: int) -> np.ndarray:
        """The inverse of `to_picture`."""
        linear, shift = self._keypoint_map(size_px)
        return np.asarray(x, np.float64) @ linear.T + shift

    def _keypoint_map(self, size_px: int) -> tuple[np.ndarray, np.ndarray]:
        """(3, 3) and (3,), picture's -1..1 to crop's -1..1."""
        linear, shift = np.zeros((3, 3)), np.zeros(3)
        linear[:2, :2] = self.matrix[:, :2] * size_px / self.side
        linear[2, 2] = self.scale * size_px / self.side
        middle = self.to_crop_px(np.full(2, size_px / 2 - 0.5))  # the picture's 0, 0
        shift[:2] = (middle + 0.5) * 2 / self.side - 1
        return linear, shift


def crop_by_landmarks(points: np.ndarray, eyes: np.ndarray, mouth: np.ndarray, *, side: int, scale: float, vy: float, rotate: bool) -> Crop:
    """The original's rule: a square around points (N, 2), upright along the line from between the eyes (2,) to the mouth (2,).

    Args:
        side: of the crop, px.
        scale: side of the square, in longer sides of the upright box around the points.
        vy: how far its centre lies from the box's, in sides of the square, towards the mouth; negative leaves room for hair.
        rotate: turn the picture so that the face is upright. Without, size and centre are still measured in the face's frame.
    """
    centre, length, across = _square(_finite(points), _finite(eyes), _finite(mouth), scale, vy)
    return _look_at(centre, float(length), across if rotate else np.array([1.0, 0.0]), side)


def source_crop(points: np.ndarray) -> Crop:
    """How the networks look at a portrait: points (N, 2 or 3) in px, N = 478 of the mesh or LivePortrait's 203; side 512."""
    return crop_by_landmarks(*landmark_parts(points), side=512, scale=2.3, vy=-0.125, rotate=True)


def driving_crop(points: np.ndarray) -> Crop:
    """One view for a whole clip: points (T, N, 2 or 3) in px, N = 478 or 203; side 512, upright in the picture.

    The square is the mean of the frames' squares.
    """
    extent, eyes, mouth = landmark_parts(_finite(points))
    if extent.ndim != 3 or not len(extent):
        raise ValueError(f"points of a clip must be (T, N, 2 or 3) with T > 0, not {points.shape}")
    centres, lengths, _ = _square(extent, eyes, mouth, 2.2, -0.1)
    centre, length, side = centres.mean(0), lengths.mean(), 512
    # The original keeps the mean square even when a face roams out of it, and its motion network then guesses at half a face. Here every
    # frame of a clip becomes a pair's frame, so the view is widened until all points of all frames lie on its pixels: up to side - 0.5
    # in crop px, where side / 2 is the centre.
    reach = np.abs(points[..., :2] - centre).max() * 2 * side / (side - 1)
    return _look_at(centre, float(max(length, reach)), np.array([1.0, 0.0]), side)


def landmark_parts(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of points (..., N, 2 or 3): those that set the crop's size (..., M, 2), the middle of the eyes (..., 2), that of the mouth (..., 2).

    Raises:
        ValueError: N is neither 478 nor 203.
    """
    number = points.shape[-2] if points.ndim > 1 else 0
    if number not in _EYES:
        raise ValueError(f"points must be the {MESH_POINTS} of the face mesh or LivePortrait's {POINTS_203}, not of shape {points.shape}")
    flat = np.asarray(points[..., :2], np.float64)
    extent = flat[..., _MESH_EXTENT, :] if number == MESH_POINTS else flat
    return extent, flat[..., _EYES[number], :].mean(-2), flat[..., _MOUTH[number], :].mean(-2)


def eye_ratios(points: np.ndarray) -> np.ndarray:
    """How far open the eyes are, in widths, (..., 2): first and second eye of LivePortrait's 203 points (..., 203, 2)."""
    return np.stack([_distance(points, 6, 18) / _distance(points, 0, 12), _distance(points, 30, 42) / _distance(points, 24, 36)], -1)


def lip_ratio(points: np.ndarray) -> np.ndarray:
    """Gap between the lips in widths of the mouth, (...), of LivePortrait's 203 points (..., 203, 2)."""
    return _distance(points, 90, 102) / _distance(points, 48, 66)


def _distance(points: np.ndarray, a: int, b: int) -> np.ndarray:
    return np.linalg.norm(points[..., a, :] - points[..., b, :], axis=-1)


def _finite(points: np.ndarray) -> np.ndarray:
    if not np.isfinite(points).all():
        raise ValueError("points must be finite")
    return np.asarray(points, np.float64)


def _square(points: np.ndarray, eyes: np.ndarray, mouth: np.ndarray, scale: float, vy: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of points (..., N, 2): centres (..., 2) and sides (...) of squares in picture px, and where the faces' own x points, (..., 2)."""
    down = mouth - eyes
    length = np.linalg.norm(down, axis=-1, keepdims=True)
    known = length > 1e-3  # px; the original's threshold, below it a face counts as upright
    down = np.where(known, down / np.where(known, length, 1), [0.0, 1.0])
    across = np.stack([down[..., 1], -down[..., 0]], -1)
    axes = np.stack([across, down], -1)  # columns
    own = points @ axes
    low, high = own.min(-2), own.max(-2)
    side = (high - low).max(-1) * scale
    centre = (axes @ ((low + high) / 2)[..., None])[..., 0] + vy * side[..., None] * down
    return centre, side, across


def _look_at(centre: np.ndarray, length: float, across: np.ndarray, side: int) -> Crop:
    """The square of side `length` around `centre`, whose x points along `across`, as a crop of `side`."""
    if length <= 0:
        raise ValueError("all points of the face are one")
    scale, (c, s) = side / length, across
    linear = scale * np.array([[c, s], [-s, c]])
    return Crop(np.concatenate([linear, (side / 2 - linear @ centre)[:, None]], 1), side)
