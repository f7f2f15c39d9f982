"""What is watched while training runs: TensorBoard's files, and Weights & Biases where it is asked for and installed."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter


class Board:
    """Numbers and pictures by step.

    Args:
        out: the training run's folder; TensorBoard's files go to `out`/tensorboard.
        step: that training goes on from; what TensorBoard showed of later ones is taken back.
        wandb: name of a project there; None: not used.
        config: of the run, shown there.

    Raises:
        ValueError: `wandb` is asked for and not installed.
    """

    def __init__(self, out: Path, step: int, *, wandb: str | None, config: Mapping[str, Any]) -> None:
        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)
        self._wandb: Any = None
        if wandb is not None:
            self._wandb = _wandb().init(project=wandb, id=_id_of(out, new=step == 0), resume="allow", dir=str(out), config=dict(config))
            self._wandb.define_metric("*", step_metric="step")  # theirs only grows, and steps are redone

    def numbers(self, record: Mapping[str, float]) -> None:
        step = int(record["step"])
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(f"train/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log(dict(record))

    def picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """uint8 RGB (H, W, 3)."""
        self._writer.add_image(name, picture, step, dataformats="HWC")
        if self._wandb is not None:
            self._wandb.log({name: _wandb().Image(picture), "step": step})

    def close(self) -> None:
        self._writer.close()
        if self._wandb is not None:
            self._wandb.finish()


def _id_of(out: Path, *, new: bool) -> str:
    """Of the run there: kept in `out`."""
    kept = out / "wandb.id"
    if new or not kept.is_file():
        kept.write_text(uuid.uuid4().hex)
    return kept.read_text()


def _wandb() -> Any:
    try:
        import wandb
    except ImportError as e:
        raise ValueError("`wandb` names a project, and Weights & Biases is not installed: pip install wandb, or set it to null") from e
    return wandb


def check_wandb(project: str | None) -> None:
    """Raises ValueError when it is asked for and not installed."""
    if project is not None:
        _wandb()
