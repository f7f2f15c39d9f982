"""The temporal module (paper, section 3.3): attention over the tokens of all frames of a window and of the frames before it."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Shape suffixes: B batch, N frames (previous ones first), M those of them that are updated, S tokens of a frame, D width, K of a head.


class TemporalAttention(nn.Module):
    """Full-video attention; returns the update to add to the tokens. Its output layers start at zero, so a fresh module changes nothing.

    The frame number is added after the norm: beside a pretrained model's residual stream, whose size grows with depth, it would be
    lost before it. Where in the frame a token lies it knows from the residual stream. It is not told the timestep.

    Args:
        width: D, as in the base model's blocks.
        heads: H.
        frames: how many frame numbers there are: previous frames and frames of the window.
        factorised: attend along time only, for each place in the frame on its own (the paper's ablation). Same parameters.
        frame_encoding: of the frame number: a learned table, or sines and cosines.
        ffn: a feed-forward after the attention.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        frames: int,
        *,
        factorised: bool,
        frame_encoding: Literal["learned", "sincos"] = "learned",
        ffn: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.factorised, self.frames = heads, factorised, frames
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.frame_number_ND = nn.Parameter(torch.randn(frames, width) * 0.02) if frame_encoding == "learned" else None
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_q, self.norm_k = nn.RMSNorm(width // heads, eps=1e-6), nn.RMSNorm(width // heads, eps=1e-6)
        self.out = nn.Linear(width, width)
        self.ff = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width)) if ffn else None
        for name, parameter in self.named_parameters():
            if name.startswith(("out.", "ff.2.")):
                nn.init.zeros_(parameter)

    def forward(self, x_BNSD: Tensor, *, first_frame: int, only_read: int = 0, seen_BN: Tensor | None = None) -> Tensor:
        """The update of all frames but the first `only_read`, (B, M, S, D).

        Args:
            x_BNSD: tokens.
            first_frame: number of x's first frame.
            only_read: so many of the first frames are read and not updated.
            seen_BN: False for frames that no token attends to; None: all are attended to.
        """
        b, n, s, d = x_BNSD.shape
        m = n - only_read
        assert first_frame >= 0 and first_frame + n <= self.frames, f"{n} frames from {first_frame} on, {self.frames} have numbers"
        y_BNSD = self.norm(x_BNSD) + self._numbers(x_BNSD)[first_frame : first_frame + n, None]
        y = y_BNSD.transpose(1, 2).reshape(b * s, n, d) if self.factorised else y_BNSD.reshape(b, n * s, d)
        q, k, v = self.qkv(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (batch, H, tokens, K)
        q = q[:, :, only_read * (1 if self.factorised else s) :]
        mask = None
        if seen_BN is not None:
            mask = (seen_BN.repeat_interleave(s, 0) if self.factorised else seen_BN.repeat_interleave(s, 1))[:, None, None]
        y = F.scaled_dot_product_attention(self.norm_q(q), self.norm_k(k), v, mask).transpose(1, 2).flatten(2)
        y = self.out(y)
        update = y.reshape(b, s, m, d).transpose(1, 2) if self.factorised else y.reshape(b, m, s, d)
        if self.ff is None:
            return update
        return update + self.ff(self.norm(x_BNSD[:, only_read:] + update))

    def _numbers(self, like: Tensor) -> Tensor:
        """Encodings of all frame numbers, (frames, D)."""
        if self.frame_number_ND is not None:
            return self.frame_number_ND
        half = self.norm.normalized_shape[0] // 2
        rates = torch.exp(torch.arange(half, device=like.device) * (-math.log(10000) / half))
        angles = torch.arange(self.frames, device=like.device)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=1).to(like.dtype)
