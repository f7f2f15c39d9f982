"""The training loop of one worker: `train_step` is one update, `train` the whole run, from its newest checkpoint on."""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.adapters import add_adapters
from model.base import BaseFolder, find_base, load_fitting
from model.checkpoint import (
    CHECKPOINTS_NAME,
    Checkpoints,
    Recipe,
    load_averages,
    load_model,
    load_recipe,
    load_trainer,
    save_model,
    save_trainer,
)
from model.codec import LatentCodec
from model.controls import Controls, Kept
from model.cost import forward_flops, training_flops
from model.ema import Ema
from model.log import StepMetrics, TrainLog
from model.objective import draw_kept, draw_noise, noisy_history, velocity_loss
from model.portrait_dit import PortraitDiT, no_text
from model.settings import TrainConfig
from model.sheet import write_sheet
from model.stream import Prefetch, ShardStream, Window, find_pair_set
from model.vae import codec_of
from schemas.ids import digest

# Shape suffixes: B batch, F frames of the window, P previous frames, C latent channels, H W latent rows and columns.

LOG_NAME, SHEET_NAME = "train.jsonl", "sheet.png"


class Example(NamedTuple):
    """A window as latents, and the noise drawn for it."""

    source_CHW: Tensor
    driving_FCHW: Tensor
    history_PCHW: Tensor
    target_FCHW: Tensor
    sigma: float
    noise_FCHW: Tensor


class Diverged(RuntimeError):
    """Loss or gradient are no numbers. The same step would fail again, so trying again is useless."""


class Trainer:
    """Everything one worker needs. What a step does depends only on the config, the shards and the step's number.

    Raises:
        ValueError: the shards do not fit the config, or `out` holds a run of another config or of other shards.
    """

    def __init__(self, config: TrainConfig, *, rank: int = 0, world: int = 1, device: torch.device | None = None) -> None:
        assert world == 1, "one worker for now: gradients are not averaged over workers yet"
        torch.manual_seed(config.seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        self.config, self.rank, self.world, self.device = config, rank, world, device or torch.device("cpu")
        self.stream = ShardStream(find_pair_set(config.shards), config.stream())
        config.check_frame_px(self.stream.frame_px)
        self.codec: LatentCodec = codec_of(config.codec, config.base)
        self.checkpoints = Checkpoints(config.out / CHECKPOINTS_NAME, keep=config.keep_checkpoints)
        self.step = self.position = 0
        latest = self.checkpoints.latest()
        if latest is None:
            self.base = None if config.base is None else find_base(config.base)
            model = new_model(config, self.stream.frame_px)
        else:
            self.base = _same_beginning(config, latest)
            model = load_model(latest, ema=False, merge=False, base=config.base)
        self.model = model.to(self.device)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=config.lr, weight_decay=config.weight_decay)
        self.ema = None if config.ema is None else Ema(config.ema, self.model)
        if latest is not None:
            self._resume(latest)

    def train(self) -> None:
        """Trains up to `config.steps`; logs, saves, and draws the sheet."""
        log = TrainLog(self.config.out / LOG_NAME, self.step)
        remaining = max(self.config.steps - self.step, 0)
        if remaining:
            (self.config.out / SHEET_NAME).unlink(missing_ok=True)  # of fewer steps
        with Prefetch(self.stream, self.config.batch_size, rank=self.rank, world=self.world) as prefetch:
            batches = prefetch.batches(self.position, remaining)
            for _ in range(remaining):
                asked = time.perf_counter()
                windows = next(batches)
                log.waited(time.perf_counter() - asked)
                log.add(self.train_step(windows), samples=self.config.batch_size)
                saves = self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps
                if saves or self.step % self.config.log_every == 0:
                    log.write(self.step, lr=self.config.learning_rate(self.step - 1))
                if saves:
                    self.save()
        if self.config.sheet.steps:
            self.draw_sheet()

    def train_step(self, windows: list[Window]) -> StepMetrics:
        """One update: one forward pass, all samples of the step together.

        Raises:
            Diverged: loss or gradient are not finite; the weights are as before the step.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        examples = [self.example(w) for w in windows]
        torch.manual_seed(_seed("dropout", self.config.seed, self.step))  # of adapters: the one draw that nobody can hand in
        kept = self.kept()
        losses_B = self.losses(kept, examples)
        losses_B.mean().backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.trained, self.config.max_grad_norm)
        by_sigma = tuple(zip((e.sigma for e in examples), losses_B.tolist(), strict=True))
        metrics = StepMetrics(losses_B.mean().item(), grad_norm.item(), by_sigma, self.flops(kept))
        if not (math.isfinite(metrics.loss) and math.isfinite(metrics.grad_norm)):
            keys, positions = [w.key for w in windows], [w.position for w in windows]
            raise Diverged(
                f"step {self.step}: non-finite loss ({metrics.loss}) or gradient ({metrics.grad_norm}); samples {keys}, "
                f"positions {positions} of the stream. Look at these samples, or train with a lower `lr` into another `out`"
            )
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model, self.step)
        self.step += 1
        self.position += self.config.batch_size
        return metrics

    def kept(self) -> Kept:
        """The controls of this step: one draw for all its samples, so that all workers make the same pass and gather weights in step."""
        return draw_kept(self.config.objective, _generator("controls", self.config.seed, self.step), history=self.history_trains(self.step))

    def flops(self, kept: Kept) -> float:
        """Of a step, adapters' own left out. A frozen base needs no gradients of its weights: half of what they cost backwards less."""
        side = self.stream.frame_px // self.codec.factor // self.model.config.patch
        of_pass = partial(forward_flops, self.model.config, rows=side, columns=side, kept=kept, batch=self.config.batch_size)
        weights = of_pass(attention=False) if self.config.tune == "lora" else None
        return training_flops(of_pass()) - (weights.total - weights.temporal if weights else 0)

    def history_trains(self, step: int) -> bool:
        return self.model.config.history > 0 and step >= self.config.history_from_step

    def example(self, window: Window) -> Example:
        """Encodes a window and draws its noise, seeded by its place in the stream: the same on any worker."""
        frames = torch.from_numpy(window.target), torch.from_numpy(window.driving), torch.from_numpy(window.source)[None]
        target, driving, source = (self.codec.encode(f.to(self.device)) for f in frames)
        history_PCHW, target_FCHW = target[: -len(driving)], target[-len(driving) :]
        generator = _generator("noise", self.config.seed, window.position)
        sigma, noise_FCHW = draw_noise(self.config.objective, target_FCHW.shape, generator)
        history_PCHW = noisy_history(self.config.objective, history_PCHW, generator)
        return Example(source[0], driving, history_PCHW, target_FCHW, sigma, noise_FCHW)

    def losses(self, kept: Kept, examples: list[Example]) -> Tensor:
        """Of each example, float (B,)."""
        target_BFCHW = torch.stack([e.target_FCHW for e in examples])
        controls = Controls(
            source_BCHW=torch.stack([e.source_CHW for e in examples]),
            driving_BFCHW=torch.stack([e.driving_FCHW for e in examples]),
            history_BPCHW=torch.stack([e.history_PCHW for e in examples]),
        ).keep(kept)
        sigma_B = torch.tensor([e.sigma for e in examples], device=self.device)
        noise_BFCHW = torch.stack([e.noise_FCHW for e in examples]).to(self.device)
        text = no_text(self.model.config, len(examples), device=self.device)
        return velocity_loss(self.model, target_BFCHW, sigma_B, noise_BFCHW, text, controls)

    def save(self) -> Path:
        state = {
            "step": self.step,
            "position": self.position,
            "stream": self.stream.digest,
            "config": json.dumps(self.config.fixed(), sort_keys=True),
            "optimizer": self.optimizer.state_dict(),
        }

        def write(folder: Path) -> None:
            save_model(self.model, self.recipe(), folder, self.ema)
            save_trainer(state, folder)

        return self.checkpoints.save(self.step, write)

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

    def _resume(self, folder: Path) -> None:
        state = load_trainer(folder)
        check_resumable(state, self.config, self.stream, folder)
        self.step, self.position = state["step"], state["position"]
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None and load_recipe(folder).ema:  # a checkpoint from before there were averages has none
            load_averages(folder, self.ema, self.model)

    def draw_sheet(self) -> Path:
        """Of the first window of the stream, so that sheets of one run show the same frames; sampled with the averages, if any."""
        path = self.config.out / SHEET_NAME
        sheet = self.config.sheet
        shown, shift = self.stream.read(0), self.config.objective.shift
        self.model.eval()
        with nullcontext() if self.ema is None else self.ema.swapped(self.model):
            write_sheet(path, self.model, self.codec, shown, steps=sheet.steps, rows=sheet.rows, seed=self.config.seed, shift=shift)
        self.model.train()
        return path


def new_model(config: TrainConfig, frame_px: int) -> PortraitDiT:
    """The model as training on frames of this side begins; raises ValueError for a base or adapters that do not fit it."""
    portrait = config.portrait(frame_px)
    model = PortraitDiT(portrait, None if config.base is None else load_fitting(config.base, portrait))
    if config.tune == "lora":
        add_adapters(model.base, config.lora)
    return model


def _same_beginning(config: TrainConfig, checkpoint: Path) -> BaseFolder | None:
    """What training began with; raises ValueError when the config says there was a base and there was none, or the other way round."""
    began = load_recipe(checkpoint).base
    if (began is None) != (config.base is None):
        what = "random weights" if began is None else began.folder
        raise ValueError(f"{checkpoint}: training began with {what}, and `base` says otherwise; set it back, or choose another `out`")
    return began


def check_resumable(state: dict[str, Any], config: TrainConfig, stream: ShardStream, folder: Path) -> None:
    """Raises ValueError when a checkpoint was made with settings or shards that would make the rest another run."""
    changed = config.changes(json.loads(state["config"]))
    if changed:
        raise ValueError(f"{folder}: made with other settings: {', '.join(changed)}. Set them back, or choose another `out`")
    if state["stream"] != stream.digest:
        raise ValueError(
            f"{folder}: made from other shards than {stream.folder} holds now, so its place in them means nothing; choose another `out`"
        )


def _generator(*of: str | int) -> torch.Generator:
    """The same draws whenever and wherever they are made for the same thing."""
    return torch.Generator().manual_seed(_seed(*of))


def _seed(*of: str | int) -> int:
    return int(digest(*of), 16) % 2**63
