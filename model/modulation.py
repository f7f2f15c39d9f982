"""What does not depend on the noise and so can be had before the first denoising step: timestep and text, and controls that are frozen."""

from __future__ import annotations

from typing import NamedTuple

from diffusers import SD3Transformer2DModel
from torch import Tensor

from model.controls import Text
from model.mmdit import KeysValues, Vectors

# Shape suffixes: B batch, K denoising steps, L text tokens, D width.


class Told(NamedTuple):
    """What the blocks are told about frames of one kind. A batch of one serves any batch."""

    time_BD: Tensor  # embedding of the timestep and the pooled text
    context_BLD: Tensor  # text tokens
    vectors: tuple[Vectors, ...] | None = None  # adaLN of each block; None: each block computes them from the time

    def block(self, i: int) -> Tensor | Vectors:
        return self.time_BD if self.vectors is None else self.vectors[i]


class Modulation(NamedTuple):
    """All that one denoising step needs of timestep and text."""

    video: Told
    history: Told


class Bank(NamedTuple):
    """What the source and driving tokens of a window say in each block; None where there are none. For all steps (`frozen_controls`)."""

    blocks: tuple[KeysValues | None, ...]


def tell(base: SD3Transformer2DModel, timestep_B: Tensor, text: Text) -> Told:
    return Told(base.time_text_embed(timestep_B, text.pooled_BD), base.context_embedder(text.tokens_BLD))


def tell_all(base: SD3Transformer2DModel, timesteps_K: Tensor, text: Text) -> list[Told]:
    """For all timesteps, with the blocks' adaLN vectors; each for as many as there are texts."""
    k, b = len(timesteps_K), len(text.pooled_BD)
    times = base.time_text_embed(timesteps_K.repeat_interleave(b), text.pooled_BD.repeat(k, 1))  # K B, D
    context = base.context_embedder(text.tokens_BLD)
    vectors = [block.vectors(times) for block in base.transformer_blocks]
    rows = [slice(i * b, (i + 1) * b) for i in range(k)]
    return [Told(times[r], context, tuple(Vectors(v.image_BD[r], v.context_BD[r]) for v in vectors)) for r in rows]
