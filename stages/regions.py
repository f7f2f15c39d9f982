"""Regions: find the mesh again on the driving frames, and outline eyes, nose and mouth where it really is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from schemas.arrays import encode_arrays
from schemas.regions import Regions, pad_outlines
from schemas.sample import encode_controls
from schemas.units import Clip, Driving
from schemas.video import decode_video
from stages.expression import Expressions, stacked
from stages.faces import TARGET, TRACK, read_track
from stages.head import LEFT_EYE, LIPS_OUTER, NOSE, RIGHT_EYE, fit_pose
from stages.identity import spread
from stages.likeness import LOOKS, Embed, Looks, Moments, likeness_scores, look
from stages.media import decode
from stages.mesh import FaceMesh
from stages.outputs import Outputs
from stages.pictures import PictureFaults
from stages.reenact import DRIVING, read_portrait
from stages.truth import compare

REGIONS_FILE, CONTROLS_FILE = "regions.npz", "controls.npz"
TRUTH_FILE = "truth.npz"  # scores of each frame, float32 (T,) by name; not a sample's

_LOOPS = (LEFT_EYE, RIGHT_EYE, NOSE, LIPS_OUTER)  # in the order of schemas.regions.REGIONS
_HIDDEN_YAW_DEG = 55.0  # beyond it the far eye is behind the nose


def outline(points: np.ndarray) -> Regions:
    """Outlines of eyes, nose and mouth from mesh points float32 (T, 478, 3) in px; NaN points make a frame's regions invalid.

    The far eye of a head turned beyond 55 degrees cannot be seen and is invalid.
    """
    seen = np.isfinite(points).all((1, 2))
    filled = np.where(seen[:, None, None], points, 0)
    outlines = np.stack([pad_outlines([p[list(loop), :2] for loop in _LOOPS]) for p in filled])
    yaw = np.zeros(len(points))
    if seen.any():
        yaw[seen] = fit_pose(points[seen]).euler_deg[:, 0]
    valid = np.repeat(seen[:, None], len(_LOOPS), 1)
    valid[:, 0] &= yaw < _HIDDEN_YAW_DEG  # the nose points to the picture's right, where the person's left eye is
    valid[:, 1] &= yaw > -_HIDDEN_YAW_DEG
    return Regions(outlines, valid)


class RegionFinder:
    """Driving frames -> mesh points and outlines."""

    name, version = "regions", 1

    def __init__(self) -> None:
        self._mesh = FaceMesh()

    def __call__(self, frames: Iterator[np.ndarray]) -> tuple[np.ndarray, Regions]:
        """Points float32 (T, 478, 3) in px, NaN where no face was found, and the outlines."""
        points, _ = self._mesh.track(frames)
        return points, outline(points)


class RegionsStage:
    """Driving video -> region outlines, control arrays and pair scores, all from the frames as they were encoded.

    Args:
        expressions: adds expression scores to the control arrays.
        embed: an identity network, which says whether B is seen, and not A.
    """

    name, version = "regions", 3

    def __init__(self, expressions: Expressions | None = None, embed: Embed | None = None) -> None:
        self._find, self._expressions, self._embed = RegionFinder(), expressions, embed
        self._known: tuple[str, np.ndarray | None] = ("", None)  # the clip last measured, and its expression scores
        self._performer: tuple[str, dict[int, Looks]] = ("", {})  # the same of what A looks like

    def __call__(self, driving: Driving, out: Outputs) -> tuple[dict[str, Any], list[str]]:
        """Writes regions.npz, controls.npz and, for people who want to know, truth.npz; returns the pair's scores."""
        clip = driving.pair.clip
        target, _ = read_track(out.input(clip.folder, clip.file(TRACK)))
        portrait = read_portrait(driving.pair.portrait, out)
        faults = PictureFaults()
        moments = Moments(spread(clip.frames, LOOKS))
        frames = moments.watch(faults.watch(frame.rgb for frame in decode(out.input(driving.folder, DRIVING))))
        rows: list[np.ndarray] = []
        points, regions = self._find(self._expressions.watch(frames, rows) if self._expressions else frames)
        out.write(REGIONS_FILE, regions.encode())
        controls = encode_controls(
            target,
            points,
            pose_matrices(target),
            pose_matrices(points),
            target_expressions=self._of_target(clip, out),
            driving_expressions=stacked(rows) if self._expressions else None,
        )
        out.write(CONTROLS_FILE, controls)
        scores, details = compare(target, points)
        of_pictures, faulty = faults.measure(points, clip.size_px, portrait)
        valid = regions.valid.mean(1, dtype=np.float32)
        out.write(TRUTH_FILE, encode_arrays({**details, **faulty, "valid_masks": valid}))
        own = look(portrait.image, portrait.points, self._embed)
        scores |= likeness_scores(moments.looks(points, self._embed), self._of_performer(clip, target, out), own)
        scores |= of_pictures | {"valid_masks": float(valid.mean())}
        return scores, []

    def _of_target(self, clip: Clip, out: Outputs) -> np.ndarray | None:
        """The clip's expression scores (T, 52), measured once for pairs of one clip that follow each other; None without a network."""
        if self._expressions is None:
            return None
        where = f"{clip.folder}/{clip.id}"
        if self._known[0] != where:
            video = out.input(clip.folder, clip.file(TARGET))
            self._known = where, self._expressions.track(frame.rgb for frame in decode(video))
        return self._known[1]

    def _of_performer(self, clip: Clip, points: np.ndarray, out: Outputs) -> dict[int, Looks]:
        """What A looks like, by frame, likewise."""
        where = f"{clip.folder}/{clip.id}"
        if self._performer[0] != where:
            video = out.input(clip.folder, clip.file(TARGET))
            pictures = {k: decode_video(video, first=k, count=1)[0] for k in spread(clip.frames, LOOKS)}
            self._performer = where, {k: look(picture, points[k], self._embed) for k, picture in pictures.items()}
        return self._performer[1]


def pose_matrices(points: np.ndarray) -> np.ndarray:
    """Head pose matrices float64 (T, 4, 4) on column vectors, canonical face to px; NaN where the points are."""
    matrices = np.full((len(points), 4, 4), np.nan)
    seen = np.isfinite(points).all((1, 2))
    if seen.any():
        pose = fit_pose(points[seen])
        matrices[seen] = np.eye(4)
        matrices[seen, :3, :3] = pose.scale[:, None, None] * pose.rotation.swapaxes(1, 2)
        matrices[seen, :3, 3] = pose.translation
    return matrices
