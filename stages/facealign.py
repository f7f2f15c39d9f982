"""The face of a picture, laid on ArcFace's template: turned, shifted and scaled, so that faces can be compared pixel by pixel."""

from __future__ import annotations

import cv2
import numpy as np

SIDE = 112
# Eye centres, nose tip and mouth corners, from the picture's left to its right, in px of a face 112 px wide: `arcface_dst` of InsightFace
# (python-package/insightface/utils/face_align.py, MIT), the places that ArcFace networks are trained with.
TEMPLATE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])
# Of the face mesh: both corners of the eye on the picture's left, of the one on its right, the nose tip, the corners of the mouth.
_EYES, _NOSE, _MOUTH = ((33, 133), (362, 263)), 1, (61, 291)
_TO_COMPLEX = np.array([1, 1j])


def five_points(points: np.ndarray) -> np.ndarray:
    """Eye centres, nose tip and mouth corners (5, 2) of the mesh (478, 2 or 3), in the order of TEMPLATE."""
    xy = np.asarray(points, np.float64)[:, :2]
    return np.stack([*(xy[list(eye)].mean(0) for eye in _EYES), xy[_NOSE], *xy[list(_MOUTH)]])


def similarity(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The turn, size and shift (2, 3) that bring points (N, 2) nearest to a target (N, 2), by least squares; no mirroring.

    With points as complex numbers about their mean, a = sum(conj(p) t) / sum(|p|^2) (Umeyama 1991, in the plane). Raises ValueError
    where all points are one.
    """
    p, t = (xy @ _TO_COMPLEX for xy in (points, target))
    p_mean, t_mean = p.mean(), t.mean()
    centred = p - p_mean
    size = float(np.vdot(centred, centred).real)
    if not size > 0:
        raise ValueError("all points are one point, or none is a number")
    a = np.vdot(centred, t - t_mean) / size
    b = t_mean - a * p_mean
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align(picture: np.ndarray, five: np.ndarray) -> np.ndarray:
    """The face of a uint8 RGB picture (H, W, 3) whose five points (5, 2) are given, on the template: uint8 (112, 112, 3)."""
    matrix = similarity(five, TEMPLATE)
    zoom = float(np.hypot(*matrix[:, 0]))
    if zoom < 0.5:  # bilinear sampling would skip pixels
        picture = cv2.resize(picture, None, fx=2 * zoom, fy=2 * zoom, interpolation=cv2.INTER_AREA)
        matrix[:, :2] /= 2 * zoom
    return np.asarray(cv2.warpAffine(picture, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR))
