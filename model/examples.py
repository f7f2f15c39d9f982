"""A window as the network is trained on it: latents, and the noise drawn for it. The same on any worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.codec import LatentCodec
from model.controls import Controls, Kept, Text
from model.latents import EncodedWindow
from model.objective import ObjectiveConfig, draw_noise, noisy_history, velocity_loss
from model.portrait_dit import PortraitDiT
from model.stream import Window
from schemas.ids import digest

# Shape suffixes: B batch, F frames of the window, P previous frames, C latent channels, H W latent rows and columns.


class Example(NamedTuple):
    source_CHW: Tensor
    driving_FCHW: Tensor
    history_PCHW: Tensor
    target_FCHW: Tensor
    sigma: float
    noise_FCHW: Tensor


class Examples:
    """Makes them, on the device that the network is on.

    Args:
        codec: of the latents.
        objective: how noise is drawn.
        seed: of the run; with a window's position in the stream it seeds its noise.
    """

    def __init__(self, codec: LatentCodec, objective: ObjectiveConfig, seed: int, device: torch.device) -> None:
        self.codec, self.objective, self.seed, self.device = codec, objective, seed, device

    def __call__(self, window: Window) -> Example:
        driving = self._encoded(window.driving)
        target, source = self._target(window)
        history_PCHW, target_FCHW = target[: -len(driving)], target[-len(driving) :]
        generator = seeded("noise", self.seed, window.position)
        sigma, noise_FCHW = draw_noise(self.objective, target_FCHW.shape, generator)
        history_PCHW = noisy_history(self.objective, history_PCHW, generator)
        return Example(source, driving, history_PCHW, target_FCHW, sigma, noise_FCHW.to(self.device))

    def _target(self, window: Window) -> tuple[Tensor, Tensor]:
        """Of all target frames and of the source."""
        if isinstance(window, EncodedWindow):
            return window.target_TCHW.to(self.device), window.source_CHW.to(self.device)
        return self._encoded(window.target), self._encoded(window.source[None])[0]

    def _encoded(self, frames: np.ndarray) -> Tensor:
        return self.codec.encode(torch.from_numpy(frames).to(self.device))


def blank(model: PortraitDiT, side: int, device: torch.device) -> Example:
    """In the place of an example that a worker lacks, so that it makes as many passes as the others; it must weigh nothing.

    Args:
        side: rows and columns of a frame's latents.
    """
    config = model.config
    frame = torch.zeros(config.channels, side, side, device=device)
    frames, previous = (frame.expand(n, -1, -1, -1) for n in (config.frames, config.history))
    return Example(frame, frames, previous, frames, 0.5, frames)


def losses(model: PortraitDiT, examples: Sequence[Example], kept: Kept, text: Text, dtype: torch.dtype) -> Tensor:
    """Of each example, float (B,). `dtype` is what the network computes in."""
    target_BFCHW = torch.stack([e.target_FCHW for e in examples])
    controls = Controls(
        source_BCHW=torch.stack([e.source_CHW for e in examples]),
        driving_BFCHW=torch.stack([e.driving_FCHW for e in examples]),
        history_BPCHW=torch.stack([e.history_PCHW for e in examples]),
    ).keep(kept)
    sigma_B = torch.tensor([e.sigma for e in examples], device=target_BFCHW.device)
    noise_BFCHW = torch.stack([e.noise_FCHW for e in examples])
    return velocity_loss(model, target_BFCHW, sigma_B, noise_BFCHW, text, controls, dtype=dtype)


def seeded(*of: str | int) -> torch.Generator:
    """The same draws whenever and wherever they are made for the same thing."""
    return torch.Generator().manual_seed(seed_of(*of))


def seed_of(*of: str | int) -> int:
    return int(digest(*of), 16) % 2**63
