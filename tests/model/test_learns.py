"""A tiny model learns one real pair: it makes the performer's frames out of noise, and the driving regions tell it which."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import drivenpairs
import numpy as np
import pytest
import torch
from drivenpairs import Studio
from pairset import INFO_TEMPLATE, write_pair_set

from model import settings
from model.controls import Controls
from model.ema import EmaConfig
from model.guidance import Guidance
from model.objective import ObjectiveConfig
from model.portrait_dit import TINY, no_text
from model.sampling import SamplerConfig, sample_window
from model.settings import SheetConfig, TrainConfig
from model.stream import Window
from model.trainer import Trainer
from schemas.sample import DRIVING, INFO, REGIONS_MEMBER, SOURCE, TARGET
from stages import faces, reenact
from stages.regions import REGIONS_FILE, RegionsStage

CLIP, FRAMES, PORTRAIT = "sadtalker_WDA", 96, "aws_photo1_frontal"  # a woman who speaks and moves her head; a man with glasses
WINDOWS, STEPS = 24, 360
SAMPLER = SamplerConfig(steps=40, guidance=Guidance(source=1, driving=1, history=1))


@pytest.fixture(scope="module")
def shards(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One pair, made by the stages. Every second frame: twice the motion in a window."""
    root = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        write = drivenpairs.write_clip
        patch.setattr(drivenpairs, "write_clip", lambda path, frames, fps: write(path, islice(frames, 0, None, 2), fps))
        studio = Studio(root, shared)
        clip = studio.clip(CLIP, 0, FRAMES)
    driving = studio.driving(clip, studio.portrait(PORTRAIT))
    out = studio.out("regions/pair")
    RegionsStage()(driving, out)
    files = {
        SOURCE: (clip.folder, clip.file(faces.STILL)),
        TARGET: (clip.folder, clip.file(faces.TARGET)),
        DRIVING: (driving.folder, reenact.DRIVING),
        REGIONS_MEMBER: ("regions/pair", REGIONS_FILE),
    }
    members = {name: (root / folder / file).read_bytes() for name, (folder, file) in files.items()}
    members[INFO] = replace(INFO_TEMPLATE, key=driving.id, frames=clip.frames, size_px=clip.size_px).encode()
    return write_pair_set(root / "shards" / "meshwarp", {driving.id: members})


def sampled(trainer: Trainer, windows: list[Window]) -> np.ndarray:
    """Their frames from noise in 40 steps, given source and driving regions, by the averages; uint8 RGB (window, F, S, S, 3)."""
    examples = [trainer.examples(w) for w in windows]
    noise_BFCHW = torch.randn(len(windows), *examples[0].target_FCHW.shape, generator=torch.Generator().manual_seed(0))
    controls = Controls(
        source_BCHW=torch.stack([e.source_CHW for e in examples]), driving_BFCHW=torch.stack([e.driving_FCHW for e in examples])
    )
    assert trainer.ema is not None
    with trainer.ema.swapped(trainer.model):
        latents = sample_window(trainer.model, noise_BFCHW, no_text(TINY, len(windows)), controls, SAMPLER)
    return np.stack([trainer.codec.decode(x).numpy() for x in latents])


def coded(trainer: Trainer, frames: np.ndarray) -> np.ndarray:
    """As the codec gives them back: what it loses is not the model's fault."""
    return trainer.codec.decode(trainer.codec.encode(torch.from_numpy(frames))).numpy()


def mse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.square(a.astype(np.float64) - b).mean())


@pytest.mark.slow
def test_it_learns_one_real_pair_and_follows_the_driving_regions(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "TINY", replace(TINY, layers=2, dual_layers=0, heads=8, head_dim=16))
    config = TrainConfig(
        shards=shards,
        out=tmp_path / "train",
        frames=6,
        history=0,
        frame_px=64,
        steps=STEPS,
        batch_size=2,
        lr=5e-3,
        warmup=20,
        lr_decay="cosine",
        lr_end=1e-4,
        objective=ObjectiveConfig(dropout_chances=(0.02, 0.02, 0.0)),
        ema=EmaConfig(decay=0.99),
        sheet=SheetConfig(steps=0),
    )
    trainer = Trainer(config)
    windows = [trainer.stream.read(position) for position in range(WINDOWS)]
    assert len({w.first_frame for w in windows}) >= 8
    losses = []
    for step in range(STEPS):
        batch = [replace(windows[p % WINDOWS], position=p) for p in range(2 * step, 2 * step + 2)]  # each time with noise of its own
        losses.append(trainer.train_step(batch).loss)
    first, last = float(np.mean(losses[:30])), float(np.mean(losses[-60:]))

    shown = [trainer.stream.read(position) for position in range(1000, 1004)]
    turned = [replace(w, driving=np.roll(w.driving, len(w.driving) // 2, axis=0)) for w in shown]
    target = np.stack([coded(trainer, w.target) for w in shown])
    source = np.stack([np.broadcast_to(coded(trainer, w.source[None]), w.target.shape) for w in shown])
    made, shuffled = sampled(trainer, shown), sampled(trainer, turned)
    of_source, of_model, of_shuffled = (mse(x, target) for x in (source, made, shuffled))
    print(f"\nloss {first:.3f} to {last:.3f}")
    print(f"MSE: {of_source:.0f} the source repeated, {of_model:.0f} sampled, {of_shuffled:.0f} with driving frames shuffled")
    rows = (np.broadcast_to(shown[0].source, target[0].shape), shown[0].driving, target[0], made[0], shuffled[0])
    picture = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    cv2.imwrite(str(tmp_path / "window.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    print(f"source, masked driving, target, sampled, with driving frames shuffled: {tmp_path / 'window.png'}")
    assert last < first / 3
    assert of_model < 0.5 * of_source
    assert of_shuffled > 1.2 * of_model
