"""A small pair set, and a config that trains on it in a second."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pairset import FRAMES, members_of, write_pair_set

from model.settings import SheetConfig, TrainConfig
from schemas.ids import digest

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pair_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RUN/shards/SET of three samples and one that is too short."""
    root = tmp_path_factory.mktemp("run")
    samples = {name: members_of(digest(name), frames, root) for name, frames in FRAMES.items()}
    return write_pair_set(root / "shards" / "test", samples)


@pytest.fixture
def config(pair_set: Path, tmp_path: Path) -> TrainConfig:
    """Six steps at 32 px, without a sheet."""
    return TrainConfig(
        shards=pair_set,
        out=tmp_path / "train",
        frames=4,
        history=2,
        frame_px=32,
        steps=6,
        batch_size=2,
        lr=1e-3,
        warmup=2,
        checkpoint_every=3,
        sheet=SheetConfig(steps=0),
    )
