"""The network: the base model is untouched until training moves it, and every control arrives."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor

from model.controls import Controls, D, Kept, P, S, Text, U
from model.portrait_dit import SD35_MEDIUM, PortraitConfig, PortraitDiT, Slot, no_text

CONFIG = PortraitConfig(layers=3, heads=2, head_dim=16, position_grid=24, sample_size=16, dual_layers=1, frames=3, history=2)
B, F, C, H = 2, CONFIG.frames, CONFIG.channels, 8


def inputs() -> tuple[Tensor, Tensor, Text, Controls]:
    g = torch.Generator().manual_seed(0)
    controls = Controls(
        source_BCHW=torch.randn(B, C, H, H, generator=g),
        driving_BFCHW=torch.randn(B, F, C, H, H, generator=g),
        history_BPCHW=torch.randn(B, CONFIG.history, C, H, H, generator=g),
    )
    text = Text(torch.randn(B, CONFIG.text_tokens, CONFIG.text_dim, generator=g), torch.randn(B, CONFIG.pooled_dim, generator=g))
    return torch.randn(B, F, C, H, H, generator=g), torch.tensor([700.0, 30.0]), text, controls


def model(config: PortraitConfig = CONFIG) -> PortraitDiT:
    torch.manual_seed(0)
    return PortraitDiT(config)


def awake(config: PortraitConfig = CONFIG) -> PortraitDiT:
    """As after some training: the temporal output layers are no longer zero."""
    dit = model(config)
    for temporal in dit.temporal:
        torch.nn.init.normal_(temporal.out.weight, std=0.2)
    return dit


@torch.no_grad()
def base_frame_by_frame(dit: PortraitDiT, noisy: Tensor, timestep: Tensor, text: Text) -> Tensor:
    frames = [
        dit.base(
            hidden_states=noisy[:, f], encoder_hidden_states=text.tokens_BLD, pooled_projections=text.pooled_BD, timestep=timestep
        ).sample
        for f in range(noisy.shape[1])
    ]
    return torch.stack(frames, 1)


@pytest.mark.parametrize("kept", [U, Kept(history=True)])
def test_a_fresh_model_without_source_and_driving_is_the_base_frame_by_frame(kept: Kept) -> None:
    dit, (noisy, timestep, text, controls) = model(), inputs()
    with torch.no_grad():
        out = dit(noisy, timestep, text, controls.keep(kept))
    torch.testing.assert_close(out, base_frame_by_frame(dit, noisy, timestep, text), atol=1e-5, rtol=0)


def test_slots_are_disjoint_and_the_middle_one_is_the_bases() -> None:
    dit = model()
    index = torch.arange(CONFIG.position_grid**2, dtype=torch.float32)[:, None].expand(-1, CONFIG.heads * CONFIG.head_dim)
    dit.base.pos_embed.pos_embed.copy_(index[None])
    places = {slot: {int(i) for i in dit.positions(6, 4, slot)[:, 0]} for slot in Slot}
    assert all(len(p) == 24 for p in places.values())
    assert all(not places[a] & places[b] for a, b in combinations(Slot, 2))
    assert places[Slot.VIDEO] == {int(i) for i in dit.base.pos_embed.cropped_pos_embed(12, 8)[0, :, 0]}
    rows = {slot: {p // CONFIG.position_grid for p in places[slot]} for slot in Slot}
    assert not rows[Slot.SOURCE] & rows[Slot.VIDEO] and not rows[Slot.VIDEO] & rows[Slot.DRIVING]


def test_frames_too_large_for_three_slots_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit side by side"):
        model().positions(9, 9, Slot.DRIVING)


def test_at_first_only_the_temporal_output_learns_then_all_of_it() -> None:
    dit, (noisy, timestep, text, controls) = model(), inputs()
    optimizer = torch.optim.SGD(dit.parameters(), lr=0.1)

    def gradients() -> dict[str, bool]:
        optimizer.zero_grad()
        dit(noisy, timestep, text, controls).square().mean().backward()
        assert all(p.grad is not None for p in dit.parameters())
        return {name: bool(p.grad.any()) for name, p in dit.temporal.named_parameters()}

    assert {name.split(".")[1] for name, moves in gradients().items() if moves} == {"out"}
    optimizer.step()
    assert all(moves for name, moves in gradients().items() if "norm" not in name)


def test_every_control_changes_the_output_once_trained() -> None:
    dit, (noisy, timestep, text, controls) = awake(), inputs()
    with torch.no_grad():
        outs = [dit(noisy, timestep, text, controls.keep(kept)) for kept in (U, S, D, P)]
    assert all((a - b).abs().max() > 1e-3 for a, b in combinations(outs, 2))


@pytest.mark.parametrize(
    ("kept", "slots"),
    [
        (U, [Slot.VIDEO]),
        (Kept(source=True), [Slot.SOURCE, Slot.VIDEO]),
        (Kept(driving=True), [Slot.VIDEO, Slot.DRIVING]),
        (Kept(history=True), [Slot.VIDEO, Slot.VIDEO]),
        (P, [Slot.SOURCE, Slot.VIDEO, Slot.VIDEO, Slot.DRIVING]),
    ],
)
def test_each_control_lies_in_its_slot(kept: Kept, slots: list[Slot], monkeypatch: pytest.MonkeyPatch) -> None:
    dit, (noisy, timestep, text, controls) = model(), inputs()
    used, positions = [], dit.positions

    def spy(rows: int, columns: int, slot: Slot) -> Tensor:
        used.append(slot)
        return positions(rows, columns, slot)

    monkeypatch.setattr(dit, "positions", spy)
    with torch.no_grad():
        dit(noisy, timestep, text, controls.keep(kept))
    assert sorted(used) == slots


@torch.no_grad()
def changed_frames(dit: PortraitDiT, changed: Controls) -> list[int]:
    noisy, timestep, text, controls = inputs()
    change = (dit(noisy, timestep, text, changed) - dit(noisy, timestep, text, controls)).abs().amax((0, 2, 3, 4))
    return change.gt(1e-5).nonzero().flatten().tolist()


def test_a_driving_frame_moves_its_own_frame_and_the_source_moves_all() -> None:
    """On a fresh model, whose frames do not see each other yet."""
    dit, controls = model(), inputs()[3]
    assert controls.driving_BFCHW is not None and controls.source_BCHW is not None
    for f in range(F):
        driving = controls.driving_BFCHW.clone()
        driving[:, f] += 1
        assert changed_frames(dit, replace(controls, driving_BFCHW=driving)) == [f]
    assert changed_frames(dit, replace(controls, source_BCHW=controls.source_BCHW + 1)) == list(range(F))


@pytest.mark.parametrize(("kept", "first"), [(D, CONFIG.history), (P, 0)])
def test_the_windows_frames_have_the_same_numbers_with_and_without_history(kept: Kept, first: int) -> None:
    dit, (noisy, timestep, text, controls) = model(), inputs()
    numbers: list[tuple[int, int]] = []
    for temporal in dit.temporal:
        temporal.register_forward_pre_hook(
            lambda _, args, kwargs: numbers.append((kwargs["first_frame"], kwargs["first_frame"] + args[0].shape[1])), with_kwargs=True
        )
    with torch.no_grad():
        dit(noisy, timestep, text, controls.keep(kept))
    assert numbers == [(first, CONFIG.history + F)] * CONFIG.layers


def test_frames_see_each_other_only_through_the_temporal_module() -> None:
    noisy, timestep, text, controls = inputs()
    other = noisy.clone()
    other[:, 0] += 1
    for dit, seen in ((model(), False), (awake(), True)):
        with torch.no_grad():
            changed = (dit(other, timestep, text, controls) - dit(noisy, timestep, text, controls))[:, 1:].abs().max()
        assert bool(changed > 1e-4) == seen


def test_factorised_attention_has_the_same_parameters_and_looks_along_time_only() -> None:
    full, factorised = awake(), awake(replace(CONFIG, factorised=True))
    factorised.load_state_dict(full.state_dict())
    x = torch.randn(1, 5, 4, 32, generator=torch.Generator().manual_seed(1))
    moved = x.clone()
    moved[:, 0, 0] += torch.randn(32, generator=torch.Generator().manual_seed(2))
    for dit, elsewhere in ((full, True), (factorised, False)):
        temporal = dit.temporal[0]
        with torch.no_grad():
            change = (temporal(moved, first_frame=0) - temporal(x, first_frame=0)).abs().amax((0, 3))
        assert bool(change[1:, 0].min() > 1e-6)  # the same place in other frames
        assert bool(change[1:, 1:].max() > 1e-6) == elsewhere


def test_a_frames_number_matters() -> None:
    temporal = awake().temporal[0]
    x = torch.zeros(1, 1, 1, 32)
    with torch.no_grad():
        alone = temporal(x, first_frame=CONFIG.history)
        first = temporal(x, first_frame=0)
    assert not torch.allclose(alone, first)


def test_the_time_of_previous_frames_is_a_choice() -> None:
    noisy, timestep, text, controls = inputs()
    with torch.no_grad():
        clean, same = (awake(replace(CONFIG, history_time=t))(noisy, timestep, text, controls) for t in ("clean", "same"))
        at_zero = awake(replace(CONFIG, history_time="same"))(noisy, torch.zeros(B), text, controls)
        clean_at_zero = awake()(noisy, torch.zeros(B), text, controls)
    assert not torch.allclose(clean, same, atol=1e-5)
    torch.testing.assert_close(at_zero, clean_at_zero)


def test_history_that_one_window_cannot_give_is_refused() -> None:
    with pytest.raises(ValueError, match=r"history \(4\) must be at most frames \(3\)"):
        replace(CONFIG, history=4)


def test_the_papers_size() -> None:
    with torch.device("meta"):
        dit = PortraitDiT(SD35_MEDIUM)
    base = sum(p.numel() for p in dit.base.parameters())
    temporal = sum(p.numel() for p in dit.temporal.parameters())
    assert round(base / 1e6) == 2243  # SD3.5-Medium without its position table
    assert round(temporal / 1e6) == 227  # attention alone, a tenth of the base
    assert dit.positions(36, 36, Slot.DRIVING).shape == (36 * 36, 1536)  # 576 px
    assert no_text(SD35_MEDIUM, 1).tokens_BLD.shape == (1, 154, 4096)
