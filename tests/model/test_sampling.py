"""Noise levels and guidance are SD3's and the paper's; windows slide over any length."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from model.controls import Controls, D, Kept, P, S, U
from model.objective import TIMESTEPS
from model.portrait_dit import PortraitConfig, PortraitDiT, no_text
from model.sampling import Guidance, combine, guided_velocity, noise_levels, sample_video, sample_window

CONFIG = PortraitConfig(layers=2, heads=2, head_dim=16, position_grid=12, sample_size=8, dual_layers=1, frames=3, history=2)


def model() -> PortraitDiT:
    torch.manual_seed(0)
    return PortraitDiT(CONFIG)


def test_noise_levels_are_diffusers_own() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMESTEPS, shift=3.0)
    for steps in (10, 40):
        scheduler.set_timesteps(steps)
        torch.testing.assert_close(noise_levels(steps), scheduler.sigmas, atol=1e-6, rtol=0)
    assert abs(float(noise_levels(40)[-2]) - 0.0089) < 1e-4


def test_guidance_is_the_papers_sum() -> None:
    u, s, d, p = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(combine(u, s, d, p, Guidance()), -u - 0.5 * s + 1.5 * d + p)
    torch.testing.assert_close(combine(u, s, d, p, Guidance(source=1, driving=1, history=1)), p)
    torch.testing.assert_close(combine(u, s, d, p, Guidance(source=0, driving=0, history=0)), u)


def test_a_euler_step_ends_where_the_velocity_points() -> None:
    """One step from sigma 1 to 0 is noise minus velocity."""
    dit, text = model(), no_text(CONFIG, 1)
    noise = torch.randn(1, 3, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    controls = Controls(source_BCHW=noise[:, 0], driving_BFCHW=noise.flip(1))
    with torch.no_grad():
        velocity = guided_velocity(dit, noise, 1.0, text, controls, Guidance())
    torch.testing.assert_close(sample_window(dit, noise, text, controls, steps=1, guidance=Guidance()), noise - velocity)


@pytest.mark.parametrize(("history", "passes"), [(True, [U, S, D, P]), (False, [U, S, D])])
def test_guidance_asks_for_the_papers_four_sets_of_controls(history: bool, passes: list[Kept]) -> None:
    dit, text = model(), no_text(CONFIG, 1)
    seen: list[Kept] = []

    def spy(_: object, args: tuple) -> None:
        controls = args[3]
        seen.append(Kept(*(x is not None for x in (controls.source_BCHW, controls.driving_BFCHW, controls.history_BPCHW))))

    dit.register_forward_pre_hook(spy)
    noise = torch.randn(1, 3, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    controls = Controls(source_BCHW=noise[:, 0], driving_BFCHW=noise, history_BPCHW=noise[:, :2] if history else None)
    with torch.no_grad():
        guided_velocity(dit, noise, 0.5, text, controls, Guidance())
    assert seen == passes


def test_the_shift_of_the_noise_levels_is_the_models() -> None:
    dit, text = model(), no_text(CONFIG, 1)
    times: list[float] = []
    dit.register_forward_pre_hook(lambda _, args: times.append(float(args[1][0])))
    noise = torch.randn(1, 3, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    sample_video(dit, text, noise[:, 0], noise, steps=3, shift=5.0, generator=torch.Generator())
    assert times[::3] == (TIMESTEPS * noise_levels(3, shift=5.0)[:-1]).tolist() != (TIMESTEPS * noise_levels(3)[:-1]).tolist()


def test_windows_slide_and_each_sees_the_frames_before_it() -> None:
    dit, text = model(), no_text(CONFIG, 1)
    seen: list[torch.Tensor | None] = []

    def spy(_: object, args: tuple) -> None:
        seen.append(args[3].history_BPCHW)

    dit.register_forward_pre_hook(spy)
    video = torch.randn(1, 7, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    out = sample_video(dit, text, video[:, 0], video, steps=1, generator=torch.Generator().manual_seed(1))
    assert out.shape == video.shape
    given = [h for h in seen if h is not None]
    assert len(seen) == 3 + 4 + 4  # passes of the three windows: no history in the first
    torch.testing.assert_close(given[0], out[:, 1:3])
    torch.testing.assert_close(given[1], out[:, 4:6])
