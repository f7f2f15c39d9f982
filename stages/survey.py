"""Survey: look for all faces at every n-th frame of a shot, and tell who is there when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stages.head import face_boxes, face_size
from stages.mesh import FaceDetector, FaceMesh

Track = list[tuple[int, np.ndarray]]  # output frame and box (4,), in order of time


@dataclass
class Seen:
    """One face's track through a shot: at output frame `frames[i]` its mesh box `boxes[i]`, and the boxes of all other faces.

    `track` counts the tracks of a shot in order of time.
    """

    track: int
    frames: list[int]
    boxes: list[np.ndarray]
    others: list[np.ndarray]
    picture_wh: tuple[int, int]

    def other_faces(self, crop: tuple[int, int, int]) -> float:
        """Share of looks with another face, at least half as large as the main one, whose middle lies in the crop."""
        x0, y0, side = crop
        hits = 0
        for box, others in zip(self.boxes, self.others, strict=True):
            middle = (others[:, :2] + others[:, 2:]) / 2
            inside = ((middle >= [x0, y0]) & (middle <= [x0 + side, y0 + side])).all(1)
            hits += bool((inside & (face_size(others) >= 0.5 * face_size(box[None]))).any())
        return hits / len(self.boxes)


class Survey:
    """Looks for all faces at every n-th frame and follows the one that is largest for longest, and others while it is away."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._detector = FaceDetector()
        self._mesh = FaceMesh(static=True)

    def __call__(self, pictures: Iterator[tuple[int, np.ndarray]]) -> list[Seen]:
        """Tracks that do not overlap in time, in its order.

        `pictures`: number and uint8 RGB (H, W, 3) of every n-th output frame; the mesh box tells the face's size, as everywhere.
        A face that is gone for two looks in a row, or another one in its place, is another track.
        """
        tracks: list[Track] = []
        all_boxes: dict[int, np.ndarray] = {}
        wh = (0, 0)
        for k, picture in pictures:
            wh = picture.shape[1::-1]
            all_boxes[k] = self.look(picture)
            for box in all_boxes[k]:
                near = [t for t in tracks if k - t[-1][0] <= 2 * self._every and t[-1][0] < k and overlap(t[-1][1], box) > 0.3]
                if near:
                    max(near, key=lambda t: overlap(t[-1][1], box)).append((k, box))
                else:
                    tracks.append([(k, box)])
        seen = []
        for number, track in enumerate(one_at_a_time(tracks)):
            others = [all_boxes[k][(all_boxes[k] != box).any(1)] for k, box in track]
            seen.append(Seen(number, [k for k, _ in track], [b for _, b in track], others, wh))
        return seen

    def look(self, picture: np.ndarray) -> np.ndarray:
        """Mesh boxes float64 (N, 4) of all faces that the mesh fits, largest first."""
        boxes = []
        for found in self._detector(picture):
            points = self.mesh_near(picture, found)
            if points is not None:
                boxes.append(face_boxes(points[None])[0].astype(np.float64))
        kept: list[np.ndarray] = []
        for box in sorted(boxes, key=lambda b: -float(face_size(b[None])[0])):
            if all(overlap(box, b) < 0.5 for b in kept):  # two detections of one face end in one mesh
                kept.append(box)
        return np.array(kept).reshape(-1, 4)

    def mesh_near(self, picture: np.ndarray, box: np.ndarray) -> np.ndarray | None:
        """Mesh (478, 3) in px of the picture, of the face in a detection box (4,)."""
        height, width = picture.shape[:2]
        side = 2.0 * max(box[2] - box[0], box[3] - box[1])
        cx, cy = (box[:2] + box[2:]) / 2
        x0, x1 = int(max(cx - side / 2, 0)), int(min(cx + side / 2, width))
        y0, y1 = int(max(cy - side / 2, 0)), int(min(cy + side / 2, height))
        if min(x1 - x0, y1 - y0) < 16:
            return None
        points = self._mesh(picture[y0:y1, x0:x1])
        return None if points is None else points + np.array([x0, y0, 0], np.float32)


def one_at_a_time(tracks: list[Track]) -> list[Track]:
    """The tracks largest for longest of those that overlap in time, in order of time."""
    chosen: list[Track] = []
    for track in sorted(tracks, key=lambda t: -sum(float(face_size(box[None])[0]) for _, box in t)):
        if all(track[-1][0] < other[0][0] or other[-1][0] < track[0][0] for other in chosen):
            chosen.append(track)
    return sorted(chosen, key=lambda t: t[0][0])


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (4,)."""
    wh = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - np.prod(wh)
    return float(np.prod(wh) / union) if union > 0 else 0.0
