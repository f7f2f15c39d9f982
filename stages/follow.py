"""Follow: encode the crop of one track while the mesh holds on to one and the same face; a doubt ends the piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from stages.colour import resize_square
from stages.encode import VideoWriter
from stages.gates import face_luma
from stages.head import face_boxes
from stages.iris import iris_contrast
from stages.measures import FacePicture, picture_scores
from stages.media import SourceFrame
from stages.mesh import FaceMesh
from stages.outputs import Outputs
from stages.patch import face_patch, likeness
from stages.survey import SAME_FACE, overlap
from stages.tracks import Face, Track

Crop = tuple[int, int, int]  # x0, y0, side in px of the upright source frame
_VIEW = 1.6  # face sizes around the track's face that are left to see, where the mesh must be told which face is meant
_MEASURE_EVERY = 10  # frames between two measurements of what changes slowly
_STEADY_FRAMES, _STEADY = 5, 0.94  # a face whose likeness to itself was on average at least this is not moving fast
_STEADY_MORE = 0.06  # and must stay so much more like itself: two alike people come to 0.62 at a cut, a fast turn begins over frames


@dataclass
class Piece:
    """One file of consecutive output frames with one face: mesh points in px of the crop, and what was measured frame by frame."""

    name: str
    first: int  # output frame
    points: list[np.ndarray] = field(default_factory=list)  # (478, 3) each
    luma: list[float] = field(default_factory=list)  # of the face, 0..255
    likeness: list[float] = field(default_factory=list)  # of the face to itself one frame before, 1 for the first
    pictures: list[FacePicture] = field(default_factory=list)  # of each `_MEASURE_EVERY`-th frame, as the next
    iris: list[float] = field(default_factory=list)


class Follower:
    """Follows tracks one after the other with one mesh network.

    A piece ends where the face is lost; where it moves by more than `max_jump` face sizes from one frame to the next; where it looks
    less like itself one frame before than `min_likeness`, or a little more where it was steady, as at a cut that nobody marked; and where
    it is another track's face.
    """

    def __init__(self, fps: int, size_px: int, max_jump: float, min_likeness: float) -> None:
        self._fps, self._size_px, self._max_jump, self._min_likeness = fps, size_px, max_jump, min_likeness
        self._mesh = FaceMesh()

    def __call__(
        self,
        frames: Iterator[tuple[int, Any]],
        offset: int,
        crop: Crop,
        track: Track,
        looks: Mapping[int, Sequence[Face]],
        names: Iterator[str],
        out: Outputs,
    ) -> Iterator[Piece]:
        """Pieces, each as soon as its file is whole. `frames` count from `offset` in the shot, `looks` are all faces of the shot at some
        of its frames; repeated frames are the same object."""
        self._mesh.reset()
        writer: VideoWriter | None = None
        piece, patch, before = Piece("", 0), np.zeros(0), None
        picture, planes = np.zeros(0), np.zeros(0)
        for k, frame in frames:
            if frame is not before:
                picture, planes = cut_frame(frame, crop, self._size_px)
            points = self._find(picture, crop, track, looks, offset + k, begins=before is None)
            last_patch, alike = patch, 1.0
            luma = planes[: self._size_px]
            if points is not None:
                patch = face_patch(luma, points)
                if writer is not None and frame is not before:
                    alike = likeness(last_patch, patch)
            before = frame
            if writer is not None and (points is None or alike < self._least(piece) or not self._near(piece.points[-1], points)):
                writer.close()
                yield piece
                writer, alike = None, 1.0
            if points is None:
                continue
            if writer is None:
                piece = Piece(next(names), k)
                writer = VideoWriter(out.path(piece.name), self._fps, self._size_px)
            writer.write_i420(planes)
            piece.points.append(points)
            piece.luma.append(face_luma(luma, points))
            piece.likeness.append(alike)
            if len(piece.points) % _MEASURE_EVERY == 1:
                piece.pictures.append(picture_scores(picture, points))
                piece.iris.append(iris_contrast(picture, points))
        if writer is not None:
            writer.close()
            yield piece

    def _find(
        self, picture: np.ndarray, crop: Crop, track: Track, looks: Mapping[int, Sequence[Face]], frame: int, *, begins: bool
    ) -> np.ndarray | None:
        """The mesh of the track's face, None where it is lost. The mesh network holds on to any face, so it is told which one is meant at
        the beginning and wherever the whole picture was looked at and it sits on another."""
        box = track.box_at(frame)
        if begins:
            near = box if box is not None else track.faces[int(np.argmin(np.abs(np.array(track.frames) - frame)))].box
            if (points := self._mesh(_only(picture, near, crop))) is not None:
                return points
            self._mesh.reset()
        points = self._mesh(picture)
        if box is None:
            return None if any(self._sits_on(points, other.box, crop) for other in looks.get(frame, ())) else points
        if self._sits_on(points, box, crop):
            return points
        self._mesh.reset()
        points = self._mesh(_only(picture, box, crop))
        return points if self._sits_on(points, box, crop) else None

    def _sits_on(self, points: np.ndarray | None, box: np.ndarray, crop: Crop) -> bool:
        """Whether the mesh is of the face with this box (4,) in px of the source."""
        if points is None:
            return False
        x0, y0, side = crop
        return overlap(face_boxes(points[None])[0].astype(np.float64) * side / self._size_px + [x0, y0, x0, y0], box) >= SAME_FACE

    def _least(self, piece: Piece) -> float:
        """Below which likeness the next frame's face is another one."""
        lately = piece.likeness[1:][-_STEADY_FRAMES:]
        steady = len(lately) > 0 and sum(lately) / len(lately) >= _STEADY
        return self._min_likeness + (_STEADY_MORE if steady else 0.0)

    def _near(self, before: np.ndarray, now: np.ndarray) -> bool:
        size = np.ptp(before[:, 1])
        return float(np.linalg.norm(now[:, :2].mean(0) - before[:, :2].mean(0))) < self._max_jump * size


def _only(picture: np.ndarray, box: np.ndarray, crop: Crop) -> np.ndarray:
    """The crop with all but the surroundings of one face, whose box (4,) is in px of the source, painted grey."""
    x0, y0, side = crop
    half = 0.5 * _VIEW * max(box[2] - box[0], box[3] - box[1])
    middle = (box[:2] + box[2:]) / 2 - [x0, y0]
    (left, top), (right, bottom) = (
        np.clip(np.rint((middle + r) * len(picture) / side), 0, len(picture)).astype(int) for r in (-half, half)
    )
    shown = np.full_like(picture, 128)
    shown[top:bottom, left:right] = picture[top:bottom, left:right]
    return shown


def cut_frame(frame: SourceFrame, crop: Crop, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """The crop as networks see it, uint8 RGB (size_px, size_px, 3), and as it is encoded, I420 uint8 (1.5 size_px, size_px)."""
    planes = frame.i420_square(*crop, size_px)
    if planes is not None:
        return cv2.cvtColor(planes, cv2.COLOR_YUV2RGB_I420), planes
    rgb = resize_square(frame.square(*crop), size_px)
    return rgb, cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420)


def cut_square(picture: np.ndarray, crop: Crop, size_px: int) -> np.ndarray:
    """The crop (x0, y0, side) of a picture, uint8 RGB (size_px, size_px, 3)."""
    x0, y0, side = crop
    return resize_square(picture[y0 : y0 + side, x0 : x0 + side], size_px)
