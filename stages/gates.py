"""Gates: what is measured of a face clip or a still, and which measures are good enough. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from schemas.outcomes import ACCEPTED, Verdict
from stages.head import eye_opening, face_boxes, face_size, fit_pose, mouth_opening

_OPEN_EYE = 0.25  # gap of the lids over the eye's width; people differ, so a wider one is no better
_SHARP = 0.1  # variance of the Laplacian over that of luma, of a good photograph


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
    max_hidden: float = 0.2  # share of the mouth, or of an eye, that a hand covers, at worst
    max_border_contact: float = 0.5  # share of frames in which the face touches the source picture's border
    min_headroom: float = -0.1  # space above the face in the crop, in face sizes; below 0 the brow is cut
    min_iris_contrast: float = 0.0  # of irises to the whites of the eyes; statues and masks have none. -2 lets them pass
    min_brightness: float = 16.0  # luma of the face, 0..255, in its darkest frames (2nd percentile)
    max_clipped: float = 0.5  # share of the face that is black or burnt out
    min_sharpness: float = 0.0  # 0 for a blank face; `crosspair report` shows what it is in this corpus
    max_crop_jitter: float = 0.1  # how much the face shakes from frame to frame, in face sizes
    # Of clips only; by default sound is not asked for.
    min_sound_share: float = 0.0  # of the time in which something is heard
    min_speech_likeness: float = 0.0  # 0..1
    min_lip_sound_correlation: float = -2.0  # -1..1; -2 where it cannot be measured


@dataclass(frozen=True)
class Gate:
    """One row of the table of thresholds: a score, the field of FaceGates that bounds it, and the reason when it is beyond."""

    reason: str
    score: str
    field: str

    @property
    def is_minimum(self) -> bool:
        return self.field.startswith("min_")

    def closes(self, scores: Mapping[str, float], gates: FaceGates) -> bool:
        """A score that was not measured, as a portrait's sound, closes nothing."""
        if self.score not in scores:
            return False
        bound: float = getattr(gates, self.field)
        return scores[self.score] < bound if self.is_minimum else scores[self.score] > bound


GATES = (
    Gate("face_too_small", "face_px", "min_face_px"),
    Gate("several_faces", "other_faces", "max_other_faces"),
    Gate("head_tilted", "roll_extreme_deg", "max_roll_deg"),
    Gate("head_turned", "yaw_extreme_deg", "max_yaw_deg"),
    Gate("head_turned", "pitch_extreme_deg", "max_pitch_deg"),
    Gate("face_fills_frame", "crop_scale", "min_crop_scale"),
    Gate("upscaled", "upscale", "max_upscale"),
    Gate("face_hidden", "hidden", "max_hidden"),
    Gate("face_cut_off", "border_contact", "max_border_contact"),
    Gate("face_cut_off", "headroom", "min_headroom"),
    Gate("too_dark", "brightness", "min_brightness"),
    Gate("badly_lit", "clipped", "max_clipped"),
    Gate("blank_eyes", "iris_contrast", "min_iris_contrast"),
    Gate("blurred", "sharpness", "min_sharpness"),
    Gate("shaky", "crop_jitter", "max_crop_jitter"),
    Gate("no_sound", "sound_share", "min_sound_share"),
    Gate("no_speech", "speech_likeness", "min_speech_likeness"),
    Gate("lips_apart", "lip_sound_correlation", "min_lip_sound_correlation"),
)


def score(points: np.ndarray, crop_side: int, size_px: int) -> dict[str, float]:
    """Scores of a clip from its mesh points (T, 478, 3) in px of the crop; angles in degrees, sizes in px of the source."""
    face_px = float(np.median(face_size(face_boxes(points)))) * crop_side / size_px
    pose = fit_pose(points)
    angles = pose.euler_deg
    extreme = np.percentile(np.abs(angles), 95, axis=0)
    mouth, eyes = mouth_opening(points, pose), eye_opening(points, pose).mean(1)
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
        "mouth_opening": float(np.median(mouth)),
        "eye_opening": float(np.median(eyes)),
        "mouth_activity": float(mouth.std()),
        "eye_activity": float(eyes.std()),
    }


def decide(scores: Mapping[str, float], gates: FaceGates) -> Verdict:
    """Accepts, or names the first gate of the table that the scores fail."""
    return next((Verdict(False, gate.reason) for gate in GATES if gate.closes(scores, gates)), ACCEPTED)


def still_frame(points: np.ndarray, luma: np.ndarray) -> int:
    """The frame (of T) that serves best as a still: frontal, mouth closed, eyes open, lit as the clip mostly is."""
    pose = fit_pose(points)
    yaw, pitch, _ = np.abs(pose.euler_deg).T
    eyes = eye_opening(points, pose).mean(1)
    shut = np.clip(np.median(eyes) - eyes, 0, None)
    dark = np.clip(1 - luma / max(float(np.median(luma)), 1.0), 0, None)
    return int(np.argmin(yaw / 20 + pitch / 20 + 3 * mouth_opening(points, pose) + 5 * shut + 5 * dark))


def still_quality(scores: Mapping[str, float]) -> float:
    """How well a still serves as a portrait, by its scores: frontal, mouth closed, eyes open, sharp, not enlarged. Higher is better.

    0 for a perfect one. What was not measured counts as good, so it is only for comparing what was measured alike.
    """
    turned = abs(scores["yaw_deg"]) / 20 + abs(scores["pitch_deg"]) / 20
    shut = max(0.0, _OPEN_EYE - scores.get("eye_opening", _OPEN_EYE))
    blurred = max(0.0, math.log2(_SHARP / max(scores.get("sharpness", _SHARP), 1e-3)))
    enlarged = max(0.0, math.log2(max(scores.get("upscale", 1.0), 1e-3)))
    return -(turned + 3 * scores.get("mouth_opening", 0.0) + 5 * shut + 0.25 * blurred + 0.25 * enlarged)


def brightness(luma: np.ndarray) -> float:
    """Of a clip, from its faces' luma (T,): that of the darkest frames, where a fade begins or ends; one frame may err."""
    return float(np.percentile(luma, 2))


def face_luma(picture: np.ndarray, points: np.ndarray) -> float:
    """Mean luma of the face's box, 0..255, of a picture uint8 RGB (H, W, 3), or of Y in limited range (H, W)."""
    x0, y0, x1, y1 = (int(min(max(v, 0), len(picture) - 1)) for v in face_boxes(points[None])[0].tolist())
    mean = cv2.mean(picture[y0 : y1 + 1, x0 : x1 + 1])
    return float(np.dot(mean[:3], [0.299, 0.587, 0.114])) if picture.ndim == 3 else min(max((mean[0] - 16) * 255 / 219, 0.0), 255.0)
