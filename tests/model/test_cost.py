"""The closed forms, against torch's own counter and the figures that are known of the paper's model."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.controls import Controls, D, Dropped, Kept, P, S, Text, U
from model.cost import count_parameters, forward_flops, training_flops
from model.portrait_config import SD35_MEDIUM, PortraitConfig
from model.portrait_dit import PortraitDiT

CONFIG = PortraitConfig(layers=2, heads=2, head_dim=16, position_grid=24, sample_size=16, dual_layers=1, frames=3, history=2)
FORMS = [
    {},
    {"factorised": True, "temporal_updates_history": False, "frame_encoding": "sincos"},
    {"temporal_ffn": True, "dropped": Dropped.ZERO_LATENTS, "history_time": "same", "history_slot": "own"},
    {"frozen_controls": True, "temporal_updates_history": False},
    {"history": 0, "dual_layers": 2},
]


def on_meta(config: PortraitConfig) -> PortraitDiT:
    with torch.device("meta"):
        return PortraitDiT(config)


def counted(dit: PortraitDiT, kept: Kept, rows: int, columns: int, text_tokens: int, batch: int = 1, *, banked: bool = False) -> int:
    """What torch counts in a forward pass without memory or arithmetic."""
    config = dit.config
    f, p, c, h, w = config.frames, config.history, config.channels, rows * config.patch, columns * config.patch
    with torch.device("meta"), torch.no_grad():
        noisy = torch.empty(batch, f, c, h, w)
        history = torch.empty(batch, p, c, h, w) if p else None
        controls = Controls(source_BCHW=noisy[:, 0], driving_BFCHW=noisy, history_BPCHW=history).keep(kept)
        text = Text(torch.empty(batch, text_tokens, config.text_dim), torch.empty(batch, config.pooled_dim))
        bank = dit.bank(text, controls, noisy) if banked else None
        with FlopCounterMode(display=False) as counter:
            dit(noisy, torch.empty(batch), text, controls, bank=bank)
    return counter.get_total_flops()


@pytest.mark.parametrize("changes", FORMS)
def test_parameters_are_those_of_the_model(changes: dict) -> None:
    config = replace(CONFIG, **changes)
    dit = on_meta(config)
    parameters = count_parameters(config)
    assert parameters.base == sum(p.numel() for p in dit.base.parameters())
    assert parameters.temporal == sum(p.numel() for p in dit.temporal.parameters())
    assert parameters.total == sum(p.numel() for p in dit.parameters())


@pytest.mark.parametrize("changes", FORMS)
def test_operations_are_those_that_torch_counts(changes: dict) -> None:
    dit = on_meta(replace(CONFIG, **changes))
    for kept in (S, P):
        flops = forward_flops(dit.config, rows=5, columns=4, kept=kept, batch=2, text_tokens=7)
        assert flops.total == counted(dit, kept, 5, 4, 7, batch=2)
        if dit.config.frozen_controls:
            assert flops.bank and flops.banked == counted(dit, kept, 5, 4, 7, batch=2, banked=True)


@pytest.mark.slow
def test_the_papers_size_by_torchs_counter() -> None:
    assert forward_flops(SD35_MEDIUM, rows=36, columns=36).total == counted(on_meta(SD35_MEDIUM), P, 36, 36, 154)


def test_the_figures_known_of_the_papers_size() -> None:
    """TFLOP at 16 frames of 576 x 576 with 3 before them and 154 text tokens; a prototype's, counted by torch."""
    parameters = count_parameters(SD35_MEDIUM)
    assert parameters.base == pytest.approx(2.243e9, rel=1e-3) and parameters.temporal == pytest.approx(226e6, rel=1e-2)

    def tflop(config: PortraitConfig, kept: Kept = P) -> float:
        return forward_flops(config, rows=36, columns=36, kept=kept).total / 1e12

    assert [tflop(SD35_MEDIUM, kept) for kept in (U, S, D, P)] == pytest.approx([116, 169, 234, 269.7], rel=1e-2)
    assert tflop(replace(SD35_MEDIUM, factorised=True)) == pytest.approx(180.3, rel=1e-2)
    assert tflop(replace(SD35_MEDIUM, temporal_ffn=True)) == pytest.approx(292.0, rel=1e-2)
    zeroed = replace(SD35_MEDIUM, dropped=Dropped.ZERO_LATENTS)
    assert len({tflop(zeroed, kept) for kept in (U, S, D, P)}) == 1
    flops = forward_flops(SD35_MEDIUM, rows=36, columns=36)
    assert [f / 1e12 for f in (flops.video, flops.history, flops.temporal)] == pytest.approx(
        [160.9, 7.9, 100.6], rel=1e-2
    )  # the last block has no use for history
    assert training_flops(flops) / 1e12 == pytest.approx(809, rel=1e-2)
    assert training_flops(flops, recompute=True) / 1e12 == pytest.approx(1079, rel=1e-2)


def test_frozen_controls_take_a_third_off_the_four_passes_of_a_step() -> None:
    frozen = replace(SD35_MEDIUM, frozen_controls=True)
    per_step = {
        config.frozen_controls: sum(forward_flops(config, rows=36, columns=36, kept=kept).banked for kept in (U, S, D, P))
        for config in (SD35_MEDIUM, frozen)
    }
    assert per_step[True] / 1e12 == pytest.approx(526, rel=2e-2)
    assert per_step[True] < 0.7 * per_step[False]


def test_more_of_everything_costs_more() -> None:
    sizes = [forward_flops(CONFIG, rows=r, columns=c, frames=f).total for r, c, f in product((2, 4), (2, 4), (1, 3))]
    assert sizes[0] == min(sizes) and sizes[-1] == max(sizes) and sizes[2] == sizes[4]
