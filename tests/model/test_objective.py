"""The flow's noise levels are SD3's; controls drop as often as asked."""

from collections import Counter

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling

from model.controls import Controls, D, Kept, P, S, U
from model.objective import ObjectiveConfig, draw_kept, draw_noise, kept_at, velocity_loss
from model.portrait_dit import PortraitConfig, PortraitDiT, no_text

SHAPE = torch.Size((1, 1, 1, 1))


def test_noise_levels_follow_sd3() -> None:
    """u = sigmoid(normal) indexes the scheduler's descending list of a thousand; ours is that list's formula."""
    listed = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0).sigmas
    drawn = torch.tensor([draw_noise(ObjectiveConfig(), SHAPE, torch.Generator().manual_seed(i))[0] for i in range(2000)])
    for i, sigma in enumerate(drawn[:50]):
        u = torch.sigmoid(torch.randn((), generator=torch.Generator().manual_seed(i)))
        assert abs(float(sigma) - float(listed[int(1000 * u)])) < 0.004
    assert abs(float(drawn.median()) - 0.75) < 0.02  # u = 1/2


def test_the_density_of_noise_levels_is_that_of_diffusers_training_script() -> None:
    """Its logit-normal draw, and its whole-numbered index into its scheduler's list: the distributions part by no more than chance."""
    n, generator = 4000, torch.Generator().manual_seed(0)
    u = compute_density_for_timestep_sampling("logit_normal", n, 0.0, 1.0, generator=generator)
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    theirs = scheduler.sigmas[(u * scheduler.config.num_train_timesteps).long()].sort().values
    ours = torch.tensor([draw_noise(ObjectiveConfig(), SHAPE, generator)[0] for _ in range(n)]).sort().values
    assert distance(ours, theirs) < 1.95 * (2 / n) ** 0.5  # of two samples of one distribution, once in a thousand times
    unshifted = torch.tensor([draw_noise(ObjectiveConfig(shift=1.0), SHAPE, generator)[0] for _ in range(n)]).sort().values
    assert distance(unshifted, theirs) > 0.3


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Kolmogorov and Smirnov's, of two sorted samples: the largest difference of their shares below any level."""
    levels = torch.cat([a, b])
    return float((torch.searchsorted(a, levels, right=True) / len(a) - torch.searchsorted(b, levels, right=True) / len(b)).abs().max())


def test_nested_dropout_makes_the_four_configurations_of_guidance() -> None:
    config = ObjectiveConfig(dropout_chances=(0.1, 0.2, 0.3))
    n = 2000
    kept = Counter(draw_kept(config, torch.Generator().manual_seed(i), history=True) for i in range(n))
    assert set(kept) == {U, S, D, P}
    for which, chance in ((U, 0.1), (S, 0.2), (D, 0.3), (P, 0.4)):
        assert abs(kept[which] / n - chance) < 0.04


def test_independent_dropout_drops_each_by_itself() -> None:
    config = ObjectiveConfig(dropout="independent", dropout_chances=(0.5, 0.5, 0.5))
    assert kept_at(config, [0.6, 0.4, 0.6]) == Kept(source=True, driving=False, history=True)


def test_the_first_stage_has_no_history() -> None:
    kept = {draw_kept(ObjectiveConfig(), torch.Generator().manual_seed(i), history=False) for i in range(100)}
    assert kept == {U, S, D}


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0])
def test_loss_is_on_noise_minus_data(sigma: float) -> None:
    config = PortraitConfig(layers=1, heads=2, head_dim=16, position_grid=12, sample_size=8, dual_layers=0, frames=2, history=0)
    dit = PortraitDiT(config)
    torch.nn.init.zeros_(dit.base.proj_out.weight)
    torch.nn.init.zeros_(dit.base.proj_out.bias)  # the model answers 0
    target, noise = torch.randn(2, 1, 2, 16, 4, 4)
    with torch.no_grad():
        loss = velocity_loss(dit, target, torch.tensor([sigma]), noise, no_text(config, 1), Controls())
    torch.testing.assert_close(loss, (noise - target).square().mean()[None])


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"dropout_chances": (0.9, 0.9, -3.0)}, "between 0 and 1"),
        ({"dropout_chances": (0.5, 0.3, 0.2)}, "leave some chance"),
        ({"shift": 0.0}, "shift must be above 0"),
    ],
)
def test_chances_that_are_none_are_refused(setting: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ObjectiveConfig(**setting)
