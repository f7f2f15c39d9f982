"""Augmentation: what is drawn anew for a window, and done to all its pictures alike."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from model.order import draws

_LUMA = np.array([0.299, 0.587, 0.114])  # of R, G, B
_MIDDLE = 128.0  # grey that contrast leaves alone


@dataclass(frozen=True)
class Augmentation:
    """Of one window.

    Attributes:
        flip: mirror all pictures, the masked ones too: what was the left eye's region is the right eye's, and both are shown.
        scene, driving: float64 (3, 4), what RGB1 becomes RGB by, of source and target, and of the driving person; None: left alone.
        dilation: by which part of the frame's side region masks grow.
    """

    flip: bool
    scene: np.ndarray | None
    driving: np.ndarray | None
    dilation: float


def draw_augmentation(flip: float, colour: float, dilation: tuple[float, float], of: tuple[str | int, ...]) -> Augmentation:
    """Draws for what `of` names: `flip` is a chance, `colour` the most that a factor differs from 1, `dilation` the least and the most."""
    uniform = (draws(8, "augment", *of) >> np.uint64(11)) * 2.0**-53
    factors = 1 + colour * (2 * uniform[2:] - 1)
    least, most = dilation
    return Augmentation(
        flip=bool(uniform[0] < flip),
        scene=_colour(*factors[:3]) if colour else None,
        driving=_colour(*factors[3:]) if colour else None,
        dilation=float(least + uniform[1] * (most - least)),
    )


def _colour(brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """Saturation, then contrast about the middle grey, then brightness, as one matrix (3, 4)."""
    saturate = saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1))
    return brightness * np.concatenate([contrast * saturate, np.full((3, 1), _MIDDLE * (1 - contrast))], 1)


def recoloured(frames: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """uint8 RGB (..., S, S, 3), rounded and kept within 0..255."""
    if matrix is None or not frames.size:
        return frames
    return cv2.transform(frames.reshape(-1, frames.shape[-2], 3), matrix).reshape(frames.shape)


def mirrored(frames: np.ndarray, flip: bool) -> np.ndarray:
    return np.ascontiguousarray(frames[..., ::-1, :]) if flip else frames
