"""Several workers train the model that one would have trained, and their checkpoint is anyone's."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from diffusers import SD3Transformer2DModel
from together import members, together
from torch.distributed.tensor import DTensor

from model.adapters import LoraConfig
from model.checkpoint import Checkpoints, export, load_model
from model.diary import LOG_NAME
from model.log import StepMetrics, read_log
from model.parallel import ParallelConfig
from model.settings import SheetConfig, TrainConfig
from model.state import save, settled
from model.trainer import Trainer
from model.workers import Workers

TEN = 10


def steps(config: TrainConfig, count: int) -> list[StepMetrics]:
    """Of a trainer that goes on from where `config.out` is, and saves at the end."""
    workers = Workers.all()
    trainer = Trainer(config, workers=workers)
    if workers.world > 1:
        assert all(isinstance(p, DTensor) for p in trainer.model.parameters())
    taken = []
    for _ in range(count):
        slots = trainer.stream.batch(trainer.position, config.batch_size, rank=workers.rank, world=workers.world)
        taken.append(trainer.train_step(slots))
    trainer.save()
    return taken


def trained(config: TrainConfig) -> float:
    """As `crosspair train` does it; the last loss."""
    trainer = Trainer(config, workers=Workers.all())
    trainer.train()
    return trainer.position


def latest(config: TrainConfig) -> Path:
    found = Checkpoints(config.out / "checkpoints", keep=9).latest()
    assert found is not None
    return found


def seen(metrics: list[StepMetrics]) -> list[tuple[int, str]]:
    return [(s.position, s.sample) for m in metrics for s in m.seen]


@pytest.fixture
def alone(config: TrainConfig, tmp_path: Path) -> TrainConfig:
    return replace(config, batch_size=3, steps=TEN, out=tmp_path / "alone", max_grad_norm=0.5)  # so low that it clips


def test_two_workers_do_as_one_and_three_go_on_from_them(alone: TrainConfig, tmp_path: Path) -> None:
    """Ten steps in float32: losses and weights differ by rounding alone. The batch of three is dealt unevenly."""
    expected = steps(alone, TEN)
    pair = replace(alone, out=tmp_path / "pair", log_samples=True)
    of_ranks = together(2, steps, pair, TEN)
    for rank in of_ranks:
        assert seen(rank) == seen(expected)
        assert [m.loss for m in rank] == pytest.approx([m.loss for m in expected], abs=1e-4)
        assert [m.grad_norm for m in rank] == pytest.approx([m.grad_norm for m in expected], abs=1e-4)
    for ema in (False, True):
        one, two = (load_model(latest(c), ema=ema).state_dict() for c in (alone, pair))
        assert max((one[name] - two[name]).abs().max() for name in one) < 1e-4
    assert len(list((latest(pair) / "state").glob("*.distcp"))) == 2

    export(latest(pair), tmp_path / "export", ema=False)
    theirs = SD3Transformer2DModel.from_pretrained(tmp_path / "export", subfolder="transformer").state_dict()
    assert all(torch.equal(v, load_model(latest(pair), ema=False).base.state_dict()[k]) for k, v in theirs.items())

    onwards = steps(replace(alone, steps=TEN + 3), 3)
    for world in (1, 3):
        goes_on = replace(pair, out=tmp_path / f"of-{world}", steps=TEN + 3)
        shutil.copytree(pair.out, goes_on.out)
        more = steps(goes_on, 3) if world == 1 else together(world, steps, goes_on, 3)[0]
        assert seen(more) == seen(onwards)
        assert [m.loss for m in more] == pytest.approx([m.loss for m in onwards], abs=1e-4)


def test_the_whole_loop_by_two_with_all_that_saves_memory(alone: TrainConfig, tmp_path: Path) -> None:
    """bf16, recomputing, one sample at a time, adapters, pictures on the way: it runs, resumes, and ends near what one worker does."""
    settings = replace(alone, tune="lora", lora=LoraConfig(rank=2), lr=1e-2, steps=4, sheet=SheetConfig(steps=1, rows=1, every=2))
    settings = replace(settings, checkpoint_every=2, history_from_step=2)
    thrifty = replace(settings, out=tmp_path / "two", micro_batch=1, parallel=ParallelConfig(precision="bf16", recompute=True))
    trained(settings)
    assert together(2, trained, replace(thrifty, steps=2)) == [6, 6]
    assert together(2, trained, thrifty) == [12, 12]
    logs = [read_log(c.out / LOG_NAME) for c in (settings, thrifty)]
    assert [[r["step"] for r in log] for log in logs] == [[1, 2, 3, 4]] * 2
    assert [r["loss"] for r in logs[1]] == pytest.approx([r["loss"] for r in logs[0]], rel=0.02)
    for file in ("sheet.png", "sheet.mp4", "samples/step-000002.png", "samples/step-000004.mp4"):
        assert (thrifty.out / file).is_file()
    merged, began = load_model(latest(thrifty)).state_dict(), Trainer(replace(settings, out=tmp_path / "new")).model.state_dict()
    weight = "base.transformer_blocks.0.attn.to_q"
    assert not torch.equal(merged[f"{weight}.weight"], began[f"{weight}.base_layer.weight"])


def trained_by_a_fast_clock(config: TrainConfig) -> None:
    """The second worker's is: by its own it would save after every step, alone."""
    if dist.get_rank() == 1:
        began, real = time.monotonic(), time.monotonic
        time.monotonic = lambda: began + 1e6 * (real() - began)
    Trainer(config, workers=Workers.all()).train()


def test_workers_agree_when_time_is_up(alone: TrainConfig) -> None:
    config = replace(alone, steps=3, checkpoint_every=2, checkpoint_minutes=1000)
    together(2, trained_by_a_fast_clock, config)
    assert sorted(p.name for p in (config.out / "checkpoints").glob("step-*")) == ["step-000002", "step-000003"]


def dies_while_the_other_saves(config: TrainConfig) -> None:
    workers = Workers.all()
    trainer = Trainer(config, workers=workers)
    if workers.rank == 1:
        trainer.workers.wait()
        os._exit(1)
    trainer.checkpoints.begin(0)
    trainer.workers.wait()
    try:
        settled(save(trainer._state(), trainer.checkpoints.partial(0) / "state", workers), trainer.checkpoints.partial(0))
    except Exception as e:
        (config.out / "told").write_text(type(e).__name__)
    os._exit(0)


def test_another_workers_death_while_saving_is_no_full_disk(alone: TrainConfig) -> None:
    """Ray mends it by new workers; a ValueError would be the user's to mend, and end the run."""
    alone.out.mkdir()
    members(2, dies_while_the_other_saves, alone)
    assert (alone.out / "told").read_text() in ("RuntimeError", "DistBackendError", "DistNetworkError")


@pytest.mark.slow
def test_blocks_are_compiled_also_where_they_are_recomputed(alone: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        compiled.append(graph)
        return graph.forward

    whole = torch.compile
    monkeypatch.setattr("torch.compile", lambda forward: whole(forward, backend=backend))
    expected = steps(replace(alone, steps=1), 1)
    both = replace(alone, steps=1, out=alone.out / "both", parallel=ParallelConfig(recompute=True, compile=True))
    assert [m.loss for m in steps(both, 1)] == pytest.approx([m.loss for m in expected], abs=1e-5)
    assert len(compiled) >= 2  # a block and a temporal module at least


def test_memory_and_accumulation_change_nothing_but_rounding(alone: TrainConfig, tmp_path: Path) -> None:
    expected = steps(replace(alone, steps=3), 3)
    frugal = replace(alone, steps=3, out=tmp_path / "frugal", micro_batch=2, parallel=ParallelConfig(recompute=True))
    assert [m.loss for m in steps(frugal, 3)] == pytest.approx([m.loss for m in expected], abs=1e-5)
