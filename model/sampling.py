"""Making a window of frames (paper, section 3.4): Euler steps down SD3's noise levels, with guidance at each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from model.branches import Branches, Denoiser, Prepared
from model.controls import Controls, Text
from model.guidance import Guidance, guided_velocity
from model.objective import TIMESTEPS
from model.portrait_dit import PortraitDiT

# Shape suffixes: B batch, F frames of the window, C latent channels, H W latent rows and columns.


@dataclass(frozen=True, kw_only=True)
class TemporalDenoising:
    """Ties a frame to the one before it, once on the way down; after Stable Video Portraits (Ostrek and Thies, 2024, figure 2).

    There, frames are made one after the other, and at DDIM step tau the latent of a frame is put together from noise (w_n), the current
    (w_c) and the previous frame (w_p). What is at hand of that work does not give the formula in full, so this one is ours. A step from
    level sigma to sigma' puts a frame together from what the model takes for its data, x0 = x - sigma v, and for its noise,
    e = x + (1 - sigma) v. At step tau, frame n becomes

        x_n = (1 - sigma') (current x0_n + previous x0_{n-1}) + sigma' noise e_n

    In a window all frames are at the same level, so x0_{n-1} is the frame before at that level, as it was before the step. Before the first
    frame of a window stands the last frame made, before that of the video nothing: there it is its own x0_n. With the defaults this is
    the Euler step itself, so nothing is done. Keep current + previous at 1, or the picture's contrast changes.

    Attributes:
        step: tau, counted from 0 as steps are. At an early one frames share their layout, at a late one details are smeared.
    """

    step: int = 0
    noise: float = 1.0
    current: float = 1.0
    previous: float = 0.0

    def __post_init__(self) -> None:
        if self.step < 0:
            raise ValueError(f"temporal.step must be at least 0, not {self.step}")
        for name in ("noise", "current", "previous"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"temporal.{name} must be at least 0, not {getattr(self, name)}")

    @property
    def is_off(self) -> bool:
        return (self.noise, self.current, self.previous) == (1.0, 1.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How frames are made of noise. Defaults are the paper's."""

    steps: int = 40
    shift: float = 3.0  # of the noise levels; that of the model's training
    guidance: Guidance = field(default_factory=Guidance)
    branches: Branches = "sequential"
    # That the network computes in, by default bfloat16 on a GPU and float32 on a CPU; what is summed up over steps is float32.
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    temporal: TemporalDenoising = field(default_factory=TemporalDenoising)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift must be above 0, not {self.shift}")
        if not self.temporal.is_off and self.temporal.step >= self.steps:
            raise ValueError(f"temporal.step is {self.temporal.step}; the last of {self.steps} steps is {self.steps - 1}")


def noise_levels(steps: int, *, shift: float = 3.0) -> Tensor:
    """Sigmas from 1 down to 0, float32 (steps + 1,).

    As SD3 samples: evenly spaced between ends that are shifted already, and shifted again. The last level before 0 is much
    lower than that of the plain formula (0.009 instead of 0.07 at 40 steps).
    """

    def shifted(sigma: np.ndarray) -> np.ndarray:
        return shift * sigma / (1 + (shift - 1) * sigma)

    first, last = shifted(np.array([1.0, 1 / TIMESTEPS]))
    return torch.from_numpy(np.append(shifted(np.linspace(first, last, steps)), 0.0)).float()


@torch.no_grad()
def sample_window(
    model: Denoiser,
    noise_BFCHW: Tensor,
    text: Text,
    controls: Controls,
    config: SamplerConfig,
    *,
    prompt: Text | None = None,
    before_B1CHW: Tensor | None = None,
) -> Tensor:
    """One window of frames from noise, clean latents (B, F, C, H, W).

    Args:
        model: see `Denoiser`.
        noise_BFCHW: standard normal.
        text: what the model was trained with.
        controls: of this window.
        config: how.
        prompt: a text to morph the face by (see `Guidance.control_strength`).
        before_B1CHW: the clean frame before the window, for temporal denoising alone.
    """
    x_BFCHW = noise_BFCHW
    sigmas = noise_levels(config.steps, shift=config.shift).tolist()
    prepared = None
    if isinstance(model, PortraitDiT) and not isinstance(model, FSDPModule):  # a sharded one's weights are there in a pass only
        prepared = Prepared(model, sigmas[:-1])
    half = config.precision == "bfloat16" or (config.precision == "auto" and x_BFCHW.is_cuda)
    for step, (sigma, below) in enumerate(pairwise(sigmas)):
        with torch.autocast(x_BFCHW.device.type, torch.bfloat16, enabled=half):
            v_BFCHW = guided_velocity(
                model, x_BFCHW, sigma, text, controls, config.guidance, prompt=prompt, branches=config.branches, prepared=prepared
            )
        if step == config.temporal.step and not config.temporal.is_off:
            x_BFCHW = tied_step(config.temporal, x_BFCHW, v_BFCHW, sigma, below, before_B1CHW)
        else:
            x_BFCHW = x_BFCHW + (below - sigma) * v_BFCHW
    return x_BFCHW


def tied_step(
    config: TemporalDenoising, x_BFCHW: Tensor, v_BFCHW: Tensor, sigma: float, below: float, before_B1CHW: Tensor | None
) -> Tensor:
    """The step from `sigma` to `below` that ties each frame to the one before it."""
    data_BFCHW, noise_BFCHW = x_BFCHW - sigma * v_BFCHW, x_BFCHW + (1 - sigma) * v_BFCHW
    first_B1CHW = data_BFCHW[:, :1] if before_B1CHW is None else before_B1CHW
    previous_BFCHW = torch.cat([first_B1CHW, data_BFCHW[:, :-1]], dim=1)
    return (1 - below) * (config.current * data_BFCHW + config.previous * previous_BFCHW) + below * config.noise * noise_BFCHW
