"""Checkpoints: a folder each, written whole or not at all; and exports, in diffusers' layout, which others can read.

CHECKPOINTS/latest                       the name of the newest folder, replaced last
CHECKPOINTS/step-000100/portrait.json    sizes, and what else sampling must know: the `Recipe`
CHECKPOINTS/step-000100/trainer.json     step, place in the stream, settings
CHECKPOINTS/step-000100/text.safetensors the prompt's embedding that training showed; none where it was zeros
CHECKPOINTS/step-000100/state/           weights, averages and moments, each worker's shards in a file: see `model.state`

EXPORT/portrait.json, text.safetensors
EXPORT/transformer/                      the base: `SD3Transformer2DModel.from_pretrained(EXPORT, subfolder="transformer")`
EXPORT/lora/                             or what LoRA adds to it: `StableDiffusion3Pipeline.load_lora_weights(EXPORT / "lora")`
EXPORT/temporal.safetensors              the temporal modules

With LoRA the base stays as it was: named by folder and digest, or kept with the rest where there was no folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from model.adapters import LoraConfig, add_adapters, load_adapters, merge_adapters, save_adapters, without_adapters
from model.base import BaseFolder, find_base, load_fitting
from model.controls import Text
from model.portrait_dit import PortraitConfig, PortraitDiT, no_text
from model.sd35 import load_base
from model.state import EMA, MODEL, load, weights_of
from model.text import TEXT_NAME, read_prompt
from model.workers import Workers
from schemas.config import parse_config
from schemas.files import flush_to_disk

CHECKPOINTS_NAME = "checkpoints"  # in a training run's folder
STATE = "state"  # in a checkpoint
_LATEST, _CONFIG, _TRAINER = "latest", "portrait.json", "trainer.json"
_BASE, _LORA, _TEMPORAL = "transformer", "lora", "temporal.safetensors"


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


def save_recipe(recipe: Recipe, folder: Path) -> None:
    (folder / _CONFIG).write_text(json.dumps(asdict(recipe), indent=2, sort_keys=True))


def load_recipe(folder: Path) -> Recipe:
    """Raises ValueError when `folder` holds no checkpoint and no export, or a damaged one."""
    with _naming(folder):
        return parse_config(Recipe, json.loads((folder / _CONFIG).read_text()), where=_CONFIG)


def load_text(folder: Path, config: PortraitConfig) -> Text:
    """The prompt's embedding that the model of a checkpoint or an export was trained with. Raises ValueError when it is damaged."""
    if not (folder / TEXT_NAME).is_file():
        return no_text(config, 1)
    return read_prompt(folder / TEXT_NAME, config)


def load_model(folder: Path, *, ema: bool | None = None, merge: bool = True, base: Path | None = None) -> PortraitDiT:
    """The model of a checkpoint or an export, on the CPU.

    Args:
        folder: the checkpoint, or the export.
        ema: its averages, or the weights as they were; None: the averages where there are any, which is what to sample with.
        merge: adds adapters to the weights; else they stay apart, to be trained on.
        base: where the base now lies that adapters were trained on, if it was moved.

    Raises:
        ValueError: `folder` holds neither, or a damaged one; no averages though asked for; another base than it was trained on.
    """
    recipe = load_recipe(folder)
    if ema and not recipe.ema:
        raise ValueError(f"{folder}: holds no averages; it was trained with `ema: null`, or is an export")
    model = _load_state(folder, recipe, ema, base) if (folder / STATE).is_dir() else _load_export(folder, recipe, base)
    if merge:
        merge_adapters(model.base)
    return model.train()


def _load_state(folder: Path, recipe: Recipe, ema: bool | None, base: Path | None) -> PortraitDiT:
    elsewhere = recipe.base if recipe.lora is not None else None  # where the part is that was not trained
    model = PortraitDiT(recipe.model, load_fitting(same_base(elsewhere, base, folder), recipe.model) if elsewhere else None)
    if recipe.lora is not None:
        add_adapters(model.base, recipe.lora)
    state = weights_of(model, frozen=elsewhere is None)
    if recipe.ema and ema is not False:
        averaged = {MODEL + name for name, p in model.named_parameters() if p.requires_grad}
        state = {EMA + k.removeprefix(MODEL) if k in averaged else k: tensor for k, tensor in state.items()}
    with _naming(folder):
        load(state, folder / STATE, Workers())
    return model


def _load_export(folder: Path, recipe: Recipe, base: Path | None) -> PortraitDiT:
    if recipe.lora is not None and recipe.base is not None:
        untouched = load_fitting(same_base(recipe.base, base, folder), recipe.model)
    else:
        with _naming(folder):
            untouched = load_base(folder / _BASE)
    model = PortraitDiT(recipe.model, untouched)
    with _naming(folder):
        if recipe.lora is not None:
            add_adapters(model.base, recipe.lora)
            load_adapters(model.base, folder / _LORA)
        model.temporal.load_state_dict(load_file(folder / _TEMPORAL))
    for tensor in (*model.parameters(), *model.buffers()):  # into fresh memory: in the mapped file they lie unaligned, and the last
        tensor.data = tensor.data.clone()  # bits of a sum depend on that; and the file may be replaced under a mapping
    return model


def export(checkpoint: Path, out: Path, *, ema: bool | None = None, merge: bool = True, base: Path | None = None) -> None:
    """Writes a checkpoint's model in diffusers' layout: one set of weights, nothing to go on training with.

    Args:
        checkpoint: or an export, whose adapters are to be merged.
        out: a folder that is not there yet.
        ema: as in `load_model`.
        merge: adapters are merged into the base; else they are a file of their own, for whoever has the base.
        base: as in `load_model`.

    Raises:
        ValueError: as `load_model`; `out` is there already.
    """
    if out.exists():
        raise ValueError(f"{out}: is there already; choose another folder")
    recipe, model = load_recipe(checkpoint), load_model(checkpoint, ema=ema, merge=merge, base=base)
    partial = out.with_name(f".partial-{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    save_export(model, replace(recipe, ema=False, lora=None if merge else recipe.lora), partial)
    if (checkpoint / TEXT_NAME).is_file():
        shutil.copyfile(checkpoint / TEXT_NAME, partial / TEXT_NAME)
    _put(partial, out)


def save_export(model: PortraitDiT, recipe: Recipe, folder: Path) -> None:
    assert recipe.model == model.config and not recipe.ema
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.lora is not None:
        save_adapters(model.base, folder / _LORA)
    if recipe.lora is None or recipe.base is None:
        (model.base if recipe.lora is None else without_adapters(model.base)).save_pretrained(folder / _BASE)
    save_file({k: v.contiguous() for k, v in model.temporal.state_dict().items()}, folder / _TEMPORAL)
    save_recipe(recipe, folder)


def same_base(trained_on: BaseFolder, moved: Path | None, folder: Path) -> Path:
    """Raises ValueError when it is gone, or not the base that the adapters were trained on."""
    path = Path(trained_on.folder) if moved is None else moved
    try:
        found = find_base(path)
    except ValueError as e:
        raise ValueError(f"{folder}: its adapters belong to the base {trained_on.folder}; name the place where it lies now: {e}") from e
    if found.digest != trained_on.digest:
        raise ValueError(f"{folder}: its adapters belong to another base than lies in {found.folder} (digest {trained_on.digest})")
    return path


def save_progress(progress: dict[str, Any], folder: Path) -> None:
    (folder / _TRAINER).write_text(json.dumps(progress, indent=2, sort_keys=True))


def load_progress(folder: Path) -> dict[str, Any]:
    """Step, place in the stream and settings of a checkpoint. Raises ValueError when it is damaged, or made by an earlier version."""
    if (folder / "trainer.pt").is_file():
        raise ValueError(f"{folder}: made by an earlier version of crosspair; train on with that one, or choose another `out`")
    with _naming(folder):
        progress: dict[str, Any] = json.loads((folder / _TRAINER).read_text())
        return progress


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Whatever the readers of these files raise for damaged ones becomes a ValueError that says what to do."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as e:
        raise ValueError(f"{folder}: not a whole checkpoint: {e}; {remedy(folder.parent)}") from e


def remedy(root: Path) -> str:
    """What to do where a checkpoint below `root` is damaged."""
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
            raise ValueError(f"{pointer}: names {name!r}, which is not there; {remedy(self.root)}")
        return self.root / name

    def begin(self, step: int) -> Path:
        """A new folder to fill, nameless until `finish`. A kill in between leaves the old one."""
        folder, partial = self._folder(step), self.partial(step)
        assert folder != self.latest(), "a step is saved once"
        for leftover in (*self.root.glob(".partial-*"), folder):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def finish(self, step: int) -> Path:
        """Names the folder that `begin` made, and points `latest` at it.

        Folders above `step` are of a future that is being redone (a kill came before `latest` was replaced, or someone set it back),
        so they go, and only after that is counted what to keep.
        """
        folder = self._folder(step)
        _put(self.partial(step), folder)
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

    def _folder(self, step: int) -> Path:
        return self.root / f"step-{step:06d}"

    def partial(self, step: int) -> Path:
        """Where a checkpoint is while it is written."""
        return self.root / f".partial-step-{step:06d}"
