"""The training loop of one worker: `train_step` is one update, `train` the whole run, from its newest checkpoint on."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.checkpoint import Checkpoints, load_model, load_trainer, save_model, save_trainer
from model.codec import DctCodec, LatentCodec
from model.controls import Controls, Kept
from model.objective import Draw, draw, velocity_loss
from model.portrait_dit import PortraitDiT, no_text
from model.settings import TrainConfig
from model.sheet import write_sheet
from model.stream import Prefetch, ShardStream, Window, find_pair_set
from schemas.ids import digest

# Shape suffixes: B batch, F frames of the window, P previous frames, C latent channels, H W latent rows and columns.

LOG_NAME, SHEET_NAME, CHECKPOINTS_NAME = "train.jsonl", "sheet.png", "checkpoints"


class Example(NamedTuple):
    """A window as latents, and what chance drew for it."""

    source_CHW: Tensor
    driving_FCHW: Tensor
    history_PCHW: Tensor
    target_FCHW: Tensor
    draw: Draw


class StepMetrics(NamedTuple):
    loss: float
    grad_norm: float  # before clipping


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
        self.codec: LatentCodec = DctCodec()
        self.checkpoints = Checkpoints(config.out / CHECKPOINTS_NAME, keep=config.keep_checkpoints)
        self.step = self.position = 0
        latest = self.checkpoints.latest()
        model = PortraitDiT(config.portrait()) if latest is None else load_model(latest)
        self.model = model.to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        if latest is not None:
            self._resume(latest)

    def train(self) -> None:
        """Trains up to `config.steps`; logs, saves, and draws the sheet."""
        log = TrainLog(self.config.out / LOG_NAME, self.step)
        remaining = max(self.config.steps - self.step, 0)
        with Prefetch(self.stream, self.config.batch_size, rank=self.rank, world=self.world) as prefetch:
            batches = prefetch.batches(self.position, remaining)
            for _ in range(remaining):
                asked = time.perf_counter()
                windows = next(batches)
                log.waited(time.perf_counter() - asked)
                log.add(self.train_step(windows), samples=self.config.batch_size)
                saves = self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps
                if saves or self.step % self.config.log_every == 0:
                    log.write(self.step, lr=self.learning_rate(self.step - 1))
                if saves:
                    self.save()
        if self.config.sheet.steps:
            self.draw_sheet()

    def train_step(self, windows: list[Window]) -> StepMetrics:
        """One update. Samples that drew the same controls go through the model together."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        by_kept: dict[Kept, list[Example]] = defaultdict(list)
        for window in windows:
            example = self.example(window)
            by_kept[example.draw.kept].append(example)

        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for kept, examples in by_kept.items():
            loss = self.loss(kept, examples) / len(windows)
            loss.backward()
            total += loss.item()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm, error_if_nonfinite=True)
        self.optimizer.step()
        self.step += 1
        self.position += self.config.batch_size
        return StepMetrics(total, grad_norm.item())

    def example(self, window: Window) -> Example:
        """Encodes a window and draws its noise, seeded by its place in the stream: the same on any worker."""
        frames = torch.from_numpy(window.target), torch.from_numpy(window.driving), torch.from_numpy(window.source)[None]
        target, driving, source = (self.codec.encode(f.to(self.device)) for f in frames)
        history_PCHW, target_FCHW = target[: -len(driving)], target[-len(driving) :]
        generator = torch.Generator().manual_seed(int(digest("noise", self.config.seed, window.position), 16) % 2**63)
        history = self.step >= self.config.history_from_step and len(history_PCHW) > 0
        return Example(
            source[0], driving, history_PCHW, target_FCHW, draw(self.config.objective, target_FCHW.shape, generator, history=history)
        )

    def loss(self, kept: Kept, examples: list[Example]) -> Tensor:
        """Summed over the examples, which all keep the same controls."""
        target_BFCHW = torch.stack([e.target_FCHW for e in examples])
        controls = Controls(
            source_BCHW=torch.stack([e.source_CHW for e in examples]),
            driving_BFCHW=torch.stack([e.driving_FCHW for e in examples]),
            history_BPCHW=torch.stack([e.history_PCHW for e in examples]),
        ).keep(kept)
        sigma_B = torch.tensor([e.draw.sigma for e in examples], device=self.device)
        noise_BFCHW = torch.stack([e.draw.noise_FCHW for e in examples]).to(self.device)
        text = no_text(self.model.config, len(examples), device=self.device)
        return velocity_loss(self.model, target_BFCHW, sigma_B, noise_BFCHW, text, controls).sum()

    def learning_rate(self, step: int) -> float:
        return self.config.lr * min(1.0, (step + 1) / max(self.config.warmup, 1))

    def save(self) -> Path:
        state = {
            "step": self.step,
            "position": self.position,
            "stream": self.stream.digest,
            "config": self.config.fixed(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }

        def write(folder: Path) -> None:
            save_model(self.model, folder)
            save_trainer(state, folder)

        return self.checkpoints.save(self.step, write)

    def _resume(self, folder: Path) -> None:
        state = load_trainer(folder)
        check_resumable(state, self.config, self.stream, folder)
        self.step, self.position = state["step"], state["position"]
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])

    def draw_sheet(self) -> Path:
        """Of the first window of the stream, so that sheets of one run show the same frames."""
        path = self.config.out / SHEET_NAME
        sheet = self.config.sheet
        write_sheet(path, self.model, self.codec, self.stream.read(0), steps=sheet.steps, rows=sheet.rows, seed=self.config.seed)
        return path


def check_resumable(state: dict[str, Any], config: TrainConfig, stream: ShardStream, folder: Path) -> None:
    """Raises ValueError when a checkpoint was made with settings or shards that would make the rest another run."""
    before, now = json.loads(state["config"]), json.loads(config.fixed())
    changed = [f"{k} (was {before.get(k)}, is {now.get(k)})" for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k)]
    if changed:
        raise ValueError(f"{folder}: made with other settings: {', '.join(changed)}. Set them back, or choose another `out`")
    if state["stream"] != stream.digest:
        raise ValueError(
            f"{folder}: made from other shards than {stream.folder} holds now, so its place in them means nothing; choose another `out`"
        )


class TrainLog:
    """One JSON line per record: averages since the record before. On resume, records after the checkpoint go: their steps are redone."""

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [r for r in read_log(path) if r["step"] <= step]
        partial = path.with_name(f".{path.name}")
        partial.write_text("".join(json.dumps(r) + "\n" for r in kept))
        partial.replace(path)
        self._path = path
        self._clear()

    def _clear(self) -> None:
        self._steps: list[StepMetrics] = []
        self._samples, self._waited_s, self._started = 0, 0.0, time.perf_counter()

    def waited(self, seconds: float) -> None:
        self._waited_s += seconds

    def add(self, metrics: StepMetrics, *, samples: int) -> None:
        self._steps.append(metrics)
        self._samples += samples

    def write(self, step: int, *, lr: float) -> None:
        elapsed, n = time.perf_counter() - self._started, len(self._steps)
        record = {
            "step": step,
            "loss": sum(s.loss for s in self._steps) / n,
            "grad_norm": sum(s.grad_norm for s in self._steps) / n,
            "lr": lr,
            "data_wait": round(self._waited_s / elapsed, 4),  # share of the time that the step waited for its batch
            "samples_per_s": round(self._samples / elapsed, 3),
        }
        with self._path.open("a") as f:
            f.write(json.dumps(record) + "\n")
        self._clear()


def read_log(path: Path) -> list[dict[str, float]]:
    """The records so far; a line cut short by a kill is left out."""
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
