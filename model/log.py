"""OUT/train.jsonl: one JSON line per record, written by the leading worker and followed by whoever started training."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

SIGMA_BINS = 4  # equal parts of 0..1


class Seen(NamedTuple):
    """What became of one place in the stream."""

    position: int
    sample: str
    sigma: float  # noise level; -1 where the sample could not be used
    loss: float
    reason: str = ""  # why it could not be used


class StepMetrics(NamedTuple):
    loss: float  # mean over the samples that could be used; NaN where none could
    grad_norm: float  # before clipping
    seen: tuple[Seen, ...] = ()  # of all workers, in the stream's order
    flops: float = 0.0  # of the model's own arithmetic: what is computed again for lack of memory does not count
    waited_s: float = 0.0  # for data, by the worker that waited longest
    memory_gb: float = 0.0  # the most that a worker ever took
    clock_s: float = 0.0  # the leading worker's, at the end of the step


class JsonLines:
    """A file of records that have a `step`. Those after `step` go as it is opened: their steps are redone."""

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [r for r in read_log(path) if r["step"] <= step]
        partial = path.with_name(f".{path.name}")
        partial.write_text("".join(json.dumps(r) + "\n" for r in kept))
        partial.replace(path)
        self._path = path

    def add(self, record: dict[str, Any]) -> None:
        with self._path.open("a") as f:
            f.write(json.dumps(record) + "\n")


class TrainLog:
    """Averages since the record before.

    Args:
        path: of the file.
        step: that training goes on from.
        workers: how many train together.
        peak_flops: what all accelerators together can do in a second; 0: not known.
    """

    def __init__(self, path: Path, step: int, *, workers: int = 1, peak_flops: float = 0.0) -> None:
        self._lines, self._workers, self._peak_flops = JsonLines(path, step), workers, peak_flops
        self._clear()

    def _clear(self) -> None:
        self._steps: list[StepMetrics] = []
        self._started = time.perf_counter()

    def add(self, metrics: StepMetrics) -> None:
        self._steps.append(metrics)

    def write(self, step: int, *, lr: float) -> dict[str, Any] | None:
        """Writes and returns a record; none while no sample could be used.

        `loss_sigma_25` is the loss at noise levels from 0.25 to 0.5, and so on; levels that did not occur are left out.
        """
        seen = [s for metrics in self._steps for s in metrics.seen]
        used = [s for s in seen if s.sigma >= 0]
        trained = [s for s in self._steps if s.loss == s.loss]
        if not trained:
            return None
        elapsed = time.perf_counter() - self._started
        flops = sum(s.flops for s in trained) / elapsed
        record = {
            "step": step,
            "loss": _mean([s.loss for s in trained]),
            "grad_norm": _mean([s.grad_norm for s in trained]),
            "lr": lr,
            "data_wait": round(sum(s.waited_s for s in self._steps) / elapsed, 4),  # share of the time that a step waited for its batch
            "samples_per_s": round(len(used) / elapsed, 3),
            "model_tflops_per_s": round(flops / 1e12, 6),
            "memory_gb": round(max(s.memory_gb for s in self._steps), 3),
            "skipped": len(seen) - len(used),  # samples that could not be used
            "workers": self._workers,
        }
        if self._peak_flops:
            record["mfu"] = round(flops / self._peak_flops, 4)
        for i, losses in sorted(_by_bin(used).items()):
            record[f"loss_sigma_{100 * i // SIGMA_BINS:02d}"] = _mean(losses)
        self._lines.add(record)
        self._clear()
        return record


def _by_bin(used: Sequence[Seen]) -> dict[int, list[float]]:
    bins: dict[int, list[float]] = {}
    for seen in used:
        bins.setdefault(min(int(SIGMA_BINS * seen.sigma), SIGMA_BINS - 1), []).append(seen.loss)
    return bins


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def memory_gb(device: torch.device) -> float:
    """The most that was ever taken: of the accelerator's memory, or without one of this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


# Dense bfloat16 operations a second, as the makers' data sheets have them.
_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}


def peak_flops(device: torch.device) -> float:
    """Of one accelerator; 0 for a CPU and for those that are not listed."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    return next((flops for known, flops in _PEAK_FLOPS.items() if known in name), 0.0)


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
