"""The passes of one step of guidance: one after the other, or as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from model.controls import Controls, Kept, Text
from model.modulation import Bank, Modulation
from model.objective import TIMESTEPS
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


class Prepared:
    """What the steps of one window have in common, computed before the first of them: what timestep and text say to each block and, with
    frozen controls, what source and driving tokens do.

    Args:
        sigmas: noise levels of the steps.
    """

    def __init__(self, model: PortraitDiT, sigmas: Sequence[float]) -> None:
        self._model = model
        self._sigmas = {sigma: k for k, sigma in enumerate(dict.fromkeys(sigmas))}  # two may be one float
        self._told: dict[int, tuple[Text, list[Modulation]]] = {}  # the text too, or its id might become another's
        self._banks: dict[tuple[int, bool, bool], Bank] = {}

    def modulation(self, text: Text, sigma: float) -> Modulation:
        key = id(text.tokens_BLD)
        if key not in self._told:
            timesteps_K = TIMESTEPS * torch.tensor(list(self._sigmas), device=text.tokens_BLD.device)
            self._told[key] = text, self._model.modulations(timesteps_K, text)
        return self._told[key][1][self._sigmas[sigma]]

    def bank(self, text: Text, controls: Controls, noisy_BFCHW: Tensor) -> Bank | None:
        if not self._model.config.frozen_controls:
            return None
        key = (id(text.tokens_BLD), controls.source_BCHW is None, controls.driving_BFCHW is None)
        if key not in self._banks:
            self._banks[key] = self._model.bank(text, controls, noisy_BFCHW)
        return self._banks[key]


def ask_all(
    model: Denoiser,
    noisy_BFCHW: Tensor,
    sigma: float,
    controls: Controls,
    asks: Sequence[Ask],
    branches: Branches,
    prepared: Prepared | None = None,
) -> list[Tensor]:
    """The velocity of each ask, in their order.

    "batched" agrees with "sequential" within rounding. It pays where one pass is too small to fill the machine: where dropped controls have
    no tokens, a batch computes them all the same and hides them from the others, which at the paper's size is a third more work. Models
    other than `PortraitDiT`, and those with frozen controls, are asked one after the other.
    """
    b = len(noisy_BFCHW)
    timestep_B = torch.full((b,), TIMESTEPS * sigma, device=noisy_BFCHW.device)
    if not isinstance(model, PortraitDiT):
        return [model(noisy_BFCHW, timestep_B, ask.text, controls.keep(ask.kept)) for ask in asks]
    if branches == "sequential" or model.config.frozen_controls:
        out = []
        for ask in asks:
            seen = controls.keep(ask.kept)
            modulation = prepared.modulation(ask.text, sigma) if prepared else None
            bank = prepared.bank(ask.text, seen, noisy_BFCHW) if prepared else None
            out.append(model(noisy_BFCHW, timestep_B, ask.text, seen, modulation=modulation, bank=bank))
        return out
    n = len(asks)
    seen = controls.keep(Kept(*(any(of_one) for of_one in zip(*(ask.kept for ask in asks), strict=True))))  # by any
    for_each = Controls(**{name: None if x is None else torch.cat([x] * n) for name, x in vars(seen).items()})
    text, modulation = asks[0].text, None
    if prepared and len(text.pooled_BD) == 1 and all(ask.text is text for ask in asks):  # one text serves all
        modulation = prepared.modulation(text, sigma)
    else:
        texts = [Text(ask.text.tokens_BLD.expand(b, -1, -1), ask.text.pooled_BD.expand(b, -1)) for ask in asks]
        text = Text(torch.cat([t.tokens_BLD for t in texts]), torch.cat([t.pooled_BD for t in texts]))
    kept = [ask.kept for ask in asks for _ in range(b)]
    velocities = model(torch.cat([noisy_BFCHW] * n), timestep_B.repeat(n), text, for_each, kept=kept, modulation=modulation)
    return list(velocities.chunk(n))
