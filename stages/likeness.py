"""Likeness: whether the driving video shows B, and not A: by the faces' pictures, and, with an identity network, by who is in them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from stages.facealign import align, five_points
from stages.patch import face_patch, likeness
from stages.truth import NOT_MEASURED

LOOKS = 5  # frames of a pair that are looked at, spread over it

Embed = Callable[[np.ndarray], np.ndarray]
"""An aligned face, uint8 RGB (112, 112, 3), to a vector of unit length; stages.facenet.FaceNet."""


@dataclass(frozen=True)
class Looks:
    """A face in one picture.

    Attributes:
        patch: stages.patch.face_patch.
        embedding: float32 (D,), of NaN where the network says nothing; None without a network.
    """

    patch: np.ndarray
    embedding: np.ndarray | None


def look(picture: np.ndarray, points: np.ndarray, embed: Embed | None) -> Looks:
    """Of the face with mesh points (478, >=2) in px of a picture uint8 RGB (H, W, 3)."""
    return Looks(face_patch(picture, points), embed(align(picture, five_points(points))) if embed else None)


class Moments:
    """Keeps some frames of a video, by their numbers, while all pass by."""

    def __init__(self, chosen: Collection[int]) -> None:
        self._chosen, self._pictures = frozenset(chosen), dict[int, np.ndarray]()

    def watch(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The frames, uint8 RGB (H, W, 3), as they are."""
        for k, frame in enumerate(frames):
            if k in self._chosen:
                self._pictures[k] = frame
            yield frame

    def looks(self, points: np.ndarray, embed: Embed | None) -> dict[int, Looks]:
        """By frame, from mesh points (T, 478, 3) of all frames; none of a frame whose points are NaN."""
        return {k: look(p, points[k], embed) for k, p in self._pictures.items() if np.isfinite(points[k]).all()}


def likeness_scores(driving: Mapping[int, Looks], performer: Mapping[int, Looks], appearance: Looks) -> dict[str, float]:
    """Means over the frames of the driving video that were looked at, each beside A's own frame.

    target_likeness: correlation of the faces' pictures; 1 where it is A's video.
    csim_appearance, csim_performer: cosine of embeddings with that of B's portrait, and with A's; csim_margin: the first less the second.
        Left out without an identity network, and where it has nothing to say.
    """
    both = [(seen, performer[k]) for k, seen in driving.items() if k in performer]
    alike = [likeness(b.patch, a.patch) for b, a in both]
    scores = {"target_likeness": float(np.mean(alike)) if alike else NOT_MEASURED}
    cosines = [
        (float(b.embedding @ appearance.embedding), float(b.embedding @ a.embedding))
        for b, a in both
        if b.embedding is not None and a.embedding is not None and appearance.embedding is not None
    ]
    known = np.array([c for c in cosines if np.isfinite(c).all()])
    if len(known):
        with_b, with_a = known.mean(0).tolist()
        scores |= {"csim_appearance": with_b, "csim_performer": with_a, "csim_margin": with_b - with_a}
    return scores
