"""Checkpoints: a folder each, written whole or not at all; the weights in diffusers' layout, so that others can read them.

CHECKPOINTS/latest                       the name of the newest folder, replaced last
CHECKPOINTS/step-000100/transformer/     the base: `SD3Transformer2DModel.from_pretrained(FOLDER, subfolder="transformer")`
CHECKPOINTS/step-000100/lora/            or what LoRA adds to it: `StableDiffusion3Pipeline.load_lora_weights(FOLDER / "lora")`
CHECKPOINTS/step-000100/temporal.safetensors
CHECKPOINTS/step-000100/ema/             the averages of whatever is trained, in the same files
CHECKPOINTS/step-000100/portrait.json    sizes, and what else sampling must know: the `Recipe`
CHECKPOINTS/step-000100/trainer.pt       optimizer, step, stream position; loads with `weights_only=True`

With LoRA the base stays as it was: named by folder and digest, or in transformer/ where there was no folder.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from model.adapters import LoraConfig, add_adapters, load_adapters, merge_adapters, save_adapters, without_adapters
from model.base import BaseFolder, find_base, load_fitting
from model.ema import Ema
from model.portrait_dit import PortraitConfig, PortraitDiT
from model.sd35 import load_base
from schemas.config import parse_config
from schemas.files import flush_to_disk

CHECKPOINTS_NAME = "checkpoints"  # in a training run's folder
_LATEST, _CONFIG, _TRAINER = "latest", "portrait.json", "trainer.pt"
_BASE, _LORA, _TEMPORAL, _EMA = "transformer", "lora", "temporal.safetensors", "ema"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What whoever samples must know beside the weights: the model was trained with these."""

    model: PortraitConfig
    codec: str  # name of the `LatentCodec`
    frame_px: int
    mask_dilation: float  # of region masks, as a part of the frame's side
    regions: str = "default"  # their profile
    size_px: int = 576  # side of the shards' frames, at which masks are drawn; the largest where there are several
    fps: int = 25  # of the shards
    shift: float  # of the noise levels
    history_trained: bool  # False after the first stage alone: previous frames mean nothing to it yet
    ema: bool = False  # there are averages beside the weights
    lora: LoraConfig | None = None  # None: the base is trained in full
    base: BaseFolder | None = None  # None: training began with random weights


def save_model(model: PortraitDiT, recipe: Recipe, folder: Path, ema: Ema | None = None) -> None:
    assert recipe.model == model.config and recipe.ema == (ema is not None)
    _save_trained(model, recipe, folder)
    if recipe.lora is not None and recipe.base is None:
        without_adapters(model.base).save_pretrained(folder / _BASE)
    if ema is not None:
        with ema.swapped(model):
            _save_trained(model, recipe, folder / _EMA)
    (folder / _CONFIG).write_text(json.dumps(asdict(recipe), indent=2, sort_keys=True))


def _save_trained(model: PortraitDiT, recipe: Recipe, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.lora is None:
        model.base.save_pretrained(folder / _BASE)
    else:
        save_adapters(model.base, folder / _LORA)
    save_file({k: v.contiguous() for k, v in model.temporal.state_dict().items()}, folder / _TEMPORAL)


def load_recipe(folder: Path) -> Recipe:
    """Raises ValueError when `folder` holds no checkpoint, or a damaged one."""
    with _naming(folder):
        return parse_config(Recipe, json.loads((folder / _CONFIG).read_text()), where=_CONFIG)


def load_model(folder: Path, *, ema: bool | None = None, merge: bool = True, base: Path | None = None) -> PortraitDiT:
    """The model of a checkpoint, on the CPU.

    Args:
        folder: the checkpoint.
        ema: its averages, or the weights as they were; None: the averages where there are any, which is what to sample with.
        merge: adds adapters to the weights; else they stay apart, to be trained on.
        base: where the base now lies that adapters were trained on, if it was moved.

    Raises:
        ValueError: `folder` holds no checkpoint, or a damaged one; no averages though asked for; another base than it was trained on.
    """
    recipe = load_recipe(folder)
    if ema and not recipe.ema:
        raise ValueError(f"{folder}: holds no averages; it was trained with `ema: null`")
    weights = folder / _EMA if recipe.ema and ema is not False else folder
    if recipe.lora is not None and recipe.base is not None:
        untouched = load_fitting(_same_base(recipe.base, base, folder), recipe.model)
    else:
        with _naming(folder):
            untouched = load_base((weights if recipe.lora is None else folder) / _BASE)
    model = PortraitDiT(recipe.model, untouched)
    if recipe.lora is not None:
        add_adapters(model.base, recipe.lora)
    with _naming(folder):
        if recipe.lora is not None:
            load_adapters(model.base, weights / _LORA)
        model.temporal.load_state_dict(load_file(weights / _TEMPORAL))
    if merge:
        merge_adapters(model.base)
    for tensor in (*model.parameters(), *model.buffers()):  # into fresh memory: in the mapped file they lie unaligned, and the last
        tensor.data = tensor.data.clone()  # bits of a sum depend on that; and the file may be replaced under a mapping
    return model.train()


def load_averages(folder: Path, ema: Ema, model: PortraitDiT) -> None:
    """Into `ema`, which averages the `model` of the same checkpoint. Raises ValueError when they are damaged."""
    recipe, weights = load_recipe(folder), folder / _EMA
    with _naming(folder), ema.swapped(model):
        if recipe.lora is not None:
            load_adapters(model.base, weights / _LORA)
        else:
            model.base.load_state_dict(load_base(weights / _BASE).state_dict())
        model.temporal.load_state_dict(load_file(weights / _TEMPORAL))


def export_merged(checkpoint: Path, out: Path, *, ema: bool | None = None, base: Path | None = None) -> None:
    """Writes a checkpoint for sampling alone: one set of weights, adapters merged into the base; arguments as in `load_model`.

    Raises:
        ValueError: as `load_model`; `out` is there already.
    """
    if out.exists():
        raise ValueError(f"{out}: is there already; choose another folder")
    model, partial = load_model(checkpoint, ema=ema, base=base), out.with_name(f".partial-{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    save_model(model, replace(load_recipe(checkpoint), ema=False, lora=None), partial)
    _put(partial, out)


def _same_base(trained_on: BaseFolder, moved: Path | None, folder: Path) -> Path:
    """Raises ValueError when it is gone, or not the base that the adapters were trained on."""
    path = Path(trained_on.folder) if moved is None else moved
    try:
        found = find_base(path)
    except ValueError as e:
        raise ValueError(f"{folder}: its adapters belong to the base {trained_on.folder}; name the place where it lies now: {e}") from e
    if found.digest != trained_on.digest:
        raise ValueError(f"{folder}: its adapters belong to another base than lies in {found.folder} (digest {trained_on.digest})")
    return path


def save_trainer(state: dict[str, Any], folder: Path) -> None:
    """`state` holds tensors, numbers, strings and containers of them, nothing else."""
    torch.save(state, folder / _TRAINER)


def load_trainer(folder: Path, *, peek: bool = False) -> dict[str, Any]:
    """`peek` maps the file instead of reading it: cheap where only the numbers in it are wanted. Raises ValueError when it is damaged."""
    with _naming(folder):
        return torch.load(folder / _TRAINER, map_location="cpu", weights_only=True, mmap=peek)


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Whatever the readers of these files raise for damaged ones becomes a ValueError that says what to do."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError, SafetensorError) as e:
        raise ValueError(f"{folder}: not a whole checkpoint: {e}; {_remedy(folder.parent)}") from e


def _remedy(root: Path) -> str:
    if not (root / _LATEST).is_file():  # none of a training run's: an export, say
        return "make it again"
    return f"write the name of an older one into {root / _LATEST}, or delete {root} to start over"


def _put(partial: Path, folder: Path) -> None:
    """Gives a written folder its name. All is on the disk: a power cut cannot leave a pointer to a name that never reached it."""
    for path in [*partial.rglob("*"), partial]:
        flush_to_disk(path)
    partial.replace(folder)
    flush_to_disk(folder.parent)


def find_checkpoint(path: Path) -> Path:
    """The folder of a checkpoint: `path` itself, or the newest one of the training run `path`. Raises ValueError when there is none."""
    if (path / _CONFIG).is_file():
        return path
    for root in (path, path / CHECKPOINTS_NAME):
        if latest := Checkpoints(root, keep=1).latest():
            return latest
    raise ValueError(f"{path}: holds no checkpoint; name OUT of `crosspair train`, or one of OUT/checkpoints/step-...")


class Checkpoints:
    """The checkpoints of one run; the newest `keep` stay."""

    def __init__(self, root: Path, *, keep: int) -> None:
        self.root, self.keep = root, keep

    def latest(self) -> Path | None:
        """The folder that `latest` names; None before the first. Raises ValueError when it is gone."""
        pointer = self.root / _LATEST
        if not pointer.is_file():
            return None
        name = pointer.read_text().strip()
        if not name or not (self.root / name).is_dir():
            raise ValueError(f"{pointer}: names {name!r}, which is not there; {_remedy(self.root)}")
        return self.root / name

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Has `write` fill a new folder, then gives it its name, then points `latest` at it. A kill in between leaves the old one.

        Folders above `step` are of a future that is being redone (a kill came before `latest` was replaced, or someone set it back),
        so they go, and only after that is counted what to keep.
        """
        folder, partial = self.root / f"step-{step:06d}", self.root / f".partial-step-{step:06d}"
        assert folder != self.latest(), "a step is saved once"
        for leftover in (*self.root.glob(".partial-*"), folder):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        _put(partial, folder)
        pointer = self.root / f".{_LATEST}"
        pointer.write_text(folder.name)
        flush_to_disk(pointer)
        pointer.replace(self.root / _LATEST)
        flush_to_disk(self.root)
        step_of = {p: int(p.name.removeprefix("step-")) for p in self.root.glob("step-*")}
        past = sorted((p for p in step_of if step_of[p] <= step), key=lambda p: step_of[p])
        for stale in step_of.keys() - set(past[-self.keep :]):
            shutil.rmtree(stale)
        return folder
