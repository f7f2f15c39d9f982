"""Patches: a face brought to one place and size, so that two looks at it can be compared without knowing whose it is."""

from __future__ import annotations

import cv2
import numpy as np

from stages.facealign import similarity
from stages.head import canonical

PATCH_PX = 32
_ANCHORS = (33, 133, 362, 263, 168, 1, 61, 291, 199, 234, 454)  # corners of eyes and mouth, bridge and tip of the nose, chin, temples
_FACE_SHARE = 0.95  # of the patch's side that the face's height takes
_SMOOTH_PX = 6.0  # light and shade that vary more slowly than this are taken out: a lamp that is switched on is no other face


def face_patch(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The face, upright and of one size, without slow shading: float32 (PATCH_PX, PATCH_PX), zero mean and unit norm.

    `picture` is uint8 RGB (H, W, 3), `points` a mesh (478, >=2) in its px.
    """
    matrix = similarity(points[list(_ANCHORS), :2], canonical()[list(_ANCHORS), :2] * PATCH_PX * _FACE_SHARE + PATCH_PX / 2)
    low, high = points[:, :2].min(0) - 16, points[:, :2].max(0) + 16
    x0, y0 = np.clip(np.floor(low), 0, [picture.shape[1] - 1, picture.shape[0] - 1]).astype(int)
    x1, y1 = np.maximum(np.clip(np.ceil(high), 0, [picture.shape[1], picture.shape[0]]).astype(int), [x0 + 1, y0 + 1])
    grey = cv2.cvtColor(picture[y0:y1, x0:x1], cv2.COLOR_RGB2GRAY)
    shrink = round(1 / float(np.hypot(*matrix[:, 0])))
    if shrink > 1:  # a large face would be sampled, not shrunk
        grey = cv2.blur(grey, (shrink, shrink))
    matrix[:, 2] += matrix[:, :2] @ [x0, y0]
    patch = cv2.warpAffine(grey, matrix, (PATCH_PX, PATCH_PX), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    patch -= cv2.GaussianBlur(patch, (0, 0), _SMOOTH_PX)
    patch -= patch.mean()
    norm = float(np.linalg.norm(patch))
    return patch / norm if norm > 0 else patch


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two patches, -1..1. Of one face 40 ms apart it is rarely below 0.65, of two people's rarely above 0.6."""
    return float(np.vdot(a, b))
