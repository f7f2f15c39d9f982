"""Iris: whether eyes have irises. Statues and many drawings have none, and no person is without."""

from __future__ import annotations

import cv2
import numpy as np

from stages.head import LEFT_EYE, RIGHT_EYE

NOT_SEEN = -1.0  # both eyes shut, cut off or too small
_EYE_PX = 40  # the width at which an eye is looked at
_MIN_EYE_PX = 6
_LEFT_IRIS, _RIGHT_IRIS = 473, 468  # centres; four points of the rim follow each
_MIN_PIXELS = 10


def iris_contrast(picture: np.ndarray, points: np.ndarray) -> float:
    """How much darker the irises are than the rest of the open eyes: difference of mean luma over the eyes' mean luma, of both eyes.

    About 0.2 to 1 for a person, near 0 or below for plain stone; NOT_SEEN where neither eye shows both. `picture` is uint8 RGB
    (H, W, 3), `points` the mesh (478, >=2) in its px.
    """
    seen = [_of_eye(picture, points, *eye) for eye in ((LEFT_EYE, _LEFT_IRIS), (RIGHT_EYE, _RIGHT_IRIS))]
    found = [s for s in seen if s is not None]
    return float(np.mean(found)) if found else NOT_SEEN


def _of_eye(picture: np.ndarray, points: np.ndarray, outline: tuple[int, ...], iris: int) -> float | None:
    lids = points[list(outline), :2]
    x0, y0 = np.floor(lids.min(0)).astype(int) - 1
    x1, y1 = np.ceil(lids.max(0)).astype(int) + 2
    if x1 - x0 < _MIN_EYE_PX or min(x0, y0) < 0 or x1 > picture.shape[1] or y1 > picture.shape[0]:
        return None
    zoom = max(1.0, _EYE_PX / (x1 - x0))
    grey = cv2.cvtColor(picture[y0:y1, x0:x1], cv2.COLOR_RGB2GRAY).astype(np.float32)
    grey = cv2.resize(grey, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_LINEAR)
    open_eye = np.zeros(grey.shape, np.uint8)
    cv2.fillPoly(open_eye, [np.round((lids - [x0, y0]) * zoom).astype(np.int32)], 1)
    centre = (points[iris, :2] - [x0, y0]) * zoom
    radius = float(np.linalg.norm(points[iris + 1 : iris + 5, :2] - points[iris, :2], axis=1).mean()) * zoom
    rows, columns = np.indices(grey.shape)
    from_centre = np.hypot(columns - centre[0], rows - centre[1])
    # the rim itself, where lashes and the mesh's error lie, belongs to neither
    dark, white = grey[(open_eye > 0) & (from_centre < 0.8 * radius)], grey[(open_eye > 0) & (from_centre > 1.2 * radius)]
    if min(dark.size, white.size) < _MIN_PIXELS:
        return None
    return float((white.mean() - dark.mean()) / (grey[open_eye > 0].mean() + 8))  # 8: in the dark, noise is no contrast
