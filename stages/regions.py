"""Regions: find the mesh again on the driving frames, and outline eyes, nose and mouth where it really is."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import chain
from typing import Any

import numpy as np

from schemas.arrays import encode_arrays
from schemas.facemesh import LEFT_EYE, LEFT_SOCKET, RIGHT_EYE, RIGHT_SOCKET
from schemas.outlines import outlines_of
from schemas.regions import REGIONS, Regions
from schemas.sample import encode_controls
from schemas.units import Clip, Driving
from schemas.video import decode_video
from stages.expression import Expressions, stacked
from stages.faces import TARGET, TRACK, read_track
from stages.head import fit_pose
from stages.identity import spread
from stages.likeness import LOOKS, Embed, Looks, Moments, likeness_scores, look
from stages.media import decode
from stages.mesh import POINTS, FaceMesh
from stages.meshwarp_render import face_triangles
from stages.outputs import Outputs
from stages.pictures import PictureFaults
from stages.reenact import DRIVING, read_portrait
from stages.truth import compare

REGIONS_FILE, CONTROLS_FILE = "regions.npz", "controls.npz"
TRUTH_FILE = "truth.npz"  # scores of each frame, float32 (T,) by name; not a sample's

_SOCKETS = (LEFT_SOCKET, RIGHT_SOCKET)
_MIN_SEEN = 0.5  # of an eye's samples: more than half of it can be seen, or it is invalid
_MIN_FACING = 0.2  # cosine between the eye's plane and the picture: seen from more than 78 degrees aside an eye is a line
_DEPTH_MARGIN = 0.02  # of the face's height: what lies nearer to the camera than an eye by more than this may hide it
_MIN_INSIDE = 0.5  # of an outline's points: less of it lies in the picture
_MEDIAN_FRAMES = 5


def outline(points: np.ndarray, size_px: int | None = None) -> Regions:
    """Outlines of eyes, nose and mouth from mesh points float32 (T, 478, 3) in px; NaN points make a frame's regions invalid.

    An eye is invalid where the head's own shape hides it: it faces away, or most of it lies behind nose, brow or cheek (by the mesh's
    depth; median over 5 frames, so that it does not flicker). With `size_px`, the side of the frames, a region of which more than half
    lies outside the picture is invalid too.
    """
    seen = np.isfinite(points).all((1, 2))
    outlines = outlines_of(points)
    valid = np.repeat(seen[:, None], len(REGIONS), 1)
    if seen.any():
        valid[seen, :2] &= _steady(eye_visibility(points[seen]) >= _MIN_SEEN)
    if size_px is not None:
        inside = ((outlines > -0.5) & (outlines < size_px - 0.5)).all(-1)
        valid &= inside.mean(-1) >= _MIN_INSIDE
    return Regions(outlines, valid)


def eye_visibility(points: np.ndarray) -> np.ndarray:
    """How much of each eye, left and right, the head itself leaves to be seen, (T, 2) in 0..1, from mesh points (T, 478, 3) in px.

    0 where the plane of the eye's socket faces away; else the share of samples on lids and between them before which nothing of the
    face lies.
    """
    facing = np.stack([_facing(points[:, list(LEFT_SOCKET)]), -_facing(points[:, list(RIGHT_SOCKET)])], 1)  # they go round each other's way
    shares = np.where(facing > _MIN_FACING, 1.0, 0.0)
    height = np.ptp(points[..., 1], axis=1)
    for t, side in zip(*np.nonzero((facing > _MIN_FACING) & (facing < 0.9)), strict=True):  # what faces the camera is hidden by nothing
        shares[t, side] = 1 - _hidden(points[t].astype(np.float64), side, _DEPTH_MARGIN * height[t])
    return shares


def _facing(ring: np.ndarray) -> np.ndarray:
    """Cosine (T,) between the line of sight and the plane of a closed ring of points (T, P, 3); below 0 seen from behind."""
    middle = ring - ring.mean(1, keepdims=True)
    area = np.cross(middle, np.roll(middle, -1, 1)).sum(1)
    return area[:, 2] / np.maximum(np.linalg.norm(area, axis=-1), 1e-9)


def _hidden(points: np.ndarray, side: int, margin_px: float) -> float:
    """Share of an eye's samples before which some triangle of the face lies, nearer by more than the margin."""
    eye = points[list((LEFT_EYE, RIGHT_EYE)[side])]
    half = len(eye) // 2
    samples = np.concatenate([eye, (eye[1:half] + eye[:half:-1]) / 2])
    a, b, c = np.moveaxis(points[_without(side)], 1, 0)
    area = _cross(b - a, c - a)
    fine = np.abs(area) > 1e-6
    a, b, c, area = a[fine], b[fine], c[fine], area[fine]
    at = samples[:, None]
    u, v = _cross(at - a, c - a) / area, _cross(b - a, at - a) / area
    depth = a[:, 2] + u * (b - a)[:, 2] + v * (c - a)[:, 2]
    return float(((u >= 0) & (v >= 0) & (u + v <= 1) & (depth < samples[:, None, 2] - margin_px)).any(1).mean())


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


@cache
def _without(side: int) -> np.ndarray:
    """Triangles (N, 3) of the face but for those of an eye's own socket."""
    triangles = face_triangles()
    own = set(_SOCKETS[side]) | set((LEFT_EYE, RIGHT_EYE)[side])
    return triangles[~np.isin(triangles, list(own)).any(1)]


def _steady(flags: np.ndarray) -> np.ndarray:
    """Median of flags (T, N) over 5 frames; the ends are repeated."""
    reach = _MEDIAN_FRAMES // 2
    padded = np.pad(flags, ((reach, reach), (0, 0)), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, _MEDIAN_FRAMES, axis=0).sum(-1) > reach


class RegionFinder:
    """Driving frames -> mesh points and outlines."""

    def __init__(self) -> None:
        self._mesh = FaceMesh()

    def __call__(self, frames: Iterator[np.ndarray]) -> tuple[np.ndarray, Regions]:
        """Points float32 (T, 478, 3) in px, NaN where no face was found, and the outlines. Frames are square."""
        first = next(frames, None)
        if first is None:
            return self._mesh.track(())[0], outline(np.zeros((0, POINTS, 3), np.float32))
        points, _ = self._mesh.track(chain((first,), frames))
        return points, outline(points, len(first))


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
