"""The demo's canvas: one square on which all faces have one size, and the strokes that paint on it.

Places are told in head units: u to the picture's right, v down, the origin between forehead and chin, 1 = the height of the face.
So a stroke reads the same whatever the photograph's size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from stages.head import LIPS_INNER
from stages.mesh import FaceMesh

CANVAS_PX = 1024
FACE_PX = 256  # forehead to chin on the canvas


@dataclass(frozen=True)
class Brush:
    """A soft push in head units: what lies around (u, v) moves by (du, dv) and grows about (u, v) by (grow_u, grow_v).

    `su`, `sv` are the Gaussian's radii. A brush off the middle line also acts at (-u, v), mirrored.
    """

    u: float
    v: float
    su: float
    sv: float
    du: float = 0.0
    dv: float = 0.0
    grow_u: float = 1.0
    grow_v: float = 1.0


@cache
def grid() -> tuple[np.ndarray, np.ndarray]:
    """u, v of every pixel of the canvas, float32 (CANVAS_PX, CANVAS_PX) each."""
    axis = ((np.arange(CANVAS_PX) - CANVAS_PX / 2) / FACE_PX).astype(np.float32)
    u, v = np.meshgrid(axis, axis)
    return u, v


def px(uv: np.ndarray) -> np.ndarray:
    return np.asarray(uv) * FACE_PX + CANVAS_PX / 2


def head_units(points: np.ndarray) -> np.ndarray:
    return (points[..., :2] - CANVAS_PX / 2) / FACE_PX


def detect(image: np.ndarray) -> np.ndarray:
    """Face mesh (478, 3) in px of the canvas, looked for around the middle, where it is large."""
    low, high = CANVAS_PX // 4, 3 * CANVAS_PX // 4
    points = FaceMesh(static=True)(np.ascontiguousarray(image[low:high, low:high]))
    if points is None:
        raise ValueError("no face on the demo's canvas")
    return points + np.array([low, low, 0], np.float32)


def on_canvas(photo: np.ndarray) -> np.ndarray:
    """The photograph turned, scaled and moved so that forehead and chin lie on the canvas's middle line, FACE_PX apart."""
    found = FaceMesh(static=True)(photo)
    assert found is not None
    forehead, chin = found[10, :2].astype(np.float64), found[152, :2].astype(np.float64)
    down = chin - forehead
    k = FACE_PX / (down @ down)
    turn = k * np.array([[down[1], -down[0]], [down[0], down[1]]])
    shift = CANVAS_PX / 2 - turn @ (forehead + chin) / 2
    matrix = np.concatenate([turn, shift[:, None]], axis=1)
    return cv2.warpAffine(photo, matrix, (CANVAS_PX, CANVAS_PX), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


@cache
def photograph(which: str) -> np.ndarray:
    """Photograph `collins` or `hopper` on the canvas, uint8 RGB."""
    from stages.stills import read_image

    if which == "collins":
        import skimage.data

        return on_canvas(skimage.data.astronaut())
    import matplotlib

    return on_canvas(read_image(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"))


@cache
def matte(which: str) -> np.ndarray:
    """How much of each pixel belongs to the person, float32 (CANVAS_PX, CANVAS_PX) in 0..1; 0 outside the middle."""
    from mediapipe.python.solutions.selfie_segmentation import SelfieSegmentation

    edge = 160
    crop = np.ascontiguousarray(photograph(which)[edge:-edge, edge:-edge])
    matte = np.zeros((CANVAS_PX, CANVAS_PX), np.float32)
    with SelfieSegmentation(model_selection=0) as net:
        matte[edge:-edge, edge:-edge] = net.process(crop).segmentation_mask
    matte = np.clip((matte - 0.4) / 0.5, 0, 1)  # a little tighter than the net's: no halo of the old background
    if which == "hopper":  # the flag's stars and cord beside the cap
        u, v = grid()
        matte = soft(cv2.erode(matte, np.ones((5, 5), np.uint8)), 1.2)
        matte *= ramp(np.where(v < -0.72, np.hypot((u - 0.03) / 0.46, (v + 0.6) / 0.5), 0.0), 1.02, 0.98)
    return matte


def soft(mask: np.ndarray, sigma_px: float) -> np.ndarray:
    return cv2.GaussianBlur(mask.astype(np.float32), (0, 0), sigma_px)


def polygon(uv: np.ndarray, sigma_px: float = 1.5) -> np.ndarray:
    """Soft filled polygon float32 in 0..1, of corners (N, 2) in head units."""
    mask = np.zeros((CANVAS_PX, CANVAS_PX), np.float32)
    cv2.fillPoly(mask, [np.round(px(uv) * 16).astype(np.int32)], 1.0, lineType=cv2.LINE_AA, shift=4)
    return soft(mask, sigma_px)


def over(image: np.ndarray, colour: np.ndarray | tuple[int, int, int], alpha: np.ndarray) -> np.ndarray:
    """`colour` (3,) or (H, W, 3) laid over a float32 picture with opacity alpha (H, W)."""
    return image + (np.asarray(colour, np.float32) - image) * alpha[..., None]


def ramp(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between; falls instead when high < low."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def noise(seed: int, sigma_u: float, sigma_v: float) -> np.ndarray:
    """Smooth noise of unit variance, float32 (CANVAS_PX, CANVAS_PX)."""
    white = np.random.default_rng(seed).standard_normal((CANVAS_PX, CANVAS_PX), np.float32)
    grain = cv2.GaussianBlur(white, (0, 0), sigmaX=max(sigma_u, 0.3), sigmaY=max(sigma_v, 0.3))
    return grain / grain.std()


def push(image: np.ndarray, brushes: tuple[Brush, ...]) -> np.ndarray:
    u, v = grid()
    source_u, source_v = u.copy(), v.copy()
    for b in brushes:
        for side in (1, -1) if b.u else (1,):
            weight = np.exp(-0.5 * (((u - side * b.u) / b.su) ** 2 + ((v - b.v) / b.sv) ** 2))
            source_u -= weight * (side * b.du + (u - side * b.u) * (1 - 1 / b.grow_u))
            source_v -= weight * (b.dv + (v - b.v) * (1 - 1 / b.grow_v))
    half = CANVAS_PX / 2
    return cv2.remap(image, source_u * FACE_PX + half, source_v * FACE_PX + half, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def close_mouth(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The lips brought together over the teeth: above the line of the mouth all moves down by half the gap, below it up."""
    u, v = grid()
    inner = head_units(points)[list(LIPS_INNER)]
    lower, upper = inner[:11], inner[[0, *range(19, 9, -1)]]
    at = np.linspace(lower[:, 0].min(), lower[:, 0].max(), 64)
    low, high = np.interp(at, lower[:, 0], lower[:, 1]), np.interp(at, upper[:, 0], upper[:, 1])
    half_gap = np.interp(u[0], at, np.clip(low - high, 0, None) / 2 + 0.006, left=0, right=0).astype(np.float32)
    line = np.interp(u[0], at, 0.45 * low + 0.55 * high).astype(np.float32)
    half_gap, line = cv2.GaussianBlur(half_gap[None], (9, 1), 3)[0], cv2.GaussianBlur(line[None], (31, 1), 8)[0]
    away = v - line[None]
    push = np.sign(away) * half_gap[None] * np.exp(-0.5 * (away / 0.11) ** 2)
    half = CANVAS_PX / 2
    closed = cv2.remap(image, u * FACE_PX + half, (v + push) * FACE_PX + half, cv2.INTER_CUBIC)
    seam = np.exp(-0.5 * (away / 0.009) ** 2) * np.clip(half_gap[None] / 0.01, 0, 1)
    return np.clip(over(closed.astype(np.float32), (70, 30, 30), 0.6 * soft(seam, 1.0)), 0, 255).astype(np.uint8)
