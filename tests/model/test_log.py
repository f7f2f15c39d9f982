"""The log is followed without reading it again and again, and across a worker that resumes."""

import json
import math
from pathlib import Path

import pytest

from model.log import LogFollower, Seen, StepMetrics, TrainLog, read_log


def write(log: TrainLog, *steps: int) -> None:
    for step in steps:
        log.add(StepMetrics(float(step), 1.0))
        log.write(step, lr=0.1)


def steps_of(follower: LogFollower) -> list[int]:
    return [int(r["step"]) for r in follower.new()]


def test_each_record_is_handed_out_once_also_when_a_worker_redoes_it(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    follower = LogFollower(path, 0)
    assert follower.new() == []
    log = TrainLog(path, 0)
    write(log, 1, 2)
    assert steps_of(follower) == [1, 2]
    write(log, 3, 4)
    assert steps_of(follower) == [3, 4] and follower.new() == []
    resumed = TrainLog(path, 3)  # shorter than what was read
    assert follower.new() == []
    write(resumed, 4, 5, 6, 7)
    assert steps_of(follower) == [5, 6, 7]
    again = TrainLog(path, 3)
    write(again, *range(4, 10))  # longer than what was read, and never seen shorter
    assert steps_of(follower) == [8, 9]


def test_a_line_waits_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    follower = LogFollower(path, 0)
    path.write_text('{"step": 1}\n{"st')
    assert steps_of(follower) == [1] and read_log(path) == [{"step": 1}]
    with path.open("a") as f:
        f.write('ep": 2}\n')
    assert steps_of(follower) == [2]


def test_what_was_read_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"step": 1}\n')
    follower = LogFollower(path, 0)
    follower.new()
    with path.open("r+b") as f:
        f.write(b"#" * 11)  # would fail as JSON
    with path.open("a") as f:
        f.write(json.dumps({"step": 2}) + "\n")
    assert steps_of(follower) == [2]


def test_a_record_says_how_fast_and_at_which_noise(tmp_path: Path) -> None:
    log = TrainLog(tmp_path / "train.jsonl", 0, peak_flops=1e15)
    log.add(StepMetrics(2.0, 1.0, (Seen(0, "a", 0.1, 1.0), Seen(1, "b", -1.0, 0.0), Seen(2, "c", 0.9, 3.0)), 7e12, 0.0, 2.5))
    log.add(StepMetrics(4.0, 1.0, (Seen(3, "a", 0.8, 4.0), Seen(4, "b", 1.0, 8.0)), 5e12, 0.0, 1.5))
    log.write(2, lr=0.1)
    log.add(StepMetrics(math.nan, 0.0, (Seen(5, "b", -1.0, 0.0),)))
    assert log.write(3, lr=0.1) is None  # nothing was learned
    log.add(StepMetrics(1.0, 1.0, (Seen(6, "a", 0.3, 1.0),)))
    log.write(4, lr=0.1)
    first, second = read_log(tmp_path / "train.jsonl")
    assert first["loss"] == 3.0 and first["loss_sigma_00"] == 1.0 and first["loss_sigma_75"] == 5.0
    assert "loss_sigma_25" not in first and second["loss_sigma_25"] == 1.0 and "loss_sigma_75" not in second
    assert 0 < first["model_tflops_per_s"] == pytest.approx(3 * first["samples_per_s"], rel=1e-3)
    assert first["mfu"] == pytest.approx(first["model_tflops_per_s"] / 1000, abs=1e-4)
    assert first["memory_gb"] == 2.5 and (first["skipped"], second["skipped"]) == (1, 1)
