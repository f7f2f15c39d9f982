"""A face drawn from curves: its lids, lips and nose are where the curves are, whatever any network thinks.

Lengths are in face heights, hairline to chin; the origin is between the eyes, x to the picture's right, y down.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from schemas.regions import Regions, pad_outlines

_SKIN, _LIP, _HAIR = (224, 178, 150), (176, 84, 84), (62, 42, 32)


@dataclass(frozen=True)
class DrawnFace:
    """What the face does. `lids` 1 open, 0 shut; `gap` of the lips in mouth widths; the turn is in the picture's plane."""

    lids: tuple[float, float] = (1.0, 1.0)  # the person's left, right
    gap: float = 0.0
    turn_deg: float = 0.0
    height_px: float = 130.0
    middle_px: tuple[float, float] = (128.0, 112.0)

    def place(self, at: np.ndarray) -> np.ndarray:
        """Points (N, 2) of the drawing as px of the picture."""
        c, s = np.cos(np.radians(self.turn_deg)), np.sin(np.radians(self.turn_deg))
        return at @ np.array([[c, s], [-s, c]]) * self.height_px + np.array(self.middle_px)

    def regions(self) -> Regions:
        """The known outlines, one frame."""
        eyes = [self.place(_eye(side, opening)) for side, opening in zip((1, -1), self.lids, strict=True)]
        return Regions(pad_outlines([*eyes, self.place(_nose()), self.place(_lips(self.gap)[0])])[None], np.ones((1, 4), bool))


def _arc(start: np.ndarray, through: np.ndarray, end: np.ndarray, n: int = 13) -> np.ndarray:
    """A parabola through three points, the second half-way."""
    t = np.linspace(0, 1, n)[:, None]
    control = 2 * through - (start + end) / 2
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end


def _eye(side: int, opening: float) -> np.ndarray:
    inner, outer = np.array([side * 0.085, 0.012]), np.array([side * 0.235, 0.0])
    middle = (inner + outer) / 2 + [0, 0.018]
    lower, upper = middle + np.array([0, 0.022]), middle + np.array([0, 0.022 - 0.068 * opening])
    return np.concatenate([_arc(outer, lower, inner), _arc(inner, upper, outer)[1:-1]])


def _lips(gap: float) -> tuple[np.ndarray, np.ndarray]:
    """Outer outline, and the opening between the lips."""
    half, y, drop = 0.15 * (1 - 0.15 * gap), 0.415, 0.3 * gap
    left, right = np.array([-half, y + 0.35 * drop]), np.array([half, y + 0.35 * drop])
    low = _arc(right, np.array([0, y + 0.062 + drop]), left, 17)
    bow = np.array([[-0.5 * half, y - 0.024], [-0.2 * half, y - 0.04], [0, y - 0.033], [0.2 * half, y - 0.04], [0.5 * half, y - 0.024]])
    inner = np.concatenate(
        [
            _arc(left * 0.92 + [0, 0.03], np.array([0, y]), right * 0.92 + [0, 0.03]),
            _arc(right * 0.92 + [0, 0.03], np.array([0, y + 0.004 + drop]), left * 0.92 + [0, 0.03]),
        ]
    )
    return np.concatenate([left[None], bow, low[:-1]]), inner


def _nose() -> np.ndarray:
    half = np.array([[0.0, -0.01], [0.05, 0.05], [0.06, 0.13], [0.1, 0.2], [0.112, 0.25], [0.09, 0.285], [0.045, 0.295], [0.0, 0.305]])
    return np.concatenate([half, half[-2:0:-1] * [-1, 1]])


def draw(face: DrawnFace, size_px: int = 256, seed: int = 0) -> np.ndarray:
    """uint8 RGB (size_px, size_px, 3)."""
    picture = np.full((size_px, size_px, 3), (120, 134, 146), np.float32)
    yx = np.mgrid[:size_px, :size_px]
    u, v = np.moveaxis(_to_face(face, np.stack([yx[1], yx[0]], -1)).astype(np.float32), -1, 0)

    def area(polygon: np.ndarray, soft: float = 0.004) -> np.ndarray:
        mask = np.zeros((size_px, size_px), np.float32)
        cv2.fillPoly(mask, [np.rint(face.place(polygon) * 16).astype(np.int32)], 1.0, cv2.LINE_AA, 4)
        return cv2.GaussianBlur(mask, (0, 0), max(0.3, soft * face.height_px))

    def blob(x: float, y: float, sx: float, sy: float) -> np.ndarray:
        return np.exp(-0.5 * (((u - x) / sx) ** 2 + ((v - y) / sy) ** 2)).astype(np.float32)

    def ellipse(x: float, y: float, rx: float, ry: float) -> np.ndarray:
        t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], 1)

    def paint(colour: tuple[float, ...], alpha: np.ndarray) -> None:
        picture[:] += (np.array(colour, np.float32) - picture) * alpha[..., None]

    shade = (1.04 - 0.75 * (u**2) - 0.12 * np.clip(v - 0.1, 0, 1)).astype(np.float32)[..., None]
    skin = np.array(_SKIN, np.float32) * np.clip(shade, 0.5, 1.1)
    paint(_HAIR, area(ellipse(0, -0.02, 0.45, 0.62), 0.01))
    neck = area(np.array([[-0.2, 0.3], [0.2, 0.3], [0.24, 1.2], [-0.24, 1.2]]), 0.01)
    picture += (0.78 * skin - picture) * neck[..., None]
    chin = 0.62 + 0.2 * face.gap * 0.3
    oval = np.array([[0.0, -0.4], [0.2, -0.36], [0.33, -0.2], [0.365, 0.02], [0.34, 0.25], [0.26, 0.45], [0.13, chin - 0.03], [0, chin]])
    head = area(np.concatenate([oval, oval[-2:0:-1] * [-1, 1]]), 0.015)
    picture += (skin - picture) * head[..., None]
    for s in (1, -1):
        paint((206, 140, 122), 0.35 * blob(s * 0.2, 0.24, 0.07, 0.06))
        brow = np.concatenate(
            [
                _arc(np.array([s * 0.06, -0.085]), np.array([s * 0.16, -0.125]), np.array([s * 0.26, -0.085])),
                _arc(np.array([s * 0.26, -0.085]), np.array([s * 0.16, -0.098]), np.array([s * 0.06, -0.06])),
            ]
        )
        paint(_HAIR, 0.85 * area(brow, 0.006))
        paint((150, 104, 88), 0.45 * blob(s * 0.16, -0.045, 0.08, 0.016))  # the fold
        paint((150, 104, 88), 0.35 * blob(s * 0.16, 0.075, 0.07, 0.018))
        paint((150, 104, 88), 0.4 * blob(s * 0.062, 0.1, 0.012, 0.09))  # beside the nose
        paint((140, 92, 78), 0.6 * blob(s * 0.112, 0.25, 0.008, 0.03))
        paint((60, 30, 28), 0.95 * area(ellipse(s * 0.045, 0.285, 0.024, 0.01), 0.004))
    paint((250, 216, 194), 0.5 * blob(0, 0.13, 0.02, 0.12))
    paint((250, 216, 194), 0.6 * blob(0, 0.24, 0.035, 0.025))
    paint((140, 92, 78), 0.5 * blob(0, 0.305, 0.06, 0.008))
    for s, opening in zip((1, -1), face.lids, strict=True):
        ball = area(_eye(s, opening), 0.002)
        eye = np.full(picture.shape, (238, 234, 230), np.float32)
        iris, pupil, light = (
            area(ellipse(s * 0.16 + dx, 0.012 + dy, r, r), 0.002) for dx, dy, r in ((0, 0, 0.036), (0, 0, 0.016), (0.012, -0.012, 0.006))
        )
        for colour, alpha in (((88, 64, 44), iris), ((16, 12, 12), pupil), ((250, 250, 250), light)):
            eye += (np.array(colour, np.float32) - eye) * alpha[..., None]
        picture += (eye - picture) * ball[..., None]
        lid = _eye(s, opening)[12:]
        paint((48, 30, 26), 0.9 * area(np.concatenate([lid, lid[::-1] - np.array([0, 0.01])]), 0.003))
    outer, inner = _lips(face.gap)
    paint(_LIP, 0.9 * area(outer, 0.004))
    if face.gap > 0.02:
        paint((50, 18, 20), area(inner, 0.003))
    else:
        seam = _arc(np.array([-0.135, 0.42]), np.array([0, 0.42]), np.array([0.135, 0.42]))
        paint((90, 34, 36), area(np.concatenate([seam, seam[::-1] + np.array([0, 0.01])]), 0.004))
    return np.clip(picture + np.random.default_rng(seed).normal(0, 1.5, picture.shape), 0, 255).astype(np.uint8)


def _to_face(face: DrawnFace, at_px: np.ndarray) -> np.ndarray:
    at = at_px - np.array(face.middle_px)
    c, s = np.cos(np.radians(face.turn_deg)), np.sin(np.radians(face.turn_deg))
    return at @ np.array([[c, -s], [s, c]]) / face.height_px
