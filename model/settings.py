"""What a training run is told: the config of `crosspair train`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from model.codec import BLOCK_PX
from model.objective import ObjectiveConfig
from model.portrait_dit import SD35_MEDIUM, TINY, PortraitConfig
from model.stream import StreamConfig

# These may differ between a run and the run that it resumes: they change no weight.
_FREE_ON_RESUME = {"shards", "out", "steps", "checkpoint_every", "keep_checkpoints", "log_every", "sheet", "cpus", "max_failures"}


@dataclass(frozen=True, kw_only=True)
class SheetConfig:
    """The contact sheet at the end: source | masked driving | target | sampled."""

    steps: int = 10  # of sampling; 0 makes no sheet
    rows: int = 4  # frames shown


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    shards: Path  # a pair set's folder, RUN/shards/SET, or a RUN with only one
    out: Path  # the training run's own folder; run again to resume
    model: Literal["tiny", "sd35_medium"] = "tiny"
    frames: int | None = None  # F and F'; None: the preset's
    history: int | None = None
    factorised: bool = False
    frame_px: int | None = None  # None: as in the shards
    mask_dilation: float = 0.01  # of the frame's side
    split: str = "train"
    steps: int = 100
    history_from_step: int = 0  # previous frames are dropped before this step: the paper's first stage, 40 000 of its 50 000 steps
    batch_size: int = 1
    lr: float = 1e-4
    warmup: int = 10  # steps over which the learning rate rises to `lr`; constant afterwards
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    seed: int = 0
    log_every: int = 1
    checkpoint_every: int = 50
    keep_checkpoints: int = 3
    sheet: SheetConfig = field(default_factory=SheetConfig)
    cpus: int = 1  # of the worker
    max_failures: int = 1  # times that a worker's death is answered by resuming

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints", "cpus", "frames", "frame_px")
        for name in positive:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.history is not None and self.history < 0:
            raise ValueError(f"history must be at least 0, not {self.history}")

    def portrait(self) -> PortraitConfig:
        preset = {"tiny": TINY, "sd35_medium": SD35_MEDIUM}[self.model]
        frames = preset.frames if self.frames is None else self.frames
        history = preset.history if self.history is None else self.history
        return replace(preset, frames=frames, history=history, factorised=self.factorised)

    def stream(self) -> StreamConfig:
        portrait = self.portrait()
        return StreamConfig(
            frames=portrait.frames,
            history=portrait.history,
            frame_px=self.frame_px,
            mask_dilation=self.mask_dilation,
            split=self.split,
            seed=self.seed,
        )

    def check_frame_px(self, frame_px: int) -> None:
        """Raises ValueError for a side that the codec, the patches or the position table cannot take."""
        portrait = self.portrait()
        unit = BLOCK_PX * portrait.patch
        largest = portrait.position_grid // 3 * unit
        if frame_px % unit or frame_px > largest:
            raise ValueError(f"frames of {frame_px} px: model {self.model!r} takes multiples of {unit} up to {largest}; set `frame_px`")

    def fixed(self) -> str:
        """The part that must not change when a run is resumed, as JSON."""
        return json.dumps({k: v for k, v in asdict(self).items() if k not in _FREE_ON_RESUME}, sort_keys=True)
