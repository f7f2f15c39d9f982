"""Making frames (paper, section 3.4): Euler steps down SD3's noise levels, guidance over four sets of controls, windows that slide."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from model.controls import Controls, D, P, S, Text, U
from model.objective import TIMESTEPS
from model.portrait_dit import PortraitDiT

# Shape suffixes: B batch, F frames of the window, P previous frames, T frames of the video, C latent channels, H W latent rows and columns.


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Strength of each control (paper, section 4)."""

    source: float = 2.0
    driving: float = 2.5
    history: float = 1.0


def noise_levels(steps: int, *, shift: float = 3.0) -> Tensor:
    """Sigmas from 1 down to 0, float32 (steps + 1,).

    As SD3 samples: evenly spaced between ends that are shifted already, and shifted again. The last level before 0 is much
    lower than that of the plain formula (0.009 instead of 0.07 at 40 steps).
    """

    def shifted(sigma: np.ndarray) -> np.ndarray:
        return shift * sigma / (1 + (shift - 1) * sigma)

    first, last = shifted(np.array([1.0, 1 / TIMESTEPS]))
    return torch.from_numpy(np.append(shifted(np.linspace(first, last, steps)), 0.0)).float()


def combine(u: Tensor, s: Tensor, d: Tensor, p: Tensor, guidance: Guidance) -> Tensor:
    """u + ls (s - u) + ld (d - s) + lp (p - d), all of one shape."""
    return u + guidance.source * (s - u) + guidance.driving * (d - s) + guidance.history * (p - d)


def guided_velocity(model: PortraitDiT, noisy_BFCHW: Tensor, sigma: float, text: Text, controls: Controls, guidance: Guidance) -> Tensor:
    """The combined velocity, (B, F, C, H, W). Without previous frames p is d, and three passes do."""
    timestep_B = torch.full((len(noisy_BFCHW),), TIMESTEPS * sigma, device=noisy_BFCHW.device)
    u, s, d = (model(noisy_BFCHW, timestep_B, text, controls.keep(kept)) for kept in (U, S, D))
    p = d if controls.history_BPCHW is None else model(noisy_BFCHW, timestep_B, text, controls.keep(P))
    return combine(u, s, d, p, guidance)


@torch.no_grad()
def sample_window(
    model: PortraitDiT,
    noise_BFCHW: Tensor,
    text: Text,
    controls: Controls,
    *,
    steps: int,
    guidance: Guidance,
    shift: float = 3.0,
) -> Tensor:
    """One window of frames from noise, clean latents (B, F, C, H, W)."""
    sigmas = noise_levels(steps, shift=shift).tolist()
    x_BFCHW = noise_BFCHW
    for sigma, below in pairwise(sigmas):
        x_BFCHW = x_BFCHW + (below - sigma) * guided_velocity(model, x_BFCHW, sigma, text, controls, guidance)
    return x_BFCHW


def sample_video(
    model: PortraitDiT,
    text: Text,
    source_BCHW: Tensor,
    driving_BTCHW: Tensor,
    *,
    steps: int = 40,
    guidance: Guidance | None = None,
    shift: float = 3.0,
    generator: torch.Generator,
) -> Tensor:
    """A video of any length in windows of F frames, each told the last F' frames made; clean latents (B, T, C, H, W).

    The first window has no previous frames. The last one is filled up by repeating the last driving frame, and cut.
    """
    f, previous = model.config.frames, model.config.history
    total = driving_BTCHW.shape[1]
    padding = driving_BTCHW[:, -1:].expand(-1, -total % f, -1, -1, -1)
    made: list[Tensor] = []
    for driving_BFCHW in torch.cat([driving_BTCHW, padding], dim=1).split(f, dim=1):
        noise = torch.randn(driving_BFCHW.shape, generator=generator).to(driving_BFCHW)
        history = made[-1][:, -previous:] if made and previous else None
        controls = Controls(source_BCHW=source_BCHW, driving_BFCHW=driving_BFCHW, history_BPCHW=history)
        made.append(sample_window(model, noise, text, controls, steps=steps, guidance=guidance or Guidance(), shift=shift))
    return torch.cat(made, dim=1)[:, :total]
