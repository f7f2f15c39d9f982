"""Guidance is the paper's sum, in as many passes as weigh something, one by one or as a batch; and what is dropped does not enter."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from model.branches import Ask, Prepared, ask_all
from model.controls import Controls, D, Dropped, Kept, P, S, Text, U
from model.guidance import Guidance, Term, guided_velocity, terms
from model.portrait_dit import PortraitConfig, PortraitDiT, no_text

CONFIG = PortraitConfig(layers=3, heads=2, head_dim=16, position_grid=12, sample_size=8, dual_layers=2, frames=3, history=2)
TEXT = no_text(CONFIG, 2)
PLAIN = Guidance(source=1, driving=1, history=1)


def lively(config: PortraitConfig) -> PortraitDiT:
    """Fresh weights, also where a fresh model has zeros, so that every control means something."""
    torch.manual_seed(0)
    net = PortraitDiT(config).requires_grad_(False)
    for module in net.temporal:
        nn.init.normal_(module.out.weight, std=0.1)
        if module.ff is not None:
            nn.init.normal_(module.ff[2].weight, std=0.1)
    return net


@pytest.fixture(scope="module")
def dit() -> PortraitDiT:
    return lively(CONFIG)


def latents(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


NOISY = latents(2, 3, 16, 4, 4, seed=0)
GIVEN = Controls(
    source_BCHW=latents(2, 16, 4, 4, seed=1), driving_BFCHW=latents(2, 3, 16, 4, 4, seed=2), history_BPCHW=latents(2, 2, 16, 4, 4, seed=3)
)
FIRST = replace(GIVEN, history_BPCHW=None)  # of the first window
PROMPT = Text(latents(2, CONFIG.text_tokens, CONFIG.text_dim, seed=4), latents(2, CONFIG.pooled_dim, seed=5))


def passes(net: PortraitDiT, controls: Controls, *, text: Text = TEXT) -> dict[str, Tensor]:
    """The four velocities, asked for one by one; without previous frames three."""
    time = torch.full((2,), 700.0)
    kept = {
        "u": Controls(),
        "s": Controls(source_BCHW=controls.source_BCHW),
        "d": Controls(source_BCHW=controls.source_BCHW, driving_BFCHW=controls.driving_BFCHW),
        "p": controls,
    }
    return {name: net(NOISY, time, text, c) for name, c in kept.items()}


def summed(velocity: dict[str, Tensor], ls: float, ld: float, lp: float) -> Tensor:
    """The paper's formula, number by number."""
    out = torch.empty(NOISY.numel(), dtype=torch.float64)
    u, s, d, p = (velocity[name].flatten().tolist() for name in "usdp")
    for i in range(len(out)):
        out[i] = u[i] + ls * (s[i] - u[i]) + ld * (d[i] - s[i]) + lp * (p[i] - d[i])
    return out.view(NOISY.shape).float()


@pytest.mark.parametrize("controls", [GIVEN, FIRST], ids=["later", "first"])
@pytest.mark.parametrize("branches", ["sequential", "batched"])
@pytest.mark.parametrize("strengths", [(2, 2.5, 1), (1.5, 0.5, 3), (1, 1, 1), (0, 0, 0), (2, 2, 0)])
def test_guidance_is_the_papers_sum(dit: PortraitDiT, controls: Controls, branches: str, strengths: tuple[float, float, float]) -> None:
    ls, ld, lp = strengths
    guidance = Guidance(source=ls, driving=ld, history=lp)
    got = guided_velocity(dit, NOISY, 0.7, TEXT, controls, guidance, branches=branches)  # type: ignore[arg-type]
    torch.testing.assert_close(got, summed(passes(dit, controls), ls, ld, lp), atol=1e-5, rtol=0)


def test_the_four_passes_differ(dit: PortraitDiT) -> None:
    """Else the sums above would say nothing."""
    u, s, d, p = passes(dit, GIVEN).values()
    assert min(float((a - b).abs().max()) for a, b in ((u, s), (s, d), (d, p))) > 0.01


def test_strengths_of_one_are_the_pass_with_all_controls(dit: PortraitDiT) -> None:
    assert torch.equal(guided_velocity(dit, NOISY, 0.7, TEXT, GIVEN, PLAIN), passes(dit, GIVEN)["p"])
    assert torch.equal(guided_velocity(dit, NOISY, 0.7, TEXT, FIRST, PLAIN), passes(dit, FIRST)["d"])


@pytest.mark.parametrize(
    ("guidance", "history", "wanted"),
    [
        (Guidance(), True, {U: -1, S: -0.5, D: 1.5, P: 1}),
        (Guidance(), False, {U: -1, S: -0.5, D: 2.5}),
        (PLAIN, True, {P: 1}),
        (PLAIN, False, {D: 1}),
        (Guidance(source=2, driving=2, history=2), True, {U: -1, P: 2}),
        (Guidance(source=0, driving=0, history=0), True, {U: 1}),
    ],
)
def test_only_what_weighs_something_is_asked_for(dit: PortraitDiT, guidance: Guidance, history: bool, wanted: dict[Kept, float]) -> None:
    assert terms(guidance, 0.5, history=history, prompt=False) == [Term(kept, False, w) for kept, w in wanted.items()]
    seen: list[Kept] = []
    hook = dit.register_forward_pre_hook(
        lambda _, args: seen.append(Kept(*(x is not None for x in (args[3].source_BCHW, args[3].driving_BFCHW, args[3].history_BPCHW))))
    )
    guided_velocity(dit, NOISY, 0.5, TEXT, GIVEN if history else FIRST, guidance)
    hook.remove()
    assert seen == list(wanted)


def test_beyond_its_noise_levels_guidance_is_left_out() -> None:
    some = Guidance(from_sigma=0.2, to_sigma=0.8)
    for sigma, expected in ((0.1, [P]), (0.2, [U, S, D, P]), (0.8, [U, S, D, P]), (0.9, [P])):
        assert [t.kept for t in terms(some, sigma, history=True, prompt=False)] == expected


@pytest.mark.parametrize("branches", ["sequential", "batched"])
def test_a_dropped_control_does_not_enter(dit: PortraitDiT, branches: str) -> None:
    """Not even a NaN in it does."""
    nan = Controls(**{name: torch.full_like(value, torch.nan) for name, value in vars(GIVEN).items()})
    for kept in (U, S, D):
        spoilt = Controls(
            source_BCHW=GIVEN.source_BCHW if kept.source else nan.source_BCHW,
            driving_BFCHW=GIVEN.driving_BFCHW if kept.driving else nan.driving_BFCHW,
            history_BPCHW=nan.history_BPCHW,
        )
        asks = [Ask(TEXT, kept), Ask(TEXT, U)]
        got, wanted = (ask_all(dit, NOISY, 0.7, controls, asks, branches) for controls in (spoilt, GIVEN))  # type: ignore[arg-type]
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    # and in the sum: with driving and history at 0 neither weighs anything
    spoilt, source_only = replace(nan, source_BCHW=GIVEN.source_BCHW), Guidance(source=2, driving=0, history=0)
    got = guided_velocity(dit, NOISY, 0.7, TEXT, spoilt, source_only, branches=branches)  # type: ignore[arg-type]
    assert torch.equal(got, guided_velocity(dit, NOISY, 0.7, TEXT, GIVEN, source_only, branches=branches))  # type: ignore[arg-type]


def test_in_a_batch_no_branch_sees_anothers_controls(dit: PortraitDiT) -> None:
    """Other source and driving frames change what sees them, and leave the others' answers as they were."""
    other = Controls(source_BCHW=GIVEN.source_BCHW, driving_BFCHW=5 * latents(2, 3, 16, 4, 4, seed=9))
    first, second = (ask_all(dit, NOISY, 0.7, c, [Ask(TEXT, k) for k in (U, S, D)], "batched") for c in (FIRST, other))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1]) and not torch.allclose(first[2], second[2], atol=1e-3)


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"factorised": True, "history_time": "same", "temporal_updates_history": False},
        {"dropped": Dropped.ZERO_LATENTS},
        {"dropped": Dropped.ZERO_TOKENS, "history_slot": "own", "temporal_ffn": True, "position_grid": 16},
    ],
    ids=["removed", "removed, otherwise", "zero latents", "zero tokens"],
)
def test_a_batch_of_branches_equals_as_many_calls(choice: dict) -> None:
    """For a batch of two videos."""
    net = lively(replace(CONFIG, **choice))
    asks = [Ask(TEXT, k) for k in (U, S, D, P)] + [Ask(PROMPT, U)]
    calls: list[int] = []
    net.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    together, apart = (ask_all(net, NOISY, 0.7, GIVEN, asks, branches) for branches in ("batched", "sequential"))
    assert calls == [10, 2, 2, 2, 2, 2]
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert min(float((a - b).abs().max()) for a, b in combinations(apart, 2)) > 1e-3  # else it would say nothing


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize("branches", ["sequential", "batched"])
def test_what_the_steps_have_in_common_is_computed_once(branches: str, frozen: bool) -> None:
    """And changes nothing. With frozen controls that is also what source and driving tokens say, for each of s, d and p."""
    net = lively(replace(CONFIG, frozen_controls=frozen))
    one = Text(TEXT.tokens_BLD[:1], TEXT.pooled_BD[:1])
    calls: list[str] = []
    net.base.context_embedder.register_forward_pre_hook(lambda *_: calls.append("text"))
    prepared = Prepared(net, [0.9, 0.7])
    for sigma in (0.9, 0.7):
        counted = len(calls)
        got = guided_velocity(net, NOISY, sigma, one, GIVEN, Guidance(), branches=branches, prepared=prepared)  # type: ignore[arg-type]
        if sigma == 0.7:
            assert len(calls) == counted
        wanted = guided_velocity(net, NOISY, sigma, one, GIVEN, Guidance(), branches="sequential")
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_a_prompt_adds_its_own_term(dit: PortraitDiT) -> None:
    guidance = Guidance(text=3.0)
    four, t = passes(dit, GIVEN), passes(dit, Controls(), text=PROMPT)["u"]
    wanted = summed(four, 2, 2.5, 1) + 3.0 * (t - four["u"])
    for branches in ("sequential", "batched"):
        got = guided_velocity(dit, NOISY, 0.7, TEXT, GIVEN, guidance, prompt=PROMPT, branches=branches)  # type: ignore[arg-type]
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_the_lower_the_controls_the_more_the_prompt_matters(dit: PortraitDiT) -> None:
    """From the sum that controls make to the prompt alone, on a straight line."""
    u, t = passes(dit, Controls())["u"], passes(dit, Controls(), text=PROMPT)["u"]
    alone = u + 4.5 * (t - u)
    away = []
    for k in (1.0, 0.6, 0.2, 0.0):
        got = guided_velocity(dit, NOISY, 0.7, TEXT, GIVEN, Guidance(control_strength=k), prompt=PROMPT)
        wanted = alone + k * (summed(passes(dit, GIVEN), 2, 2.5, 1) - u)
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
        away.append(float((got - alone).square().mean()))
    assert away == sorted(away, reverse=True) and away[0] > away[1] > away[2] > away[3] < 1e-10
    assert [t.kept for t in terms(Guidance(control_strength=0.0), 0.5, history=True, prompt=True)] == [U, U]  # nothing else is computed


def test_without_a_prompt_the_dial_does_not_exist(dit: PortraitDiT) -> None:
    plain = guided_velocity(dit, NOISY, 0.7, TEXT, GIVEN, Guidance())
    assert torch.equal(plain, guided_velocity(dit, NOISY, 0.7, TEXT, GIVEN, Guidance(text=9.0)))
    assert torch.equal(plain, guided_velocity(dit, NOISY, 0.7, TEXT, GIVEN, Guidance(text=0.0), prompt=PROMPT))
    with pytest.raises(ValueError, match=r"control_strength is 0\.5: it weighs the controls against a prompt, and there is none"):
        guided_velocity(dit, NOISY, 0.7, TEXT, GIVEN, Guidance(control_strength=0.5))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"source": float("nan")}, "guidance.source must be a number"),
        ({"from_sigma": 0.6, "to_sigma": 0.4}, "in this order"),
        ({"control_strength": 1.5}, "control_strength must lie in 0..1"),
    ],
)
def test_strengths_that_make_no_sense_are_refused(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Guidance(**wrong)
