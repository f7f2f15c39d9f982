"""Likeness: whether the driving video shows B, and not A, by an identity network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import numpy as np

from stages.facealign import align, five_points

LOOKS = 5  # frames of a pair that are looked at, spread over it

Embed = Callable[[np.ndarray], np.ndarray]
"""An aligned face, uint8 RGB (112, 112, 3), to a vector of unit length; stages.facenet.FaceNet."""


class Looks:
    """Keeps some frames of a video, by their numbers, while all pass by."""

    def __init__(self, moments: Collection[int]) -> None:
        self._moments, self._pictures = frozenset(moments), dict[int, np.ndarray]()

    def watch(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The frames, uint8 RGB (H, W, 3), as they are."""
        for k, frame in enumerate(frames):
            if k in self._moments:
                self._pictures[k] = frame
            yield frame

    def embedded(self, embed: Embed, points: np.ndarray) -> dict[int, np.ndarray]:
        """Embeddings by frame, from mesh points (T, 478, 3) of all frames; none of a frame whose points are NaN."""
        return {k: embedding(embed, p, points[k]) for k, p in self._pictures.items() if np.isfinite(points[k]).all()}


def embedding(embed: Embed, picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Of the face with mesh points (478, >=2) in px of a picture uint8 RGB (H, W, 3); NaN where the network says nothing."""
    return embed(align(picture, five_points(points)))


def csim(driving: Mapping[int, np.ndarray], performer: Mapping[int, np.ndarray], appearance: np.ndarray) -> dict[str, float]:
    """Cosines of embeddings (D,), by frame, of the driving video with B's portrait and with A's own frame; means over the frames.

    csim_appearance, csim_performer, and csim_margin, the first less the second. Nothing where the network has nothing to say of either.
    """
    rows = np.array([(driving[k] @ appearance, driving[k] @ performer[k]) for k in driving if k in performer], np.float64).reshape(-1, 2)
    rows = rows[np.isfinite(rows).all(1)]
    if not len(rows):
        return {}
    b, a = rows.mean(0).tolist()
    return {"csim_appearance": b, "csim_performer": a, "csim_margin": b - a}
