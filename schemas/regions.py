"""Region masks: outlines of eyes, nose and mouth per frame, and the one function that turns them into pixels.

Pixel convention: the point (x, y) = (0, 0) is the centre of the top-left pixel, so a frame of side S spans -0.5 .. S - 0.5.
A pixel belongs to a region when its centre lies inside the outline, or the outline itself, a line one pixel thin between corners rounded
to whole pixels, runs through it (so a shut eye is a line and not nothing; half pixels round to the right and down), or when it lies within
`dilate_px` of such a pixel. A mirrored outline has the mirrored mask, but for pixels that the line touches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from schemas.arrays import decode_arrays, encode_arrays

REGIONS = ("left_eye", "right_eye", "nose", "mouth")  # left and right are the person's own
_FIXED_POINT_BITS = 4  # outlines are rasterised with 1/16 px precision


@dataclass(frozen=True)
class Regions:
    """Outlines of one clip.

    Attributes:
        outlines: float32 (T, 4, P, 2), x and y in px; shorter outlines are padded by repeating their last point.
        valid: bool (T, 4); an outline that cannot be seen is invalid, not guessed.
    """

    outlines: np.ndarray
    valid: np.ndarray

    def __post_init__(self) -> None:
        t = len(self.outlines)
        if self.outlines.ndim != 4 or self.outlines.shape[1] != len(REGIONS) or self.outlines.shape[3] != 2:
            raise ValueError(f"outlines must be (T, {len(REGIONS)}, P, 2), got {self.outlines.shape}")
        if self.valid.shape != (t, len(REGIONS)):
            raise ValueError(f"valid must be ({t}, {len(REGIONS)}), got {self.valid.shape}")

    def encode(self) -> bytes:
        return encode_arrays({"outlines": self.outlines.astype(np.float32), "valid": self.valid.astype(np.bool_)})

    @staticmethod
    def decode(data: bytes, *, what: str = "regions") -> Regions:
        raw = decode_arrays(data, what=what)
        try:
            return Regions(raw["outlines"], raw["valid"])
        except KeyError as e:
            raise ValueError(f"{what}: no region outlines: {e} is missing") from e


def pad_outlines(outlines: Sequence[np.ndarray]) -> np.ndarray:
    """Outlines of one frame, each (P_i, 2), as one float32 (4, max P, 2)."""
    longest = max(len(o) for o in outlines)
    return np.stack([np.concatenate([o, np.repeat(o[-1:], longest - len(o), 0)]) for o in outlines]).astype(np.float32)


def rasterise(regions: Regions, frame: int, size_px: int, *, dilate_px: float = 0.0) -> np.ndarray:
    """Masks of one frame, bool (4, size_px, size_px), in the order of REGIONS. Invalid regions are empty."""
    outlines, valid = regions.outlines[frame], regions.valid[frame]
    # drawn on a larger frame and cut: where cv2 clips an outline it sets pixels that the outline does not touch
    beyond = np.abs(outlines[valid] - (size_px - 1) / 2).max(initial=0) - (size_px - 1) / 2
    margin, scale = int(np.clip(np.ceil(beyond), 0, size_px)), 1 << _FIXED_POINT_BITS
    drawn = np.zeros((len(REGIONS), size_px + 2 * margin, size_px + 2 * margin), np.uint8)
    for mask, outline, seen in zip(drawn, outlines, valid, strict=True):
        if seen:
            cv2.fillPoly(mask, [np.rint((outline + margin) * scale).astype(np.int32)], 1, cv2.LINE_8, _FIXED_POINT_BITS)
    masks = drawn[:, margin : margin + size_px, margin : margin + size_px]
    if dilate_px > 0:
        radius = int(np.ceil(dilate_px))
        y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
        disc = (x**2 + y**2 <= dilate_px**2).astype(np.uint8)
        masks = np.stack([cv2.dilate(np.ascontiguousarray(m), disc) for m in masks])
    return np.asarray(masks, np.bool_)


def masked_driving(frame: np.ndarray, masks: np.ndarray, *, background: int = 0) -> np.ndarray:
    """The control picture of the paper (section 3.2): the driving frame, uint8 (H, W, 3), inside any region; `background` elsewhere."""
    return np.where(np.any(masks, axis=0)[..., None], frame, np.uint8(background))
