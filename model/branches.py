"""The passes of one step of guidance: one after the other, or all at once, as one batch wherever their shapes allow."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from model.controls import Controls, Text
from model.modulation import Bank, tell
from model.portrait_dit import PortraitConfig, PortraitDiT, Slot

# Shape suffixes: B batch, F frames of the window, P previous frames, C latent channels, H W latent rows and columns, S tokens of a frame,
# X tokens of a frame's controls, L text tokens, D width.

Branches = Literal["sequential", "batched"]


class Denoiser(Protocol):
    """What sampling asks of a model: `PortraitDiT`, or whatever else knows a velocity."""

    config: PortraitConfig

    def __call__(self, noisy_BFCHW: Tensor, timestep_B: Tensor, text: Text, controls: Controls) -> Tensor:
        """Velocity (noise minus data), (B, F, C, H, W)."""


class Banked:
    """A model with frozen controls, for one window: what its source and driving tokens say is computed once, not at every step."""

    def __init__(self, model: PortraitDiT) -> None:
        self.config = model.config
        self._model = model
        self._banks: dict[tuple[int, bool, bool], Bank] = {}

    def __call__(self, noisy_BFCHW: Tensor, timestep_B: Tensor, text: Text, controls: Controls) -> Tensor:
        """As the model's; the same text and controls are asked with throughout."""
        key = (id(text.tokens_BLD), controls.source_BCHW is None, controls.driving_BFCHW is None)
        if key not in self._banks:
            self._banks[key] = self._model.bank(text, controls, noisy_BFCHW)
        return self._model(noisy_BFCHW, timestep_B, text, controls, bank=self._banks[key])


class Ask(NamedTuple):
    """What one pass sees."""

    text: Text
    controls: Controls


def ask_all(model: Denoiser, noisy_BFCHW: Tensor, timestep_B: Tensor, asks: Sequence[Ask], branches: Branches) -> list[Tensor]:
    """The velocity of each ask, in their order.

    "batched" computes no more than "sequential" and agrees with it within rounding; it needs the memory of all passes at once, and
    pays where one of them is too small to fill the machine. Models other than `PortraitDiT`, and those with frozen controls, are asked
    one after the other.
    """
    if branches == "sequential" or not isinstance(model, PortraitDiT) or model.config.frozen_controls:
        return [model(noisy_BFCHW, timestep_B, *ask) for ask in asks]
    return _all_at_once(model, noisy_BFCHW, timestep_B, asks)


@dataclass
class _Pass:
    """The tokens of one pass on their way through the blocks; history is None where it has none."""

    z_BFSD: Tensor
    fixed_BFXD: Tensor
    time_BD: Tensor
    context_BFLD: Tensor
    history_BPSD: Tensor | None
    history_time_BD: Tensor
    history_context_BPLD: Tensor


def _all_at_once(model: PortraitDiT, noisy_BFCHW: Tensor, timestep_B: Tensor, asks: Sequence[Ask]) -> list[Tensor]:
    """`PortraitDiT.forward` for several passes side by side.

    Where dropped controls have no tokens, no two passes have the same number of them all along. But u, s and d differ only within
    a frame, and d and p only across frames: so across frames all without history go together, and within frames all that have equally
    many controls.
    """
    b, f, _, h, w = noisy_BFCHW.shape
    z_BFSD = model._embed(noisy_BFCHW, Slot.VIDEO)
    passes = [_begin(model, z_BFSD, noisy_BFCHW, timestep_B, ask) for ask in asks]
    for temporal, block in zip(model.temporal, model.base.transformer_blocks, strict=True):
        for group in _alike(passes, lambda p: p.history_BPSD is None):
            before = [p.history_BPSD for p in group if p.history_BPSD is not None]
            history, z = model._across_frames(temporal, torch.cat(before) if before else None, torch.cat([p.z_BFSD for p in group]))
            for i, p in enumerate(group):
                p.z_BFSD = z[i * b : (i + 1) * b]
                p.history_BPSD = history[i * b : (i + 1) * b] if history is not None else None
        for group in _alike(passes, lambda p: p.fixed_BFXD.shape[2]):
            image = torch.cat([torch.cat([p.z_BFSD, p.fixed_BFXD], dim=2) for p in group])
            image, context, _ = block(image, torch.cat([p.context_BFLD for p in group]), torch.cat([p.time_BD for p in group]))
            for p, own, own_context in zip(group, image.chunk(len(group)), context.chunk(len(group)), strict=True):
                p.context_BFLD = own_context
                p.z_BFSD, p.fixed_BFXD = own.split([z_BFSD.shape[2], own.shape[2] - z_BFSD.shape[2]], dim=2)
        if not block.last:
            _history_through(block, [p for p in passes if p.history_BPSD is not None])
    out = model.base.norm_out(
        torch.cat([p.z_BFSD for p in passes]).flatten(0, 1), torch.cat([p.time_BD for p in passes]).repeat_interleave(f, 0)
    )
    return list(model._unpatchify(model.base.proj_out(out), h, w).unflatten(0, (len(passes) * b, f)).chunk(len(passes)))


def _begin(model: PortraitDiT, z_BFSD: Tensor, noisy_BFCHW: Tensor, timestep_B: Tensor, ask: Ask) -> _Pass:
    b, f = noisy_BFCHW.shape[:2]
    text = Text(ask.text.tokens_BLD.expand(b, -1, -1), ask.text.pooled_BD.expand(b, -1))
    video, history = tell(model.base, timestep_B, text), tell(model.base, model._history_time(timestep_B), text)
    return _Pass(
        z_BFSD=z_BFSD,
        fixed_BFXD=model._embed_controls(ask.controls, noisy_BFCHW).expand(b, f, -1, -1),
        time_BD=video.time_BD,
        context_BFLD=video.context_BLD[:, None].expand(b, f, -1, -1),
        history_BPSD=model._embed_history(ask.controls, noisy_BFCHW),
        history_time_BD=history.time_BD,
        history_context_BPLD=history.context_BLD[:, None].expand(b, model.config.history, -1, -1),
    )


def _history_through(block: Callable, group: list[_Pass]) -> None:
    histories = [p.history_BPSD for p in group if p.history_BPSD is not None]
    if not histories:
        return
    context, time = torch.cat([p.history_context_BPLD for p in group]), torch.cat([p.history_time_BD for p in group])
    history, context, _ = block(torch.cat(histories), context, time)
    for p, own, own_context in zip(group, history.chunk(len(group)), context.chunk(len(group)), strict=True):
        p.history_BPSD, p.history_context_BPLD = own, own_context


def _alike(passes: Sequence[_Pass], what: Callable[[_Pass], Hashable]) -> list[list[_Pass]]:
    groups: dict[Hashable, list[_Pass]] = {}
    for p in passes:
        groups.setdefault(what(p), []).append(p)
    return list(groups.values())
