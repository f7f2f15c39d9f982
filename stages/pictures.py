"""Pictures: frames of a driving video that are no whole picture: black, burnt out, torn, or with a hole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from stages.facealign import five_points, similarity
from stages.head import LIPS_INNER
from stages.reenact import Portrait

_BLACK = 24  # 0..255: a frame whose brightest hundredth is darker shows nothing
_NEAR_END = 3  # of 0 and of 255: what lies within is clipped
_CLIPPED_SHARE = 0.9  # of a frame's values; a white wall behind a dark coat comes to two thirds
_CELLS = 64  # along a frame's side, in which holes and tears are looked for
_HOLE = 5  # mean luma of a cell below which it is black
_NEAR = np.ones((13, 13), np.uint8)  # cells: what is black in the portrait may be black so far from where the head has taken it
_TEAR = 32  # levels by which a cell is darker or lighter than all that was around it one frame before
_REACH, _FARTHEST = 2, 6  # cells: how far things move in a frame beside a head that keeps still, and at most


class PictureFaults:
    """Looks at frames while they pass by, and keeps 4 KB of each."""

    def __init__(self) -> None:
        self._ends: list[tuple[bool, bool]] = []
        self._cells: list[np.ndarray] = []

    def watch(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The frames, uint8 RGB (H, W, 3), as they are."""
        for frame in frames:
            some = frame[::4, ::4]
            ends = (some < _NEAR_END) | (some > 255 - _NEAR_END)
            self._ends.append((bool(np.percentile(some, 99) < _BLACK), bool(ends.mean() > _CLIPPED_SHARE)))
            self._cells.append(_cells(frame))
            yield frame

    def measure(self, points: np.ndarray, size_px: int, portrait: Portrait) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Scores of the frames seen, and what they are made of, float32 (T,) by name.

        black_frames, clipped_frames: shares of the frames. Of the worst frame, hole is the share that is black, though the portrait is not
        where the head has taken it, and torn that which is unlike all that was near it one frame before; without the inside of the mouth.

        Args:
            points: the frames' mesh (T, 478, 3) in px; NaN in lost frames.
            size_px: side of the frames.
            portrait: B's.
        """
        light = cv2.erode((_cells(portrait.image) >= _HOLE).astype(np.uint8), _NEAR)
        own, scale = five_points(portrait.points) * (_CELLS / len(portrait.image)), _CELLS / size_px
        hole, torn = np.zeros(len(self._cells), np.float32), np.zeros(len(self._cells), np.float32)
        place, reach = np.eye(2, 3), _reach(points * scale)
        for k, (cells, found) in enumerate(zip(self._cells, points, strict=True)):
            seen = bool(np.isfinite(found).all())
            place = similarity(own, five_points(found) * scale) if seen else place
            lit = cv2.warpAffine(light, place, (_CELLS, _CELLS), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
            mouth = np.zeros((_CELLS, _CELLS), np.uint8)
            if seen:
                cv2.fillPoly(mouth, [np.rint(found[list(LIPS_INNER), :2] * scale).astype(np.int32)], 1)
            hole[k] = ((lit > mouth) & (cells < _HOLE)).mean()
            torn[k] = (_torn(self._cells[k - 1], cells, int(reach[k])) & (mouth == 0)).mean() if k else 0.0
        black, clipped = np.array(self._ends or [(False, False)], np.float64).mean(0).tolist()
        worst = {"hole": float(hole.max(initial=0)), "torn": float(torn.max(initial=0))}
        return {"black_frames": black, "clipped_frames": clipped, **worst}, {"hole": hole, "torn": torn}


def _cells(picture: np.ndarray) -> np.ndarray:
    """Mean luma of each cell, uint8 (_CELLS, _CELLS)."""
    return cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (_CELLS, _CELLS), interpolation=cv2.INTER_AREA)


def _reach(points: np.ndarray) -> np.ndarray:
    """How far things may have moved since the frame before, int (T,), beside a head with points (T, 478, 3); all in cells."""
    moved = np.median(np.linalg.norm(np.diff(points[..., :2], axis=0), axis=-1), axis=1)
    return np.clip(_REACH + np.ceil(np.nan_to_num(np.r_[0.0, moved])), _REACH, _FARTHEST).astype(int)


def _torn(before: np.ndarray, now: np.ndarray, reach: int) -> np.ndarray:
    """Which cells no motion explains, bool (_CELLS, _CELLS): unlike all cells within reach before."""
    near = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    darker = cv2.subtract(cv2.erode(before, near), now)
    lighter = cv2.subtract(now, cv2.dilate(before, near))
    return cv2.max(darker, lighter) > _TEAR
