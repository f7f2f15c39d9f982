"""The passes of one step of guidance: one after the other, or as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from model.controls import Controls, Kept, Text
from model.modulation import Bank
from model.portrait_dit import PortraitConfig, PortraitDiT

# Shape suffixes: B batch, F frames of the window, C latent channels, H W latent rows and columns.

Branches = Literal["sequential", "batched"]


class Denoiser(Protocol):
    """What sampling asks of a model: `PortraitDiT`, or whatever else knows a velocity."""

    config: PortraitConfig

    def __call__(self, noisy_BFCHW: Tensor, timestep_B: Tensor, text: Text, controls: Controls) -> Tensor:
        """Velocity (noise minus data), (B, F, C, H, W)."""


class Ask(NamedTuple):
    """What one pass sees."""

    text: Text
    kept: Kept


def ask_all(
    model: Denoiser, noisy_BFCHW: Tensor, timestep_B: Tensor, controls: Controls, asks: Sequence[Ask], branches: Branches
) -> list[Tensor]:
    """The velocity of each ask, in their order.

    "batched" agrees with "sequential" within rounding. It pays where one pass is too small to fill the machine: where dropped controls have
    no tokens, a batch computes them all the same and hides them from the others, which at the paper's size is a third more work. Models
    other than `PortraitDiT`, and those with frozen controls, are asked one after the other.
    """
    if branches == "sequential" or not isinstance(model, PortraitDiT) or model.config.frozen_controls:
        return [model(noisy_BFCHW, timestep_B, ask.text, controls.keep(ask.kept)) for ask in asks]
    n, b = len(asks), len(noisy_BFCHW)
    seen = controls.keep(Kept(*(any(of_one) for of_one in zip(*(ask.kept for ask in asks), strict=True))))  # by any
    for_each = Controls(**{name: None if x is None else torch.cat([x] * n) for name, x in vars(seen).items()})
    texts = [Text(ask.text.tokens_BLD.expand(b, -1, -1), ask.text.pooled_BD.expand(b, -1)) for ask in asks]
    text = Text(torch.cat([t.tokens_BLD for t in texts]), torch.cat([t.pooled_BD for t in texts]))
    kept = [ask.kept for ask in asks for _ in range(b)]
    return list(model(torch.cat([noisy_BFCHW] * n), timestep_B.repeat(n), text, for_each, kept=kept).chunk(n))


class Banked:
    """A model with frozen controls, for one window: what its source and driving tokens say is computed once, not at every step."""

    def __init__(self, model: PortraitDiT) -> None:
        self.config = model.config
        self._model = model
        self._banks: dict[tuple[int, bool, bool], Bank] = {}

    def __call__(self, noisy_BFCHW: Tensor, timestep_B: Tensor, text: Text, controls: Controls) -> Tensor:
        """As the model's; the same text and controls are asked with throughout."""
        key = (id(text.tokens_BLD), controls.source_BCHW is None, controls.driving_BFCHW is None)
        if key not in self._banks:
            self._banks[key] = self._model.bank(text, controls, noisy_BFCHW)
        return self._model(noisy_BFCHW, timestep_B, text, controls, bank=self._banks[key])
