"""The control signals of the paper (section 3.2): what conditions a window of frames, and the four sets of them that guidance combines."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

# Shape suffixes: B batch, F frames of the window, P previous frames (F' in the paper), C latent channels, H W latent rows and columns,
# L text tokens, D token width.


class Dropped(StrEnum):
    """What takes the place of a control that is dropped; the paper does not say. Training and sampling obey the model's own choice."""

    REMOVED = "removed"  # nothing: its tokens are left out, so nothing can leak and the pass is shorter
    ZERO_LATENTS = "zero_latents"  # zeros instead of its latents: the patch embedding's bias and its positions stay
    ZERO_TOKENS = "zero_tokens"  # zeros instead of its embedded tokens


class Kept(NamedTuple):
    """Which controls a forward pass sees."""

    source: bool = False
    driving: bool = False
    history: bool = False


# The four input configurations of section 3.4, each with one control more than the one before.
U, S, D, P = Kept(), Kept(source=True), Kept(source=True, driving=True), Kept(source=True, driving=True, history=True)


@dataclass(frozen=True, kw_only=True)
class Controls:
    """Latents of the control signals; None is a dropped one, and the model knows what that means (`Dropped`)."""

    source_BCHW: Tensor | None = None  # a still of the person to animate
    driving_BFCHW: Tensor | None = None  # eyes, nose and mouth of the driving video, the rest black
    history_BPCHW: Tensor | None = None  # the target's frames just before the window

    def keep(self, kept: Kept) -> Controls:
        """Without the controls that are not kept."""
        return Controls(
            source_BCHW=self.source_BCHW if kept.source else None,
            driving_BFCHW=self.driving_BFCHW if kept.driving else None,
            history_BPCHW=self.history_BPCHW if kept.history else None,
        )

    def to(self, dtype: torch.dtype) -> Controls:
        return Controls(**{name: None if x is None else x.to(dtype) for name, x in vars(self).items()})


class Text(NamedTuple):
    """The prompt, which the paper barely uses: the pictures carry what has to be said."""

    tokens_BLD: Tensor
    pooled_BD: Tensor
