"""Under Ray Train: one worker, killed on the way, ends where the bare loop ends; the user's mistakes are told before anything starts."""

import json
import os
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
import torch
from pairset import members_of, write_pair_set
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    ResourceRequestPriority,
    get_or_create_autoscaling_coordinator,
)
from ray.util.placement_group import placement_group, remove_placement_group

import model.train
from model.checkpoint import load_model
from model.diary import LOG_NAME, SEEN_NAME
from model.log import StepMetrics, read_log
from model.settings import LoaderConfig, RayConfig, SheetConfig, TrainConfig
from model.train import _check_room, _ray, check, main, train
from model.trainer import Trainer
from model.workers import Workers
from schemas.sample import TARGET


def kill_a_worker() -> bool:
    """Of this process's own cluster: the raylet is its child, and the workers the raylet's. At once, as by os._exit or the kernel."""
    workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
    if workers:
        workers[-1].kill()
    return bool(workers)


class Follower:
    """Kills a worker when it hears the first record."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []
        self.killed: list[bool] = []

    def __call__(self, record: dict[str, float]) -> None:
        self.records.append(record)
        if not self.killed:
            self.killed.append(kill_a_worker())


@pytest.mark.usefixtures("ray_session")
def test_one_of_two_workers_dies_and_no_sample_is_missed_or_seen_twice(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from paths relative to where the user stands, which is not where a worker runs."""
    monkeypatch.chdir(tmp_path)
    config = replace(config, shards=Path(os.path.relpath(config.shards)), out=Path("train"))
    config = replace(config, steps=14, history_from_step=6, checkpoint_every=3, workers=2, log_samples=True, sheet=SheetConfig(steps=1))
    bare = replace(config, out=tmp_path / "bare")
    Trainer(bare).train()
    follower = Follower()
    result = train(config, follower)
    assert follower.killed == [True]
    assert [r["step"] for r in follower.records] == list(range(1, 15)) and result.checkpoint.name == "step-000014"
    attempts = list((config.out / "ray").iterdir())
    assert len(attempts) == 1  # Ray itself began again
    seen, expected = ([json.loads(line) for line in (c.out / SEEN_NAME).read_text().splitlines()] for c in (config, bare))
    assert seen == expected and [s["step"] for s in seen] == list(range(1, 15))
    assert result.losses == pytest.approx([r["loss"] for r in read_log(bare.out / LOG_NAME)], abs=1e-3)
    assert result.sheet is not None and result.sheet.is_file()
    assert train(config) == result  # complete: nothing is started


@pytest.mark.usefixtures("ray_session")
@pytest.mark.slow
def test_a_worker_alone_that_is_killed_ends_where_the_bare_loop_ends(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, steps=60, history_from_step=20)
    bare = Trainer(replace(config, out=tmp_path / "bare"))
    bare.train()
    Trainer(replace(config, steps=3)).train()  # as if an earlier run had been stopped here
    follower = Follower()
    result = train(config, follower)
    assert follower.killed == [True]
    assert [r["step"] for r in follower.records] == list(range(4, 61))
    assert result.losses == [r["loss"] for r in read_log(tmp_path / "bare" / LOG_NAME)]
    model = load_model(result.checkpoint, ema=False)
    assert all(torch.equal(v, bare.model.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.usefixtures("ray_session")
@pytest.mark.campaign  # the growing run shows both numbers of workers in one command
def test_as_many_workers_train_as_there_is_room_for(config: TrainConfig) -> None:
    """Of four CPUs; what one worker began, two finish."""
    config = replace(config, workers=(1, 2), steps=3)
    train(replace(config, cpus=3))
    assert {r["workers"] for r in read_log(config.out / LOG_NAME)} == {1}
    (config.out / "checkpoints" / "step-000003" / "trainer.json").write_text(
        (config.out / "checkpoints" / "step-000003" / "trainer.json").read_text().replace('"cpus": 3', '"cpus": 1')
    )
    train(replace(config, steps=6))
    assert [r["workers"] for r in read_log(config.out / LOG_NAME)] == [1, 1, 1, 2, 2, 2]


class AnotherJob:
    """Holds CPUs of the cluster, and has them reserved where Ray Train and Ray Data do; that is where Ray looks for room to grow."""

    def __init__(self, cpus: int) -> None:
        self._reserved = get_or_create_autoscaling_coordinator()
        ray.get(self._reserved.request_resources.remote("another", [{"CPU": cpus}], 600, priority=ResourceRequestPriority.HIGH))
        self._held = placement_group([{"CPU": cpus}])
        assert self._held.wait(30)
        self.ended = False

    def end(self) -> None:
        remove_placement_group(self._held)
        ray.get(self._reserved.cancel_request.remote("another"))
        self.ended = True


@pytest.mark.usefixtures("ray_session")
@pytest.mark.slow
def test_a_run_grows_by_itself_when_there_is_room(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker begins; when it has a checkpoint another job ends, and Ray goes on with two."""
    steps = 20
    config = replace(config, steps=steps, checkpoint_every=4, history_from_step=10, max_failures=0, log_samples=True)
    bare = replace(config, out=tmp_path / "bare")
    Trainer(bare).train()

    def slowly_while_alone(loop_config: dict[str, TrainConfig]) -> None:
        """So that Ray, which looks every two seconds at the best, does so before the last step."""
        step = Trainer.train_step

        def slow(self: Trainer, *args: Any, **more: Any) -> StepMetrics:
            time.sleep(0.8 if self.workers.world == 1 else 0)
            return step(self, *args, **more)

        Trainer.train_step = slow  # type: ignore[method-assign]
        model.train._work(loop_config)

    monkeypatch.setattr("model.train._work", slowly_while_alone)
    job, records = AnotherJob(cpus=3), list[dict[str, float]]()

    def follow(record: dict[str, float]) -> None:
        records.append(record)
        if not job.ended and (config.out / "checkpoints" / "latest").is_file():
            job.end()

    train(replace(config, workers=(1, 2), ray=RayConfig(resize_check_s=1.0)), follow)
    workers = [r["workers"] for r in read_log(config.out / LOG_NAME)]
    alone = workers.count(1)
    assert alone >= 4 and alone % 4 == 0 and workers == [1] * alone + [2] * (steps - alone)
    assert [r["step"] for r in records] == list(range(1, steps + 1)) and len(list((config.out / "ray").iterdir())) == 1
    assert (config.out / SEEN_NAME).read_text() == (bare.out / SEEN_NAME).read_text()
    losses = [[r["loss"] for r in read_log(c.out / LOG_NAME)] for c in (config, bare)]
    assert losses[0][:alone] == losses[1][:alone] and losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.slow
def test_what_trying_again_cannot_mend_is_told_and_not_tried_again(config: TrainConfig, tmp_path: Path) -> None:
    members = members_of("k", 12, tmp_path)
    shards = write_pair_set(tmp_path / "set", {"k": members | {TARGET: members[TARGET][:200]}})
    with pytest.raises(ValueError, match=r"3 samples in a row cannot be used.*sample k: not a readable crosspair video") as told:
        train(replace(config, shards=shards, max_failures=3, loader=LoaderConfig(max_bad_in_a_row=3)))
    assert told.value.__cause__ is None  # it came from the worker's own note, not through Ray's count of failures
    assert (config.out / "refused.txt").read_text() == str(told.value)


def test_what_fails_in_workers_that_ray_is_ending_is_no_mistake(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the process group away before it starts more of them; noted as refused, the run would end there."""

    def fails(*_: object, **__: object) -> None:
        raise ValueError("Invalid process group specified")

    monkeypatch.setattr("model.train.get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr("model.train.Trainer", fails)
    config.out.mkdir()
    ended = "the group of workers is gone"  # for one that finds itself alone before its training has begun
    for workers, of, complaint, noted in ((Workers(0, 2), 2, "Invalid", False), (Workers(), 2, ended, False), (Workers(), 1, "", True)):
        monkeypatch.setattr("model.train.Workers.all", lambda workers=workers: workers)
        monkeypatch.setattr("model.train.get_context", lambda of=of: SimpleNamespace(get_world_size=lambda: of))
        with pytest.raises((ValueError, RuntimeError), match=complaint) if complaint else nullcontext():
            model.train._work({"config": config})
        assert (config.out / "refused.txt").is_file() == noted


def test_workers_that_there_is_no_room_for_are_refused_here_and_waited_for_on_a_cluster(
    config: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(config, batch_size=8, cpus=2, workers=(2, 4))
    _check_room(config, {"CPU": 4.0}, accelerated=False)
    with pytest.raises(ValueError, match=r"2 workers need 4 CPU, and there are 3; 2 GPU, and there are 0: take fewer"):
        _check_room(config, {"CPU": 3.0}, accelerated=True)
    _check_room(replace(config, ray=RayConfig(address="auto")), {"CPU": 3.0}, accelerated=False)
    assert "waiting for more machines" in caplog.text


@pytest.mark.parametrize("address", [None, "auto"])
def test_ray_is_our_own_unless_an_address_is_given(config: TrainConfig, address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever RAY_ADDRESS says, and whatever Ray was left running."""
    asked: list[dict] = []
    monkeypatch.setattr("model.train.ray.is_initialized", lambda: False)
    monkeypatch.setattr("model.train.ray.init", lambda **options: asked.append(options))
    monkeypatch.setattr("model.train.ray.shutdown", lambda: None)
    with _ray(replace(config, ray=RayConfig(address=address))):
        pass
    assert asked[0]["address"] == (address or "local")
    assert ("num_cpus" in asked[0]) == (address is None)  # Ray refuses it for a cluster that is there already


def test_a_damaged_checkpoint_is_told_before_anything_starts(config: TrainConfig) -> None:
    Trainer(replace(config, steps=1)).train()
    progress = config.out / "checkpoints" / "step-000001" / "trainer.json"
    progress.write_bytes(progress.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"step-000001: not a whole checkpoint.*to start over"):
        train(config)


def test_clips_left_out_are_counted(config: TrainConfig, caplog: pytest.LogCaptureFixture) -> None:
    assert check(config) == 0
    assert "1 of 4 clips are shorter than a window" in caplog.text


def test_a_base_that_is_not_there_is_told_before_anything_starts(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: no model in diffusers. layout"):
        train(replace(config, base=tmp_path / "nowhere"))
    assert not config.out.exists()


def test_mistakes_are_told_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(f"shards: {tmp_path}\nout: {tmp_path}/out\n")
    with pytest.raises(ValueError, match="no index"):
        main(path, [])
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        main(path, ["stepz=3"])
    assert not (tmp_path / "out").exists()
