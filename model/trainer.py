"""The training loop: `train_step` is one update by all workers together, `train` the whole run, from its newest checkpoint on."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from model.adapters import add_adapters
from model.base import BaseFolder, find_base, load_fitting
from model.checkpoint import (
    CHECKPOINTS_NAME,
    STATE,
    Checkpoints,
    Recipe,
    load_progress,
    load_recipe,
    remedy,
    same_base,
    save_progress,
    save_recipe,
)
from model.codec import LatentCodec
from model.controls import Kept, Text
from model.cost import forward_flops, training_flops
from model.diary import Diary
from model.ema import Ema
from model.examples import Example, Examples, blank, losses, seed_of, seeded
from model.latents import EncodedStream, Latents
from model.log import Seen, StepMetrics, memory_gb, peak_flops
from model.objective import draw_kept
from model.parallel import spread
from model.portrait_dit import PortraitDiT, no_text
from model.settings import TrainConfig
from model.sheet import sample_shown, sheet, write_film, write_png
from model.state import check_whole, load, save, settled, training_state
from model.stream import BadSlot, Prefetch, ShardStream, Window
from model.text import TEXT_NAME, read_prompt
from model.vae import codec_of
from model.workers import Workers

# Shape suffixes: B batch.

SHEET_NAME, SAMPLES_NAME = "sheet.png", "samples"
_ASK_EVERY_S = 5.0  # between two looks at whether a machine is to be taken away: all workers agree on the answer, which takes a moment


class Diverged(RuntimeError):
    """Loss or gradient are no numbers. The same step would fail again, so trying again is useless."""


class Trainer:
    """What one of the workers needs. What a step does depends only on the config, the shards and the step's number.

    Args:
        config: the run. Its batch is that of all workers together.
        workers: who trains together.
        device: None: the CPU.

    Raises:
        ValueError: the shards do not fit the config, or `out` holds a run of another config or of other shards.
    """

    def __init__(self, config: TrainConfig, *, workers: Workers | None = None, device: torch.device | None = None) -> None:
        torch.manual_seed(config.seed)
        self.config, self.workers, self.device = config, workers or Workers(), device or torch.device("cpu")
        if self.device.type == "cpu":
            torch.use_deterministic_algorithms(True, warn_only=True)
        self.stream = config.open_stream()
        config.check_frame_px(self.stream.frame_px)
        self.codec: LatentCodec = codec_of(config.codec, config.base)
        self.latents = Latents(self.stream.folder, self.codec, self.stream.frame_px) if config.latents else None
        self.examples = Examples(self.codec, config.objective, config.seed, self.device)
        self.checkpoints = Checkpoints(config.out / CHECKPOINTS_NAME, keep=config.keep_checkpoints)
        self.step = self.position = 0
        latest = self.workers.gather(self.checkpoints.latest())[0]  # of all, whatever a shared disk shows to each
        if latest is None:
            self.base = None if config.base is None else find_base(config.base)
            self.model = new_model(config, self.stream.frame_px)
        else:
            self.base = _same_beginning(config, latest)
            self.model = resumed_model(config, self.stream.frame_px, latest)
        self.model.to(self.device)
        spread(self.model, config.parallel, self.workers.world, self.device)
        self.text = self._text()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=config.lr, weight_decay=config.weight_decay)
        self.ema = None if config.ema is None else Ema(config.ema, self.model)
        self._saving: tuple[int, Future[Any]] | None = None
        if latest is not None:
            self._resume(latest)

    def train(self, leaving: Callable[[], bool] = lambda: False) -> None:
        """Trains up to `config.steps`; logs, saves, and draws what is sampled.

        Args:
            leaving: asked now and then, by all workers at once: whether a machine is about to be taken away. Then a checkpoint is
                written, and training goes on for as long as it can.
        """
        config = self.config
        remaining = max(config.steps - self.step, 0)
        peak = peak_flops(self.device) if config.parallel.precision == "bf16" else 0.0
        diary = Diary(config, self.step, self.workers.world, peak) if self.workers.leads else None
        if remaining and diary is not None:
            for drawn in (config.out / SHEET_NAME, (config.out / SHEET_NAME).with_suffix(".mp4")):  # of fewer steps
                drawn.unlink(missing_ok=True)
        due = _Due(config, self.workers.gather(time.monotonic())[0], leaving)
        with self._prefetch() as prefetch:
            batches = prefetch.batches(self.position, remaining)
            for _ in range(remaining):
                asked = time.perf_counter()
                slots = next(batches)
                metrics = self.train_step(slots, waited_s=time.perf_counter() - asked)
                saves = due(self.step, metrics.clock_s)
                if diary is not None:
                    diary.add(self.step, metrics, now=saves)
                if saves:
                    self.save(wait=due.in_need)
                self.settle(wait=False)
                if config.sheet.every and self.step % config.sheet.every == 0:
                    self.draw(config.out / SAMPLES_NAME / f"step-{self.step:06d}.png", diary)
        self.settle()
        if config.sheet.steps:
            self.draw(config.out / SHEET_NAME, diary)
        if diary is not None:
            diary.close()

    def train_step(self, slots: Sequence[Window | BadSlot], *, waited_s: float = 0.0) -> StepMetrics:
        """One update from the batch of all workers, of which this one has `slots`. Each sample that can be used weighs the same; where
        none can, weights stay as they are.

        Raises:
            Diverged: loss or gradient are not finite; the weights are as before the step.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        windows = [s for s in slots if isinstance(s, Window)]
        usable = sum(self.workers.gather(len(windows)))
        kept = self.kept()
        losses = self._backward(windows, kept, usable) if usable else []
        grad_norm = self._clip() if usable else 0.0
        mine = [Seen(w.position, w.key, sigma, loss) for w, (sigma, loss) in zip(windows, losses, strict=True)]
        mine += [Seen(s.position, s.key, -1.0, 0.0, s.reason) for s in slots if isinstance(s, BadSlot)]
        everyones = self.workers.gather((mine, waited_s, memory_gb(self.device), time.monotonic()))
        seen = tuple(sorted(s for theirs, *_ in everyones for s in theirs))
        metrics = StepMetrics(
            loss=sum(s.loss for s in seen) / usable if usable else math.nan,
            grad_norm=grad_norm,
            seen=seen,
            flops=self.flops(kept) if usable else 0.0,
            waited_s=max(waited for _, waited, _, _ in everyones),
            memory_gb=max(memory for _, _, memory, _ in everyones),
            clock_s=everyones[0][3],
        )
        if usable:
            self._update(metrics)
        self.step += 1
        self.position += self.config.batch_size
        return metrics

    def _backward(self, windows: Sequence[Window], kept: Kept, usable: int) -> list[tuple[float, float]]:
        """Adds up gradients of the mean over all workers' `usable` samples; noise level and loss of each of this worker's.

        Every worker makes as many passes as the one with the most samples, since all of them gather weights in each.
        """
        largest_share = -(-self.config.batch_size // self.workers.world)
        at_once = min(self.config.micro_batch or largest_share, largest_share)
        found: list[tuple[float, float]] = []
        for first in range(0, largest_share, at_once):
            examples = [self.examples(w) for w in windows[first : first + at_once]]
            # Of adapters: the one draw that nobody can hand in.
            torch.manual_seed(seed_of("dropout", self.config.seed, self.step, self.workers.rank, first))
            losses_B = self.losses(kept, examples or [self._blank()])
            # Sharded gradients come as the mean over workers.
            (losses_B.sum() * (self.workers.world / usable * bool(examples))).backward()
            found += zip((e.sigma for e in examples), losses_B.tolist(), strict=False)  # a blank one has no example
        return found

    def _clip(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.config.max_grad_norm)
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()

    def _update(self, metrics: StepMetrics) -> None:
        if not (math.isfinite(metrics.loss) and math.isfinite(metrics.grad_norm)):
            raise Diverged(
                f"step {self.step}: non-finite loss ({metrics.loss}) or gradient ({metrics.grad_norm}); samples "
                f"{[s.sample for s in metrics.seen]}, positions {[s.position for s in metrics.seen]} of the stream. "
                "Look at these samples, or train with a lower `lr` into another `out`"
            )
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model, self.step)

    def _prefetch(self) -> Prefetch:
        slots = self.stream if self.latents is None else EncodedStream(self.stream, self.latents)
        workers, loader = self.workers, self.config.loader
        return Prefetch(slots, self.config.batch_size, rank=workers.rank, world=workers.world, threads=loader.threads, ahead=loader.ahead)

    def kept(self) -> Kept:
        """The controls of this step: one draw for all its samples, so that all workers make the same pass and gather weights in step."""
        return draw_kept(self.config.objective, seeded("controls", self.config.seed, self.step), history=self.history_trains(self.step))

    def losses(self, kept: Kept, examples: Sequence[Example]) -> Tensor:
        """Of each example, float (B,)."""
        text = Text(*(x.expand(len(examples), *x.shape[1:]) for x in self.text))
        return losses(self.model, examples, kept, text, self.config.parallel.dtype)

    def flops(self, kept: Kept) -> float:
        """Of a step, adapters' own left out. A frozen base needs no gradients of its weights: half of what they cost backwards less."""
        side = self._side // self.model.config.patch
        of_pass = partial(forward_flops, self.model.config, rows=side, columns=side, kept=kept, batch=self.config.batch_size)
        weights = of_pass(attention=False) if self.config.tune == "lora" else None
        return training_flops(of_pass()) - (weights.total - weights.temporal if weights else 0)

    def history_trains(self, step: int) -> bool:
        return self.model.config.history > 0 and step >= self.config.history_from_step

    @property
    def _side(self) -> int:
        """Rows of a frame's latents."""
        return self.stream.frame_px // self.codec.factor

    def _blank(self) -> Example:
        return blank(self.model, self._side, self.device)

    def _text(self) -> Text:
        text = no_text(self.model.config, 1) if self.config.text is None else read_prompt(self.config.text, self.model.config)
        return Text(*(x.to(self.device) for x in text))

    def save(self, *, wait: bool = True) -> None:
        """Writes a checkpoint: copies what changes, and does the rest beside the next steps unless told to `wait`."""
        self.settle()
        folder = self.checkpoints.partial(self.step)
        if self.workers.leads:
            self.checkpoints.begin(self.step)
            save_recipe(self.recipe(), folder)
            if self.config.text is not None:
                shutil.copyfile(self.config.text, folder / TEXT_NAME)
            save_progress(self._progress(), folder)
        self.workers.wait()  # for the folder
        self._saving = self.step, save(self._state(), folder / STATE, self.workers)
        if wait:
            self.settle()

    def settle(self, *, wait: bool = True) -> None:
        """Gives the checkpoint that is being written its name, once it is; `wait`: until it is."""
        if self._saving is None or not (wait or self._saving[1].done()):
            return
        step, written = self._saving
        folder = self.checkpoints.partial(step) / STATE
        settled(written, folder)
        if self.workers.leads:
            check_whole(folder)
            self.checkpoints.finish(step)
        self._saving = None

    def recipe(self) -> Recipe:
        return Recipe(
            model=self.model.config,
            codec=self.codec.name,
            frame_px=self.stream.frame_px,
            mask_dilation=self.config.mask_dilation,
            regions=self.config.regions,
            size_px=self.stream.size_px,
            fps=self.stream.fps,
            shift=self.config.objective.shift,
            history_trained=self.history_trains(self.step - 1),
            ema=self.ema is not None,
            lora=self.config.lora if self.config.tune == "lora" else None,
            base=self.base,
        )

    def _progress(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "position": self.position,
            "stream": self.stream.digest,
            "latents": "" if self.latents is None else self.latents.digest,
            "config": self.config.fixed(),
        }

    def _state(self) -> dict[str, Tensor]:
        return training_state(self.model, self.optimizer, self.ema, frozen=self.base is None or self.config.tune == "full")

    def _resume(self, folder: Path) -> None:
        progress = load_progress(folder)
        check_resumable(progress, self.config, self.stream, folder)
        if progress["latents"] != self._progress()["latents"]:
            raise ValueError(f"{folder}: made with other latents than {self.stream.folder} holds now; choose another `out`")
        self.step, self.position = progress["step"], progress["position"]
        try:
            load(self._state(), folder / STATE, self.workers)
        except ValueError as e:
            raise ValueError(f"{folder}: not a whole checkpoint: {e}; {remedy(self.checkpoints.root)}") from e

    def draw(self, path: Path, diary: Diary | None) -> None:
        """Samples the first window of the stream, so that pictures of one run show the same frames; with the averages, if any."""
        config = self.config
        window = _first_window(self.stream)
        self.model.eval()
        with nullcontext() if self.ema is None else self.ema.swapped(self.model):
            sampled = sample_shown(
                *(self.model, self.codec, window, self.text),
                steps=config.sheet.steps,
                seed=config.seed,
                shift=config.objective.shift,
                precision="bfloat16" if config.parallel.precision == "bf16" else "float32",
            )
        self.model.train()
        if diary is not None:
            picture = sheet(window, sampled, rows=config.sheet.rows)
            write_png(path, picture)
            write_film(path.with_suffix(".mp4"), window, sampled, self.stream.fps)
            diary.show(picture, self.step)


class _Due:
    """Whether a checkpoint is: after so many steps, or minutes, with the last step, and once when a machine is about to be taken away.

    Goes by one worker's clock, so that all find the same after the same step.
    """

    def __init__(self, config: TrainConfig, clock_s: float, leaving: Callable[[], bool]) -> None:
        self._config, self._leaving = config, leaving
        self._saved_s, self._asked_s = clock_s, -math.inf
        self.in_need = False  # from when on a machine is about to go

    def __call__(self, step: int, clock_s: float) -> bool:
        config = self._config
        due = step % config.checkpoint_every == 0 or step == config.steps
        if config.checkpoint_minutes is not None and clock_s - self._saved_s >= 60 * config.checkpoint_minutes:
            due = True
        if not self.in_need and clock_s - self._asked_s >= _ASK_EVERY_S:
            self._asked_s = clock_s
            if self._leaving():
                due = self.in_need = True
        if due:
            self._saved_s = clock_s
        return due


def new_model(config: TrainConfig, frame_px: int) -> PortraitDiT:
    """The model as training on frames of this side begins; raises ValueError for a base or adapters that do not fit it."""
    portrait = config.portrait(frame_px)
    model = PortraitDiT(portrait, None if config.base is None else load_fitting(config.base, portrait))
    if config.tune == "lora":
        add_adapters(model.base, config.lora)
    return model


def resumed_model(config: TrainConfig, frame_px: int, checkpoint: Path) -> PortraitDiT:
    """The model that a checkpoint's weights go into: only what was not trained is there already."""
    began = load_recipe(checkpoint).base
    if config.tune == "full" or began is None:
        return new_model(replace(config, base=None, codec="dct"), frame_px)
    return new_model(replace(config, base=same_base(began, config.base, checkpoint)), frame_px)


def _same_beginning(config: TrainConfig, checkpoint: Path) -> BaseFolder | None:
    """What training began with; raises ValueError when the config says there was a base and there was none, or the other way round."""
    began = load_recipe(checkpoint).base
    if (began is None) != (config.base is None):
        what = "random weights" if began is None else began.folder
        raise ValueError(f"{checkpoint}: training began with {what}, and `base` says otherwise; set it back, or choose another `out`")
    return began


def check_resumable(progress: dict[str, Any], config: TrainConfig, stream: ShardStream, folder: Path) -> None:
    """Raises ValueError when a checkpoint was made with settings or shards that would make the rest another run."""
    changed = config.changes(progress["config"])
    if changed:
        raise ValueError(f"{folder}: made with other settings: {', '.join(changed)}. Set them back, or choose another `out`")
    if progress["stream"] != stream.digest:
        raise ValueError(
            f"{folder}: made from other shards than {stream.folder} holds now, so its place in them means nothing; choose another `out`"
        )


def _first_window(stream: ShardStream) -> Window:
    """The first that can be read; raises ValueError when a hundred cannot."""
    for position in range(100):
        slot = stream.batch(position, 1)[0]
        if isinstance(slot, Window):
            return slot
    raise ValueError(f"{stream.folder}: none of the first hundred samples can be read; `crosspair verify` says what is damaged")
