"""The `crosspair` command: reads arguments, calls one function, prints. What users can mend is one line and exit code 2,
or 3 where the storage failed under a command."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from pipeline.cli_animate import animate
from pipeline.cli_export import export
from pipeline.cli_latents import latents, text_embedding
from pipeline.cli_models import models_app
from pipeline.interrupts import resumable
from pipeline.watch import ConsoleWatcher
from schemas.files import StorageError, own_storage
from schemas.outcomes import Outcome

if TYPE_CHECKING:
    from pipeline.books import Summary

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__.split(":")[0] if __doc__ else None
)
app.add_typer(models_app, name="models", help="Weights: what is expected where, digests, licences, and export to ONNX.")
pairs_app = typer.Typer(no_args_is_help=True)
app.add_typer(pairs_app, name="pairs", help="The pairs of a run: more people who appear.")
app.command()(animate)
app.command()(export)
app.command()(latents)
app.command("text-embedding")(text_embedding)
console = Console(highlight=False, soft_wrap=True)

ConfigPath = Annotated[Path, typer.Argument(help="a config file (YAML)")]
RunPath = Annotated[str, typer.Argument(help="a run's folder, or s3://bucket/prefix")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="overrides one value of the config")]


def _resumable() -> AbstractContextManager[None]:
    return resumable(console.print)


@app.command()
def run(
    config: ConfigPath,
    set_: Overrides = None,
    until: Annotated[str, typer.Option(help="prepare, plan, generate or pack")] = "pack",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what is due, and what is done again and why")] = False,
) -> None:
    """The whole pipeline; run it again to resume."""
    with _resumable():
        from pipeline.config import RunConfig
        from pipeline.run import foresee_run
        from pipeline.run import run as run_pipeline
        from schemas.config import load_config

        settings = load_config(RunConfig, config, set_ or ())
        with ConsoleWatcher(console) as watcher:
            if dry_run:
                foresee_run(settings, base=config.parent, watcher=watcher)
                return
            summary = run_pipeline(settings, base=config.parent, watcher=watcher, until=until)
    _show(summary, settings.run)


def _show(summary: Summary, run_: str) -> None:
    for name in ("sources", "clips", "pairs"):
        counts = getattr(summary, name)
        console.print(f"{name}: " + (", ".join(f"{n} {outcome}" for outcome, n in counts.items()) or "none"))
    if summary.reasons:
        console.print("reasons: " + ", ".join(f"{n} {reason}" for reason, n in summary.reasons.items()))
    if summary.unidentified:
        console.print(f"{summary.unidentified} could not be looked at by the identity network; `crosspair retry {run_}` takes them up")
    if summary.shards:
        console.print(f"{summary.samples} samples in {summary.shards}")


@pairs_app.command("add")
def pairs_add(
    run_: RunPath,
    portraits: Annotated[list[str], typer.Argument(help="images, globs, folders or manifests")],
    per_clip: Annotated[int, typer.Option(help="how many of them appear for a clip, beside those who do already")] = 1,
) -> None:
    """New people who appear: one more generation, which renders only what is missing."""
    with _resumable():
        from pipeline.run import add_portraits

        with ConsoleWatcher(console) as watcher:
            summary = add_portraits(run_, portraits, base=Path.cwd(), per_clip=per_clip, watcher=watcher)
    _show(summary, run_)


@app.command()
def status(run_: RunPath, json_: Annotated[bool, typer.Option("--json", help="as JSON")] = False) -> None:
    """Units by stage and outcome, rejections by reason, rate, time left."""
    from pipeline.status import as_json
    from pipeline.status import status as read_status

    state = read_status(run_)
    if json_:
        typer.echo(as_json(state))
        return
    table = Table("stage", *(o.value for o in Outcome), "left", "units/s of work")
    for stage, counts in state["stages"].items():
        table.add_row(stage, *(str(counts[o.value]) for o in Outcome), str(counts["left"]), str(state["rate"].get(stage, "")))
    console.print(table)
    for reason, n in state["reasons"].items():
        console.print(f"{n:6d} {reason}")


@app.command()
def verify(run_: RunPath) -> None:
    """Exit 0 only if ledger, tables, index and tars agree and every digest holds."""
    from pipeline.verify import verify as find_problems

    problems = find_problems(run_)
    for problem in problems:
        console.print(problem)
    console.print(f"{run_}: " + (f"{len(problems)} problems" if problems else "ledger, tables, index and tars agree; every digest holds"))
    raise typer.Exit(bool(problems))


@app.command()
def diff(
    run_a: RunPath,
    run_b: Annotated[str, typer.Argument(help="another run", show_default=False)] = "",
    sets: Annotated[tuple[str, str] | None, typer.Option(metavar="A B", help="instead of another run: two pair sets of this one")] = None,
) -> None:
    """Exit 0 only if two runs hold the same samples, byte for byte; or how two pair sets of one run compare."""
    if bool(run_b) == bool(sets):
        raise ValueError("crosspair diff RUN_A RUN_B, or crosspair diff RUN --sets A B")
    if sets:
        _compare(run_a, *sets)
        return
    from pipeline.verify import diff as find_differences

    differences = find_differences(run_a, run_b)
    for difference in differences:
        console.print(difference)
    console.print("the same samples, byte for byte" if not differences else f"{len(differences)} differences")
    raise typer.Exit(bool(differences))


def _compare(run_: str, a: str, b: str) -> None:
    from pipeline.compare import compare_sets

    found = compare_sets(run_, a, b)
    console.print(f"samples: {found.both} in both, {len(found.only_a)} only in {a}, {len(found.only_b)} only in {b}")
    for name, keys in ((a, found.only_a), (b, found.only_b)):
        for key in keys:
            console.print(f"only in {name}: {key}")
    table = Table(Column("score", no_wrap=True), "pairs", a, b, f"{b} - {a}", "better", "worse", title="medians over the pairs of both")
    for s in found.scores:
        counts = (str(n) if n >= 0 else "" for n in (s.better, s.worse))
        table.add_row(s.score, str(s.pairs), f"{s.median_a:.4g}", f"{s.median_b:.4g}", f"{s.difference:+.3g}", *counts)
    console.print(table)


@app.command()
def retry(
    run_: RunPath,
    reason: Annotated[str | None, typer.Option(help="only units of this reason, rejected ones too")] = None,
    damaged: Annotated[bool, typer.Option("--damaged", help="only units whose artifacts are missing or changed")] = False,
) -> None:
    """Makes failed and quarantined units due again; `crosspair run` takes them up."""
    from pipeline.ledger import due_again
    from pipeline.storage import exclusive, read_run_file

    prints = read_run_file(run_)["fingerprints"]
    with exclusive(run_):
        units = due_again(run_, prints, reason=reason, damaged=damaged)
    console.print(f"{units} units are due again; `crosspair run` takes them up")


@app.command()
def replay(
    run_: RunPath,
    unit: Annotated[str, typer.Argument(help="a unit's id, as outcomes.parquet and messages name it")],
    stage: Annotated[str, typer.Option(help="by default the one that it failed in")] = "",
) -> None:
    """One unit again, in the foreground, with the full error. Nothing is recorded."""
    from pipeline.replay import find
    from schemas.outcomes import Rejection

    found = find(run_, unit, stage)
    try:
        made = found.run()
        made["data"].pop("embedding", None)  # biometric: it lies in the ledger and is shown nowhere
        console.print_json(data=made)
    except Rejection as e:
        console.print(f"rejected: {e.reason}: {e}", markup=False)
        console.print_json(data=e.scores)
        raise typer.Exit(1) from e
    except Exception as e:
        console.print_exception()
        raise typer.Exit(1) from e


@app.command()
def forget(
    run_: RunPath,
    person: Annotated[str, typer.Argument(metavar="IDENTITY", help="an identity as in tables/identities.parquet, or the manifest's name")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would go")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
) -> None:
    """Withdraws a person: every artifact, row, sample, thumbnail and cache entry that derives from him goes, for good."""
    with _resumable():
        from pipeline.forget import foresee_forget
        from pipeline.forget import forget as forget_person

        removal = foresee_forget(run_, person)
        console.print(f"known as {', '.join(removal.names) or 'nobody any more'}", markup=False)
        console.print(str(removal))
        if removal.partly:
            console.print(f"{removal.partly} files show others too: of those, what is surely theirs stays")
        if removal.newer:
            console.print(
                f"{removal.newer} clips and portraits are newer than the tables: nobody knows yet whether they show him, and they stay. "
                f"First `crosspair run CONFIG --until plan`, then this"
            )
        if dry_run:
            return
        if not yes:
            typer.confirm("Take all this out, for good?", abort=True)
        removal = forget_person(run_, person, say=console.print)
    console.print(f"forgotten: {removal}")


@app.command()
def report(run_: RunPath) -> None:
    """Writes RUN/report/index.html."""
    from pipeline.report import write_report

    console.print(f"report: {write_report(run_)}")


@app.command()
def train(config: ConfigPath, set_: Overrides = None) -> None:
    """Trains the diffusion transformer on a run's shards under Ray Train; run it again to resume."""

    def show(record: dict[str, float]) -> None:
        numbers = ", ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in record.items() if k != "step")
        console.print(f"step {record['step']:.0f}: {numbers}")

    with _resumable():
        from model.train import main as train_main

        result = train_main(config, set_ or [], on_progress=show)
    console.print(f"checkpoint: {result.checkpoint}")
    if result.sheet:
        console.print(f"sampled: {result.sheet}")


@app.command()
def demo(out: Annotated[Path, typer.Option(help="where everything goes")] = Path("demo")) -> None:
    """Makes its own clips, runs everything on them, trains a few steps, and writes the report."""
    with _resumable(), own_storage(out.absolute()):
        from pipeline.demo import run_demo

        run_demo(out, console)


def main() -> None:
    """Entry point of the command. It leaves by the short way: threads that Ray leaves behind now and then abort an interpreter's end."""
    try:
        _run_command()
    except SystemExit as e:
        if not isinstance(e.code, int | None):
            raise
        atexit._run_exitfuncs()
        with suppress(BrokenPipeError):  # whoever read along has gone
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(e.code or 0)


def _run_command() -> None:
    try:
        app()
    except ValueError as e:
        print(f"crosspair: {e}", file=sys.stderr)
        sys.exit(2)
    except StorageError as e:
        print(f"crosspair: {e}", file=sys.stderr)
        sys.exit(3)
    except RuntimeError as e:
        from pipeline.worker import StageUnavailable

        if not isinstance(e, StageUnavailable):
            raise
        print(f"crosspair: {e}; mend that, then run again: it goes on where it stood", file=sys.stderr)
        sys.exit(3)
