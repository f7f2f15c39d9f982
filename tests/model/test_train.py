"""Under Ray Train: one worker, killed on the way, ends where the bare loop ends; the user's mistakes are told before anything starts."""

import os
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from diffusers import SD3Transformer2DModel
from pairset import members_of, write_pair_set

from model.log import read_log
from model.settings import RayConfig, SheetConfig, TrainConfig
from model.train import _ray, check, main, train
from model.trainer import LOG_NAME, Trainer
from schemas.sample import TARGET


def kill_worker() -> bool:
    """Of this process's own cluster: the raylet is its child, and the worker the raylet's."""
    workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
    for worker in workers:
        worker.kill()
    return bool(workers)


@pytest.mark.usefixtures("ray_session")
def test_a_worker_that_is_killed_ends_where_the_bare_loop_ends(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from paths relative to where the user stands, which is not where a worker runs."""
    monkeypatch.chdir(tmp_path)
    config = replace(config, shards=Path(os.path.relpath(config.shards)), out=Path("train"))
    config = replace(config, steps=60, history_from_step=20)
    bare = Trainer(replace(config, out=tmp_path / "bare"))
    bare.train()
    Trainer(replace(config, steps=3)).train()  # as if an earlier run had been stopped here

    records: list[dict[str, float]] = []
    killed: list[bool] = []

    def follow(record: dict[str, float]) -> None:
        records.append(record)
        if not killed:
            killed.append(kill_worker())

    with_sheet = replace(config, sheet=SheetConfig(steps=1, rows=2))
    result = train(with_sheet, follow)
    assert killed == [True]
    assert [r["step"] for r in records] == list(range(4, 61))
    assert result.steps == 60 and result.checkpoint.name == "step-000060"
    assert result.losses == [r["loss"] for r in read_log(tmp_path / "bare" / LOG_NAME)]
    base = SD3Transformer2DModel.from_pretrained(result.checkpoint, subfolder="transformer")
    assert all(torch.equal(v, bare.model.base.state_dict()[k]) for k, v in base.state_dict().items())
    assert result.sheet is not None and result.sheet.is_file()
    assert train(with_sheet) == result  # complete: nothing is started


@pytest.mark.usefixtures("ray_session")
@pytest.mark.slow
def test_what_trying_again_cannot_mend_is_told_and_not_tried_again(config: TrainConfig, tmp_path: Path) -> None:
    members = members_of("k", 12, tmp_path)
    shards = write_pair_set(tmp_path / "set", {"k": members | {TARGET: members[TARGET][:200]}})
    with pytest.raises(ValueError, match="sample k: not a readable crosspair video") as told:
        train(replace(config, shards=shards, max_failures=3))
    assert told.value.__cause__ is None  # it came from the worker's own note, not through Ray's count of failures
    assert (config.out / "refused.txt").read_text() == str(told.value)


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
    state = config.out / "checkpoints" / "step-000001" / "trainer.pt"
    state.write_bytes(state.read_bytes()[:1000])
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
