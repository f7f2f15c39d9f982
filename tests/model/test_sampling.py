"""Noise levels are SD3's, steps down them recover the data of a flow that is known, and windows slide over any length without a seam."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from model.controls import Controls, Text
from model.guidance import Guidance, guided_velocity
from model.objective import TIMESTEPS
from model.portrait_dit import PortraitConfig, PortraitDiT, no_text
from model.sampling import SamplerConfig, TemporalDenoising, noise_levels, sample_window
from model.windows import sample_video, sample_windows

CONFIG = PortraitConfig(layers=2, heads=2, head_dim=16, position_grid=12, sample_size=8, dual_layers=1, frames=3, history=2)
TEXT = no_text(CONFIG, 1)


def model() -> PortraitDiT:
    torch.manual_seed(0)
    dit = PortraitDiT(CONFIG)
    for block in dit.temporal:  # else previous frames would mean nothing
        torch.nn.init.normal_(block.out.weight, std=0.1)
    return dit


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


@dataclass
class Known:
    """A denoiser in closed form: frames are normal around `mean`, with one standard deviation.

    Of x = (1 - s) x0 + s e it knows E[e - x0 | x]; with deviation 0 the data are points.
    """

    std: float = 0.0
    config: PortraitConfig = CONFIG
    calls: list[Controls] = field(default_factory=list)

    def mean(self, noisy: Tensor, controls: Controls) -> Tensor:
        return torch.linspace(-2, 2, noisy.shape[-1]).expand_as(noisy)

    def __call__(self, noisy: Tensor, timestep: Tensor, text: Text, controls: Controls) -> Tensor:
        self.calls.append(controls)
        s, mean = float(timestep[0]) / TIMESTEPS, self.mean(noisy, controls)
        away = noisy - (1 - s) * mean
        variance = (1 - s) ** 2 * self.std**2 + s**2
        return (s - (1 - s) * self.std**2) / variance * away - mean


def test_noise_levels_are_diffusers_own() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMESTEPS, shift=3.0)
    for steps in (10, 40):
        scheduler.set_timesteps(steps)
        torch.testing.assert_close(noise_levels(steps), scheduler.sigmas, atol=1e-6, rtol=0)
    assert abs(float(noise_levels(40)[-2]) - 0.0089) < 1e-4


@pytest.mark.parametrize("steps", [1, 40])
def test_a_point_is_found_whatever_the_noise(steps: int) -> None:
    known, noise = Known(), normal(2, 3, 16, 4, 4)
    out = sample_window(known, noise, TEXT, Controls(), SamplerConfig(steps=steps))
    assert (out - known.mean(noise, Controls())).abs().max() < 1e-5


def test_a_gaussian_flow_takes_noise_to_data_and_more_steps_nearer() -> None:
    """Its flow keeps (x - (1 - s) mean) / sqrt(variance) as it is, so noise e ends at mean + std e."""
    known, noise = Known(std=0.5), normal(1, 3, 16, 4, 4)
    wanted = known.mean(noise, Controls()) + 0.5 * noise
    worst = [
        float((sample_window(known, noise, TEXT, Controls(), SamplerConfig(steps=steps)) - wanted).abs().max()) for steps in (10, 40, 160)
    ]
    assert worst[0] < 0.6 and worst[1] < 0.4 * worst[0] and worst[2] < 0.4 * worst[1]


def test_a_euler_step_ends_where_the_velocity_points() -> None:
    """One step from sigma 1 to 0 is noise minus velocity."""
    dit, noise = model(), normal(1, 3, 16, 4, 4)
    controls = Controls(source_BCHW=noise[:, 0], driving_BFCHW=noise.flip(1))
    with torch.no_grad():
        velocity = guided_velocity(dit, noise, 1.0, TEXT, controls, Guidance())
    torch.testing.assert_close(sample_window(dit, noise, TEXT, controls, SamplerConfig(steps=1)), noise - velocity)


def test_the_shift_of_the_noise_levels_is_the_configs() -> None:
    known, times = Known(), []

    def spied(noisy: Tensor, timestep: Tensor, text: Text, controls: Controls) -> Tensor:
        times.append(float(timestep[0]))
        return known(noisy, timestep, text, controls)

    spied.config = CONFIG  # type: ignore[attr-defined]
    plain = SamplerConfig(steps=3, shift=5.0, guidance=Guidance(source=1, driving=1))
    sample_window(spied, normal(1, 3, 16, 4, 4), TEXT, Controls(), plain)  # type: ignore[arg-type]
    assert times == pytest.approx((TIMESTEPS * noise_levels(3, shift=5.0)[:-1]).tolist())
    assert abs(times[1] - float(TIMESTEPS * noise_levels(3)[1])) > 10


class Numbered(Known):
    """The data are a function of the frame's number in the video, which driving latents say in their first channel.

    With previous frames it goes by these instead: by the number that it reads off the last of them.
    """

    def mean(self, noisy: Tensor, controls: Controls) -> Tensor:
        f = noisy.shape[1]
        if controls.history_BPCHW is not None:
            number = float(controls.history_BPCHW[0, -1].mean()) / 0.1 + 1 + torch.arange(f)
        elif controls.driving_BFCHW is not None:
            number = controls.driving_BFCHW[0, :, 0, 0, 0]
        else:
            number = torch.zeros(f)
        return (0.1 * number)[None, :, None, None, None].expand_as(noisy)


@pytest.mark.parametrize("total", [1, 3, 7, 12])
def test_windows_meet_without_a_seam(total: int) -> None:
    """Each frame of a video is where its number says, also those whose model knows no more than the frames before them."""
    numbers = torch.arange(total, dtype=torch.float32)
    video = numbers[None, :, None, None, None].expand(1, -1, 16, 4, 4)
    known = Numbered()
    plain = SamplerConfig(steps=5, guidance=Guidance(source=1, driving=1, history=1))
    out = sample_video(known, TEXT, video[:, 0], video, plain, generator=seeded())
    assert out.shape == video.shape
    assert (out - 0.1 * video).abs().max() < 1e-5
    assert any(c.history_BPCHW is not None for c in known.calls) == (total > CONFIG.frames)


def test_windows_slide_and_each_sees_the_frames_before_it() -> None:
    dit, seen = model(), []
    dit.register_forward_pre_hook(lambda _, args: seen.append(args[3].history_BPCHW))
    video = normal(1, 7, 16, 4, 4)
    out = sample_video(dit, TEXT, video[:, 0], video, SamplerConfig(steps=1), generator=seeded(1))
    assert out.shape == video.shape
    given = [h for h in seen if h is not None]
    assert len(seen) == 3 + 4 + 4  # passes of the three windows: no history in the first
    torch.testing.assert_close(given[0], out[:, 1:3])
    torch.testing.assert_close(given[1], out[:, 4:6])


def test_a_model_that_never_saw_previous_frames_is_shown_none() -> None:
    dit, video = model(), normal(1, 6, 16, 4, 4)
    config = SamplerConfig(steps=2)
    out = sample_video(dit, TEXT, video[:, 0], video, config, generator=seeded(1), history=False)
    generator = seeded(1)
    apart = [sample_video(dit, TEXT, video[:, 0], part, config, generator=generator) for part in video.split(3, dim=1)]
    assert torch.equal(out, torch.cat(apart, dim=1))
    assert not torch.equal(out, sample_video(dit, TEXT, video[:, 0], video, config, generator=seeded(1)))


def test_one_window_is_in_hand_at_a_time() -> None:
    """The next driving window is asked for only after the last one was handed over; an endless video can be begun."""
    asked = 0

    def endless() -> Iterator[Tensor]:
        nonlocal asked
        while True:
            asked += 1
            yield torch.zeros(1, 3, 16, 4, 4)

    windows = sample_windows(Known(), TEXT, torch.zeros(1, 16, 4, 4), endless(), SamplerConfig(steps=1), generator=seeded())
    for k in range(1, 50):
        assert next(windows).shape == (1, 3, 16, 4, 4) and asked == k


def test_a_short_last_window_is_made_as_if_its_last_frame_stayed() -> None:
    dit, video, config = model(), normal(1, 5, 16, 4, 4), SamplerConfig(steps=2)
    filled = torch.cat([video, video[:, -1:]], dim=1)
    short, long = (sample_video(dit, TEXT, video[:, 0], v, config, generator=seeded()) for v in (video, filled))
    assert torch.equal(short, long[:, :5])


def slow_video(dit: PortraitDiT, source: Tensor, driving: Tensor, steps: int, seed: int) -> np.ndarray:
    """The whole sampler once more, in float64 and written down from the paper and from SD3's reference code: (T, C, H, W)."""
    shift, (f, p) = 3.0, (CONFIG.frames, CONFIG.history)
    ends = [shift * s / (1 + (shift - 1) * s) for s in (1.0, 1 / 1000)]
    even = [ends[0] + (ends[1] - ends[0]) * i / (steps - 1) for i in range(steps)]
    levels = [shift * s / (1 + (shift - 1) * s) for s in even] + [0.0]
    generator, made = torch.Generator().manual_seed(seed), []
    for first in range(0, driving.shape[1], f):
        shown = torch.stack([driving[0, min(first + k, driving.shape[1] - 1)] for k in range(f)])[None]
        x = torch.randn(shown.shape, generator=generator).numpy().astype(np.float64)
        for now, then in pairwise(levels):
            out = {}
            for name in "usdp":
                controls = Controls(
                    source_BCHW=source if name in "sdp" else None,
                    driving_BFCHW=shown if name in "dp" else None,
                    history_BPCHW=torch.stack(made[-p:])[None].float() if name == "p" and made else None,
                )
                with torch.no_grad():
                    out[name] = dit(torch.from_numpy(x).float(), torch.tensor([1000 * now]), TEXT, controls).double().numpy()
            x = x + (then - now) * (out["u"] + 2 * (out["s"] - out["u"]) + 2.5 * (out["d"] - out["s"]) + 1 * (out["p"] - out["d"]))
        made += list(torch.from_numpy(x[0]))
    return torch.stack(made)[: driving.shape[1]].numpy()


@pytest.mark.parametrize("branches", ["sequential", "batched"])
def test_a_video_is_what_a_slow_reference_makes(branches: str) -> None:
    dit, video = model(), normal(1, 8, 16, 4, 4, seed=3)
    config = SamplerConfig(steps=4, branches=branches)  # type: ignore[arg-type]
    out = sample_video(dit, TEXT, video[:, 0], video, config, generator=seeded(5))
    assert np.abs(out[0].numpy() - slow_video(dit, video[:, 0], video, 4, 5)).max() < 1e-4


def test_frozen_controls_are_computed_once_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bank for each set of them, source alone, both, and none; the frames are those of a model that computes them at every step."""
    torch.manual_seed(0)
    dit, made = PortraitDiT(replace(CONFIG, frozen_controls=True)).requires_grad_(False), []
    bank = PortraitDiT.bank

    def spied(self: PortraitDiT, text: Text, controls: Controls, noisy: Tensor) -> object:
        made.append(controls)
        return bank(self, text, controls, noisy)

    monkeypatch.setattr(PortraitDiT, "bank", spied)
    video, config = normal(1, 6, 16, 4, 4), SamplerConfig(steps=3)
    out = sample_video(dit, TEXT, video[:, 0], video, config, generator=seeded())
    assert len(made) == 2 * 3  # p has the controls of d

    def forgetful(*asked: object) -> Tensor:
        return dit(*asked)

    forgetful.config = dit.config  # type: ignore[attr-defined]
    wanted = sample_video(forgetful, TEXT, video[:, 0], video, config, generator=seeded())  # type: ignore[arg-type]
    torch.testing.assert_close(out, wanted, atol=1e-6, rtol=0)


class Flickering(Known):
    """Data that jump from frame to frame by 2; below level 0.5 it keeps what is there, as details are made of what is seen."""

    def mean(self, noisy: Tensor, controls: Controls) -> Tensor:
        sign = 1 - 2 * (torch.arange(noisy.shape[1]) % 2)
        return sign[None, :, None, None, None].expand_as(noisy).float()

    def __call__(self, noisy: Tensor, timestep: Tensor, text: Text, controls: Controls) -> Tensor:
        return super().__call__(noisy, timestep, text, controls) if timestep[0] > TIMESTEPS / 2 else torch.zeros_like(noisy)


def flicker(temporal: TemporalDenoising, *, before: Tensor | None = None) -> Tensor:
    noise = torch.zeros(1, 3, 16, 4, 4)
    return sample_window(Flickering(), noise, TEXT, Controls(), SamplerConfig(steps=12, temporal=temporal), before_B1CHW=before)


def tau() -> int:
    """The first step at which `Flickering` sees no more than what there is."""
    return int((noise_levels(12) > 0.5).sum())


def test_temporal_denoising_is_off_by_default_and_off_is_not_there() -> None:
    off, video = TemporalDenoising(step=7, previous=0), normal(1, 5, 16, 4, 4)
    assert TemporalDenoising().is_off and off.is_off and SamplerConfig().temporal.is_off
    plain = sample_video(model(), TEXT, video[:, 0], video, SamplerConfig(steps=3), generator=seeded())
    assert torch.equal(plain, sample_video(model(), TEXT, video[:, 0], video, SamplerConfig(steps=3, temporal=off), generator=seeded()))


def test_temporal_denoising_with_the_weights_of_a_euler_step_is_one() -> None:
    dit, video = model(), normal(1, 3, 16, 4, 4)
    nearly = TemporalDenoising(step=1, noise=1 + 1e-7)  # not off, so the other formula runs
    out = [
        sample_video(dit, TEXT, video[:, 0], video, SamplerConfig(steps=3, temporal=t), generator=seeded())
        for t in (TemporalDenoising(), nearly)
    ]
    torch.testing.assert_close(*out, atol=1e-5, rtol=0)


def test_the_more_the_previous_frame_weighs_the_less_frames_flicker() -> None:
    jumps = [
        float(flicker(TemporalDenoising(step=tau(), current=1 - w, previous=w)).diff(dim=1).abs().mean()) for w in (0.0, 0.2, 0.4, 0.5)
    ]
    assert jumps[0] > jumps[1] > jumps[2] > jumps[3] and jumps[2] < 0.7 * jumps[0]


def test_the_first_frame_of_a_window_is_tied_to_the_last_one_made() -> None:
    tied = TemporalDenoising(step=tau(), current=0.5, previous=0.5)
    alone, after = flicker(tied), flicker(tied, before=torch.full((1, 1, 16, 4, 4), -1.0))
    assert torch.equal(alone[:, 1:], after[:, 1:])
    assert float(after[:, 0].mean()) < float(alone[:, 0].mean()) - 0.3


def test_the_noise_weighs_too_and_frames_that_are_alike_stay_as_they_are() -> None:
    still, noise = Known(), normal(1, 1, 16, 4, 4).expand(1, 3, -1, -1, -1)
    for temporal in (TemporalDenoising(step=2, current=0.5, previous=0.5), TemporalDenoising()):
        out = sample_window(still, noise, TEXT, Controls(), SamplerConfig(steps=6, temporal=temporal))
        assert (out - still.mean(noise, Controls())).abs().max() < 1e-5
    flat, loud = (flicker(TemporalDenoising(step=tau(), noise=w)) for w in (0.0, 1.0))
    assert not torch.equal(flat, loud)


def test_temporal_denoising_reaches_over_the_edge_of_a_window() -> None:
    """Where previous frames are no control, it is what ties windows."""
    tied = TemporalDenoising(step=2, current=0.5, previous=0.5)
    video = torch.zeros(1, 6, 16, 4, 4)
    dit, config = model(), SamplerConfig(steps=4, temporal=tied)
    both = sample_video(dit, TEXT, video[:, 0], video, config, generator=seeded(), history=False)
    generator = seeded()
    apart = torch.cat([sample_video(dit, TEXT, video[:, 0], part, config, generator=generator) for part in video.split(3, 1)], 1)
    assert torch.equal(both[:, :3], apart[:, :3]) and not torch.equal(both[:, 3], apart[:, 3])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"shift": 0.0}, "shift must be above 0"),
        ({"steps": 4, "temporal": TemporalDenoising(step=4, previous=0.5)}, "the last of 4 steps is 3"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(SamplerConfig(), **wrong)
    with pytest.raises(ValueError, match=r"temporal\.previous must be at least 0"):
        TemporalDenoising(previous=-1)
