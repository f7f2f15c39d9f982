"""Quality: how true a driving video is to its target, measured on the finished frames, and whether that is good enough."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from schemas.outcomes import ACCEPTED, Verdict
from stages.head import angle_between_deg, eye_opening, face_boxes, fit_pose, head_square, mouth_opening

_MOVES = 0.02  # a signal of A that varies less than this (standard deviation) says nothing by its correlation
NOT_MEASURED = -2.0  # below any correlation
_BLACK = 24  # 0..255: a frame whose brightest hundredth is darker shows nothing
_NEAR_END = 3  # of 0 and of 255: what lies within is clipped
_CLIPPED_SHARE = 0.9  # of a frame's values; a white wall behind a dark coat comes to two thirds


@dataclass(frozen=True, kw_only=True)
class QualityGates:
    """Thresholds on stored scores: changing one renders nothing again."""

    max_black_frames: float = 0.0  # shares of driving frames
    max_clipped_frames: float = 0.0
    max_lost_frames: float = 0.02  # without a face
    max_yaw_deg: float = 60.0  # of the driving head, 95th percentile over the clip
    max_pitch_deg: float = 45.0
    max_roll_deg: float = 50.0
    max_pose_error_deg: float = 6.0  # mean angle between the heads
    max_centre_offset: float = 0.05  # head's centre, in head sizes
    max_size_error: float = 0.05  # |head size ratio - 1|


def score(target: np.ndarray, driving: np.ndarray) -> dict[str, float]:
    """Scores of a driving video from mesh points (T, 478, 3) of target and driving in px; NaN marks a lost driving face.

    Head geometry by the crop rule of both videos; angles in degrees; correlations are NOT_MEASURED where A hardly moves.
    """
    if target.shape != driving.shape:
        raise ValueError(f"target has {len(target)} frames, driving {len(driving)}")
    found = np.isfinite(driving).all((1, 2))
    scores = {"lost_frames": float(1 - found.mean())}
    if found.sum() < 2:
        unmeasured = dict.fromkeys(("mouth_correlation", "eye_correlation"), NOT_MEASURED)
        nowhere = {"yaw_extreme_deg": 0.0, "pitch_extreme_deg": 0.0, "roll_extreme_deg": 0.0, "pose_error_deg": 180.0}
        return {**scores, **nowhere, "centre_offset": 1.0, "size_ratio": 0.0, **unmeasured}
    a, b = target[found], driving[found]
    square_a, square_b = head_square(face_boxes(a)), head_square(face_boxes(b))
    pose = fit_pose(b)
    extreme = np.percentile(np.abs(pose.euler_deg), 95, axis=0)
    return {
        **scores,
        "yaw_extreme_deg": float(extreme[0]),
        "pitch_extreme_deg": float(extreme[1]),
        "roll_extreme_deg": float(extreme[2]),
        "pose_error_deg": float(angle_between_deg(fit_pose(a).rotation, pose.rotation).mean()),
        "centre_offset": float(np.linalg.norm(square_b[:2] - square_a[:2]) / square_a[2]),
        "size_ratio": float(square_b[2] / square_a[2]),
        "mouth_correlation": correlation(mouth_opening(a), mouth_opening(b)),
        "eye_correlation": correlation(eye_opening(a).mean(1), eye_opening(b).mean(1)),
    }


class PictureFaults:
    """Counts frames that are no picture while they pass by, as an engine gives them when its numbers overflow."""

    def __init__(self) -> None:
        self.frames = self.black = self.clipped = 0

    def watch(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The frames, uint8 RGB (H, W, 3), as they are."""
        for frame in frames:
            some = frame[::4, ::4]
            self.frames += 1
            self.black += bool(np.percentile(some, 99) < _BLACK)
            ends = (some < _NEAR_END) | (some > 255 - _NEAR_END)
            self.clipped += bool(ends.mean() > _CLIPPED_SHARE)
            yield frame

    def scores(self) -> dict[str, float]:
        """Shares of the frames seen."""
        return {"black_frames": self.black / max(1, self.frames), "clipped_frames": self.clipped / max(1, self.frames)}


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r of two signals (T,), or NOT_MEASURED where `a` hardly varies."""
    if a.std() < _MOVES:
        return NOT_MEASURED
    return float(np.corrcoef(a, b)[0, 1]) if b.std() > 1e-6 else 0.0


def decide(scores: dict[str, float], gates: QualityGates) -> Verdict:
    """Accepts or names the first gate that the scores fail."""
    limits = (("yaw_extreme_deg", gates.max_yaw_deg), ("pitch_extreme_deg", gates.max_pitch_deg), ("roll_extreme_deg", gates.max_roll_deg))
    checks = (
        ("black_frames", scores["black_frames"] > gates.max_black_frames),
        ("clipped_frames", scores["clipped_frames"] > gates.max_clipped_frames),
        ("lost_driving_face", scores["lost_frames"] > gates.max_lost_frames),
        ("pose_range", any(scores[name] > limit for name, limit in limits)),
        ("pose_error", scores["pose_error_deg"] > gates.max_pose_error_deg),
        ("geometry", scores["centre_offset"] > gates.max_centre_offset or abs(scores["size_ratio"] - 1) > gates.max_size_error),
    )
    return next((Verdict(False, reason) for reason, failed in checks if failed), ACCEPTED)
