"""SD3.5's joint block over frames: text and picture tokens of one frame attend to each other, each with weights of its own.

The parts and their weights are diffusers' own (`JointTransformerBlock`); only the order of the calls is written down here, because three
things need a way in: adaLN vectors that were computed before, keys and values that were computed before, and frames as a dimension.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Shape suffixes: B batch, F frames, X image tokens of a frame with its controls, L text tokens, G tokens given from before, D width,
# H heads, K width of a head. B and F may be 1 where one entry serves all.


class Vectors(NamedTuple):
    """What adaLN tells a block: shifts, scales and gates, side by side."""

    image_BD: Tensor  # 9 D wide with a second attention, else 6 D
    context_BD: Tensor  # 6 D wide, 2 D in the last block


class KeysValues(NamedTuple):
    """Of the image tokens of one pass through a block, for its attention and, where there is one, its second one."""

    first: tuple[Tensor, Tensor]  # each (B, F, H, G, K)
    second: tuple[Tensor, Tensor] | None


class Block(nn.Module):
    """Adopts the parts of a `JointTransformerBlock` under the names they have there, so the state dict stays the same.

    Args:
        block: of an SD3.5-style model: with RMS-normed queries and keys.
    """

    attn: Any  # diffusers has no types
    attn2: Any

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.last: bool = block.context_pre_only  # nobody reads the text after it
        self.dual: bool = block.use_dual_attention
        self.norm1: Any = block.norm1
        self.norm1_context: Any = block.norm1_context
        self.attn = block.attn
        if self.dual:
            self.attn2 = block.attn2
        self.norm2: Any = block.norm2
        self.ff: Any = block.ff
        if not self.last:
            self.norm2_context: Any = block.norm2_context
            self.ff_context: Any = block.ff_context

    def vectors(self, time_BD: Tensor) -> Vectors:
        """adaLN vectors of each of the batch, from the embedding of its timestep and pooled text."""
        image, context = self.norm1, self.norm1_context
        return Vectors(image.linear(image.silu(time_BD)), context.linear(context.silu(time_BD)))

    def forward(
        self,
        image_BFXD: Tensor,
        context_BFLD: Tensor,
        time: Tensor | Vectors,
        *,
        seen_BX: Tensor | None = None,
        given: KeysValues | None = None,
        hand_out: bool = False,
    ) -> tuple[Tensor, Tensor, KeysValues | None]:
        """Image and text tokens after the block, and on demand (`hand_out`) the keys and values of the image tokens.

        Args:
            image_BFXD: picture tokens; each frame by itself.
            context_BFLD: text tokens of each frame; they come back unchanged from the last block.
            time: embedding of timestep and pooled text (B, D), or what `vectors` made of it.
            seen_BX: False for image tokens that no token attends to; None: all are attended to.
            given: keys and values that the image and text tokens read beside each other's.
        """
        vectors = time if isinstance(time, Vectors) else self.vectors(time)
        image_vectors = vectors.image_BD[:, None, None].chunk(9 if self.dual else 6, dim=-1)
        shift, scale, gate, shift_ff, scale_ff, gate_ff = image_vectors[:6]
        context_vectors = vectors.context_BD[:, None, None].chunk(2 if self.last else 6, dim=-1)
        context_scale, context_shift = context_vectors if self.last else (context_vectors[1], context_vectors[0])

        normed = self.norm1.norm(image_BFXD)
        x = normed * (1 + scale) + shift
        y = self.norm1_context.norm(context_BFLD) * (1 + context_scale) + context_shift
        x, y, first = self._joint_attention(x, y, seen_BX, given.first if given is not None else None)
        image = image_BFXD + gate * x
        second = None
        if self.dual:
            shift2, scale2, gate2 = image_vectors[6:]
            x, second = self._image_attention(normed * (1 + scale2) + shift2, seen_BX, given.second if given is not None else None)
            image = image + gate2 * x
        image = image + gate_ff * self.ff(self.norm2(image) * (1 + scale_ff) + shift_ff)
        keys = KeysValues(first, second) if hand_out else None
        if self.last:
            return image, context_BFLD, keys

        _, _, gate, shift_ff, scale_ff, gate_ff = context_vectors
        context = context_BFLD + gate * self.attn.to_add_out(y)
        context = context + gate_ff * self.ff_context(self.norm2_context(context) * (1 + scale_ff) + shift_ff)
        return image, context, keys

    def _joint_attention(
        self, x: Tensor, y: Tensor, seen_BX: Tensor | None, given: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """For image tokens x and text tokens y; those of the text are not projected yet."""
        a = self.attn
        q, k, v = a.norm_q(_split(a.to_q(x), a.heads)), a.norm_k(_split(a.to_k(x), a.heads)), _split(a.to_v(x), a.heads)
        context_q = a.norm_added_q(_split(a.add_q_proj(y), a.heads))
        context_k = a.norm_added_k(_split(a.add_k_proj(y), a.heads))
        context_v = _split(a.add_v_proj(y), a.heads)
        read_k, read_v = _beside((torch.cat([k, context_k], dim=3), torch.cat([v, context_v], dim=3)), given)
        out = _attend(torch.cat([q, context_q], dim=3), read_k, read_v, seen_BX)
        x_out, y_out = out.split([x.shape[2], y.shape[2]], dim=2)
        return a.to_out[0](x_out), y_out, (k, v)

    def _image_attention(
        self, x: Tensor, seen_BX: Tensor | None, given: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        a = self.attn2
        q, k, v = a.norm_q(_split(a.to_q(x), a.heads)), a.norm_k(_split(a.to_k(x), a.heads)), _split(a.to_v(x), a.heads)
        return a.to_out[0](_attend(q, *_beside((k, v), given), seen_BX)), (k, v)


def _split(x_BFND: Tensor, heads: int) -> Tensor:
    """(B, F, H, N, K)."""
    return x_BFND.unflatten(-1, (heads, -1)).transpose(2, 3)


def _beside(own: tuple[Tensor, Tensor], given: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Keys and values, with those given appended; a given one of one batch entry or frame serves all."""
    if given is None:
        return own
    k, v = (torch.cat([mine, more.expand(*mine.shape[:2], -1, -1, -1)], dim=3) for mine, more in zip(own, given, strict=True))
    return k, v


def _attend(q: Tensor, k: Tensor, v: Tensor, seen_BX: Tensor | None) -> Tensor:
    """(B, F, H, N, K) to (B, F, N, D), each frame by itself. Keys beyond the X of `seen_BX`, those of the text, are always attended to."""
    b, f = q.shape[:2]
    mask = None
    if seen_BX is not None:
        mask = F.pad(seen_BX, (0, k.shape[3] - seen_BX.shape[1]), value=True).repeat_interleave(f, 0)[:, None, None]
    out = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), mask)  # fast kernels want four dimensions
    return out.transpose(1, 2).flatten(2).unflatten(0, (b, f))
