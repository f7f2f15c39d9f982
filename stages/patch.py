"""Patches: a face brought to one place and size, so that two looks at it can be compared without knowing whose it is."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from stages.facealign import similarity
from stages.head import canonical, face_boxes

PATCH_PX = 32
_ANCHORS = np.array([33, 133, 362, 263, 168, 1, 61, 291, 199, 234, 454])  # corners of eyes and mouth, nose, chin, temples
_FACE_SHARE = 0.95  # of the patch's side that the face's height takes
_PARTS = (np.s_[8:13, 6:15], np.s_[8:13, 18:27], np.s_[19:27, 9:24])  # of a patch: each eye, and the mouth, with little around them
_SMOOTH_PX = 6.0  # light and shade that vary more slowly than this are taken out: a lamp that is switched on is no other face


def face_patch(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The face, upright and of one size, without slow shading: float32 (PATCH_PX, PATCH_PX), zero mean and unit norm.

    `picture` is uint8 RGB (H, W, 3) or luma (H, W), `points` a mesh (478, >=2) in its px.
    """
    matrix = similarity(points[_ANCHORS, :2], _anchors())
    height, width = picture.shape[:2]
    left, top, right, bottom = face_boxes(points[None])[0].tolist()
    x0, y0 = min(max(int(left) - 16, 0), width - 1), min(max(int(top) - 16, 0), height - 1)
    x1, y1 = max(min(int(right) + 17, width), x0 + 1), max(min(int(bottom) + 17, height), y0 + 1)
    shrink = round(1 / float(np.hypot(*matrix[:, 0])))
    part, step = picture[y0:y1, x0:x1], 2 if shrink >= 6 and min(x1 - x0, y1 - y0) > 1 else 1
    if step > 1:  # of a very large face every second pixel of every second row says enough
        part = part[: len(part) & ~1, : part.shape[1] & ~1]
        part = cv2.resize(part, (part.shape[1] // 2, len(part) // 2), interpolation=cv2.INTER_NEAREST)
    grey = cv2.cvtColor(part, cv2.COLOR_RGB2GRAY) if part.ndim == 3 else part
    cell = max(1, min(shrink // step, *grey.shape))
    if cell > 1:  # a large face would be sampled, not shrunk
        size = (grey.shape[1] // cell, grey.shape[0] // cell)
        grey = cv2.resize(grey[: size[1] * cell, : size[0] * cell], size, interpolation=cv2.INTER_AREA)
    middle = step * (cell - 1) / 2
    matrix[:, 2] += matrix[:, :2] @ [x0 + middle, y0 + middle]
    matrix[:, :2] *= step * cell
    patch = cv2.warpAffine(grey, matrix, (PATCH_PX, PATCH_PX), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    patch -= cv2.GaussianBlur(patch, (0, 0), _SMOOTH_PX)
    patch -= patch.mean()
    norm = float(np.linalg.norm(patch))
    return patch / norm if norm > 0 else patch


@cache
def _anchors() -> np.ndarray:
    """Where the anchors lie in a patch, (11, 2) in px."""
    return canonical()[_ANCHORS, :2].astype(np.float64) * PATCH_PX * _FACE_SHARE + PATCH_PX / 2


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two patches, -1..1. Of one face 40 ms apart it is rarely below 0.65, of two people's rarely above 0.6."""
    return float(np.vdot(a, b))


def looks_the_same(a: np.ndarray, b: np.ndarray, least: float) -> bool:
    """Whether two patches correlate by at least `least` at each eye and at the mouth: then nothing large came before one of them."""
    return all(_correlation(a[part], b[part]) >= least for part in _PARTS)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.vdot(a, b)) / size if size > 0 else 0.0
