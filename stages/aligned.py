"""Aligned patches: eyes, nose and mouth of a frame laid over one still face by the mesh, so that what is left is looks, not geometry."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from schemas.facemesh import LEFT_EYE, LIPS_OUTER, NOSE, RIGHT_EYE
from schemas.regions import REGIONS
from stages.head import canonical
from stages.meshwarp_plan import set_mouth
from stages.meshwarp_render import face_triangles

_FACE_PX = 110.0  # height of the still face
_OPEN = 0.3  # its mouth's gap in mouth widths, so that there is room for what is between the lips
_LOOPS = dict(zip(REGIONS, (LEFT_EYE, RIGHT_EYE, NOSE, LIPS_OUTER), strict=True))


def aligned(frame: np.ndarray, points: np.ndarray) -> dict[str, np.ndarray]:
    """Luma of each region's pixels, float32 (N_region,) in 0..255, of a frame uint8 RGB (H, W, 3) with its mesh points (478, >=2)."""
    corners, shares, ends = _layout()
    where = np.einsum("nk,nkc->nc", shares, points[corners, :2]).astype(np.float32)
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
    pixels = cv2.remap(grey, where[None], None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]
    return dict(zip(REGIONS, np.split(pixels, ends[:-1]), strict=True))


@cache
def region_pixels(name: str) -> np.ndarray:
    """Where a region's pixels lie on the still face, float64 (N, 2), x y, row by row."""
    loop = _still_face()[list(_LOOPS[name])]
    (left, top), (right, bottom) = np.floor(loop.min(0)), np.ceil(loop.max(0))
    grid = np.stack(np.meshgrid(np.arange(left, right + 1), np.arange(top, bottom + 1)), -1).reshape(-1, 2)
    outline = loop.astype(np.float32)[:, None]
    return grid[[cv2.pointPolygonTest(outline, (float(x), float(y)), False) >= 0 for x, y in grid]]


@cache
def _still_face() -> np.ndarray:
    return set_mouth(canonical()[None], np.array([_OPEN]))[0, :, :2] * _FACE_PX


@cache
def _layout() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For all pixels of all regions in turn: the mesh's three points round each (N, 3), their shares (N, 3); where each region ends."""
    triangles = face_triangles()
    a, b, c = np.moveaxis(_still_face()[triangles], 1, 0)
    area = _cross(b - a, c - a)
    area = np.where(np.abs(area) < 1e-9, np.inf, area)
    at = np.concatenate([region_pixels(name) for name in REGIONS])[:, None]
    u, v = _cross(at - a, c - a) / area, _cross(b - a, at - a) / area
    best = np.minimum(np.minimum(u, v), 1 - u - v).argmax(1)  # the triangle that a pixel lies in, or nearest to
    n = np.arange(len(best))
    u, v = u[n, best], v[n, best]
    return triangles[best], np.stack([1 - u - v, u, v], 1), np.cumsum([len(region_pixels(name)) for name in REGIONS])


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
