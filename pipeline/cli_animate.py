"""`crosspair animate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.interrupts import interruptible
from pipeline.watch import ConsoleWatcher

console = Console(highlight=False, soft_wrap=True)


def animate(
    checkpoint: Annotated[Path, typer.Option(help="a checkpoint's folder, or OUT of a training run: its newest")],
    source: Annotated[Path, typer.Option(help="an image of the person to animate")],
    driving: Annotated[Path, typer.Option(help="a video of whose face he is to make")],
    out: Annotated[Path, typer.Option(help="the mp4 to write")],
    steps: Annotated[int, typer.Option(help="of sampling")] = 40,
    seed: Annotated[int, typer.Option(help="of the noise")] = 0,
    guidance: Annotated[str, typer.Option(metavar="S,D,P", help="strengths of source, driving and previous frames")] = "2,2.5,1",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="a.b=c", help="a value of sampler, video, faces or ingest, as sampler.branches=batched"),
    ] = None,
    base: Annotated[Path | None, typer.Option(help="the folder of SD3.5 that the model was trained from, where it was moved")] = None,
    prompt: Annotated[Path | None, typer.Option(help="a prompt's embedding (safetensors: tokens, pooled) to morph the face by")] = None,
    strength: Annotated[float, typer.Option(help="0..1, of all controls against the prompt")] = 1.0,
    show_controls: Annotated[bool, typer.Option("--show-controls", help="writes beside OUT what the model was shown")] = False,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU where there is one")] = None,
) -> None:
    """Animates the person of an image by a driving video: an mp4 as long as the driving clip, with its sound."""
    from pipeline.animate import Animation
    from pipeline.animate import animate as run_animation

    job = Animation(
        checkpoint=checkpoint,
        source=source,
        driving=driving,
        out=out,
        seed=seed,
        base=base,
        prompt=prompt,
        device=device,
        show=show_controls,
    )
    sampler = [f"steps={steps}", *_strengths(guidance), f"guidance.control_strength={strength}"]
    with interruptible(), ConsoleWatcher(console) as watcher:
        run_animation(job, [*(f"sampler.{s}" for s in sampler), *(set_ or ())], watcher)
    console.print(f"animated: {out}")


def _strengths(guidance: str) -> list[str]:
    """`2,2.5,1` as overrides of the sampler's guidance."""
    names, values = ("source", "driving", "history"), guidance.split(",")
    if len(values) != len(names):
        raise ValueError(f"--guidance {guidance}: three numbers, of source, driving and previous frames, as in 2,2.5,1")
    return [f"guidance.{name}={value}" for name, value in zip(names, values, strict=True)]
