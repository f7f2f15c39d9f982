"""OUT/train.jsonl: one JSON line per record, written by the worker and followed by whoever started it."""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path
from typing import NamedTuple

import torch

SIGMA_BINS = 4  # equal parts of 0..1


class StepMetrics(NamedTuple):
    loss: float
    grad_norm: float  # before clipping
    by_sigma: tuple[tuple[float, float], ...] = ()  # noise level and loss of each sample
    flops: float = 0.0  # of the model's own arithmetic: what is computed again for lack of memory does not count


class TrainLog:
    """Averages since the record before. On resume, records after the checkpoint go: their steps are redone."""

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
        """`loss_sigma_25` is the loss at noise levels from 0.25 to 0.5, and so on; levels that did not occur are left out."""
        elapsed = time.perf_counter() - self._started
        record = {
            "step": step,
            "loss": _mean([s.loss for s in self._steps]),
            "grad_norm": _mean([s.grad_norm for s in self._steps]),
            "lr": lr,
            "data_wait": round(self._waited_s / elapsed, 4),  # share of the time that the step waited for its batch
            "samples_per_s": round(self._samples / elapsed, 3),
            "model_tflops_per_s": round(sum(s.flops for s in self._steps) / elapsed / 1e12, 6),
            "memory_gb": round(_memory_gb(), 3),
        }
        for i, losses in sorted(self._by_bin().items()):
            record[f"loss_sigma_{100 * i // SIGMA_BINS:02d}"] = _mean(losses)
        with self._path.open("a") as f:
            f.write(json.dumps(record) + "\n")
        self._clear()

    def _by_bin(self) -> dict[int, list[float]]:
        bins: dict[int, list[float]] = {}
        for sigma, loss in (pair for s in self._steps for pair in s.by_sigma):
            bins.setdefault(min(int(SIGMA_BINS * sigma), SIGMA_BINS - 1), []).append(loss)
        return bins


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _memory_gb() -> float:
    """The most that was ever taken: of the accelerator's memory, or without one of this process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class LogFollower:
    """Hands out each record after `step` once, in order, while the log grows: reads only what was appended."""

    def __init__(self, path: Path, step: int) -> None:
        self._path, self._step = path, step
        self._file, self._offset = 0, 0

    def new(self) -> list[dict[str, float]]:
        """Records that came since the last call. A worker that resumes replaces the file; what it redoes was handed out already."""
        if not self._path.is_file():
            return []
        with self._path.open("rb") as f:
            status = os.fstat(f.fileno())
            if status.st_ino != self._file or status.st_size < self._offset:
                self._file, self._offset = status.st_ino, 0
            f.seek(self._offset)
            whole_lines, newline, _ = f.read().rpartition(b"\n")
        self._offset += len(whole_lines) + len(newline)
        records = [r for r in map(json.loads, whole_lines.splitlines()) if r["step"] > self._step]
        self._step = max([self._step, *(int(r["step"]) for r in records)])
        return records


def read_log(path: Path) -> list[dict[str, float]]:
    """The records so far; a line cut short by a kill is left out."""
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
