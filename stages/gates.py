"""Gates: what is measured of a face clip or a still, and which measures are good enough. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schemas.outcomes import ACCEPTED, Verdict
from stages.head import eye_opening, face_boxes, face_size, fit_pose, mouth_opening


@dataclass(frozen=True, kw_only=True)
class FaceGates:
    """Thresholds on stored scores: changing one measures nothing again."""

    min_face_px: int = 96  # longer side of the face in the source, median over the clip
    min_crop_scale: float = 1.15  # crop side / face size, where the frame's border leaves no more
    max_upscale: float = 3.0  # size_px / crop side in the source
    max_yaw_deg: float = 50.0
    max_pitch_deg: float = 40.0
    max_roll_deg: float = 45.0
    max_other_faces: float = 0.1  # share of looks with a second face of comparable size in the crop
    min_brightness: float = 16.0  # luma of the face, 0..255, in its darkest frames (2nd percentile)


def score(points: np.ndarray, crop_side: int, size_px: int) -> dict[str, float]:
    """Scores of a clip from its mesh points (T, 478, 3) in px of the crop; angles in degrees, sizes in px of the source."""
    face_px = float(np.median(face_size(face_boxes(points)))) * crop_side / size_px
    angles = fit_pose(points).euler_deg
    extreme = np.percentile(np.abs(angles), 95, axis=0)
    return {
        "face_px": face_px,
        "crop_scale": crop_side / face_px,
        "upscale": size_px / crop_side,
        "yaw_deg": float(np.median(angles[:, 0])),
        "pitch_deg": float(np.median(angles[:, 1])),
        "roll_deg": float(np.median(angles[:, 2])),
        "yaw_extreme_deg": float(extreme[0]),
        "pitch_extreme_deg": float(extreme[1]),
        "roll_extreme_deg": float(extreme[2]),
        "mouth_activity": float(mouth_opening(points).std()),
        "eye_activity": float(eye_opening(points).mean(1).std()),
    }


def decide(scores: dict[str, float], gates: FaceGates) -> Verdict:
    """Accepts or names the first gate that the scores fail."""
    checks = (
        ("face_too_small", scores["face_px"] < gates.min_face_px),
        ("several_faces", scores["other_faces"] > gates.max_other_faces),
        ("head_tilted", scores["roll_extreme_deg"] > gates.max_roll_deg),
        ("head_turned", scores["yaw_extreme_deg"] > gates.max_yaw_deg or scores["pitch_extreme_deg"] > gates.max_pitch_deg),
        ("face_fills_frame", scores["crop_scale"] < gates.min_crop_scale),
        ("upscaled", scores["upscale"] > gates.max_upscale),
        ("too_dark", scores["brightness"] < gates.min_brightness),
    )
    return next((Verdict(False, reason) for reason, failed in checks if failed), ACCEPTED)


def still_frame(points: np.ndarray, luma: np.ndarray) -> int:
    """The frame (of T) that serves best as a still: frontal, mouth closed, eyes open, lit as the clip mostly is."""
    yaw, pitch, _ = np.abs(fit_pose(points).euler_deg).T
    eyes = eye_opening(points).mean(1)
    shut = np.clip(np.median(eyes) - eyes, 0, None)
    dark = np.clip(1 - luma / max(float(np.median(luma)), 1.0), 0, None)
    return int(np.argmin(yaw / 20 + pitch / 20 + 3 * mouth_opening(points) + 5 * shut + 5 * dark))


def brightness(luma: np.ndarray) -> float:
    """Of a clip, from its faces' luma (T,): that of the darkest frames, where a fade begins or ends; one frame may err."""
    return float(np.percentile(luma, 2))


def face_luma(picture: np.ndarray, points: np.ndarray) -> float:
    """Mean luma of the face's box, 0..255."""
    x0, y0, x1, y1 = np.clip(face_boxes(points[None])[0], 0, len(picture) - 1).astype(int)
    part = picture[y0 : y1 + 1 : 4, x0 : x1 + 1 : 4]
    return float(part.reshape(-1, 3).mean(0) @ [0.299, 0.587, 0.114])
