"""Guidance (paper, section 3.4): one velocity out of several, each of which sees other controls, or another text."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from model.branches import Ask, Branches, Denoiser, Prepared, ask_all
from model.controls import Controls, D, Kept, P, S, Text, U

# Shape suffixes: B batch, F frames of the window, C latent channels, H W latent rows and columns.


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Strength of each control: v = u + source (s - u) + driving (d - s) + history (p - d).

    u sees no control, s the source, d the driving frames too, and p the previous frames too. Defaults are the paper's (section 4).

    Attributes:
        from_sigma, to_sigma: at noise levels beyond these v = p, one pass instead of four, prompt or not. Not in the paper; Kynkaanniemi
            et al. ("Applying Guidance in a Limited Interval", 2024) find that guidance does its work at the levels in the middle.
        text: strength of a prompt, where one is given: adds text (t - u), where t sees the prompt and no control.
        control_strength: 0..1, what all controls together weigh against the prompt: the terms of source, driving and history are multiplied
            by it. It is the dial of Stable Video Portraits (Ostrek and Thies, 2024, figure 3): the lower, the more the face becomes the
            one that the text names, and the less it follows the driving frames; at 0 the prompt is alone. There the factor is on what
            a ControlNet adds; our controls are tokens, so it is on their part of guidance. Without a prompt it must stay 1.
    """

    source: float = 2.0
    driving: float = 2.5
    history: float = 1.0
    from_sigma: float = 0.0
    to_sigma: float = 1.0
    text: float = 4.5  # what SD3.5-Medium's model card samples with
    control_strength: float = 1.0

    def __post_init__(self) -> None:
        for name in ("source", "driving", "history", "text"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"guidance.{name} must be a number, not {getattr(self, name)}")
        if not 0 <= self.from_sigma <= self.to_sigma <= 1:
            raise ValueError(f"guidance.from_sigma ({self.from_sigma}) and to_sigma ({self.to_sigma}) must lie in 0..1, in this order")
        if not 0 <= self.control_strength <= 1:
            raise ValueError(f"guidance.control_strength must lie in 0..1, not {self.control_strength}")


class Term(NamedTuple):
    """One pass through the model, and what it weighs in the sum."""

    kept: Kept
    prompted: bool  # sees the prompt instead of the model's own text
    weight: float


def terms(guidance: Guidance, sigma: float, *, history: bool, prompt: bool) -> list[Term]:
    """The sum of guidance, solved for the passes; the weights' sum is 1. What weighs nothing is left out and costs no pass.

    Without previous frames, as in the first window, p is d.

    Raises:
        ValueError: the controls are turned down and there is no prompt to take their place.
    """
    g, k = guidance, guidance.control_strength
    if k != 1 and not prompt:
        raise ValueError(f"guidance.control_strength is {k}: it weighs the controls against a prompt, and there is none")
    if not g.from_sigma <= sigma <= g.to_sigma:
        g, k = replace(g, source=1.0, driving=1.0, history=1.0, text=0.0), 1.0
    text, last = g.text if prompt else 0.0, g.history if history else 0.0
    every = (
        Term(U, False, 1 - text - k * g.source),
        Term(U, True, text),
        Term(S, False, k * (g.source - g.driving)),
        Term(D, False, k * (g.driving - last)),
        Term(P, False, k * last),
    )
    return [term for term in every if term.weight]


def guided_velocity(
    model: Denoiser,
    noisy_BFCHW: Tensor,
    sigma: float,
    text: Text,
    controls: Controls,
    guidance: Guidance,
    *,
    prompt: Text | None = None,
    branches: Branches = "sequential",
    prepared: Prepared | None = None,
) -> Tensor:
    """The combined velocity, (B, F, C, H, W). `text` is what the model was trained with, `prompt` what is to morph the face."""
    summed = terms(guidance, sigma, history=controls.history_BPCHW is not None, prompt=prompt is not None)
    asks = [Ask(prompt if term.prompted and prompt is not None else text, term.kept) for term in summed]
    velocities = [v.to(noisy_BFCHW.dtype) for v in ask_all(model, noisy_BFCHW, sigma, controls, asks, branches, prepared)]
    out = velocities[0] if summed[0].weight == 1 else summed[0].weight * velocities[0]
    for term, velocity in zip(summed[1:], velocities[1:], strict=True):
        out = out + term.weight * velocity
    return out
