"""Survey: look for all faces, and for hands before them, in whole pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from stages.head import LEFT_EYE, LIPS_OUTER, RIGHT_EYE, face_boxes, face_size
from stages.mesh import FaceDetector, FaceMesh, HandDetector
from stages.patch import face_patch, looks_the_same
from stages.tracks import Face

Detect = Callable[[np.ndarray], np.ndarray]

SAME_FACE = 0.2  # overlap of two boxes that are one face's, by whatever means it was found
_MESH_VIEWS = (2.0, 1.5, 1.2)  # box sizes around a face that the mesh sees; it takes one face, and in a wide view that may be another
_HAND_VIEW = 2.4  # face sizes around a face in which a hand is looked for
_HAND_VIEW_PX = 256
_FLESH = 0.12  # hand sizes by which a hand is wider than the joints within it
_MAX_WITHIN_FACE = 0.8  # of a hand's joints: more, and it is the face that was taken for a hand
_MIN_HAND_FACE_PX = 48  # hands before smaller faces are not looked for
_MOVED_LITTLE = 0.5  # overlap of a detection box with an earlier one of, perhaps, the same face
_LOOKS_KEPT = 8  # of earlier looks: who talks comes back to them
_STILL_CLEAR = 0.85  # so much alike must eyes and mouth be to a look at which no hand was before them; behind hands they are below 0.7


@dataclass(frozen=True)
class _Clear:
    """A face before which hands were looked for and none was found: where it was detected, its mesh, and how it looked."""

    found: np.ndarray
    mesh: np.ndarray
    patch: np.ndarray
    sure: bool = False  # whether hands were looked for twice: one that is missed once, blurred by its motion, is seen when it rests

    def moved_to(self, found: np.ndarray) -> np.ndarray:
        """The mesh as it would be if the face had only moved, and come nearer, with its detection box (4,)."""
        old, new = (np.array([*(b[:2] + b[2:]) / 2, b[2] - b[0]]) for b in (self.found, found))
        points = self.mesh.astype(np.float64) * (new[2] / old[2])
        points[:, :2] += new[:2] - old[:2] * (new[2] / old[2])
        return points.astype(np.float32)


_Sight = tuple[np.ndarray, _Clear | None, _Clear]  # mesh box (4,) in px, the earlier look that it is like, what is seen now


class Survey:
    """Looks at the pictures of a shot.

    Faces are detected in each picture by itself. Where one is found whose eyes and mouth, seen through the mesh of an earlier look that
    moved along with it, look the same as then, that mesh is its mesh, and as little stands before it as then. To all others the mesh is
    fitted, and hands, which take longest, are looked for before them.

    Args:
        detect: boxes (N, 4) in px of all faces in a picture, uint8 RGB (H, W, 3), largest first; by default MediaPipe's.
    """

    def __init__(self, detect: Detect | None = None) -> None:
        self._detect = detect or FaceDetector()
        self._mesh = FaceMesh(static=True)
        self._hands = HandDetector()

    def __call__(self, pictures: Iterable[tuple[int, np.ndarray]]) -> Iterator[tuple[int, list[Face]]]:
        """Number and faces of each picture, uint8 RGB (H, W, 3), of one shot."""
        clear: list[_Clear] = []
        for k, picture in pictures:
            faces, seen, again = self._look(picture, clear)
            clear = [*seen, *(c for c in clear if not any(c is a for a in again))][: max(_LOOKS_KEPT, len(seen))]
            yield k, faces

    def look(self, picture: np.ndarray) -> list[Face]:
        """All faces that the mesh fits, largest first, in a picture by itself."""
        return self._look(picture, ())[0]

    def _look(self, picture: np.ndarray, clear: Sequence[_Clear]) -> tuple[list[Face], list[_Clear], list[_Clear]]:
        """Faces, looks to be remembered, and those of `clear` that they stand for."""
        sights = [s for found in self._detect(picture) if (s := self._sight(picture, found, clear))]
        faces: list[Face] = []
        seen: list[_Clear] = []
        again: list[_Clear] = []
        for box, as_before, now in sorted(sights, key=lambda s: -float(face_size(s[0][None])[0])):
            if any(overlap(box, face.box) >= 0.5 for face in faces):  # two detections of one face end in one mesh
                continue
            large = face_size(box[None])[0] >= _MIN_HAND_FACE_PX
            hidden = self._hidden(picture, now.mesh) if large and not (as_before and as_before.sure) else 0.0
            faces.append(Face(box, now.patch, hidden))
            if large and not hidden:
                # not how it looks now: by small steps anything could come unseen
                seen.append(replace(as_before, sure=True) if as_before else now)
            if large and as_before:  # also one that hands have come before: it is not believed again
                again.append(as_before)
        return faces, seen, again

    def _sight(self, picture: np.ndarray, found: np.ndarray, clear: Sequence[_Clear]) -> _Sight | None:
        """What is seen at a detection box (4,): None where no mesh fits."""
        near = [c for c in clear if overlap(c.found, found) >= _MOVED_LITTLE]
        for before in near:
            moved = before.moved_to(found)
            patch = face_patch(picture, moved)
            if looks_the_same(patch, before.patch, _STILL_CLEAR):
                return face_boxes(moved[None])[0].astype(np.float64), before, _Clear(found, moved, patch)
        fitted = self._mesh_near(picture, found)
        if fitted is None:
            return None
        patch = face_patch(picture, fitted)
        as_before = next((c for c in near if looks_the_same(patch, c.patch, _STILL_CLEAR)), None)
        return face_boxes(fitted[None])[0].astype(np.float64), as_before, _Clear(found, fitted, patch)

    def _mesh_near(self, picture: np.ndarray, box: np.ndarray) -> np.ndarray | None:
        """Mesh (478, 3) in px of the picture, of the face in a detection box (4,), and of no other that stands beside it."""
        for scale in _MESH_VIEWS:
            x0, y0, x1, y1 = _around(box, scale, picture)
            if min(x1 - x0, y1 - y0) < 16:
                return None
            points = self._mesh(picture[y0:y1, x0:x1])
            if points is None:
                continue
            points = points + np.array([x0, y0, 0], np.float32)
            if overlap(face_boxes(points[None])[0].astype(np.float64), box) >= SAME_FACE:
                return points
        return None

    def _hidden(self, picture: np.ndarray, mesh: np.ndarray) -> float:
        """Share (0..1) of the mouth, or of an eye if that is more, that hands cover."""
        x0, y0, x1, y1 = _around(face_boxes(mesh[None])[0], _HAND_VIEW, picture)
        part = picture[y0:y1, x0:x1]
        zoom = min(1.0, _HAND_VIEW_PX / max(part.shape[:2]))
        if zoom < 1:
            part = cv2.resize(part, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
        return covered([hand / zoom + [x0, y0] for hand in self._hands(part)], mesh)


def covered(hands: Iterable[np.ndarray], mesh: np.ndarray) -> float:
    """Share (0..1) of the points of the mouth, or of an eye if that is more, that lie under hands, each its joints (N, 2)."""
    face = cv2.convexHull(mesh[:, :2].astype(np.float32))
    hands = [hand for hand in hands if (_depth(hand, face) > 0).mean() <= _MAX_WITHIN_FACE]
    most = 0.0
    for region in (LIPS_OUTER, LEFT_EYE, RIGHT_EYE):
        points = mesh[list(region), :2]
        under = np.zeros(len(points), bool)
        for hand in hands:
            under |= _depth(points, cv2.convexHull(hand.astype(np.float32))) >= -_FLESH * np.ptp(hand, axis=0).max()
        most = max(most, float(under.mean()))
    return most


def _depth(points: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """Distance (N,) in px of points (N, 2) from an outline, positive within."""
    return np.array([cv2.pointPolygonTest(outline, (float(x), float(y)), True) for x, y in points])


def other_faces(looks: Iterable[tuple[np.ndarray, np.ndarray]], crop: tuple[int, int, int]) -> float:
    """Share of looks with another face, at least half as large as the main one, whose middle lies in the crop (x0, y0, side).

    Each look is the main face's box (4,) and those of all others (N, 4).
    """
    x0, y0, side = crop
    hits = []
    for box, others in looks:
        middle = (others[:, :2] + others[:, 2:]) / 2
        inside = ((middle >= [x0, y0]) & (middle <= [x0 + side, y0 + side])).all(1)
        hits.append(bool((inside & (face_size(others) >= 0.5 * face_size(box[None]))).any()))
    return float(np.mean(hits)) if hits else 0.0


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (4,)."""
    wh = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - np.prod(wh)
    return float(np.prod(wh) / union) if union > 0 else 0.0


def _around(box: np.ndarray, scale: float, picture: np.ndarray) -> tuple[int, int, int, int]:
    """A square of `scale` box sizes around a box (4,), within the picture."""
    height, width = picture.shape[:2]
    side = scale * max(box[2] - box[0], box[3] - box[1])
    cx, cy = (box[:2] + box[2:]) / 2
    x0, x1 = int(max(cx - side / 2, 0)), int(min(cx + side / 2, width))
    return x0, int(max(cy - side / 2, 0)), x1, int(min(cy + side / 2, height))
