"""The passes of one step of guidance: one after the other, or as one batch in which each sees its own controls alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from model.controls import Controls, Text
from model.portrait_dit import PortraitConfig, PortraitDiT

# Shape suffixes: B batch, F frames of the window, C latent channels, H W latent rows and columns, N pictures (frames of all branches),
# X image tokens of a picture with its controls, L text tokens, D width, K head width, M heads.

Branches = Literal["sequential", "batched"]
_BATCHED = ("removed", "zero_latents")  # what may take the place of a dropped control, of which a batch can be made


class Denoiser(Protocol):
    """What sampling asks of a model: `PortraitDiT`, or whatever else knows a velocity."""

    config: PortraitConfig

    def __call__(self, noisy_BFCHW: Tensor, timestep_B: Tensor, text: Text, controls: Controls) -> Tensor:
        """Velocity (noise minus data), (B, F, C, H, W)."""


class Ask(NamedTuple):
    """What one pass sees."""

    text: Text
    controls: Controls


def ask_all(model: Denoiser, noisy_BFCHW: Tensor, timestep_B: Tensor, asks: Sequence[Ask], branches: Branches) -> list[Tensor]:
    """The velocity of each ask, in their order.

    "batched": those without previous frames go through together. Where a dropped control has no tokens, the batch would not be of one
    shape; in it such a control has tokens that no other token attends to, which comes to the same (within rounding) and costs their
    computing. That with previous frames goes by itself, since the temporal module sees more frames there. Pays where the passes are
    too small to fill the machine; at the paper's size they are not, and "sequential" computes a fifth less. Models other than
    `PortraitDiT`, and those trained with a dropped control that batching has no way to write down, are asked one after the other.
    """
    alone = [i for i, ask in enumerate(asks) if ask.controls.history_BPCHW is not None]
    together = [i for i in range(len(asks)) if i not in alone]
    if branches == "sequential" or len(together) < 2 or not isinstance(model, PortraitDiT) or _dropped(model) not in _BATCHED:
        return [model(noisy_BFCHW, timestep_B, *ask) for ask in asks]
    answers = dict(zip(together, _as_one_batch(model, noisy_BFCHW, timestep_B, [asks[i] for i in together]), strict=True))
    answers |= {i: model(noisy_BFCHW, timestep_B, *asks[i]) for i in alone}
    return [answers[i] for i in range(len(asks))]


def _as_one_batch(model: PortraitDiT, noisy_BFCHW: Tensor, timestep_B: Tensor, asks: Sequence[Ask]) -> Sequence[Tensor]:
    """As `ask_all`, of asks without previous frames."""
    n, f = len(asks), noisy_BFCHW.shape[1]
    texts, controls = [ask.text for ask in asks], [ask.controls for ask in asks]
    source, has_source = _filled([c.source_BCHW for c in controls])
    driving, has_driving = _filled([c.driving_BFCHW for c in controls])
    s = (noisy_BFCHW.shape[-2] // model.config.patch) * (noisy_BFCHW.shape[-1] // model.config.patch)
    present = [torch.ones(n, s, dtype=torch.bool), *(h[:, None].expand(n, s) for h in (has_source, has_driving) if h.any())]
    seen_NX = torch.cat(present, dim=1).repeat_interleave(len(noisy_BFCHW) * f, 0).to(noisy_BFCHW.device)
    text = Text(torch.cat([t.tokens_BLD for t in texts]), torch.cat([t.pooled_BD for t in texts]))
    with _seeing(model, seen_NX) if _dropped(model) == "removed" else nullcontext():
        together = Controls(source_BCHW=source, driving_BFCHW=driving)
        return model(noisy_BFCHW.repeat(n, 1, 1, 1, 1), timestep_B.repeat(n), text, together).chunk(n)


def _dropped(model: PortraitDiT) -> str:
    """What takes the place of a dropped control (`PortraitConfig.dropped`)."""
    return str(getattr(model.config, "dropped", "removed"))


def _filled(latents: Sequence[Tensor | None]) -> tuple[Tensor | None, Tensor]:
    """One control of all branches along the batch, zeros where it is dropped, None where it is everywhere; and where it is there, (n,)."""
    given = torch.tensor([x is not None for x in latents])
    like = next((x for x in latents if x is not None), None)
    return None if like is None else torch.cat([torch.zeros_like(like) if x is None else x for x in latents]), given


@contextmanager
def _seeing(model: PortraitDiT, seen_NX: Tensor) -> Iterator[None]:
    """Within it only image tokens marked in `seen_NX` are attended to."""
    before = model.base.attn_processors
    model.base.set_attn_processor(_MaskedAttention(seen_NX))
    try:
        yield
    finally:
        model.base.set_attn_processor(before)


class _MaskedAttention:
    """What diffusers' JointAttnProcessor2_0 computes, with a mask: over image tokens alone, or over image and text tokens together."""

    def __init__(self, seen_NX: Tensor) -> None:
        self._seen_NX = seen_NX

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(N, X, D) and, of joint attention, (N, L, D), to the same. Names are diffusers'; it passes a mask, and never has one."""
        image = _split(attn, (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k), hidden_states)
        seen = self._seen_NX
        if encoder_hidden_states is not None:
            projections, norms = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj), (attn.norm_added_q, attn.norm_added_k)
            text = _split(attn, projections, norms, encoder_hidden_states)
            image = [torch.cat([i, t], dim=2) for i, t in zip(image, text, strict=True)]
            seen = F.pad(seen, (0, encoder_hidden_states.shape[1]), value=True)
        q, k, v = image
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None]).transpose(1, 2).flatten(2)
        image_out = attn.to_out[1](attn.to_out[0](y[:, : hidden_states.shape[1]]))
        if encoder_hidden_states is None:
            return image_out
        text_out = y[:, hidden_states.shape[1] :]
        return image_out, text_out if attn.context_pre_only else attn.to_add_out(text_out)


def _split(attn: Any, projections: Sequence[Any], norms: Sequence[Any], x: Tensor) -> list[Tensor]:
    """Queries, keys and values, (N, M, tokens, K) each."""
    q, k, v = (p(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for p in projections)
    q, k = (y if norm is None else norm(y) for norm, y in zip(norms, (q, k), strict=True))
    return [q, k, v]
