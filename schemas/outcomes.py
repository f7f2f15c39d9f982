"""How a unit ends, and why: one verdict each, in words that a person would use."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    DONE = "done"
    REJECTED = "rejected"  # looked at and not wanted: a reason code and the scores
    FAILED = "failed"  # an error of ours or of the machine: due again
    QUARANTINED = "quarantined"  # killed or hung its worker, alone


# Every reason code in use, with the sentence a user reads. Codes are a contract: add, never rename.
REASONS: dict[str, str] = {
    "no_consent": "the manifest does not say that whoever is to be seen has consented (`lineage.require_consent`)",
    "licence_not_allowed": "the manifest's licence is none of `lineage.licences`",
    "missing": "the file was listed and then could not be found; put it back, and the next run takes it up",
    "unreadable": "the file could not be opened for reading; mend its permissions and use `crosspair retry RUN --reason unreadable`",
    "symlink": "the path is a symbolic link; list the file it points to",
    "empty_file": "the file has no bytes; fetch it again, and the next run takes it up",
    "not_media": "no known video or image container; check what the file really is",
    "no_video": "the container holds no video stream",
    "truncated": "the container ends before its index; fetch the file again",
    "decode_error": "the decoder gave up before the first frame; re-encode or fetch the file again",
    "frame_too_large": "a frame has more pixels than `ingest.max_frame_pixels`",
    "frame_size_changes": "the picture changes size in mid-stream; split the file there",
    "too_many_frames": "the video has more frames than `ingest.max_frames`; cut it into parts",
    "duplicate": "another source file has the same content",
    "near_duplicate": "another clip or portrait shows almost the same pictures (`identity.max_hash_distance`)",
    "unknown_person": "it may show any of several people of its file, and its embedding does not tell whom (`identity.min_agreement`)",
    "forgotten": "it shows somebody whom this run was told to forget (`crosspair forget`), or may show him",
    "too_short": "shorter than `faces.min_clip_s`",
    "no_face": "no face was found",
    "lost_face": "the face was lost too often for one clip of at least `faces.min_clip_s`",
    "face_too_small": "the face is smaller than `gates.min_face_px`, or than `faces.min_track_px`",
    "face_fills_frame": "no room for a crop around the face inside the frame (`gates.min_crop_scale`)",
    "upscaled": "the crop would be enlarged by more than `gates.max_upscale`",
    "several_faces": "more than one face of comparable size in the picture",
    "face_hidden": "a hand covers mouth or eyes, or leaves them free for too short a time (`faces.max_hidden`, `gates.max_hidden`)",
    "face_cut_off": "the picture's border cuts the face (`gates.max_border_contact`, `gates.min_headroom`)",
    "blank_eyes": "the eyes show no irises: a statue, a mask, or shut eyes (`gates.min_iris_contrast`)",
    "head_turned": "the head turns beyond `gates.max_yaw_deg` or `gates.max_pitch_deg`",
    "head_tilted": "the head is tilted beyond `gates.max_roll_deg`; a rotation flag may be missing",
    "too_dark": "the face is darker than `gates.min_brightness`",
    "badly_lit": "more of the face is black or burnt out than `gates.max_clipped`",
    "blurred": "the face is less sharp than `gates.min_sharpness`",
    "shaky": "the face shakes more than `gates.max_crop_jitter`",
    "no_sound": "something is heard for less of the time than `gates.min_sound_share`",
    "no_speech": "the sound is less like speech than `gates.min_speech_likeness`",
    "lips_apart": "lips and sound go together less than `gates.min_lip_sound_correlation`",
    "no_partner": "no portrait of another identity is allowed for this clip",
    "not_finite": "the networks gave NaN or infinity; half precision on this GPU may be the cause, or damaged weights",
    "black_frames": "frames of the driving video are black; half precision on this GPU may be the cause",
    "clipped_frames": "frames of the driving video are almost nothing but black and white",
    "pose_range": "the driving head turns farther than `quality.max_yaw_deg`, `max_pitch_deg` or `max_roll_deg`",
    "pose_error": "the driving video's head pose strays from the target's",
    "geometry": "the driving head's place or size strays from the target's",
    "lost_driving_face": "no face was found in some frames of the driving video",
    "partner_gone": "its clip or its portrait is not accepted any more, or both are one person now",
    "timeout": "the unit took longer than its time limit",
    "hung": "the unit took longer than its time limit each time, and its worker with it",
    "out_of_memory": "the unit took more memory than `limits.memory_gb` allows",
    "worker_died": "the unit's worker died under it",
    "transient": "the machine or its network failed each time it was tried; `crosspair retry RUN --reason transient` when they are well",
    "error": "an unexpected error; see the message",
}


@dataclass(frozen=True)
class Verdict:
    """What a pure `decide` makes of scores. `reason` is empty when accepted, else a key of REASONS."""

    accepted: bool
    reason: str = ""

    def __post_init__(self) -> None:
        assert self.accepted == (self.reason == ""), self
        assert self.accepted or self.reason in REASONS, self.reason


ACCEPTED = Verdict(True)


class Rejection(ValueError):
    """Raised by a stage for input that is not wanted: a reason code, a message that names the file, and what was measured."""

    def __init__(self, reason: str, message: str, scores: dict[str, float] | None = None) -> None:
        assert reason in REASONS, reason
        super().__init__(message)
        self.reason = reason
        self.scores = scores or {}
