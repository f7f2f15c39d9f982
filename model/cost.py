"""What a portrait DiT costs, in closed form: parameters, and floating point operations of a pass.

Counted are matrix products, convolutions and attention, two operations per multiply-add, as torch's `FlopCounterMode` does; norms,
activations and sums are left out (they are memory traffic, not arithmetic).
"""

from __future__ import annotations

from typing import NamedTuple

from model.controls import Dropped, Kept, P
from model.portrait_config import PortraitConfig

# Letters as in portrait_dit.py: B batch, F frames, P previous frames, S tokens of a frame, X with its controls, D width.

_TIME = 256  # sines and cosines of the timestep, in diffusers


class Parameters(NamedTuple):
    """Trained numbers; the position table is none."""

    base: int
    temporal: int

    @property
    def total(self) -> int:
        return sum(self)


class Flops(NamedTuple):
    """Of one forward pass."""

    video: int  # blocks over the noisy frames with their controls, embeddings and output
    history: int  # blocks over the previous frames
    temporal: int
    bank: int  # blocks over frozen controls, once for all steps; 0 where they are not frozen

    @property
    def total(self) -> int:
        return sum(self)

    @property
    def banked(self) -> int:
        """Of a pass that is given its bank."""
        return self.total - self.bank


def count_parameters(config: PortraitConfig) -> Parameters:
    d, k, pixels = config.width, config.head_dim, config.channels * config.patch**2
    linear, ff = d * (d + 1), 8 * d * d + 5 * d
    base = (pixels + 1) * d  # patches
    base += (_TIME + 1) * d + linear + (config.pooled_dim + 1) * d + linear  # time, pooled text
    base += (config.text_dim + 1) * d
    base += 2 * linear + (d + 1) * pixels  # output
    for i in range(config.layers):
        dual, last = i < config.dual_layers, i == config.layers - 1
        base += (_vectors(dual, last) + 4 + 3) * linear + 4 * k + ff
        base += (4 * linear + 2 * k) * dual + (linear + ff) * (not last)
    temporal = 4 * linear + 2 * k + ff * config.temporal_ffn
    temporal += (config.history + config.frames) * d * (config.frame_encoding == "learned")
    return Parameters(base, config.layers * temporal)


def forward_flops(
    config: PortraitConfig,
    *,
    rows: int,
    columns: int,
    kept: Kept = P,
    batch: int = 1,
    frames: int | None = None,
    text_tokens: int | None = None,
    attention: bool = True,
) -> Flops:
    """Of the pass in which the controls `kept` are given, each frame `rows` x `columns` tokens large.

    `attention`: False leaves out products of queries, keys and values in the blocks, so that products with weights remain.
    """
    d, b, f = config.width, batch, config.frames if frames is None else frames
    text = config.text_tokens if text_tokens is None else text_tokens
    s, patch = rows * columns, 2 * config.channels * config.patch**2 * d
    here = Kept(*(k or config.dropped != Dropped.REMOVED for k in kept))
    p = config.history if here.history else 0
    controls = s * (here.source + here.driving)  # of each frame
    tell = 2 * d * (_TIME + config.pooled_dim + 2 * d + text * config.text_dim)
    video = b * (tell + 2 * f * 2 * d * d + f * s * 2 * patch)  # and the output
    history = b * p * s * patch + b * tell * (p > 0)
    embed_controls = b * (here.source * s + here.driving * f * s) * patch
    bank = 0
    if not config.frozen_controls:
        video += embed_controls
    elif controls:
        bank += b * tell + embed_controls
    banked_frames = f if here.driving else 1
    for i in range(config.layers):
        dual, last = i < config.dual_layers, i == config.layers - 1
        vectors = b * _vectors(dual, last) * 2 * d * d
        read = controls if config.frozen_controls else 0
        video += vectors + b * f * _block(d, s + controls - read, text, read, dual=dual, last=last, attention=attention)
        if read:
            bank += vectors + b * banked_frames * _block(d, controls, text, 0, dual=dual, last=last, attention=attention)
        if p and not last:
            history += vectors + b * p * _block(d, s, text, 0, dual=dual, last=last, attention=attention)
    return Flops(video, history, b * config.layers * _temporal(config, s, f, p), bank)


def training_flops(forward: Flops, *, recompute: bool = False) -> int:
    """Of a step: the backward pass costs two forward passes, and activations that are computed again one more."""
    return forward.total * (4 if recompute else 3)


def _vectors(dual: bool, last: bool) -> int:
    """Width of a block's adaLN vectors, in D."""
    return (9 if dual else 6) + (2 if last else 6)


def _block(d: int, x: int, text: int, read: int, *, dual: bool, last: bool, attention: bool) -> int:
    """Of a block on x image tokens and the text of one frame, which also attend to `read` tokens given from before."""
    image = x * (4 + 8 + 4 * dual) * 2 * d * d
    context = text * (3 + 9 * (not last)) * 2 * d * d
    attended = 4 * d * ((x + text) * (x + text + read) + dual * x * (x + read))
    return image + context + attended * attention


def _temporal(config: PortraitConfig, s: int, f: int, p: int) -> int:
    """Of one temporal module."""
    d, n = config.width, p + f
    updated = n if config.temporal_updates_history else f
    linear = 2 * d * d * s * (3 * n + updated + 8 * updated * config.temporal_ffn)
    return linear + 4 * d * (s * updated * n if config.factorised else s * updated * s * n)
