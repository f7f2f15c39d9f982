"""`crosspair demo`: the whole house once, on clips of its own making. What it does is what a user does, command by command."""

from __future__ import annotations

import time
from pathlib import Path

import yaml
from rich.console import Console

from pipeline.books import Summary
from pipeline.config import RunConfig
from pipeline.demo_clips import make_demo_clips
from pipeline.report import write_report
from pipeline.run import run
from pipeline.verify import verify
from pipeline.watch import ConsoleWatcher
from schemas.config import load_config

_SIZE_PX = 256
_TRAIN_STEPS = 60


def run_demo(out: Path, console: Console) -> Summary:
    """Makes clips, pairs, shards, a report and a checkpoint under `out`; run again, it goes on where it stood.

    Raises:
        ValueError: the finished run does not verify.
    """
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    def say(text: str) -> None:
        console.print(f"\n[bold]{text}[/bold]  [dim]{time.monotonic() - started:.0f} s[/dim]")

    say("1  raw clips: people who do not exist, or who are in the public domain")
    _make_raw(out / "raw", console)
    run_config, train_config = _write_configs(out)
    say(f"2  crosspair run {run_config}")
    with ConsoleWatcher(console) as watcher:
        summary = run(load_config(RunConfig, run_config), base=out, watcher=watcher)
    say(f"3  crosspair verify {out / 'run'}")
    if problems := verify(out / "run"):
        raise ValueError("the demo's run does not verify:\n" + "\n".join(problems))
    console.print("ledger, tables, index and tars agree; every digest holds")
    say(f"4  crosspair report {out / 'run'}")
    report = write_report(out / "run")
    say(f"5  crosspair train {train_config}")
    checkpoint, sheet = _train(train_config, console)
    say("done")
    console.print(f"{summary.samples} samples of {sum(summary.pairs.values())} pairs; rejected on the way: {summary.reasons or 'nothing'}")
    for name, path in (("shards", summary.shards), ("checkpoint", checkpoint), ("sampled", sheet), ("report", report)):
        console.print(f"{name:<11} {path}")
    return summary


def _make_raw(raw: Path, console: Console) -> None:
    if (raw / "portraits.csv").is_file() and (raw / "clips.csv").is_file():
        console.print(f"{raw}: already there")
        return
    make_demo_clips(raw, progress=lambda name, done, total: console.print(f"{done}/{total} {name}"))


def _write_configs(out: Path) -> tuple[Path, Path]:
    """The two configs that the commands take; a user may edit them and run the commands by hand."""
    run_config = {
        "run": "run",
        "clips": "raw/clips.csv",
        "portraits": "raw/portraits.csv",
        "video": {"size_px": _SIZE_PX},
        "pairs": {"per_clip": 2},
        "shards": {"max_mb": 8},
    }
    train_config = {
        "shards": str(out / "run"),
        "out": str(out / "train"),
        "model": "tiny",
        "frame_px": 64,
        "steps": _TRAIN_STEPS,
        "history_from_step": _TRAIN_STEPS * 4 // 5,
        "lr": 1e-3,
        "warmup": 10,
        "log_every": 5,
        "checkpoint_every": _TRAIN_STEPS // 2,
    }
    paths = out / "demo.yaml", out / "train.yaml"
    for path, config in zip(paths, (run_config, train_config), strict=True):
        path.write_text(yaml.safe_dump(config, sort_keys=False))
    return paths


def _train(config: Path, console: Console) -> tuple[Path, Path | None]:
    from model.train import main  # the one place where pipeline meets model, and only when asked

    def show(record: dict[str, float]) -> None:
        console.print(f"step {record['step']:>4.0f}  loss {record['loss']:.4f}  {record.get('samples_per_s', 0):.1f} samples/s")

    result = main(config, [], on_progress=show)
    return result.checkpoint, result.sheet
