"""Truth: whether B is seen to do what A does, frame by frame, by the meshes that were found on the finished frames of both.

What A hardly does cannot be compared: of a head that keeps still nobody can tell a shift in time or another clip's motion. Such
scores are NOT_MEASURED, and no pair is rejected for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.head import (
    angle_between_deg,
    euler_deg,
    eye_opening,
    face_boxes,
    face_size,
    fit_pose,
    head_square,
    mirror_map,
    mouth_opening,
    rigid_weights,
)
from stages.mesh import IRIS_LEFT, IRIS_RIGHT, POINTS

NOT_MEASURED = -2.0  # below any correlation and any share
_MOVES = 0.02  # a signal of A that varies less than this (standard deviation) says nothing by its correlation
_OPEN = 0.5  # of an eye's own opening; where the lids are lower the mesh guesses the iris
_EYES = ((362, 263, IRIS_LEFT), (133, 33, IRIS_RIGHT))  # inner and outer corner, iris: left, right
# Of yaw, pitch, roll in degrees, mouth, both eyes, gaze to the side: how much of each is as plain to see as the others' unit
_UNITS = np.array([2.0, 2.0, 2.0, 0.05, 0.05, 0.05, 0.05])
_TELLS = 1.0  # of units, over all signals: A that moves less could be anybody
_QUICK_FRAMES = 6  # half of the stretch whose mean is taken off: what is left is quick, and its place in time shows
_QUICK_TELLS = 0.4
_MAX_LAG_FRAMES = 8
_LAG_GAIN, _LAG_SURE = 0.1, 0.55  # another moment must be better than the right one by this much correlation, and have at least that
_MIRROR_GAIN_DEG = 2.0  # by which the head must be nearer to mirrored A
_WINDOW_FRAMES = 5  # over which a frozen face would have moved
_A_MOVES = 0.01  # face sizes within the window, root mean square over the mesh
_FROZEN, _STILL = 0.2, 0.0025  # of A's motion, and face sizes: a picture that is encoded anew seems to move by 0.001, a live face by 0.003
_FEWEST = 5  # frames, for a share of them to mean anything
_STEADY = 0.002  # face sizes a frame a frame: what is seen of a head that keeps still


@dataclass(frozen=True)
class Signals:
    """What a head does over T frames.

    Attributes:
        rotation: (T, 3, 3).
        mouth: (T,) opening, in mouth widths.
        eyes: (T, 2) opening of left and right, in eye widths.
        gaze: (T, 2) of left and right: irises from the middle of the eye towards the picture's right, in eye widths.
    """

    rotation: np.ndarray
    mouth: np.ndarray
    eyes: np.ndarray
    gaze: np.ndarray

    @property
    def angles_deg(self) -> np.ndarray:
        """(T, 3): yaw, pitch, roll."""
        return euler_deg(self.rotation)

    @property
    def looking(self) -> np.ndarray:
        """bool (T,): both eyes are open by at least half of what they mostly are."""
        return (self.eyes >= _OPEN * np.median(self.eyes, axis=0)).all(1)

    def stacked(self) -> np.ndarray:
        """(T, 7) in units that are as plain to see as each other; gaze, which jumps when the lids come down, is held meanwhile."""
        gaze = self.gaze.mean(1)
        if (looking := np.flatnonzero(self.looking)).size:
            gaze = np.interp(np.arange(len(gaze)), looking, gaze[looking])
        return np.concatenate([self.angles_deg, self.mouth[:, None], self.eyes, gaze[:, None]], 1) / _UNITS


def signals(points: np.ndarray) -> Signals:
    """Of mesh points (T, 478, 3) in px, all found."""
    pose = fit_pose(points)
    gaze = []
    for inner, outer, iris in _EYES:
        shape = pose.invert(points[:, [inner, outer, iris]])
        middle, width = (shape[:, 0] + shape[:, 1]) / 2, np.linalg.norm(shape[:, 0] - shape[:, 1], axis=-1)
        gaze.append((shape[:, 2, 0] - middle[:, 0]) / width)
    return Signals(pose.rotation, mouth_opening(points, pose), eye_opening(points, pose), np.stack(gaze, -1))


def score(target: np.ndarray, driving: np.ndarray) -> dict[str, float]:
    """Scores of a driving video from mesh points (T, 478, 3) of target and driving in px; NaN marks a lost driving face.

    lost_frames: share without a face.
    pose_error_deg, pose_error_p95_deg: angle between the heads, mean and 95th percentile.
    yaw_, pitch_, roll_extreme_deg: of the driving head, 95th percentile.
    centre_offset, size_ratio, size_error: by the crop rule of both videos, in head sizes; size_error = |size_ratio - 1|.
    mouth_, eye_, gaze_correlation: Pearson's r; both eyes' mean; gaze to the side, while the eyes are open.
    mouth_error: mean difference, in mouth widths. eye_error: of the eyes' openings, each as a share of what it mostly is. gaze_error: in
        eye widths, each from its median.
    motion_correlation: r of all of this at once, in `_UNITS`. quick_correlation: of what is quicker than half a second, at the moment
        where it is best; lag_frames: how far that moment is off. mirrored: r with mirrored A where the head is nearer to that, else 0.
    frozen_frames: share of the frames in which A moves and B does not.
    jitter_ratio: acceleration of the face's rigid points over that of A's.
    """
    return compare(target, driving)[0]


def compare(target: np.ndarray, driving: np.ndarray) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """`score`, and what it is made of, float32 (T,) by name; NaN in lost frames."""
    if target.shape != driving.shape:
        raise ValueError(f"target has {len(target)} frames, driving {len(driving)}")
    assert target.shape[1:] == (POINTS, 3), target.shape
    found = np.isfinite(driving).all((1, 2))
    scores = {"lost_frames": float(1 - found.mean())}
    if found.sum() < 2:
        return scores | _NOWHERE, {"found": found.astype(np.float32)}
    whole = _bridged(driving, found)
    a, b = signals(target), signals(whole)
    error = angle_between_deg(a.rotation, b.rotation)
    shakes = [_shaking(points) for points in (target, whole)]
    scores |= _geometry(target[found], driving[found], b.angles_deg[found])
    scores |= {"pose_error_deg": float(error[found].mean()), "pose_error_p95_deg": float(np.percentile(error[found], 95))}
    scores |= _openings(a, b, found) | _motion(a, b, signals(_mirrored(target)))
    scores |= {"frozen_frames": _frozen(target, whole), "jitter_ratio": float(shakes[1].mean() / max(float(shakes[0].mean()), _STEADY))}
    rows = {"pose_error_deg": error, "jitter_target": shakes[0], "jitter_driving": shakes[1]}
    for who, s in (("target", a), ("driving", b)):
        parts = {"yaw_deg": s.angles_deg[:, 0], "mouth": s.mouth, "eyes": s.eyes.mean(1), "gaze": s.gaze.mean(1)}
        rows |= {f"{name}_{who}": values for name, values in parts.items()}
    details = {name: np.where(found | name.endswith("_target"), values, np.nan).astype(np.float32) for name, values in rows.items()}
    return scores, details | {"found": found.astype(np.float32)}


_NOWHERE = {  # of a video without a face
    **dict.fromkeys(("yaw_extreme_deg", "pitch_extreme_deg", "roll_extreme_deg", "size_ratio", "mirrored"), 0.0),
    **dict.fromkeys(("pose_error_deg", "pose_error_p95_deg"), 180.0),
    **dict.fromkeys(("centre_offset", "size_error"), 1.0),
    **dict.fromkeys(("mouth_correlation", "eye_correlation", "gaze_correlation", "mouth_error", "eye_error", "gaze_error"), NOT_MEASURED),
    **dict.fromkeys(("motion_correlation", "quick_correlation", "lag_frames", "frozen_frames", "jitter_ratio"), NOT_MEASURED),
}


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r of two signals (T,), or NOT_MEASURED where `a` hardly varies."""
    if len(a) < _FEWEST or a.std() < _MOVES:
        return NOT_MEASURED
    return float(np.corrcoef(a, b)[0, 1]) if b.std() > 1e-6 else 0.0


def _geometry(a: np.ndarray, b: np.ndarray, angles_deg: np.ndarray) -> dict[str, float]:
    square_a, square_b = head_square(face_boxes(a)), head_square(face_boxes(b))
    yaw, pitch, roll = (float(v) for v in np.percentile(np.abs(angles_deg), 95, axis=0))
    ratio = float(square_b[2] / square_a[2])
    return {
        "yaw_extreme_deg": yaw,
        "pitch_extreme_deg": pitch,
        "roll_extreme_deg": roll,
        "centre_offset": float(np.linalg.norm(square_b[:2] - square_a[:2]) / square_a[2]),
        "size_ratio": ratio,
        "size_error": abs(ratio - 1),
    }


def _openings(a: Signals, b: Signals, found: np.ndarray) -> dict[str, float]:
    eyes_a, eyes_b = (s.eyes / np.maximum(np.median(s.eyes, axis=0), 0.05) for s in (a, b))
    looking = found & a.looking & b.looking
    gaze_a, gaze_b = (s.gaze[looking].mean(1) for s in (a, b))
    off = np.abs((gaze_a - np.median(gaze_a)) - (gaze_b - np.median(gaze_b))).mean() if looking.sum() >= _FEWEST else NOT_MEASURED
    return {
        "mouth_correlation": correlation(a.mouth[found], b.mouth[found]),
        "mouth_error": float(np.abs(a.mouth - b.mouth)[found].mean()),
        "eye_correlation": correlation(a.eyes[found].mean(1), b.eyes[found].mean(1)),
        "eye_error": float(np.abs(eyes_a - eyes_b)[found].mean()),
        "gaze_correlation": correlation(gaze_a, gaze_b),
        "gaze_error": float(off),
    }


def _motion(a: Signals, b: Signals, mirrored: Signals) -> dict[str, float]:
    """Whether it is A's motion at all, at A's moments, and on A's side."""
    x, y, flipped = a.stacked(), b.stacked(), mirrored.stacked()
    scores = {"motion_correlation": NOT_MEASURED, "quick_correlation": NOT_MEASURED, "lag_frames": NOT_MEASURED, "mirrored": 0.0}
    if _amount(x) >= _TELLS:
        scores["motion_correlation"] = together = _pooled(x, y)
        off, off_mirrored = (float(angle_between_deg(s.rotation, b.rotation).mean()) for s in (a, mirrored))
        other = _pooled(flipped, y)
        if other > together and off_mirrored < off - _MIRROR_GAIN_DEG:
            scores["mirrored"] = other
    quick = _quick(x)
    if _amount(quick) >= _QUICK_TELLS:
        lag, r = _lag(quick, _quick(y))
        scores |= {"quick_correlation": r, "lag_frames": float(abs(lag))}
    return scores


def _lag(x: np.ndarray, y: np.ndarray) -> tuple[int, float]:
    """By how many frames y (T, N) follows x, and their correlation then; 0 unless another moment is plainly better."""
    frames = len(x)
    most = min(_MAX_LAG_FRAMES, frames // 4)
    rs = {k: _pooled(x[max(0, -k) : frames - max(0, k)], y[max(0, k) : frames + min(0, k)]) for k in range(-most, most + 1)}
    best = max(rs, key=lambda k: (rs[k], -abs(k)))
    return (best, rs[best]) if rs[best] >= max(rs[0] + _LAG_GAIN, _LAG_SURE) else (0, rs[0])


def _pooled(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's r of signals (T, N), all at once: each without its mean, weighted by how much it moves."""
    x, y = x - x.mean(0), y - y.mean(0)
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(np.vdot(x, y)) / size if size > 1e-9 else 0.0


def _amount(x: np.ndarray) -> float:
    """How much signals (T, N) move, over all of them."""
    return float(np.sqrt(x.var(0).sum()))


def _quick(x: np.ndarray) -> np.ndarray:
    """Signals (T, N) without their mean over the frames around."""
    padded = np.pad(x, ((_QUICK_FRAMES + 1, _QUICK_FRAMES), (0, 0)), mode="edge").cumsum(0)
    width = 2 * _QUICK_FRAMES + 1
    return x - (padded[width:] - padded[:-width]) / width


def _frozen(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the windows in which A moves and B does not; NOT_MEASURED where A moves in too few."""
    moved_a, moved_b = (_moved(points) for points in (a, b))
    moves = moved_a > _A_MOVES
    return float((moved_b < np.minimum(_FROZEN * moved_a, _STILL))[moves].mean()) if moves.sum() >= _FEWEST else NOT_MEASURED


def _moved(points: np.ndarray) -> np.ndarray:
    """How far a mesh (T, 478, 3) comes within a window, (T - window,) in face sizes, root mean square over its points."""
    way = points[_WINDOW_FRAMES:, :, :2].astype(np.float64) - points[:-_WINDOW_FRAMES, :, :2]
    return np.sqrt(np.square(way).sum(-1).mean(-1)) / _size(points)


def _shaking(points: np.ndarray) -> np.ndarray:
    """Acceleration (T,) of the points that expressions hardly move, median over them, in face sizes a frame a frame; 0 at both ends."""
    steady = points[:, rigid_weights() > 0, :2].astype(np.float64) / _size(points)
    inner = np.median(np.linalg.norm(np.diff(steady, 2, axis=0), axis=-1), axis=1)
    return np.pad(inner, 1)[: len(points)]


def _size(points: np.ndarray) -> float:
    return float(np.median(face_size(face_boxes(points))))


def _mirrored(points: np.ndarray) -> np.ndarray:
    """The mesh of the mirror image, about x = 0."""
    return points[:, mirror_map()] * np.array([-1.0, 1.0, 1.0])


def _bridged(points: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Points (T, 478, 3) with those of lost frames on the straight line between the frames around them."""
    at = np.flatnonzero(found)
    k = np.arange(len(points))
    right = np.clip(np.searchsorted(at, k), 0, len(at) - 1)
    left = np.where(found, right, np.maximum(right - (at[right] > k), 0))
    span = np.maximum(at[right] - at[left], 1)
    share = np.clip((k - at[left]) / span, 0, 1)[:, None, None]
    return points[at[left]] * (1 - share) + points[at[right]] * share
