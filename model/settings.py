"""What a training run is told: the config of `crosspair train`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from model.adapters import LoraConfig
from model.codec import BLOCK_PX
from model.controls import Dropped
from model.ema import EmaConfig
from model.fetch import Check
from model.objective import ObjectiveConfig
from model.parallel import ParallelConfig
from model.portrait_dit import SD35_MEDIUM, TINY, PortraitConfig
from model.stream import Shards, ShardStream, StreamConfig, find_pair_set
from schemas.ids import file_digest

# These may differ between a run and the run that it resumes: they change no weight. `base` is found again by its digest.
_FREE_ON_RESUME = {
    *("shards", "out", "base", "steps", "log_every", "log_samples", "sheet", "wandb"),
    *("checkpoint_every", "checkpoint_minutes", "keep_checkpoints"),
    *("ray", "max_failures", "workers", "device", "loader", "micro_batch"),
}


@dataclass(frozen=True, kw_only=True)
class SheetConfig:
    """The contact sheet at the end: source | masked driving | target | sampled."""

    steps: int = 10  # of sampling; 0 makes no sheet
    rows: int = 4  # frames shown
    every: int = 0  # steps of training between two more, as pictures and films in OUT/samples; 0: none

    def __post_init__(self) -> None:
        if self.steps < 0 or self.rows < 1 or self.every < 0:
            raise ValueError(f"a sheet has at least 0 steps and 1 row, not {self.steps} and {self.rows}, and `every` is not negative")
        if self.every and not self.steps:
            raise ValueError("sheet.every needs sheet.steps, at least 1: how many steps of sampling a picture takes")


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How each worker reads. Changes no sample and no order."""

    threads: int = 1  # that decode
    ahead: int = 2  # batches that are read before they are asked for
    check: Check = "checksums"  # of what is read
    cache_dir: Path | None = None  # on each machine, for what is read from an object store; null: it is read each time
    cache_gb: float = 10.0
    max_bad_in_a_row: int = 100  # samples of a worker that cannot be used: so many stop the run

    def __post_init__(self) -> None:
        if self.threads < 1 or self.ahead < 1:
            raise ValueError(f"loader: threads and ahead must be at least 1, not {self.threads} and {self.ahead}")


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    address: str | None = None  # null: a Ray of our own on this machine, stopped at the end
    # Between two looks for more room, where `workers` is a range. Growing costs the steps since the last checkpoint.
    resize_check_s: float = 300.0


@dataclass(frozen=True, kw_only=True)
class ArchitectureConfig:
    """What the paper leaves open of the network; the fields of `PortraitConfig` with these names (docs/model.md)."""

    dropped: Dropped = Dropped.REMOVED
    history_time: Literal["clean", "same"] = "clean"
    history_slot: Literal["video", "own"] = "video"
    frame_encoding: Literal["learned", "sincos"] = "learned"
    temporal_ffn: bool = False
    temporal_updates_history: bool = True
    frozen_controls: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    # A pair set's folder, RUN/shards/SET, or a RUN with only one, or s3://bucket/prefix of one; or several, with weights.
    shards: Path | str | tuple[Shards, ...]
    out: Path  # the training run's own folder; run again to resume
    model: Literal["tiny", "sd35_medium"] = "tiny"
    base: Path | None = None  # weights to begin with: a folder of SD3 as diffusers saves it; null: random ones
    tune: Literal["full", "lora"] = "full"  # what of the base is trained; the temporal modules always are
    lora: LoraConfig = field(default_factory=LoraConfig)
    ema: EmaConfig | None = field(default_factory=EmaConfig)  # averages of the weights, for sampling; null: none
    frames: int | None = None  # F and F'; None: the preset's
    history: int | None = None
    factorised: bool = False  # temporal attention along time only, the paper's ablation
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    codec: Literal["dct", "vae"] = "dct"  # of the latents: without weights, or SD3.5's, in the folder `base`
    frame_px: int | None = None  # None: as in the shards
    mask_dilation: float = 0.01  # of the frame's side
    mask_dilation_max: float | None = None  # where each window draws its own between the two
    regions: str = "default"  # profile of the region masks
    flip: float = 0.0  # chance that a window is mirrored
    colour: float = 0.0  # by how much brightness, contrast and saturation may change
    mixing: Literal["uniform", "balanced"] = "uniform"  # each clip once an epoch, or all performers equally often
    latents: bool = False  # of targets and sources: those that `crosspair latents` made, in place of the codec
    text: Path | None = None  # embedding of the one prompt that training shows, made by `crosspair text-embedding`; null: zeros
    split: str = "train"
    steps: int = 100
    history_from_step: int = 0  # previous frames are dropped before this step: the paper's first stage, 40 000 of its 50 000 steps
    batch_size: int = 1  # of all workers together: it stays what it is when their number changes
    micro_batch: int | None = None  # samples that a worker passes through the network at once; None: its whole share of the batch
    lr: float = 1e-4
    warmup: int = 10  # steps over which the learning rate rises to `lr`
    lr_decay: Literal["constant", "linear", "cosine"] = "constant"  # how it falls afterwards, to reach `lr_end` with the last of `steps`
    lr_end: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    seed: int = 0
    log_every: int = 1
    log_samples: bool = False  # OUT/seen.jsonl: which samples each step was made of
    wandb: str | None = None  # a project at Weights & Biases, beside TensorBoard's files
    checkpoint_every: int = 50  # steps
    checkpoint_minutes: float | None = None  # after the one before, another is written though it is not its turn; None: however long
    keep_checkpoints: int = 3
    sheet: SheetConfig = field(default_factory=SheetConfig)
    # Number of workers, or the least and the most: then Ray takes as many as there is room for, and more or fewer as machines come and go.
    workers: int | tuple[int, int] = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"  # one accelerator for each worker; "auto": where this machine has one
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    cpus: int = 1  # of each worker; how sums are split over threads changes their last bits, so it stays for the whole run
    ray: RayConfig = field(default_factory=RayConfig)
    max_failures: int = 1  # times that a worker's death is answered by resuming

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints", "cpus", "frames", "frame_px", "micro_batch")
        for name in positive:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        for name in ("history", "history_from_step", "warmup", "weight_decay", "mask_dilation", "max_failures"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be at least 0, not {value}")
        for name in ("lr", "max_grad_norm", "checkpoint_minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0, not {value}")
        if not 0 <= self.lr_end <= self.lr:
            raise ValueError(f"lr_end must lie between 0 and lr ({self.lr}), not {self.lr_end}")
        least, most = self.worker_range
        if not 1 <= least <= most:
            raise ValueError(f"workers: a number from 1 on, or the least and the most, not {self.workers}")
        if most > self.batch_size:
            raise ValueError(f"workers: {most} of them would share a batch of {self.batch_size}; raise batch_size, or take fewer")
        if self.latents and (self.flip or self.colour or not isinstance(self.shards, str | Path)):
            raise ValueError("latents: they are of one pair set's pictures as they are; leave out flip, colour and more sets")
        if self.codec == "vae" and self.base is None:
            raise ValueError("codec: vae needs `base`, a folder of SD3.5 with vae/ in it")
        self.portrait()  # refuses sizes that do not go together

    @property
    def worker_range(self) -> tuple[int, int]:
        return (self.workers, self.workers) if isinstance(self.workers, int) else self.workers

    def open_stream(self) -> ShardStream:
        """The stream of `shards`, at its beginning; raises ValueError as `ShardStream` does."""
        where = self.shards
        found = find_pair_set(where) if isinstance(where, str | Path) else [replace(s, place=str(find_pair_set(s.place))) for s in where]
        return ShardStream(found, self.stream())

    def located(self) -> TrainConfig:
        """With absolute paths: workers stand elsewhere."""

        def resolved(place: Path | str) -> Path | str:
            return place if "://" in str(place) else type(place)(Path(place).expanduser().resolve())

        shards = self.shards
        moved = resolved(shards) if isinstance(shards, str | Path) else tuple(replace(s, place=str(resolved(s.place))) for s in shards)
        base, text, cache = (None if p is None else p.expanduser().resolve() for p in (self.base, self.text, self.loader.cache_dir))
        loader = replace(self.loader, cache_dir=cache)
        return replace(self, shards=moved, out=self.out.expanduser().resolve(), base=base, text=text, loader=loader)

    def portrait(self, frame_px: int | None = None) -> PortraitConfig:
        """The model's config, with as much of the position table as frames of this side need (None: of `self.frame_px`)."""
        preset = {"tiny": TINY, "sd35_medium": SD35_MEDIUM}[self.model]
        frames = preset.frames if self.frames is None else self.frames
        history = preset.history if self.history is None else self.history
        side, tokens = frame_px or self.frame_px, preset.frame_tokens
        if tokens is not None and side is not None:
            tokens = math.ceil(side / (BLOCK_PX * preset.patch))
        return replace(preset, frames=frames, history=history, factorised=self.factorised, frame_tokens=tokens, **vars(self.architecture))

    def stream(self) -> StreamConfig:
        portrait = self.portrait()
        return StreamConfig(
            frames=portrait.frames,
            history=portrait.history,
            frame_px=self.frame_px,
            mask_dilation=self.mask_dilation,
            mask_dilation_max=self.mask_dilation_max,
            regions=self.regions,
            flip=self.flip,
            colour=self.colour,
            mixing=self.mixing,
            split=self.split,
            seed=self.seed,
            check=self.loader.check,
            cache_dir=self.loader.cache_dir,
            cache_gb=self.loader.cache_gb,
            max_bad_in_a_row=self.loader.max_bad_in_a_row,
        )

    def check_frame_px(self, frame_px: int) -> None:
        """Raises ValueError for a side that the codec, the patches or the position table cannot take."""
        portrait = self.portrait()
        unit = BLOCK_PX * portrait.patch
        largest = portrait.position_grid // 3 * unit
        if frame_px % unit or frame_px > largest:
            raise ValueError(f"frames of {frame_px} px: model {self.model!r} takes multiples of {unit} up to {largest}; set `frame_px`")

    def learning_rate(self, step: int) -> float:
        """Of the update after `step` others."""
        risen = min(1.0, (step + 1) / max(self.warmup, 1))
        if self.lr_decay == "constant":
            return self.lr * risen
        past = min(max((step + 1 - self.warmup) / max(self.steps - self.warmup, 1), 0.0), 1.0)
        left = 1 - past if self.lr_decay == "linear" else (1 + math.cos(math.pi * past)) / 2
        return risen * (self.lr_end + (self.lr - self.lr_end) * left)

    def fixed(self) -> dict[str, Any]:
        """The part that must not change when a run is resumed, as JSON has it. A learning rate that falls needs to know its end."""
        free = _FREE_ON_RESUME if self.lr_decay == "constant" else _FREE_ON_RESUME - {"steps"}
        fixed: dict[str, Any] = json.loads(json.dumps({k: v for k, v in asdict(self).items() if k not in free}, default=str))
        fixed["parallel"] = {"precision": self.parallel.precision}
        fixed["text"] = None if self.text is None else file_digest(self.text)
        return fixed

    def changes(self, before: dict[str, Any]) -> list[str]:
        """What differs from `before`, the `fixed` of an earlier run. Settings that did not exist then had what is the default now."""
        now = _flat(self.fixed())
        then = _flat(_updated(TrainConfig(shards=self.shards, out=self.out).fixed(), before))
        return [f"{k} (was {then.get(k)}, is {now.get(k)})" for k in sorted(then.keys() | now.keys()) if then.get(k) != now.get(k)]


def _updated(tree: dict[str, Any], by: dict[str, Any]) -> dict[str, Any]:
    """{"a": {"b": 1, "c": 2}} updated by {"a": {"c": 3}} is {"a": {"b": 1, "c": 3}}, and by {"a": None} it is {"a": None}."""
    both = {k: _updated(tree[k], v) for k, v in by.items() if isinstance(v, dict) and isinstance(tree.get(k), dict)}
    return tree | by | both


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
