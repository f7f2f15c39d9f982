"""Quality: which scores of a driving video are good enough to train on, in the order in which its faults are told apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from schemas.outcomes import ACCEPTED, Verdict
from stages.truth import NOT_MEASURED


@dataclass(frozen=True, kw_only=True)
class QualityGates:
    """Thresholds on stored scores (stages.truth.score, pictures, likeness): changing one renders nothing again."""

    max_black_frames: float = 0.0  # shares of driving frames
    max_clipped_frames: float = 0.0
    max_target_likeness: float = 0.85  # correlation of the faces' pictures, A's and the driving one; of two people's rarely above 0.6
    max_csim_performer: float = 0.7  # CSIM(driving, A), with an identity network
    max_mirrored: float = 0.5  # correlation with mirrored A, where that is nearer
    max_hole: float = 0.005  # share of the worst frame that is black, and is not in the portrait
    max_torn: float = 0.01  # share of the worst frame that is unlike all that was near it one frame before
    max_lost_frames: float = 0.02  # without a face
    min_valid_masks: float = 0.7  # share of outlines that can be seen, over all frames; an eye behind the nose takes a quarter
    max_frozen_frames: float = 0.3  # of those in which A moves
    max_lag_frames: float = 0.5
    min_quick_correlation: float = 0.2  # of all motion that is quicker than half a second
    min_motion_correlation: float = 0.5  # of all motion
    min_csim_margin: float = 0.1  # CSIM(driving, B) - CSIM(driving, A), with an identity network
    min_csim_appearance: float = -1.0
    max_yaw_deg: float = 60.0  # of the driving head, 95th percentile over the clip
    max_pitch_deg: float = 45.0
    max_roll_deg: float = 50.0
    max_pose_error_deg: float = 6.0  # mean angle between the heads
    max_pose_error_p95_deg: float = 12.0
    max_centre_offset: float = 0.05  # head's centre, in head sizes
    max_size_error: float = 0.05  # |head size ratio - 1|
    max_jitter_ratio: float = 3.0  # to A's own
    min_mouth_correlation: float = 0.3
    max_mouth_error: float = 0.25  # mouth widths
    min_eye_correlation: float = 0.0
    max_eye_error: float = 0.8  # of an open eye
    min_gaze_correlation: float = -1.0
    max_gaze_error: float = 0.15  # eye widths


@dataclass(frozen=True)
class PairGate:
    """One row of the table of thresholds: a score, the field of QualityGates that bounds it, and the reason when it is beyond.

    `best`: a perfect pair's score.
    """

    reason: str
    score: str
    field: str
    best: float = 0.0

    @property
    def is_minimum(self) -> bool:
        return self.field.startswith("min_")

    def closes(self, scores: Mapping[str, float], gates: QualityGates) -> bool:
        """What was not measured closes nothing."""
        value, bound = scores.get(self.score, NOT_MEASURED), float(getattr(gates, self.field))
        return value != NOT_MEASURED and (value < bound if self.is_minimum else value > bound)

    def used(self, scores: Mapping[str, float], gates: QualityGates) -> float:
        """How far the score is on the way from the best one to the bound: above 1 it is rejected. 0 for what was not measured."""
        value, bound = scores.get(self.score, NOT_MEASURED), float(getattr(gates, self.field))
        way = self.best - bound if self.is_minimum else bound - self.best
        gone = self.best - value if self.is_minimum else value - self.best
        if value == NOT_MEASURED or gone <= 0:
            return 0.0
        return gone / way if way > 0 else 2.0  # nothing at all is allowed


# First what is no picture at all, or the wrong one as a whole; then what is no whole picture or shows no face, of which the rest would say
# anything; then whose motion it is and when, and who is seen; then how well it is done.
GATES = (
    PairGate("black_frames", "black_frames", "max_black_frames"),
    PairGate("clipped_frames", "clipped_frames", "max_clipped_frames"),
    PairGate("wrong_person", "target_likeness", "max_target_likeness"),
    PairGate("wrong_person", "csim_performer", "max_csim_performer"),
    PairGate("mirrored", "mirrored", "max_mirrored"),
    PairGate("black_block", "hole", "max_hole"),
    PairGate("torn_picture", "torn", "max_torn"),
    PairGate("lost_driving_face", "lost_frames", "max_lost_frames"),
    PairGate("invalid_masks", "valid_masks", "min_valid_masks", best=1.0),
    PairGate("frozen", "frozen_frames", "max_frozen_frames"),
    PairGate("out_of_step", "lag_frames", "max_lag_frames"),
    PairGate("wrong_motion", "quick_correlation", "min_quick_correlation", best=1.0),
    PairGate("wrong_motion", "motion_correlation", "min_motion_correlation", best=1.0),
    PairGate("wrong_person", "csim_margin", "min_csim_margin", best=1.0),
    PairGate("wrong_person", "csim_appearance", "min_csim_appearance", best=1.0),
    PairGate("pose_range", "yaw_extreme_deg", "max_yaw_deg"),
    PairGate("pose_range", "pitch_extreme_deg", "max_pitch_deg"),
    PairGate("pose_range", "roll_extreme_deg", "max_roll_deg"),
    PairGate("pose_error", "pose_error_deg", "max_pose_error_deg"),
    PairGate("pose_error", "pose_error_p95_deg", "max_pose_error_p95_deg"),
    PairGate("geometry", "centre_offset", "max_centre_offset"),
    PairGate("geometry", "size_error", "max_size_error"),
    PairGate("jitter", "jitter_ratio", "max_jitter_ratio"),
    PairGate("mouth_apart", "mouth_correlation", "min_mouth_correlation", best=1.0),
    PairGate("mouth_apart", "mouth_error", "max_mouth_error"),
    PairGate("eyes_apart", "eye_correlation", "min_eye_correlation", best=1.0),
    PairGate("eyes_apart", "eye_error", "max_eye_error"),
    PairGate("gaze_apart", "gaze_correlation", "min_gaze_correlation", best=1.0),
    PairGate("gaze_apart", "gaze_error", "max_gaze_error"),
)


def decide(scores: Mapping[str, float], gates: QualityGates) -> Verdict:
    """Accepts, or names the first gate of the table that the scores fail."""
    return next((Verdict(False, gate.reason) for gate in GATES if gate.closes(scores, gates)), ACCEPTED)


def worst(scores: Mapping[str, float], gates: QualityGates) -> tuple[float, str]:
    """The largest share of what a threshold allows that the scores take up, and of which score: by it pairs are put in order."""
    return max((gate.used(scores, gates), gate.score) for gate in GATES if gate.reason != "pose_range")
