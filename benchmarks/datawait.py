"""How long training waits for its data: measured with the tiny model on this machine, projected for the paper's size.

    [CROSSPAIR_SHARED=<folder that holds realdata/>] python -m benchmarks.datawait [--steps 40] [--windows 12]

Measured: the trainer of `crosspair train`, tiny model, 96 px windows, in a process on two cores, from a set of 576 px; `data_wait` of its
log is the share of the time in which a step waited for its batch. A step without a GPU is long, but so is one with one, and the model is
tiny: this shows that reading ahead works.

Projected: with S seconds a step (one clip a GPU; 809 to 1079 TFLOP at 40 % of an H100's dense 989 TFLOP/s: 2.0 to 2.7 s), c CPU
seconds to read and cut the window of a step (19 frames of the target, one of its source, 16 of the driving video at 576 px, masks;
measured here, one thread) and t threads a GPU, reading ahead hides all of c as long as c <= t S, and else all but c / t - S of each step:

    share = max(0, c / t - S) / max(S, c / t)  +  c / (N S)

where the second term is the first window, which nothing hides, spread over a run of N steps (50 000). A single slow window is hidden
while it takes less than (1 + ahead) S. Beside it stands c / (c + S): what it would be without reading ahead.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import cv2
import torch

from benchmarks.stream_readers import FRAMES, HISTORY
from benchmarks.stream_samples import write_samples
from model.diary import LOG_NAME
from model.log import read_log
from model.settings import SheetConfig, TrainConfig
from model.stream import ShardStream, StreamConfig
from model.trainer import Trainer

STEP_S, RUN_STEPS, THREADS, LIMIT = (2.0, 2.7), 50_000, (1, 2), 0.01


def measured_share(shards: Path, out: Path, steps: int, cores: int) -> tuple[float, float]:
    """The share of time that steps waited, without the first tenth of them, and seconds a step."""
    torch.set_num_threads(cores)
    config = TrainConfig(
        shards=shards, out=out, frame_px=96, steps=steps, checkpoint_every=steps, cpus=cores, warmup=2, sheet=SheetConfig(steps=0)
    )
    began = time.perf_counter()
    Trainer(config).train()
    seconds = (time.perf_counter() - began) / steps
    records = read_log(out / LOG_NAME)[steps // 10 :]
    # each record is one step, which took 1 / samples_per_s of its one sample
    spent = [1 / r["samples_per_s"] for r in records]
    return sum(r["data_wait"] * s for r, s in zip(records, spent, strict=True)) / sum(spent), seconds


def window_costs(shards: Path, windows: int) -> list[float]:
    """CPU seconds of one thread to read and cut a window of the paper's size."""
    stream = ShardStream(shards, StreamConfig(frames=FRAMES, history=HISTORY))
    stream.read(0)
    costs = []
    for position in range(windows):
        began = time.thread_time()
        stream.read(position)
        costs.append(time.thread_time() - began)
    return costs


def projected_share(cost_s: float, step_s: float, threads: int, steps: int = RUN_STEPS) -> float:
    """Of a run's time that steps wait; the formula above."""
    supply_s = cost_s / threads
    return max(0.0, supply_s - step_s) / max(step_s, supply_s) + cost_s / (steps * step_s)


def _spread(values: Sequence[float]) -> str:
    return " / ".join(f"{1000 * v:.0f}" for v in (min(values), median(values), max(values)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--cores", type=int, default=2)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        shards = write_samples(Path(folder) / "set", samples=args.windows, size_px=576, frames=40, tars=2)
        costs = window_costs(shards, args.windows)
        share, step_s = measured_share(shards, Path(folder) / "train", args.steps, args.cores)
    print(f"tiny model, {args.cores} cores: {step_s:.2f} s a step, of which {100 * share:.2f} % waiting for data")
    print(f"a window of the paper's size: {_spread(costs)} CPU ms (min / median / max of {len(costs)})")
    print("\n| paper's size, by the slowest window | one thread a GPU | two | nothing read ahead |\n|---|---|---|---|")
    shares = {(s, t): projected_share(max(costs), s, t) for s in STEP_S for t in THREADS}
    for s in STEP_S:
        cells = [f"{100 * shares[s, t]:.4f} %" for t in THREADS]
        print(f"| {s} s a step | {' | '.join(cells)} | {100 * max(costs) / (max(costs) + s):.1f} % |")
    good = max(shares.values()) < LIMIT
    print(f"\naim, under {100 * LIMIT:.0f} % of a step: {'held' if good else 'MISSED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
