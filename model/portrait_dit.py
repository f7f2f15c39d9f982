"""The portrait DiT (paper, section 3.3): SD3.5-Medium's blocks see a frame's noise, the source and the driving frame side by side,
and a temporal module before each block ties the frames together.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from model.controls import Controls, Text
from model.temporal import TemporalAttention

# Shape suffixes: B batch, F frames of the window, P previous frames (F' in the paper), N = P + F, C latent channels, H W latent rows and
# columns, S tokens of a frame, X = S, 2 S or 3 S image tokens of a frame with its controls, L text tokens, D width.


@dataclass(frozen=True, kw_only=True)
class PortraitConfig:
    """Sizes of the base model (names as in diffusers where they are the same thing) and of what is added to it."""

    layers: int = 4
    heads: int = 4
    head_dim: int = 32
    channels: int = 16  # of the latents
    patch: int = 2  # latent rows and columns per token
    sample_size: int = 32  # latent side that the position table's scale refers to
    position_grid: int = 48  # side of the position table, in tokens: three frames must fit side by side
    dual_layers: int = 2  # the first so many blocks have a second attention over image tokens alone
    text_dim: int = 32
    text_tokens: int = 4
    pooled_dim: int = 32
    frames: int = 8  # F, made at a time
    history: int = 3  # F', previous frames
    factorised: bool = False  # temporal attention along time only
    history_time: Literal["clean", "same"] = "clean"  # timestep that previous frames are given: 0, or that of the noisy frames

    def __post_init__(self) -> None:
        if self.history > self.frames:
            raise ValueError(f"history ({self.history}) must be at most frames ({self.frames}): previous frames come from one window")


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
)


class Slot(IntEnum):
    """Where a picture's tokens lie in the base's position table: shifted by so many frame sides, in rows and columns alike."""

    SOURCE = -1
    VIDEO = 0  # the noisy frames, and the frames before them
    DRIVING = 1


class PortraitDiT(nn.Module):
    """Predicts the velocity of a window of frames. At initialisation and without controls it is the base model, frame by frame.

    `base` is diffusers' own model and keeps its state dict, so weights travel in both directions; only `temporal` is new.
    """

    def __init__(self, config: PortraitConfig, base: SD3Transformer2DModel | None = None) -> None:
        super().__init__()
        self.config = config
        self.base = base if base is not None else new_base(config)
        self.temporal = nn.ModuleList(
            TemporalAttention(config.heads * config.head_dim, config.heads, config.history + config.frames, factorised=config.factorised)
            for _ in range(config.layers)
        )

    def forward(self, noisy_BFCHW: Tensor, timestep_B: Tensor, text: Text, controls: Controls) -> Tensor:
        """Velocity (noise minus data), float (B, F, C, H, W).

        Args:
            noisy_BFCHW: latents with noise; F at most `config.frames`.
            timestep_B: float in [0, 1000], 1000 times sigma.
            text: embedding of the prompt, one for each of the batch.
            controls: clean latents of the controls that are given.
        """
        b, f, _, h, w = noisy_BFCHW.shape
        assert f <= self.config.frames, f"{f} frames, the frame-number table has {self.config.frames}"
        z_BFSD = self._embed(noisy_BFCHW, Slot.VIDEO)
        fixed_BFXD = self._embed_controls(controls, z_BFSD)
        temb, context = self._condition(timestep_B, text, f)
        history_BPSD = history_temb = history_context = None
        if controls.history_BPCHW is not None:
            assert controls.history_BPCHW.shape[1] == self.config.history
            history_BPSD = self._embed(controls.history_BPCHW, Slot.VIDEO)
            history_timestep_B = timestep_B if self.config.history_time == "same" else torch.zeros_like(timestep_B)
            history_temb, history_context = self._condition(history_timestep_B, text, self.config.history)

        for temporal, block in zip(self.temporal, self.base.transformer_blocks, strict=True):
            history_BPSD, z_BFSD = self._across_frames(temporal, history_BPSD, z_BFSD)
            image_BFXD = torch.cat([z_BFSD, fixed_BFXD], dim=2)
            context, image = block(image_BFXD.flatten(0, 1), context, temb)
            z_BFSD, fixed_BFXD = image.unflatten(0, (b, f)).split([z_BFSD.shape[2], fixed_BFXD.shape[2]], dim=2)
            if history_BPSD is not None and not block.context_pre_only:  # after the last block nobody reads the history
                history_context, history = block(history_BPSD.flatten(0, 1), history_context, history_temb)
                history_BPSD = history.unflatten(0, (b, self.config.history))

        out = self.base.proj_out(self.base.norm_out(z_BFSD.flatten(0, 1), temb))
        return self._unpatchify(out, h, w).unflatten(0, (b, f))

    def _embed(self, latents_BFCHW: Tensor, slot: Slot) -> Tensor:
        """Patches of each frame with the positions of its slot, (B, F, S, D)."""
        b, f, _, h, w = latents_BFCHW.shape
        patches = self.base.pos_embed.proj(latents_BFCHW.flatten(0, 1)).flatten(2).transpose(1, 2)  # B F, S, D
        return patches.unflatten(0, (b, f)) + self.positions(h // self.config.patch, w // self.config.patch, slot)

    def _embed_controls(self, controls: Controls, z_BFSD: Tensor) -> Tensor:
        """Tokens of the source, repeated for every frame, and of the driving frames: (B, F, 0, S or 2 S, D)."""
        tokens = [z_BFSD[:, :, :0]]
        if controls.source_BCHW is not None:
            tokens.append(self._embed(controls.source_BCHW[:, None], Slot.SOURCE).expand_as(z_BFSD))
        if controls.driving_BFCHW is not None:
            tokens.append(self._embed(controls.driving_BFCHW, Slot.DRIVING))
        return torch.cat(tokens, dim=2)

    def positions(self, rows: int, columns: int, slot: Slot) -> Tensor:
        """Rows and columns of the base's position table for one slot, (S, D). Slots do not overlap.

        Raises:
            ValueError: frames so large that three do not fit into the table along its diagonal.
        """
        grid = self.config.position_grid
        top, left = (grid - rows) // 2, (grid - columns) // 2  # where the base model puts a picture
        top, left = top + slot * rows, left + slot * columns
        if min(top, left) < 0 or top + rows > grid or left + columns > grid:
            raise ValueError(f"frames of {rows} x {columns} tokens: three do not fit side by side into a position table of side {grid}")
        table = self.base.pos_embed.pos_embed.view(grid, grid, -1)
        return table[top : top + rows, left : left + columns].flatten(0, 1)

    def _condition(self, timestep_B: Tensor, text: Text, frames: int) -> tuple[Tensor, Tensor]:
        """What every block of `frames` frames is told: time and pooled text (B frames, D), and text tokens (B frames, L, D)."""
        temb = self.base.time_text_embed(timestep_B, text.pooled_BD)
        context = self.base.context_embedder(text.tokens_BLD)
        return temb.repeat_interleave(frames, 0), context.repeat_interleave(frames, 0)

    def _across_frames(self, temporal: nn.Module, history_BPSD: Tensor | None, z_BFSD: Tensor) -> tuple[Tensor | None, Tensor]:
        """Source and driving tokens stay out of it, and a frame has the same number with and without frames before it."""
        if history_BPSD is None:
            return None, z_BFSD + temporal(z_BFSD, first_frame=self.config.history)
        x_BNSD = torch.cat([history_BPSD, z_BFSD], dim=1)
        x_BNSD = x_BNSD + temporal(x_BNSD, first_frame=0)
        history, z = x_BNSD.split([history_BPSD.shape[1], z_BFSD.shape[1]], dim=1)
        return history, z

    def _unpatchify(self, tokens: Tensor, h: int, w: int) -> Tensor:
        """(B F, S, patch^2 C) to (B F, C, H, W)."""
        p = self.config.patch
        x = tokens.unflatten(1, (h // p, w // p)).unflatten(-1, (p, p, -1))  # rows, columns, p, p, C
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def new_base(config: PortraitConfig) -> SD3Transformer2DModel:
    """The base model of this size with fresh weights."""
    return SD3Transformer2DModel(
        sample_size=config.sample_size,
        patch_size=config.patch,
        in_channels=config.channels,
        num_layers=config.layers,
        attention_head_dim=config.head_dim,
        num_attention_heads=config.heads,
        joint_attention_dim=config.text_dim,
        caption_projection_dim=config.heads * config.head_dim,
        pooled_projection_dim=config.pooled_dim,
        out_channels=config.channels,
        pos_embed_max_size=config.position_grid,
        dual_attention_layers=tuple(range(config.dual_layers)),
        qk_norm="rms_norm",
    )


def no_text(config: PortraitConfig, batch: int, *, device: torch.device | None = None) -> Text:
    """The prompt used throughout: all zeros, which SD3 knows from training with each text encoder dropped to zeros."""
    tokens = torch.zeros(batch, config.text_tokens, config.text_dim, device=device)
    return Text(tokens, torch.zeros(batch, config.pooled_dim, device=device))
