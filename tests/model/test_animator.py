"""A checkpoint at work: frame for frame, a window at a time, seeded, and shown what training showed it."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from faceclips import moving_face, photograph, write_clip
from pairset import members_of, write_pair_set
from safetensors.torch import save_file

from model.animate import Animator
from model.checkpoint import Checkpoints, Recipe, find_checkpoint, save_export
from model.codec import DctCodec
from model.controls import Controls
from model.guidance import Guidance
from model.portrait_dit import PortraitConfig, PortraitDiT, no_text
from model.sampling import SamplerConfig
from model.stream import ShardStream, StreamConfig
from model.text import read_prompt
from model.windows import sample_video
from pipeline.animate import animate_config, prepare
from schemas.sample import DRIVING, REGIONS_MEMBER
from stages.encode import encode_png
from stages.media import decode
from stages.regions import RegionFinder

CONFIG = PortraitConfig(layers=1, heads=2, head_dim=16, position_grid=12, sample_size=8, dual_layers=0, frames=3, history=2)
RECIPE = Recipe(model=CONFIG, codec="dct", frame_px=32, mask_dilation=0.02, shift=3.0, history_trained=True)
QUICK = SamplerConfig(steps=2, guidance=Guidance(source=1, driving=1, history=1))


def write_checkpoint(folder: Path, recipe: Recipe = RECIPE) -> Path:
    torch.manual_seed(0)
    net = PortraitDiT(recipe.model)
    torch.nn.init.normal_(net.temporal[0].out.weight, std=0.1)
    folder.mkdir(parents=True, exist_ok=True)
    save_export(net, recipe, folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)


STILL = pictures(1)[0]


def test_frames_are_those_of_the_sampler(checkpoint: Path) -> None:
    animator, driving = Animator(checkpoint, device="cpu"), pictures(7)
    frames = np.stack(list(animator.frames(STILL, driving, QUICK, seed=3)))
    assert frames.shape == (7, 32, 32, 3) and frames.dtype == np.uint8
    codec = DctCodec()
    source, latents = codec.encode(torch.from_numpy(STILL[None])), codec.encode(torch.from_numpy(driving))[None]
    generator = torch.Generator().manual_seed(3)
    wanted = sample_video(animator._model, no_text(CONFIG, 1), source, latents, QUICK, generator=generator)
    assert np.abs(frames.astype(int) - codec.decode(wanted[0]).numpy()).max() <= 1


def test_a_seed_is_a_video_and_another_seed_another(checkpoint: Path) -> None:
    first, again, other = (
        np.stack(list(Animator(checkpoint, device="cpu").frames(STILL, pictures(4), QUICK, seed=seed))) for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_no_more_than_a_window_is_in_hand(checkpoint: Path) -> None:
    """An endless driving video can be begun: frames come out before those of later windows are asked for."""
    asked = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal asked
        while True:
            asked += 1
            yield STILL

    frames = Animator(checkpoint, device="cpu").frames(STILL, endless(), QUICK, seed=0)
    for k in range(1, 16):
        next(frames)
        assert asked == -(-k // CONFIG.frames) * CONFIG.frames


@pytest.mark.parametrize("trained", [True, False])
def test_previous_frames_are_shown_only_to_models_that_know_them(tmp_path: Path, trained: bool) -> None:
    animator = Animator(write_checkpoint(tmp_path, replace(RECIPE, history_trained=trained)), device="cpu")
    seen: list[Controls] = []
    animator._model.register_forward_pre_hook(lambda _, args: seen.append(args[3]))
    list(animator.frames(STILL, pictures(6), QUICK, seed=0))
    assert animator.history == trained == any(c.history_BPCHW is not None for c in seen)


def test_half_precision_is_near(checkpoint: Path) -> None:
    animator = Animator(checkpoint, device="cpu")
    full, half = (
        np.stack(list(animator.frames(STILL, pictures(3), replace(QUICK, precision=precision), seed=0))).astype(int)
        for precision in ("float32", "bfloat16")
    )
    assert 0 < np.abs(full - half).mean() < 3


def test_a_checkpoint_is_found_in_its_run(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "out" / "checkpoints", keep=2)
    for step in (1, 2):
        write_checkpoint(checkpoints.begin(step))
        checkpoints.finish(step)
    newest = tmp_path / "out" / "checkpoints" / "step-000002"
    for path in (tmp_path / "out", tmp_path / "out" / "checkpoints", newest):
        assert find_checkpoint(path) == newest
    assert find_checkpoint(newest.with_name("step-000001")) == newest.with_name("step-000001")
    with pytest.raises(ValueError, match="holds no checkpoint; name OUT of `crosspair train`"):
        find_checkpoint(tmp_path / "nowhere")


def test_what_cannot_serve_is_named(checkpoint: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(checkpoint, damaged)
    (damaged / "temporal.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=f"{damaged}: not a whole checkpoint"):
        Animator(damaged, device="cpu")
    with pytest.raises(ValueError, match=r"device 'abacus'.*leave it out"):
        Animator(checkpoint, device="abacus")
    with pytest.raises(ValueError, match=r"name a folder of SD3\.5"):
        Animator(write_checkpoint(tmp_path / "vae", replace(RECIPE, codec="vae")), device="cpu")


def test_a_prompt_comes_from_a_file_of_the_models_sizes(tmp_path: Path) -> None:
    tokens, pooled = torch.randn(CONFIG.text_tokens, CONFIG.text_dim), torch.randn(CONFIG.pooled_dim)
    save_file({"tokens": tokens, "pooled": pooled}, tmp_path / "good.safetensors")
    prompt = read_prompt(tmp_path / "good.safetensors", CONFIG)
    assert torch.equal(prompt.tokens_BLD[0], tokens) and torch.equal(prompt.pooled_BD[0], pooled)
    save_file({"tokens": tokens[:2], "pooled": pooled}, tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match=r"short\.safetensors: holds .*the embedding of one prompt"):
        read_prompt(tmp_path / "short.safetensors", CONFIG)
    with pytest.raises(ValueError, match=r"none\.safetensors: cannot be read"):
        read_prompt(tmp_path / "none.safetensors", CONFIG)


def test_a_prompt_changes_the_face_and_more_so_the_lower_the_controls(checkpoint: Path) -> None:
    animator = Animator(checkpoint, device="cpu")
    generator = torch.Generator().manual_seed(0)
    prompt = no_text(CONFIG, 1)._replace(tokens_BLD=torch.randn(1, CONFIG.text_tokens, CONFIG.text_dim, generator=generator))

    def made(guidance: Guidance, driving: np.ndarray) -> np.ndarray:
        config = replace(QUICK, guidance=guidance)
        return np.stack(list(animator.frames(STILL, driving, config, seed=0, prompt=prompt))).astype(int)

    full, low, none = (Guidance(control_strength=k) for k in (1.0, 0.3, 0.0))
    plain = np.stack(list(animator.frames(STILL, pictures(3), replace(QUICK, guidance=Guidance()), seed=0))).astype(int)
    assert np.abs(made(full, pictures(3)) - plain).mean() > 0.1
    follows = [np.abs(made(g, pictures(3)) - made(g, 255 - pictures(3))).mean() for g in (full, low, none)]
    assert follows[0] > follows[1] > follows[2] == 0


def test_the_model_is_shown_what_training_showed_it(tmp_path: Path) -> None:
    """The same clip as the driving member of a sample, read by the shard stream, gives the same masked frames, pixel for pixel."""
    video = write_clip(tmp_path / "clip.mp4", moving_face(frames=30))
    image = tmp_path / "still.png"
    image.write_bytes(encode_png(photograph("hopper")))
    scratch = tmp_path / "scratch"
    shown = prepare(image, video, scratch, animate_config([], fps=25, size_px=96), replace(RECIPE, frame_px=64, mask_dilation=0.03))
    (target,) = scratch.glob("faces-0/*.target.mp4")
    _, regions = RegionFinder()(frame.rgb for frame in decode(target))
    members = members_of("k", shown.frames, tmp_path) | {DRIVING: target.read_bytes(), REGIONS_MEMBER: regions.encode()}
    folder = write_pair_set(tmp_path / "set", {"k": members})
    config = StreamConfig(frames=shown.frames, history=0, frame_px=64, mask_dilation=0.03)
    window = ShardStream(folder, config).read(0)
    assert np.array_equal(np.stack(list(shown.driving())), window.driving)
    assert 0.01 < (window.driving > 0).any(-1).mean() < 0.3
