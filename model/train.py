"""`crosspair train`: the trainer under Ray Train, which starts the workers and starts them again from their checkpoint if one dies."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError, get_context, get_preemption_info
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from model.board import check_wandb
from model.checkpoint import CHECKPOINTS_NAME, Checkpoints, load_progress
from model.diary import LOG_NAME
from model.latents import Latents
from model.log import LogFollower, read_log
from model.sd35 import read_sizes, transformer_folder
from model.settings import TrainConfig
from model.text import read_prompt
from model.trainer import SHEET_NAME, Diverged, Trainer, check_resumable
from model.vae import codec_of
from model.workers import Workers
from schemas.config import load_config
from schemas.files import atomic_file

_log = logging.getLogger(__name__)

Progress = Callable[[dict[str, float]], None]
_POLL_S = 0.5
_REFUSED = "refused.txt"  # in `out`: why a worker gave up, where trying again would change nothing


@dataclass(frozen=True)
class TrainResult:
    """A finished run. `losses` has one entry for each record of the log, from step 0 on, resumed or not."""

    steps: int
    losses: list[float]
    checkpoint: Path
    sheet: Path | None


def main(config_path: Path, overrides: list[str], on_progress: Progress | None = None) -> TrainResult:
    """For the command line. Raises ValueError for anything the user can mend."""
    return train(load_config(TrainConfig, config_path, overrides), on_progress)


def train(config: TrainConfig, on_progress: Progress | None = None) -> TrainResult:
    """Trains to `config.steps`, from the newest checkpoint in `config.out` if there is one; a run that is complete stays as it is.

    Args:
        config: the run; relative paths are taken from the current directory.
        on_progress: called with each record of the log as it appears.

    Raises:
        ValueError: shards that do not fit the config, a checkpoint of another run or a damaged one, too many bad samples, a loss that is
            no number.
        ray.train.WorkerGroupError: workers died more than `max_failures` times.
    """
    config = config.located()
    done = check(config)
    without_sheet = config.sheet.steps > 0 and not (config.out / SHEET_NAME).is_file()
    if done < config.steps or without_sheet:
        with _ray(config), _following(config.out / LOG_NAME, done, on_progress):
            _fit(config)
    checkpoint = Checkpoints(config.out / CHECKPOINTS_NAME, keep=config.keep_checkpoints).latest()
    assert checkpoint is not None, "a finished run has a checkpoint"
    records, sheet = read_log(config.out / LOG_NAME), config.out / SHEET_NAME
    return TrainResult(max(done, config.steps), [r["loss"] for r in records], checkpoint, sheet if sheet.is_file() else None)


def check(config: TrainConfig) -> int:
    """Steps done so far; finds out before any process is started what is wrong with shards, settings and checkpoint (ValueError)."""
    stream = config.open_stream()
    check_wandb(config.wandb)
    if config.text is not None:
        read_prompt(config.text, config.portrait())
    if config.latents:
        Latents(stream.folder, codec_of(config.codec, config.base), stream.frame_px)
    config.check_frame_px(stream.frame_px)
    if config.base is not None:
        read_sizes(transformer_folder(config.base))
    if stream.skipped:
        _log.warning(
            "%s: %d of %d clips are shorter than a window and left out", stream.folder, stream.skipped, len(stream) + stream.skipped
        )
    latest = Checkpoints(config.out / CHECKPOINTS_NAME, keep=config.keep_checkpoints).latest()
    if latest is None:
        return 0
    progress = load_progress(latest)
    check_resumable(progress, config, stream, latest)
    return int(progress["step"])


def _work(loop_config: dict[str, TrainConfig]) -> None:
    """Runs in each worker's process. Ray answers any exception with fresh workers, so what they cannot mend is left in a file.

    With several workers the others may be waiting for this one, so Ray has to end them, and starts all anew; then the file ends it.
    """
    config = loop_config["config"]
    refused = config.out / _REFUSED
    if refused.is_file():
        return
    torch.set_num_threads(config.cpus)
    workers = Workers.all()
    if workers.world != get_context().get_world_size():  # Ray is ending this group, which is gone already: it must not train alone
        raise RuntimeError("the group of workers is gone")
    try:
        Trainer(config, workers=workers, device=get_device()).train(lambda: get_preemption_info() is not None)
    except (ValueError, Diverged) as e:
        if workers.world > 1 and not dist.is_initialized():  # Ray ends this group, to go on with another: whatever failed is no mistake
            raise
        with atomic_file(refused) as f:
            f.write(str(e).encode())
        if workers.world > 1:
            raise


def _fit(config: TrainConfig) -> None:
    """Ray's own records go to OUT/ray, a folder for each attempt; the truth about progress is in our checkpoints, not in them."""
    storage, refused = config.out / "ray", config.out / _REFUSED
    storage.mkdir(parents=True, exist_ok=True)
    refused.unlink(missing_ok=True)
    there = ray.cluster_resources()
    accelerated = config.device == "cuda" or (config.device == "auto" and there.get("GPU", 0) > 0)
    _check_room(config, there, accelerated)
    attempts = [int(p.name.removeprefix("attempt-")) for p in storage.glob("attempt-*")]
    trainer = TorchTrainer(
        _work,
        train_loop_config={"config": config},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if accelerated else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=accelerated,
            resources_per_worker={"CPU": config.cpus} | ({"GPU": 1} if accelerated else {}),
            elastic_resize_monitor_interval_s=config.ray.resize_check_s,
        ),
        run_config=RunConfig(
            name=f"attempt-{max(attempts, default=-1) + 1:03d}",
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError:
        if not refused.is_file():
            raise
    if refused.is_file():
        raise ValueError(refused.read_text())


def _check_room(config: TrainConfig, there: Mapping[str, float], accelerated: bool) -> None:
    """Ray would wait for ever for what is not there. On a cluster it may still come.

    Raises:
        ValueError: on this machine it will not.
    """
    least = config.worker_range[0]
    wanted = {"CPU": least * config.cpus, "GPU": least * accelerated}
    short = [f"{n} {what}, and there are {there.get(what, 0):.0f}" for what, n in wanted.items() if there.get(what, 0) < n]
    if not short:
        return
    told = f"{least} workers need {'; '.join(short)}: take fewer `workers` or `cpus`, or another `device`"
    if config.ray.address is None:
        raise ValueError(told)
    _log.warning("%s; waiting for more machines", told)


@contextmanager
def _ray(config: TrainConfig) -> Iterator[None]:
    """The cluster that the config names, or one of our own for the run, unless the caller has one."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    least, most = (n * config.cpus for n in config.worker_range)
    cpus = max(least, min(most, os.cpu_count() or 1)) + 1
    if config.ray.address is not None:
        ray.init(address=config.ray.address, log_to_driver=False, logging_level=logging.ERROR)
    else:  # "local": our own even where RAY_ADDRESS is set or another Ray was left running
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _following(log: Path, step: int, on_progress: Progress | None) -> Iterator[None]:
    """Hands records after `step` to `on_progress` while the body runs, and the last ones when it ends."""
    if on_progress is None:
        yield
        return
    follower, ended = LogFollower(log, step), threading.Event()

    def follow() -> None:
        while not ended.wait(_POLL_S):
            hand_over()

    def hand_over() -> None:
        for record in follower.new():
            on_progress(record)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        hand_over()
