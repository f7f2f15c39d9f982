"""What a portrait DiT is made of: the sizes of its base model, and each choice that the paper leaves open (docs/model.md lists them)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.controls import Dropped


@dataclass(frozen=True, kw_only=True)
class PortraitConfig:
    """Sizes of the base model (names as in diffusers where they are the same thing) and of what is added to it.

    Raises:
        ValueError: sizes that do not go together.
    """

    layers: int = 4
    heads: int = 4
    head_dim: int = 32
    channels: int = 16  # of the latents
    patch: int = 2  # latent rows and columns per token
    # Latent side that the position table's scale refers to. At 32 neighbours of a small picture would be a third of a radian apart: too
    # alike for a small model to learn within minutes which driving token belongs to which of its own.
    sample_size: int = 192
    position_grid: int = 48  # side of the base's own position table, in tokens
    dual_layers: int = 2  # the first so many blocks have a second attention over image tokens alone
    text_dim: int = 32
    text_tokens: int = 4
    pooled_dim: int = 32

    frames: int = 8  # F, made at a time
    history: int = 3  # F', previous frames
    frame_tokens: int | None = None  # longer side of a frame that the position table is cut to; None: the whole table is kept
    dropped: Dropped = Dropped.REMOVED  # what takes the place of a control that is dropped
    history_time: Literal["clean", "same"] = "clean"  # timestep that previous frames are given: 0, or that of the noisy frames
    history_slot: Literal["video", "own"] = "video"  # where they lie in the position table: with the noisy frames, or by themselves
    factorised: bool = False  # temporal attention along time only
    frame_encoding: Literal["learned", "sincos"] = "learned"
    temporal_ffn: bool = False  # a feed-forward after the temporal attention: three times the parameters of the temporal modules
    temporal_updates_history: bool = True  # False: previous frames are read by the temporal attention and stay as they are
    frozen_controls: bool = False  # source and driving tokens do not read the noisy ones, so one pass serves all steps; another model

    def __post_init__(self) -> None:
        if self.history > self.frames:
            raise ValueError(f"history ({self.history}) must be at most frames ({self.frames}): previous frames come from one window")
        if not 0 <= self.dual_layers <= self.layers:
            raise ValueError(f"dual_layers ({self.dual_layers}) must lie between 0 and layers ({self.layers})")
        largest = self.position_grid // 3
        if self.frame_tokens is not None and not 1 <= self.frame_tokens <= largest:
            raise ValueError(
                f"frame_tokens ({self.frame_tokens}) must lie between 1 and {largest}: three frames must fit side by side into a "
                f"position table of side {self.position_grid}"
            )

    @property
    def width(self) -> int:
        """D."""
        return self.heads * self.head_dim

    @property
    def table_side(self) -> int:
        """Side of the position table that is kept: three frames of `frame_tokens`, and as even or odd as the whole.

        With the same parity the middle of the cut table is the middle of the whole one for frames of any size, so the base model
        finds the same positions in both.
        """
        if self.frame_tokens is None:
            return self.position_grid
        side = 3 * self.frame_tokens
        return side + (self.position_grid - side) % 2


TINY = PortraitConfig()
SD35_MEDIUM = PortraitConfig(
    layers=24,
    heads=24,
    head_dim=64,
    sample_size=128,
    position_grid=384,
    dual_layers=13,
    text_dim=4096,
    text_tokens=154,  # 77 of CLIP and 77 of T5
    pooled_dim=2048,
    frames=16,
    frame_tokens=36,  # 576 px
)
