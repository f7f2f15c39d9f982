"""The network: the base model is untouched until training moves it, and every control arrives."""

from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from torch import Tensor

from model.controls import Controls, D, Dropped, Kept, P, S, Text, U
from model.portrait_config import SD35_MEDIUM, PortraitConfig
from model.portrait_dit import PortraitDiT, no_text
from model.positions import Slot, slot_corner
from model.sd35 import new_base

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
        for layer in (temporal.out, *([temporal.ff[2]] if temporal.ff is not None else [])):
            torch.nn.init.normal_(layer.weight, std=0.2)
    return dit


@torch.no_grad()
def base_frame_by_frame(dit: PortraitDiT, noisy: Tensor, timestep: Tensor, text: Text) -> Tensor:
    """By diffusers' own model with the same weights."""
    base = new_base(dit.config)
    base.load_state_dict(dit.base.state_dict())
    text_of = {"encoder_hidden_states": text.tokens_BLD, "pooled_projections": text.pooled_BD}
    return torch.stack([base(hidden_states=frame, timestep=timestep, **text_of).sample for frame in noisy.unbind(1)], 1)


@pytest.mark.parametrize("kept", [U, Kept(history=True)])
def test_a_fresh_model_without_source_and_driving_is_the_base_frame_by_frame(kept: Kept) -> None:
    dit, (noisy, timestep, text, controls) = model(), inputs()
    with torch.no_grad():
        out = dit(noisy, timestep, text, controls.keep(kept))
    torch.testing.assert_close(out, base_frame_by_frame(dit, noisy, timestep, text), atol=1e-5, rtol=0)


def test_a_slot_is_a_window_of_the_bases_table() -> None:
    dit = model()
    index = torch.arange(CONFIG.position_grid**2, dtype=torch.float32)[:, None].expand(-1, CONFIG.width)
    dit.base.pos_embed.pos_embed.copy_(index[None])
    places = {slot: dit.positions(6, 4, slot)[:, 0].long() for slot in Slot}
    assert torch.equal(places[Slot.VIDEO], dit.base.pos_embed.cropped_pos_embed(12, 8)[0, :, 0].long())
    for slot, (down, right) in ((slot, slot.value) for slot in Slot):
        assert torch.equal(places[slot] - places[Slot.VIDEO], torch.full((24,), down * 6 * CONFIG.position_grid + right * 4))


@pytest.mark.parametrize(
    "config",
    [CONFIG, SD35_MEDIUM, replace(SD35_MEDIUM, frame_tokens=None), replace(CONFIG, position_grid=25), replace(CONFIG, frame_tokens=5)],
)
def test_slots_are_disjoint_for_every_resolution_that_the_grid_can_take_and_only_for_those(config: PortraitConfig) -> None:
    limit = config.table_side // 3
    for rows, columns in product(range(1, limit + 1), repeat=2):
        corners = [slot_corner(config, rows, columns, slot) for slot in Slot]
        for top, left in corners:
            assert 0 <= top <= config.table_side - rows and 0 <= left <= config.table_side - columns
        assert all(abs(a[0] - b[0]) >= rows or abs(a[1] - b[1]) >= columns for a, b in combinations(corners, 2))
        diagonal = corners[:3]  # shifted in width and height, as the paper has it: no row or column in common
        assert all(abs(a[0] - b[0]) >= rows and abs(a[1] - b[1]) >= columns for a, b in combinations(diagonal, 2))
    for size in ((limit + 1, 1), (1, limit + 1)):
        with pytest.raises(ValueError, match="do not fit side by side"):
            slot_corner(config, *size, Slot.VIDEO)


def test_frames_too_large_are_told_what_would_help() -> None:
    with pytest.raises(ValueError, match=r"37 x 36 tokens.* into the 108 x 108 .*`frame_tokens` of 37 or more"):
        slot_corner(SD35_MEDIUM, 37, 36, Slot.DRIVING)
    with pytest.raises(ValueError, match=r"129 x 36 tokens.* into a position table of side 384"):
        slot_corner(SD35_MEDIUM, 129, 36, Slot.DRIVING)


@pytest.mark.parametrize(("grid", "side"), [(24, 16), (25, 15)])
def test_a_cut_table_is_the_middle_of_the_whole_one(grid: int, side: int) -> None:
    """Fresh and cut afterwards alike; for every size that fits, each slot has the positions that it has in the whole table."""
    whole, cut = (model(replace(CONFIG, position_grid=grid, frame_tokens=tokens)) for tokens in (None, 5))
    afterwards = PortraitDiT(cut.config, new_base(whole.config))
    assert afterwards.base.config.pos_embed_max_size == cut.config.table_side == side
    assert torch.equal(afterwards.base.pos_embed.pos_embed, cut.base.pos_embed.pos_embed)
    for rows, columns, slot in product((1, 2, 4, 5), (1, 3, 4, 5), Slot):
        assert torch.equal(cut.positions(rows, columns, slot), whole.positions(rows, columns, slot))


def test_a_base_with_another_table_is_refused() -> None:
    with pytest.raises(ValueError, match="side 24, not 30 or, cut already, 16"):
        PortraitDiT(replace(CONFIG, position_grid=30, frame_tokens=5), new_base(CONFIG))


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


@pytest.mark.parametrize("changes", [{}, {"frozen_controls": True}, {"temporal_updates_history": False}, {"temporal_ffn": True}])
def test_every_control_changes_the_output_after_one_update(changes: dict) -> None:
    dit, (noisy, timestep, text, controls) = model(replace(CONFIG, **changes)), inputs()
    optimizer = torch.optim.AdamW(dit.parameters(), lr=1e-2)
    (dit(noisy, timestep, text, controls) - torch.randn(noisy.shape, generator=torch.Generator().manual_seed(3))).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        outs = [dit(noisy, timestep, text, controls.keep(kept)) for kept in (U, S, D, P)]
    assert all((a - b).abs().max() > 1e-3 for a, b in combinations(outs, 2))


@pytest.mark.parametrize(("dropped", "frozen"), [*((dropped, False) for dropped in Dropped), (Dropped.REMOVED, True)])
def test_what_a_dropped_control_holds_does_not_enter(dropped: Dropped, frozen: bool) -> None:
    dit, (noisy, timestep, text, controls) = awake(replace(CONFIG, dropped=dropped, frozen_controls=frozen)), inputs()
    nan = Controls(
        source_BCHW=torch.full_like(noisy[:, 0], float("nan")),
        driving_BFCHW=torch.full_like(noisy, float("nan")),
        history_BPCHW=torch.full_like(noisy[:, : CONFIG.history], float("nan")),
    )
    for kept in (U, D, Kept(source=True, history=True), Kept(driving=True, history=True)):
        mixed = Controls(
            source_BCHW=(controls if kept.source else nan).source_BCHW,
            driving_BFCHW=(controls if kept.driving else nan).driving_BFCHW,
            history_BPCHW=(controls if kept.history else nan).history_BPCHW,
        )
        with torch.no_grad():
            expected, got = (dit(noisy, timestep, text, c.keep(kept)) for c in (controls, mixed))
            assert torch.equal(got, expected)
            if kept != U:
                assert dit(noisy, timestep, text, mixed).isnan().any()  # not dropped, it would show


@pytest.mark.parametrize("changes", [{}, {"factorised": True}, {"temporal_updates_history": False}])
@pytest.mark.parametrize("dropped", Dropped)
def test_each_of_a_batch_can_see_controls_of_its_own(dropped: Dropped, changes: dict) -> None:
    dit, (noisy, timestep, text, controls) = awake(replace(CONFIG, dropped=dropped, **changes)), inputs()
    kept = [U, S, D, P, Kept(driving=True), Kept(history=True)]
    first = Text(text.tokens_BLD[:1], text.pooled_BD[:1])
    one = Controls(**{name: getattr(controls, name)[:1] for name in ("source_BCHW", "driving_BFCHW", "history_BPCHW")})
    many = Controls(**{name: getattr(one, name).repeat(6, *[1] * (getattr(one, name).ndim - 1)) for name in vars(one)})
    assert many.history_BPCHW is not None
    many.history_BPCHW[0] = float("nan")  # of one that does not see it
    with torch.no_grad():
        batch = dit(noisy[:1].repeat(6, 1, 1, 1, 1), timestep[:1].repeat(6), first, many, kept=kept)
        for out, k in zip(batch, kept, strict=True):
            torch.testing.assert_close(out[None], dit(noisy[:1], timestep[:1], first, one.keep(k)), atol=1e-5, rtol=0)
    assert all((a - b).abs().max() > 1e-4 for a, b in combinations(batch, 2))


def test_what_takes_the_place_of_a_dropped_control() -> None:
    noisy, timestep, text, controls = inputs()
    zeros = Controls(**{name: torch.zeros_like(getattr(controls, name)) for name in ("source_BCHW", "driving_BFCHW", "history_BPCHW")})
    meanings = {dropped: awake(replace(CONFIG, dropped=dropped)) for dropped in Dropped}
    with torch.no_grad():
        out = {dropped: dit(noisy, timestep, text, Controls()) for dropped, dit in meanings.items()}
        given = {dropped: dit(noisy, timestep, text, zeros) for dropped, dit in meanings.items()}
        latents = given[Dropped.ZERO_LATENTS]
        meanings[Dropped.ZERO_TOKENS].base.pos_embed.proj.bias.zero_()
        meanings[Dropped.ZERO_TOKENS].base.pos_embed.pos_embed.zero_()
        blank = meanings[Dropped.ZERO_TOKENS]
        assert torch.equal(blank(noisy, timestep, text, Controls()), blank(noisy, timestep, text, zeros))
    assert torch.equal(out[Dropped.ZERO_LATENTS], latents)  # "zero out history frames", word for word
    assert all((a - b).abs().max() > 1e-4 for a, b in combinations(out.values(), 2))


@pytest.mark.parametrize(
    ("kept", "slots"),
    [
        (U, [Slot.VIDEO]),
        (Kept(source=True), [Slot.SOURCE, Slot.VIDEO]),
        (Kept(driving=True), [Slot.VIDEO, Slot.DRIVING]),
        (Kept(history=True), [Slot.VIDEO, Slot.HISTORY]),
        (P, [Slot.SOURCE, Slot.VIDEO, Slot.HISTORY, Slot.DRIVING]),
    ],
)
@pytest.mark.parametrize("history_slot", ["video", "own"])
def test_each_control_lies_in_its_slot(history_slot: str, kept: Kept, slots: list[Slot], monkeypatch: pytest.MonkeyPatch) -> None:
    dit, (noisy, timestep, text, controls) = model(replace(CONFIG, history_slot=history_slot)), inputs()
    if history_slot == "video":
        slots = [Slot.VIDEO if slot == Slot.HISTORY else slot for slot in slots]
    used, positions = [], dit.positions

    def spy(rows: int, columns: int, slot: Slot) -> Tensor:
        used.append(slot)
        return positions(rows, columns, slot)

    monkeypatch.setattr(dit, "positions", spy)
    with torch.no_grad():
        dit(noisy, timestep, text, controls.keep(kept))
    assert sorted(s.value for s in used) == sorted(s.value for s in slots)


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


@pytest.mark.parametrize("ffn", [False, True])
def test_full_attention_reads_every_frame_and_factorised_attention_its_own_place_alone(ffn: bool) -> None:
    """By gradients of the output at one token, for both with the same weights."""
    full, factorised = (awake(replace(CONFIG, temporal_ffn=ffn, factorised=f)).temporal[0] for f in (False, True))
    factorised.load_state_dict(full.state_dict())
    place = 2
    for temporal, column in ((full, False), (factorised, True)):
        x = torch.randn(1, 5, 4, CONFIG.width, generator=torch.Generator().manual_seed(1), requires_grad=True)
        temporal(x, first_frame=0)[0, 3, place].sum().backward()
        assert x.grad is not None
        reads = x.grad[0].abs().amax(-1) > 0  # frames, places
        assert bool(reads[:, place].all())
        assert bool(reads.all()) != column and int(reads.sum()) == (5 if column else 20)


def permuted(x: Tensor | None, order: list[int]) -> Tensor | None:
    return x[:, order] if x is not None else None


@torch.no_grad()
def permutes(dit: PortraitDiT) -> bool:
    """Whether permuting noise and driving frames alike permutes the output."""
    noisy, timestep, text, controls = inputs()
    order = [2, 0, 1]
    plain = dit(noisy, timestep, text, controls)
    moved = replace(controls, driving_BFCHW=permuted(controls.driving_BFCHW, order))
    return torch.allclose(dit(noisy[:, order], timestep, text, moved), plain[:, order], atol=1e-5)


@pytest.mark.parametrize("encoding", ["learned", "sincos"])
@pytest.mark.parametrize("factorised", [False, True])
def test_only_the_frame_number_tells_frames_apart(factorised: bool, encoding: str) -> None:
    config = replace(CONFIG, factorised=factorised, frame_encoding=encoding)
    assert permutes(model(config))
    dit = awake(config)
    assert not permutes(dit)
    for temporal in dit.temporal:
        temporal._numbers = lambda like: like.new_zeros(CONFIG.history + CONFIG.frames, CONFIG.width)
    assert permutes(dit)


@pytest.mark.parametrize("factorised", [False, True])
def test_history_that_is_only_read_stays_as_it_is(factorised: bool) -> None:
    temporal = awake(replace(CONFIG, factorised=factorised)).temporal[0]
    x = torch.randn(2, 5, 4, CONFIG.width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(temporal(x, first_frame=0, only_read=2), temporal(x, first_frame=0)[:, 2:])
    dit, (noisy, timestep, text, controls) = awake(replace(CONFIG, temporal_updates_history=False, factorised=factorised)), inputs()
    seen: list[Tensor] = []  # history tokens as they enter the second temporal module
    dit.temporal[1].register_forward_pre_hook(lambda _, args: seen.append(args[0][:, : CONFIG.history]))
    with torch.no_grad():
        a, b = dit(noisy, timestep, text, controls), dit(noisy + 1, timestep, text, controls)
    assert torch.equal(seen[0], seen[1]) and not torch.allclose(a, b)


@pytest.mark.parametrize("encoding", ["learned", "sincos"])
def test_a_frames_number_matters(encoding: str) -> None:
    temporal = awake(replace(CONFIG, frame_encoding=encoding)).temporal[0]
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


@pytest.mark.parametrize("texts", [1, B])
@pytest.mark.parametrize("history_time", ["clean", "same"])
def test_what_depends_on_time_and_text_alone_can_be_had_for_all_steps_before(history_time: str, texts: int) -> None:
    dit, (noisy, _, text, controls) = awake(replace(CONFIG, history_time=history_time)), inputs()
    text = Text(text.tokens_BLD[:texts], text.pooled_BD[:texts])
    timesteps = torch.tensor([1000.0, 641.5, 9.0])
    used = count_calls([dit.base.time_text_embed, dit.base.context_embedder, *(b.norm1.linear for b in dit.base.transformer_blocks)])
    with torch.no_grad():
        modulations = dit.modulations(timesteps, text)
        used.clear()
        outs = [dit(noisy, timesteps[k].expand(B), text, controls, modulation=modulations[k]) for k in range(3)]
        assert not used
        for k in range(3):
            expected = dit(noisy, timesteps[k].expand(B), text, controls)
            torch.testing.assert_close(outs[k], expected, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(outs[0], outs[1])


def count_calls(modules: list[torch.nn.Module]) -> list[torch.nn.Module]:
    calls: list[torch.nn.Module] = []
    for module in modules:
        module.register_forward_hook(lambda m, *_: calls.append(m))
    return calls


@torch.no_grad()
@pytest.mark.parametrize("dropped", Dropped)
@pytest.mark.parametrize("kept", [U, S, Kept(driving=True), P])
def test_frozen_controls_are_read_from_a_bank_that_serves_all_steps(kept: Kept, dropped: Dropped) -> None:
    dit, (noisy, timestep, text, controls) = awake(replace(CONFIG, frozen_controls=True, dropped=dropped)), inputs()
    controls = controls.keep(kept)
    bank = dit.bank(text, controls, noisy)
    tokens = []
    dit.base.transformer_blocks[0].ff.register_forward_pre_hook(lambda _, args: tokens.append(args[0].shape[1:3]))
    for time in (timestep, timestep / 2):
        banked = dit(noisy, time, text, Controls(history_BPCHW=controls.history_BPCHW), bank=bank)
        at = len(tokens)
        assert {*tokens} <= {(F, 16), (CONFIG.history, 16)}, "source and driving tokens are worked on"
        torch.testing.assert_close(banked, dit(noisy, time, text, controls), atol=1e-6, rtol=1e-6)
        del tokens[at:]


@torch.no_grad()
def test_a_source_alone_is_banked_once_for_all_frames() -> None:
    dit, (noisy, _, text, controls) = awake(replace(CONFIG, frozen_controls=True)), inputs()
    assert {block.first[0].shape[:2] for block in dit.bank(text, controls.keep(S), noisy).blocks if block} == {(B, 1)}
    assert {block.first[0].shape[:2] for block in dit.bank(text, controls.keep(D), noisy).blocks if block} == {(B, F)}


@torch.no_grad()
def test_frozen_controls_are_another_model() -> None:
    noisy, timestep, text, controls = inputs()
    frozen, plain = awake(replace(CONFIG, frozen_controls=True)), awake()
    assert frozen.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(*(dit(noisy, timestep, text, Controls()) for dit in (frozen, plain)))
    assert not torch.allclose(*(dit(noisy, timestep, text, controls) for dit in (frozen, plain)), atol=1e-4)


def test_the_papers_size() -> None:
    with torch.device("meta"):
        dit = PortraitDiT(SD35_MEDIUM)
    base = sum(p.numel() for p in dit.base.parameters())
    temporal = sum(p.numel() for p in dit.temporal.parameters())
    assert round(base / 1e6) == 2243  # SD3.5-Medium without its position table
    assert round(temporal / 1e6) == 227  # attention alone, a tenth of the base
    table = dit.base.pos_embed.pos_embed
    assert table.numel() * table.element_size() < 100e6  # bytes, of 906 MB
    assert dit.positions(36, 36, Slot.DRIVING).shape == (36 * 36, 1536)  # 576 px
    assert no_text(SD35_MEDIUM, 1).tokens_BLD.shape == (1, 154, 4096)
