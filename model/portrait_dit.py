"""The portrait DiT (paper, section 3.3): SD3.5-Medium's blocks see a frame's noise, the source and the driving frame side by side,
and a temporal module before each block ties the frames together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from model.controls import Controls, Dropped, Kept, Text
from model.mmdit import Block
from model.modulation import Bank, Modulation, tell, tell_all
from model.portrait_config import SD35_MEDIUM, TINY, PortraitConfig
from model.positions import Slot, cut_positions, slot_corner
from model.sd35 import load_base, new_base, sized_as
from model.temporal import TemporalAttention

__all__ = ["SD35_MEDIUM", "TINY", "Bank", "Modulation", "PortraitConfig", "PortraitDiT", "Slot", "no_text"]

# Shape suffixes: B batch, F frames of the window, P previous frames (F' in the paper), N = P + F, C latent channels, H W latent rows and
# columns, S tokens of a frame, X = 0, S or 2 S tokens of a frame's controls, L text tokens, K denoising steps, D width.


class PortraitDiT(nn.Module):
    """Predicts the velocity of a window of frames. At initialisation and without controls it is the base model, frame by frame.

    Only `temporal` is new. `base` holds the rest under diffusers' names, so weights travel in both directions; it is taken over: its
    position table is cut (`PortraitConfig.frame_tokens`) and its blocks are run by this model's `forward` alone.

    Raises:
        ValueError: the base's position table is neither as large as `config.position_grid` nor cut to what `config` keeps of it.
    """

    def __init__(self, config: PortraitConfig, base: SD3Transformer2DModel | None = None) -> None:
        super().__init__()
        self.config = config
        self.base = base if base is not None else new_base(config)
        side = self.base.config.pos_embed_max_size
        if side not in (config.position_grid, config.table_side):
            raise ValueError(f"the base's position table has side {side}, not {config.position_grid} or, cut already, {config.table_side}")
        cut_positions(self.base, config.table_side)
        self.base.transformer_blocks = nn.ModuleList(Block(block) for block in self.base.transformer_blocks)
        self.temporal = nn.ModuleList(
            TemporalAttention(
                config.width,
                config.heads,
                config.history + config.frames,
                factorised=config.factorised,
                frame_encoding=config.frame_encoding,
                ffn=config.temporal_ffn,
            )
            for _ in range(config.layers)
        )

    @classmethod
    def from_pretrained(cls, folder: Path, config: PortraitConfig = SD35_MEDIUM, *, dtype: torch.dtype = torch.float32) -> PortraitDiT:
        """The base in `folder` (Stable Diffusion 3.5 Medium in diffusers' layout) with fresh temporal modules, on the CPU.

        `config` says what is added; the sizes of the base in it give way to those of the folder. Seed torch before: the new modules'
        input layers are random.

        Raises:
            ValueError: `folder` holds no such model, or one whose position table is too small for `config.frame_tokens`.
        """
        base = load_base(folder, dtype=dtype)
        try:
            config = sized_as(config, base)
        except ValueError as e:
            raise ValueError(f"{folder}: does not go together with what is asked of it: {e}") from e
        return cls(config, base).to(dtype)

    def forward(
        self,
        noisy_BFCHW: Tensor,
        timestep_B: Tensor,
        text: Text,
        controls: Controls,
        *,
        kept: Sequence[Kept] | None = None,
        modulation: Modulation | None = None,
        bank: Bank | None = None,
    ) -> Tensor:
        """Velocity (noise minus data), float (B, F, C, H, W).

        Args:
            noisy_BFCHW: latents with noise; F at most `config.frames`.
            timestep_B: float in [0, 1000], 1000 times sigma.
            text: embedding of the prompt, one for each of the batch or one for all.
            controls: clean latents of the controls that are given.
            kept: which of `controls` each of the batch sees, where they do not all see all. What is dropped for one of the batch has the
                meaning that it has for all, but that removed tokens cost their computing; not for frozen controls.
            modulation: this step's one of `modulations`, in place of `timestep_B` and `text`.
            bank: this window's `bank`, in place of the source and driving frames of `controls`.
        """
        b, f, _, h, w = noisy_BFCHW.shape
        assert f <= self.config.frames, f"{f} frames, there are numbers for {self.config.frames}"
        assert bank is None or self.config.frozen_controls, "only frozen controls are the same at all steps"
        assert kept is None or not self.config.frozen_controls
        there_B3 = torch.tensor(kept, device=noisy_BFCHW.device) if kept is not None else None
        z_BFSD = self._embed(noisy_BFCHW, Slot.VIDEO)
        fixed_BFXD = z_BFSD[:, :, :0]
        if self.config.frozen_controls:
            bank = bank or self.bank(text, controls, noisy_BFCHW)
        else:
            fixed_BFXD = self._embed_controls(controls, noisy_BFCHW, there_B3).expand(b, f, -1, -1)
        told = modulation.video if modulation is not None else tell(self.base, timestep_B, text)
        context_BFLD = told.context_BLD[:, None].expand(b, f, -1, -1)
        history_BPSD = self._embed_history(controls, noisy_BFCHW, there_B3)
        if history_BPSD is not None:
            told_history = modulation.history if modulation is not None else tell(self.base, self._history_time(timestep_B), text)
            history_context_BPLD = told_history.context_BLD[:, None].expand(b, self.config.history, -1, -1)
        seen_BX, seen_BN = self._attended(there_B3, controls, f, z_BFSD.shape[2])

        for i, (temporal, block) in enumerate(zip(self.temporal, self.base.transformer_blocks, strict=True)):
            history_BPSD, z_BFSD = self._across_frames(temporal, history_BPSD, z_BFSD, seen_BN)
            image = torch.cat([z_BFSD, fixed_BFXD], dim=2)
            given = bank.blocks[i] if bank is not None else None
            image, context_BFLD, _ = block(image, context_BFLD, told.block(i), seen_BX=seen_BX, given=given)
            z_BFSD, fixed_BFXD = image.split([z_BFSD.shape[2], fixed_BFXD.shape[2]], dim=2)
            if history_BPSD is not None and not block.last:  # after the last block nobody reads the history
                history_BPSD, history_context_BPLD, _ = block(history_BPSD, history_context_BPLD, told_history.block(i))

        time = told.time_BD.expand(b, -1).repeat_interleave(f, 0)
        return self._unpatchify(self.base.proj_out(self.base.norm_out(z_BFSD.flatten(0, 1), time)), h, w).unflatten(0, (b, f))

    def modulations(self, timesteps_K: Tensor, text: Text) -> list[Modulation]:
        """All that depends on timestep and text alone, for all steps at once; give each step of `forward` its own.

        Reads weights of blocks that are not run, so not for a model whose blocks are sharded.
        """
        video = tell_all(self.base, timesteps_K, text)
        clean = tell_all(self.base, timesteps_K.new_zeros(1), text)[0] if self.config.history_time == "clean" else None
        return [Modulation(told, clean or told) for told in video]

    def bank(self, text: Text, controls: Controls, noisy_BFCHW: Tensor) -> Bank:
        """One pass over the source and driving tokens alone, at timestep 0. Of the noisy frames only the shape counts."""
        assert self.config.frozen_controls
        fixed_BFXD = self._embed_controls(controls, noisy_BFCHW)
        b, f, x, _ = fixed_BFXD.shape
        if x == 0:
            return Bank((None,) * self.config.layers)
        told = tell(self.base, torch.zeros(b, device=noisy_BFCHW.device), text)
        context_BFLD = told.context_BLD[:, None].expand(b, f, -1, -1)
        blocks = []
        for block in self.base.transformer_blocks:
            fixed_BFXD, context_BFLD, keys = block(fixed_BFXD, context_BFLD, told.time_BD, hand_out=True)
            blocks.append(keys)
        return Bank(tuple(blocks))

    def positions(self, rows: int, columns: int, slot: Slot) -> Tensor:
        """Rows and columns of the base's position table for one slot, (S, D)."""
        side = self.config.table_side
        top, left = slot_corner(self.config, rows, columns, slot)
        return self.base.pos_embed.pos_embed.view(side, side, -1)[top : top + rows, left : left + columns].flatten(0, 1)

    def _embed(self, latents_BFCHW: Tensor, slot: Slot) -> Tensor:
        """Patches of each frame with the positions of its slot, (B, F, S, D)."""
        b, f, _, h, w = latents_BFCHW.shape
        patches = self.base.pos_embed.proj(latents_BFCHW.flatten(0, 1)).flatten(2).transpose(1, 2)  # B F, S, D
        positions = self.positions(h // self.config.patch, w // self.config.patch, slot)
        return (patches + positions).to(patches.dtype).unflatten(0, (b, f))

    def _embed_or_drop(self, latents_BFCHW: Tensor | None, slot: Slot, like_BFCHW: Tensor, there_B: Tensor | None = None) -> Tensor | None:
        """Tokens of a control, or of what takes the place of a dropped one: for all of the batch, or for those that are not `there_B`."""
        if latents_BFCHW is not None and there_B is not None:
            tokens = self._embed(latents_BFCHW.where(there_B[:, None, None, None, None], 0), slot)
            return tokens.where(there_B[:, None, None, None], 0) if self.config.dropped == Dropped.ZERO_TOKENS else tokens
        if latents_BFCHW is not None:
            return self._embed(latents_BFCHW, slot)
        if self.config.dropped == Dropped.REMOVED:
            return None
        tokens = self._embed(torch.zeros_like(like_BFCHW), slot)
        return tokens if self.config.dropped == Dropped.ZERO_LATENTS else torch.zeros_like(tokens)

    def _embed_controls(self, controls: Controls, noisy_BFCHW: Tensor, there_B3: Tensor | None = None) -> Tensor:
        """Tokens of the source and the driving frames, (B, F, X, D); F is 1 when all frames have the same."""
        source_B1CHW = controls.source_BCHW[:, None] if controls.source_BCHW is not None else None
        there = there_B3.unbind(1) if there_B3 is not None else (None, None, None)
        source = self._embed_or_drop(source_B1CHW, Slot.SOURCE, noisy_BFCHW[:, :1], there[0])
        driving = self._embed_or_drop(controls.driving_BFCHW, Slot.DRIVING, noisy_BFCHW, there[1])
        tokens = [t for t in (source, driving) if t is not None]
        if not tokens:
            return noisy_BFCHW.new_zeros(len(noisy_BFCHW), 1, 0, self.config.width)
        frames = max(t.shape[1] for t in tokens)
        return torch.cat([t.expand(-1, frames, -1, -1) for t in tokens], dim=2)

    def _embed_history(self, controls: Controls, noisy_BFCHW: Tensor, there_B3: Tensor | None) -> Tensor | None:
        previous = self.config.history
        if not previous:
            return None
        assert controls.history_BPCHW is None or controls.history_BPCHW.shape[1] == previous
        slot = Slot.VIDEO if self.config.history_slot == "video" else Slot.HISTORY
        like = noisy_BFCHW[:, :1].expand(-1, previous, -1, -1, -1)
        return self._embed_or_drop(controls.history_BPCHW, slot, like, there_B3[:, 2] if there_B3 is not None else None)

    def _attended(self, there_B3: Tensor | None, controls: Controls, f: int, s: int) -> tuple[Tensor | None, Tensor | None]:
        """Which image tokens (B, X) and which frames (B, N) are attended to, where some of the batch have tokens that are removed."""
        if there_B3 is None or self.config.dropped != Dropped.REMOVED:
            return None, None
        always_B1 = torch.ones_like(there_B3[:, :1])
        pictures = [always_B1]
        pictures += [there_B3[:, :1]] if controls.source_BCHW is not None else []
        pictures += [there_B3[:, 1:2]] if controls.driving_BFCHW is not None else []
        frames = torch.cat([there_B3[:, 2:].expand(-1, self.config.history), always_B1.expand(-1, f)], dim=1)
        return torch.cat(pictures, dim=1).repeat_interleave(s, 1), frames

    def _history_time(self, timestep_B: Tensor) -> Tensor:
        return timestep_B if self.config.history_time == "same" else torch.zeros_like(timestep_B)

    def _across_frames(
        self, temporal: nn.Module, history_BPSD: Tensor | None, z_BFSD: Tensor, seen_BN: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        """Source and driving tokens stay out of it, and a frame has the same number with and without frames before it."""
        if history_BPSD is None:
            return None, z_BFSD + temporal(z_BFSD, first_frame=self.config.history)
        x_BNSD = torch.cat([history_BPSD, z_BFSD], dim=1)
        if not self.config.temporal_updates_history:
            return history_BPSD, z_BFSD + temporal(x_BNSD, first_frame=0, only_read=self.config.history, seen_BN=seen_BN)
        history, z = (x_BNSD + temporal(x_BNSD, first_frame=0, seen_BN=seen_BN)).split([self.config.history, z_BFSD.shape[1]], dim=1)
        return history, z

    def _unpatchify(self, tokens: Tensor, h: int, w: int) -> Tensor:
        """(B F, S, patch^2 C) to (B F, C, H, W)."""
        p = self.config.patch
        x = tokens.unflatten(1, (h // p, w // p)).unflatten(-1, (p, p, -1))  # rows, columns, p, p, C
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def no_text(config: PortraitConfig, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Text:
    """The prompt used throughout: all zeros, which SD3 knows from training with each text encoder dropped to zeros."""
    tokens = torch.zeros(batch, config.text_tokens, config.text_dim, device=device, dtype=dtype)
    return Text(tokens, torch.zeros(batch, config.pooled_dim, device=device, dtype=dtype))
