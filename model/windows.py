"""Windows that slide over a driving video of any length, each told the last frames made; one of them in hand at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from model.branches import Denoiser
from model.controls import Controls, Text
from model.sampling import SamplerConfig, sample_window

# Shape suffixes: B batch, F frames of the window, T frames of the video, C latent channels, H W latent rows and columns.


def sample_windows(
    model: Denoiser,
    text: Text,
    source_BCHW: Tensor,
    driving: Iterable[Tensor],
    config: SamplerConfig,
    *,
    generator: torch.Generator,
    history: bool = True,
    prompt: Text | None = None,
) -> Iterator[Tensor]:
    """Yields finished windows, clean latents of the shapes of `driving`, as soon as each is made; memory does not grow with their number.

    The first window has no previous frames; those of the others are latents as they were made, not decoded and encoded again. A window
    that is too short is filled up by repeating its last driving frame, and cut.

    Args:
        model: see `Denoiser`; its config says how many frames a window (F) and its history (F') have.
        text: what the model was trained with.
        source_BCHW: latents of the person to animate.
        driving: masked driving latents (B, F, C, H, W), window after window; the last one may be shorter. Taken one at a time.
        config: how.
        generator: of the noise, on the CPU, so that a seed means the same on every device.
        history: False for a model that was never shown previous frames: then every window is made as the first one is.
        prompt: see `sample_window`.
    """
    f, previous = model.config.frames, model.config.history if history else 0
    made: Tensor | None = None
    for given_BFCHW in driving:
        n = given_BFCHW.shape[1]
        assert 0 < n <= f and (made is None or made.shape[1] == f), f"windows of {f} frames, the last may be shorter; this one has {n}"
        driving_BFCHW = torch.cat([given_BFCHW, given_BFCHW[:, -1:].expand(-1, f - n, -1, -1, -1)], dim=1)
        controls = Controls(source_BCHW=source_BCHW, driving_BFCHW=driving_BFCHW)
        if made is not None and previous:
            controls = replace(controls, history_BPCHW=made[:, -previous:])
        before = None if made is None else made[:, -1:]
        noise = torch.randn(driving_BFCHW.shape, generator=generator).to(driving_BFCHW)
        made = sample_window(model, noise, text, controls, config, prompt=prompt, before_B1CHW=before)[:, :n]
        yield made


def sample_video(
    model: Denoiser,
    text: Text,
    source_BCHW: Tensor,
    driving_BTCHW: Tensor,
    config: SamplerConfig,
    *,
    generator: torch.Generator,
    history: bool = True,
    prompt: Text | None = None,
) -> Tensor:
    """`sample_windows` for a video that fits into memory: clean latents (B, T, C, H, W)."""
    driving = driving_BTCHW.split(model.config.frames, dim=1)
    return torch.cat(
        list(sample_windows(model, text, source_BCHW, driving, config, generator=generator, history=history, prompt=prompt)), dim=1
    )
