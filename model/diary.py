"""What the leading worker writes down while training runs."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np

from model.board import Board
from model.log import JsonLines, StepMetrics, TrainLog
from model.settings import TrainConfig

LOG_NAME, SEEN_NAME, SKIPPED_NAME = "train.jsonl", "seen.jsonl", "skipped.jsonl"


class Diary:
    """The log, which samples were seen and skipped, and the board.

    Args:
        step: that training goes on from.
        world: number of workers.
        peak: operations a second of one accelerator; 0: not known.
    """

    def __init__(self, config: TrainConfig, step: int, world: int, peak: float) -> None:
        self._config = config
        self._log = TrainLog(config.out / LOG_NAME, step, workers=world, peak_flops=world * peak)
        self._seen = JsonLines(config.out / SEEN_NAME, step) if config.log_samples else None
        self._skipped = JsonLines(config.out / SKIPPED_NAME, step)
        self._board = Board(config.out, step, wandb=config.wandb, config=json.loads(json.dumps(asdict(config), default=str)))

    def add(self, step: int, metrics: StepMetrics, *, now: bool) -> None:
        """`now`: writes a record, though it is not its turn."""
        self._log.add(metrics)
        for bad in (s for s in metrics.seen if s.sigma < 0):
            self._skipped.add({"step": step, "position": bad.position, "sample": bad.sample, "reason": bad.reason})
        if self._seen is not None:
            used = [s.sample if s.sigma >= 0 else None for s in metrics.seen]
            self._seen.add({"step": step, "first": metrics.seen[0].position, "samples": used})
        if now or step % self._config.log_every == 0:
            record = self._log.write(step, lr=self._config.learning_rate(step - 1))
            if record is not None:
                self._board.numbers(record)

    def show(self, picture: np.ndarray, step: int) -> None:
        self._board.picture("sampled", picture, step)

    def close(self) -> None:
        self._board.close()
