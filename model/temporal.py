"""The temporal module (paper, section 3.3): attention over the tokens of all frames of a window and of the frames before it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Shape suffixes: B batch, N frames (previous ones first), S tokens of a frame, D width, H heads, K width of a head.


class TemporalAttention(nn.Module):
    """Full-video attention; returns the update to add to the tokens. Its output layer starts at zero, so a fresh module changes nothing.

    The frame number is learned and added after the norm: beside a pretrained model's residual stream, whose size grows with
    depth, it would be lost before it. Where in the frame a token lies it knows from the residual stream.

    Args:
        width: D, as in the base model's blocks.
        heads: H.
        frames: length of the frame-number table: previous frames and frames of the window.
        factorised: attend along time only, for each place in the frame on its own (the paper's ablation). Same parameters.
    """

    def __init__(self, width: int, heads: int, frames: int, *, factorised: bool) -> None:
        super().__init__()
        self.heads, self.factorised = heads, factorised
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.frame_number_ND = nn.Parameter(torch.randn(frames, width) * 0.02)
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_q, self.norm_k = nn.RMSNorm(width // heads, eps=1e-6), nn.RMSNorm(width // heads, eps=1e-6)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x_BNSD: Tensor, *, first_frame: int) -> Tensor:
        """(B, N, S, D) to (B, N, S, D); `first_frame` is the number of x's first frame."""
        b, n, s, d = x_BNSD.shape
        y_BNSD = self.norm(x_BNSD) + self.frame_number_ND[first_frame : first_frame + n, None]
        y = y_BNSD.transpose(1, 2).reshape(b * s, n, d) if self.factorised else y_BNSD.reshape(b, n * s, d)
        q, k, v = self.qkv(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (batch, H, tokens, K)
        y = F.scaled_dot_product_attention(self.norm_q(q), self.norm_k(k), v).transpose(1, 2).flatten(2)
        y = self.out(y)
        return y.reshape(b, s, n, d).transpose(1, 2) if self.factorised else y.reshape(b, n, s, d)
