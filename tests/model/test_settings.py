"""The config refuses what cannot be meant, before anything starts."""

from dataclasses import replace
from pathlib import Path

import pytest

from model.parallel import ParallelConfig
from model.settings import LoaderConfig, SheetConfig, TrainConfig
from model.stream import Shards
from schemas.config import load_config, parse_config

ROOT = Path(__file__).parents[2]


def test_the_shipped_config_is_valid() -> None:
    config = load_config(TrainConfig, ROOT / "configs" / "train" / "tiny.yaml", ["steps=7", "sheet.steps=0"])
    assert config.steps == 7 and config.sheet.steps == 0 and config.portrait().frames == 8 and config.ray.address is None
    paper = load_config(TrainConfig, ROOT / "configs" / "train" / "paper.yaml", [])
    assert paper.worker_range == (8, 32) and paper.batch_size == 32 and paper.steps - paper.history_from_step == 10_000
    assert (paper.portrait().frames, paper.portrait().history, paper.stream().frame_px) == (16, 3, 576)


def test_shards_are_a_folder_a_bucket_or_several_with_weights() -> None:
    several = parse_config(TrainConfig, {"shards": [{"place": "a", "weight": 2}, {"place": "s3://b/c"}], "out": "o"})
    assert several.shards == (Shards("a", 2.0), Shards("s3://b/c"))
    located = several.located()
    assert located.shards == (Shards(str(Path("a").resolve()), 2.0), Shards("s3://b/c")) and located.out.is_absolute()
    assert parse_config(TrainConfig, {"shards": "s3://b/c", "out": "o"}).located().shards == "s3://b/c"


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("batch_size=0", "batch_size must be at least 1"),
        ("lr=-1.0", "lr must be above 0"),
        ("lr=0", "lr must be above 0"),
        ("lr=.nan", "lr must be above 0"),
        ("checkpoint_minutes=0", "checkpoint_minutes must be above 0"),
        ("max_grad_norm=0.0", "max_grad_norm must be above 0"),
        ("mask_dilation=-1", "mask_dilation must be at least 0"),
        ("max_failures=-1", "max_failures must be at least 0"),
        ("warmup=-3", "warmup must be at least 0"),
        ("weight_decay=-1", "weight_decay must be at least 0"),
        ("history_from_step=-5", "history_from_step must be at least 0"),
        ("sheet.steps=-1", "at least 0 steps"),
        ("sheet.rows=0", "1 row"),
        ("objective.dropout_chances=[0.5, 0.5, 0.5]", "leave some chance"),
        ("frames=2", r"history \(3\) must be at most frames \(2\)"),
        ("lr_end=1.0", r"lr_end must lie between 0 and lr"),
        ("lr_decay=sqrt", "'constant', 'linear' or 'cosine'"),
        ("objective.history_noise=-1", "history_noise must be at least 0"),
        ("ema={decay: 1.5}", "ema.decay must lie between 0 and 1"),
        ("ema={decai: 0.9}", "did you mean 'ema.decay'"),
        ("lora.rank=0", "rank must be at least 1"),
        ("tune=some", "'full' or 'lora'"),
        ("ray.adress=auto", "did you mean 'ray.address'"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(setting: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        load_config(TrainConfig, ROOT / "configs" / "train" / "tiny.yaml", [setting])


def test_what_changes_weights_may_not_change_on_resume() -> None:
    config = parse_config(TrainConfig, {"shards": "s", "out": "o", "lr": 0.1})
    before = config.fixed()
    free = replace(config, out=Path("p"), steps=7, sheet=SheetConfig(steps=0), max_failures=5, keep_checkpoints=9, checkpoint_minutes=5)
    assert free.changes(before) == []
    elsewhere = replace(config, device="cpu", micro_batch=1, parallel=ParallelConfig(recompute=True), loader=LoaderConfig(threads=4))
    assert replace(elsewhere, batch_size=8, workers=(1, 8)).changes(replace(config, batch_size=8).fixed()) == []
    half = replace(config, parallel=ParallelConfig(precision="bf16"))
    assert half.changes(before) == ["parallel.precision (was fp32, is bf16)"]
    assert replace(config, cpus=2).changes(before) == ["cpus (was 1, is 2)"]
    chances = replace(config, objective=replace(config.objective, dropout_chances=(0.0, 0.0, 0.5)))
    assert chances.changes(before) == ["objective.dropout_chances (was [0.1, 0.1, 0.2], is [0.0, 0.0, 0.5])"]


def test_the_learning_rate_rises_and_falls_to_its_end() -> None:
    config = parse_config(TrainConfig, {"shards": "s", "out": "o", "lr": 1.0, "lr_end": 0.2, "warmup": 4, "steps": 12})
    assert [config.learning_rate(s) for s in (0, 1, 3, 4, 11, 99)] == [0.25, 0.5, 1.0, 1.0, 1.0, 1.0]
    linear, cosine = replace(config, lr_decay="linear"), replace(config, lr_decay="cosine")
    assert [linear.learning_rate(s) for s in (0, 3, 7, 11, 12)] == pytest.approx([0.25, 1.0, 0.6, 0.2, 0.2])
    assert [cosine.learning_rate(s) for s in (0, 3, 5, 7, 11)] == pytest.approx([0.25, 1.0, 0.2 + 0.4 * (1 + 0.5**0.5), 0.6, 0.2])
    assert "steps" in cosine.fixed() and "steps" not in config.fixed()  # the shape of the fall depends on where it ends


def test_averages_are_there_or_not_for_the_whole_run() -> None:
    config = parse_config(TrainConfig, {"shards": "s", "out": "o"})
    without = replace(config, ema=None)
    assert without.changes(without.fixed()) == [] and config.changes(config.fixed()) == []
    assert "ema.decay (was 0.999, is None)" in without.changes(config.fixed())
    assert "ema.decay (was None, is 0.999)" in config.changes(without.fixed())
    assert parse_config(TrainConfig, {"shards": "s", "out": "o", "ema": None}) == without


def test_a_setting_newer_than_the_checkpoint_had_its_default() -> None:
    config = parse_config(TrainConfig, {"shards": "s", "out": "o"})
    before = config.fixed()
    del before["weight_decay"], before["objective"]["shift"]
    assert config.changes(before) == []
    assert replace(config, weight_decay=0.5).changes(before) == ["weight_decay (was 0.0, is 0.5)"]
    assert config.changes(before | {"gone": 3}) == ["gone (was 3, is None)"]
