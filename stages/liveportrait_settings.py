"""What a run may say of the LivePortrait engine. Apart from the engine, so that reading a config needs no ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

NAME, VERSION = "liveportrait", 1
MOTION_WEIGHTS = ("motion", "landmark", "export")  # what of a run's digests a motion template depends on


@dataclass(frozen=True, kw_only=True)
class LivePortraitConfig:
    mode: Literal["absolute", "relative", "image"] = "absolute"  # only absolute motion lies in A's frame, as pairs must
    stitching: bool = False  # keeps the shoulders where the portrait has them, for pasting back: not for pairs
    smoothing_frames: float = 0.0  # sigma of a gaussian over A's motion, against jitter
    calibration_frames: int = 8  # drawn and looked at, so that size and place can be corrected before the clip is drawn; 0: none
    precision: Literal["fp32", "fp16"] = "fp32"  # of graphs made from .pth files
    provider: Literal["auto", "cuda", "cpu"] = "auto"  # auto: CUDA where it starts, else the CPU
    batch: int = 8  # frames drawn in one call
    threads: int = 0  # of a worker on the CPU; 0: its share of the CPUs

    def __post_init__(self) -> None:
        if self.batch < 1 or self.threads < 0 or self.calibration_frames < 0 or self.smoothing_frames < 0:
            raise ValueError("reenactor.liveportrait: batch must be at least 1; threads, calibration_frames, smoothing_frames at least 0")

    def motion_settings(self) -> dict[str, Any]:
        """What a motion template depends on."""
        return {"smoothing_frames": self.smoothing_frames}

    def render_settings(self) -> dict[str, Any]:
        """What the frames depend on besides. Device, batch and threads change last digits only."""
        names = ("mode", "stitching", "calibration_frames")  # precision is the graphs', which have digests
        return {name: getattr(self, name) for name in names}
