"""LivePortrait (arXiv 2407.03168) as a reenactor: implicit keypoints of A's head move B's, networks on ONNX Runtime, weights the user's.

The motion network looks at faces through the original's crops. Its keypoints go from there to the frame of the whole picture, where
appearance is taken and the driving frames are drawn: portrait and target are cut by one rule, so that B is drawn as B was seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from schemas.keypoints import HeadMotion, absolute_motion, expression_friendly, image_motion, relative_motion, stitched
from schemas.motion import Motion
from schemas.outcomes import Rejection
from stages import head
from stages.landmarks203 import Landmarks203
from stages.liveportrait_crop import Crop, driving_crop, source_crop
from stages.liveportrait_graphs import CPU, CUDA, LivePortraitGraphs, Rendered, check_digest, fit
from stages.liveportrait_settings import NAME, VERSION, LivePortraitConfig
from stages.mesh import FaceMesh
from stages.meshwarp_plan import smooth
from stages.reenact import ClipView, Portrait

_CENTRE_SMOOTHING_FRAMES = 3.0
_SIZE_LIMITS = (0.7, 1.4)  # of the correction: what lies beyond is no error of size but a face seen where there is none
_DEPTH_RIDGE = 1e-4  # a turn of half a degree is none
_STRAY = 0.25  # head sizes from the median: a face seen where there is none
_HEAD_ARRAYS = ("kp", "rotation", "exp", "scale", "t")
_FRAMES_AT_ONCE = 256  # of mesh points in memory


@dataclass(frozen=True)
class Identity:
    """B, ready to perform.

    Attributes:
        volume: B's appearance, on the device.
        head: one frame, in B's crop.
        mesh: float64 (478, 3), the face mesh in the crop's -1..1.
        crop: in which the motion network saw B.
        side: of the portrait, px.
    """

    volume: Any
    head: HeadMotion
    mesh: np.ndarray
    crop: Crop
    side: int

    @property
    def x_s(self) -> np.ndarray:
        """Keypoints (1, K, 3) in the portrait's -1..1."""
        return self.crop.to_picture(self.head.points(), self.side)


@dataclass(frozen=True)
class Correction:
    """What a look at drawn frames has added: a factor of the head's size, and a shift (4, 2) in px, linear in `_features` of A."""

    size: float
    shift_px: np.ndarray


class LivePortrait:
    """Implements stages.reenact.Reenactor.

    Args:
        models: folder with the ONNX graphs, ours or the public ones.
        landmarks: LivePortrait's landmark.onnx; without it the face mesh sets the crops.
        provider: as stages.liveportrait_graphs.choose_provider gives it.
        threads, digests: as LivePortraitGraphs takes them.
    """

    name, version = NAME, VERSION

    def __init__(
        self,
        config: LivePortraitConfig,
        models: Path,
        landmarks: Path | None = None,
        *,
        provider: str = CPU,
        threads: int = 0,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        self.config = config
        self.ran_on = "cuda" if provider == CUDA else "cpu"
        self._graphs = LivePortraitGraphs(models, provider=provider, threads=threads, digests=digests)
        if landmarks:
            check_digest(landmarks, digests or {})
        self._landmarks = Landmarks203(landmarks, threads=threads) if landmarks else None
        self._mesh = FaceMesh()  # tracking, as the target was looked at

    def appearance(self, portrait: Portrait) -> Identity:
        points = portrait.points.astype(np.float64)
        crop = source_crop(self._landmarks(portrait.image, points) if self._landmarks else points)
        seen = self._graphs.motion([crop.cut(portrait.image, self._graphs.side, shrink="area")], batch=1)
        side = len(portrait.image)
        mesh = crop.from_picture(_normalised(points, side), side)
        return Identity(self._graphs.appearance(portrait.image), seen, mesh, crop, side)

    def motion(self, clip: ClipView) -> Motion:
        points = self._landmarks.track(clip.frames(), clip.points) if self._landmarks else clip.points
        crop = driving_crop(points)
        pictures = (crop.cut(frame, self._graphs.side, shrink="bilinear") for frame in clip.frames())
        seen = []
        while some := list(islice(pictures, self.config.batch)):
            seen.append(self._graphs.motion(some, self.config.batch))
        arrays = {name: np.concatenate([getattr(part, name) for part in seen]) for name in _HEAD_ARRAYS}
        arrays = _smoothed(arrays, self.config.smoothing_frames)
        template = {name: a.astype(np.float32) for name, a in arrays.items()}
        template |= {"boxes": head.face_boxes(clip.points).astype(np.float32), "crop": crop.matrix, "crop_side": np.array([crop.side])}
        middles = crop.from_picture(_normalised(clip.points.mean(1, keepdims=True, dtype=np.float64), clip.size_px), clip.size_px)
        template["depth"] = np.array([depth_between(HeadMotion(**arrays), middles)])
        return Motion(engine=self.name, fps=clip.fps, size_px=clip.size_px, arrays=template)

    def render(self, appearance: Identity, motion: Motion) -> Iterator[np.ndarray]:
        """Raises Rejection: not_finite, when the network gives NaN or infinity."""
        if motion.engine != self.name:
            raise ValueError(f"a motion of {motion.engine!r} is none of {self.name!r}")
        yield from self.draw(appearance, self.keypoints(appearance, motion), motion.size_px)

    def draw(self, b: Identity, x_d: np.ndarray, size_px: int, at: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Frames uint8 RGB (size_px, size_px, 3) of keypoints (T, K, 3) in the picture's -1..1, one batch ahead of the reader.

        `at`: which frames of the clip these are, all by default.
        """
        x_s, size = b.x_s, self.config.batch

        def batch(start: int) -> Rendered:
            return self._graphs.render(b.volume, x_s, x_d[start : start + size], size)

        starts = range(0, len(x_d), size)
        with ThreadPoolExecutor(1) as ahead:  # the device works on while frames are encoded
            coming = ahead.submit(batch, 0)
            for start in starts:
                rendered = coming.result()
                if start + size < len(x_d):
                    coming = ahead.submit(batch, start + size)
                if not rendered.finite.all():
                    first = start + int(np.argmin(rendered.finite))
                    frame = first if at is None else int(at[first])
                    raise Rejection("not_finite", f"frame {frame} is NaN or infinite", {"first_bad_frame": float(frame)})
                yield from (fit(frame, size_px) for frame in rendered.frames)

    def keypoints(self, b: Identity, motion: Motion) -> np.ndarray:
        """Driving keypoints (T, K, 3) in the -1..1 of the picture that they are drawn in: A's frame, or B's in the other modes."""
        a = HeadMotion(**{name: motion.arrays[name].astype(np.float64) for name in _HEAD_ARRAYS})
        if self.config.mode == "absolute":
            correction = Correction(1.0, np.zeros((4, 2)))
            if self.config.calibration_frames:
                correction = self._calibrate(b, a, motion, correction)
            return self._absolute(b, a, motion, correction)
        x_s = b.head.points()
        if self.config.mode == "relative":
            x_d = expression_friendly(x_s, relative_motion(b.head, a).points())
        else:
            x_d = image_motion(b.head, a).points()
        return b.crop.to_picture(self._stitched(x_s, x_d), b.side)

    def _stitched(self, x_s: np.ndarray, x_d: np.ndarray) -> np.ndarray:
        return stitched(x_d, self._graphs.stitch(x_s, x_d)) if self.config.stitching else x_d

    def _absolute(self, b: Identity, a: HeadMotion, motion: Motion, correction: Correction) -> np.ndarray:
        """A's motion, sized and placed so that B's face box lies on A's."""
        size, shift_px = self._place(b, a, motion, correction)
        x_d = self._stitched(b.head.points(), absolute_motion(b.head, replace(a, scale=size * a.scale)).points())
        x_d = _crop_of(motion).to_picture(x_d, motion.size_px)
        x_d[..., :2] += shift_px[:, None] * 2 / motion.size_px
        return x_d

    def _place(self, b: Identity, a: HeadMotion, motion: Motion, correction: Correction) -> tuple[float, np.ndarray]:
        """One factor of size for the clip, and shifts (T, 2) in px of A's frame.

        Canonical keypoints of two people differ in size and in where they lie in the head. The mesh does not: carried along
        with B's keypoints, it says where B's face would be.
        """
        own = _canonical(b.mesh[None], b.head)[0] + motion.arrays["depth"] * b.head.rotation[0, :, 2]
        crop, boxes = _crop_of(motion), []
        for at in (slice(i, i + _FRAMES_AT_ONCE) for i in range(0, len(a), _FRAMES_AT_ONCE)):
            turned = crop.to_picture(a.scale[at, None, None] * (own @ a.rotation[at]), motion.size_px)
            boxes.append(head.face_boxes(_pixels(turned, motion.size_px)))
        # from the crop's middle, about which a head without translation turns and grows
        origin = _pixels(crop.to_picture(np.zeros((1, 3)), motion.size_px), motion.size_px)[0]
        predicted, target = np.concatenate(boxes) - np.tile(origin, 2), motion.arrays["boxes"].astype(np.float64)
        size = correction.size * float(np.median(head.face_size(target)) / np.median(head.face_size(predicted)))
        middle = _pixels(crop.to_picture(a.t, motion.size_px), motion.size_px)
        placed = size * (predicted[:, :2] + predicted[:, 2:]) / 2 + middle
        missed = (target[:, :2] + target[:, 2:]) / 2 - placed
        shift = smooth(missed, _CENTRE_SMOOTHING_FRAMES)
        return size, shift + _features(a) @ correction.shift_px

    def _calibrate(self, b: Identity, a: HeadMotion, motion: Motion, correction: Correction) -> Correction:
        """Looks at some drawn frames, and corrects size and place by what was missed."""
        at = np.unique(np.linspace(0, len(a) - 1, self.config.calibration_frames).round().astype(int))
        self._mesh.reset()
        x_d = self._absolute(b, a, motion, correction)[at]
        points = [self._mesh(frame) for frame in self.draw(b, x_d, motion.size_px, at)]
        found = np.array([p is not None for p in points])
        if not found.any():
            return correction
        boxes, target = (
            head.face_boxes(np.stack([p for p in points if p is not None])),
            motion.arrays["boxes"][at[found]].astype(np.float64),
        )
        missed = (target[:, :2] + target[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2
        far = np.linalg.norm(missed - np.median(missed, 0), axis=1) > _STRAY * np.median(head.face_size(target))
        boxes, target, missed, x = boxes[~far], target[~far], missed[~far], _features(a)[at[found]][~far]
        size = correction.size * float(np.clip(np.median(head.face_size(target) / head.face_size(boxes)), *_SIZE_LIMITS))
        ridge = np.diag([1e-3, *(30.0,) * 3])  # a constant is believed at once, a slope only when the head turns enough to show it
        return Correction(size, correction.shift_px + np.linalg.solve(x.T @ x + ridge, x.T @ missed))


def depth_between(a: HeadMotion, middles: np.ndarray) -> float:
    """How much farther the mesh lies than the keypoints do, in units of the keypoints: the depths of both have zeros of their own.

    Told by a head that turns: with the right depth the middle of its mesh, (T, 1, 3) in the crop's -1..1, stays where it is among
    the keypoints. Without a turn nothing can be told, nothing depends on it, and it is 0.
    """
    own, away = _canonical(middles, a)[:, 0], a.rotation[:, :, 2]
    own, away = own - own.mean(0), away - away.mean(0)
    return float(-(own * away).sum() / ((away**2).sum() + _DEPTH_RIDGE * len(a)))


def _canonical(points: np.ndarray, a: HeadMotion) -> np.ndarray:
    """Points (T, N, 3) in the crop's -1..1 as canonical keypoints are: without pose, place and size."""
    offset = a.t * np.array([1, 1, 0])
    return (points - offset[:, None]) / a.scale[:, None, None] @ a.rotation.swapaxes(1, 2)


def _normalised(points: np.ndarray, size_px: int) -> np.ndarray:
    """Points (..., 3) in px, pixel centres at integers, as in the picture's -1..1."""
    return (points + np.array([0.5, 0.5, 0])) * 2 / size_px - np.array([1, 1, 0])


def _pixels(x: np.ndarray, size_px: int) -> np.ndarray:
    """Of points (..., 2 or 3) in a picture's -1..1: px (..., 2), pixel centres at integers."""
    return (x[..., :2] + 1) * size_px / 2 - 0.5


def _crop_of(motion: Motion) -> Crop:
    return Crop(motion.arrays["crop"], int(motion.arrays["crop_side"][0]))


def _features(a: HeadMotion) -> np.ndarray:
    """What a missed place may depend on, (T, 4): a constant, yaw, pitch and roll in degrees."""
    return np.concatenate([np.ones((len(a), 1)), head.euler_deg(a.rotation)], 1)


def _smoothed(arrays: dict[str, np.ndarray], sigma_frames: float) -> dict[str, np.ndarray]:
    """Motion over time; rotations are made rotations again."""
    if not sigma_frames:
        return arrays
    arrays = {name: smooth(a, sigma_frames) for name, a in arrays.items()}
    u, _, vt = np.linalg.svd(arrays["rotation"])
    return arrays | {"rotation": u @ vt}
