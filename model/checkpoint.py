"""Checkpoints: a folder each, written whole or not at all; the weights in diffusers' layout, so that others can read them.

CHECKPOINTS/latest                       the name of the newest folder, replaced last
CHECKPOINTS/step-000100/transformer/     the base: `SD3Transformer2DModel.from_pretrained(FOLDER, subfolder="transformer")`
CHECKPOINTS/step-000100/temporal.safetensors, portrait.json
CHECKPOINTS/step-000100/trainer.pt       optimizer, step, stream position, random state; loads with `weights_only=True`
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file, save_file

from model.portrait_dit import PortraitConfig, PortraitDiT
from schemas.config import parse_config

_LATEST, _BASE, _TEMPORAL, _CONFIG, _TRAINER = "latest", "transformer", "temporal.safetensors", "portrait.json", "trainer.pt"


def save_model(model: PortraitDiT, folder: Path) -> None:
    model.base.save_pretrained(folder / _BASE)
    save_file({k: v.contiguous() for k, v in model.temporal.state_dict().items()}, folder / _TEMPORAL)
    (folder / _CONFIG).write_text(json.dumps(asdict(model.config), indent=2, sort_keys=True))


def load_model(folder: Path) -> PortraitDiT:
    """The model of a checkpoint, on the CPU. Raises ValueError when `folder` holds none."""
    if not (folder / _CONFIG).is_file():
        raise ValueError(f"{folder}: no checkpoint: {_CONFIG} is missing")
    config = parse_config(PortraitConfig, json.loads((folder / _CONFIG).read_text()), where=str(folder / _CONFIG))
    model = PortraitDiT(config, SD3Transformer2DModel.from_pretrained(folder / _BASE))
    model.temporal.load_state_dict(load_file(folder / _TEMPORAL))
    for weight in model.parameters():  # into fresh memory: in the mapped file they lie unaligned, and the last bits of a sum depend on that
        weight.data = weight.data.clone()
    return model.train()


def save_trainer(state: dict[str, Any], folder: Path) -> None:
    """`state` holds tensors, numbers, strings and containers of them, nothing else."""
    torch.save(state, folder / _TRAINER)


def load_trainer(folder: Path, *, peek: bool = False) -> dict[str, Any]:
    """`peek` maps the file instead of reading it: cheap where only the numbers in it are wanted."""
    return torch.load(folder / _TRAINER, map_location="cpu", weights_only=True, mmap=peek)


class Checkpoints:
    """The checkpoints of one run; the newest `keep` stay."""

    def __init__(self, root: Path, *, keep: int) -> None:
        self.root, self.keep = root, keep

    def latest(self) -> Path | None:
        pointer = self.root / _LATEST
        return self.root / pointer.read_text().strip() if pointer.is_file() else None

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Has `write` fill a new folder, then gives it its name, then points `latest` at it. A kill in between leaves the old one."""
        folder, partial = self.root / f"step-{step:06d}", self.root / f".partial-step-{step:06d}"
        for leftover in (partial, folder):  # `folder` can only be there if a kill came before `latest` was replaced
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        for path in [*partial.rglob("*"), partial]:
            _flush(path)
        partial.replace(folder)
        pointer = self.root / f".{_LATEST}"
        pointer.write_text(folder.name)
        _flush(pointer)
        pointer.replace(self.root / _LATEST)
        _flush(self.root)
        for old in sorted(self.root.glob("step-*"), key=lambda p: int(p.name.removeprefix("step-")))[: -self.keep]:
            shutil.rmtree(old)
        return folder


def _flush(path: Path) -> None:
    """To the disk, file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
