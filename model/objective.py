"""What is learned: SD3's rectified flow on a window of frames, with controls dropped at random so that guidance can tell them apart.

The paper's preliminaries write the loss on the noise, but its base model is a rectified flow; the loss is on the velocity, unweighted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.controls import Controls, D, Kept, P, S, Text, U
from model.portrait_dit import PortraitDiT

# Shape suffixes: B batch, F frames, C latent channels, H W latent rows and columns.

TIMESTEPS = 1000  # the model's timestep is this many times sigma


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    shift: float = 3.0  # of the noise levels towards noise, as SD3 has it
    # "nested": only the four configurations that guidance uses (none, source, + driving, + history), with the chances below for the first
    # three. "independent": each control is dropped by itself, with the chances below for source, driving and history.
    dropout: Literal["nested", "independent"] = "nested"
    dropout_chances: tuple[float, float, float] = (0.1, 0.1, 0.2)
    # Noise of a level drawn from 0 to this is added to the previous frames, so that they may be as imperfect as those that sampling makes.
    history_noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift must be above 0, not {self.shift}")
        if not all(0 <= chance <= 1 for chance in self.dropout_chances):
            raise ValueError(f"dropout_chances must lie between 0 and 1, not {list(self.dropout_chances)}")
        if not 0 <= self.history_noise < math.inf:
            raise ValueError(f"history_noise must be at least 0, not {self.history_noise}")
        if self.dropout == "nested" and sum(self.dropout_chances) >= 1:
            raise ValueError(f"dropout_chances {list(self.dropout_chances)}: nested ones must leave some chance to all controls together")


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """SD3's resolution shift: more of the schedule at high noise. Maps [0, 1] onto itself."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def draw_noise(config: ObjectiveConfig, shape_FCHW: torch.Size, generator: torch.Generator) -> tuple[float, Tensor]:
    """Noise level sigma and noise of one sample.

    The level is logit-normal, then shifted: u = sigmoid(N(0, 1)), sigma = shift (1 - u) / (1 + (shift - 1) (1 - u)). SD3's
    training code does the same on a list of 1000 levels; the list is left out.
    """
    u = torch.sigmoid(torch.randn((), generator=generator))
    return shift_sigma(1 - u, config.shift).item(), torch.randn(shape_FCHW, generator=generator)


def noisy_history(config: ObjectiveConfig, history_PCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Previous frames as the model is shown them in training. Nothing is drawn where nothing is added."""
    if not config.history_noise:
        return history_PCHW
    level = config.history_noise * torch.rand((), generator=generator)
    return history_PCHW + (level * torch.randn(history_PCHW.shape, generator=generator)).to(history_PCHW)


def draw_kept(config: ObjectiveConfig, generator: torch.Generator, *, history: bool) -> Kept:
    """Which controls a step sees. `history` is False in the paper's first stage: previous frames are always dropped."""
    kept = kept_at(config, torch.rand(3, generator=generator).tolist())
    return kept if history else kept._replace(history=False)


def kept_at(config: ObjectiveConfig, uniform: list[float]) -> Kept:
    """Which controls stay, from three numbers in [0, 1)."""
    if config.dropout == "independent":
        return Kept(*(x >= chance for x, chance in zip(uniform, config.dropout_chances, strict=True)))
    none, source, driving = config.dropout_chances
    for kept, bound in ((U, none), (S, none + source), (D, none + source + driving)):
        if uniform[0] < bound:
            return kept
    return P


def velocity_loss(
    model: PortraitDiT,
    target_BFCHW: Tensor,
    sigma_B: Tensor,
    noise_BFCHW: Tensor,
    text: Text,
    controls: Controls,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Mean squared error of the velocity for each of the batch, float (B,).

    x_sigma = (1 - sigma) x + sigma e, and the velocity is e - x. The model is given all but the timestep in `dtype`, which in bfloat16
    would be known to 4 of 1000 only.
    """
    sigma = sigma_B[:, None, None, None, None]
    noisy_BFCHW = (1 - sigma) * target_BFCHW + sigma * noise_BFCHW
    text, controls = Text(*(x.to(dtype) for x in text)), controls.to(dtype)
    velocity_BFCHW = model(noisy_BFCHW.to(dtype), TIMESTEPS * sigma_B, text, controls)
    return (velocity_BFCHW.float() - (noise_BFCHW - target_BFCHW)).square().flatten(1).mean(1)
