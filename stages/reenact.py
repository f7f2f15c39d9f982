"""Reenact: make the portrait of B perform the motion of clip A, frame for frame, in A's crop frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from schemas.motion import Motion


@dataclass(frozen=True)
class Portrait:
    """A still of B.

    Attributes:
        image: uint8 RGB (S, S, 3), cropped by the crop rule.
        points: float32 (478, 3) face mesh in px of `image`.
    """

    image: np.ndarray
    points: np.ndarray


@dataclass(frozen=True)
class ClipView:
    """What an engine may see of clip A.

    Attributes:
        frames: a fresh pass over the target's frames each time it is called, uint8 RGB (S, S, 3).
        points: float32 (T, 478, 3) face mesh of the target in px; every frame has a face.
        fps: frames per second.
        size_px: S.
    """

    frames: Callable[[], Iterator[np.ndarray]]
    points: np.ndarray
    fps: float
    size_px: int


class Reenactor(Protocol):
    """An engine: how B is made to move like A. One object per worker; loads what it needs once.

    Geometry, for every engine: motion is absolute, the driving frames live in A's crop frame, B's head centre follows A's and B's
    head is as large as A's, so that `stages.head.head_square` of the driving video equals the target's within 2 %.
    No pixel of A is in the output.
    """

    name: str
    version: int

    def appearance(self, portrait: Portrait) -> Any:
        """Once per identity. Raises schemas.outcomes.Rejection for a portrait it cannot use."""

    def motion(self, clip: ClipView) -> Motion:
        """Once per clip: a template that serves every appearance."""

    def render(self, appearance: Any, motion: Motion) -> Iterator[np.ndarray]:
        """T frames, uint8 RGB (size_px, size_px, 3), streamed: memory does not grow with T beyond the template."""
